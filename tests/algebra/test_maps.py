"""Maps are pairs (E, D) with D·E = I, alone and composed."""

from __future__ import annotations

import numpy as np
import pytest
from growths import SEEDS, SIZES, expansion, grown_axes, maps, weighing
from hypothesis import given, settings, strategies as st

from onnx_net2net.algebra.dims import Axis, Concat, Dim, Product, leaves
from onnx_net2net.algebra.maps import (
    MAP_KINDS,
    Map,
    MapKind,
    axis_numbers,
    compose,
    from_index,
    keep,
    new_size,
    padded,
    replicate,
    uniform,
    units_of,
)
from onnx_net2net.algebra.weights import AxisGrowth, Style, grow

# --- E and D ------------------------------------------------------------------------------------------------------


@given(SIZES.flatmap(maps))
def test_weighing_undoes_expansion(map: Map) -> None:
    np.testing.assert_allclose(weighing(map) @ expansion(map), np.eye(map.old), atol=1e-12)
    np.testing.assert_allclose(np.bincount(map.index, map.weight, map.old), 1)
    assert map.index[map.first].tolist() == list(dict.fromkeys(map.index[map.first]))
    assert map.first.sum() == map.old


@given(grown_axes())
@settings(deadline=None)
def test_compositions_are_kronecker_products_and_block_diagonals(
    case: tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray],
) -> None:
    axis, growth, e, d = case
    map = compose(axis, growth)
    np.testing.assert_array_equal(expansion(map), e)
    np.testing.assert_allclose(weighing(map), d)
    np.testing.assert_allclose(weighing(map) @ expansion(map), np.eye(axis.size), atol=1e-12)
    assert (map.old, map.new) == (axis.size, new_size(axis, growth))
    assert map.first.sum() == axis.size


def test_only_weighed_dims_have_weights() -> None:
    a, b = Dim(2), Dim(3)
    growth = {a: uniform(2, 4), b: uniform(3, 9)}
    np.testing.assert_allclose(compose(Product((a, b)), growth, {a}).weight, 1 / 2)
    np.testing.assert_allclose(compose(Product((a, b)), growth, {b}).weight, 1 / 3)
    np.testing.assert_allclose(compose(Product((a, b)), growth, set()).weight, 1)
    np.testing.assert_allclose(compose(Concat((a, b)), growth, {b}).weight, [1] * 4 + [1 / 3] * 9)


@given(SIZES, st.integers(0, 9), SEEDS)
def test_replication_keeps_the_old_units_in_place(old: int, more: int, seed: int) -> None:
    map = replicate(old, old + more, np.random.default_rng(seed))
    assert map.index[:old].tolist() == list(range(old))
    assert map.first.tolist() == [True] * old + [False] * more
    assert map.is_identity == (more == 0)


@given(SIZES, st.integers(1, 5))
def test_uniform_copies_every_unit_equally_often(old: int, times: int) -> None:
    map = uniform(old, old * times)
    assert np.bincount(map.index).tolist() == [times] * old
    np.testing.assert_allclose(map.weight, 1 / times)


def test_a_permutation_is_not_the_identity() -> None:
    map = from_index(3, np.array([2, 0, 1]))
    assert not map.is_identity
    values = np.array([3.0, 5.0, 7.0])
    np.testing.assert_array_equal(grow(values, [AxisGrowth(map)], Style(), np.random.default_rng(0), "own"), [7, 3, 5])


def test_uniform_refuses_fractions() -> None:
    with pytest.raises(ValueError, match="7 is not a multiple of 3"):
        uniform(3, 7)


@pytest.mark.parametrize("kind", MAP_KINDS[1:])
def test_padding_weighs_new_units_by_nothing(kind: MapKind) -> None:
    map = padded(3, 8, kind)
    assert map.weight.tolist() == [1] * 3 + [0] * 5
    assert [MAP_KINDS[k] for k in map.kind] == ["replicate"] * 3 + [kind] * 5
    assert not map.is_identity
    assert ((map.index >= 0) & (map.index < 3)).all()


def test_equal_seeds_give_equal_maps() -> None:
    one, other = (replicate(5, 50, np.random.default_rng(3)).index for _ in range(2))
    assert one.tolist() == other.tolist()


# --- Numbers of units ---------------------------------------------------------------------------------------------


@given(grown_axes())
@settings(deadline=None)
def test_units_are_numbered_in_layout_order(case: tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray]) -> None:
    axis, growth, _, _ = case
    numbers, size = axis_numbers(axis, lambda dim: (np.arange(dim.size), dim.size))
    assert (numbers.tolist(), size) == (list(range(axis.size)), axis.size)
    places, size = axis_numbers(axis, lambda dim: (np.flatnonzero(compose(dim, growth).first), new_size(dim, growth)))
    np.testing.assert_array_equal(np.sort(places), np.flatnonzero(compose(axis, growth).first))
    assert size == new_size(axis, growth)


def test_a_unit_without_a_number_leaves_none() -> None:
    a, b, c = Dim(2), Dim(3), Dim(2)
    numbers = {a: (np.array([0, -1]), 1), b: (np.array([-1, 0, 1]), 2), c: (np.array([1, 0]), 2)}
    found, size = axis_numbers(Concat((Product((a, b)), c)), numbers.__getitem__)
    assert (found.tolist(), size) == ([-1, 0, 1, -1, -1, -1, 3, 2], 4)


@given(grown_axes())
@settings(deadline=None)
def test_a_unit_belongs_to_one_unit_of_each_of_its_dims(
    case: tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray],
) -> None:
    axis = case[0]
    for dim in leaves(axis):
        counts = np.bincount(units_of(axis, dim) + 1, minlength=dim.size + 1)
        assert len(set(counts[1:])) == 1
        assert counts.sum() == axis.size
    a, b = Dim(2), Dim(3)
    assert units_of(Concat((Product((a, b)), a)), a).tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert units_of(Concat((Product((a, b)), a)), b).tolist() == [0, 1, 2, 0, 1, 2, -1, -1]


def test_units_that_are_not_kept_are_dropped() -> None:
    map = keep(4, np.array([3, 1]))
    assert (map.old, map.new, map.is_identity) == (4, 2, False)
    np.testing.assert_array_equal(
        grow(np.arange(4.0), [AxisGrowth(map)], Style(), np.random.default_rng(0), "own"), [3, 1]
    )
