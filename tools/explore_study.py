"""Measure what chains, explorations and populations of grown networks are worth, on digits.

    python tools/explore_study.py chain --seeds 3 --out results
    python tools/explore_study.py explore --seeds 5 --out results
    python tools/explore_study.py population --seeds 3 --out results

Compute is counted in multiplications of all trainings, in units of a step of the teacher. Every arm has the same data,
training command, space and search; only the start differs. What is printed is what docs/exploring.md shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from warm import warm

from onnx_net2net.model.model import load
from onnx_net2net.search.chain import Row, run_chain, saving
from onnx_net2net.search.cost import cost_of
from onnx_net2net.search.engines import Local
from onnx_net2net.search.explore import Exploration, Options, Trial
from onnx_net2net.search.growing import Network
from onnx_net2net.search.population import Options as PopulationOptions
from onnx_net2net.search.population import Population
from onnx_net2net.search.space import read_space
from onnx_net2net.search.stages import read_chain
from onnx_net2net.search.training import Stop, Template

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "train.py"
TEACHER_STEPS = 300
STOP = Stop("val_loss", silence=600)
ARGUMENTS = "--init {init} --optimizer {optimizer} --out {out} --start {start} --steps {steps} --seed {seed} --every 25"
SPACE = {
    "widen": {"stem": ["1x", "2x"], "ffn": ["1x", "1.5x", "2x", "3x"]},
    "repeat": {"blocks": ["+0", "+1", "+2"]},
    "train": {"rate": {"low": 5e-4, "high": 1e-2, "log": True}},
}
RUNGS = (100, 300)
ROUNDS = (100, 200, 300, 400)
BUDGET, BATCH, MEMBERS = 8, 4, 4


def prepared(folder: Path, seed: int, command: str) -> Network:
    """Return a small network that is trained; in the folder afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    chain = {
        "start": {"model": "small.onnx", "state_dict": "small.pt", "train": True}, "work": "teacher", "stages": [],
        "train": f"{command} {ARGUMENTS}", "stop": {"metric": "val_loss", "steps": TEACHER_STEPS}, "seed": seed,
    }  # fmt: skip
    if not (folder / "small.onnx").exists():
        export(folder, seed)
    (folder / "teacher.yaml").write_text(yaml.safe_dump(chain))
    return run_chain(read_chain(folder / "teacher.yaml"))[0].network


