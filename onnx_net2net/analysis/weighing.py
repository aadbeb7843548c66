"""Which constants can multiply the channels of sums, and which constants scale the inputs of a node."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.linearity import Tables, Weighing, weighings
from onnx_net2net.graph.graph import Place
from onnx_net2net.rules import traits
from onnx_net2net.rules.statements import Contraction

Ways = Mapping[tuple[int, tuple[Place, ...]], Weighing | None]
"""For each sum, by its node and sides, what it is weighed by if all dims grow that can; None where nothing can be."""


def is_free(dim: Dim) -> bool:
    """Tell whether a dim can grow."""
    return not dim.frozen


def find_ways(analysis: Analysis) -> Ways:
    """Return what weighs each sum."""
    return {
        (number, contraction.sides): next(weighings(analysis, number, contraction, is_free), None)
        for number, said in analysis.said.items()
        for contraction in said.contractions
    }


def weighed_axes(analysis: Analysis, ways: Ways | None = None) -> dict[Place, dict[int, int]]:
    """Return for reads of constants (node, input) the axes that are summed over, with the node that sums."""
    weighed: dict[Place, dict[int, int]] = {}
    for (number, _), way in (find_ways(analysis) if ways is None else ways).items():
        for axis in way.axes if way else ():
            weighed.setdefault((axis.node, axis.input), {})[axis.position] = number
    return weighed


def is_unweighed(analysis: Analysis, number: int, contraction: Contraction, tables: Tables) -> bool:
    """Tell whether there are units to grow in a sum that no weight takes part in."""
    is_open = any(map(is_free, leaves(contraction.axis)))
    return is_open and next(weighings(analysis, number, contraction, is_free, tables), None) is None


# --- What scales an operand ----------------------------------------------------------------------------------


def scalable(analysis: Analysis, number: int, index: int, axis: Axis) -> list[Place] | None:
    """Return the weights (node, input) of an axis that make an operand k times as large if they are, None without."""
    found: list[Place] = []
    pending = [(number, index)]
    while pending:
        place = pending.pop()
        if place in analysis.uses:
            if not _has(analysis, *place, axis):
                return None
            found.append(place)
            continue
        tensor = analysis.nodes[place[0]].inputs[place[1]]
        if len(tensor.outputs) != 1 or tensor.name in analysis.kept or not tensor.inputs:
            return None  # somebody else reads it
        node = tensor.inputs[0]
        maker = analysis.numbers[id(node)]
        if maker not in analysis.said:
            return None
        if node.op in traits.QUOTIENTS or (node.op in traits.MOVES and len(node.outputs) == 1):
            pending.append((maker, 0))
        elif node.op == "Add":
            pending += [(maker, 1), (maker, 0)]
        else:
            own = _own_scales(analysis, maker, axis)
            if own is None and node.op in traits.BILINEAR - traits.TIMES:  # of activations: one of them is made larger
                operands = (scalable(analysis, maker, side, axis) for side in range(len(node.inputs)))
                own = next((operand for operand in operands if operand), None)
            if own is None:
                return None
            found += own
    return found


def _own_scales(analysis: Analysis, number: int, axis: Axis) -> list[Place] | None:
    """Return the weights of a node itself that scale its result, None where it has none with the axis."""
    node, said = analysis.nodes[number], analysis.said[number]
    if node.op in traits.TIMES:
        return next(([(number, side)] for side in (0, 1) if _has(analysis, number, side, axis)), None)
    scales = [(statistic.scale, statistic.shift) for statistic in said.statistics if statistic.scale is not None]
    if node.op in traits.PRODUCTS:
        scales.append((1, 2))
    for pair in scales:
        places = [place for place in pair if place is not None and place < len(node.inputs) and node.inputs[place].name]
        if all(_has(analysis, number, place, axis) for place in places):
            return [(number, place) for place in places]
    return None


def _has(analysis: Analysis, number: int, index: int, axis: Axis) -> bool:
    """Tell whether an input is a constant with an axis."""
    use = analysis.uses.get((number, index))
    return use is not None and leaf_set(axis) <= leaf_set(*use.axes)
