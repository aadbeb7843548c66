"""How a dim grows: from old units to new ones, and how maps compose along an axis.

When a dim grows from n to q units, a pair of matrices (E, D) with D E = I describes it. E copies old units to new ones;
D multiplies the units by their shares where a layer sums over them. Both are held as vectors: unit j of the student is
a copy of unit `index[j]` of the teacher and has the share `weight[j]`. The shares of the copies of a unit sum to 1.

    replicate   Net2WiderNet (paper, section 2.3): old units in place, new ones are copies of random old ones
    uniform     every unit is copied equally often, for dims that a statistic reads
    zero_out    new units with random incoming and zero outgoing weights: exact where no statistic reads the dim
    zero_in     new units that compute 0 = phi(0), with random outgoing weights
    random_pad  the paper's baseline: new units with random weights on both sides. Not exact.
    mean_pad    whole copies of all units, and then units that hold their mean, for LayerNormalization
    zero_pad    whole copies of all units, and then units that hold zero, for RMSNormalization
    split       copies of experts side by side; masks let a router choose one copy at a time
    lift        copies of experts with such a low bias that a router chooses them only when a balancer raises it
    prior       new classes with zero weights, and a bias that gives each a chosen probability
    never       new classes under a softmax, with zero weights and a logit so low that their probability is 0
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, TypeVar

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, Product, resolve

Value = TypeVar("Value")
MapKind = Literal["replicate", "zero_out", "zero_in", "random_pad"]
MAP_KINDS: tuple[MapKind, ...] = ("replicate", "zero_out", "zero_in", "random_pad")
ORIGINS = (*MAP_KINDS, "mean", "prior", "never", "lifted")
"""How a unit came about. "mean": it pads a dim that a LayerNormalization reads. "prior" and "never": it is a new class.
"lifted": it is a copy of an expert that no router chooses yet."""

NEVER = -1e4
"""A logit whose exponential is 0 in every format, half precision included."""


@dataclass(frozen=True, eq=False)
class Map:
    """How the units of a student axis come from those of the teacher's.

    Attributes:
        old: Number of units of the teacher.
        index: int64 [q], the teacher's unit that each unit of the student copies.
        weight: float64 [q], the share of each unit: its factor where a layer sums over the units.
        kind: int8 [q], the position in `ORIGINS` of the way in which each unit came about; 0 for old units and copies.
        first: bool [q], whether the unit is the teacher's own rather than a new one.
    """

    old: int
    index: np.ndarray
    weight: np.ndarray
    kind: np.ndarray
    first: np.ndarray

    @property
    def new(self) -> int:
        """Number of units of the student."""
        return len(self.index)

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.new == self.old and bool((self.index == np.arange(self.old)).all())

    @property
    def is_even(self) -> bool:
        """Whether all copies of a unit that have a share have the same one."""
        return bool(np.all((self.weight == 1) | np.isclose(self.weight, _even(self), rtol=1e-9, atol=0)))

    @staticmethod
    def concat(maps: Sequence[Map]) -> Map:
        """Return the map of axes laid end to end."""
        offsets = np.cumsum([0, *(map.old for map in maps)])
        index = np.concatenate([map.index + offset for map, offset in zip(maps, offsets[:-1], strict=True)])
        weight, kind, first = (np.concatenate([getattr(map, name) for map in maps]) for name in _BESIDES)
        return Map(int(offsets[-1]), index, weight, kind, first)

    def outer(self, inner: Map) -> Map:
        """Return the map of a product of two axes, row-major."""
        return Map(
            self.old * inner.old,
            np.add.outer(self.index * inner.old, inner.index).reshape(-1),
            np.multiply.outer(self.weight, inner.weight).reshape(-1),
            np.maximum.outer(self.kind, inner.kind).reshape(-1),
            np.logical_and.outer(self.first, inner.first).reshape(-1),
        )

    def part(self, places: np.ndarray, old: int, index: np.ndarray) -> Map:
        """Return the map of the student's units at some places, which copy the units `index` of `old` ones."""
        return Map(old, index, self.weight[places], self.kind[places], self.first[places])

    def __repr__(self) -> str:
        return f"Map({self.old} -> {self.new})"


def is_never(map: Map | None) -> bool:
    """Tell whether a map adds classes that start at a probability of 0."""
    return map is not None and bool((map.kind == ORIGINS.index("never")).any())


Growth = Mapping[Dim, Map]

_BESIDES = ("weight", "kind", "first")


def identity(size: int) -> Map:
    """Return the map of a dim that does not grow."""
    return keep(size, np.arange(size))


