"""How a dim grows: from old units to new ones, and how maps compose along an axis.

A dim of n units grown to q has a pair (E, D) with D E = I: E copies old units to new ones, D says what readers
of the new units must weigh them by. Both are held as vectors: unit j of the student is a copy of unit `index[j]`
of the teacher, and is weighed by `weight[j]`, which sums to 1 over the copies of one unit.

    replicate   Net2WiderNet (paper, section 2.3): old units in place, new ones copies of random old ones
    uniform     every unit copied equally often, for dims that a statistic reads
    zero_out    new units of their own, which nobody reads yet: exact where no statistic reads the dim
    zero_in     new units that compute 0 = phi(0) and are read at random
    random_pad  the paper's baseline: new units of their own, read at random. Not exact.
    mean_pad    whole copies of all units, and then units that hold their mean, for LayerNormalization
    zero_pad    the same with units that hold zero, for RMSNormalization
    prior       new classes: no weights yet, and a bias that gives each a chosen probability
    never       new classes under a softmax: no weights yet, and so much is taken off that their probability is 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, Product, resolve
from onnx_net2net.algebra.floats import is_float

Kind = Literal["replicate", "zero_out", "zero_in", "random_pad"]
KINDS: tuple[Kind, ...] = ("replicate", "zero_out", "zero_in", "random_pad")
ORIGINS = (*KINDS, "mean", "prior", "never")
"""How a unit came about; "mean" ones pad a dim that a LayerNormalization reads, the last two are new classes."""

NEVER = -1e4
"""A logit whose exponential is 0 in every format, half precision included."""


@dataclass(frozen=True, eq=False)
class Map:
    """How the units of a student axis come from those of the teacher's.

    Attributes:
        old: Number of units of the teacher.
        index: int64 [q], the teacher's unit that each unit of the student copies.
        weight: float64 [q], by which readers of the copies weigh them.
        kind: int8 [q], position in `ORIGINS` of the way a unit came about; 0 for old units and copies.
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
        """Whether all copies of a unit that are weighed have the same share."""
        return bool(np.all((self.weight == 1) | np.isclose(self.weight, _even(self), rtol=1e-9, atol=0)))

    def __repr__(self) -> str:
        return f"Map({self.old} -> {self.new})"


Growth = Mapping[Dim, Map]


