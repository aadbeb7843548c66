"""What people and programs read: tables and JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from onnx_net2net.analysis.activations import Place
from onnx_net2net.analysis.blocks import Block
from onnx_net2net.analysis.groups import Group, Inspection
from onnx_net2net.errors import shown
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.derivation import Entry
from onnx_net2net.model.model import Model
from onnx_net2net.operations.deepen.deepen import Deepening
from onnx_net2net.operations.narrow.narrow import Narrowing
from onnx_net2net.operations.transfer.networks import Obstacle
from onnx_net2net.operations.transfer.similarity import Similarity
from onnx_net2net.operations.transfer.transfer import Transfer
from onnx_net2net.operations.widen.widen import Widening
from onnx_net2net.rules.op import ROUTINE

_TEXTS = ("map", "what", "can it grow?", "kind", "what can be inserted", "why not more", "inserted", "group",
          "can it be repeated?", "for example", "values")  # fmt: skip

_ORIGINS = {
    "teacher": "the teacher's",
    "identity": "identities",
    "zero": "zero",
    "reconstructed": "fitted to the teacher's",
    "measured": "measured",
    "kept": "the target's own",
}
"""What people call the ways in which tensors of a target get their values."""


def inspection_table(inspection: Inspection, title: str) -> Table:
    """Return the dims as a table; axes that are fixed in every network (kernels, size lists) are left out."""
    table = _table(title, "dim", "what", "size", "tensors", "weights", "can it grow?")
    for group in inspection.groups:
        if not is_routine(group):
            row = group.name, group.role, f"{group.size:,}", str(group.tensors), f"{group.elements:,}", _state(group)
            table.add_row(*map(_text, row), style="dim" if group.reason else None)
    return table


def inspection_dict(inspection: Inspection) -> dict[str, Any]:
    """Return the dims, all of them, as JSON-ready values."""
    return {
        "parameters": inspection.elements,
        "dims": [
            {
                "name": group.name,
                "role": group.role,
                "size": group.size,
                "tensors": group.tensors,
                "weights": group.elements,
                "growable": group.reason is None,
                "on_request": group.on_request,
                "multiples_only": group.is_whole,
                "fillable": group.fillable,
                "reason": group.reason,
            }
            for group in inspection.groups
        ],
    }


def widening_table(widening: Widening, title: str) -> Table:
    """Return what grew as a table with before and after."""
    table = _table(title, "dim", "before", "after", "wanted", "map", "tensors")
    for change in widening.changes:
        wanted = "" if round(change.wanted) == change.new else f"{change.wanted:g}"
        stays = change.new == change.old
        row = change.name, f"{change.old:,}", f"{change.new:,}", wanted, change.map, str(change.tensors)
        table.add_row(*map(_text, row), style="dim" if stays else None)
    table.add_section()
    before, after = widening.teacher.parameters, widening.student.parameters
    table.add_row("parameters", f"{before:,}", f"{after:,}", "", "", "")
    table.add_row("file size", size_text(file_size(widening.teacher)), size_text(widening.student.nbytes), "", "", "")
    return table


def widening_dict(widening: Widening) -> dict[str, Any]:
    """Return what grew as JSON-ready values."""
    return {
        "exact": widening.exact,
        "seed": widening.seed,
        "covered": widening.covered,
        "parameters": {"before": widening.teacher.parameters, "after": widening.student.parameters},
        "dims": [
            {"name": c.name, "before": c.old, "after": c.new, "wanted": c.wanted, "map": c.map}
            for c in widening.changes
        ],
        "fixed": [{"name": g.name, "size": g.size, "reason": g.reason} for g in widening.fixed if not is_routine(g)],
        "notes": list(widening.notes),
    }


def places_table(places: Sequence[Place], title: str) -> Table:
    """Return the layers as a table, with what can be inserted behind each."""
    table = _table(title, "layer", "kind", "units", "what can be inserted", "why not more")
    for place in places:
        row = place.name, place.operator, str(place.channels or ""), ", ".join(place.ways), place.reason
        table.add_row(*map(_text, row), style=None if place.ways else "dim")
    return table


def places_list(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return the same as JSON-ready values."""
    return [
        {"name": p.name, "kind": p.operator, "units": p.channels, "ways": list(p.ways), "reason": p.reason or None}
        for p in places
    ]


