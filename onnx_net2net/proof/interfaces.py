"""Inputs and outputs of teacher and student: whether they fit, and how a student with more of them is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import NotEquivalentError
from onnx_net2net.model.protos import by_name, free_inputs
from onnx_net2net.run.inputs import Feeds

RunFunction = Callable[[Feeds], dict[str, Array]]
"""What answers to inputs by name with outputs by name."""

GrownAxes = Mapping[tuple[str, int], tuple[int, int]]
"""The (input or output, axis) that have more units on request, with the sizes in teacher and student."""


def check_interfaces(teacher: onnx.GraphProto, student: onnx.GraphProto, grown: GrownAxes) -> None:
    """Refuse a student whose inputs or outputs are others.

    Raises:
        NotEquivalentError: Names, types or sizes differ.
    """
    inputs = by_name(free_inputs(teacher)), by_name(free_inputs(student))
    outputs = by_name(teacher.output), by_name(student.output)
    for what, (old, new) in (("input", inputs), ("output", outputs)):
        if old.keys() != new.keys():
            raise NotEquivalentError(f"the student's {what}s are {sorted(new)}, the teacher's {sorted(old)}")
        for name in old:
            changed = {axis for place, axis in grown if place == name}
            if not _compatible(old[name].type, new[name].type, changed):
                texts = [helper.printable_value_info(value[name]).lstrip("%") for value in (old, new)]
                raise NotEquivalentError(f"{what} {texts[0]} of the teacher is {texts[1]} in the student")


def on_old_part(run: RunFunction, grown: GrownAxes, rng: np.random.Generator) -> RunFunction:
    """Let a student with a larger interface take the teacher's inputs, and return the teacher's part of its outputs.

    New entries of inputs get values of old ones, drawn at random: whatever they are, they must not matter.
    """
    if not grown:
        return run

    def run_old_part(feeds: Feeds) -> dict[str, Array]:
        feeds = dict(feeds)
        for (name, axis), (old, new) in grown.items():
            if name in feeds and feeds[name].shape[axis] == old:
                places = np.concatenate([np.arange(old), rng.integers(0, old, new - old)])
                feeds[name] = np.take(feeds[name], places, axis=axis)
        answer = run(feeds)
        for (name, axis), (old, new) in grown.items():
            if name in answer and answer[name].shape[axis] == new:
                answer[name] = np.take(answer[name], np.arange(old), axis=axis)
        return answer

    return run_old_part


def _compatible(one: onnx.TypeProto, other: onnx.TypeProto, changed: Collection[int]) -> bool:
    """Tell whether two types are the same but for sizes that are dynamic in one of them, and for changed axes."""
    first, second = one.tensor_type, other.tensor_type
    if one.WhichOneof("value") != other.WhichOneof("value") or first.elem_type != second.elem_type:
        return False
    if not (first.HasField("shape") and second.HasField("shape")):
        return True
    pairs = enumerate(itertools.zip_longest(first.shape.dim, second.shape.dim))
    return all(
        a and b and (axis in changed or 0 in (a.dim_value, b.dim_value) or a.dim_value == b.dim_value)
        for axis, (a, b) in pairs
    )
