"""Units that only pad what a normaliser reads, found by their weights and taken off again.

The inverse of what `padding` does: units that hold the mean of the others in front of every LayerNormalization, or
zero in front of every RMSNormalization, change its statistic by a known factor, which goes back into its scale and
epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set, resolve
from onnx_net2net.algebra.floats import is_float, spacing
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.analysis.padding import State, follow, paddable

_ROUNDINGS = 8
"""By how many roundings of its terms a mean of weights may miss."""

Pads = dict[Dim, np.ndarray]
"""Which units of a dim are padding."""


def find_pads(analysis: Analysis, picked: Mapping[str, tuple[int, np.ndarray]]) -> Pads:
    """Find the padding units of all dims.

    Args:
        analysis: The dims of the model.
        picked: Outputs that pick units along an axis; these must be no padding.
    """
    pads: Pads = {}
    for dim, held in paddable(analysis).items():
        units = _padding(analysis, dim, held)
        axes = [(analysis.axes[name][axis], places) for name, (axis, places) in picked.items()]
        free = all(resolve(axis) is dim and not units[places].any() for axis, places in axes if dim in leaf_set(axis))
        if units.any() and not units.all() and free:
            pads[dim] = units
    return pads


def shares_of(analysis: Analysis, pads: Pads) -> dict[str, float]:
    """Return by the results of normalisers which part of the units that they read are no padding."""
    return {
        analysis.nodes[number].outputs[0].name: 1 - float(pads[dim].mean())
        for number, said in analysis.said.items()
        for statistic in said.statistics
        for dim in leaf_set(*statistic.axes) & pads.keys()
    }


def _padding(analysis: Analysis, dim: Dim, held: State) -> np.ndarray:
    """Return which units pad a dim: all that makes them holds their mean, or zero, and nobody reads more of them."""
    none = np.zeros(dim.size, bool)
    states = follow(analysis, {dim: held}).states
    reads: dict[tuple[int, int], bool] = {}
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            if dim not in leaf_set(contraction.axis):
                continue
            names = [analysis.nodes[number].inputs[index].name for index, _ in contraction.sides]
            zero = any(states.get(name, {}).get(dim) == "zero" for name in names)
            weights = [(number, index) for index, _ in contraction.sides if (number, index) in analysis.uses]
            if contraction.law == "mean" or not (zero or weights):
                return none
            reads.update(dict.fromkeys(weights, zero))
    units = ~none
    for key, use in analysis.uses.items():
        for position, axis in enumerate(use.axes):
            if dim in leaf_set(axis):
                units = units & _fits(analysis, use, position, held, reads.get(key)) if resolve(axis) is dim else none
    return units


def _fits(analysis: Analysis, use: Use, position: int, held: State, reads_zero: bool | None) -> np.ndarray:
    """Return which units along an axis of a constant may be padding.

    Args:
        analysis: The dims.
        use: The constant.
        position: The axis.
        held: What padding holds.
        reads_zero: Of a constant that weighs the units in a sum, whether padding is zero there; None of others.
    """
    statistics, said = analysis.said[use.node].statistics, analysis.said[use.node]
    size = use.axes[position].size
    if reads_zero or any(use.input == statistic.scale for statistic in statistics):
        return np.ones(size, bool)
    values = analysis.graph.read(use.constant)
    if not is_float(values.dtype) or use.input in said.scales:
        return np.zeros(size, bool)
    rows = np.moveaxis(values, position, 0).reshape(size, -1).astype(np.float64)
    shift = any(use.input == statistic.shift for statistic in statistics)
    if held == "zero" or shift or reads_zero is not None:
        return np.asarray(~rows.any(axis=1))
    miss = _ROUNDINGS * spacing(values.dtype) * np.abs(rows).mean(axis=0)
    return np.asarray((np.abs(rows - rows.mean(axis=0)) <= miss).all(axis=1))
