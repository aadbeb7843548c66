"""Find the first tensor inside two models where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnx_net2net.compare import Judge
from onnx_net2net.inputs import Feeds, input_specs
from onnx_net2net.noise import epsilon, noisy_twin, nudged
from onnx_net2net.protos import refill
from onnx_net2net.runtime import LEVELS, Runner
from onnx_net2net.tensors import Array

Embed = Callable[[str], Sequence[Array | None] | None]
"""For a tensor of the teacher, the positions of its units on each axis of the student's (None: all of
the axis); None if the two cannot be compared."""

_CHUNK = 128  # intermediate tensors fetched in one run: what bounds the memory of the search


def first_difference(
    teacher: Path, student: Path, feeds: Feeds, open_with: Callable[..., Runner], judge: Judge, embed: Embed
) -> str | None:
    """Return the first float tensor of the teacher, in topological order, that the student does not reproduce.

    Args:
        teacher: The model file.
        student: The other one.
        feeds: Inputs for which they differ.
        open_with: Opens a model for running.
        judge: Compares two tensors.
        embed: Tells where the teacher's units are in the student.
    """
    old, noisy, new = (onnx.load(path, load_external_data=False) for path in (teacher, teacher, student))
    theirs = {name for node in new.graph.node for name in node.output}
    common: list[str] = [name for node in old.graph.node for name in node.output if name and name in theirs]
    moved = nudged(feeds, input_specs(old), np.random.default_rng(0))
    noisy_twin(noisy)
    plain, optimized = LEVELS

    def values(
        names: list[str], proto: onnx.ModelProto, path: Path, level: ort.GraphOptimizationLevel, feeds: Feeds
    ) -> dict[str, Array]:
        refill(proto.graph.output, [onnx.ValueInfoProto(name=name) for name in names])
        return open_with(proto.SerializeToString(), level, file=path)(feeds)

    for start in range(0, len(common), _CHUNK):
        names = common[start : start + _CHUNK]
        runs = (
            values(names, old, teacher, plain, feeds),
            values(names, old, teacher, optimized, feeds),
            values(names, noisy, teacher, plain, moved),
        )
        answer = values(names, new, student, plain, feeds)
        for name in names:
            known = [run[name] for run in runs if name in run]
            found = _embedded(answer[name], embed(name)) if name in answer else None
            if found is None or len(known) < len(runs) or found.shape != known[0].shape or not epsilon(found.dtype):
                continue  # grown, or a shape computation, which need not agree
            if judge(name, found, known).different_fraction:
                return name
    return None


def _embedded(values: Array, positions: Sequence[Array | None] | None) -> Array | None:
    """Return the teacher's units among those of the student's tensor."""
    if positions is None or len(positions) != values.ndim:
        return None
    for axis, chosen in enumerate(positions):
        if chosen is not None:
            values = np.take(values, chosen, axis)
    return values
