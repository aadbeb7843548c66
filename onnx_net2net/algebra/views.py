"""From the layout of an exporter to that of a framework: how an array, and how its axes grow, is laid out anew.

A `View` turns an initializer into an entry of a state dict, or a part of one. It is found on the teacher's values;
`carry_view` says what it is at the student's sizes, and how the axes of the entry grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Map, identity
from onnx_net2net.algebra.weights import AxisGrowth
from onnx_net2net.errors import RefusedError

AxisGrowths = tuple[AxisGrowth, ...]
"""How each axis of an array grows."""


@dataclass(frozen=True)
class Slice:
    """Take the places `start` to `stop` of an axis."""

    axis: int
    start: int
    stop: int

    def apply(self, array: Array) -> Array:
        """Return the part."""
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]

    def follow(self, axes: AxisGrowths) -> tuple[Slice, AxisGrowths]:
        """Return the same step at the student's size, and how the axes of the part grow."""
        start, stop, own = _part(axes[self.axis], self.start, self.stop)
        return Slice(self.axis, start, stop), _replaced(axes, self.axis, own)


@dataclass(frozen=True)
class Once:
    """Take one of the places of an axis along which all is the same."""

    axis: int

    def apply(self, array: Array) -> Array:
        """Return the first of them."""
        return array[(slice(None),) * self.axis + (slice(0, 1),)]

    def follow(self, axes: AxisGrowths) -> tuple[Once, AxisGrowths]:
        """Return the step itself, and how the other axes grow."""
        own = axes[self.axis]
        if own.reads and not own.map.is_identity:
            raise RefusedError("what it repeats is weighed differently")
        return self, _replaced(axes, self.axis, _ONE)


@dataclass(frozen=True)
class Blocks:
    """Put the equal blocks of an axis into another order."""

    axis: int
    order: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array with the blocks in the new order."""
        blocks = np.split(array, len(self.order), axis=self.axis)
        return np.concatenate([blocks[k] for k in self.order], axis=self.axis)

    def follow(self, axes: AxisGrowths) -> tuple[Blocks, AxisGrowths]:
        """Return the same step at the student's size, and how the axes grow behind it."""
        own = axes[self.axis]
        size = own.map.old // len(self.order)
        parts = [_part(own, k * size, (k + 1) * size) for k in range(len(self.order))]
        if len({stop - start for start, stop, _ in parts}) > 1:
            raise RefusedError("its blocks grow to different sizes")
        return self, _replaced(axes, self.axis, joined([parts[k][2] for k in self.order]))


@dataclass(frozen=True)
class Transpose:
    """Permute the axes."""

    order: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array with its axes permuted."""
        return np.transpose(array, self.order)

    def follow(self, axes: AxisGrowths) -> tuple[Transpose, AxisGrowths]:
        """Return the step itself, and how the permuted axes grow."""
        return self, tuple(axes[k] for k in self.order)


@dataclass(frozen=True)
class Reshape:
    """Give the array another shape."""

    shape: tuple[int, ...]

    def apply(self, array: Array) -> Array:
        """Return the array in the shape."""
        return array.reshape(self.shape)

    def follow(self, axes: AxisGrowths) -> tuple[Reshape, AxisGrowths]:
        """Return the step with the student's shape, and how its axes grow."""
        result: list[AxisGrowth] = []
        for before, after in _runs([axis.map.old for axis in axes], self.shape):
            result += _regrouped(axes[before], self.shape[after])
        return Reshape(tuple(axis.map.new for axis in result)), tuple(result)


ViewStep = Slice | Once | Blocks | Transpose | Reshape
View = tuple[ViewStep, ...]
"""Steps, one after another."""


def apply(view: View, array: Array) -> Array:
    """Return what a view shows of an array."""
    for step in view:
        array = step.apply(array)
    return array


def carry_view(view: View, axes: AxisGrowths) -> tuple[View, AxisGrowths]:
    """Carry a view over to the student.

    Args:
        view: A view of the teacher's array.
        axes: How each axis of that array grows.

    Returns:
        The view of the student's array that shows the same, and how the axes of what it shows grow.

    Raises:
        RefusedError: If what it shows does not grow axis by axis.
    """
    steps: list[ViewStep] = []
    for step in view:
        grown, axes = step.follow(axes)
        steps.append(grown)
    return tuple(steps), axes


