"""Random numbers for the rows of a weight: the same ones in whatever order, and by whatever thread, rows are made."""

from __future__ import annotations

import numpy as np

from onnx_net2net.algebra.floats import Array

_PERIOD = 65521
"""The largest prime below 2 ** 16: multiples of the length of a row meet all its remainders."""


class Noise:
    """Uniform random numbers of mean 0, so many for each row.

    A weight with more of them than `_PERIOD` does not draw all: each row has a window of one table, at a place of its
    own (as in Salimans et al. 2017, Evolution Strategies, section 2.1). No two rows of a weight have the same numbers
    unless there are more than `_PERIOD`.

    Args:
        rng: Where they are drawn from.
        rows: How many rows there are.
        count: How many numbers each has.
        deviation: Their standard deviation.
        step: They are odd multiples of half of it, if it is not 0.
    """

    def __init__(
        self, rng: np.random.Generator, rows: int, count: int, deviation: float = 1.0, step: float = 0.0
    ) -> None:
        self._count = count
        self._period = max(1, min(rows * count, _PERIOD))
        self._step = count % self._period or 1
        size = self._period + count
        self._table = np.frombuffer(rng.bytes(2 * size), np.uint16).astype(np.float32)
        self._table -= np.float32(32767.5)
        self._table *= np.float32(deviation * 12**0.5 / 65536)
        if step:
            self._table = (np.floor(self._table / np.float32(step)) + np.float32(0.5)) * np.float32(step)

    def of(self, rows: Array) -> Array:
        """Return the numbers of some rows: float32 [rows, count]."""
        windows = np.ndarray((self._period, self._count), np.float32, self._table, 0, (4, 4))
        found: Array = windows[rows * self._step % self._period]
        return found
