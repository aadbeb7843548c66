"""Norms of weights: g * v / |v| (weight normalisation). If v is divided among copies, the gain g corrects its norm."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.linearity import DEEPEST, WeighedAxis, read_twice, weighed_axes_of
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import made_by
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class Norm:
    """A sum of squares of a weight, by which the weight is divided: g * v / |v| (weight normalisation).

    When v is divided among the copies of its inputs, its norm changes. A gain for each unit that has a norm of its own
    can correct that.
    """

    uses: tuple[tuple[int, int], ...]  # the reads of v (node, input) that only the norm is for
    weight: tuple[int, int]  # another read of v
    kept: int  # the axis of v that each unit has a norm along
    power: float  # to which power of the sum of squares the weight is proportional
    gains: tuple[WeighedAxis, ...]  # the gains that correct the norm


def find_norms(analysis: Analysis) -> dict[int, Norm]:
    """Return the norms of weights that gains can correct, by the node that sums the squares."""
    twice = read_twice(analysis)
    norms = {}
    for number, said in analysis.said.items():
        if said.contractions and analysis.is_derived(number, 0):
            norm = _norm(analysis, number, twice)
            if norm is not None:
                norms[number] = norm
    return norms


_ROOTS = {**traits.SQUARES, "ReduceSum": 1.0}
"""To which power of a sum of squares the results of operators are proportional, as far as they sum squares."""


def _norm(analysis: Analysis, number: int, twice: set[int]) -> Norm | None:
    node = analysis.nodes[number]
    if node.op not in _ROOTS:
        return None
    squares = [(number, 0)]
    if node.op not in traits.SQUARES:
        source = made_by(node.inputs[0], traits.TIMES)
        if source is None or source.inputs[0] is not source.inputs[1]:
            return None
        squares = [(analysis.numbers[id(source)], index) for index in (0, 1)]
    uses = [analysis.uses.get(square) for square in squares]
    (use, *_) = uses
    if use is None or id(use.constant) not in twice or any(u is None or u.constant is not use.constant for u in uses):
        return None
    summed = {position for c in analysis.said[number].contractions for _, position in c.sides}
    kept = [p for p, axis in enumerate(use.axes) if p not in summed and axis.size > 1]
    others = [key for key, other in analysis.uses.items() if other.constant is use.constant and key not in squares]
    if len(kept) != 1 or len(others) != 1:
        return None
    reader = _reader(analysis, others[0][0])
    if reader is None:
        return None
    axis = use.axes[kept[0]]
    result = analysis.nodes[reader[0]].inputs[reader[1]]
    power = _power(analysis, result, node.outputs[0], {})
    position = _position_of(analysis, reader, others[0], kept[0])
    if position is None or not power:
        return None
    gains = weighed_axes_of(analysis, *reader, position, axis, {id(use.constant)})
    if not gains or any(gain.units is not None for gain in gains):
        return None
    return Norm(tuple(squares), others[0], kept[0], power * _ROOTS[node.op], tuple(gains))


def _reader(analysis: Analysis, number: int) -> tuple[int, int] | None:
    """Return the input that reads what is computed from constants alone, if there is one, from a node on."""
    while True:
        (result, *_) = analysis.nodes[number].outputs
        if len(result.outputs) != 1 or result.name in analysis.kept:
            return None
        reader = result.outputs[0]
        number = analysis.numbers[id(reader)]
        if not all(analysis.is_derived(number, index) for index in range(len(reader.inputs))):
            return number, [tensor is result for tensor in reader.inputs].index(True)


def _position_of(analysis: Analysis, reader: tuple[int, int], source: tuple[int, int], position: int) -> int | None:
    """Return where in what follows from a constant one of its axes is."""
    axis = analysis.uses[source].axes[position]
    for own, other in enumerate(analysis.input_axes(*reader) or ()):
        if leaf_set(other) == leaf_set(axis):
            own_constant = analysis.uses[source].constant
            others = {id(use.constant) for use in analysis.uses.values() if use.constant is not own_constant}
            found = weighed_axes_of(analysis, *reader, own, axis, others)
            if found and [(c.node, c.input, c.position) for c in found] == [(*source, position)]:
                return own
    return None


def _power(analysis: Analysis, tensor: Tensor, norm: Tensor, known: dict[str, float | None]) -> float | None:
    """Return to which power of a norm a tensor is proportional, None if it is none."""
    if tensor is norm:
        return 1.0
    if not tensor.inputs:
        return 0.0
    if tensor.name not in known:
        known[tensor.name] = None
        if len(known) > DEEPEST:
            return None
        node = tensor.inputs[0]
        powers = [_power(analysis, operand, norm, known) for operand in node.inputs]
        known[tensor.name] = _power_of(analysis, node, powers)
    return known[tensor.name]


def _power_of(analysis: Analysis, node: Node, powers: list[float | None]) -> float | None:
    if any(power is None for power in powers):
        return None
    exponents = [power for power in powers if power is not None]
    if not any(exponents):
        return 0.0
    if node.op in traits.DEGREES:
        return sum(degree * power for degree, power in zip(traits.DEGREES[node.op], exponents, strict=True))
    said = analysis.said.get(analysis.numbers.get(id(node), -1))
    is_move = said is not None and said.pointwise == "linear" and not any(exponents[1:])
    return exponents[0] if is_move else None
