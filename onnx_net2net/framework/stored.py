"""State dicts: tensors of a checkpoint by name, which are not read yet, and what its file keeps beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array


@dataclass(frozen=True)
class Stored:
    """A tensor of a state dict, which is not read yet.

    Attributes:
        shape: Its shape.
        dtype: Its type, as of numpy or ml_dtypes.
        read: Returns the values, not to be written to; raises BadInputError if the file has changed.
        shared: The same for the entries that are one tensor in memory, None where the file does not tell.
        rows: Returns the values from one place of the first axis up to another, None where all have to be read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]
    shared: object = None
    rows: Callable[[int, int], Array] | None = None

    @classmethod
    def of(cls, array: Array) -> Stored:
        """Return an array in memory as a tensor."""
        return cls(array.shape, array.dtype, lambda: array)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> Array:
        """Return the values from one place of the first axis up to another."""
        return self.rows(start, stop) if self.rows else self.read()[start:stop]


StateDict = Mapping[str, Stored]


class Entries(dict[str, Stored]):
    """A state dict as its file has it.

    Attributes:
        kept: What the file keeps beside tensors, for a file of the same format: the versions of modules' classes of
            torch (`_metadata`), the groups of HDF5 and the config of .keras, the keys of a tree.
        notes: What was left out, for people.
    """

    kept: Any = None
    notes: tuple[str, ...] = ()