def keep(old: int, units: np.ndarray) -> Map:
    """Return the map of a dim that keeps some of its units, in this order, and drops the others."""
    size = len(units)
    return Map(old, units, np.ones(size), np.zeros(size, np.int8), np.ones(size, bool))


def replicate(old: int, new: int, rng: np.random.Generator) -> Map:
    """Keep the old units in place and add copies of units drawn at random (Net2WiderNet, section 2.3)."""
    return from_index(old, np.concatenate([np.arange(old), rng.integers(0, old, new - old)]))


def uniform(old: int, new: int) -> Map:
    """Copy every unit new / old times, which keeps means, variances and norms up to a factor.

    Raises:
        ValueError: If `new` is not a multiple of `old`.
    """
    if new % old:
        raise ValueError(f"{new} is not a multiple of {old}")
    return in_turn(old, new)


def in_turn(old: int, new: int) -> Map:
    """Copy the units one after another, from the first again after the last, until there are enough."""
    return from_index(old, np.arange(new) % old)


def from_index(old: int, index: np.ndarray) -> Map:
    """Return the map of copies `index`; the copies of a unit share its weight equally."""
    counts = np.bincount(index, minlength=old)
    first = np.zeros(len(index), bool)
    first[np.unique(index, return_index=True)[1]] = True
    return Map(old, index.astype(np.int64), 1.0 / counts[index], np.zeros(len(index), np.int8), first)


def split_copies(counts: np.ndarray) -> Map:
    """Return the map in which each unit gets so many copies, side by side; only one copy is in use at a time."""
    map = from_index(len(counts), np.repeat(np.arange(len(counts)), counts))
    return replace(map, weight=np.ones(map.new))


def ranks(index: np.ndarray) -> np.ndarray:
    """Return which copy of its unit each unit is: 0, 1, ..."""
    order, rank = np.argsort(index, kind="stable"), np.empty(len(index), np.int64)
    rank[order] = runs(index[order])[2]
    return rank


def lifted(counts: np.ndarray) -> Map:
    """Return the map in which copies that no router chooses follow the old units; `counts` includes the old units."""
    old = len(counts)
    more = np.repeat(np.arange(old), counts - 1)
    map = split_copies(np.ones(old, np.int64))
    index = np.concatenate([map.index, more])
    kind = np.where(np.arange(len(index)) < old, 0, ORIGINS.index("lifted")).astype(np.int8)
    return Map(old, index, np.ones(len(index)), kind, np.arange(len(index)) < old)


def runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where equal numbers that lie together start, how many they are, and the rank of each among its equals."""
    _, starts, counts = np.unique(ordered, return_index=True, return_counts=True)
    return starts, counts, np.arange(len(ordered)) - np.repeat(starts, counts)


def uneven(map: Map, spread: float, rng: np.random.Generator) -> Map:
    """Give the copies of a unit shares of different sizes, each the same for all that read it.

    So a copy's gradient is its share of the unit's, whatever the readers' gradients are. The logarithms of the shares
    of one unit are about equally far apart, with a deviation of about `spread`, and in random order: no two are equal,
    and none is near 0. Shares are multiples of a power of two, so that sums of whole numbers stay exact.
    """
    if not spread:
        return map
    copies = np.flatnonzero((map.weight > 0) & (map.kind == 0))
    order = copies[np.lexsort((rng.random(len(copies)), map.index[copies]))]
    starts, counts, rank = runs(map.index[order])
    count = np.repeat(counts, counts)
    sizes = np.exp(spread * 3**0.5 * (2 * rank / np.maximum(count - 1, 1) - 1))
    weight = map.weight.copy()
    steps = 2.0 ** (8 + np.ceil(np.log2(count)))
    shares = (np.floor(sizes / np.repeat(np.add.reduceat(sizes, starts), counts) * steps) + 0.5) / steps
    last = np.cumsum(counts) - 1
    shares[last] = 1 - (np.add.reduceat(shares, starts) - shares[last])
    weight[order] = shares
    return replace(map, weight=weight)


def evened(map: Map) -> Map:
    """Return the map with equal shares for all copies of a unit."""
    return replace(map, weight=_even(map))


def _even(map: Map) -> np.ndarray:
    read = map.weight > 0
    counts = np.bincount(map.index[read], minlength=map.old)
    return np.where(read, 1 / np.maximum(counts, 1)[map.index], 0.0)


def halved(map: Map) -> Map:
    """Return the map with shares of copies that are powers of two, the nearest to even ones: 1/2, 1/4, 1/4."""
    read = np.flatnonzero(map.weight > 0)
    order = read[np.argsort(map.index[read], kind="stable")]
    _, counts, rank = runs(map.index[order])
    count = np.repeat(counts, counts)
    power = 2 ** np.floor(np.log2(count)).astype(np.int64)
    weight = np.zeros(map.new)
    weight[order] = np.where(rank < 2 * power - count, 1.0, 0.5) / power
    return replace(map, weight=weight)


def padded(old: int, new: int, kind: str) -> Map:
    """Return the map that keeps the old units and adds `new - old` units that are no copies; their share is 0."""
    added = new - old
    return Map(
        old,
        np.concatenate([np.arange(old), np.arange(added) % old]),
        np.concatenate([np.ones(old), np.zeros(added)]),
        np.concatenate([np.zeros(old, np.int8), np.full(added, ORIGINS.index(kind), np.int8)]),
        np.arange(new) < old,
    )


def pad(old: int, new: int, held: str) -> Map:
    """Copy all units as often as they fit and pad the rest with units that hold their "mean" or "zero".

    Readers of the copies share the weight; the padding is weighed by 0.
    """
    times = new // old
    rest = np.arange(new) >= times * old
    origin = ORIGINS.index("mean" if held == "mean" else "zero_in")
    return Map(
        old,
        np.arange(new) % old,
        np.where(rest, 0.0, 1.0 / times),
        np.where(rest, origin, 0).astype(np.int8),
        np.arange(new) < old,
    )


def evaluate(
    axis: Axis,
    leaf: Callable[[Dim], Value],
    product: Callable[[list[Value]], Value],
    concat: Callable[[list[Value]], Value],
) -> Value:
    """Compute something of an axis from the same of its dims.

    Args:
        axis: Any expression over dims.
        leaf: Computes it for a dim; called in layout order.
        product: Computes it for a product, from its factors.
        concat: Computes it for a concatenation, from its parts.
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return leaf(axis)
    parts = [evaluate(part, leaf, product, concat) for part in axis.parts]
    return product(parts) if isinstance(axis, Product) else concat(parts)


