"""Random numbers of rows: the same in any order, of the right size, and no two rows alike."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_net2net.algebra.noise import Noise


def noise(rows: int, count: int, **how: float) -> Noise:
    return Noise(np.random.default_rng(3), rows, count, **how)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (4, 7), (300, 2048), (3, 70000), (9, 65521)])
def test_rows_are_the_same_whenever_they_are_asked_for(rows: int, count: int) -> None:
    whole = noise(rows, count).of(np.arange(rows))
    assert whole.shape == (rows, count)
    order = np.random.default_rng(0).permutation(rows)
    np.testing.assert_array_equal(noise(rows, count).of(order), whole[order])
    assert len(np.unique(whole, axis=0)) == rows, "no two rows are alike"


def test_few_numbers_are_all_drawn() -> None:
    values = noise(20, 30).of(np.arange(20))
    assert len(np.unique(values)) > 590
    assert abs(values.mean()) < 0.1
    assert 0.9 < values.std() < 1.1


@pytest.mark.parametrize("deviation", [0.3, 5.0])
def test_numbers_have_the_deviation_and_are_odd_multiples_of_half_a_step(deviation: float) -> None:
    values = noise(100, 900, deviation=deviation, step=1 / 256).of(np.arange(100))
    assert 0.95 < values.std() / deviation < 1.05
    assert set(np.unique(values * 512 % 2)) == {1.0}
