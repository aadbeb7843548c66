"""Blocks cover all rows, in order, and fit the cache where rows are small enough."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_net2net.algebra.rows import BLOCK_BYTES, InMemory, Source, blocks


@pytest.mark.parametrize("shape", [(5,), (3, 10**7), (70000, 8), (0, 4), (4, 0), (1000, 300, 2)])
def test_blocks_cover_all_rows(shape: tuple[int, ...]) -> None:
    found = list(blocks(shape, 4))
    np.testing.assert_array_equal(np.concatenate([*found, np.zeros(0, int)]), np.arange(shape[0]))
    row = 4 * int(np.prod(shape[1:]))
    assert all(len(places) * row <= max(BLOCK_BYTES, row) for places in found)


def test_rows_of_an_array_are_its_own() -> None:
    source = InMemory(np.arange(12.0).reshape(4, 3))
    assert isinstance(source, Source)
    found = source.rows()(np.array([2, 0]))
    found[:] = 7
    np.testing.assert_array_equal(source(), np.arange(12.0).reshape(4, 3))
