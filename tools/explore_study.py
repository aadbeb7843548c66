"""Measure what chains, explorations and populations of grown networks are worth, on digits.

    python tools/explore_study.py chain --seeds 3 --out results
    python tools/explore_study.py explore --seeds 5 --out results
    python tools/explore_study.py population --seeds 3 --out results

Compute is counted in multiplications of all trainings, in units of a step of the teacher. Every arm has the same data,
training command, space and search; only the start differs. What is printed is what docs/exploring.md shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from warm import warm

from onnx_net2net.model.model import load
from onnx_net2net.search.chain import StageResult, run_chain
from onnx_net2net.search.cost import cost_of
from onnx_net2net.search.engines import Local
from onnx_net2net.search.explore import Exploration, Trial
from onnx_net2net.search.folders import write_json
from onnx_net2net.search.growing import SavedNetwork, grow_network
from onnx_net2net.search.population import Member, Population
from onnx_net2net.search.search import Options
from onnx_net2net.search.space import Space, read_space
from onnx_net2net.search.stages import read_chain
from onnx_net2net.search.training import METRICS, Stop, Template, completed, train

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "train.py"
TEACHER_STEPS, TEACHER_RATE = 300, 8e-3  # the best of 1, 2, 4 and 8e-3 for it, on a seed that is not reported
STOP = Stop("val_loss", silence=600)
ARGUMENTS = "--init {init} --optimizer {optimizer} --out {out} --start {start} --steps {steps} --seed {seed} --every 25"
TRIAL = f"{ARGUMENTS} --rate {{rate}} --anneal"
SPACE = {
    "widen": {"stem": ["1x", "2x"], "ffn": ["1x", "1.5x", "2x", "3x"]},
    "repeat": {"blocks": ["+0", "+1", "+2"]},
    "train": {"rate": {"low": 1e-3, "high": 3e-2, "log": True}},
}
SIZES = "widen", "repeat"
STAGE_STEPS, ALONE_STEPS = 600, (250, 500, 1500)
RATES, WEIGHTS, TUNING_SEEDS = (2e-3, 4e-3, 8e-3, 1.6e-2), (0.03, 0.3), (100, 101)
RUNGS = (100, 300)
ROUNDS = (100, 200, 300, 400)
BUDGET, BATCH, MEMBERS = 12, 4, 4

Curve = list[tuple[float, float]]
"""Compute, in steps of the teacher, and the best metric so far."""


def prepared(folder: Path, seed: int, command: str) -> StageResult:
    """Return a small network that is trained; it is in the folder afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    chain = {
        "start": {"model": "small.onnx", "state_dict": "small.pt", "train": True}, "work": "teacher", "stages": [],
        "train": f"{command} {ARGUMENTS} --rate {TEACHER_RATE}", "seed": seed,
        "stop": {"metric": "val_loss", "steps": TEACHER_STEPS},
    }  # fmt: skip
    if not (folder / "small.onnx").exists():
        export(folder, seed)
    (folder / "teacher.yaml").write_text(yaml.safe_dump(chain))
    return run_chain(read_chain(folder / "teacher.yaml"))[0]


