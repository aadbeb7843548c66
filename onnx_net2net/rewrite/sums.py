"""Sums over copied units: copies have to be multiplied by their shares, so that each sum keeps its value.

A constant that can be multiplied is used if there is one (see `onnx_net2net.analysis.linearity`), and else a new node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnx_net2net.algebra.dims import Axes, Dim, leaves
from onnx_net2net.algebra.floats import Compute
from onnx_net2net.algebra.maps import Growth, Map, compose, evened, halved, keep, ranks
from onnx_net2net.algebra.weights import AxisGrowth
from onnx_net2net.analysis.inference import Use
from onnx_net2net.analysis.linearity import Weighing, weighings
from onnx_net2net.analysis.padding import States
from onnx_net2net.graph.graph import Place
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rules.statements import Contraction


@dataclass(frozen=True)
class Weigher:
    """A constant weighs the units that a sum runs over.

    Attributes:
        contraction: The sum.
        silent: Whether padding units hold zero there.
        units: Which of the teacher's units on the axis are weighed; None for all.
        even: Whether copies of a unit get equal shares.
    """

    contraction: Contraction
    silent: bool
    units: np.ndarray | None = None
    even: bool = False


Weighers = dict[Place, dict[int, Weigher]]
"""For each read of a constant: the axes that it weighs."""

Insert = tuple[int, int, int, Map]
"""What needs a node of its own: the node that sums, its input, the axis, and the map with the weights."""


def find_weighers(rewriting: Rewriting, states: States, unweighed: Collection[int]) -> tuple[Weighers, list[Insert]]:
    """Find for each sum the constants that weigh the copies.

    Args:
        rewriting: The graph.
        states: What padding units hold.
        unweighed: The nodes whose sums need no weights.

    Returns:
        The constants, and the sums for which there are none.
    """
    analysis, growth = rewriting.analysis, rewriting.growth
    weighed_with: set[int] = set()
    ways: list[tuple[int, Contraction, Weighing | None]] = []
    for number, contraction in _contractions(rewriting):
        if number in unweighed or number in rewriting.ties.rescaled or number in weighed_with:
            continue
        maps = [_map_of(rewriting, number, contraction, side, growth) for side in contraction.sides]
        if all(np.allclose(map.weight, 1, rtol=0, atol=1e-12) for map in maps):
            continue  # a mean over equally many copies is the mean
        if _is_of_zeros(rewriting, number, contraction, maps[0], states):
            continue
        way = next(weighings(analysis, number, contraction, growth.__contains__, rewriting.ties.tables), None)
        weighed_with |= way.together if way else frozenset()
        ways.append((number, contraction, way))
    weighers: Weighers = {}
    inserts: list[Insert] = []
    for number, contraction, way in ways:
        if number in weighed_with:  # with a later sum
            continue
        if way is None:
            index, position = side = contraction.sides[-1]
            weighed = rewriting.grown(contraction.axis)
            exact = {**growth, **{dim: halved(growth[dim]) for dim in weighed}}  # powers of two round nothing
            inserts.append((number, index, position, _map_of(rewriting, number, contraction, side, exact)))
            continue
        silent = _is_silent(rewriting, number, contraction, way.index, states)
        for axis in way.axes:
            weigher = Weigher(contraction, silent, axis.units, axis.even)
            weighers.setdefault((axis.node, axis.input), {})[axis.position] = weigher
    return weighers, inserts


def _is_of_zeros(rewriting: Rewriting, number: int, contraction: Contraction, map: Map, states: States) -> bool:
    """Tell whether a sum over one operand gets nothing from new units: they hold zero, and no old one has copies."""
    if len(contraction.sides) > 1 or contraction.law == "mean" or not np.isin(map.weight, (0, 1)).all():
        return False
    held = states.get(rewriting.nodes[number].inputs[contraction.sides[0][0]].name, {})
    return all(held.get(dim) == "zero" for dim in rewriting.grown(contraction.axis))


def _contractions(rewriting: Rewriting) -> Iterator[tuple[int, Contraction]]:
    """Yield the sums over dims that grow, with the numbers of their nodes."""
    for number, said in rewriting.analysis.said.items():
        for contraction in said.contractions:
            if rewriting.grown(contraction.axis):
                yield number, contraction


def factors_of_all(rewriting: Rewriting) -> dict[Place, float]:
    """Return what constants are multiplied by, all of each, in place of a tied weight that cannot weigh copies."""
    factors: dict[Place, float] = {}
    for number, contraction in _contractions(rewriting):
        for place in rewriting.ties.rescaled.get(number, ()):
            map = _map_of(rewriting, number, contraction, contraction.sides[0], rewriting.growth)
            factors[place] = float(map.weight[0])
    return factors


def _is_silent(rewriting: Rewriting, number: int, contraction: Contraction, carrier: int, states: States) -> bool:
    """Tell whether padding units hold zero in every other operand, so that any weights may read them."""
    weighed, node = rewriting.grown(contraction.axis), rewriting.nodes[number]
    others = [index for index, _ in contraction.sides if index != carrier]
    held = [states.get(node.inputs[index].name, {}) for index in others]
    return bool(others) and all(state.get(dim) == "zero" for state in held for dim in weighed if dim in state)


def _map_of(rewriting: Rewriting, number: int, contraction: Contraction, side: tuple[int, int], growth: Growth) -> Map:
    """Return the map of an operand's axis, with the weights of copies for a sum."""
    weighed, size = rewriting.grown(contraction.axis), rewriting.size(contraction.axis)
    return _weights(contraction, rewriting.input_axes(number, side[0]), side[1], growth, weighed, size)


