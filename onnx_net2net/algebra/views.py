"""From the layout of an exporter to that of a framework: how an array, and how its axes grow, is laid out anew.

A `View` takes an initializer apart and turns it into (a part of) an entry of a state dict. It is found on the
teacher's values; `follow` says what it is at the student's sizes, and how the axes of the entry grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Map, Side, outer
from onnx_net2net.errors import RefusedError

Sides = tuple[Side, ...]


@dataclass(frozen=True)
class Slice:
    """Take the places `start` to `stop` of an axis."""

    axis: int
    start: int
    stop: int

    def apply(self, array: Array) -> Array:
        """Return the part."""
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]

    def follow(self, sides: Sides) -> tuple[Slice, Sides]:
        """Return the same step at the student's size, and how the axes of the part grow."""
        start, stop, side = _part(sides[self.axis], self.start, self.stop)
        return Slice(self.axis, start, stop), _replaced(sides, self.axis, side)


@dataclass(frozen=True)
class Once:
    """Take one of the places of an axis along which all is the same."""

    axis: int

    def apply(self, array: Array) -> Array:
        """Return the first of them."""
        return array[(slice(None),) * self.axis + (slice(0, 1),)]

    def follow(self, sides: Sides) -> tuple[Once, Sides]:
        """Return the step itself, and how the other axes grow."""
        side = sides[self.axis]
        if side.reads and not side.map.is_identity:
            raise RefusedError("what it repeats is weighed differently")
        return self, _replaced(sides, self.axis, _ONE)


@dataclass(frozen=True)
class Blocks:
    """Put the equal blocks of an axis into another order."""

    axis: int
    order: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array with the blocks in the new order."""
        blocks = np.split(array, len(self.order), axis=self.axis)
        return np.concatenate([blocks[k] for k in self.order], axis=self.axis)

    def follow(self, sides: Sides) -> tuple[Blocks, Sides]:
        """Return the same step at the student's size, and how the axes grow behind it."""
        side = sides[self.axis]
        size = side.map.old // len(self.order)
        parts = [_part(side, k * size, (k + 1) * size) for k in range(len(self.order))]
        if len({stop - start for start, stop, _ in parts}) > 1:
            raise RefusedError("its blocks grow to different sizes")
        return self, _replaced(sides, self.axis, joined([parts[k][2] for k in self.order]))


@dataclass(frozen=True)
class Transpose:
    """Permute the axes."""

    order: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array with its axes permuted."""
        return np.transpose(array, self.order)

    def follow(self, sides: Sides) -> tuple[Transpose, Sides]:
        """Return the step itself, and how the permuted axes grow."""
        return self, tuple(sides[k] for k in self.order)


@dataclass(frozen=True)
class Reshape:
    """Give the array another shape."""

    shape: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array in the shape."""
        return array.reshape(self.shape)

    def follow(self, sides: Sides) -> tuple[Reshape, Sides]:
        """Return the step with the student's shape, and how its axes grow."""
        result: list[Side] = []
        for before, after in _runs([side.map.old for side in sides], self.shape):
            result += _regrouped(sides[before], self.shape[after])
        return Reshape(tuple(side.map.new for side in result)), tuple(result)


Step = Slice | Once | Blocks | Transpose | Reshape
View = tuple[Step, ...]
"""Steps, one after another."""


def apply(view: View, array: Array) -> Array:
    """Return what a view shows of an array."""
    for step in view:
        array = step.apply(array)
    return array


def follow(view: View, sides: Sides) -> tuple[View, Sides]:
    """Carry a view over to the student.

    Args:
        view: A view of the teacher's array.
        sides: How each axis of that array grows.

    Returns:
        The view of the student's array that shows the same, and how the axes of what it shows grow.

    Raises:
        RefusedError: If what it shows does not grow axis by axis.
    """
    steps: list[Step] = []
    for step in view:
        grown, sides = step.follow(sides)
        steps.append(grown)
    return tuple(steps), sides


def joined(sides: Sequence[Side]) -> Side:
    """Return how an axis grows that consists of parts laid end to end."""
    first = sides[0]
    if len(sides) == 1:
        return first
    growing = [side for side in sides if not side.map.is_identity] or [first]
    if len({(side.reads, side.silent) for side in growing}) > 1:
        raise RefusedError("some of its parts are copied and others divided")
    maps = [side.map for side in sides]
    offsets = np.cumsum([0] + [map.old for map in maps])
    whole = Map(
        int(offsets[-1]),
        np.concatenate([map.index + offset for map, offset in zip(maps, offsets[:-1], strict=True)]),
        np.concatenate([map.weight for map in maps]),
        np.concatenate([map.kind for map in maps]),
        np.concatenate([map.first for map in maps]),
    )
    shares = None
    if any(side.shares is not None for side in growing):
        shares = np.concatenate([side.learned for side in sides])
    return replace(growing[0], map=whole, spread=all(s.spread for s in growing), scale=None, shares=shares)


