"""A weight while it grows: some rows of the student's at a time, in one pass over what they are made of.

The rows of a block are gathered from the teacher's, then the steps of the axes change them in place: one that sums
over an axis divides it among copies (`_Weighing`), one that makes the axis gives new units their values (`_Making`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.growths import AxisGrowth, Filler, Style
from onnx_net2net.algebra.maps import NEVER, ORIGINS, Map, halved
from onnx_net2net.algebra.noise import Noise
from onnx_net2net.algebra.rows import Source, row_blocks
from onnx_net2net.algebra.shares import Shared, share_bits, shared_parts

Draw = Callable[[int, int], Noise]
"""Makes so many random numbers for each of so many rows."""

_CLEAR = 1e-3
"""By how much more than 1 a bias lies below all others."""

_SAMPLE = 65536
"""Elements by which the deviation of a weight is estimated."""


class Growing:
    """A weight while it grows: any of its rows, which are the same whichever others are made, and in what order.

    Args:
        source: The teacher's weight.
        axes: For each axis, how it grows.
        style: How new values are drawn.
        rng: Where they are drawn from.
        filler: What it has for units that are no copies.
        factor: What all of it is multiplied by.
    """

    def __init__(
        self,
        source: Source,
        axes: Sequence[AxisGrowth],
        style: Style,
        rng: np.random.Generator,
        filler: Filler,
        factor: float = 1.0,
    ) -> None:
        self._shape, self._dtype = tuple(axis.map.new for axis in axes), source.dtype
        self._source, self._read = source, source.rows()
        self._index = axes[0].map.index if axes else np.zeros(0, np.int64)
        self._gathered = [_Gathering(axis.map, k) for k, axis in enumerate(axes) if k and not axis.map.is_identity]
        self._steps: list[_Weighing | _Making | _Parting] = []
        self._factor = factor if is_float(source.dtype) else 1.0
        for position, axis in enumerate(axes) if is_float(source.dtype) else ():
            if not axis.map.is_identity:
                own = _Axis(position, axis, source, self._shape)
                making = partial(_Making, filler=filler, gather=self._gather)
                self._steps.append((_Weighing if axis.reads else making)(own, style, rng))
                if axis.parted and style.spread:
                    self._steps.append(_Parting(own, style, rng))

    def rows(self, places: Array) -> Array:
        """Return some rows of the student's weight, by their numbers."""
        block = self._gather(self._read(self._index[places]))
        for step in self._steps:
            step.apply(block, places)
        if self._factor != 1.0:
            block *= np.array(self._factor, block.dtype)
        return block

    def _gather(self, block: Array) -> Array:
        """Copy the units of a block's rows to their places."""
        for gathering in self._gathered:
            block = gathering.apply(block)
        return block

    def whole(self) -> Array:
        """Return all of the student's weight."""
        if not self._shape:
            return np.array(self._source())
        result = np.empty(self._shape, self._dtype)
        for places in row_blocks(result.shape, result.itemsize):
            result[places[0] : places[-1] + 1] = self.rows(places)
        return result


class _Gathering:
    """Copies the units of an axis, which is not the first, to their places."""

    def __init__(self, map: Map, axis: int) -> None:
        self._axis = axis
        index = map.index
        self._kept = map.old if np.array_equal(index[: map.old], np.arange(map.old)) else 0
        breaks = np.flatnonzero(np.diff(index) != 1) + 1
        self._grain = math.gcd(map.old, map.new, *breaks.tolist(), *index[[0, *breaks]].tolist())
        self._index = index if self._kept else index[:: self._grain] // self._grain

    def apply(self, block: Array) -> Array:
        before, behind = block.shape[: self._axis], block.shape[self._axis + 1 :]
        if not self._kept:  # runs of units are copied at once
            parts = block.reshape(*before, -1, self._grain * math.prod(behind))
            return np.take(parts, self._index, axis=self._axis).reshape(*before, -1, *behind)
        result = np.empty((*before, len(self._index), *behind), block.dtype)
        before_it = (slice(None),) * self._axis
        kept, made = (*before_it, slice(self._kept)), (*before_it, slice(self._kept, None))
        result[kept] = block
        result[made] = np.take(block, self._index[self._kept :], axis=self._axis)
        return result