def joined(parts: Sequence[AxisGrowth]) -> AxisGrowth:
    """Return how an axis grows that consists of parts laid end to end."""
    if len(parts) == 1:
        return parts[0]
    shares = np.concatenate([part.learned for part in parts])
    return _whole(parts, Map.concat([part.map for part in parts]), shares, "parts")


def _merged(factors: Sequence[AxisGrowth]) -> AxisGrowth:
    """Return how an axis grows that is the product of some axes."""
    shares = reduce(lambda outer, inner: np.multiply.outer(outer, inner).reshape(-1), [f.learned for f in factors])
    return _whole(factors, reduce(Map.outer, [factor.map for factor in factors]), shares, "axes")


def _whole(parts: Sequence[AxisGrowth], map: Map, shares: np.ndarray, what: str) -> AxisGrowth:
    """Return how an axis grows whose parts grow like some, from its map and what they are learned by."""
    growing = [part for part in parts if not part.map.is_identity] or list(parts[:1])
    if len({(part.reads, part.silent) for part in growing}) > 1:
        raise RefusedError(f"some of its {what} are copied and others divided")
    known = shares if any(part.shares is not None for part in growing) else None
    return replace(growing[0], map=map, spread=all(part.spread for part in growing), scale=None, shares=known)


def _replaced(axes: AxisGrowths, position: int, axis: AxisGrowth) -> AxisGrowths:
    return (*axes[:position], axis, *axes[position + 1 :])


def _at(axis: AxisGrowth, places: np.ndarray, old: int, index: np.ndarray) -> AxisGrowth:
    """Return how the student's units at some places grow, which copy the units `index` of `old` ones."""
    shares = None if axis.shares is None else axis.shares[places]
    return replace(axis, map=axis.map.part(places, old, index), scale=None, shares=shares)


def _part(axis: AxisGrowth, start: int, stop: int) -> tuple[int, int, AxisGrowth]:
    """Return where the units `start` to `stop` and their copies are in the student, and how they grow."""
    index = axis.map.index
    places = np.flatnonzero((index >= start) & (index < stop))
    if len(places) != places[-1] + 1 - places[0]:
        raise RefusedError("copies of its units lie apart")
    return int(places[0]), int(places[-1]) + 1, _at(axis, places, stop - start, index[places] - start)


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


def _still(size: int) -> AxisGrowth:
    return AxisGrowth(identity(size))


_ONE = _still(1)


def _regrouped(axes: AxisGrowths, shape: tuple[int, ...]) -> list[AxisGrowth]:
    """Return how axes grow that hold the same elements as others."""
    real = [axis for axis in axes if axis.map.old > 1 or axis.map.new > 1]
    sizes = [size for size in shape if size > 1]
    if all(axis.map.is_identity for axis in real):
        return [_still(size) for size in shape]
    if len(sizes) == 1:
        parts = [_merged(real)]
    elif len(real) == 1:
        parts = _split(real[0], sizes)
    else:
        raise RefusedError("its axes are laid out anew in a way that is not followed")
    rest = iter(parts)
    return [next(rest) if size > 1 else _ONE for size in shape]


def _split(axis: AxisGrowth, sizes: Sequence[int]) -> list[AxisGrowth]:
    """Split an axis into factors; one of them grows."""
    map = axis.map
    for position, size in enumerate(sizes):
        before, behind = math.prod(sizes[:position]), math.prod(sizes[position + 1 :])
        if map.new % (before * behind):
            continue
        new = map.new // (before * behind)
        index = map.index[: new * behind : behind] // behind
        whole = (np.arange(before)[:, None, None] * size + index[None, :, None]) * behind + np.arange(behind)
        if np.array_equal(whole.reshape(-1), map.index):
            part = _at(axis, np.arange(new) * behind, size, index)
            return [part if k == position else _still(other) for k, other in enumerate(sizes)]
    raise RefusedError("its axis grows in a way that its factors do not")