def _replaced(sides: Sides, axis: int, side: Side) -> Sides:
    return (*sides[:axis], side, *sides[axis + 1 :])


def _part(side: Side, start: int, stop: int) -> tuple[int, int, Side]:
    """Return where the units `start` to `stop` and their copies are in the student, and how they grow."""
    map = side.map
    if map.is_identity:
        part = Map(stop - start, np.arange(stop - start), *(a[start:stop] for a in (map.weight, map.kind, map.first)))
        return start, stop, replace(side, map=part, shares=None)
    places = np.flatnonzero((map.index >= start) & (map.index < stop))
    if len(places) != places[-1] + 1 - places[0]:
        raise RefusedError("copies of its units lie apart")
    low, high = int(places[0]), int(places[-1]) + 1
    part = Map(stop - start, map.index[low:high] - start, *(a[low:high] for a in (map.weight, map.kind, map.first)))
    shares = None if side.shares is None else side.shares[low:high]
    return low, high, replace(side, map=part, scale=None, shares=shares)


def _runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[slice, slice]]:
    """Pair runs of axes of the same number of elements, as short as possible, of two shapes of the same size."""
    runs = []
    i = j = 0
    while i < len(old) or j < len(new):
        start = i, j
        left = right = 1
        if i < len(old):
            left, i = left * old[i], i + 1
        if j < len(new):
            right, j = right * new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((slice(start[0], i), slice(start[1], j)))
    return runs


_ONE = Side(Map(1, np.zeros(1, np.int64), np.ones(1), np.zeros(1, np.int8), np.ones(1, bool)))


def _regrouped(sides: Sides, shape: tuple[int, ...]) -> list[Side]:
    """Return how axes grow that hold the same elements as others."""
    real = [side for side in sides if side.map.old > 1 or side.map.new > 1]
    sizes = [size for size in shape if size > 1]
    if all(side.map.is_identity for side in real):
        return [_still(size) for size in shape]
    if len(sizes) == 1:
        parts = [_merged(real)]
    elif len(real) == 1:
        parts = _split(real[0], sizes)
    else:
        raise RefusedError("its axes are laid out anew in a way that is not followed")
    rest = iter(parts)
    return [next(rest) if size > 1 else _ONE for size in shape]


def _still(size: int) -> Side:
    return Side(Map(size, np.arange(size), np.ones(size), np.zeros(size, np.int8), np.ones(size, bool)))


def _merged(sides: Sequence[Side]) -> Side:
    growing = [side for side in sides if not side.map.is_identity]
    if len({(side.reads, side.silent) for side in growing}) > 1:
        raise RefusedError("some of its axes are copied and others divided")
    whole, shares = sides[0].map, sides[0].learned
    for side in sides[1:]:
        whole, shares = outer(whole, side.map), np.outer(shares, side.learned).reshape(-1)
    known = shares if any(side.shares is not None for side in growing) else None
    return replace(growing[0], map=whole, spread=all(s.spread for s in growing), scale=None, shares=known)


def _split(side: Side, sizes: Sequence[int]) -> list[Side]:
    """Split an axis into factors, of which one grows."""
    map = side.map
    for position, size in enumerate(sizes):
        before, behind = math.prod(sizes[:position]), math.prod(sizes[position + 1 :])
        if map.new % (before * behind):
            continue
        new = map.new // (before * behind)
        table = map.index.reshape(before, new, behind)
        index = table[0, :, 0] // behind
        whole = (np.arange(before)[:, None, None] * size + index[None, :, None]) * behind + np.arange(behind)
        if np.array_equal(whole, table):
            weight, kind, first = (a.reshape(before, new, behind)[0, :, 0] for a in (map.weight, map.kind, map.first))
            shares = None if side.shares is None else side.shares.reshape(before, new, behind)[0, :, 0]
            part = replace(side, map=Map(size, index, weight, kind, first), scale=None, shares=shares)
            return [part if k == position else _still(other) for k, other in enumerate(sizes)]
    raise RefusedError("its axis grows in a way that its factors do not")
