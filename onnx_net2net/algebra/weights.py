"""The law: how an array follows the maps of its axes.

A weight W' = E W D is copied by E where it makes an axis, and divided by D where it sums over one. All who change the
size of an array use this module: widen and checkpoint (`WeightGrowth`), the state of an optimizer (the same, of
gradients), narrow (`fold`) and transfer (`clip`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import starmap
from typing import Literal

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.maps import NEVER, ORIGINS, Map, halved


@dataclass(frozen=True)
class AxisGrowth:
    """How one axis of a weight grows.

    Attributes:
        map: The map of the axis.
        reads: The weight sums over the axis, so that copies are weighed; else it makes the axis.
        spread: Whether copies may be weighed unevenly: all copies of one unit are summed together.
        silent: Whether new units are still zero where this weight reads them, so that its values for them may be
            random.
        scale: Reads what a later node multiplies the units by, so that padding holds the mean of the products.
        shares: float64 [q], what gradients of the units are multiplied by, where that does not follow from `reads`:
            the axis also has copies that another weight weighs.
        parted: Whether copies that the weight makes differ, by parts of it that add up to nothing.
    """

    map: Map
    reads: bool = False
    spread: bool = True
    silent: bool = False
    scale: Callable[[], np.ndarray] | None = None
    shares: np.ndarray | None = None
    parted: bool = False

    @property
    def learned(self) -> np.ndarray:
        """What gradients of the units are multiplied by: the shares that others weigh the copies by."""
        if self.shares is not None:
            return self.shares
        return np.ones(self.map.new) if self.reads else self.map.weight

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for axes that grow a weight in the same way."""
        arrays = (self.map.index, self.map.kind, *((self.map.weight,) if self.reads else ()))
        spread = self.spread and self.map.is_even  # other shares are what they are
        return self.reads, spread, self.silent, self.parted, id(self.scale), *(array.tobytes() for array in arrays)


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


Filler = Literal["own", "copy", "zero", "size", "bias", "never", "below"]
"""What a weight has for units that are no copies: values of their own, those of a copy (where it scales units one by
one), zero (the shift of a normaliser), its root mean square (where `AxisGrowth.scale` reads it), or the logit of the
prior (where it is the bias of new classes). Copies of experts have a bias that rules them out: a logit that is never
chosen, or what lies by more than 1 below all others (where it is added to probabilities)."""

_CLEAR = 1e-3
"""By how much more than 1 a bias lies below all others."""

Held = Literal["weight", "gradient", "square"]
"""What an array holds for each element of a weight: its value, its gradient (or a mean of these), or their square."""

Deviation = Callable[[], float]
"""Estimates the standard deviation of a weight when it is asked for."""