def blocks_table(blocks: Sequence[Block], title: str) -> Table:
    """Return the residual blocks as a table."""
    table = _table(title, "block", "group", "sums", "nodes", "can it be repeated?")
    for block in blocks:
        state = "yes" if not block.reason else f"{'no' if block.obstacle else 'only with cancel'}: {block.reason}"
        row = block.name, block.group, str(block.parts), str(len(block.nodes) or ""), state
        table.add_row(*map(_text, row), style="dim" if block.reason else None)
    return table


def blocks_list(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Return the same as JSON-ready values."""
    return [
        {
            "name": b.name,
            "group": b.group,
            "sums": b.parts,
            "nodes": len(b.nodes),
            "reason": b.reason or None,
            "cancels": not b.obstacle,
        }
        for b in blocks
    ]


def deepening_table(deepening: Deepening, title: str) -> Table:
    """Return what was inserted as a table."""
    table = _table(title, "behind", "inserted", "layers")
    for insertion in deepening.insertions:
        table.add_row(*map(_text, (insertion.name, insertion.way, str(insertion.count))))
    table.add_section()
    before, after = deepening.teacher.parameters, deepening.student.parameters
    table.add_row("parameters", "", f"{before:,} -> {after:,}")
    return table


def deepening_dict(deepening: Deepening) -> dict[str, Any]:
    """Return what was inserted as JSON-ready values."""
    return {
        "seed": deepening.seed,
        "parameters": {"before": deepening.teacher.parameters, "after": deepening.student.parameters},
        "insertions": [{"name": i.name, "way": i.way, "count": i.count} for i in deepening.insertions],
        "notes": list(deepening.notes),
    }


def narrowing_table(narrowing: Narrowing, title: str) -> Table:
    """Return what was removed as a table."""
    table = _table(title, "removed", "before", "after")
    for name in narrowing.removed:
        table.add_row(_text(name), "", "")
    for change in narrowing.changes:
        table.add_row(_text(change.name), f"{change.old:,}", f"{change.new:,}")
    table.add_section()
    table.add_row("parameters", f"{narrowing.teacher.parameters:,}", f"{narrowing.student.parameters:,}")
    return table


def narrowing_dict(narrowing: Narrowing) -> dict[str, Any]:
    """Return what was removed as JSON-ready values."""
    return {
        "parameters": {"before": narrowing.teacher.parameters, "after": narrowing.student.parameters},
        "removed": list(narrowing.removed),
        "dims": [{"name": c.name, "before": c.old, "after": c.new} for c in narrowing.changes],
    }


def transfer_table(transfer: Transfer, title: str) -> Table:
    """Return where the values of the target's tensors came from, with the largest tensor of each kind."""
    table = _table(title, "values", "tensors", "elements", "share", "for example")
    total = sum(math.prod(source.shape) for source in transfer.sources)
    for origin, text in _ORIGINS.items():
        sources = [source for source in transfer.sources if source.origin == origin]
        if sources:
            elements = sum(math.prod(source.shape) for source in sources)
            example = max(sources, key=lambda source: math.prod(source.shape))
            shown = f"{example.name} {_shape_text(example.shape)}"
            shown += f" from {example.teacher}" if example.teacher else ""
            row = text, str(len(sources)), f"{elements:,}", f"{elements / total:.1%}", shown
            table.add_row(*map(_text, row), style="dim" if origin == "kept" else None)
    table.add_section()
    table.add_row("parameters", "", f"{transfer.student.parameters:,}", "",
                  f"teacher: {transfer.teacher.parameters:,}")  # fmt: skip
    return table


def transfer_dict(transfer: Transfer, obstacles: Sequence[Obstacle]) -> dict[str, Any]:
    """Return where the values of each tensor came from, and what was in the way, as JSON-ready values."""
    return {
        "exact": not obstacles,
        "obstacles": [{"place": obstacle.place, "reason": obstacle.reason} for obstacle in obstacles],
        "filled": transfer.filled,
        "seed": transfer.seed,
        "parameters": {"teacher": transfer.teacher.parameters, "student": transfer.student.parameters},
        "tensors": [
            {"name": s.name, "shape": list(s.shape), "origin": s.origin, "teacher": s.teacher or None}
            for s in transfer.sources
        ],
    }


def checkpoint_table(checkpoint: Checkpoint, title: str) -> Table:
    """Return how the entries of a state dict were found in the graph, with an example that grew for each way."""
    table = _table(title, "in the graph", "entries", "grown", "before", "after", "for example")
    by_relation: dict[str, list[Entry]] = {}
    for entry in checkpoint.entries:
        by_relation.setdefault(entry.relation, []).append(entry)
    for relation, entries in by_relation.items():
        grown = [entry for entry in entries if entry.new != entry.old]
        example = max(grown or entries, key=lambda entry: math.prod(entry.new))
        before, after = (sum(math.prod(shape) for shape in shapes)
                         for shapes in ((e.old for e in entries), (e.new for e in entries)))  # fmt: skip
        shapes = f"{example.name} {_shape_text(example.old)}"
        shapes += f" -> {_shape_text(example.new)}" if example.new != example.old else ""
        row = relation, str(len(entries)), str(len(grown)), f"{before:,}", f"{after:,}", shapes
        table.add_row(*map(_text, row), style=None if grown else "dim")
    return table


def checkpoint_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the entries of a grown state dict as JSON-ready values."""
    return {
        "entries": [
            {
                "name": entry.name,
                "relation": entry.relation,
                "constants": list(entry.constants),
                "before": list(entry.old),
                "after": list(entry.new),
                "note": entry.note or None,
            }
            for entry in checkpoint.entries
        ],
        "notes": list(checkpoint.notes),
    }


def _shape_text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def similarities_table(similarities: Sequence[Similarity], title: str) -> Table:
    """Return sources, the most similar first, as a table."""
    measured = any(one.agreement is not None for one in similarities)
    table = _table(title, "source", "kept", "filled", "dpiat", *(["agreement"] if measured else []))
    for one in similarities:
        values = [one.kept, one.filled, one.dpiat, *([one.agreement] if measured else [])]
        row = [one.name, *("-" if value is None else f"{value:.4f}" for value in values)]
        table.add_row(*map(_text, row))
    return table


def similarities_dict(target: str, similarities: Sequence[Similarity]) -> dict[str, Any]:
    """Return the same as JSON-ready values."""
    return {"target": target, "sources": [asdict(one) for one in similarities]}


def fixed_lines(groups: tuple[Group, ...], most: int = 5) -> list[str]:
    """Return the main reasons for which dims stay fixed, the one that holds most weights first."""
    weights: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for group in groups:
        if group.reason and not is_routine(group):
            weights[group.reason] += group.elements
            names.setdefault(group.reason, []).append(group.name)
    lines = []
    for reason, _ in weights.most_common(most):
        shown = ", ".join(names[reason][:3]) + (f" and {len(names[reason]) - 3} more" if len(names[reason]) > 3 else "")
        lines.append(f"fixed: {shown}: {reason}")
    if len(weights) > most:
        lines.append(f"fixed: {len(weights) - most} more reasons, see inspect")
    return lines


def is_routine(group: Group) -> bool:
    """Tell whether a dim is fixed for a reason that every network has: kernels, positions, lists of sizes."""
    return group.reason is not None and group.reason.endswith(ROUTINE)


def _state(group: Group) -> str:
    if group.reason:
        return f"{'only by --set' if group.on_request else 'no'}: {group.reason}"
    more = " (any with --fill-norms)" if group.fillable else ""
    text = f"yes, in multiples of {group.size}{more}" if group.is_whole else "yes"
    if any(leader is group for leader in group.follows):
        return f"{text}, but only by --set"
    return f"{text}, by what {group.follows[0].name} grows" if group.follows else text


def _text(value: str) -> Text:
    """Return what a cell shows: no markup, and nothing that a terminal would obey."""
    return Text(shown(value))


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=_text(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold")
    return table


def file_size(model: Model) -> int:
    """Return the bytes of a model's files, or of its weights where it has no file."""
    return sum(Path(source).stat().st_size for source in model.sources) if model.sources else model.nbytes


def size_text(size: int) -> str:
    """Return a number of bytes in a unit that fits."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"
