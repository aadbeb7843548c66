"""The command `widen`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_net2net.algebra.maps import MAP_KINDS
from onnx_net2net.cli.inspect import is_routine
from onnx_net2net.cli.options import FACTOR, GROWING, ONLY, OUTPUT, SPREAD, TEACHER, Command, argument, for_framework
from onnx_net2net.cli.output import table
from onnx_net2net.cli.student import OtherWay, Sums, deliver, prepare
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.widen.load import expert_load
from onnx_net2net.operations.widen.options import HOWS
from onnx_net2net.operations.widen.widen import Widening, widen
from onnx_net2net.texts import lines_by_reason

_AS_ASKED = ("factor", "only", "multiple_of", "map", "spread", "noise", "seed", "prior", "fill_norms", "framework",
             "keep_numbers", "how")  # fmt: skip
"""The options that the operation has, too."""

_REASONS = 8
"""How many reasons why dims stay are told."""


def run(options: argparse.Namespace) -> int:
    """Widen a model."""
    teacher = load(options.teacher)
    checking = prepare(options, teacher)
    arguments = {name: getattr(options, name) for name in _AS_ASKED} | {"sizes": sizes_of(options.sizes)}
    if options.load is not None:
        arguments["loads"] = expert_load(teacher, options.load)
    if options.utility is not None:
        arguments["loads"] = _utility(teacher, options)
    widening = widen(teacher, **arguments)
    lines = [*_kept_lines(widening, options.framework), *widening.notes]
    inexact = "" if widening.exact else "random_pad" if options.map == "random_pad" else "noise"
    others = _other_ways(teacher, arguments)
    return deliver(options, widening, checking, _to_dict, _table, lines, inexact=inexact, others=others)


COMMAND = Command(
    "teacher.onnx -o student.onnx --factor 1.5 --set 'layer3.*=2x'",
    [
        TEACHER,
        OUTPUT,
        FACTOR,
        argument("--set", action="append", default=[], metavar="PATTERN=SIZE", dest="sizes",
                 help="size of the dims of this name, pattern or role: units (96), more units (+4) or a multiplier "
                 "(2x)"),
        ONLY,
        argument("--multiple-of", type=int, default=1, metavar="M", help="make new sizes multiples of this"),
        argument("--map", default="replicate", choices=MAP_KINDS,
                 help="what new units are: copies (replicate), units that no weight reads yet (zero_out), units that "
                 "are zero (zero_in), or random ones (random_pad, not exact)"),
        SPREAD,
        argument("--noise", type=float, default=0.0, metavar="S",
                 help="noise on the incoming weights of copies, relative to the weights, as in the paper (not exact)"),
        argument("--fill-norms", action=argparse.BooleanOptionalAction,
                 help="let a dim have any width although its norm admits only multiples of its size: nodes fill up the "
                 "input of the norm (default: where multiples would miss --factor by more than a tenth)"),
        argument("--prior", type=float, metavar="P",
                 help="the probability at which new classes start (default: 0.01, under a softmax 0)"),
        for_framework("allow only growth that a class of this framework can follow"),
        argument("--keep-numbers", action="store_true",
                 help="with --for: your class computes no number (like alpha / r) from its sizes"),
        argument("--load", type=Path, metavar="NPZ",
                 help="inputs on which to count how often each expert is chosen; busy experts get more copies"),
        argument("--utility", type=Path, metavar="OPTIMIZER",
                 help="the state of Adam (.pt); experts with large gradients get more copies; needs --state-dict"),
        argument("--state-dict", type=Path, metavar="FILE",
                 help="with --utility: the state dict of the teacher's class"),
        argument("--how", default="split", choices=HOWS,
                 help="how a router treats copies of an expert: masks show it one copy for each token (split), it "
                 "chooses all copies together (topk), or it chooses none until a load balancer raises their bias "
                 "(lift); granular cuts experts into parts that are chosen together"),
        *GROWING,
    ],
    run,
)  # fmt: skip


def sizes_of(items: Sequence[str]) -> dict[str, str]:
    """Return the sizes that are asked for by --set.

    Raises:
        BadInputError: If one is not written as PATTERN=SIZE.
    """
    sizes: dict[str, str] = {}
    for item in items:
        pattern, equals, size = item.rpartition("=")
        if not equals or not pattern or not size:
            raise BadInputError(f"--set {item}: write PATTERN=SIZE, like 'layer3.*=96' or 'layer3.*=1.5x'")
        sizes[pattern] = size
    return sizes


def _utility(teacher: Model, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the part of the squared gradients that each expert has.

    Raises:
        BadInputError: If it is not clear whose they are.
    """
    from onnx_net2net.framework.optimizer import read_state  # imports torch
    from onnx_net2net.framework.utility import expert_utility

    if options.load is not None or options.state_dict is None:
        raise BadInputError("--utility needs --state-dict, and excludes --load")
    return expert_utility(teacher, options.state_dict, read_state(options.utility))


def _other_ways(teacher: Model, arguments: Mapping[str, Any]) -> Iterator[OtherWay]:
    """Yield what else to try where a student turns out to differ: copies that share evenly, or units nobody reads."""
    if arguments["spread"]:
        yield "--spread 0", lambda: widen(teacher, **{**arguments, "spread": 0.0})
    if arguments["map"] == "replicate":
        yield "--map zero_out", lambda: widen(teacher, **{**arguments, "map": "zero_out"})


def _table(widening: Widening, title: str, sums: Sums) -> object:
    """Return what grew, before and after."""
    rows = []
    for change in widening.changes:
        wanted = "" if round(change.wanted) == change.new else f"{change.wanted:g}"
        cells = [change.name, f"{change.old:,}", f"{change.new:,}", wanted, change.map, str(change.tensors)]
        rows.append((cells, change.new == change.old))
    return table(title, ["dim", ">before", ">after", ">wanted", "map", ">tensors"], rows, sums)


def _kept_lines(widening: Widening, framework: str | None) -> list[str]:
    """Return why dims keep their size."""
    lines = [f"stays: {line}" for line in lines_by_reason(widening.kept)]
    if len(lines) > _REASONS:
        lines[_REASONS:] = [f"stays: {len(lines) - _REASONS} more reasons, see inspect"]
    if framework and any(change.why for change in widening.changes):
        lines.append("to grow these too: --set, or `transfer` into a class of your own at the sizes that you want")
    return lines


def _to_dict(widening: Widening) -> dict[str, Any]:
    return {
        "exact": widening.exact,
        "seed": widening.seed,
        "covered": widening.covered,
        "dims": [
            {"name": c.name, "before": c.old, "after": c.new, "wanted": c.wanted, "map": c.map,
             **({"why": c.why} if c.why else {})}
            for c in widening.changes
        ],
        "fixed": [{"name": g.name, "size": g.size, "reason": g.reason} for g in widening.fixed if not is_routine(g)],
        "notes": list(widening.notes),
    }  # fmt: skip
