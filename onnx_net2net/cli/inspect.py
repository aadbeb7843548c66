"""The command `inspect`: the dims of a model, and what may be done with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onnx_net2net.analysis.groups import Group, Inspection
from onnx_net2net.analysis.loadable import inspect_for
from onnx_net2net.cli.options import Command, argument, for_framework
from onnx_net2net.cli.output import answer, table
from onnx_net2net.model.model import load
from onnx_net2net.rules.reasons import ReasonKind, kind_of
from onnx_net2net.run.session import check_runs
from onnx_net2net.texts import lines_by_reason


def run(options: argparse.Namespace) -> int:
    """Print the dims."""
    model = load(options.model)
    inspection = inspect_for(options.framework, model)
    if any(kind_of(group.reason) is ReasonKind.UNTYPED for group in inspection.groups):
        check_runs(model, "the model")
    told = [_table(inspection, f"{options.model.name}: {inspection.elements:,} parameters"), *_remarks(inspection)]
    routine = sum(map(is_routine, inspection.groups))
    if routine:
        told.append(f"{routine} more axes are kernels, positions or lists of sizes (--json has them)")
    return answer(options, _to_dict(inspection), told)


COMMAND = Command(
    "teacher.onnx",
    [
        argument("model", type=Path, metavar="MODEL", help="the model to look at (.onnx)"),
        for_framework("list what can grow if a class of this framework has to follow"),
        argument("--json", action="store_true", help="print JSON, with the axes that are fixed, too"),
    ],
    run,
)  # fmt: skip


def is_routine(group: Group) -> bool:
    """Tell whether a dim is fixed for a reason that every network has: kernels, positions, lists of sizes."""
    return kind_of(group.reason) is ReasonKind.ROUTINE


def _table(inspection: Inspection, title: str) -> object:
    rows = (
        ([g.name, g.role, f"{g.size:,}", str(g.tensors), f"{g.elements:,}", _state(g)], bool(g.reason))
        for g in inspection.groups
        if not is_routine(g)
    )
    return table(title, ["dim", "what", ">size", ">tensors", ">weights", "grows"], rows)


def _state(group: Group) -> str:
    """Say in a word whether a dim can grow."""
    if group.reason:
        return "by --set" if group.on_request else "no"
    if any(leader is group for leader in group.follows):
        return "by --set"
    if group.follows:
        return "follows"
    return "in multiples" if group.is_whole else "yes"


def _remarks(inspection: Inspection) -> list[str]:
    """Say what the words of the table mean for these dims: why, and how."""
    groups = [group for group in inspection.groups if not is_routine(group)]
    return lines_by_reason((group.name, remark) for group in groups if (remark := _remark(group)))


def _remark(group: Group) -> str:
    if group.reason:
        return f"{'only by --set' if group.on_request else 'no'}: {group.reason}"
    more = f"in multiples of {group.size}{' (any with --fill-norms)' if group.fillable else ''}"
    if any(leader is group for leader in group.follows):
        return "only by --set: a class makes it of other widths"
    if group.follows:
        return f"grows by what {group.follows[0].name} grows{f', {more}' if group.is_whole else ''}"
    return more if group.is_whole else ""


def _to_dict(inspection: Inspection) -> dict[str, Any]:
    return {
        "parameters": inspection.elements,
        "dims": [
            {"name": g.name, "role": g.role, "size": g.size, "tensors": g.tensors, "weights": g.elements,
             "growable": g.reason is None, "on_request": g.on_request, "multiples_only": g.is_whole,
             "fillable": g.fillable, "reason": g.reason}
            for g in inspection.groups
        ],
    }  # fmt: skip
