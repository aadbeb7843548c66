"""The command `upcycle`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnx_net2net.analysis.feedforward import FeedForward
from onnx_net2net.cli.options import GROWING, TEACHER, Command, argument
from onnx_net2net.cli.output import answer, table
from onnx_net2net.cli.student import Sums, deliver, prepare
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.upcycle import Upcycling, feedforwards, upcycle

_AS_ASKED = ("experts", "k", "only", "shared", "calibrate", "seed")
"""The options that the operation has, too."""


def run(options: argparse.Namespace) -> int:
    """Make mixtures of experts, or list of what they can be made."""
    teacher = load(options.teacher)
    if options.list:
        return _list(options, teacher)
    if options.output is None or options.experts is None:
        raise BadInputError("say where to write the student, and how many experts: -o STUDENT --experts N (or --list)")
    checking = prepare(options, teacher)
    upcycling = upcycle(teacher, **{name: getattr(options, name) for name in _AS_ASKED})
    return deliver(options, upcycling, checking, _to_dict, _table)


COMMAND = Command(
    "dense.onnx -o moe.onnx --experts 8 --k 2",
    [
        TEACHER,
        argument("-o", "--output", type=Path, metavar="STUDENT", help="the file to write"),
        argument("--list", action="store_true", help="list the feed-forward blocks, and which can become experts"),
        argument("--experts", type=int, metavar="N", help="how many experts each mixture has"),
        argument("--k", type=int, default=2, metavar="K", help="how many experts each position chooses"),
        argument("--only", action="append", default=[], metavar="PATTERN",
                 help="names or patterns of the blocks that become mixtures (default: all that can)"),
        argument("--shared", action="store_true",
                 help="keep the block as a shared expert, and add experts that start at zero"),
        argument("--calibrate", type=Path, metavar="NPZ",
                 help="inputs by which the routers are balanced, so that all experts get about as many positions"),
        *GROWING,
    ],
    run,
)  # fmt: skip


def _list(options: argparse.Namespace, teacher: Model) -> int:
    """Print the feed-forward blocks."""
    found, name = feedforwards(teacher), options.teacher.name
    told = _blocks_table(found, name) if found else f"{name} has no feed-forward blocks"
    return answer(options, {"blocks": list(map(_block_dict, found))}, [told])


def _state(block: FeedForward) -> str:
    if block.reason:
        return f"no: {block.reason}"
    return "yes" if block.widens else "by name (--only): it makes other units than it reads, or has fewer inside"


def _blocks_table(blocks: list[FeedForward], name: str) -> object:
    rows = [
        ([block.name, f"{block.reads:,}", f"{block.hidden:,}", f"{block.makes:,}", _state(block)], bool(block.reason))
        for block in blocks
    ]
    return table(name, ["block", ">reads", ">inside", ">makes", "can it become experts?"], rows)


def _block_dict(block: FeedForward) -> dict[str, Any]:
    return {
        "name": block.name, "reads": block.reads, "hidden": block.hidden, "makes": block.makes,
        "default": block.widens and not block.reason, "reason": block.reason or None,
    }  # fmt: skip


def _table(upcycling: Upcycling, title: str, sums: Sums) -> object:
    kind = f"{upcycling.experts}, {upcycling.k} chosen" + (" beside it" if upcycling.shared else "")
    rows = [([one.name, f"{one.units:,}", f"{one.hidden:,}", kind], False) for one in upcycling.mixtures]
    below = [[name, "", "", f"{before} -> {after}"] for name, before, after in sums]
    return table(title, ["block", ">units", ">inside", "experts"], rows, below)


def _to_dict(upcycling: Upcycling) -> dict[str, Any]:
    return {
        "seed": upcycling.seed,
        "experts": upcycling.experts,
        "k": upcycling.k,
        "shared": upcycling.shared,
        "mixtures": [{"name": m.name, "units": m.units, "hidden": m.hidden} for m in upcycling.mixtures],
    }
