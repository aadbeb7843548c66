"""State dicts: tensors of a checkpoint by name, read on demand, and what the file holds besides tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.rows import InMemory, Rows


@dataclass(frozen=True)
class Stored:
    """A tensor of a state dict, read on demand.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, of numpy or ml_dtypes.
        read: Returns the values; do not write to them. Raises BadInputError if the file has changed.
        shared: Equal for entries that are one tensor in memory; None if the file does not tell.
        elements: Returns the elements from one index (row-major, over all) up to another, as a vector. None if the
            tensor can only be read as a whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]
    shared: object = None
    elements: Callable[[int, int], Array] | None = None

    @classmethod
    def of(cls, array: Array) -> Stored:
        """Return an array in memory as a tensor."""
        return cls(array.shape, array.dtype, lambda: array)

    @classmethod
    def in_parts(cls, shape: tuple[int, ...], dtype: np.dtype[Any], elements: Callable[[int, int], Array]) -> Stored:
        """Return a tensor that can be read in parts; see `elements`."""
        return cls(shape, dtype, lambda: elements(0, math.prod(shape)).reshape(shape), elements=elements)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> Array:
        """Return the values from one place of the first axis up to another."""
        if self.elements is None:
            return self.read()[start:stop]
        width = math.prod(self.shape[1:])
        return self.elements(start * width, stop * width).reshape(stop - start, *self.shape[1:])

    def row(self, place: int) -> Stored:
        """Return what is at one place of the first axis."""
        shape, whole = self.shape[1:], self.elements
        if whole is None:
            return Stored(shape, self.dtype, lambda: self.read()[place])
        first = place * math.prod(shape)
        return Stored.in_parts(shape, self.dtype, lambda start, stop: whole(first + start, first + stop))


_SMALL = 1 << 20
"""Bytes up to which a tensor is read at once, as rows here and there take longer than all."""


@dataclass(frozen=True)
class StoredSource:
    """A tensor of a state dict, read by rows (see `algebra.rows.Source`).

    Attributes:
        stored: The tensor.
        dtype: The type that its values are given.
    """

    stored: Stored
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.shape

    def __call__(self) -> Array:
        """Return all of it."""
        return np.ascontiguousarray(self.stored.read(), self.dtype)

    def rows(self) -> Rows:
        """Return what reads rows of it; rows that lie together are read at once."""
        stored, dtype = self.stored, self.dtype

        def read(places: Array) -> Array:
            block = np.empty((len(places), *stored.shape[1:]), dtype)
            breaks = np.flatnonzero(np.diff(places) != 1) + 1
            for start, stop in itertools.pairwise([0, *breaks.tolist(), len(places)]):
                first = int(places[start]) if stop > start else 0
                block[start:stop] = stored.part(first, first + stop - start)
            return block

        return read if stored.elements and stored.nbytes > _SMALL else InMemory(self()).rows()


SMALL_FLOATS = {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
"""Types of floats that numpy lacks, by the names that torch and Flax give them, too."""

StateDict = Mapping[str, Stored]


class Entries(dict[str, Stored]):
    """A state dict that was read from a file.

    Attributes:
        kept: What the file holds besides tensors, for writing the same format: torch's `_metadata` (versions of
            modules), the groups of HDF5, the config of .keras, or the keys of a tree.
        notes: Remarks for people on what was left out.
    """

    kept: Any = None
    notes: tuple[str, ...] = ()
