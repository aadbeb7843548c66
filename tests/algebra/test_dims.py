"""The algebra of axes, against a model in which every axis is the explicit list of its units.

A unit is named by the coordinates that lead to it, (dim, position) for each factor; two axes are the same exactly
when their lists are, and then they stay so under any growth of their dims.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
from graphs import random_growth
from hypothesis import given, settings, strategies as st

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import (
    Axis,
    Concat,
    Dim,
    Product,
    cut,
    factor,
    freeze,
    keep_uniform,
    leaves,
    only_copies,
    pin,
    resolve,
    unify,
    units,
)
from onnx_net2net.algebra.maps import compose, new_size

Units = list[tuple[tuple[int, int], ...]]
TOTALS = (4, 6, 8, 12)


def spelled(axis: Axis) -> Units:
    """The units of an axis; frozen factors of size 1 have no coordinate."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return [()] if axis.size == 1 and axis.frozen else [((axis.serial, k),) for k in range(axis.size)]
    parts = [spelled(part) for part in axis.parts]
    if isinstance(axis, Concat):
        return [unit for part in parts for unit in part]
    return [tuple(coordinate for unit in chosen for coordinate in unit) for chosen in product(*parts)]


def renamed(axes: list[Axis]) -> list[Units]:
    """The units of axes with dims numbered in the order in which they come up."""
    names: dict[int, int] = {}
    return [
        [tuple((names.setdefault(serial, len(names)), k) for serial, k in unit) for unit in spelled(axis)]
        for axis in axes
    ]


def may_grow(axes: list[Axis]) -> list[Dim]:
    dims = list(dict.fromkeys(dim for axis in axes for dim in leaves(axis)))
    stuck = {dim.ratio.root() for dim in dims if dim.ratio is not None and dim.frozen}
    return [dim for dim in dims if not dim.frozen and (dim.ratio is None or dim.ratio.root() not in stuck)]


def is_normal(axis: Axis) -> bool:
    """Flat, without frozen factors of size 1, and no product that a concatenation leads."""
    if isinstance(axis, Dim):
        return axis._to is None
    if len(axis.parts) < 2 or any(type(part) is type(axis) or not is_normal(part) for part in axis.parts):
        return False
    if isinstance(axis, Concat):
        return all(part.size for part in axis.parts)
    ones = [part for part in axis.parts if isinstance(part, Dim) and part.size == 1 and part.frozen]
    return not ones and not isinstance(axis.parts[0], Concat)


