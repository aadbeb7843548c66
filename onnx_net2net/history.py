"""What was done to a model, in its metadata."""

from __future__ import annotations

import hashlib
import json

import onnx

from onnx_net2net.model import Model
from onnx_net2net.protos import all_tensors

HISTORY = "onnx_net2net.history"
"""Metadata entry that lists what was done to a model, as JSON."""


def history(model: Model) -> list[dict[str, object]]:
    """Return what was done to a model before, oldest first, as its metadata says."""
    for entry in model.proto.metadata_props:
        if entry.key == HISTORY:
            try:
                steps = json.loads(entry.value)
            except ValueError:
                return []
            return steps if isinstance(steps, list) else []
    return []


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
            digest.update(weight.tobytes())
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
        for name, axis, old, new in step.get("interface") or ():  # type: ignore[attr-defined]
            before, after = found.get((name, axis), (old, new))
            found[name, axis] = min(before, old), max(after, new)
    return found
