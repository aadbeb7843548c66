"""The record of a student: the steps that made it, kept in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import all_tensors, refill, scopes

HISTORY = "onnx_net2net.history"
"""Metadata entry that lists what was done to a model, as JSON."""


GROWN = "net2net.grown"
"""Metadata entry of a tensor that grew, and of the nodes that read it: viewers like Netron show it."""


def mark_grown(proto: onnx.ModelProto, notes: Mapping[str, str]) -> None:
    """Write beside tensors, and beside the nodes that read them, how they grew; by the tensors' names."""
    for scope in scopes(proto):
        for tensor in getattr(scope, "initializer", ()):
            _mark(tensor, notes.get(tensor.name))
        for node in scope.node:
            read = [f"{name} {notes[name]}" for name in dict.fromkeys(node.input) if name in notes]
            _mark(node, "; ".join(read) or None)


def unmark_grown(proto: onnx.ModelProto) -> None:
    """Remove what `mark_grown` wrote."""
    for scope in scopes(proto):
        for part in (*getattr(scope, "initializer", ()), *scope.node):
            refill(part.metadata_props, [entry for entry in part.metadata_props if entry.key != GROWN])


def _mark(part: onnx.TensorProto | onnx.NodeProto, note: str | None) -> None:
    if note is not None:
        kept = [entry for entry in part.metadata_props if entry.key != GROWN]
        refill(part.metadata_props, [*kept, onnx.StringStringEntryProto(key=GROWN, value=note)])


def history(model: Model) -> list[dict[str, Any]]:
    """Return what was done to a model before, oldest first, as its metadata says.

    Raises:
        BadInputError: If a step there is none.
    """
    for entry in model.proto.metadata_props:
        if entry.key == HISTORY:
            try:
                steps = json.loads(entry.value)
            except (ValueError, RecursionError):
                steps = None
            if not isinstance(steps, list):
                return []  # somebody else's
            for number, step in enumerate(steps, 1):
                check_values(step, f"step {number} in the metadata entry {HISTORY}")
            return steps
    return []


def record(
    model: Model, operation: str, options: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return the metadata of a student: what was done to the model before, and a step more.

    Args:
        model: The model that the operation was applied to.
        operation: One of `OPERATIONS`.
        options: What it was asked for, as a record or a recipe has it.
        notes: What else the record says; no option.
    """
    step = {"operation": operation, **options, "version": version("onnx-net2net"), "teacher": fingerprint(model)}
    return {HISTORY: json.dumps([*history(model), step | dict(notes or {})])}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return _is_number(value) or _is_text(value)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_sizes(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(_is_size, value.values()))


def _are_loads(value: object) -> bool:
    if not (isinstance(value, Mapping) and all(map(_is_text, value))):
        return False
    return all(isinstance(numbers, list) and all(map(_is_number, numbers)) for numbers in value.values())


def _are_axes(value: object) -> bool:
    """Tell whether it lists (input or output, axis, old size, new size)."""
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(r, list) and len(r) == 4 and _is_text(r[0]) and all(map(_is_whole, r[1:])) for r in rows)


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(
        ("version", "teacher", "filled", "map", "framework", "method", "way", "target", "data", "calibrate",
         "calibrated on"),
        (_is_text, "text"),
    ),
    **dict.fromkeys(("factor", "spread", "noise", "prior"), (_is_number, "a number")),
    **dict.fromkeys(("multiple_of", "seed", "count", "pairs", "experts", "k", "rank"), (_is_whole, "a whole number")),
    **dict.fromkeys(("fill_norms", "all", "append", "scale_weights", "shared"), (_is_flag, "true or false")),
    **dict.fromkeys(("only", "after", "inlined functions", "folded Ifs"), (_are_names, "a list of names")),
    **dict.fromkeys(("width", "depth"), (_is_size, "a size")),
    "loads": (_are_loads, "numbers by name"),
    "sizes": (_are_sizes, "sizes by name"),
    "repeat": (lambda value: _are_sizes(value) or _are_names(value), "numbers of copies by name"),
    "interface": (_are_axes, "a list of axes"),
}  # fmt: skip
"""What a step says, as far as it is known: what its value may be, besides nothing."""

OPERATIONS = ("widen", "deepen", "narrow", "transfer", "upcycle", "unmask")


def check_values(step: object, where: str) -> None:
    """Refuse a step of a record or recipe that is none.

    Args:
        step: What stands there.
        where: Where it stands, for messages.

    Raises:
        BadInputError: It names no operation, or a value is of another kind than it has to be.
    """
    operation = step.get("operation") if isinstance(step, Mapping) else None
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise BadInputError(f"{where}: there is no such operation; there are {', '.join(OPERATIONS)}")
    assert isinstance(step, Mapping)
    for key, value in step.items():
        fits, kind = _FIELDS.get(key, (None, "")) if isinstance(key, str) else (None, "")
        if fits is not None and value is not None and not fits(value):
            raise BadInputError(f"{where}: {key} is {kind}, not {one_line(value, 60)}")


def fingerprint(model: Model) -> str:
    """Return the SHA-256 of the model's file (not of external data beside it, nor its name), or of a model in memory.

    A student in memory is what its history says, which is hashed in its place: its weights are not computed yet.
    """
    digest = hashlib.sha256()
    if model.path is not None and len(model.sources) > 1:
        return hashlib.sha256(_without_locations(model)).hexdigest()
    if model.path is not None:
        with open(model.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    if steps := history(model):
        return hashlib.sha256(json.dumps(steps).encode()).hexdigest()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in all_tensors(proto):
        weight = model.tensor(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # a stub, whose key is another one each time
            del tensor.external_data[:]
            for _, make in weight.pieces():
                piece = make()
                digest.update(piece if isinstance(piece, bytes) else memoryview(piece.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
    digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _without_locations(model: Model) -> bytes:
    """Return a file that has its data beside it without the names of these files, which follow from its own."""
    assert model.path is not None
    proto = onnx.load(model.path, load_external_data=False)
    for tensor in all_tensors(proto):
        for entry in tensor.external_data:
            entry.value = "" if entry.key == "location" else entry.value
    return bytes(proto.SerializeToString(deterministic=True))


def grown_interface(teacher: Model, student: Model) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the (input or output, axis) that have more units on request, with the sizes in teacher and student."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for step in history(student)[len(history(teacher)) :]:
        for name, axis, old, new in step.get("interface") or ():
            before, after = found.get((name, axis), (old, new))
            found[name, axis] = min(before, old), max(after, new)
    return found
