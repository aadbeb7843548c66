"""Maps are pairs (E, D) with D·E = I, alone and composed; growing by them keeps every sum."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_net2net.algebra.dims import Axis, Concat, Dim, Product
from onnx_net2net.algebra.maps import (
    KINDS,
    Filler,
    Kind,
    Map,
    Side,
    Style,
    compose,
    from_index,
    grow,
    identity,
    new_size,
    pad,
    padded,
    replicate,
    uniform,
)

SEEDS = st.integers(0, 2**16)
SIZES = st.integers(1, 6)


def expansion(map: Map) -> np.ndarray:
    """E, which makes new units from old ones."""
    matrix = np.zeros((map.new, map.old))
    matrix[np.arange(map.new), map.index] = 1
    return matrix


def weighing(map: Map) -> np.ndarray:
    """D, which says what readers weigh the new units by."""
    return (expansion(map) * map.weight[:, None]).T


def block_diagonal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.block([[a, np.zeros((len(a), b.shape[1]))], [np.zeros((len(b), a.shape[1])), b]])


@st.composite
def maps(draw: st.DrawFn, old: int) -> Map:
    kind = draw(st.sampled_from(("identity", "replicate", "uniform", "zero_out", "index")))
    more, rng = draw(st.integers(0, 5)), np.random.default_rng(draw(SEEDS))
    if kind == "uniform":
        return uniform(old, old * draw(st.integers(1, 3)))
    if kind == "index" and more:
        return from_index(old, rng.permutation(np.concatenate([np.arange(old), rng.integers(0, old, more)])))
    if kind == "zero_out":
        return padded(old, old + more, "zero_out")
    return replicate(old, old + more, rng) if kind == "replicate" else identity(old)


@st.composite
def grown_axes(draw: st.DrawFn, depth: int = 2) -> tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray]:
    """An expression over dims that grow, with its E and D by explicit linear algebra."""
    kind = draw(st.sampled_from(("dim", "product", "concat"))) if depth else "dim"
    if kind == "dim":
        dim = Dim(draw(SIZES))
        map = identity(1) if dim.frozen else draw(maps(dim.size))
        return dim, {dim: map}, expansion(map), weighing(map)
    a, growth, e, d = draw(grown_axes(depth - 1))
    b, growth_b, e_b, d_b = draw(grown_axes(depth - 1))
    growth = growth | growth_b
    if kind == "product":
        return Product((a, b)), growth, np.kron(e, e_b), np.kron(d, d_b)
    return Concat((a, b)), growth, block_diagonal(e, e_b), block_diagonal(d, d_b)


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
    np.testing.assert_array_equal(grow(weight(3), [Side(map)], PLAIN, rng(), "own"), weight(3)[map.index])


def test_uniform_refuses_fractions() -> None:
    with pytest.raises(ValueError, match="7 is not a multiple of 3"):
        uniform(3, 7)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_padding_weighs_new_units_by_nothing(kind: Kind) -> None:
    map = padded(3, 8, kind)
    assert map.weight.tolist() == [1] * 3 + [0] * 5
    assert [KINDS[k] for k in map.kind] == ["replicate"] * 3 + [kind] * 5
    assert not map.is_identity
    assert ((map.index >= 0) & (map.index < 3)).all()


def test_equal_seeds_give_equal_maps() -> None:
    one, other = (replicate(5, 50, np.random.default_rng(3)).index for _ in range(2))
    assert one.tolist() == other.tolist()


# --- Weights grown by them ----------------------------------------------------------------------------------------

PLAIN = Style(seed=0, spread=0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def weight(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 2e-2)])
@pytest.mark.parametrize("style", [PLAIN, Style(spread=0.3), Style(spread=3.0)], ids=["even", "spread", "wide"])
@settings(max_examples=40, deadline=None)
@given(case=grown_axes())
def test_what_reads_the_copies_of_a_unit_sums_to_what_read_the_unit(
    dtype: type, tolerance: float, style: Style, case: tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray]
) -> None:
    axis, growth, e, _ = case
    map = compose(axis, growth)
    values = weight(4, axis.size, dtype=dtype)
    grown = grow(values, [Side(identity(4)), Side(map, reads=True)], style, rng(), "own")
    assert grown.dtype == dtype
    np.testing.assert_allclose(grown.astype(np.float64) @ e, values, atol=tolerance * max(1, style.spread))


def test_copies_may_stand_before_their_originals() -> None:
    map = from_index(3, np.array([2, 0, 1, 0, 2]))
    values = weight(4, 3)
    grown = grow(values, [Side(identity(4)), Side(map, reads=True)], Style(spread=0.3), rng(), "own")
    np.testing.assert_allclose(grown @ expansion(map), values, atol=1e-12)


@given(SIZES.flatmap(maps), SIZES.flatmap(maps))
@settings(deadline=None)
def test_a_matrix_between_grown_axes_is_expansion_times_it_times_weighing(rows: Map, columns: Map) -> None:
    values = weight(rows.old, columns.old)
    grown = grow(values, [Side(rows), Side(columns, reads=True)], PLAIN, rng(), "own")
    kept = rows.kind == 0  # the rest has incoming weights of its own
    np.testing.assert_allclose(grown[kept], (expansion(rows) @ values @ weighing(columns))[kept])


def test_copies_of_a_unit_are_weighed_unevenly() -> None:
    map, values = uniform(6, 18), weight(8, 6)
    sides = [Side(identity(8)), Side(map, reads=True)]
    grown = grow(values, sides, Style(spread=0.3), rng(), "own")
    columns = grown.reshape(8, 3, 6)
    assert np.abs(columns[:, 0] - columns[:, 1]).min(axis=0).min() > 0
    moved = (columns - values[:, None] / 3)[:, 1:]
    assert 0.8 < moved.std() / (0.3 * values.std()) < 1.2
    even = grow(values, [sides[0], Side(map, reads=True, spread=False)], Style(spread=0.3), rng(), "own")
    np.testing.assert_allclose(even, np.tile(values / 3, 3))


def test_vectors_are_weighed_evenly() -> None:
    grown = grow(weight(3), [Side(uniform(3, 6), reads=True)], Style(spread=0.5), rng(), "own")
    np.testing.assert_allclose(grown, np.tile(weight(3) / 2, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_])
def test_types_are_kept_and_only_floats_divided(dtype: type) -> None:
    values = (weight(3, 4) * 20).astype(dtype)
    sides = [Side(uniform(3, 6)), Side(uniform(4, 8), reads=True)]
    grown = grow(values, sides, Style(spread=0.3, noise=0.1), rng(), "own")
    assert grown.dtype == values.dtype
    assert grown.shape == (6, 8)
    if values.dtype.kind in "ib":
        np.testing.assert_array_equal(grown, np.tile(values, (2, 2)))


def test_the_teachers_weight_is_not_changed() -> None:
    values = weight(3, 4)
    before = values.copy()
    for rows, columns in ((identity(3), identity(4)), (uniform(3, 6), uniform(4, 8))):
        grown = grow(values, [Side(rows), Side(columns, reads=True)], Style(spread=1, noise=1), rng(), "own")
        grown[:] = 7
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("kind", "side", "filler", "expected"),
    [
        ("zero_out", {}, "own", "random"),  # units of their own
        ("zero_out", {"reads": True}, "own", "zero"),  # that nobody reads
        ("zero_in", {}, "own", "zero"),  # units that compute 0
        ("zero_in", {"reads": True, "silent": True}, "own", "random"),  # and are read, while they still hold it
        ("zero_in", {"reads": True}, "own", "zero"),  # but not when they no longer do
        ("zero_in", {}, "copy", "copies"),  # scales of such units are not zeros
        ("random_pad", {}, "own", "random"),
        ("random_pad", {"reads": True}, "own", "random"),
    ],
)
def test_new_units_start_as_their_kind_says(kind: Kind, side: dict[str, bool], filler: Filler, expected: str) -> None:
    values = weight(40, 30)
    grown = grow(values, [Side(padded(40, 70, kind), **side), Side(identity(30))], PLAIN, rng(), filler)
    np.testing.assert_array_equal(grown[:40], values)
    new = grown[40:]
    if expected == "zero":
        assert not new.any()
    elif expected == "copies":
        np.testing.assert_array_equal(new, values[np.arange(30) % 40])
    else:
        assert 0.8 < new.std() / values.std() < 1.2
        assert abs(new.mean()) < 0.2 * values.std()
        assert not np.isin(new, values).any()


@pytest.mark.parametrize(("held", "expected"), [("mean", "mean"), ("zero", 0)])
def test_padding_holds_what_a_statistic_does_not_notice(held: str, expected: str) -> None:
    map = pad(4, 11, held)
    assert map.index[:8].tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(weighing(map) @ expansion(map), np.eye(4))
    values = weight(4, 5)
    grown = grow(values, [Side(map), Side(identity(5))], PLAIN, rng(), "own")
    np.testing.assert_array_equal(grown[:8], np.tile(values, (2, 1)))
    np.testing.assert_allclose(grown[8:], np.broadcast_to(values.mean(0) if expected == "mean" else 0, (3, 5)))
    assert not grow(values, [Side(map), Side(identity(5))], PLAIN, rng(), "zero")[8:].any()


def test_all_of_a_weight_is_multiplied_by_the_factor() -> None:
    grown = grow(weight(4, 3), [Side(uniform(4, 8)), Side(identity(3))], PLAIN, rng(), "own", 0.5)
    np.testing.assert_array_equal(grown, np.tile(weight(4, 3) / 2, (2, 1)))


def test_vectors_of_new_units_are_copied_or_zero() -> None:
    values = weight(5)
    for kind, expected in (("zero_out", values[:3]), ("zero_in", np.zeros(3)), ("random_pad", values[:3])):
        grown = grow(values, [Side(padded(5, 8, kind))], PLAIN, rng(), "own")  # type: ignore[arg-type]
        np.testing.assert_array_equal(grown[5:], expected)


def test_noise_is_on_the_incoming_weights_of_copies_alone() -> None:
    values, map = weight(30, 40), replicate(30, 60, rng())
    sides = [Side(map), Side(identity(40))]
    grown = grow(values, sides, Style(spread=0, noise=0.1), rng(), "own")
    np.testing.assert_array_equal(grown[:30], values)
    noise = grown[30:] - values[map.index[30:]]
    assert 0.09 < noise.std() / values.std() < 0.11
    scales = grow(values, sides, Style(spread=0, noise=0.1), rng(), "copy")
    np.testing.assert_array_equal(scales, values[map.index])


@pytest.mark.parametrize("style", [Style(spread=0.3), Style(noise=0.3)], ids=["spread", "noise"])
def test_equal_streams_give_equal_weights(style: Style) -> None:
    sides = [Side(uniform(4, 8)), Side(uniform(3, 6), reads=True)]
    one, other, third = (grow(weight(4, 3), sides, style, np.random.default_rng(seed), "own") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)