def _weights(contraction: Contraction, axes: Axes, position: int, growth: Growth, weighed: set[Dim], size: int) -> Map:
    if contraction.law != "sum":  # a mean has equal shares
        growth = {**growth, **{dim: evened(growth[dim]) for dim in weighed}}
    map = compose(axes[position], growth, weighed)
    if contraction.law == "mean":
        return replace(map, weight=map.weight * (size / contraction.axis.size))
    if contraction.law == "square":
        return replace(map, weight=np.sqrt(map.weight))
    return map


def axis_growths(
    rewriting: Rewriting, use: Use, weighers: Weighers, scales: dict[Dim, Compute] | None = None
) -> tuple[AxisGrowth, ...]:
    """Return how the axes of a constant grow where a node reads it.

    Args:
        rewriting: The graph.
        use: The read.
        weighers: The constants that weigh copies.
        scales: For dims that a later node scales: what reads the scale.
    """
    growths = []
    place, parted = (use.node, use.input), rewriting.copies.parted
    # What the last layers of experts that are chosen together read has to be the same for all copies of an expert.
    even = bool(parted) and place not in parted and bool(rewriting.split_axes(use.axes))
    for position, axis in enumerate(use.axes):
        weigher = weighers.get(place, {}).get(position)
        if weigher is not None:
            weighed = _weighed(rewriting, use.axes, position, weigher)
            growths.append(replace(weighed, spread=weighed.spread and not even))
            continue
        scale = next((scales[dim] for dim in leaves(axis) if dim in scales), None) if scales else None
        map = compose(axis, rewriting.growth)
        copied = position in rewriting.split_axes(use.axes) and map.new > map.old and not map.kind.any()
        # Of a step, copies that are chosen together get a part each, and so do copies that part the tokens.
        shares = 1 / np.bincount(map.index)[map.index] if copied else None
        growths.append(AxisGrowth(map, scale=scale, parted=copied and place in parted, shares=shares))
    return _cut(rewriting, use.axes, growths)


def _cut(rewriting: Rewriting, axes: Axes, growths: list[AxisGrowth]) -> tuple[AxisGrowth, ...]:
    """Let each part of an expert have units of its own, where experts are cut into parts."""
    for units, experts in rewriting.copies.parts.items():
        inside, outside = ([p for p, axis in enumerate(axes) if dim in leaves(axis)] for dim in (units, experts))
        if len(inside) != 1 or len(outside) != 1:
            continue
        index, new = growths[outside[0]].map.index, rewriting.growth[units].new
        places = [
            compose(axes[inside[0]], {**rewriting.growth, units: keep(units.size, np.arange(start, start + new))}).index
            for start in range(0, units.size, new)
        ]
        growths[outside[0]] = replace(growths[outside[0]], ranks=ranks(index))
        growths[inside[0]] = replace(growths[inside[0]], places=np.stack(places))
    return tuple(growths)


def _weighed(rewriting: Rewriting, axes: Axes, position: int, weigher: Weigher) -> AxisGrowth:
    """Return how an axis grows whose copies are weighed."""
    contraction, units = weigher.contraction, weigher.units
    weighed = rewriting.grown(contraction.axis)
    size = rewriting.size(contraction.axis)
    is_sum, is_whole = contraction.law == "sum", weighed == rewriting.grown(axes[position])
    map = _weights(contraction, axes, position, rewriting.growth, weighed, size)
    if units is not None:
        map = replace(map, weight=np.where(units[map.index], map.weight, 1.0))
    shares = None
    if is_sum and not (units is None and is_whole):
        whole = compose(axes[position], rewriting.growth).weight
        shares = np.divide(whole, map.weight, out=np.zeros(map.new), where=map.weight > 0)
    is_spread = is_sum and is_whole and not weigher.even
    return AxisGrowth(map, reads=True, spread=is_spread, silent=weigher.silent, shares=shares)


def keep_shares(rewriting: Rewriting, unweighed: Collection[int]) -> None:
    """Let the copies of a unit share its probability inside a Softmax, and give each the whole probability behind it.

    The logarithm of their number c is subtracted from the copies of x in front of the Softmax, so that their sum is
    c * e^(x - log c) = e^x. Behind it the copies are multiplied by c. Nodes in `unweighed` are handled elsewhere.
    """
    for number, said in rewriting.analysis.said.items():
        for position in said.shares if number not in unweighed else ():
            map = compose(rewriting.input_axes(number, 0)[position], rewriting.growth)
            old = map.kind == 0  # new classes are no copies
            shared = old & (map.weight < 1)  # of copies of experts one alone is in use
            copies = np.where(shared, np.bincount(map.index[old])[map.index], 1)
            if (copies != 1).any():
                rewriting.insert(number, 0, position, plus=-np.log(copies))
                rewriting.append(number, position, times=copies)