class _Units:
    """Some units of an axis that grows, in the blocks of a weight.

    Args:
        axis: The number of the axis; 0 where the units are the rows themselves.
        units: The student's places of the units.
        shape: The shape of the student's weight.
        draw: Makes random numbers for all that the units have, if there shall be some.
    """

    def __init__(self, axis: int, units: Array, shape: tuple[int, ...], draw: Draw | None = None) -> None:
        self.units = units
        self._axis, self._shape = axis, shape
        self._number = np.full(shape[axis], -1)
        self._number[units] = np.arange(len(units))
        self._all = np.arange(len(units))
        self._at = self._index(units, bool((np.diff(units) == 1).all()))
        count = math.prod(shape[1:]) // (shape[axis] if axis else 1) * (len(units) if axis else 1)
        self._noise = draw(shape[0], count) if draw and len(units) and count else None

    def _index(self, units: Array, is_run: bool) -> tuple[slice | Array, ...]:
        """Return the index of units in a block, for a view where they lie together."""
        is_run = is_run and len(units) > 0
        return (slice(None),) * self._axis + (slice(units[0], units[-1] + 1) if is_run else units,)

    def find(self, places: Array) -> tuple[tuple[slice | Array, ...], Array] | None:
        """Return the index of the units that are in a block of rows, and which they are; None if there are none."""
        if not len(self.units):
            return None
        if self._axis:
            return self._at, self._all
        found = self._number[places]
        here = (found >= 0).nonzero()[0]
        if not len(here):
            return None
        return self._index(here, here[-1] - here[0] == len(here) - 1), found[here]

    def random(self, places: Array, which: Array) -> Array:
        """Return the random numbers of some of the units in a block of rows: float32."""
        shape = [len(which) if self._axis == 0 else len(places), *self._shape[1:]]
        shape[self._axis] = len(which)
        if self._noise is None:
            return np.zeros(shape, np.float32)
        return self._noise.of(places if self._axis else self.units[which]).reshape(shape)

    def column(self, values: Array, which: Array) -> Array:
        """Shape numbers of all units of the axis for multiplication into what some of the units have."""
        return values[self.units[which]].reshape(-1, *(1,) * (len(self._shape) - 1 - self._axis))


@dataclass(frozen=True)
class _Axis:
    """An axis that grows: its number, how it grows, the teacher's weight, and the shape of the student's."""

    position: int
    growth: AxisGrowth
    source: Source
    shape: tuple[int, ...]

    def units(self, places: Array, draw: Draw | None = None) -> _Units:
        """Return units at some places, with random numbers."""
        return _Units(self.position, places, self.shape, draw)

    def made_as(self, *origins: str) -> Array:
        """Return the places of the units that came about in one of these ways."""
        kind = self.growth.map.kind
        return np.flatnonzero(np.isin(kind, [ORIGINS.index(origin) for origin in origins]) if kind.any() else kind)


