"""The command `similarity`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from onnx_net2net.cli.options import JSON, Command, argument
from onnx_net2net.cli.output import answer, table
from onnx_net2net.operations.transfer.similarity import MEASURES, Similarity, similarity


def run(options: argparse.Namespace) -> int:
    """Rank sources."""
    found = similarity(options.target, options.sources, measure=options.measure)
    name = options.target.name
    record = {"target": name, "sources": [asdict(one) for one in found]}
    return answer(options, record, [_table(found, f"sources for {name}")])


COMMAND = Command(
    "target.onnx teacher1.onnx teacher2.onnx",
    [
        argument("target", type=Path, metavar="TARGET", help="the network to fill (.onnx)"),
        argument("sources", type=Path, nargs="+", metavar="SOURCE", help="trained models that it may be filled from"),
        argument("--measure", default="agreement", choices=MEASURES,
                 help="what to rank by. agreement: how much the filled target answers like the source (fills the "
                 "target and runs both). The others only look at the graphs. kept: the share of the source's "
                 "parameters that have a place in the target. filled: the share of the target's parameters that are "
                 "filled. dpiat: DPIAT's similarity (default: %(default)s)"),
        JSON,
    ],
    run,
)  # fmt: skip


def _table(found: Sequence[Similarity], title: str) -> object:
    """Return the sources, the most similar first."""
    columns = ["kept", "filled", "dpiat", *(["agreement"] if any(s.agreement is not None for s in found) else [])]
    rows = []
    for one in found:
        values = [getattr(one, column) for column in columns]
        rows.append(([one.name, *("-" if value is None else f"{value:.4f}" for value in values)], False))
    return table(title, ["source", *(f">{column}" for column in columns)], rows)
