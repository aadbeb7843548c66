"""A view of grown weights is the grown view: what a framework calls an entry grows as the exporter's weight does."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_net2net.algebra.maps import Map, from_index, identity
from onnx_net2net.algebra.views import Blocks, Once, Reshape, Slice, Transpose, View, apply, carry_view, joined
from onnx_net2net.algebra.weights import AxisGrowth
from onnx_net2net.errors import RefusedError


def copies(old: int, *more: int) -> Map:
    """The old units, and copies behind them."""
    return from_index(old, np.array([*range(old), *more]))


def product(outer: Map, size: int) -> Map:
    """Copies of whole runs of `size` units."""
    return from_index(outer.old * size, (outer.index[:, None] * size + np.arange(size)).reshape(-1))


def blockwise(inner: Map, times: int) -> Map:
    """The same copies in each of several blocks."""
    return from_index(inner.old * times, (np.arange(times)[:, None] * inner.old + inner.index).reshape(-1))


def copied(array: np.ndarray, sides: tuple[AxisGrowth, ...]) -> np.ndarray:
    for axis, side in enumerate(sides):
        array = np.take(array, side.map.index, axis)
    return array


FOLLOWED = {
    "a part": ((Slice(0, 2, 5),), (from_index(6, np.array([0, 1, 0, 2, 2, 3, 4, 3, 5])), copies(3, 2))),
    "a part whose units have copies beside them": (
        (Slice(0, 2, 4),),
        (from_index(4, np.array([0, 1, 0, 2, 3, 3, 2])), copies(3, 1)),
    ),
    "one of equal lines": ((Once(1),), (copies(4, 2, 2), copies(3))),
    "axes in another order": ((Transpose((1, 0, 2)),), (copies(2, 1), copies(3, 0), copies(4, 3, 1))),
    "gates in another order": ((Blocks(0, (2, 0, 3, 1)),), (blockwise(copies(3, 1), 4), copies(2, 0))),
    "gates whose copies are of different units": (
        (Blocks(0, (1, 2, 0)),),
        (from_index(6, np.array([0, 1, 1, 2, 3, 2, 4, 5, 5])), copies(2)),
    ),
    "heads and their width": ((Reshape((3, 2, 5)),), (product(copies(3, 0, 2), 2), copies(5))),
    "heads whose width grows": ((Reshape((3, 2, 5)),), (blockwise(copies(2, 1), 3), copies(5))),
    "axes made one": ((Reshape((6, 5)),), (copies(3, 1), copies(2, 0), copies(5, 4))),
    "axes of size 1": ((Reshape((1, 4, 1, 3)),), (copies(4, 2), copies(3, 0))),
    "several steps": (
        (Slice(0, 0, 6), Reshape((3, 2, 4)), Transpose((2, 0, 1))),
        (from_index(12, np.concatenate([product(copies(3, 1), 2).index, np.arange(6, 12)])), copies(4, 3)),
    ),
}


def test_what_each_step_shows() -> None:
    values = np.arange(12).reshape(6, 2)
    assert apply((Slice(0, 1, 3),), values).tolist() == [[2, 3], [4, 5]]
    assert apply((Once(1),), values).tolist() == [[0], [2], [4], [6], [8], [10]]
    assert apply((Blocks(0, (2, 0, 1)),), values)[:, 0].tolist() == [8, 10, 0, 2, 4, 6]
    assert apply((Transpose((1, 0)), Reshape((3, 4))), values).tolist() == [[0, 2, 4, 6], [8, 10, 1, 3], [5, 7, 9, 11]]


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("reads", [False, True])
def test_the_view_of_a_grown_array_is_the_grown_view(name: str, reads: bool) -> None:
    view, maps = FOLLOWED[name]
    sides = tuple(AxisGrowth(map, reads=reads and not isinstance(view[0], Once)) for map in maps)
    values = np.arange(np.prod([map.old for map in maps])).reshape([map.old for map in maps])
    grown_view, grown_sides = carry_view(view, sides)
    assert np.array_equal(apply(grown_view, copied(values, sides)), copied(apply(view, values), grown_sides))
    assert all(side.reads == sides[0].reads for side in grown_sides if not side.map.is_identity)


@pytest.mark.parametrize("name", FOLLOWED)
def test_shares_stay_with_the_copies(name: str) -> None:
    """Numbers of their own along one axis are where the units are that they belong to."""
    view, maps = FOLLOWED[name]
    sides = tuple(AxisGrowth(map, shares=map.weight**2) for map in maps)
    values = np.ones([map.new for map in maps])
    for axis, side in enumerate(sides):
        np.moveaxis(values, axis, -1)[...] *= side.learned
    grown_view, grown = carry_view(view, sides)
    expected = np.ones([side.map.new for side in grown])
    for axis, side in enumerate(grown):
        np.moveaxis(expected, axis, -1)[...] *= side.learned
    np.testing.assert_allclose(apply(grown_view, values), expected)


@pytest.mark.parametrize(
    ("view", "maps", "words"),
    [
        ((Slice(0, 0, 2),), (from_index(4, np.array([0, 1, 2, 3, 0])),), "copies of its units lie apart"),
        ((Blocks(0, (1, 0)),), (from_index(4, np.array([0, 1, 1, 2, 3])),), "blocks grow to different sizes"),
        ((Reshape((2, 3)),), (from_index(6, np.array([*range(6), 5])),), "in a way that its factors do not"),
        ((Reshape((3, 4)),), (copies(2, 1), copies(6)), "laid out anew in a way that is not followed"),
    ],
)
def test_what_does_not_grow_axis_by_axis_is_refused(view: View, maps: tuple[Map, ...], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        carry_view(view, tuple(AxisGrowth(map) for map in maps))


def test_parts_and_axes_of_which_some_are_divided_are_refused() -> None:
    made, read = AxisGrowth(copies(2, 1)), AxisGrowth(copies(3, 0), reads=True)
    with pytest.raises(RefusedError, match="some of its parts are copied and others divided"):
        joined([made, read])
    with pytest.raises(RefusedError, match="some of its axes are copied and others divided"):
        carry_view((Reshape((6,)),), (made, read))
    with pytest.raises(RefusedError, match="what it repeats is weighed differently"):
        carry_view((Once(0),), (read,))


def test_parts_that_are_joined_lie_end_to_end() -> None:
    sides = [AxisGrowth(copies(2, 1)), AxisGrowth(identity(3)), AxisGrowth(copies(2, 0, 0))]
    whole = joined(sides).map
    assert whole.old == 7
    assert whole.index.tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 5, 5]
    assert whole.weight.tolist() == [1, 0.5, 0.5, 1, 1, 1, 1 / 3, 1, 1 / 3, 1 / 3]