@dataclass(frozen=True)
class WeightGrowth:
    """How a weight grows.

    Attributes:
        axes: How each of its axes grows.
        filler: What it has for units that are no copies.
        factor: What all of it is multiplied by.
        style: How new values are drawn.
    """

    axes: tuple[AxisGrowth, ...]
    filler: Filler = "own"
    factor: float = 1.0
    style: Style = field(default_factory=Style)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grown weight."""
        return tuple(axis.map.new for axis in self.axes)

    @property
    def is_identity(self) -> bool:
        """Whether no axis changes."""
        return all(axis.map.is_identity for axis in self.axes)

    def apply(self, values: Array, salt: int, held: Held = "weight", zero: Array | None = None) -> Array:
        """Grow an array that has the shape of the teacher's weight.

        Args:
            values: The array.
            salt: What tells the random draws of one weight from those of another.
            held: What the array holds. The law of gradients is m' = D^T m E^T (growth-math.md, section 3.2).
            zero: What integers are counted from, in a shape that broadcasts with them, where copies share them.

        Returns:
            An array of the student's shape and the same dtype; the same whenever it is asked for.
        """
        if held == "weight":
            rng = np.random.Generator(np.random.SFC64([self.style.seed, salt]))
            return grow(values, self.axes, self.style, rng, self.filler, self.factor, zero)
        power = 1 if held == "gradient" else 2
        for position, axis in enumerate(self.axes):
            if axis.map.is_identity:
                continue
            # What divided weights read has its gradient divided; units that are no copies have no past.
            share = np.where(axis.map.kind == 0, axis.learned**power, 0).astype(values.dtype)
            values = np.take(values, axis.map.index, axis=position)
            values = values * share.reshape(-1, *(1,) * (values.ndim - 1 - position))
        return values if self.factor == 1 else values / np.array(self.factor**power, values.dtype)


def grow(
    values: np.ndarray,
    axes: Sequence[AxisGrowth],
    style: Style,
    rng: np.random.Generator,
    filler: Filler,
    factor: float = 1.0,
    zero: np.ndarray | None = None,
) -> np.ndarray:
    """Grow a weight along its axes.

    Args:
        values: The teacher's weight.
        axes: For each axis, how it grows.
        style: How new values are drawn.
        rng: Where they are drawn from.
        filler: What it has for units that are no copies.
        factor: What all of it is multiplied by.
        zero: What integers are counted from, in a shape that broadcasts with them, where copies share them.

    Returns:
        The student's weight, of the same dtype.
    """
    if zero is not None and any(axis.reads for axis in axes):
        return _grow_integers(values, axes, style, rng, zero)
    result = values
    for position, axis in enumerate(axes):
        if not axis.map.is_identity:
            result = np.take(result, axis.map.index, axis=position)
    result = np.array(result) if result is values else result
    if not is_float(result.dtype):
        return result
    deviation = cache(partial(_deviation, values))
    for position, axis in enumerate(axes):
        view = np.moveaxis(result, position, 0)
        if axis.map.is_identity:
            continue
        if axis.reads:
            _weigh(view, axis, style, deviation, rng)
        else:
            _make(view, axis, style, deviation, rng, filler)
    if factor != 1.0:
        result *= np.array(factor, result.dtype)
    return result


def _grow_integers(
    values: np.ndarray, axes: Sequence[AxisGrowth], style: Style, rng: np.random.Generator, zero: np.ndarray
) -> np.ndarray:
    """Grow integers axis by axis; copies that are summed share the distance to the zero point in whole parts."""
    wide = np.int64 if values.dtype.itemsize > 2 else np.int32
    zero = zero.reshape((1,) * (values.ndim - zero.ndim) + zero.shape).astype(wide)
    low, high = (int(choose([choose(x.astype(wide)) for x in (values, zero)])) for choose in (np.min, np.max))
    result = values
    for position, axis in enumerate(axes):
        if axis.map.is_identity:
            continue
        result = np.take(result, axis.map.index, axis=position)
        if zero.shape[position] > 1:
            zero = np.take(zero, axis.map.index, axis=position)
        if axis.reads:
            parts, least, most = (np.moveaxis(x - zero, position, 0) for x in (result.astype(wide), low, high))
            _share(parts, axis, style, rng, least, most)
            result = (np.moveaxis(parts, 0, position) + zero).astype(values.dtype)
    return result


def _share(
    view: np.ndarray,
    axis: AxisGrowth,
    style: Style,
    rng: np.random.Generator,
    least: np.ndarray,
    most: np.ndarray,
) -> None:
    """Divide integers among copies in whole parts from `least` to `most`, unevenly.

    The c parts floor((v + k) / c), k = 0 ... c - 1, sum to v (Hermite's identity) and lie between 0 and v.
    """
    read = np.flatnonzero(axis.map.weight > 0)
    order = read[np.argsort(axis.map.index[read], kind="stable")]
    _, starts, counts = np.unique(axis.map.index[order], return_index=True, return_counts=True)
    column = (-1, *(1,) * (view.ndim - 1))
    rank = (np.arange(len(order)) - np.repeat(starts, counts)).astype(view.dtype)
    count = np.repeat(counts, counts).astype(view.dtype)
    whole = view[order[rank > 0]]
    parts = (view[order] + rank.reshape(column)) // count.reshape(column)
    view[...] = 0
    view[order] = parts
    copies = rank > 0
    if not (style.spread and axis.spread and copies.any() and view.ndim > 1):
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


def _weigh(view: np.ndarray, axis: AxisGrowth, style: Style, deviation: Deviation, rng: np.random.Generator) -> None:
    """Divide the outgoing weights of copies among them, unevenly, so that they sum to what they were.

    A unit itself gets what its copies leave. Shares are whole multiples of the last place of what is shared, so that
    their sum is exact, in the few bits of half precision too.
    """
    map = axis.map
    uneven = style.spread and axis.spread and view.ndim > 1 and map.is_even
    if axis.spread and not uneven and map.is_even and _is_whole(view):
        map = halved(map)
    shared = ~map.first & (map.kind == 0) & (map.weight > 0) & (map.weight != 1)
    copies = np.flatnonzero(shared) if axis.spread else np.zeros(0, np.intp)
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
    at_random = _made_as(axis.map, "random_pad", *(("zero_in", "mean") if axis.silent else ()))
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
    """Tell whether all weights are whole numbers, whose sums may have to be exact (in front of Sign)."""
    return bool(np.all(view == np.rint(view)))


def _make(
    view: np.ndarray, axis: AxisGrowth, style: Style, deviation: Deviation, rng: np.random.Generator, filler: Filler
) -> None:
    """Give new units that are no plain copies their incoming weights."""
    map = axis.map
    if filler == "copy":
        return
    own = _made_as(map, "zero_out", "random_pad")
    if len(own) and view.ndim > 1:
        view[own] = _draw((len(own), *view.shape[1:]), deviation(), rng, view.dtype)
    view[_made_as(map, "zero_in")] = 0
    view[_made_as(map, "prior", "never")] = style.logit if filler == "bias" else 0
    if filler in ("never", "below"):
        view[_made_as(map, "lifted")] = NEVER if filler == "never" else view[map.first].min() - 1 - _CLEAR
    if axis.parted and style.spread:
        _part(view, map, style.spread, rng)
    mean = _made_as(map, "mean")
    if len(mean):
        units = view[map.first]
        view[mean] = 0 if filler == "zero" else _size(units) if filler == "size" else _mean(units, axis.scale)
    if style.noise and view.ndim > 1:
        copies = np.flatnonzero(~map.first & (map.kind == 0))
        view[copies] += _draw((len(copies), *view.shape[1:]), style.noise * deviation(), rng, view.dtype)


def _part(view: np.ndarray, map: Map, spread: float, rng: np.random.Generator) -> None:
    """Make copies differ by parts of each weight, in place, that add up to nothing over the copies of a unit."""
    parts = _draw(view.shape, spread, rng, np.dtype(np.float32))
    order = np.argsort(map.index, kind="stable")
    starts = np.flatnonzero(np.diff(map.index[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    means = np.add.reduceat(parts[order], starts, axis=0) / _column(counts.astype(np.float32), parts[: len(starts)])
    parts -= means[map.index]
    view *= (1 + parts).astype(view.dtype)


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


def _made_as(map: Map, *origins: str) -> np.ndarray:
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


# --- Other sizes, where units go -------------------------------------------------------------------------------------


def fold(values: Array, labels: list[np.ndarray], squares: bool = False) -> Array:
    """Sum the units that have one label, on each axis.

    Args:
        values: A weight.
        labels: For each axis, the place of each unit in the result; -1 for units that are left out.
        squares: Whether to take the root of the sum of squares instead.

    Returns:
        The folded weight; float64 where anything was summed.
    """
    if squares and any(own.max(initial=-1) + 1 < np.count_nonzero(own >= 0) for own in labels):
        return np.asarray(np.sqrt(fold(values.astype(np.float64) ** 2, labels)))
    result = values
    for position, own in enumerate(labels):
        order = np.argsort(own, kind="stable")
        order = order[own[order] >= 0]
        _, starts = np.unique(own[order], return_index=True)
        if np.array_equal(order, np.arange(len(own))) and len(starts) == len(own):
            continue
        result = np.take(result, order, axis=position)
        if len(starts) < len(order):
            result = np.add.reduceat(result.astype(np.float64), starts, axis=position)
    return result


def window(old: int, new: int) -> tuple[slice, slice]:
    """Return which of `old` entries are copied, and to which of `new`: the middle of the longer, rounded down."""
    size = min(old, new)
    return slice((old - size) // 2, (old - size) // 2 + size), slice((new - size) // 2, (new - size) // 2 + size)


def clip(source: Array, target: Array) -> Array:
    """Return the target with the source's values in its middle: a crop along axes where the source is larger."""
    read, written = zip(*starmap(window, zip(source.shape, target.shape, strict=True)), strict=True)
    result: Array = target.copy()
    result[written] = source[read].astype(target.dtype)
    return result