class _Weighing:
    """Divides what reads copies among them, unevenly, so that it sums to what it was.

    A unit itself gets what its copies leave.
    """

    def __init__(self, axis: _Axis, style: Style, rng: np.random.Generator) -> None:
        growth, map, self._dtype = axis.growth, axis.growth.map, axis.source.dtype
        self._wide = np.promote_types(self._dtype, np.float32)
        is_uneven = bool(style.spread and growth.spread and len(axis.shape) > 1 and map.is_even)
        if growth.spread and not is_uneven and map.is_even and _is_whole(axis.source):
            map = halved(map)
        self._position, self._weight, self._shares, self._bits = axis.position, map.weight, map.weight, 0
        draw = None
        if is_uneven:
            self._bits = share_bits(style.spread)
            step = 2.0**-self._bits
            self._shares = np.rint(map.weight / step) * step
            draw = partial(Noise, rng, deviation=style.spread, step=step)
        shared = Shared.of(map, spread=growth.spread)
        self._ranks = shared.ranks
        self._copies = axis.units(shared.copies, draw)
        self._originals, self._scaled = axis.units(shared.originals), axis.units(shared.scaled)
        at_random = axis.made_as("random_pad", *(("zero_in", "mean") if growth.silent else ()))
        deviation = _deviation(axis.source) if len(at_random) else 0.0
        self._random = axis.units(at_random, partial(Noise, rng, deviation=deviation))

    def apply(self, block: Array, places: Array) -> None:
        """Weigh the units in a block, in place."""
        own = self._originals.find(places)
        if own and not self._position:  # before their copies, which may be in other blocks, have their parts
            block[own[0]] = self._left_of_rows(block[own[0]], own[1])
        if copies := self._copies.find(places):
            block[copies[0]] = self._parts(block[copies[0]], places, copies[1])
        if own and self._position:
            block[own[0]] = self._left(block, block[own[0]])
        if scaled := self._scaled.find(places):
            block[scaled[0]] *= self._scaled.column(self._weight, scaled[1]).astype(block.dtype)
        if found := self._random.find(places):
            block[found[0]] = self._random.random(places, found[1])

    def _parts(self, values: Array, places: Array, which: Array) -> Array:
        """Return the parts of some copies, of the type of the weight, from the weights of their units."""
        values = values.astype(self._wide, copy=False)
        shares = self._copies.column(self._shares, which).astype(values.dtype)
        if self._bits:
            noise = self._copies.random(places, which)
            noise += shares
            shares = noise
        return shared_parts(values, shares, self._bits, self._dtype).astype(self._dtype, copy=False)

    def _left(self, block: Array, own: Array) -> Array:
        """Return what copies leave to units that are no rows; the copies have their parts already."""
        left = own.astype(self._wide)
        for copies in self._ranks:
            shared = (*(slice(None),) * self._position, slice(len(copies)))
            left[shared] -= np.take(block, copies, axis=self._position)
        return left

    def _left_of_rows(self, own: Array, which: Array) -> Array:
        """Return what copies leave to rows, whose parts are made here once more."""
        order = np.argsort(which)  # those with the most copies first, as in the ranks
        which, own = which[order], own[order]
        left = own.astype(self._wide)
        for copies in self._ranks:
            count = int(np.searchsorted(which, len(copies)))
            if found := self._copies.find(copies[which[:count]]):
                left[:count] -= self._parts(own[:count], copies, found[1])
        left[order] = left.copy()
        return left


class _Making:
    """Gives new units that are no plain copies their incoming weights."""

    def __init__(
        self,
        axis: _Axis,
        style: Style,
        rng: np.random.Generator,
        filler: Filler,
        gather: Callable[[Array], Array],
    ) -> None:
        map = axis.growth.map
        own, zero, prior, mean = (
            axis.made_as(*origins) if filler != "copy" else np.zeros(0, np.intp)
            for origins in (("zero_out", "random_pad"), ("zero_in",), ("prior", "never"), ("mean",))
        )
        copies = np.flatnonzero(~map.first & (map.kind == 0))
        if len(axis.shape) == 1:
            own = copies = own[:0]
        if not style.noise or filler == "copy":
            copies = copies[:0]
        self._constants = np.zeros(map.new)
        if filler == "bias":
            self._constants[prior] = style.logit
        lifted = axis.made_as("lifted") if filler in ("never", "below") else prior[:0]
        if len(lifted):
            self._constants[lifted] = NEVER if filler == "never" else float(axis.source().min()) - 1 - _CLEAR
        if filler == "size" and len(mean):
            self._constants[mean] = float(_size(axis.source()))
        if filler in ("size", "zero"):
            zero, mean = np.concatenate([zero, mean]), mean[:0]
        deviation = _deviation(axis.source) if len(own) or len(copies) else 0.0
        self._own = axis.units(own, partial(Noise, rng, deviation=deviation))
        self._copies = axis.units(copies, partial(Noise, rng, deviation=deviation * style.noise))
        self._still, self._mean = axis.units(np.sort(np.concatenate([zero, prior, lifted]))), axis.units(mean)
        self._position, self._firsts = axis.position, np.flatnonzero(map.first)
        self._factors = _factors(axis.growth.scale, len(self._firsts)) if len(mean) else np.zeros(0)
        self._row = (
            gather(self._mean_row(axis.source, map.index[map.first])) if len(mean) and not axis.position else None
        )

    def apply(self, block: Array, places: Array) -> None:
        """Fill units in a block, in place."""
        if found := self._own.find(places):
            block[found[0]] = self._own.random(places, found[1])
        if found := self._still.find(places):
            block[found[0]] = self._still.column(self._constants, found[1])
        if found := self._mean.find(places):
            block[found[0]] = self._means(block) if self._row is None else self._row
        if found := self._copies.find(places):
            block[found[0]] += self._copies.random(places, found[1]).astype(block.dtype)

    def _means(self, block: Array) -> Array:
        """Return the mean of the units of each row, or that of scaled units over the scale that padding has."""
        units = np.take(block, self._firsts, axis=self._position).astype(np.float64)
        units *= self._factors.reshape(-1, *(1,) * (units.ndim - 1 - self._position))
        means: Array = units.sum(
            axis=self._position, keepdims=True
        )  # no matrix product: its rounding hangs on the rows
        return means

    def _mean_row(self, source: Source, units: Array) -> Array:
        """Return the same of units that are rows themselves, as one row."""
        read, total = source.rows(), np.zeros(source.shape[1:])
        for places in row_blocks((len(units), *source.shape[1:]), 8):
            total += np.tensordot(self._factors[places], read(units[places]).astype(np.float64), 1)
        return total[None].astype(source.dtype)


