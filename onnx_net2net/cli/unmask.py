"""The command `unmask`."""

from __future__ import annotations

import argparse
from typing import Any

from onnx_net2net.cli.options import REDUCED, Command
from onnx_net2net.cli.output import table
from onnx_net2net.cli.student import Sums, deliver, prepare
from onnx_net2net.model.model import load
from onnx_net2net.operations.unmask import Unmasking, unmask


def run(options: argparse.Namespace) -> int:
    """Remove masks."""
    teacher = load(options.teacher)
    checking = prepare(options, teacher)
    unmasking = unmask(teacher)
    inexact = "" if unmasking.exact else "copies of experts compete for tokens that a mask kept apart"
    return deliver(options, unmasking, checking, _to_dict, _table, inexact=inexact)


COMMAND = Command("trained.onnx -o plain.onnx", REDUCED, run)


def _table(unmasking: Unmasking, title: str, sums: Sums) -> object:
    rows = [([mask.name, f"{mask.penalty:g}"], False) for mask in unmasking.masks]
    below = [[name, f"{before} -> {after}"] for name, before, after in sums]
    return table(title, ["mask", ">penalty"], rows, below)


def _to_dict(unmasking: Unmasking) -> dict[str, Any]:
    return {
        "exact": unmasking.exact,
        "masks": [{"name": mask.name, "penalty": mask.penalty} for mask in unmasking.masks],
    }
