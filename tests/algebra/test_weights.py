"""Growing by maps keeps every sum; folding takes it back, and gradients follow by the transposed law."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from growths import SIZES, expansion, grown_axes, maps, weighing
from hypothesis import given, settings

from onnx_net2net.algebra.dims import Axis, Dim
from onnx_net2net.algebra.maps import (
    Map,
    MapKind,
    compose,
    from_index,
    identity,
    keep,
    pad,
    padded,
    replicate,
    split_copies,
    uniform,
)
from onnx_net2net.algebra.rows import InMemory
from onnx_net2net.algebra.weights import AxisGrowth, Filler, GrownSource, Style, WeightGrowth, fold, grow
from onnx_net2net.errors import RefusedError

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
    grown = grow(values, [AxisGrowth(identity(4)), AxisGrowth(map, reads=True)], style, rng(), "own")
    assert grown.dtype == dtype
    np.testing.assert_allclose(grown.astype(np.float64) @ e, values, atol=tolerance * max(1, style.spread))


def test_copies_may_stand_before_their_originals() -> None:
    map = from_index(3, np.array([2, 0, 1, 0, 2]))
    values = weight(4, 3)
    grown = grow(values, [AxisGrowth(identity(4)), AxisGrowth(map, reads=True)], Style(spread=0.3), rng(), "own")
    np.testing.assert_allclose(grown @ expansion(map), values, atol=1e-12)


@given(SIZES.flatmap(maps), SIZES.flatmap(maps))
@settings(deadline=None)
def test_a_matrix_between_grown_axes_is_expansion_times_it_times_weighing(rows: Map, columns: Map) -> None:
    values = weight(rows.old, columns.old)
    grown = grow(values, [AxisGrowth(rows), AxisGrowth(columns, reads=True)], PLAIN, rng(), "own")
    kept = rows.kind == 0  # the rest has incoming weights of its own
    np.testing.assert_allclose(grown[kept], (expansion(rows) @ values @ weighing(columns))[kept])


def test_copies_of_a_unit_are_weighed_unevenly() -> None:
    map, values = uniform(6, 18), weight(8, 6)
    sides = [AxisGrowth(identity(8)), AxisGrowth(map, reads=True)]
    grown = grow(values, sides, Style(spread=0.3), rng(), "own")
    columns = grown.reshape(8, 3, 6)
    assert np.abs(columns[:, 0] - columns[:, 1]).min(axis=0).min() > 0
    moved = (columns - values[:, None] / 3)[:, 1:]
    assert 0.8 < moved.std() / (0.3 * values.std()) < 1.2
    even = grow(values, [sides[0], AxisGrowth(map, reads=True, spread=False)], Style(spread=0.3), rng(), "own")
    np.testing.assert_allclose(even, np.tile(values / 3, 3))


def test_vectors_are_weighed_evenly() -> None:
    grown = grow(weight(3), [AxisGrowth(uniform(3, 6), reads=True)], Style(spread=0.5), rng(), "own")
    np.testing.assert_allclose(grown, np.tile(weight(3) / 2, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_])
def test_types_are_kept_and_only_floats_divided(dtype: type) -> None:
    values = (weight(3, 4) * 20).astype(dtype)
    sides = [AxisGrowth(uniform(3, 6)), AxisGrowth(uniform(4, 8), reads=True)]
    grown = grow(values, sides, Style(spread=0.3, noise=0.1), rng(), "own")
    assert grown.dtype == values.dtype
    assert grown.shape == (6, 8)
    if values.dtype.kind in "ib":
        np.testing.assert_array_equal(grown, np.tile(values, (2, 2)))


def test_the_teachers_weight_is_not_changed() -> None:
    values = weight(3, 4)
    before = values.copy()
    for rows, columns in ((identity(3), identity(4)), (uniform(3, 6), uniform(4, 8))):
        grown = grow(
            values, [AxisGrowth(rows), AxisGrowth(columns, reads=True)], Style(spread=1, noise=1), rng(), "own"
        )
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
def test_new_units_start_as_their_kind_says(
    kind: MapKind, side: dict[str, bool], filler: Filler, expected: str
) -> None:
    values = weight(40, 30)
    grown = grow(values, [AxisGrowth(padded(40, 70, kind), **side), AxisGrowth(identity(30))], PLAIN, rng(), filler)
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
    grown = grow(values, [AxisGrowth(map), AxisGrowth(identity(5))], PLAIN, rng(), "own")
    np.testing.assert_array_equal(grown[:8], np.tile(values, (2, 1)))
    np.testing.assert_allclose(grown[8:], np.broadcast_to(values.mean(0) if expected == "mean" else 0, (3, 5)))
    assert not grow(values, [AxisGrowth(map), AxisGrowth(identity(5))], PLAIN, rng(), "zero")[8:].any()


def test_all_of_a_weight_is_multiplied_by_the_factor() -> None:
    grown = grow(weight(4, 3), [AxisGrowth(uniform(4, 8)), AxisGrowth(identity(3))], PLAIN, rng(), "own", 0.5)
    np.testing.assert_array_equal(grown, np.tile(weight(4, 3) / 2, (2, 1)))


def test_vectors_of_new_units_are_copied_or_zero() -> None:
    values = weight(5)
    for kind, expected in (("zero_out", values[:3]), ("zero_in", np.zeros(3)), ("random_pad", values[:3])):
        grown = grow(values, [AxisGrowth(padded(5, 8, kind))], PLAIN, rng(), "own")  # type: ignore[arg-type]
        np.testing.assert_array_equal(grown[5:], expected)


def test_noise_is_on_the_incoming_weights_of_copies_alone() -> None:
    values, map = weight(30, 40), replicate(30, 60, rng())
    sides = [AxisGrowth(map), AxisGrowth(identity(40))]
    grown = grow(values, sides, Style(spread=0, noise=0.1), rng(), "own")
    np.testing.assert_array_equal(grown[:30], values)
    noise = grown[30:] - values[map.index[30:]]
    assert 0.09 < noise.std() / values.std() < 0.11
    scales = grow(values, sides, Style(spread=0, noise=0.1), rng(), "copy")
    np.testing.assert_array_equal(scales, values[map.index])


@pytest.mark.parametrize("style", [Style(spread=0.3), Style(noise=0.3)], ids=["spread", "noise"])
def test_equal_streams_give_equal_weights(style: Style) -> None:
    sides = [AxisGrowth(uniform(4, 8)), AxisGrowth(uniform(3, 6), reads=True)]
    one, other, third = (grow(weight(4, 3), sides, style, np.random.default_rng(seed), "own") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)


# --- The law's other forms ----------------------------------------------------------------------------------------


@given(SIZES.flatmap(maps), SIZES.flatmap(maps))
@settings(deadline=None)
def test_the_gradient_follows_by_the_transposed_law(rows: Map, columns: Map) -> None:
    growth = WeightGrowth((AxisGrowth(rows), AxisGrowth(columns, reads=True)), factor=2.0)
    values = weight(rows.old, columns.old)
    copies = np.outer(rows.kind == 0, columns.kind == 0)  # the rest has no past
    expected = weighing(rows).T @ values @ expansion(columns).T * copies
    np.testing.assert_allclose(growth.apply(values, 0, "gradient"), expected / 2)
    shares = (rows.weight**2)[:, None] * values[rows.index][:, columns.index] * copies
    np.testing.assert_allclose(growth.apply(values, 0, "square"), shares / 4)
    assert growth.apply(values, 0).shape == growth.shape == (rows.new, columns.new)


@given(SIZES.flatmap(maps), SIZES.flatmap(maps))
@settings(deadline=None)
def test_folding_takes_growing_back(rows: Map, columns: Map) -> None:
    values = weight(rows.old, columns.old)
    grown = grow(values, [AxisGrowth(rows), AxisGrowth(columns, reads=True)], Style(), rng(), "own")
    kept = np.where(rows.first, rows.index, -1)
    np.testing.assert_allclose(fold(grown, [kept, columns.index]), values, atol=1e-12)


def test_folded_squares_are_roots_of_sums() -> None:
    np.testing.assert_allclose(fold(np.array([3.0, 4.0, 2.0, 9.0]), [np.array([0, 0, 1, -1])], squares=True), [5, 2])


def test_experts_are_cut_into_parts_along_two_axes_together():
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # experts, reads, units
    experts = AxisGrowth(split_copies(np.array([2, 2])), ranks=np.array([0, 1, 0, 1]))
    units = AxisGrowth(keep(4, np.arange(2)), places=np.array([[0, 1], [2, 3]]))
    growth = WeightGrowth((experts, AxisGrowth(replicate(3, 4, np.random.default_rng(0))), units), factor=2.0)
    grown = growth.apply(values, 0)
    assert grown.shape == growth.shape == (4, 4, 2)
    for part in range(4):
        expected = 2 * values[part // 2][:, 2 * (part % 2) : 2 * (part % 2) + 2]
        np.testing.assert_array_equal(grown[part][:3], expected)
    np.testing.assert_array_equal(GrownSource(InMemory(values), growth, 0)(), grown)
    np.testing.assert_array_equal(growth.apply(values, 0, "square")[1][:2] * 4, values[0][:2, 2:])
    torn = WeightGrowth((experts, AxisGrowth(identity(3)), AxisGrowth(identity(4))))
    with pytest.raises(RefusedError, match="cut into parts"):
        torn.apply(values, 0)
