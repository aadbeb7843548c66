"""How copies of a unit share the weight that reads the unit: copies get parts of it, and the unit itself what is left.

Parts of floats are whole multiples of the last place of what is shared, so that their sum is exact, in the few bits of
half precision too. Parts of integers are whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Map, runs


@dataclass(frozen=True)
class Shared:
    """Which units of an axis share a weight.

    Attributes:
        copies: The student's places of the units that get a part.
        originals: Those of the units that get what is left, those with the most copies first.
        ranks: The first copies of originals, then the second ones, and so on; each for the first originals.
        scaled: The places of units that are multiplied by their share and have nothing to do with others.
    """

    copies: Array
    originals: Array
    ranks: tuple[Array, ...]
    scaled: Array

    @classmethod
    def of(cls, map: Map, *, spread: bool) -> Shared:
        """Return who shares in a map; without `spread` everybody is just multiplied."""
        is_copy = ~map.first & (map.kind == 0) & (map.weight > 0) & (map.weight != 1)
        copies = np.flatnonzero(is_copy & spread)
        counts = np.bincount(map.index[copies], minlength=map.old)
        sources = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        position, place = (np.empty(map.old, np.intp) for _ in range(2))
        position[sources] = np.arange(len(sources))
        place[map.index[map.first]] = np.flatnonzero(map.first)
        order = copies[np.argsort(position[map.index[copies]], kind="stable")]
        starts = np.cumsum(counts[sources]) - counts[sources]
        most = int(counts.max(initial=0))
        ranks = tuple(order[starts[counts[sources] > rank] + rank] for rank in range(most))
        divided = np.zeros(map.new, bool)
        divided[copies] = divided[place[sources]] = True
        return cls(copies, place[sources], ranks, np.flatnonzero((map.weight != 1) & ~divided))


_MOST_BITS = 12
"""Binary places of shares up to which leading bits of weights are multiplied alone: more would leave too few bits."""


def share_bits(spread: float) -> int:
    """Return the number b of binary places of uneven shares: each share is an odd multiple of half of 2 ** -b.

    So no share is zero, no two copies have the same share, and sums of whole numbers stay exact: the 9 places of a
    share leave 15 of float32's 24 bits for the numbers.
    """
    return max(8, math.ceil(8 + math.log2(0.3 / spread)))


def shared_parts(values: Array, shares: Array, bits: int, dtype: np.dtype) -> Array:
    """Multiply weights by shares, and round to multiples of the last place of each weight.

    Args:
        values: The weights, of at least single precision.
        shares: The shares, in a shape that broadcasts with them.
        bits: Their binary places (`share_bits`); 0 for shares of any number of places.
        dtype: The type that the weights are kept in.

    Returns:
        The parts, of the type of `values`.
    """
    if dtype.itemsize < 4:
        return _rounded(values * shares, _places(values, dtype))
    if not bits or bits > _MOST_BITS:
        return _rounded(values * shares, np.spacing(np.abs(values)))
    kind = np.uint32 if dtype.itemsize == 4 else np.uint64
    leading = ~kind(2 ** (bits + 2) - 1)  # the product of these bits and a share has no more than there are
    parts: Array = np.empty(values.shape, dtype)
    np.bitwise_and(values.view(kind), leading, out=parts.view(kind))
    parts *= shares
    return parts


def _rounded(values: Array, places: Array) -> Array:
    """Round values to multiples of others, in place."""
    values /= places
    np.rint(values, out=values)
    values *= places
    return values


def _places(values: Array, dtype: np.dtype) -> Array:
    """Return the last place of single-precision values in a type of fewer bits."""
    info = ml_dtypes.finfo(dtype)
    places = np.empty(values.shape, np.float32)
    np.bitwise_and(values.view(np.uint32), np.uint32(0x7F800000), out=places.view(np.uint32))
    np.maximum(places, np.float32(info.smallest_normal), out=places)
    places *= np.float32(info.eps)
    return places


def share_integers(view: Array, map: Map, spread: float, rng: np.random.Generator, least: Array, most: Array) -> None:
    """Divide integers, in place, among copies in whole parts from `least` to `most`.

    The c parts floor((v + k) / c), k = 0 ... c - 1, sum to v (Hermite's identity) and lie between 0 and v.

    Args:
        view: The integers; units come first.
        map: How the units grow.
        spread: How unevenly copies share; 0 for evenly.
        rng: Where the differences are drawn from.
        least: The smallest that a part may be, in a shape that broadcasts.
        most: The largest.
    """
    read = np.flatnonzero(map.weight > 0)
    order = read[np.argsort(map.index[read], kind="stable")]
    starts, counts, rank = runs(map.index[order])
    column = (-1, *(1,) * (view.ndim - 1))
    rank, count = rank.astype(view.dtype), np.repeat(counts, counts).astype(view.dtype)
    whole = view[order[rank > 0]]
    parts = (view[order] + rank.reshape(column)) // count.reshape(column)
    view[...] = 0
    view[order] = parts
    copies = rank > 0
    if not (spread and copies.any() and view.ndim > 1):
        return
    firsts = np.repeat(order[starts], counts - 1)
    room = np.minimum(view - least, most - view)
    room = np.minimum(room[order[copies]], room[firsts] // (count[copies] - 1).reshape(column))
    noise = rng.random(room.shape, dtype=np.float32)
    noise -= np.float32(0.5)
    moved = np.rint(noise * np.float32(spread * 12**0.5) * whole).astype(view.dtype)
    moved = np.clip(moved, -room, room)
    view[order[copies]] += moved
    np.subtract.at(view, firsts, moved)
