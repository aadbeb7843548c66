"""The command `chain`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_net2net.cli.options import HTML, JSON, Command, argument
from onnx_net2net.cli.output import answer, following, table
from onnx_net2net.cli.page import Figure, Points, check_page, curves, picture, write_page
from onnx_net2net.model.model import load
from onnx_net2net.search.chain import Saving, StageResult, compute_saved, plan_chain, run_chain
from onnx_net2net.search.stages import Chain, read_chain


def run(options: argparse.Namespace) -> int:
    """Run a chain, or say what would be done."""
    chain = read_chain(options.chain)
    if options.dry_run:
        return _say_plan(options, chain)
    check_page(options)
    with following() as follow:
        rows = run_chain(chain, options.since, follow)
    saved = compute_saved(rows, chain.stages[-1].stop)
    told = [_table(rows, chain), *_notes(rows), *_saving_lines(saved, chain)]
    if options.html:
        write_page(options.html, options.chain.name, [*told, *_figures(rows, chain)])
    record = {"stages": [_to_dict(row) for row in rows], "saving": asdict(saved) if saved else None}
    return answer(options, record, told)


COMMAND = Command(
    "chain.yaml --from large",
    [
        argument("chain", type=Path, metavar="CHAIN", help="the networks, and how each is trained (.yaml)"),
        argument("--from", dest="since", metavar="STAGE", help="do this stage and all later ones again"),
        argument("--dry-run", action="store_true", help="do nothing; print which stages would be done, and why"),
        HTML,
        JSON,
    ],
    run,
)  # fmt: skip


def _say_plan(options: argparse.Namespace, chain: Chain) -> int:
    planned = plan_chain(chain, options.since)
    record = [{"name": p.stage.name, "to do": bool(p.reason), "reason": p.reason} for p in planned]
    rows = [([p.stage.name, "yes" if p.reason else "", p.reason or "complete"], not p.reason) for p in planned]
    return answer(options, {"stages": record}, [table(str(options.chain), ["stage", "to do", "why"], rows)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(rows: Sequence[StageResult], chain: Chain) -> object:
    step_cost = rows[-1].cost.macs
    metric = chain.stages[-1].stop.metric
    columns = ["stage", ">parameters", ">size", ">steps", ">seconds", ">compute", ">teacher's last", ">at step 0",
               f">{metric}", ">best", "ended"]  # fmt: skip
    cells = []
    for row, stage in zip(rows, chain.stages, strict=True):
        done = row.outcome
        best = stage.stop.best([value for _, value in done.curve]) if done else None
        cells.append(([
            row.name, f"{row.cost.parameters:,}", f"{row.cost.macs / rows[0].cost.macs:.3g}x",
            f"{done.steps:g}" if done else "", f"{done.duration:.0f}" if done else "", _number(row.compute / step_cost),
            _number(row.expected), _number(done.first if done else None), _number(done.last if done else None),
            _number(best), done.ended if done else "not trained",
        ], row.kind == "alone"))  # fmt: skip
    return table("size: multiplications by the first network's; compute: in steps of the last network", columns, cells)


def _figures(rows: Sequence[StageResult], chain: Chain) -> list[Figure]:
    """Return the metric against compute, and what grew from the first network to the last."""
    step_cost, spent = rows[-1].cost.macs, 0.0
    lines: dict[str, Points] = {}
    for row in rows:
        start = 0.0 if row.kind == "alone" else spent
        if row.outcome:
            lines[row.name] = [(start + step * row.cost.macs / step_cost, value) for step, value in row.outcome.curve]
            spent += row.compute / step_cost if row.kind != "alone" else 0.0
    metric = chain.stages[-1].stop.metric
    grown = [row for row in rows if row.kind != "alone"]
    first, last = load(grown[0].network.model), load(grown[-1].network.model)
    return [*curves("trainings", "compute, in steps of the last network", metric, lines), *picture(first, last)]


def _notes(rows: Sequence[StageResult]) -> list[str]:
    inexact = [f"{row.name}: does not compute what its teacher does, as asked" for row in rows
               if row.kind == "grown" and not row.exact]  # fmt: skip
    return [*inexact, *(f"{row.name}: {note}" for row in rows for note in row.notes)]


def _saving_lines(saved: Saving | None, chain: Chain) -> list[str]:
    if saved is None:
        return []
    where = f"{chain.stages[-1].stop.metric} {saved.metric:.4g}"
    if saved.alone is None:
        return [f"the last network alone never came to {where}; the chain did after {saved.chain:,.0f} of its steps"]
    part = 1 - saved.chain / saved.alone
    word = "saved" if part >= 0 else "cost"
    took = f"the chain took {saved.chain:,.0f} steps of the last network, and this alone {saved.alone:,.0f}"
    return [f"to {where} {took}: the chain {word} {abs(part):.0%}"]


def _to_dict(row: StageResult) -> dict[str, Any]:
    return {
        "name": row.name, "kind": row.kind, **asdict(row.cost), "exact": row.exact, "notes": list(row.notes),
        "training": asdict(row.outcome) if row.outcome else None, "expected": row.expected, "compute": row.compute,
        "model": str(row.network.model), "state_dict": str(row.network.state),
    }  # fmt: skip
