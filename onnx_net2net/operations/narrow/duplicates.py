"""Which units of a network are duplicates of one another, and which nobody reads.

Units are duplicates if all that makes them is equal; what makes them are weights that in turn sum over units, whose
duplicates count as one. So all units of a dim are first taken for duplicates, and told apart until every weight
agrees: what is left is the coarsest partition for which the network is a widened one (lumping, partition refinement).
Copies that share their outgoing weights unevenly differ in what they read until the shares are summed, which is why
nothing less finds them. Sums of shares are compared up to the rounding of the weights' type, all else exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_net2net.algebra.dims import Axis, Concat, Dim, leaf_set, resolve
from onnx_net2net.algebra.floats import Array, is_float, spacing
from onnx_net2net.algebra.maps import Numbers, axis_numbers, units_of
from onnx_net2net.algebra.ratios import Ratio
from onnx_net2net.algebra.weights import fold
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.analysis.linearity import weighings
from onnx_net2net.graph.graph import dtype_of
from onnx_net2net.rewrite.norms import Fill
from onnx_net2net.rules import traits
from onnx_net2net.rules.statements import Contraction

Classes = Mapping[Dim, np.ndarray]
"""For each dim the class of each unit, numbered in the order of their first units; -1 for units that are dropped."""

Summed = dict[tuple[int, int], dict[int, set[Dim]]]
"""For reads of constants (node, input): the dims on each axis whose copies the constant weighs."""

Folded = tuple[Array, "Array | None", list[np.ndarray]]
"""A constant with its classes summed, by how much sums may miss, and the labels on each axis."""

_ROUNDINGS = 4
"""By how many roundings of its terms a sum of shares may miss the weight that was shared."""


@dataclass
class Duplicates:
    """Duplicates in a network.

    Attributes:
        classes: The classes of each dim that can lose units.
        summed: Where the classes are summed; wherever else a constant has the dim, it keeps what the first unit has.
        means: Where (node, input, axis) a mean is taken of what is summed, so that fewer units need smaller weights.
        squares: The reads (node, input) whose squares are summed.
    """

    classes: dict[Dim, np.ndarray]
    summed: Summed
    means: frozenset[tuple[int, int, int]] = frozenset()
    squares: frozenset[tuple[int, int]] = frozenset()


def find_duplicates(analysis: Analysis, cut: Mapping[str, int], fills: Sequence[Fill] = ()) -> Duplicates | None:
    """Find the units of a network that can go.

    Args:
        analysis: The dims of the network.
        cut: Outputs that pick units along an axis: duplicates can go there too, if one of each class is left.
        fills: Normalisers that were filled up, which must read each class equally often.

    Returns:
        The duplicates; None if some of the normalisers would not.
    """
    return _Refinement(analysis, cut, fills).run()


def axis_labels(axis: Axis, classes: Classes, summed: set[Dim]) -> np.ndarray:
    """Return the label of each unit of an axis; of dims that are not summed only the first unit of a class has one."""

    def labels(dim: Dim) -> Numbers:
        own = classes.get(dim)
        if own is None:
            return np.arange(dim.size), dim.size
        return own if dim in summed else np.where(is_first(own), own, -1), class_count(own)

    return axis_numbers(axis, labels)[0]


def class_count(labels: np.ndarray) -> int:
    """Return how many classes there are."""
    return int(labels.max()) + 1


def _squared(axis: Axis) -> set[Dim]:
    """Return the dims that an axis has twice in one product."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return set()
    inside = set().union(*map(_squared, axis.parts))
    if isinstance(axis, Concat):
        return inside
    found = [dim for part in axis.parts for dim in leaf_set(part)]
    return inside | {dim for dim in found if found.count(dim) > 1}


def is_first(labels: np.ndarray) -> np.ndarray:
    """Tell which units are the first of their class."""
    first = np.zeros(len(labels), bool)
    first[np.unique(labels, return_index=True)[1]] = True
    return first & (labels >= 0)