@st.composite
def expressions(draw: st.DrawFn, size: int, pool: list[Dim], depth: int = 2) -> Axis:
    """An axis of a given size, over new dims and those of the pool."""
    known = [dim for dim in pool if dim.size == size]
    if known and draw(st.booleans()):
        return draw(st.sampled_from(known))
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["dim", *(["concat"] if depth and size > 1 else []), *(["product"] if depth and divisors else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "dim":
        dim = Dim(size)
        pool.append(dim)
        return dim
    if kind == "concat":
        first = draw(st.integers(1, size - 1))
        return Concat(draw(expressions(part, pool, depth - 1)) for part in (first, size - first))
    outer = draw(st.sampled_from(divisors))
    return Product(draw(expressions(part, pool, depth - 1)) for part in (outer, size // outer))


# --- Whatever is stated, in whatever order ------------------------------------------------------------------------


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_what_was_stated_holds_after_everything_else_that_is(data: st.DataObject) -> None:
    pool: list[Dim] = []
    totals = data.draw(st.lists(st.sampled_from(TOTALS), min_size=2, max_size=5))
    axes = [data.draw(expressions(total, pool)) for total in totals for _ in range(2)]
    sizes = [axis.size for axis in axes]
    same: list[tuple[Axis, Axis]] = []
    reasons: dict[Dim, str] = {}
    for step in range(data.draw(st.integers(1, 8))):
        axis = data.draw(st.sampled_from(axes))
        kind = data.draw(st.sampled_from(("unify", "unify", "unify", "cut", "factor", "units", "freeze", "uniform")))
        if kind == "unify":
            other = data.draw(st.sampled_from([b for b in axes if b.size == axis.size]))
            if unify(axis, other, f"step {step}"):
                same.append((axis, other))
            else:
                assert all(dim.frozen for side in (axis, other) for dim in leaves(side))
        elif kind == "cut":
            halves = cut(axis, data.draw(st.integers(0, axis.size)))
            if halves is not None:
                same.append((axis, Concat(halves)))
        elif kind == "factor":
            factors = factor(axis, data.draw(st.sampled_from((2, 3))), f"step {step}")
            if factors is not None:
                same.append((axis, Product(factors)))
        elif kind == "units":
            single = units(axis)
            assert [unit.size for unit in single] == [1] * axis.size
            same.append((axis, Concat(single)))
        elif kind == "freeze":
            freeze(axis, f"step {step}")
        else:
            keep_uniform(axis, f"step {step}")

        assert [resolve(axis).size for axis in axes] == sizes
        for axis in axes:
            resolved = resolve(resolve(resolve(axis)))  # more than once: see test_resolving_twice_changes_nothing
            assert is_normal(resolved), f"{axis} resolves to {resolved}"
            assert spelled(resolve(resolved)) == spelled(resolved)
        for dim, reason in reasons.items():
            assert all(leaf.frozen for leaf in leaves(dim)), f"{dim} was frozen and {resolve(dim)} is not"
            assert resolve(dim) is not dim or dim.frozen == reason, "the first reason is kept"
        reasons |= {d: d.frozen for a in axes for d in leaves(a) if d.frozen and d not in reasons}

    growth = random_growth(may_grow(axes), np.random.default_rng(data.draw(st.integers(0, 99))))
    for a, b in same:
        assert spelled(a) == spelled(b)
        assert compose(a, growth).index.tolist() == compose(b, growth).index.tolist()
        assert new_size(a, growth) == new_size(b, growth) == compose(a, growth).new


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_two_coarsenings_of_one_product_always_unify(data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from((2, 3, 5)), min_size=1, max_size=5))

    def coarse() -> Axis:
        bounds = [0, *sorted(data.draw(st.sets(st.integers(1, len(factors) - 1)) if len(factors) > 1 else st.just([])))]
        bounds.append(len(factors))
        return Product(Dim(int(np.prod(factors[i:j]))) for i, j in pairwise(bounds))

    a, b, c = coarse(), coarse(), coarse()
    assert unify(a, b, "first")
    assert unify(b, c, "second")
    assert spelled(a) == spelled(b) == spelled(c)
    assert not any(dim.frozen for dim in leaves(a))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sets(st.integers(1, 11)), min_size=2, max_size=4))
def test_two_concatenations_are_cut_at_the_union_of_their_boundaries(cuts: list[set[int]]) -> None:
    axes = []
    for inner in cuts:
        bounds = [0, *sorted(inner), 12]
        axes.append(Concat(Dim(j - i) for i, j in pairwise(bounds)))
    assert all(unify(axes[0], axis, "same") for axis in axes[1:])
    union = [0, *sorted(set().union(*cuts)), 12]
    assert [dim.size for dim in leaves(axes[0])] == np.diff(union).tolist()
    assert len({str(spelled(axis)) for axis in axes}) == 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_order_of_statements_does_not_matter_where_all_of_them_hold(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    total = data.draw(st.sampled_from(TOTALS))
    count = data.draw(st.integers(3, 4))
    pairs = data.draw(
        st.lists(st.sampled_from([(i, j) for i in range(count) for j in range(i)]), min_size=2, max_size=3)
    )

    def build(statements: list[tuple[int, int]]) -> tuple[bool, list[Units]]:
        pool: list[Dim] = []
        axes = [plain(total, pool, np.random.default_rng((seed, k))) for k in range(count)]
        held = [unify(axes[i], axes[j], "same") for i, j in statements]
        return all(held), renamed(axes)

    (held, one), (held_too, other) = build(pairs), build(pairs[::-1])
    if held and held_too:
        assert one == other


def plain(size: int, pool: list[Dim], rng: np.random.Generator, depth: int = 2) -> Axis:
    """Like `expressions`, but the same for the same seed."""
    known = [dim for dim in pool if dim.size == size]
    if known and rng.random() < 0.4:
        return known[rng.integers(len(known))]
    divisors = [d for d in range(2, size) if size % d == 0]
    kind = rng.integers(3) if depth else 0
    if kind == 1 and size > 1:
        first = int(rng.integers(1, size))
        return Concat(plain(part, pool, rng, depth - 1) for part in (first, size - first))
    if kind == 2 and divisors:
        outer = divisors[rng.integers(len(divisors))]
        return Product(plain(part, pool, rng, depth - 1) for part in (outer, size // outer))
    pool.append(Dim(size))
    return pool[-1]


@pytest.mark.xfail(strict=True, reason="a frozen part of size 1 is dropped from the leaves, and its ratio with it")
def test_units_of_a_uniform_axis_are_copied_equally_often() -> None:
    for seed in range(600):
        rng = np.random.default_rng(seed)
        total, pool = int(rng.choice(TOTALS)), []
        axes = [plain(total, pool, rng) for _ in range(3)]
        keep_uniform(axes[0], "norm")
        unify(axes[0], axes[1], "one")
        unify(axes[1], axes[2], "two")
        growth = random_growth(may_grow(axes), rng)
        assert len(set(np.bincount(compose(axes[0], growth).index, minlength=total))) == 1, f"{axes[0]} by {growth}"


def test_resolving_twice_changes_nothing() -> None:
    axis = resolve(Product((Concat((Dim(1), Dim(1))), Dim(6))))
    assert is_normal(axis)
    assert repr(resolve(axis)) == repr(axis)


# --- What real graphs state ---------------------------------------------------------------------------------------


def free(*axes: Axis) -> list[int]:
    return [dim.size for dim in dict.fromkeys(d for axis in axes for d in leaves(axis)) if not dim.frozen]


def test_flattened_channels_are_channels_times_positions() -> None:
    c, h, w, features = Dim(8), Dim(3, "fixed"), Dim(5, "fixed"), Dim(120)
    assert unify(Product((c, h, w)), features, "Flatten")
    assert resolve(features).parts == (c, h, w)  # type: ignore[union-attr]
    assert free(features) == [8]


def test_a_fused_projection_in_three_equal_parts_is_three_times_heads_times_head_dim() -> None:
    heads, width = Dim(4), Dim(6)
    fused, q, k, v = Dim(72), Dim(24), Dim(24), Dim(24)
    assert unify(fused, Concat((q, k, v)), "Split")
    for part in (q, k, v):
        assert unify(part, Product((heads, width)), "Reshape")
    assert free(fused) == [4, 6]
    assert spelled(q) == spelled(k) == spelled(v)
    assert compose(fused, random_growth([heads], np.random.default_rng(0))).new % 18 == 0


def test_a_product_led_by_three_meets_three_parts_that_are_then_one() -> None:
    three, heads, width = Dim(3, "q, k, v"), Dim(4), Dim(6)
    q, k, v = Dim(24), Dim(24), Dim(24)
    assert unify(Product((three, heads, width)), Concat((q, k, v)), "Reshape")
    assert spelled(q) == spelled(k) == spelled(v) == spelled(Product((heads, width)))


def test_groups_are_a_factor_of_both_sides() -> None:
    channels, wider = Dim(12), Dim(18)
    g, i, o = Dim(3), Dim(4), Dim(6)
    assert unify(channels, Product((g, i)), "group")
    assert unify(wider, Product((g, o)), "group")
    assert unify(channels, Dim(12), "Relu")
    assert free(channels, wider) == [3, 4, 6]


def test_every_so_many_units_may_be_taken_again() -> None:
    axis = Dim(12)
    first, second = factor(axis, 2, "Slice"), factor(axis, 2, "Slice")
    assert first is not None
    assert second is not None
    assert unify(first[0], second[0], "Mul")
    assert spelled(axis) == spelled(Product(second))
    finer = factor(axis, 4, "Slice")
    assert finer is not None
    assert [part.size for part in finer] == [3, 4]
    assert free(axis) == [3, 2, 2]


def test_an_axis_that_contains_itself_is_frozen() -> None:
    heads, width = Dim(4), Dim(6)
    assert not unify(Product((heads, width)), Product((width, heads)), "transposed")
    assert free(heads, width) == []
    a, b = Dim(3), Dim(3)
    assert not unify(Concat((a, b)), Concat((b, a, Dim(0))), "swapped") or spelled(a) == spelled(b)


def test_a_cut_inside_a_factor_freezes_both() -> None:
    a, b = Product((Dim(3), Dim(4))), Concat((Dim(6), Dim(6)))
    assert cut(a, 6) is None
    assert not unify(a, b, "in the middle")
    assert free(a, b) == []


def test_unequal_sizes_never_unify() -> None:
    a, b = Dim(3), Dim(4)
    assert not unify(a, b, "no")
    assert (a.frozen, b.frozen) == ("no", "no")


def test_frozen_spreads_and_the_first_reason_stays() -> None:
    a, b = Dim(6, "first"), Product((Dim(2), Dim(3)))
    freeze(a, "second")
    assert unify(a, b, "third")
    assert {dim.frozen for dim in leaves(b)} == {"first"}


def test_of_two_dims_the_older_stays() -> None:
    a, b = Dim(3), Dim(3)
    assert unify(b, a, "same")
    assert resolve(b) is resolve(a) is a


def test_size_one_is_frozen_unless_cut_from_a_larger_dim() -> None:
    assert Dim(1).frozen
    assert Dim(0).frozen
    whole = Dim(4)
    single = units(whole)
    assert [unit.origin for unit in single] == [whole] * 4  # type: ignore[union-attr]
    assert not any(unit.frozen for unit in single)  # type: ignore[union-attr]
    assert all(unit.frozen == "no" for unit in units(Dim(3, "no")))  # type: ignore[union-attr]
    assert units(single[0]) == [single[0]]


def test_units_of_a_product_are_all_pairs_in_order() -> None:
    a, b = Dim(2), Dim(3)
    single = units(Product((a, b)))
    assert len(single) == 6
    assert spelled(Concat(single)) == spelled(Product((a, b)))


def test_only_copies_is_carried_over() -> None:
    a, b = Dim(6), Product((Dim(2), Dim(3)))
    only_copies(a, "maximum")
    unify(a, b, "same")
    assert {dim.copies for dim in leaves(b)} == {"maximum"}


def test_pins_are_carried_over_as_pins() -> None:
    a, b = Dim(6), Product((Dim(2), Dim(3)))
    pin(a, "input")
    unify(a, b, "same")
    assert {(dim.pinned, dim.fixed) for dim in leaves(b)} == {("input", None)}


@pytest.mark.parametrize("hold", [freeze, pin])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("first", [True, False])
def test_a_ratio_remembers_that_one_of_its_dims_is_frozen(
    hold: Callable[[Axis, str], None], place: int, first: bool
) -> None:
    dims = [Dim(2), Dim(3), Dim(3), Dim(4)]
    if first:
        hold(dims[place], "no")
    keep_uniform(Concat(dims[:2]), "norm")
    keep_uniform(Concat(dims[2:]), "norm")
    if not first:
        hold(dims[place], "no")
    unify(dims[1], dims[2], "same")  # joins the ratios
    assert {dim.ratio.root().frozen for axis in dims for dim in leaves(axis) if dim.ratio} == {"no"}


@pytest.mark.parametrize("parts", [(Dim(4),), (Dim(2), Dim(3))])
def test_factors_of_a_uniform_axis_grow_independently(parts: tuple[Dim, ...]) -> None:
    keep_uniform(Product(parts), "norm")
    assert len({dim.ratio.root() for dim in parts if dim.ratio}) == len(parts)
    assert not any(dim.frozen for dim in parts)
    assert {dim.statistic for dim in parts} == {"norm"}


def test_parts_of_a_uniform_concatenation_grow_by_one_ratio() -> None:
    a, b = Dim(2), Dim(3)
    keep_uniform(Concat((a, b)), "norm")
    assert a.ratio.root() is b.ratio.root()  # type: ignore[union-attr]
    keep_uniform(Concat((b, Dim(4))), "another")
    assert a.ratio.root() is b.ratio.root()  # type: ignore[union-attr]


def test_a_part_of_a_uniform_concatenation_that_has_factors_is_frozen() -> None:
    a, b = Dim(6), Dim(3)
    keep_uniform(Concat((a, b)), "norm")
    unify(a, Product((Dim(2), Dim(3))), "Reshape")
    assert free(a) == []
    c = Concat((Product((Dim(2), Dim(3))), Dim(4)))
    keep_uniform(c, "norm")
    assert free(c) == []


def test_cutting_a_uniform_dim_keeps_it_uniform() -> None:
    whole = Dim(6)
    keep_uniform(whole, "norm")
    cut(whole, 2)
    first, second = leaves(whole)
    assert first.ratio.root() is second.ratio.root()  # type: ignore[union-attr]


@pytest.mark.parametrize("layers", [20, 40])
def test_what_reads_a_chain_of_concatenations_finds_each_of_them_once(
    monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """As in DenseNet: only a dim that stands in a concatenation can change it, not one that is bound to it."""
    built = []
    normal = dims._normal
    monkeypatch.setattr(dims, "_normal", lambda parts, kind: built.append(kind) or normal(parts, kind))
    axis: Axis = Dim(4)
    for layer in range(layers):
        weight, made, result = Dim(axis.size), Dim(4), Dim(axis.size + 4)
        assert unify(axis, weight, "")
        assert unify(made, Dim(4), "")
        assert unify(Concat([axis, made]), result, "")
        axis = result
        assert len(leaves(axis)) == layer + 2
    assert len(built) == layers
    assert unify(made, Concat([Dim(1), Dim(3)]), "")
    assert len(leaves(axis)) == layers + 2
    assert len(built) > layers
