"""Where copies of experts are masked: as early as it takes, and again where something is added to the scores."""

import pytest
from moe import ALL, DISPATCHES, LINEAR, LOOKED_UP, NORMED, ROUTERS, moe

from onnx_net2net.analysis.loadable import analyse
from onnx_net2net.analysis.routers import chosen_dims, find_masks
from onnx_net2net.model.model import load


def masked(router, dispatch=LOOKED_UP, **changed):
    """The tensors that get a penalty."""
    analysis = analyse(load(moe(router, dispatch, **changed)), None).analysis
    dims = {dim for dim in chosen_dims(analysis) if dim.size > 2 or "groups" in router}
    dims = {max(dims, key=lambda dim: dim.serial)} if "groups" in router else dims
    found = find_masks(analysis, dims)
    assert {analysis.nodes[mask.layer].outputs[0].name for mask in found} == {"l"}
    return [analysis.nodes[mask.node].outputs[mask.output].name for mask in found]


@pytest.mark.parametrize(
    ("router", "names"),
    [
        ("softmax, top-k", ["l"]),
        ("top-k, softmax", ["l"]),
        ("half precision", ["l"]),
        ("temperature", ["cold"]),
        ("sigmoid", ["p"]),
        ("sigmoid, bias", ["s"]),
        ("groups", ["s"]),
        ("tokens compared", ["s"]),
    ],
)
def test_masks_are_added_where_they_reach_whatever_chooses(router, names):
    assert masked(ROUTERS[router]) == names


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_one_mask_is_enough_however_tokens_are_dispatched(dispatch):
    assert masked(ROUTERS["softmax, top-k, normed"], DISPATCHES[dispatch]) == ["l"]


def test_a_sum_over_all_experts_sees_zeros_behind_a_function_that_fades():
    total = "p = Sigmoid(l) all = ReduceSum<keepdims=1>(p, last) q = Div(p, all)"
    router = f"{LINEAR} {total} v, i = TopK<axis=-1>(q, k) {NORMED}"
    assert masked(router)[0] == "l"


def test_experts_that_are_compared_one_by_one_need_no_other_mask():
    """They are modules of their own, whose copies `analysis.modules` tells."""
    one = f"{ALL} same = Equal(i, one) marks = Cast<to=1>(same) each = Mul(marks, g) " \
          "by = ReduceSum<keepdims=1>(each, last) m0 = ReduceSum<keepdims=0>(f, one) m = Mul(m0, by) "  # fmt: skip
    assert masked(ROUTERS["softmax, top-k"], one) == ["l"]
