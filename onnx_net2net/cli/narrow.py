"""The command `narrow`."""

from __future__ import annotations

import argparse
from typing import Any

from onnx_net2net.cli.options import REDUCED, Command
from onnx_net2net.cli.output import table
from onnx_net2net.cli.student import Sums, deliver, prepare
from onnx_net2net.model.model import load
from onnx_net2net.operations.narrow.narrow import Narrowing, narrow


def run(options: argparse.Namespace) -> int:
    """Narrow a model."""
    teacher = load(options.teacher)
    checking = prepare(options, teacher)
    narrowing = narrow(teacher)
    return deliver(options, narrowing, checking, _to_dict, _table)


COMMAND = Command("grown.onnx -o smaller.onnx", REDUCED, run)


def _table(narrowing: Narrowing, title: str, sums: Sums) -> object:
    removed = [[name] for name in narrowing.removed]
    changed = [[change.name, f"{change.old:,}", f"{change.new:,}"] for change in narrowing.changes]
    rows = [(cells, False) for cells in removed + changed]
    return table(title, ["removed", ">before", ">after"], rows, sums)


def _to_dict(narrowing: Narrowing) -> dict[str, Any]:
    return {
        "removed": list(narrowing.removed),
        "dims": [{"name": c.name, "before": c.old, "after": c.new} for c in narrowing.changes],
    }
