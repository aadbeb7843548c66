"""Which constants are weights: those that layers multiply by, add or look up, and not masks, sizes and indices."""

from __future__ import annotations

from onnx import TensorProto

from onnx_net2net.algebra.dims import Axes, leaf_set
from onnx_net2net.analysis.inference import Analysis, Use

_INDICES = (TensorProto.INT64, TensorProto.INT32)


def weight_uses(analysis: Analysis) -> list[Use]:
    """Return one use of each constant that is a weight.

    A constant is a weight if an operator sums over one of its axes, looks entries up in it or says nothing of it, or
    if it shares a dim with such a one, as biases do: masks and lists of positions are none.
    """
    constants = list({id(use.constant): use for use in analysis.uses.values()}.values())
    tables = {dim for said in analysis.said.values() for axis in said.tables for dim in leaf_set(axis)}
    matrices: list[Axes] = [use.axes for use in constants if leaf_set(*use.axes) & tables]
    for number, said in analysis.said.items():
        if said.closed:
            sides = range(len(analysis.nodes[number].inputs))
            matrices += [analysis.input_axes(number, i) or () for i in sides if analysis.is_derived(number, i)]
    for number, index, contraction in analysis.weighings():
        matrices.append((contraction.axis,))
        if not all(analysis.is_derived(number, side) for side, _ in contraction.sides):
            matrices.append(analysis.input_axes(number, index) or ())
    weighty = {dim for axes in matrices for dim in leaf_set(*axes)}
    return [
        use
        for use in constants
        if analysis.sizes.dtype(use.constant.name) not in _INDICES and leaf_set(*use.axes) & weighty
    ]