class _Parting:
    """Makes copies differ by parts of each weight that add up to nothing over the copies of a unit."""

    def __init__(self, axis: _Axis, style: Style, rng: np.random.Generator) -> None:
        map, self._position = axis.growth.map, axis.position
        self._units = axis.units(np.arange(map.new), partial(Noise, rng, deviation=style.spread))
        self._index, counts = map.index, np.bincount(map.index, minlength=map.old)
        self._share = 1 / counts[map.index]
        order = np.argsort(map.index, kind="stable")
        rank = np.empty(map.new, np.intp)
        rank[order] = np.arange(map.new) - np.repeat(np.cumsum(counts) - counts, counts)
        self._members = np.full((counts.max(), map.old), -1)
        self._members[rank, map.index] = np.arange(map.new)

    def apply(self, block: Array, places: Array) -> None:
        """Multiply all that a block has."""
        found = self._units.find(places)
        if found is None:
            return
        which = found[1]
        parts = self._units.random(places, which)
        parts = parts.astype(np.promote_types(parts.dtype, block.dtype), copy=False)
        means = np.zeros_like(parts)
        for members in self._members:
            copies = members[self._index[which]]
            there = np.flatnonzero(copies >= 0)
            own: tuple[slice | Array, ...] = (*(slice(None),) * self._position, there)
            if self._position:
                means[own] += np.take(parts, copies[there], axis=self._position)
            else:  # the others may be in other blocks
                means[own] += self._units.random(copies[there], copies[there])
        parts -= means * self._units.column(self._share, which).astype(parts.dtype)
        block *= (1 + parts).astype(block.dtype)


def _factors(scale: Callable[[], Array] | None, count: int) -> Array:
    """Return what each of some units contributes to their mean: float64 [count]."""
    if scale is None:
        return np.full(count, 1 / count)
    factors = scale().reshape(-1)
    return factors.astype(np.float64) / (len(factors) * float(_size(factors)))


def _size(values: Array) -> Array:
    """Return the root mean square of values, or 1 where they all are 0: what is never 0 can be divided by."""
    size: Array = np.sqrt(np.mean(np.square(values.astype(np.float64)))).astype(values.dtype)
    return size if size else np.ones_like(size)


def _deviation(source: Source) -> float:
    """Estimate the standard deviation of a weight from some of its rows."""
    rows, width = source.shape[0], math.prod(source.shape[1:])
    count = min(rows, max(1, _SAMPLE // max(1, width)))
    sample = source.rows()(np.linspace(0, rows - 1, count).astype(np.int64)).reshape(-1)
    sample = sample[:: max(1, sample.size // _SAMPLE)].astype(np.float64)
    return float(sample.std()) if sample.size > 1 else 0.0


def _is_whole(source: Source) -> bool:
    """Tell whether all weights are whole numbers, whose sums may have to be exact (in front of Sign)."""
    parts = map(source.rows(), row_blocks(source.shape, source.dtype.itemsize))
    return all(np.all(values == np.rint(values)) for values in parts)
