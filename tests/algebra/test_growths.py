"""What is asked of a weight: equal questions have equal keys, and others have not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_net2net.algebra.growths import AxisGrowth, Style
from onnx_net2net.algebra.maps import NEVER, uniform


def test_axes_that_grow_alike_have_one_key() -> None:
    axis = AxisGrowth(uniform(3, 6), reads=True)
    assert axis.key == AxisGrowth(uniform(3, 6), reads=True).key
    others = [AxisGrowth(uniform(3, 6)), AxisGrowth(uniform(3, 9), reads=True), replace(axis, silent=True)]
    assert len({axis.key, *(other.key for other in others)}) == 4
    weighed = replace(axis.map, weight=axis.map.weight * 2)
    assert replace(axis, map=weighed).key != axis.key
    assert AxisGrowth(weighed).key == AxisGrowth(axis.map).key, "who makes units does not weigh them"


def test_gradients_are_multiplied_by_the_shares_of_others() -> None:
    map = uniform(2, 4)
    np.testing.assert_array_equal(AxisGrowth(map).learned, map.weight)
    np.testing.assert_array_equal(AxisGrowth(map, reads=True).learned, np.ones(4))
    np.testing.assert_array_equal(AxisGrowth(map, shares=np.arange(4.0)).learned, np.arange(4.0))


@pytest.mark.parametrize(("prior", "logit"), [(0.5, 0.0), (0.0, NEVER)])
def test_the_logit_of_a_prior(prior: float, logit: float) -> None:
    assert Style(prior=prior).logit == logit