def identity(size: int) -> Map:
    """Return the map of a dim that does not grow."""
    return Map(size, np.arange(size), np.ones(size), np.zeros(size, np.int8), np.ones(size, bool))


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
    _, starts, counts = np.unique(map.index[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
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
    counts = np.bincount(map.index[map.weight > 0], minlength=map.old)
    read = np.flatnonzero(map.weight > 0)
    order = read[np.argsort(map.index[read], kind="stable")]
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[map.index[order]]
    power = 2 ** np.floor(np.log2(np.maximum(counts, 1))).astype(np.int64)
    larger = rank < (2 * power - counts)[map.index[order]]
    weight = np.zeros(map.new)
    weight[order] = np.where(larger, 1.0, 0.5) / power[map.index[order]]
    return replace(map, weight=weight)


def padded(old: int, new: int, kind: str) -> Map:
    """Keep the old units and add `new - old` units that are no copies; readers weigh them by 0."""
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


def compose(axis: Axis, growth: Growth, weighed: Collection[Dim] | None = None) -> Map:
    """Return the map of an axis from those of its dims.

    Args:
        axis: Any expression over dims.
        growth: Maps of the dims that grow.
        weighed: Dims whose weights count (all by default); for the others the weight is 1.
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        own = growth.get(axis)
        if own is None:
            return identity(axis.size)
        if weighed is not None and axis not in weighed:
            return Map(own.old, own.index, np.ones(own.new), own.kind, own.first)
        return own
    parts = [compose(part, growth, weighed) for part in axis.parts]
    if isinstance(axis, Product):
        result = parts[0]
        for part in parts[1:]:
            result = outer(result, part)
        return result
    offsets = np.cumsum([0] + [part.old for part in parts])
    return Map(
        int(offsets[-1]),
        np.concatenate([part.index + offset for part, offset in zip(parts, offsets[:-1], strict=True)]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.kind for part in parts]),
        np.concatenate([part.first for part in parts]),
    )


def outer(a: Map, b: Map) -> Map:
    """Return the map of a product of two axes, row-major."""
    return Map(
        a.old * b.old,
        (a.index[:, None] * b.old + b.index).reshape(-1),
        (a.weight[:, None] * b.weight).reshape(-1),
        np.maximum(a.kind[:, None], b.kind).reshape(-1),
        (a.first[:, None] & b.first).reshape(-1),
    )


def new_size(axis: Axis, growth: Growth) -> int:
    """Return the size of an axis in the student."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return growth[axis].new if axis in growth else axis.size
    sizes = [new_size(part, growth) for part in axis.parts]
    return int(np.prod(sizes)) if isinstance(axis, Product) else sum(sizes)


@dataclass(frozen=True)
class Side:
    """How one axis of a weight grows.

    Attributes:
        map: The map of the axis.
        reads: The weight reads the axis (it is summed over), so that copies are weighed; else it makes the axis.
        spread: Whether copies may be weighed unevenly: all that are copies of one unit are summed together.
        silent: Whether units that start at zero still hold zero where they are read, so that they are read at random.
        scale: Reads what a later node multiplies the units by, so that padding holds the mean of the products.
        shares: float64 [q], by what gradients of the units are multiplied, where that does not follow from `reads`:
            other copies on the axis than those that the weight weighs are weighed by somebody else.
    """

    map: Map
    reads: bool = False
    spread: bool = True
    silent: bool = False
    scale: Callable[[], np.ndarray] | None = None
    shares: np.ndarray | None = None

    @property
    def learned(self) -> np.ndarray:
        """By what gradients of the units are multiplied: the shares that others weigh the copies by."""
        if self.shares is not None:
            return self.shares
        return np.ones(self.map.new) if self.reads else self.map.weight

    @property
    def key(self) -> tuple[object, ...]:
        """What tells apart sides that grow a weight differently."""
        arrays = (self.map.index, self.map.kind, *((self.map.weight,) if self.reads else ()))
        spread = self.spread and self.map.is_even  # other shares are what they are
        return self.reads, spread, self.silent, id(self.scale), *(array.tobytes() for array in arrays)


@dataclass(frozen=True)
class Style:
    """How new values are drawn.

    Attributes:
        seed: Seed of every random draw; each tensor draws from a stream of its own.
        spread: Standard deviation, relative to each weight, of what is added to one copy's share of it and subtracted
            from another's, so that copies learn different things. Exact (growth-math, N of section 1): no share
            is much larger than the weight, what is zero stays zero, and whole weights get shares exact in binary.
        noise: Standard deviation, relative to the tensor's, of noise on the incoming weights of all but the first
            copy (paper, section 2.3). Not exact.
        prior: The probability at which new classes start.
    """

    seed: int = 0
    spread: float = 0.3
    noise: float = 0.0
    prior: float = 0.01

    @property
    def logit(self) -> float:
        """The logit at which a new class starts."""
        return float(np.log(self.prior / (1 - self.prior))) if self.prior else NEVER


Filler = Literal["own", "copy", "zero", "size", "bias"]
"""What a weight has for units that are no copies: values of their own, those of a copy (where it scales units one by
one), zero (the shift of a normaliser), its root mean square (where `Side.scale` reads it), or the logit of the prior
(where it is the bias of new classes)."""


Deviation = Callable[[], float]
"""Estimates the standard deviation of a weight when it is asked for."""


def grow(
    values: np.ndarray,
    sides: list[Side],
    style: Style,
    rng: np.random.Generator,
    filler: Filler,
    factor: float = 1.0,
    zero: np.ndarray | None = None,
) -> np.ndarray:
    """Grow a weight along its axes.

    Args:
        values: The teacher's weight.
        sides: For each axis, how it grows.
        style: How new values are drawn.
        rng: Where they are drawn from.
        filler: What it has for units that are no copies.
        factor: By which all of it is multiplied.
        zero: What integers are counted from, in a shape that broadcasts with them, where copies share them.

    Returns:
        The student's weight, of the same dtype.
    """
    if zero is not None and any(side.reads for side in sides):
        return _grow_integers(values, sides, style, rng, zero)
    result = values
    for position, side in enumerate(sides):
        if not side.map.is_identity:
            result = np.take(result, side.map.index, axis=position)
    result = np.array(result) if result is values else result
    if not is_float(result.dtype):
        return result
    deviation = cache(partial(_deviation, values))
    for position, side in enumerate(sides):
        view = np.moveaxis(result, position, 0)
        if side.map.is_identity:
            continue
        if side.reads:
            _weigh(view, side, style, deviation, rng)
        else:
            _make(view, side, style, deviation, rng, filler)
    if factor != 1.0:
        result *= np.array(factor, result.dtype)
    return result


def _grow_integers(
    values: np.ndarray, sides: list[Side], style: Style, rng: np.random.Generator, zero: np.ndarray
) -> np.ndarray:
    """Grow integers axis by axis; copies that are summed share the distance to the zero point in whole parts."""
    wide = np.int64 if values.dtype.itemsize > 2 else np.int32
    zero = zero.reshape((1,) * (values.ndim - zero.ndim) + zero.shape).astype(wide)
    low, high = (int(choose([choose(x.astype(wide)) for x in (values, zero)])) for choose in (np.min, np.max))
    result = values
    for position, side in enumerate(sides):
        if side.map.is_identity:
            continue
        result = np.take(result, side.map.index, axis=position)
        if zero.shape[position] > 1:
            zero = np.take(zero, side.map.index, axis=position)
        if side.reads:
            parts, least, most = (np.moveaxis(x - zero, position, 0) for x in (result.astype(wide), low, high))
            _share(parts, side, style, rng, least, most)
            result = (np.moveaxis(parts, 0, position) + zero).astype(values.dtype)
    return result


def _share(
    view: np.ndarray,
    side: Side,
    style: Style,
    rng: np.random.Generator,
    least: np.ndarray,
    most: np.ndarray,
) -> None:
    """Divide integers among copies in whole parts from `least` to `most`, unevenly.

    The c parts floor((v + k) / c), k = 0 ... c - 1, sum to v (Hermite's identity) and lie between 0 and v.
    """
    read = np.flatnonzero(side.map.weight > 0)
    order = read[np.argsort(side.map.index[read], kind="stable")]
    _, starts, counts = np.unique(side.map.index[order], return_index=True, return_counts=True)
    column = (-1, *(1,) * (view.ndim - 1))
    rank = (np.arange(len(order)) - np.repeat(starts, counts)).astype(view.dtype)
    count = np.repeat(counts, counts).astype(view.dtype)
    whole = view[order[rank > 0]]
    parts = (view[order] + rank.reshape(column)) // count.reshape(column)
    view[...] = 0
    view[order] = parts
    copies = rank > 0
    if not (style.spread and side.spread and copies.any() and view.ndim > 1):
        return
    firsts = np.repeat(order[starts], counts - 1)
    room = np.minimum(view - least, most - view)
    room = np.minimum(room[order[copies]], room[firsts] // (count[copies] - 1).reshape(column))
    moved = np.rint(_draw(room.shape, style.spread, rng, np.dtype(np.float32)) * whole).astype(view.dtype)
    moved = np.clip(moved, -room, room)
    view[order[copies]] += moved
    np.subtract.at(view, firsts, moved)


def _deviation(values: np.ndarray) -> float:
    """Estimate the standard deviation from a regular sample."""
    sample = values.reshape(-1)[:: max(1, values.size // 65536)].astype(np.float64)
    return float(sample.std()) if sample.size > 1 else 0.0


def _weigh(view: np.ndarray, side: Side, style: Style, deviation: Deviation, rng: np.random.Generator) -> None:
    """Divide the outgoing weights of copies among them, unevenly, so that they sum to what they were.

    A unit itself gets what its copies leave. Shares are whole multiples of the last place of what is shared, so that
    their sum is exact, in the few bits of half precision too.
    """
    map = side.map
    uneven = style.spread and side.spread and view.ndim > 1 and map.is_even
    if side.spread and not uneven and map.is_even and _is_whole(view):
        map = halved(map)
    shared = ~map.first & (map.kind == 0) & (map.weight > 0) & (map.weight != 1)
    copies = np.flatnonzero(shared) if side.spread else np.zeros(0, np.intp)
    divided = np.zeros(map.new, bool)
    if len(copies):
        copies = copies[np.argsort(map.index[copies], kind="stable")]
        sources, starts = np.unique(map.index[copies], return_index=True)
        originals = np.flatnonzero(map.first)
        by_source = originals[np.argsort(map.index[originals])]
        originals = by_source[np.searchsorted(map.index[by_source], sources)]
        divided[copies] = divided[originals] = True
        wide = np.promote_types(view.dtype, np.float32)
        shares = view[copies]
        if uneven:
            _share_unevenly(shares, map.weight[copies], style.spread, rng)
        else:
            shares *= _column(map.weight[copies], view)
        view[copies] = shares
        view[originals] = view[originals] - np.add.reduceat(shares.astype(wide, copy=False), starts, axis=0)
    scaled = np.flatnonzero((map.weight != 1.0) & ~divided)
    if len(scaled):
        view[scaled] *= _column(map.weight[scaled], view)
    at_random = _units(side.map, "random_pad", *(("zero_in", "mean") if side.silent else ()))
    if len(at_random):
        view[at_random] = _draw((len(at_random), *view.shape[1:]), deviation(), rng, view.dtype)


def _share_unevenly(view: np.ndarray, weights: np.ndarray, spread: float, rng: np.random.Generator) -> None:
    """Multiply the weights of copies, in place, by uneven shares.

    A share is an odd multiple of a power of two, so that no share is zero, two copies have never the same, and sums of
    whole numbers stay exact; 1 / 512 leaves 15 of float32's 24 bits for the sum.
    """
    step = 2.0 ** -max(8, math.ceil(8 + math.log2(0.3 / spread)))
    places = np.spacing(view)
    shares = _draw(view.shape, spread, rng, np.dtype(np.float32))
    shares += _column(weights, shares)
    shares /= step
    np.floor(shares, out=shares)
    shares += 0.5
    shares *= step
    view *= shares.astype(view.dtype, copy=False)
    view /= places
    np.rint(view, out=view)
    view *= places


def _is_whole(view: np.ndarray) -> bool:
    """Tell whether all weights are whole numbers, of which sums may have to be exact (in front of Sign)."""
    return bool(np.all(view == np.rint(view)))


def _make(
    view: np.ndarray, side: Side, style: Style, deviation: Deviation, rng: np.random.Generator, filler: Filler
) -> None:
    """Give new units that are no plain copies their incoming weights."""
    map = side.map
    if filler == "copy":
        return
    own = _units(map, "zero_out", "random_pad")
    if len(own) and view.ndim > 1:
        view[own] = _draw((len(own), *view.shape[1:]), deviation(), rng, view.dtype)
    view[_units(map, "zero_in")] = 0
    view[_units(map, "prior", "never")] = style.logit if filler == "bias" else 0
    mean = _units(map, "mean")
    if len(mean):
        units = view[map.first]
        view[mean] = 0 if filler == "zero" else _size(units) if filler == "size" else _mean(units, side.scale)
    if style.noise and view.ndim > 1:
        copies = np.flatnonzero(~map.first & (map.kind == 0))
        view[copies] += _draw((len(copies), *view.shape[1:]), style.noise * deviation(), rng, view.dtype)


def _mean(units: np.ndarray, scale: Callable[[], np.ndarray] | None) -> np.ndarray:
    """Return the mean of units, or that of scaled units over the scale that padding has."""
    if scale is None:
        mean = units.mean(axis=0, dtype=np.float64)
    else:
        factors = scale().reshape(-1)
        mean = np.tensordot(factors.astype(np.float64), units.astype(np.float64), 1)
        mean /= len(factors) * float(_size(factors))
    return np.asarray(mean).astype(units.dtype)


def _size(values: np.ndarray) -> np.ndarray:
    """Return the root mean square of values, or 1 where they all are 0: what is never 0 can be divided by."""
    size: np.ndarray = np.sqrt(np.mean(np.square(values.astype(np.float64)))).astype(values.dtype)
    return size if size else np.ones_like(size)


def _column(weights: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Shape the weights of units for multiplication into all that the units have."""
    return weights.reshape(-1, *(1,) * (view.ndim - 1)).astype(view.dtype)


def _units(map: Map, *origins: str) -> np.ndarray:
    """Return the places of the units that came about in one of these ways."""
    if not map.kind.any():
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.isin(map.kind, [ORIGINS.index(origin) for origin in origins]))


def _draw(shape: tuple[int, ...], deviation: float, rng: np.random.Generator, dtype: np.dtype) -> np.ndarray:
    """Draw uniformly with the given standard deviation, which is much cheaper than a normal draw."""
    values = rng.random(shape, dtype=np.float32)
    values -= 0.5
    values *= deviation * 12**0.5
    return values.astype(dtype, copy=False)
