"""The command `plan`."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.cli.options import JSON, Command, argument
from onnx_net2net.cli.output import answer
from onnx_net2net.errors import BadInputError, one_line, optional
from onnx_net2net.framework.planning import Log, Plan, expected, fit_curve, plan, read_log, sentences
from onnx_net2net.model.staging import whole


def run(options: argparse.Namespace) -> int:
    """Say when to grow."""
    small = read_log(options.small)
    if options.probe is None:
        if options.picture:
            raise BadInputError("a picture needs the log of the large network (--probe)")
        return _without_probe(small, options)
    large = read_log(options.probe)
    found = plan(small, large, _budget(options.budget, large), options.ratio)
    told = [*sentences(found)]
    if options.picture:
        _draw(options.picture, small, large, found)
        told.append(f"drew {options.picture}")
    return answer(options, {**asdict(found), "pays": found.pays}, told)


def _without_probe(small: Log, options: argparse.Namespace) -> int:
    """Say what follows from the small network alone."""
    if options.ratio is None and not options.factor > 0:
        raise BadInputError(f"--factor must be above 0, not {options.factor:g}")
    ratio = 1 / options.factor**2 if options.ratio is None else options.ratio
    first, last = expected(small, ratio, _budget(options.budget, None))
    told = [
        f"a step of the small network costs about {ratio:.2g} of one of the large network",
        f"grow between step {first:,.0f} and step {last:,.0f} of the small network (20 to 35 % of the compute), "
        "before its learning rate has decayed",
        "whether that can pay, the log of a short run of the large network from scratch tells (--probe)",
    ]
    return answer(options, {"ratio": ratio, "pays": None, "grow_at": [first, last]}, told)


def _budget(text: str, large: Log | None) -> float:
    """Return a budget in steps of the large network."""
    found = re.fullmatch(r"([0-9.eE+]+)\s*(steps|cost|flops|s)?", text)
    try:
        number = float(found[1]) if found else float("nan")
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise BadInputError(f"--budget {text!r} is neither a number of steps (20000) nor a cost (3e15flops)")
    if found and found[2] not in (None, "steps"):
        if large is None or large.cost is None:
            raise BadInputError("a budget that is a cost needs a --probe with costs")
        return number / large.cost
    return number


def _draw(path: Path, small: Log, large: Log, found: Plan) -> None:
    """Draw losses against compute.

    Raises:
        BadInputError: If matplotlib is not installed, or does not know the kind of file.
    """
    plots = optional("matplotlib.figure", "pictures need matplotlib: pip install 'onnx-net2net[plot]'")
    figure = plots.Figure(figsize=(7, 4.3), layout="constrained")
    axes: Any = figure.add_subplot()
    for log, name, cost, color in ((small, "small", found.ratio, "tab:blue"), (large, "large", 1.0, "tab:orange")):
        curve, steps = fit_curve(log), np.geomspace(log.steps[0], found.budget / cost, 400)
        axes.plot(log.steps * cost, log.losses, ".", ms=2, alpha=0.4, color=color)
        axes.plot(steps * cost, curve.loss(steps), color=color, label=f"{name} network")
    if found.pays:
        after = np.linspace(0, found.after, 400)
        spent = found.ratio * found.grow_at
        axes.plot(spent + after, fit_curve(large).loss(found.stands_for + after), color="tab:green", label="grown")
        axes.axvline(spent, color="gray", ls=":", label=f"grow at step {found.grow_at:,.0f}")
    axes.set(xscale="log", xlabel="compute, in steps of the large network", ylabel="loss")
    axes.legend()
    with whole(path) as place:
        try:
            figure.savefig(place)
        except ValueError as error:
            raise BadInputError(f"{path} cannot be drawn: {one_line(error)}") from error


COMMAND = Command(
    "small.jsonl --probe large.jsonl --budget 20000",
    [
        argument("small", type=Path, metavar="SMALL",
                 help='log of the small network: lines like {"step": 10, "loss": 2.5, "cost": 1e12}; cost is the total '
                 'so far, in FLOPs or seconds'),
        argument("--probe", type=Path, metavar="LARGE", help="log of a short run of the large network from scratch"),
        argument("--budget", required=True, metavar="N",
                 help="all compute: steps of the large network (20000), or a cost as the logs count it (3e15flops)"),
        argument("--ratio", type=float, help="cost of a step of the small network, as a fraction of the large one's "
                 "(default: from the logs)"),
        argument("--factor", type=float, default=2.0,
                 help="without --probe: how many times as wide the large network is (default: 2)"),
        argument("--picture", type=Path, metavar="FILE", help="draw losses against compute (.png, .svg, .pdf)"),
        JSON,
    ],
    run,
)  # fmt: skip
