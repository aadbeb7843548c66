"""How much each expert has still to learn, by the means of squared gradients that an optimizer holds anyway.

The square of an expert's gradient is the best measure of whom to copy in Expert Upcycling (Dwivedi et al. 2026, section
4.2), which measures it in passes of its own. Adam holds its mean over the last steps: no pass is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set
from onnx_net2net.algebra.views import apply
from onnx_net2net.analysis.groups import analysing, inspect_analysis
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.analysis.routers import chosen_dims
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.optimizer import squares_of
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.match import constants_of, match
from onnx_net2net.model.model import ModelLike, load


def expert_utility(
    teacher: ModelLike, state_dict: str | os.PathLike[str] | Mapping[str, Any], optimizer: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Add up the means of squared gradients of all weights of each expert.

    Args:
        teacher: A path, a model in memory or a loaded model, whose experts are stacked in weights.
        state_dict: The state dict of its class: a file, or what `state_dict()` returns.
        optimizer: What `state_dict()` of Adam or AdamW returned.

    Returns:
        For the name of each dim of experts, the part of the sum that each expert has; `widen` takes it (`loads`).

    Raises:
        BadInputError: If a file cannot be used, or no weight that the optimizer knows has an axis of experts.
    """
    model = load(teacher)
    with analysing(model) as (opened, analysis):
        names = {dim: group.name for group in inspect_analysis(opened.model, analysis).groups for dim in group.dims}
    entries = state_dicts.read(state_dict)
    constants = constants_of(model)
    matches = match(entries, constants)
    squares = squares_of(optimizer, Checkpoint(tuple(Entry(name, "", (), one) for name, one in entries.items())))
    stacks = {str(name): (dim, position) for name, dim, position in _stacks(analysis) if dim in names}
    found: dict[Dim, np.ndarray] = {}
    for name, values in squares.items():
        for piece in matches[name][0].pieces if name in matches else ():
            if piece.constant not in stacks:
                continue
            dim, position = stacks[piece.constant]
            shape = constants[piece.constant].shape
            ones = [-1 if axis == position else 1 for axis in range(len(shape))]
            owners = apply(piece.view, np.broadcast_to(np.arange(dim.size).reshape(ones), shape))
            sums = np.bincount(owners.reshape(-1), values.reshape(-1).astype(np.float64), dim.size)
            found[dim] = found.get(dim, np.zeros(dim.size)) + sums
    if not any(sums.sum() > 0 for sums in found.values()):
        raise BadInputError("the optimizer has no means of squared gradients of weights that experts are stacked in")
    return {names[dim]: (sums / max(sums.sum(), np.finfo(float).tiny)).tolist() for dim, sums in found.items()}


def _stacks(analysis: Analysis) -> Iterator[tuple[str, Dim, int]]:
    """Yield the weights of experts, each with the dim of these and the axis that they are stacked along."""
    network, experts = LayerGraph(analysis), chosen_dims(analysis)
    for use in analysis.uses.values():
        layer = network.layers.get(use.node)
        if layer and not leaf_set(*use.axes) - layer.reads - experts and not layer.shared & experts:
            continue  # the router itself
        for position, axis in enumerate(use.axes):
            dims = leaf_set(axis) & experts
            if len(dims) == 1 and axis.size == next(iter(dims)).size:
                yield use.constant.name, dims.pop(), position