def export(folder: Path, seed: int) -> None:
    """Write a fresh small network."""
    subprocess.run([sys.executable, EXAMPLE, "--export", "small.onnx", "--state", "small.pt", "--seed", str(seed)],
                   cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


# --- chain ----------------------------------------------------------------------------------------------------


def study_chain(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Train three networks in a chain, with and without a loss on features, and the last one alone.

    All but the last network keep their rate, which is what growing needs. The last one's falls in all arms. So each
    budget of the network alone is a training of its own.
    """
    numbers = tuned(folder.parent / "chain-tuning", command)
    found: dict[str, object] = {"seed": seed, **numbers}
    plain = chained(seed, folder / "plain", command, numbers["rate"])
    hinted = chained(seed, folder / "features", command, numbers["rate"], numbers["weight"])
    spent = sum(row.compute for row in plain) / plain[-1].cost.macs
    for name, rows in (("chain", plain), ("chain with features", hinted)):
        found[name] = best(rows[-1])
        found[f"{name}, starts"] = [[row.expected, row.outcome.first] for row in rows[1:] if row.outcome]
    found["hint at step 0"] = [first_of(row, "hint") for row in hinted[1:]]
    found["compute"] = spent
    found["alone"] = {steps: alone(plain[-1], seed, folder, command, numbers["rate alone"], steps)
                      for steps in sorted({*ALONE_STEPS, round(spent)})}  # fmt: skip
    return found


def chained(seed: int, folder: Path, command: str, rate: float, weight: float | None = None) -> list[StageResult]:
    """Train the networks of a chain, with a loss on features if that has a weight."""
    folder.mkdir(parents=True, exist_ok=True)
    export(folder, seed)
    grown = f"{command} {ARGUMENTS} --rate {rate}{'' if weight is None else ' --features {features}'}"
    first = f"{command} {ARGUMENTS} --rate {TEACHER_RATE}"
    large = {"name": "large", "widen": {"factor": 2}, "deepen": {"repeat": ["blocks=+1"]}, "train": f"{grown} --anneal"}
    chain = {
        "start": {"model": "small.onnx", "state_dict": "small.pt", "train": first},
        "work": "runs", "seed": seed, "train": grown, "stop": {"metric": "val_loss", "steps": STAGE_STEPS},
        "stages": [{"name": "medium", "widen": {"factor": 2}}, large],
        "distill": {"features": ["blocks.*"], "weight": weight},
    }  # fmt: skip
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    return run_chain(read_chain(folder / "chain.yaml"))


def alone(last: StageResult, seed: int, folder: Path, command: str, rate: float, steps: int) -> float:
    """Train the last network of a chain from random weights; return its best metric."""
    template = Template.of(f"{command} {ARGUMENTS} --rate {rate} --anneal --fresh", folder)
    values = {"init": last.network.state, "optimizer": "", "start": 0, "seed": seed}
    out = folder / f"alone-{rate}-{steps}"
    outcome = completed(out) or train(template, values, out, replace(STOP, steps=steps))
    return min(value for _, value in outcome.curve)


def tuned(folder: Path, command: str) -> dict[str, float]:
    """Return the best rates of a chain and of the network alone, and the weight of features, on seeds of their own."""

    def mean(run: Callable[[int], float]) -> float:
        return statistics.mean(run(seed) for seed in TUNING_SEEDS)

    def chain(seed: int, rate: float, weight: float | None = None) -> list[StageResult]:
        return chained(seed, folder / f"{seed} {rate} {weight}", command, rate, weight)

    def baseline(seed: int, rate: float) -> float:
        rows = chain(seed, rate)
        spent = round(sum(row.compute for row in rows) / rows[-1].cost.macs)
        return alone(rows[-1], seed, folder / f"{seed} {rate} None", command, rate, spent)

    path = folder / "tuned.json"
    if not path.exists():
        chains = {rate: mean(lambda seed, rate=rate: best(chain(seed, rate)[-1])) for rate in RATES}
        others = {rate: mean(lambda seed, rate=rate: baseline(seed, rate)) for rate in RATES}
        rate = min(chains, key=chains.__getitem__)
        weights = {w: mean(lambda seed, w=w: best(chain(seed, rate, w)[-1])) for w in WEIGHTS}
        print("tuning:", {"chain": chains, "alone": others, "weight of features": weights})
        write_json(path, {"rate": rate, "rate alone": min(others, key=others.__getitem__),
                          "weight": min(weights, key=weights.__getitem__)})  # fmt: skip
    return json.loads(path.read_text())


def best(row: StageResult) -> float:
    """Return the best metric of a training."""
    assert row.outcome is not None
    return min(value for _, value in row.outcome.curve)


def first_of(row: StageResult, name: str) -> float:
    """Return another number of the first line that a training wrote."""
    return float(json.loads((row.network.state.parent / METRICS).read_text().split("\n")[0])[name])


# --- explore --------------------------------------------------------------------------------------------------


def study_explore(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Search the same space from the teacher and from scratch."""
    teacher = prepared(folder, seed, command)
    assert teacher.outcome is not None
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = read_space(folder / "space.yaml")
    found: dict[str, object] = {"seed": seed}
    for arm, more, before in (("grown", "", teacher.outcome.curve[1:]), ("scratch", " --fresh", [])):
        template = Template.of(f"{command} {TRIAL}{more}", folder, space.numbers)
        options = Options(template, STOP, RUNGS, budget=BUDGET, batch=BATCH, seed=seed)
        trials = Exploration(teacher.network, space, options, Local(1), folder / arm).run()
        found[arm] = progress(trials, teacher.cost.macs, before)
    return found


def progress(trials: Iterable[Trial], unit: float, before: Curve) -> Curve:
    """Return the best metric so far against all compute so far, batch by batch and rung by rung."""
    curve = [(step, min(value for at, value in before if at <= step)) for step, _ in before]
    spent, lowest = curve[-1] if curve else (0.0, float("inf"))
    ordered = sorted(trials, key=lambda trial: trial.number)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        for rung, start_step in enumerate((0, *RUNGS[:-1])):
            for trial in (trial for trial in batch if len(trial.outcomes) > rung):
                for step, value in trial.outcomes[rung].curve[1:]:
                    lowest = min(lowest, value)
                    curve.append((spent + (step - start_step) * trial.cost.macs / unit, lowest))
                spent += (RUNGS[rung] - start_step) * trial.cost.macs / unit
    return curve


# --- population -----------------------------------------------------------------------------------------------


def study_population(seed: int, folder: Path, command: str) -> dict[str, object]:
    """Train a population of architectures, and plain ones of one architecture each, for as many steps as cost the same.

    All arms have as many rounds, start from the same teacher, which is grown exactly for each of them, and choose
    their rates in the same way. Only a population of architectures may take weights over to another architecture.
    """
    teacher = prepared(folder, seed, command)
    found: dict[str, object] = {"seed": seed}
    rounds, spent = ROUNDS, 0.0
    for arm, share in (("architectures", None), ("small", 0.0), ("middle", 0.5), ("large", 1.0)):
        space_file = folder / f"{arm}.yaml"
        space_file.write_text(yaml.safe_dump(SPACE if share is None else fixed(share)))
        space = read_space(space_file)
        if share is not None:
            step = MEMBERS * macs_of(teacher.network, space, folder / f"{arm} network") / teacher.cost.macs
            rounds = tuple(round((spent - TEACHER_STEPS) / step * end / ROUNDS[-1]) for end in ROUNDS)
        template = Template.of(f"{command} {TRIAL}", folder, space.numbers)
        options = Options(template, STOP, rounds, seed=seed, members=MEMBERS)
        members = Population(teacher.network, space, options, Local(1), folder / arm).run()
        found[arm] = curve = progress_of(members, rounds, teacher)
        spent = curve[-1][0] if share is None else spent
    return found


def progress_of(rounds: Sequence[Sequence[Member]], ends: Sequence[int], teacher: StageResult) -> Curve:
    """Return the best metric of all members so far against all compute so far, the teacher's included."""
    assert teacher.outcome is not None
    spent, lowest, curve, last = float(TEACHER_STEPS), best(teacher), [], 0
    for steps, members in zip(ends, rounds, strict=True):
        spent += sum((steps - last) * member.cost.macs for member in members) / teacher.cost.macs
        lowest = min([lowest, *(value for member in members for _, value in member.curve[1:])])
        curve.append((spent, lowest))
        last = steps
    return curve


def fixed(share: float) -> dict[str, object]:
    """Return the space with one architecture only: the smallest (0), the largest (1), or one between them."""

    def only(choices: Sequence[str]) -> list[str]:
        return [choices[round(share * (len(choices) - 1))]]

    return {**SPACE, **{kind: {name: only(choices) for name, choices in SPACE[kind].items()} for kind in SIZES}}


def macs_of(teacher: SavedNetwork, space: Space, folder: Path) -> float:
    """Return the multiplications of the only architecture of a space."""
    folder.mkdir(exist_ok=True)
    grown = grow_network(teacher, space.steps(space.drawn(random.Random(0))), folder)
    return cost_of(load(grown.network.model)).macs


# --- tables ---------------------------------------------------------------------------------------------------


def at(curve: Sequence[tuple[float, float]], compute: float) -> float | None:
    """Return the best metric at some compute, which whole steps cannot hit better than to a hundredth."""
    return min((value for spent, value in curve if spent <= 1.01 * compute), default=None)


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
    found = [[at(r[arm], min(r[a][-1][0] for a in arms)) for r in results] for arm in arms]
    means = [float("nan") if None in values else statistics.mean(values) for values in found]
    lines.append(
        "mean of the best at equal compute: " + ", ".join(f"{a} {m:.4f}" for a, m in zip(arms, means, strict=True))
    )
    return lines


def chain_table(results: Sequence[dict]) -> list[str]:
    """Return a row for each seed, and the means."""
    columns = ("chain", "chain with features", *(f"alone, {steps} steps" for steps in results[0]["alone"]))
    lines = [f"| seed | compute | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    values = [[r["chain"], r["chain with features"], *r["alone"].values()] for r in results]
    for r, row in zip(results, values, strict=True):
        lines.append(f"| {r['seed']} | {r['compute']:,.0f} | {' | '.join(f'{value:.4f}' for value in row)} |")
    means = [statistics.mean(column) for column in zip(*values, strict=True)]
    lines.append(f"| mean | | {' | '.join(f'{value:.4f}' for value in means)} |")
    starts = [pair for r in results for name in columns[:2] for pair in r[f"{name}, starts"]]
    off = max(abs(first - expected) / expected for expected, first in starts)
    hints = max(value for r in results for value in r["hint at step 0"])
    return [*lines, f"largest distance of a stage's metric at step 0 from its teacher's last: {off:.1e} of it",
            f"largest loss on features at step 0: {hints:.1e}"]  # fmt: skip


def lines_of(result: dict) -> list[tuple[object, ...]]:
    """Return seed, arm, compute and the best metric by then: where it became better, and at the end."""
    if "alone" in result:
        arms = {name: [(result["compute"], result[name])] for name in ("chain", "chain with features")}
        arms["alone"] = [(int(steps), value) for steps, value in result["alone"].items()]
    else:
        arms = {
            arm: [point for k, point in enumerate(curve) if not k or point[1] < curve[k - 1][1] or k + 1 == len(curve)]
            for arm, curve in result.items() if arm != "seed"
        }  # fmt: skip
    return [
        (result["seed"], arm, f"{spent:.0f}", f"{value:.4f}") for arm, curve in arms.items() for spent, value in curve
    ]


STUDIES = {"chain": study_chain, "explore": study_explore, "population": study_population}


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description="Measure what growing is worth in chains and searches.")
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("explore_study"), help="results are kept and not done again")
    options = parser.parse_args()
    results = []
    options.out.mkdir(parents=True, exist_ok=True)
    with warm(EXAMPLE) as command:
        for seed in range(options.first, options.first + options.seeds):
            path = options.out / f"{options.study}-{seed}.json"
            if not path.exists():
                result = STUDIES[options.study](seed, options.out / f"{options.study}-{seed}", command)
                path.write_text(json.dumps(result))
            results.append(json.loads(path.read_text()))
    with open(options.out / f"{options.study}.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("seed", "arm", "compute", "best"), *(line for result in results for line in lines_of(result))]
        )
    if options.study == "chain":
        print("\n".join(chain_table(results)))
    else:
        print("\n".join(compare(results, [name for name in results[0] if name != "seed"])))


if __name__ == "__main__":
    main()
