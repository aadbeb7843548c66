"""Who weighs the copies that a sum runs over."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import net
from wide import contents, draw, widen_exactly

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.algebra.maps import uniform
from onnx_net2net.analysis.inference import infer
from onnx_net2net.model.model import load
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rewrite.sums import axis_growths, find_weighers

MLP = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"


def rewriting(text: str, tensor: str, **weights: np.ndarray) -> Rewriting:
    """The graph, whose last axis of a tensor is to have each unit twice."""
    analysis = infer(load(net(text, **weights)))
    (dim,) = leaves(analysis.axes[tensor][-1])
    return Rewriting(analysis, {dim: uniform(dim.size, 2 * dim.size)})


def test_the_weight_that_reads_the_copies_weighs_them() -> None:
    made = rewriting(MLP, "h", w=draw(8, 16), v=draw(16, 4))
    weighers, inserts = find_weighers(made, {}, ())
    assert (list(weighers), inserts) == ([(2, 1)], [])
    (axis, still) = axis_growths(made, made.analysis.uses[2, 1], weighers)
    assert (axis.reads, axis.spread, still.map.is_identity) == (True, True, True)
    assert axis.map.weight.tolist() == [0.5] * 32
    (_, made_axis) = axis_growths(made, made.analysis.uses[0, 1], weighers)
    assert (made_axis.reads, made_axis.map.new) == (False, 32)


def test_a_sum_that_is_said_to_need_none_gets_none() -> None:
    made = rewriting(MLP, "h", w=draw(8, 16), v=draw(16, 4))
    assert find_weighers(made, {}, {2}) == ({}, [])


def test_random_weights_may_read_padding_that_holds_zero() -> None:
    made = rewriting(MLP, "h", w=draw(8, 16), v=draw(16, 4))
    (dim,) = made.growth
    weighers, _ = find_weighers(made, {"r": {dim: "zero"}}, ())
    assert weighers[2, 1][0].silent


@pytest.mark.parametrize(("law", "weight"), [("ReduceSum", [0.5] * 2), ("ReduceL2", [0.5**0.5] * 2)])
def test_where_no_weight_can_a_node_does(law: str, weight: list[float]) -> None:
    text = f"(float[N, 8] x) => (float[N, 1] y) {{ h = MatMul(x, w) s = Sigmoid(h) y = {law}(s, axes) }}"
    made = rewriting(text, "h", w=draw(8, 16), axes=np.array([1]))
    weighers, [(number, index, position, map)] = find_weighers(made, {}, ())
    assert (weighers, number, index, position) == ({}, 2, 0, 1)
    np.testing.assert_allclose(map.weight[:2], weight)


def test_copies_under_a_softmax_share_what_their_unit_had() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) s = Softmax(h) y = MatMul(s, v) }"""
    widening = widen_exactly(net(text, w=draw(8, 16), v=draw(16, 4)), factor=1.5)
    ops = [node.op_type for node in contents(widening.student).graph.node]
    assert ops == ["MatMul", "Add", "Softmax", "Mul", "MatMul"]