class _Refinement:
    """Tells units apart until every weight agrees with what is left."""

    def __init__(self, analysis: Analysis, cut: Mapping[str, int], fills: Sequence[Fill]) -> None:
        self._analysis, self._cut = analysis, cut
        self._fills = [(analysis.axes[fill.source][fill.axis], fill.places) for fill in fills]
        self._filled = leaf_set(*(axis for axis, _ in self._fills))
        results = {fill.result for fill in fills}
        plain = {number for number in analysis.said if analysis.nodes[number].outputs[0].name not in results}
        read = [axis for number in plain for one in analysis.said[number].statistics for axis in one.axes]
        self._is_mixed = not self._filled.isdisjoint(leaf_set(*read))
        self._picked = leaf_set(*(analysis.axes[name][axis] for name, axis in cut.items()))
        self._even: set[Dim] = set()
        self._summed: Summed = {}
        self._means: set[tuple[int, int, int]] = set()
        self._squares: set[tuple[int, int]] = set()
        self._read: dict[int, Array] = {}
        free = self._candidates()
        self._find_weighed(free)
        self._classes = {dim: np.zeros(dim.size, np.intp) for dim in free}
        self._norms = [number for number in analysis.said if self._is_norm(number)]
        inside = {(number, index) for number in self._norms for index in range(1, 5)}
        self._uses = [use for key, use in analysis.uses.items() if key not in inside and leaf_set(*use.axes) & free]

    def run(self) -> Duplicates | None:
        """Return what is left when nothing more has to be told apart."""
        while True:
            while sum(map(self._refine, self._uses)) + sum(map(self._refine_norm, self._norms)):
                pass
            uneven = self._uneven()
            if not uneven:
                break
            self._classes.update({dim: np.arange(dim.size) for dim in uneven})
        if self._is_mixed or not all(self._is_even(axis, places) for axis, places in self._fills):
            return None
        folded: dict[int, Folded] = {}
        dead = {dim: self._dead(dim, folded) for dim in self._classes}
        for dim, units in dead.items():
            kept = np.where(units[self._classes[dim]], -1, (np.cumsum(~units) - 1)[self._classes[dim]])
            self._classes[dim] = kept
        classes = {dim: own for dim, own in self._classes.items() if class_count(own) < dim.size}
        summed = {key: axes for key, axes in self._summed.items() if key in self._analysis.uses}
        return Duplicates(classes, summed, frozenset(self._means), frozenset(self._squares))

    # -- what can lose units -----------------------------------------------------------------------------------

    def _candidates(self) -> set[Dim]:
        """Return the dims that can lose units, before sums are looked at."""
        analysis = self._analysis
        free = {dim for dim in analysis.dims() if not dim.frozen and dim.size > (0 if dim.origin else 1)}
        free -= {dim for dim in free if dim.ratio is not None and dim.ratio.root().frozen}
        for tensor in analysis.graph.outputs:
            axes = analysis.axes.get(tensor.name, ())
            free -= leaf_set(*(axis for place, axis in enumerate(axes) if place != self._cut.get(tensor.name)))
        for number, said in analysis.said.items():
            shared = [(analysis.input_axes(number, 0) or ())[position] for position in said.shares]
            free -= leaf_set(*shared, *said.normalised, *said.tables)
            for selection in said.selections:
                picked = leaf_set(*(selection.units[place] for place in selection.order))
                free -= {dim for dim in leaf_set(*selection.units) if dim.origin is None or dim in picked}
        for axis in {axis for use in analysis.uses.values() for axis in use.axes}:
            free -= _squared(axis)
        return free

    def _find_weighed(self, free: set[Dim]) -> None:
        """Find for each sum the weight in which classes are summed; dims without one keep their units."""
        summed: dict[Dim, list[tuple[tuple[int, int, int], set[Dim]]]] = {}
        for number, said in self._analysis.said.items():
            for contraction in said.contractions:
                dims = leaf_set(contraction.axis) & free
                place = self._weighed_axis(number, contraction, dims) if dims else None
                if place is None and contraction.law == "mean" and not isinstance(resolve(contraction.axis), Concat):
                    self._even |= dims
                    continue
                if place is None:
                    free -= dims
                    continue
                if contraction.law == "mean":
                    self._means.add(place)
                if contraction.law == "square":
                    self._squares.add(place[:2])
                for dim in dims:
                    summed.setdefault(dim, []).append((place, dims))
        free &= summed.keys() | {dim for dim in free if dim.origin}  # single units that nothing picks may have no sum
        for dim in free & summed.keys():
            for (number, index, position), _ in summed[dim]:
                self._summed.setdefault((number, index), {}).setdefault(position, set()).add(dim)

    def _weighed_axis(self, number: int, contraction: Contraction, dims: set[Dim]) -> tuple[int, int, int] | None:
        """Return (node, input, axis) of a constant that can hold the sums."""
        square = contraction.law == "square"
        read = {index for one in self._analysis.said[number].contractions for index, _ in one.sides}
        if square and len(read) > 1:
            return None  # squares of differences: what one operand is multiplied by says nothing of the other
        for way in weighings(self._analysis, number, contraction, dims.__contains__):
            (place, *more) = way.axes
            use = self._analysis.uses[place.node, place.input]
            alone = not (more or way.together) and place.units is None
            if alone and (square or place.even):
                alone = self._is_factor(place.node, use, place.position) and (
                    square or bool(np.all(self._values(use) >= 0))
                )
            if alone and is_float(dtype_of(use.constant)) and dims <= leaf_set(use.axes[place.position]):
                return place.node, place.input, place.position
        return None

    def _is_factor(self, number: int, use: Use, position: int) -> bool:
        """Tell whether a constant is one number for each unit, which all of it is multiplied by."""
        others = [axis for place, axis in enumerate(use.axes) if place != position]
        return self._analysis.nodes[number].op in traits.TIMES and all(axis.size == 1 for axis in others)

    def _is_norm(self, number: int) -> bool:
        """Tell whether a node is a BatchNormalization that only scales and shifts each unit."""
        node, uses = self._analysis.nodes[number], self._analysis.uses
        plain = node.op in traits.FIXED_NORMS and len(node.outputs) == 1 and not node.attrs.get("training_mode", 0)
        found = [uses[number, index] for index in range(1, 5) if (number, index) in uses] if plain else []
        return len(found) == 4 and all(is_float(dtype_of(use.constant)) for use in found)

    # -- telling apart -----------------------------------------------------------------------------------------

    def _values(self, use: Use) -> Array:
        key = id(use.constant)
        if key not in self._read:
            self._read[key] = self._analysis.graph.read(use.constant)
        return self._read[key]

    def _folded(self, use: Use) -> Folded:
        """Return a constant with its classes summed, by how much sums may miss, and the labels on each axis."""
        summed = self._summed.get((use.node, use.input), {})
        labels = []
        for position, axis in enumerate(use.axes):
            dims = summed.get(position, set())
            labels.append(axis_labels(axis, {dim: self._classes[dim] for dim in dims}, dims))
        values = self._values(use)
        if all(len(np.unique(own)) == len(own) for own in labels):
            return values, None, labels
        size, squares = np.abs(values.astype(np.float64)), (use.node, use.input) in self._squares
        miss = _ROUNDINGS * spacing(values.dtype) * fold(size, labels, squares)
        return fold(values, labels, squares), miss, labels

    def _refine(self, use: Use) -> bool:
        """Tell apart units that a constant makes different; return whether any were."""
        summed = self._summed.get((use.node, use.input), {})
        told = False
        for position, axis in enumerate(use.axes):
            for dim in self._undecided(axis) - summed.get(position, set()):
                values, miss, labels = self._folded(use)
                rows = _rows(values, position, axis, dim, labels[position])
                blur = None if miss is None else _rows(miss, position, axis, dim, labels[position])
                told |= self._tell_apart(dim, rows, blur)
        return told

    def _refine_norm(self, number: int) -> bool:
        """Tell apart units to which a BatchNormalization does different things, whatever mean it subtracts."""
        uses = [self._analysis.uses[number, index] for index in range(1, 5)]
        axis = uses[0].axes[0]
        undecided = self._undecided(axis)
        if not undecided:
            return False
        epsilon = float(self._analysis.nodes[number].attrs.get("epsilon", 1e-5))
        gamma, beta, mean, variance = (self._values(use).astype(np.float64) for use in uses)
        scale = gamma / np.sqrt(variance + epsilon)
        values = np.stack([scale, beta - mean * scale], axis=1)
        rounding = _ROUNDINGS * max(spacing(self._values(use).dtype) for use in uses)
        miss = rounding * np.stack([np.abs(scale), np.abs(beta) + np.abs(mean * scale)], axis=1)
        everyone = np.arange(axis.size)
        return any(
            self._tell_apart(dim, *(_rows(array, 0, axis, dim, everyone) for array in (values, miss)))
            for dim in undecided
        )

    def _undecided(self, axis: Axis) -> set[Dim]:
        """Return the dims of an axis with units that are still taken for duplicates."""
        dims = leaf_set(axis) & self._classes.keys()
        return {dim for dim in dims if class_count(self._classes[dim]) < dim.size}

    def _tell_apart(self, dim: Dim, rows: Array, miss: Array | None) -> bool:
        """Tell apart units whose rows differ by more than they may miss; return whether there were any."""
        old = self._classes[dim]
        new = _split(old, rows) if miss is None else _split_closely(old, rows, miss)
        self._classes[dim] = new
        return int(new.max()) > int(old.max())

    def _uneven(self) -> set[Dim]:
        """Return the dims of means and statistics whose classes have not equally many units, and their like."""
        uneven: set[Dim] = set()
        ratios: dict[Ratio, list[Dim]] = {}
        for dim, own in self._classes.items():
            counts = np.bincount(own)
            ratio = dim.ratio if dim not in self._filled else None
            if (dim in self._even or ratio is not None) and counts.min() != counts.max():
                uneven.add(dim)
            if ratio is not None:
                ratios.setdefault(ratio.root(), []).append(dim)
        for ratio, members in ratios.items():
            factors = {dim.size // (class_count(self._classes[dim])) for dim in members}
            if len(factors) > 1 or not uneven.isdisjoint(members) or len(members) < ratio.members:
                uneven.update(members)
        return {dim for dim in uneven if class_count(self._classes[dim]) < dim.size}

    def _is_even(self, axis: Axis, places: np.ndarray) -> bool:
        """Tell whether a normaliser that reads these places of an axis reads each class equally often."""
        counts = np.bincount(axis_labels(axis, self._classes, leaf_set(axis))[places])
        return bool(counts.min() == counts.max())

    def _dead(self, dim: Dim, folded: dict[int, Folded]) -> np.ndarray:
        """Tell which classes of a dim all weights that read them weigh by 0; `folded` are those that were looked at."""
        count = class_count(self._classes[dim])
        dead = np.full(count, not (dim.ratio or dim.copies or dim in self._even or dim in self._picked))
        for use, position in self._places[dim]:
            if not dead.any():
                break
            if id(use) not in folded:
                folded[id(use)] = self._folded(use)
            values, _, labels = folded[id(use)]
            rows = _rows(values, position, use.axes[position], dim, labels[position], self._classes[dim])
            dead &= ~np.any(rows != 0, axis=1)
        if dead.all() and not dim.origin:
            dead[0] = False
        return dead

    @cached_property
    def _places(self) -> dict[Dim, list[tuple[Use, int]]]:
        """Where weights sum over each dim."""
        found: dict[Dim, list[tuple[Use, int]]] = defaultdict(list)
        for key, axes in self._summed.items():
            for position, dims in axes.items():
                for dim in dims:
                    found[dim].append((self._analysis.uses[key], position))
        return found


def _rows(
    values: Array, position: int, axis: Axis, dim: Dim, labels: np.ndarray, classes: np.ndarray | None = None
) -> Array:
    """Return what a folded constant has for each unit of a dim (or each class, where it is folded)."""
    units = units_of(axis, dim)
    units = units if classes is None else np.where(units < 0, -1, classes[units])
    folded = np.empty(class_count(labels), np.intp)
    folded[labels[labels >= 0]] = units[labels >= 0]
    order = np.argsort(folded, kind="stable")
    order = order[folded[order] >= 0]
    rows = np.moveaxis(np.take(values, order, axis=position), position, 0)
    return np.ascontiguousarray(rows).reshape(class_count(folded), -1)


def _split(labels: np.ndarray, rows: Array) -> np.ndarray:
    """Split classes by rows that are not equal."""
    numbers: dict[tuple[int, bytes], int] = {}
    pairs = ((int(label), row.tobytes()) for label, row in zip(labels, rows, strict=True))
    return np.array([numbers.setdefault(key, len(numbers)) for key in pairs])


def _split_closely(labels: np.ndarray, rows: Array, miss: Array) -> np.ndarray:
    """Split classes by rows that are further apart than both may miss; projections tell most apart at once."""
    away = np.random.default_rng(0).uniform(0.5, 1.0, rows.shape[1]) * np.resize([1.0, -1.0], rows.shape[1])
    wide = rows.astype(np.float64)
    shadow, blur = wide @ away, miss @ np.abs(away) + 1e-12 * (np.abs(wide) @ np.abs(away))
    result = np.full(len(labels), -1)
    count = 0
    for unit in range(len(labels)):
        if result[unit] >= 0:
            continue
        near = (labels == labels[unit]) & (result < 0) & (np.abs(shadow - shadow[unit]) <= blur + blur[unit])
        others = np.flatnonzero(near)
        equal = (np.abs(wide[others] - wide[unit]) <= miss[others] + miss[unit]).all(axis=1)
        result[others[equal]] = count
        count += 1
    return result
