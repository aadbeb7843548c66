"""The command `deepen`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx_net2net.analysis.activations import WAYS, Site
from onnx_net2net.analysis.blocks import Block
from onnx_net2net.cli.options import GROWING, TEACHER, Command, argument, for_framework
from onnx_net2net.cli.output import answer, progress_bar, table
from onnx_net2net.cli.student import Sums, deliver, prepare
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.deepen.deepen import Deepening, blocks, deepen, sites
from onnx_net2net.run.session import check_runs

_AS_ASKED = ("after", "all", "count", "pairs", "way", "width", "rank", "repeat", "depth", "append", "calibrate", "seed",
             "framework")  # fmt: skip
"""The options that the operation has, too."""

_ALL_WAYS = (*WAYS, "cancel")


def run(options: argparse.Namespace) -> int:
    """Deepen a model, or list what can be inserted."""
    teacher = load(options.teacher)
    if options.list:
        return _list(options, teacher)
    if options.output is None:
        raise BadInputError("say where to write the student: -o STUDENT (or --list)")
    checking = prepare(options, teacher)
    with progress_bar() as progress:
        deepening = deepen(teacher, **{name: getattr(options, name) for name in _AS_ASKED}, progress=progress)
    inexact = "" if deepening.exact else "--rank"
    return deliver(options, deepening, checking, _to_dict, _table, deepening.notes, inexact=inexact)


COMMAND = Command(
    "teacher.onnx -o student.onnx --after 'layer3.*'",
    [
        TEACHER,
        argument("-o", "--output", type=Path, metavar="STUDENT", help="the file to write"),
        argument("--list", action="store_true", help="list layers and blocks, and what can be inserted behind each"),
        argument("--after", action="append", default=[], metavar="PATTERN",
                 help="insert behind the layers of this name or pattern"),
        argument("--all", action="store_true", help="insert behind every layer that an identity can follow"),
        argument("--count", type=int, default=1, metavar="N", help="insert N layers behind each"),
        argument("--pairs", type=int, default=0, metavar="N",
                 help="insert N pairs of a horizontal and a vertical convolution behind each layer instead"),
        argument("--with", dest="way", choices=_ALL_WAYS, metavar="KIND",
                 help="what to insert (default: the best for each layer or block): " + ", ".join(_ALL_WAYS)),
        argument("--width", metavar="W",
                 help="units of the new layers (96) or a multiplier (2x); at least the width of the layer in front"),
        argument("--rank", type=int, metavar="N",
                 help="with --with factor: units between the two layers; fewer than the default is not exact"),
        argument("--repeat", action="append", default=[], metavar="PATTERN=+N",
                 help="insert N copies of the residual blocks of this name, pattern or group, like 'layer3=+4'"),
        argument("--depth", metavar="F", help="copy blocks until each group of blocks is F times as deep, like 2x"),
        argument("--append", action="store_true",
                 help="put copies behind the last block of the group, not behind their originals"),
        argument("--calibrate", type=Path, metavar="NPZ",
                 help="inputs on which to measure the statistics of new BatchNormalizations (default: generated ones)"),
        for_framework("copy only blocks that a class of this framework made with more layers has"),
        *GROWING,
    ],
    run,
)  # fmt: skip


def _list(options: argparse.Namespace, teacher: Model) -> int:
    """Print the layers and the blocks, with what can be done with each."""
    layers, repeated = sites(teacher), blocks(teacher)
    if not any(site.ways for site in layers):
        check_runs(teacher)
    name = options.teacher.name
    told = [
        _sites_table(layers, name) if layers else f"{name} has no layers behind which anything could be inserted",
        _blocks_table(repeated) if repeated else "no residual blocks that could be repeated",
    ]
    return answer(options, {"layers": _sites_list(layers), "blocks": _blocks_list(repeated)}, told)


def _sites_table(sites: Sequence[Site], title: str) -> object:
    rows = (
        ([site.name, site.operator, str(site.channels or ""), ", ".join(site.ways), site.reason], not site.ways)
        for site in sites
    )
    return table(title, ["layer", "kind", ">units", "what can be inserted", "why not more"], rows)


def _sites_list(sites: Sequence[Site]) -> list[dict[str, Any]]:
    return [
        {"name": p.name, "kind": p.operator, "units": p.channels, "ways": list(p.ways), "reason": p.reason or None}
        for p in sites
    ]


def _blocks_table(blocks: Sequence[Block]) -> object:
    rows = []
    for block in blocks:
        state = "yes" if not block.reason else f"{'no' if block.obstacle else 'only with cancel'}: {block.reason}"
        cells = [block.name, block.group, str(block.parts), str(len(block.nodes) or ""), state]
        rows.append((cells, bool(block.reason)))
    return table("residual blocks", ["block", "group", ">sums", ">nodes", "can it be repeated?"], rows)


def _blocks_list(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    return [
        {"name": b.name, "group": b.group, "sums": b.parts, "nodes": len(b.nodes), "reason": b.reason or None,
         "cancels": not b.obstacle}
        for b in blocks
    ]  # fmt: skip


def _table(deepening: Deepening, title: str, sums: Sums) -> object:
    rows = (([insertion.name, insertion.way, str(insertion.count)], False) for insertion in deepening.insertions)
    below = [[name, f"{before} -> {after}"] for name, before, after in sums]
    return table(title, ["behind", "inserted", ">layers"], rows, below)


def _to_dict(deepening: Deepening) -> dict[str, Any]:
    return {
        "seed": deepening.seed,
        "insertions": [{"name": i.name, "way": i.way, "count": i.count} for i in deepening.insertions],
        "notes": list(deepening.notes),
    }
