"""The command `explore`."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_net2net.cli.options import HTML, JSON, SEED, TEACHER, Command, argument
from onnx_net2net.cli.output import answer, following, table
from onnx_net2net.cli.page import Figure, check_free, check_page, curves, picture, write_page
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import load
from onnx_net2net.model.staging import destination, whole
from onnx_net2net.search import population
from onnx_net2net.search.engines import ENGINES, Engine, engine_of
from onnx_net2net.search.explore import COSTS, Exploration, Trial, front
from onnx_net2net.search.growing import SavedNetwork
from onnx_net2net.search.promote import promote
from onnx_net2net.search.search import Options
from onnx_net2net.search.space import Space, read_space
from onnx_net2net.search.studies import SAMPLERS
from onnx_net2net.search.training import Stop, Template


def run(options: argparse.Namespace) -> int:
    """Explore, and tell what was found."""
    check_page(options)
    if options.csv:
        destination(options.csv)
        check_free(options.csv, options.force)
    space = read_space(options.space)
    asked = _options(options, space)
    teacher = SavedNetwork(options.teacher.absolute(), (options.state_dict or options.teacher).absolute(),
                      options.optimizer and options.optimizer.absolute(), options.state_dict is not None)  # fmt: skip
    engine = engine_of(options.engine, options.jobs, options.work)
    if options.population is not None:
        return _run_population(options, teacher, space, asked, engine)
    exploration = Exploration(teacher, space, asked, engine, options.work.absolute())
    with following() as follow:
        trials = exploration.run(follow)
    if options.csv:
        _write_csv(options.csv, trials, space)
    if options.promote:
        promote(next((trial.network for trial in trials if trial.outcomes), None), options.promote)
    told = [_table(trials, space, asked), *_reasons(trials)]
    if options.html:
        write_page(options.html, f"exploring {options.teacher.name}", [*told, *_figures(trials, asked, teacher)])
    told += [f"the winner is in {options.promote}"] if options.promote else []
    return answer(options, {"trials": [_to_dict(trial) for trial in trials]}, told)


COMMAND = Command(
    "teacher.onnx --space space.yaml --train 'python train.py --init {init} --out {out} --steps {steps}' "
    "--metric val_loss --rungs 100,300 --budget 16",
    [
        TEACHER,
        argument("--space", type=Path, required=True, metavar="YAML",
                 help="the dims, depths and numbers that may vary, and limits of cost"),
        argument("--train", required=True, metavar="COMMAND",
                 help="your training command, with places like {init} and {out} (see docs/exploring.md)"),
        argument("--metric", required=True, metavar="NAME", help="the key in metrics.jsonl to rank by"),
        argument("--mode", choices=("min", "max"), default="min", help="whether a small or a large metric is good"),
        argument("--objective", action="append", default=[], choices=COSTS,
                 help="a cost that should be small, beside the metric"),
        argument("--rungs", default="100,300", metavar="N,N,...", help="the steps at which candidates are compared"),
        argument("--keep", type=float, default=1 / 3, metavar="P",
                 help="the fraction that goes on to the next rung (default: a third)"),
        argument("--budget", type=int, default=16, metavar="N", help="how many candidates are tried"),
        argument("--batch", type=int, default=8, metavar="N",
                 help="how many candidates are chosen at a time, before their results are known"),
        argument("--state-dict", type=Path, metavar="FILE",
                 help="the teacher's state dict, if your command trains a class of yours"),
        argument("--optimizer", type=Path, metavar="FILE", help="the state of the teacher's optimizer"),
        argument("--population", type=int, metavar="N",
                 help="train N members side by side instead; after each rung the weakest take over the weights of the "
                 "strongest, grown to their own size"),
        argument("--work", type=Path, default=Path("explore"), metavar="DIR", help="the folder of the search"),
        argument("--study", metavar="URL", help="the storage of Optuna's study (default: study.db in that folder)"),
        argument("--sampler", choices=SAMPLERS, default="auto", help="how Optuna proposes candidates"),
        argument("--engine", choices=ENGINES, default="local", help="where trainings run"),
        argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
                 help="how many trainings run at once (default: one for each core)"),
        argument("--silence", type=float, default=600.0, metavar="SECONDS",
                 help="a training that writes no line for so long counts as hung"),
        argument("--promote", type=Path, metavar="DIR", help="write the winner to this folder, as the next teacher"),
        argument("--csv", type=Path, metavar="FILE", help="write the table to this file, too"),
        SEED,
        HTML,
        JSON,
    ],
    run,
)  # fmt: skip


def _run_population(
    options: argparse.Namespace, teacher: SavedNetwork, space: Space, asked: Options, engine: Engine
) -> int:
    """Train a population, and tell how it went."""
    if options.population < 2:
        raise BadInputError("--population has to be at least 2")
    if options.csv or options.study or options.objective:
        raise BadInputError("--csv, --study and --objective are for searches; leave them out with --population")
    with following() as follow:
        rounds = population.Population(teacher, space, asked, engine, options.work.absolute()).run(follow)
    best = population.best_of(rounds[-1], asked.stop)
    if options.promote:
        promote(best.network, options.promote)
    told = [_population_table(rounds, space, asked), *_failures(rounds)]
    if options.html:
        figures = [*_population_figures(rounds, asked), *picture(load(teacher.model), load(best.network.model))]
        write_page(options.html, f"a population of {options.teacher.name}", [*told, *figures])
    told += [f"the winner is in {options.promote}"] if options.promote else []
    record = [[population.to_json(member) for member in members] for members in rounds]
    return answer(options, {"rounds": record}, told)


def _failures(rounds: Sequence[Sequence[population.Member]]) -> list[str]:
    noted = ((number, member) for number, members in enumerate(rounds, 1) for member in members if member.note)
    return [f"round {number}, member {member.number}: {member.note}" for number, member in noted]


def _population_figures(rounds: Sequence[Sequence[population.Member]], asked: Options) -> list[Figure]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for members in rounds:
        for member in members:
            lines.setdefault(f"member {member.number}", []).extend(member.curve)
    return curves("members", "step", asked.stop.metric, lines)


def _figures(trials: Sequence[Trial], asked: Options, teacher: SavedNetwork) -> list[Figure]:
    """Return the curves as they ran, the metric against size, and what grew to the winner."""
    lines = {f"trial {trial.number}": trial.curve for trial in trials if trial.outcomes}
    points = {str(t.number): [(float(t.cost.parameters), t.value)] for t in trials if t.cost and t.value is not None}
    best = next((trial.network for trial in trials if trial.outcomes and trial.network), None)
    return [
        *curves("trainings", "step", asked.stop.metric, lines),
        *curves("candidates", "parameters", asked.stop.metric, points, scatter=True),
        *(picture(load(teacher.model), load(best.model)) if best else []),
    ]


def _population_table(rounds: Sequence[Sequence[population.Member]], space: Space, asked: Options) -> object:
    columns = [">round", ">member", *(f">{name}" for name in _columns(space)), ">parameters", f">{asked.stop.metric}",
               "what it started from"]  # fmt: skip
    rows = []
    for number, members in enumerate(rounds, 1):
        for member in members:
            begun = "the teacher" if number == 1 else "itself"
            begun = begun if member.source is None else f"member {member.source}, grown to its size"
            rows.append(([
                str(number), str(member.number), *(_figure(member.candidate[name]) for name in _columns(space)),
                f"{member.cost.parameters:,}", _figure(member.value) or "failed", begun,
            ], member.source is None))  # fmt: skip
    return table("the population after each rung", columns, rows)


def _options(options: argparse.Namespace, space: Space) -> Options:
    """Return the options of the search.

    Raises:
        BadInputError: If one of them makes no sense.
    """
    try:
        rungs = tuple(int(text) for text in options.rungs.split(","))
    except ValueError:
        rungs = ()
    if not rungs or rungs[0] < 1 or list(rungs) != sorted(set(rungs)):
        raise BadInputError(f"--rungs {options.rungs}: write ascending numbers of steps, like 100,300")
    for name in ("budget", "batch", "jobs"):
        if getattr(options, name) < 1:
            raise BadInputError(f"--{name} has to be at least 1")
    if not 0 < options.keep <= 1:
        raise BadInputError("--keep has to be above 0, and at most 1")
    template = Template.of(options.train, Path.cwd(), space.numbers)
    if not template.names("steps"):
        raise BadInputError("the training command needs {steps}: all candidates are compared after the same number")
    stop = Stop(options.metric, options.mode, silence=options.silence)
    return Options(template, stop, rungs, options.keep, options.budget, options.batch, tuple(options.objective),
                   options.sampler, options.seed, options.study, options.population or 0)  # fmt: skip


def _columns(space: Space) -> list[str]:
    return [variable.name for variable in space.variables]


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(trial: Trial, space: Space, names: Sequence[str]) -> list[str]:
    cost, outcomes = trial.cost, trial.outcomes
    return [
        str(trial.number), *(_figure(trial.candidate.get(name)) for name in names),
        f"{cost.parameters:,}" if cost else "", _figure(cost.latency if cost else None),
        f"{outcomes[-1].steps:g}" if outcomes else "", _figure(outcomes[0].first if outcomes else None),
        _figure(trial.value), _figure(trial.slope),
    ]  # fmt: skip


def _table(trials: Sequence[Trial], space: Space, asked: Options) -> object:
    names = _columns(space)
    points = {t.number: _point(t, asked) for t in trials if t.cost and t.value is not None and t.state == "complete"}
    on_front = front(points)
    columns = [">trial", *(f">{name}" for name in names), ">parameters", ">ms", ">steps", ">at step 0",
               f">{asked.stop.metric}", ">per 100 steps", "", "what became of it"]  # fmt: skip
    rows = []
    for trial in trials:
        what = {"complete": "trained to the end", "pruned": "dropped", "fail": "failed"}[trial.state]
        rows.append(([*_cells(trial, space, names), "front" if trial.number in on_front else "", what],
                     trial.state != "complete"))  # fmt: skip
    return table("candidates, the best first; front: no other one is better and smaller", columns, rows)


def _point(trial: Trial, asked: Options) -> tuple[float, ...]:
    assert trial.cost is not None
    others = asked.objectives or ("parameters",)
    return (asked.stop.signed(trial.value), *(float(getattr(trial.cost, name)) for name in others))


def _reasons(trials: Sequence[Trial]) -> list[str]:
    return [f"trial {trial.number}: {trial.reason}" for trial in trials if trial.reason and not trial.outcomes]


def _write_csv(path: Path, trials: Sequence[Trial], space: Space) -> None:
    names = _columns(space)
    with whole(path) as place, open(place, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", *names, "parameters", "ms", "steps", "first", "metric", "slope", "state", "reason"])
        for trial in trials:
            cells = [cell.replace(",", "") for cell in _cells(trial, space, names)]
            rows.writerow([*cells, trial.state, trial.reason])


def _to_dict(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number, "candidate": dict(trial.candidate), "state": trial.state,
        "reason": trial.reason or None, "cost": asdict(trial.cost) if trial.cost else None,
        "rungs": [asdict(outcome) for outcome in trial.outcomes], "compute": trial.compute,
        "model": str(trial.network.model) if trial.network else None,
    }  # fmt: skip
