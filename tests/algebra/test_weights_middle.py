"""The middle of one array in the middle of another, in any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnx_net2net.algebra.weights import into_middle, window


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_window_is_the_middle_of_both(old: int, new: int) -> None:
    for size, part in zip((old, new), window(old, new), strict=True):
        assert part.stop - part.start == min(old, new)
        assert 0 <= part.start <= size - part.stop <= part.start + 1, "an odd rest is behind"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(3, 3, [1, 2, 3]), (5, 2, [2, 3]), (2, 5, [0, 1, 2, 0, 0]), (1, 4, [0, 1, 0, 0]), (4, 1, [2])],
)
def test_along_one_axis(old: int, new: int, expected: list[int]) -> None:
    assert into_middle(np.arange(1, old + 1), np.zeros(new, int)).tolist() == expected


def test_axes_are_cropped_and_padded_each_for_itself() -> None:
    source, target = np.arange(1, 9.0).reshape(2, 4), np.zeros((4, 2), np.float32)
    result = into_middle(source, target)
    assert result.tolist() == [[0, 0], [2, 3], [6, 7], [0, 0]]
    assert result.dtype == np.float32, "the target's"
    assert not target.any(), "the target itself is left alone"
