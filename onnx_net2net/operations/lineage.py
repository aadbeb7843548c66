"""Compares a student with its own record, weight by weight.

Outputs show an error only if it is larger than their float noise, which a single wrong weight among thousands rarely
causes. But the steps of the record, repeated on the teacher, make every weight of the student again. So any wrong
weight is found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.rows import row_blocks
from onnx_net2net.errors import Net2NetError
from onnx_net2net.model.history import history, unmark_grown
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.staging import work_folder
from onnx_net2net.model.tensors import Weight, clear_data
from onnx_net2net.operations.replay import check_step, redo
from onnx_net2net.proof.verdict import Departure

TOLERANCE = 1e-5
"""How far a weight may be off, relative to what the record makes: other machines calibrate to other last places."""

_MOST = 0.1
"""A student with a larger part of other weights was not damaged: it was trained on, or made by other draws."""


_STEPS = 100
"""A record of more steps is not repeated."""

_GROWN = 4
"""A step that makes so many times the bytes of teacher and student is no step between them."""


def departure(teacher: Model, student: Model) -> Departure | None:
    """Compare a student with what its record makes of the teacher, one tensor at a time.

    Args:
        teacher: The model that the student says it was made of.
        student: A model with a record.

    Returns:
        How they differ; None where that says nothing: there is no record of this teacher and of this version, it cannot
        be repeated, or the student was changed as a whole since (trained on, simplified, quantized).
    """
    known, steps = history(teacher), history(student)
    if steps[: len(known)] != known or len(steps) == len(known):
        return None
    steps = steps[len(known) :]
    if any(step.get("version") != version("onnx-net2net") for step in steps if isinstance(step, dict)):
        return None
    if not _is_bounded(steps, student):
        return None
    with work_folder() as folder, contextlib.suppress(Net2NetError):
        for number, step in enumerate(steps, 1):
            check_step(step, f"step {number}")
        # The teacher may be another file by now, or in memory: whether it is the same model its weights tell.
        anonymous = [{key: value for key, value in step.items() if key != "teacher"} for step in steps]
        most = _GROWN * (teacher.nbytes + student.nbytes)
        for done in redo(teacher, anonymous, folder):
            if (made := done.student).nbytes > most:
                return None
        return _compare(made, student)
    return None


def _is_bounded(steps: Sequence[object], student: Model) -> bool:
    """Tell whether a record asks for no more than its student has: it comes from a file, and anybody can write one."""
    tensors = all_tensors(student.proto)
    largest = max(len(student.proto.graph.node), *(size for tensor in tensors for size in tensor.dims), 1)
    pending: list[object] = list(steps)
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "target" in value:  # another file
                return False
            pending += [inner for key, inner in value.items() if key != "seed"]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, int | float) and not abs(value) <= largest:
            return False
    return len(steps) <= _STEPS


def _compare(made: Model, student: Model) -> Departure | None:
    """Compare two models of the same nodes; None if they have not, or most of their weights differ."""
    if _structure(made.proto) != _structure(student.proto):
        return None
    first, wrong, size = Departure(), 0, 0
    for one, other in zip(all_tensors(made.proto), all_tensors(student.proto), strict=True):
        size += (expected := made.tensor(one)).size
        elements, off = (
            (0, 0.0) if one.data_type == onnx.TensorProto.STRING else _apart(expected, student.tensor(other))
        )
        wrong += elements
        if elements and first.tensor is None:
            first = Departure(other.name, elements, expected.size, off)
    return first if wrong <= _MOST * size else None


def _apart(expected: Weight, found: Weight) -> tuple[int, float]:
    """Return how many elements of a tensor are off, and by how much at most."""
    elements, most = 0, 0.0
    for one, other in _in_blocks(expected, found):
        if not np.array_equal(_bits(one), _bits(other)):
            off = _off(one, other)
            elements, most = elements + int(np.count_nonzero(off > TOLERANCE)), max(most, float(off.max()))
    return elements, most


def _in_blocks(one: Weight, other: Weight) -> Iterator[tuple[Array, Array]]:
    """Yield the values of two tensors of one shape, some rows at a time where the first is made so."""
    if not one.has_rows:
        yield one.numpy(), other.numpy()
        return
    first, second = one.rows(), other.rows()
    for places in row_blocks(one.shape, one.dtype.itemsize):
        yield first(places), second(places)


def _bits(values: Array) -> Array:
    """Return what values are in memory, as integers: nothing else is equal to a NaN."""
    return values if values.dtype == object else values.reshape(-1).view(f"u{min(values.itemsize, 8)}")


def _off(expected: Array, found: Array) -> Array:
    """Return how far each element is off, relative to the larger of the two values."""
    one, other = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(one - other) / np.maximum(np.abs(one), np.abs(other))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isnan(off), 1.0, off))


def _structure(proto: onnx.ModelProto) -> bytes:
    """Return all of the graph but values of tensors and what is written about it."""
    bare = onnx.ModelProto(opset_import=proto.opset_import, functions=proto.functions, graph=proto.graph)
    for tensor in all_tensors(bare):
        clear_data(tensor)
    unmark_grown(bare)
    bare.graph.doc_string = ""
    del bare.graph.metadata_props[:], bare.graph.value_info[:]
    return bytes(bare.SerializeToString(deterministic=True))
