"""Copies that are chosen together count as their expert did, by shares that gates give them or by a division."""

import numpy as np
import pytest
from moe import BIASED, DISPATCHES, LINEAR, LOOKED_UP, ROUTERS, TOP_1, moe

from onnx_net2net.analysis.joint_experts import find_joint_experts
from onnx_net2net.analysis.loadable import analyse
from onnx_net2net.analysis.routers import chosen_dims
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load


def shares(router, dispatch=LOOKED_UP, **changed):
    """What is found for a router, with the names of constants for places."""
    analysis = analyse(load(moe(router, dispatch, **changed)), None).analysis
    found = find_joint_experts(analysis, {dim for dim in chosen_dims(analysis) if dim.size > 2})
    names = [{analysis.uses[place].constant.name for place in places} for places in (found.parted, found.divided)]
    return names[0], names[1], {dim.size for dim in found.chosen}


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_softmax_shares_so_that_nothing_is_divided(dispatch):
    assert shares(ROUTERS["softmax, top-k"], DISPATCHES[dispatch]) == ({"down"}, set(), {2})


@pytest.mark.parametrize("router", ["top-k, softmax", "softmax, top-k, normed", "sigmoid", "sigmoid, bias"])
def test_gates_that_sum_to_one_share(router):
    assert shares(ROUTERS[router])[1] == set()


def test_sizes_of_what_is_chosen_are_no_shares():
    again = "sizes = Shape(g) same = Reshape(g, sizes) gu = Unsqueeze(same, last)"
    flat = LOOKED_UP.replace("gu = Unsqueeze(g, last)", again)
    assert shares(ROUTERS["softmax, top-k"], flat)[1] == set()


def test_places_of_which_the_shape_alone_is_read_tell_no_copies_apart():
    again = "same = Max(i) sizes = Shape(same) gs = Reshape(g, sizes) gu = Unsqueeze(gs, last)"
    flat = LOOKED_UP.replace("gu = Unsqueeze(g, last)", again)
    assert shares(ROUTERS["softmax, top-k"], flat)[1] == set()


def test_gates_that_nothing_divides_leave_that_to_the_experts():
    router = f"{LINEAR} p = Sigmoid(l) g, i = TopK<axis=-1>(p, k) "
    assert shares(router) == ({"down"}, {"down", "shift"}, {2})


def test_copies_of_a_single_expert_tie():
    with pytest.raises(RefusedError, match="chosen together"):
        shares(TOP_1, LOOKED_UP)


def test_what_mixes_shares_with_others_is_refused():
    router = f"{BIASED} p = Softmax<axis=-1>(l) v, i = TopK<axis=-1>(p, k) g = Add(v, half) "
    with pytest.raises(RefusedError, match="Add 'g' adds values that copies share to others"):
        shares(router, half=np.float32(0.5))