def compose(axis: Axis, growth: Growth, weighed: Collection[Dim] | None = None) -> Map:
    """Return the map of an axis from those of its dims.

    Args:
        axis: Any expression over dims.
        growth: Maps of the dims that grow.
        weighed: Dims whose weights count (all by default); for the others the weight is 1.
    """

    def map_of(dim: Dim) -> Map:
        own = growth.get(dim)
        if own is None:
            return identity(dim.size)
        return own if weighed is None or dim in weighed else replace(own, weight=np.ones(own.new))

    return evaluate(axis, map_of, lambda maps: reduce(Map.outer, maps), Map.concat)


def new_size(axis: Axis, growth: Growth) -> int:
    """Return the size of an axis in the student."""

    def size_of(dim: Dim) -> int:
        return growth[dim].new if dim in growth else dim.size

    return evaluate(axis, size_of, lambda sizes: int(np.prod(sizes)), lambda sizes: sum(sizes))


Numbers = tuple[np.ndarray, int]
"""For each unit of a dim or an axis a number, -1 for none, and how many numbers there are."""


def axis_numbers(axis: Axis, numbers: Callable[[Dim], Numbers]) -> Numbers:
    """Number the units of an axis, when those of its dims have numbers; a unit without a number leaves none.

    Args:
        axis: Any expression over dims.
        numbers: The numbers of the units of a dim, which is asked for in layout order.
    """

    def outer(one: Numbers, other: Numbers) -> Numbers:
        (places, size), (inner, count) = one, other
        found = np.where(places[:, None] < 0, -1, np.where(inner < 0, -1, places[:, None] * count + inner))
        return found.reshape(-1), size * count

    def concat(parts: Sequence[Numbers]) -> Numbers:
        offsets = np.cumsum([0, *(size for _, size in parts)])
        moved = [np.where(own < 0, -1, own + offset) for (own, _), offset in zip(parts, offsets[:-1], strict=True)]
        return np.concatenate(moved), int(offsets[-1])

    return evaluate(axis, numbers, lambda parts: reduce(outer, parts), concat)


def units_of(axis: Axis, dim: Dim) -> np.ndarray:
    """Return which unit of a dim each unit of an axis belongs to, -1 for none: int64 [size of the axis]."""
    return evaluate(
        axis,
        lambda other: np.arange(dim.size) if other is dim else np.full(other.size, -1),
        lambda parts: reduce(lambda outer, inner: np.maximum.outer(outer, inner).reshape(-1), parts),
        np.concatenate,
    )
