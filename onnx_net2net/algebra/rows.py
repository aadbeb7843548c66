"""Arrays that are read or computed some rows at a time. A row is what one index of the first axis has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnx_net2net.algebra.floats import Array

BLOCK_BYTES = 1 << 19
"""Rows are made so many at a time: what is worked on stays in the cache of a core."""

Rows = Callable[[Array], Array]
"""Returns rows by their numbers (int64), as an array of its own, which may be written to."""


@runtime_checkable
class Source(Protocol):
    """An array that is somewhere. A call returns all of it, not to be written to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""

    def __call__(self) -> Array:
        """Return all of it."""

    def rows(self) -> Rows:
        """Return what reads rows of it."""


@dataclass(frozen=True)
class InMemory:
    """An array that is in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        return np.dtype(self.array.dtype)

    def __call__(self) -> Array:
        """Return all of it."""
        return self.array

    def rows(self) -> Rows:
        """Return what reads rows of it."""

        def read(places: Array) -> Array:
            return np.take(self.array, places, axis=0)

        return read


def row_blocks(shape: Sequence[int], itemsize: int) -> Iterator[Array]:
    """Yield the numbers of the rows of an array, in order, as many at a time as are a block."""
    _keep_freed_memory()
    step = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield np.arange(start, min(start + step, shape[0]))


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next block: to get it from the system anew costs as much as to compute it.

    By mallopt(3), M_MMAP_THRESHOLD, it does so with pieces up to the largest that it has mapped and freed, if that has
    no more than 32 MB. Nothing is written here, so that no memory is taken.
    """
    np.empty(31 << 20, np.uint8)


def is_fill(values: Array) -> bool:
    """Tell whether all values are one number, so that it is no weight: states start at such, and a class makes them."""
    return values.size > 0 and bool((values == values.flat[0]).all())


def fill_in(source: Source) -> Any:
    """Return the value that an array has everywhere; None if it is not one. Rows are read until one differs."""
    if not source.shape:
        return source().flat[0]
    read, found = source.rows(), None
    for places in row_blocks(source.shape, source.dtype.itemsize):
        rows = read(places)
        if not is_fill(rows) or (found is not None and rows.flat[0] != found):
            return None
        found = rows.flat[0]
    return found
