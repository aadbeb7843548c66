"""Rows of a growing weight: the same alone and together, in any order and in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest
from growths import SIZES, maps
from hypothesis import given, settings, strategies as st

from onnx_net2net.algebra import rows as rows_module
from onnx_net2net.algebra.growing import Growing
from onnx_net2net.algebra.growths import AxisGrowth, Filler, Style
from onnx_net2net.algebra.maps import Map, from_index, identity, pad, padded, replicate, uniform
from onnx_net2net.algebra.rows import InMemory

RNG = np.random.default_rng(0)


def growing(values: np.ndarray, axes: list[AxisGrowth], filler: Filler = "own", **how: float) -> Growing:
    style = Style(**{"noise": 0.1, **how})  # type: ignore[arg-type]
    return Growing(InMemory(values), axes, style, np.random.default_rng(1), filler)


GROWN = [replicate(6, 11, RNG), uniform(6, 18), pad(6, 14, "mean"), padded(6, 9, "zero_in"), padded(6, 9, "random_pad")]


@pytest.mark.parametrize("reads", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("map", GROWN, ids=["replicate", "uniform", "mean", "zero_in", "random_pad"])
def test_rows_are_the_same_alone_and_together(map: Map, reads: tuple[bool, bool]) -> None:
    values = RNG.standard_normal((6, 6, 3)).astype(np.float32)
    axes = [AxisGrowth(map, reads=reads[0]), AxisGrowth(map, reads=reads[1]), AxisGrowth(identity(3))]
    whole = growing(values, axes).whole()
    assert whole.shape == (map.new, map.new, 3)
    order = np.random.default_rng(2).permutation(map.new)
    grown = growing(values, axes)
    np.testing.assert_array_equal(np.concatenate([grown.rows(order[k : k + 1]) for k in range(map.new)]), whole[order])


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_the_size_of_blocks_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.standard_normal((40, 30)).astype(np.float32)
    axes = [AxisGrowth(replicate(40, 90, np.random.default_rng(0)), reads=True), AxisGrowth(uniform(30, 60))]
    whole = growing(values, axes).whole()
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", size)
    np.testing.assert_array_equal(growing(values, axes).whole(), whole)


@given(SIZES.flatmap(maps), st.sampled_from([1, 4]), st.booleans())
@settings(deadline=None)
def test_units_are_gathered_wherever_they_are(map: Map, inner: int, is_last: bool) -> None:
    whole = map.outer(identity(inner))
    values = np.arange(2.0 * whole.old * 3).reshape(2, whole.old, 3)
    axes = [AxisGrowth(identity(2)), AxisGrowth(whole), AxisGrowth(identity(3))]
    made = growing(values, axes, "copy", noise=0.0, spread=0.0).whole()
    np.testing.assert_array_equal(made, values[:, whole.index])


def test_copies_of_rows_get_other_shares_than_their_originals_other_rows() -> None:
    values = np.ones((4, 50), np.float32)
    made = growing(values, [AxisGrowth(uniform(4, 12), reads=True), AxisGrowth(identity(50))], noise=0.0).whole()
    np.testing.assert_allclose(made.reshape(3, 4, 50).sum(axis=0), values)
    assert len(np.unique(made, axis=0)) == 12


@pytest.mark.parametrize("position", [0, 1])
def test_parted_copies_differ_and_have_their_units_weight_on_average(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 200)
    map = from_index(3, np.array([0, 1, 2, 1, 1, 0]))
    axes = [AxisGrowth(identity(5)), AxisGrowth(identity(5))]
    axes.insert(position, AxisGrowth(map, parted=True))
    values = RNG.standard_normal([axis.map.old for axis in axes])
    made = np.moveaxis(growing(values, axes, noise=0.0).whole(), position, 0)
    for unit, copies in enumerate(([0, 5], [1, 3, 4], [2])):
        np.testing.assert_allclose(made[copies].mean(axis=0), np.moveaxis(values, position, 0)[unit], rtol=1e-5)
        assert len(np.unique(made[copies], axis=0)) == len(copies)


def test_parts_of_double_precision_cancel_in_double_precision() -> None:
    values = RNG.standard_normal((4, 5))
    made = growing(values, [AxisGrowth(uniform(4, 12), parted=True), AxisGrowth(identity(5))], noise=0.0).whole()
    assert np.abs(made.reshape(3, 4, 5).mean(axis=0) - values).max() < 1e-15


def test_a_number_stays() -> None:
    assert growing(np.array(3.5), []).whole() == 3.5


def test_an_axis_whose_copies_come_first() -> None:
    map = from_index(3, np.array([2, 2, 0, 1, 2]))
    made = growing(np.ones((3, 8)), [AxisGrowth(map, reads=True), AxisGrowth(identity(8))], noise=0.0).whole()
    np.testing.assert_array_equal(made[[0, 1, 4]].sum(axis=0), np.ones(8))
