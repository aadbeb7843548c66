"""Blocks cover all rows, in order, and fit the cache where rows are small enough."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_net2net.algebra.rows import BLOCK_BYTES, InMemory, Source, fill_in, row_blocks


@pytest.mark.parametrize("shape", [(5,), (3, 10**7), (70000, 8), (0, 4), (4, 0), (1000, 300, 2)])
def test_blocks_cover_all_rows(shape: tuple[int, ...]) -> None:
    found = list(row_blocks(shape, 4))
    np.testing.assert_array_equal(np.concatenate([*found, np.zeros(0, int)]), np.arange(shape[0]))
    row = 4 * int(np.prod(shape[1:]))
    assert all(len(places) * row <= max(BLOCK_BYTES, row) for places in found)


def test_rows_of_an_array_are_its_own() -> None:
    source = InMemory(np.arange(12.0).reshape(4, 3))
    assert isinstance(source, Source)
    found = source.rows()(np.array([2, 0]))
    found[:] = 7
    np.testing.assert_array_equal(source(), np.arange(12.0).reshape(4, 3))


@pytest.mark.parametrize("shape", [(), (4,), (300, 1000), (0, 3)])
def test_one_value_everywhere_is_found_and_another_one_anywhere_ends_that(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 2.5, np.float32)
    assert fill_in(InMemory(values)) == (2.5 if values.size else None)
    if values.size > 1:
        values.flat[-1] = 1
        assert fill_in(InMemory(values)) is None


def test_rows_are_read_until_one_differs() -> None:
    read = []

    class Noted(InMemory):
        def rows(self):  # type: ignore[no-untyped-def]
            inner = super().rows()
            return lambda places: (read.append(len(places)), inner(places))[1]

    assert fill_in(Noted(np.arange(10**6, dtype=np.float32).reshape(-1, 10))) is None
    assert sum(read) <= BLOCK_BYTES // 40
