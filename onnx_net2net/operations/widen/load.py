"""Counts how often routers choose each expert, and decides how many copies each expert gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.groups import analysing, inspect_analysis
from onnx_net2net.analysis.routers import last_choices
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import ModelLike, load
from onnx_net2net.run.inputs import input_specs, read_npz
from onnx_net2net.run.watch import in_batches, watched


def expert_load(teacher: ModelLike, data: str | os.PathLike[str] | Mapping[str, Array]) -> dict[str, list[float]]:
    """Run a model and count how often its routers choose each expert.

    Args:
        teacher: A path, a model in memory or a loaded model.
        data: Inputs: arrays by name, or an npz file of them, with examples along the first axis.

    Returns:
        By the name of each dim of experts: the fraction of all choices that each expert gets, as `loads` of `widen`.

    Raises:
        BadInputError: The model or the data cannot be used, or no router was found whose choices can be observed.
    """
    model = load(teacher)
    with analysing(model) as (opened, analysis):
        places = last_choices(analysis)
        groups = {dim: group.name for group in inspect_analysis(opened.model, analysis).groups for dim in group.dims}
    shown = {name for node in model.proto.graph.node for name in node.output}
    tensors = {t.name: dim for dim, t in places.items() if t.name in shown and dim in groups}
    if not tensors:
        raise BadInputError("no router that chooses experts was found, or its choices cannot be observed")
    specs = input_specs(model.proto)
    feeds = read_npz(data, specs) if isinstance(data, str | os.PathLike) else data
    counts = {name: np.zeros(dim.size) for name, dim in tensors.items()}
    with watched(model, tensors, "teacher") as watch:
        for batch in in_batches(feeds, specs):
            for name, chosen in watch(batch, list(tensors)).items():
                counts[name] += np.bincount(np.asarray(chosen).reshape(-1), minlength=len(counts[name]))
    return {groups[dim]: (counts[name] / max(counts[name].sum(), 1)).tolist() for name, dim in tensors.items()}


def copies_by_load(load: Sequence[float], new: int) -> Array:
    """Return how often the student has each expert: once, and further copies go to those with most load for each copy.

    Args:
        load: How often each expert is chosen.
        new: The number of experts in the student.

    Returns:
        int64 [experts].
    """
    weights, counts = np.asarray(load, np.float64), np.ones(len(load), np.int64)
    for _ in range(new - len(load)):
        counts[int(np.argmax(weights / counts))] += 1
    return counts
