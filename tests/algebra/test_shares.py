"""Who shares with whom, and parts that sum to the whole."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from growths import SIZES, maps
from hypothesis import given, settings

from onnx_net2net.algebra.maps import Map, from_index
from onnx_net2net.algebra.shares import Shared, share_bits, share_integers, shared_parts


def test_originals_come_with_their_copies() -> None:
    map = from_index(4, np.array([0, 1, 2, 3, 2, 0, 2]))
    shared = Shared.of(map, spread=True)
    assert shared.originals.tolist() == [2, 0], "the one with the most copies first"
    assert [rank.tolist() for rank in shared.ranks] == [[4, 5], [6]]
    assert shared.copies.tolist() == [4, 5, 6]
    assert not len(shared.scaled)
    alone = Shared.of(map, spread=False)
    assert not len(alone.copies)
    assert alone.scaled.tolist() == [0, 2, 4, 5, 6]


@given(SIZES.flatmap(maps))
@settings(deadline=None)
def test_each_copy_is_in_one_rank_and_belongs_to_its_original(map: Map) -> None:
    shared = Shared.of(map, spread=True)
    found = np.concatenate([*shared.ranks, np.zeros(0, int)])
    assert sorted(found.tolist()) == shared.copies.tolist()
    for rank in shared.ranks:
        np.testing.assert_array_equal(map.index[rank], map.index[shared.originals[: len(rank)]])
    units = np.concatenate([shared.copies, shared.originals, shared.scaled])
    assert len(np.unique(units)) == len(units)


@pytest.mark.parametrize("spread", [0.3, 0.05, 1e-3, 1e-8])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_parts_leave_is_exact(dtype: type, spread: float) -> None:
    rng, bits = np.random.default_rng(0), share_bits(spread)
    wide = np.promote_types(dtype, np.float32)
    values = (rng.standard_normal((50, 40)) * 10.0 ** rng.integers(-7, 2, (50, 40))).astype(dtype)
    values[0], values[1] = 0, np.finfo(np.float16).smallest_subnormal
    shares = (np.floor(rng.uniform(0.1, 0.9, values.shape) * 2**bits) + 0.5) / 2**bits
    parts = shared_parts(values.astype(wide), shares.astype(wide), bits, np.dtype(dtype)).astype(dtype)
    left = (values.astype(wide) - parts.astype(wide)).astype(dtype)
    np.testing.assert_array_equal(parts.astype(np.float64) + left.astype(np.float64), values.astype(np.float64))
    assert not parts[0].any()
    large = np.abs(values.astype(np.float64)) > 1e-3
    assert np.abs(parts[large].astype(np.float64) / values[large].astype(np.float64) - shares[large]).max() < 0.01


def test_parts_of_integers_are_whole_and_within_bounds() -> None:
    map = from_index(3, np.array([0, 1, 2, 1, 1, 0]))
    whole = np.array([[100, -7], [90, 0], [5, 5]], np.int32)
    parts = whole[map.index]
    share_integers(parts, map, 0.3, np.random.default_rng(0), np.array(-128), np.array(127))
    sums = np.zeros_like(whole)
    np.add.at(sums, map.index, parts)
    np.testing.assert_array_equal(sums, whole)
    assert parts.min() >= -128
    assert parts[1, 0] != parts[3, 0]
