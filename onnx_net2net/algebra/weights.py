"""The law: how an array follows the maps of its axes.

A weight W' = E W D is copied by E where it makes an axis, and divided by D where it sums over one. All who change the
size of an array use this module: widen and checkpoint (`WeightGrowth`), the state of an optimizer (the same, of
gradients), narrow (`fold`) and transfer (`into_middle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import Literal

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.growing import Growing
from onnx_net2net.algebra.growths import AxisGrowth, Filler, Style
from onnx_net2net.algebra.maps import identity
from onnx_net2net.algebra.rows import InMemory, Rows, Source
from onnx_net2net.algebra.shares import share_integers
from onnx_net2net.errors import RefusedError

__all__ = [
    "AxisGrowth",
    "Filler",
    "GrownSource",
    "Held",
    "Style",
    "WeightGrowth",
    "fold",
    "grow",
    "into_middle",
    "window",
]

Held = Literal["weight", "gradient", "square"]
"""What an array holds for each element of a weight: its value, its gradient (or a mean of these), or their square."""


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
        if (rest := self._uncut()) is not None:
            return rest.apply(self._parts(values), salt, held, zero)
        if held == "weight":
            return grow(values, self.axes, self.style, self.stream(salt), self.filler, self.factor, zero)
        power = 1 if held == "gradient" else 2
        for position, axis in enumerate(self.axes):
            if axis.map.is_identity:
                continue
            # What divided weights read has its gradient divided; units that are no copies have no past.
            share = np.where(axis.map.kind == 0, axis.learned**power, 0).astype(values.dtype)
            values = np.take(values, axis.map.index, axis=position)
            values = values * share.reshape(-1, *(1,) * (values.ndim - 1 - position))
        return values if self.factor == 1 else values / np.array(self.factor**power, values.dtype)

    def growing(self, source: Source, salt: int) -> Growing:
        """Return a weight while it grows, from what reads the teacher's; see `apply`."""
        if (rest := self._uncut()) is not None:
            return rest.growing(InMemory(self._parts(source())), salt)
        return Growing(source, self.axes, self.style, self.stream(salt), self.filler, self.factor)

    def _cut_axes(self) -> tuple[int, int] | None:
        """Return the axis of experts that are cut into parts, and that of their units; None where none are cut."""
        found = [[place for place, axis in enumerate(self.axes) if getattr(axis, what) is not None]
                 for what in ("ranks", "places")]  # fmt: skip
        if not any(found):
            return None
        if list(map(len, found)) != [1, 1]:
            raise RefusedError("it has experts that are cut into parts, and not one axis of their units beside them")
        return found[0][0], found[1][0]

    def _uncut(self) -> WeightGrowth | None:
        """Return how the parts of experts grow along the other axes, None where no experts are cut."""
        cut = self._cut_axes()
        if cut is None:
            return None
        axes = (AxisGrowth(identity(axis.map.new)) if place in cut else axis for place, axis in enumerate(self.axes))
        return replace(self, axes=tuple(axes))

    def _parts(self, values: Array) -> Array:
        """Return the parts of experts: of each the units that it has."""
        cut = self._cut_axes()
        assert cut is not None
        experts, units = (self.axes[place] for place in cut)
        assert experts.ranks is not None
        assert units.places is not None
        whole = np.moveaxis(values, cut, (0, 1))[experts.map.index]
        chosen = units.places[experts.ranks].reshape(*units.places[experts.ranks].shape, *(1,) * (values.ndim - 2))
        return np.moveaxis(np.take_along_axis(whole, chosen, 1), (0, 1), cut)

    def stream(self, salt: int) -> np.random.Generator:
        """Return the random numbers of one weight."""
        return np.random.Generator(np.random.SFC64([self.style.seed, salt]))


@dataclass(frozen=True)
class GrownSource:
    """A grown weight, which is computed at each call, or some rows at a time.

    Attributes:
        source: The teacher's weight.
        growth: How it grows.
        salt: What tells its random draws from those of others.
    """

    source: Source
    growth: WeightGrowth
    salt: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the student's weight."""
        return self.growth.shape

    @property
    def dtype(self) -> np.dtype:
        """Its type."""
        return self.source.dtype

    def __call__(self) -> Array:
        """Return all of it."""
        return self.growth.growing(self.source, self.salt).whole()

    def rows(self) -> Rows:
        """Return what computes rows of it."""
        return self.growth.growing(self.source, self.salt).rows


def grow(
    values: Array,
    axes: Sequence[AxisGrowth],
    style: Style,
    rng: np.random.Generator,
    filler: Filler,
    factor: float = 1.0,
    zero: Array | None = None,
) -> Array:
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
    return Growing(InMemory(values), axes, style, rng, filler, factor).whole()


def _grow_integers(
    values: Array, axes: Sequence[AxisGrowth], style: Style, rng: np.random.Generator, zero: Array
) -> Array:
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
            share_integers(parts, axis.map, style.spread * axis.spread, rng, least, most)
            result = (np.moveaxis(parts, 0, position) + zero).astype(values.dtype)
    return result


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


def into_middle(source: Array, target: Array) -> Array:
    """Return the target with the source's values in its middle: a crop along axes where the source is larger."""
    read, written = zip(*starmap(window, zip(source.shape, target.shape, strict=True)), strict=True)
    result: Array = target.copy()
    result[written] = source[read].astype(target.dtype)
    return result