def export(folder: Path, seed: int) -> None:
    """Write a fresh small network."""
    subprocess.run([sys.executable, EXAMPLE, "--export", "small.onnx", "--state", "small.pt", "--seed", str(seed)],
                   cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


# --- chain ----------------------------------------------------------------------------------------------------


def study_chain(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Train three networks in a chain, and the last one alone."""
    folder.mkdir(parents=True, exist_ok=True)
    export(folder, seed)
    chain = {
        "start": {"model": "small.onnx", "state_dict": "small.pt", "train": True}, "work": "runs", "seed": seed,
        "train": f"{command} {ARGUMENTS}", "stop": {"metric": "val_loss", "steps": 600},
        "stages": [
            {"name": "medium", "widen": {"factor": 2}},
            {"name": "large", "widen": {"factor": 2}, "deepen": {"repeat": ["blocks=+1"]}},
        ],
        "baseline": {"train": f"{command} {ARGUMENTS} --fresh", "stop": {"steps": 1800}},
    }  # fmt: skip
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    read = read_chain(folder / "chain.yaml")
    rows = run_chain(read)
    saved = saving(rows, read.stages[-1].stop)
    assert saved is not None
    unit = rows[-1].cost.macs
    spent = sum(row.compute for row in rows[:-1]) / unit
    alone = dict(rows[-1].outcome.curve)
    at_equal = min(value for step, value in alone.items() if step <= spent)
    return {
        "seed": seed, "starts": [[row.expected, row.outcome.first] for row in rows[1:-1]],
        "chain best": best(rows[-2]), "chain compute": spent, "alone at equal compute": at_equal,
        "alone best": best(rows[-1]), "goal": saved.metric, "chain to goal": saved.chain, "alone to goal": saved.alone,
    }  # fmt: skip


def best(row: Row) -> float:
    """Return the best metric of a training."""
    assert row.outcome is not None
    return min(value for _, value in row.outcome.curve)


# --- explore --------------------------------------------------------------------------------------------------


def study_explore(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Search the same space from the teacher and from scratch."""
    teacher = prepared(folder, seed, command)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = read_space(folder / "space.yaml")
    unit = cost_of(load(teacher.model)).macs
    found: dict[str, object] = {"seed": seed}
    for arm, more, sunk in (("grown", "", float(TEACHER_STEPS)), ("scratch", " --fresh", 0.0)):
        template = Template.of(f"{command} {ARGUMENTS} --rate {{rate}}{more}", folder, space.numbers)
        options = Options(template, STOP, RUNGS, budget=BUDGET, batch=BATCH, seed=seed)
        trials = Exploration(teacher, space, options, Local(1), folder / arm).run()
        found[arm] = progress(trials, unit, sunk)
    return found


def progress(trials: Iterable[Trial], unit: float, sunk: float) -> list[tuple[float, float]]:
    """Return the best metric so far against all compute so far, batch by batch and rung by rung."""
    spent, lowest, curve = sunk, float("inf"), []
    ordered = sorted(trials, key=lambda trial: trial.number)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        for rung, before in enumerate((0, *RUNGS[:-1])):
            for trial in (trial for trial in batch if len(trial.outcomes) > rung):
                for step, value in trial.outcomes[rung].curve[1:]:
                    lowest = min(lowest, value)
                    curve.append((spent + (step - before) * trial.cost.macs / unit, lowest))
                spent += (RUNGS[rung] - before) * trial.cost.macs / unit
    return curve


# --- population -----------------------------------------------------------------------------------------------


def study_population(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Train a population of architectures, and plain ones at the smallest and at the largest architecture."""
    teacher = prepared(folder, seed, command)
    unit = cost_of(load(teacher.model)).macs
    found: dict[str, object] = {"seed": seed}
    for arm, pick in (("architectures", None), ("plain, small", 0), ("plain, large", -1)):
        space_file = folder / f"{arm}.yaml"
        space_file.write_text(yaml.safe_dump(SPACE if pick is None else fixed(pick)))
        space = read_space(space_file)
        template = Template.of(f"{command} {ARGUMENTS} --rate {{rate}}", folder, space.numbers)
        options = PopulationOptions(template, STOP, MEMBERS, ROUNDS, seed)
        rounds = Population(teacher, space, options, Local(1), folder / arm).run()
        curve: list[tuple[float, float]] = []
        lowest, spent, last = float("inf"), 0.0, 0
        for steps, members in zip(ROUNDS, rounds, strict=True):
            spent += sum((steps - last) * member.cost.macs for member in members if member.value is not None) / unit
            lowest = min([lowest, *(member.value for member in members if member.value is not None)])
            curve.append((spent, lowest))
            last = steps
        found[arm] = curve
    return found


def fixed(pick: int) -> dict[str, object]:
    """Return the space with the smallest or the largest architecture only."""
    return {**SPACE, "widen": {name: [choices[pick]] for name, choices in SPACE["widen"].items()},
            "repeat": {name: [choices[pick]] for name, choices in SPACE["repeat"].items()}}  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------


def at(curve: Sequence[tuple[float, float]], compute: float) -> float | None:
    """Return the best metric at some compute."""
    return min((value for spent, value in curve if spent <= compute), default=None)


def reached(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Return the compute at which a metric is reached."""
    return next((spent for spent, value in curve if value <= goal), None)


def compare(results: Sequence[dict], arms: Sequence[str]) -> list[str]:
    """Return rows: the best of each arm at the compute that all have, and the compute to the worst arm's best."""
    lines = [f"| seed | compute | {' | '.join(f'best, {arm}' for arm in arms)} | goal | "
             f"{' | '.join(f'compute, {arm}' for arm in arms)} |", "|---" * (3 + 2 * len(arms)) + "|"]  # fmt: skip
    for result in results:
        curves = [result[arm] for arm in arms]
        equal = min(curve[-1][0] for curve in curves)
        goal = max(curve[-1][1] for curve in curves)
        values = [at(curve, equal) for curve in curves]
        costs = [reached(curve, goal) for curve in curves]
        cells = [result["seed"], f"{equal:,.0f}", *(f"{v:.4f}" if v is not None else "-" for v in values),
                 f"{goal:.4f}", *(f"{c:,.0f}" if c is not None else "never" for c in costs)]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for result in results:
        lines += [f"seed {result['seed']}, {arm}: {', '.join(f'{v:.4f} after {c:,.0f}' for c, v in result[arm])}"
                  for arm in arms if len(result[arm]) <= len(ROUNDS)]  # fmt: skip
    found = [[at(r[arm], min(r[a][-1][0] for a in arms)) for r in results] for arm in arms]
    means = [float("nan") if None in values else statistics.mean(values) for values in found]
    lines.append(
        "mean of the best at equal compute: " + ", ".join(f"{a} {m:.4f}" for a, m in zip(arms, means, strict=True))
    )
    return lines


def chain_table(results: Sequence[dict]) -> list[str]:
    """Return a row for each seed."""
    heads = "seed", "chain: best", "compute", "alone, at equal compute", "alone, 1800 steps", "goal", "chain", "alone"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in results:
        alone = f"{r['alone to goal']:,.0f}" if r["alone to goal"] is not None else "never"
        lines.append(f"| {r['seed']} | {r['chain best']:.4f} | {r['chain compute']:,.0f} | "
                     f"{r['alone at equal compute']:.4f} | {r['alone best']:.4f} | {r['goal']:.4f} | "
                     f"{r['chain to goal']:,.0f} | {alone} |")  # fmt: skip
    off = max(abs(first - expected) / expected for r in results for expected, first in r["starts"])
    return [*lines, f"largest distance of a stage's metric at step 0 from its teacher's last: {off:.1e} of it"]


STUDIES = {"chain": study_chain, "explore": study_explore, "population": study_population}


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description="Measure what growing is worth in chains and searches.")
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("explore_study"), help="results are kept and not done again")
    options = parser.parse_args()
    results = []
    options.out.mkdir(parents=True, exist_ok=True)
    with warm(EXAMPLE) as command:
        for seed in range(options.seeds):
            path = options.out / f"{options.study}-{seed}.json"
            if not path.exists():
                result = STUDIES[options.study](seed, options.out / f"{options.study}-{seed}", command)
                path.write_text(json.dumps(result))
            results.append(json.loads(path.read_text()))
    if options.study == "chain":
        print("\n".join(chain_table(results)))
    else:
        print("\n".join(compare(results, [name for name in results[0] if name != "seed"])))


if __name__ == "__main__":
    main()
