"""Operators of a user's own, with rules from outside the package."""

import numpy as np
import pytest
from graphs import net
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from wide import contents, draw, mlp, new_sizes, widen_exactly

from onnx_net2net import RefusedError, inspect, rules, widen


def custom(shapes=True):
    """Two layers of a user's own operator around its own activation."""
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = my.company.MyLinear(x, up) r = my.company.MyNorm(h, gain) y = my.company.MyLinear(r, down) }"""
    named = {"up": draw(16, 8), "gain": 1 + draw(16), "down": draw(4, 16)}
    proto = net(text, imports=', "my.company" : 1', **named)
    if shapes:
        proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 16]) for name in "hr")
    return proto


class MyLinear(OpRun):
    op_domain = "my.company"

    def _run(self, x, w):
        return (x @ w.T,)


class MyNorm(OpRun):
    op_domain = "my.company"

    def _run(self, x, gain):
        return (x / x.std(axis=-1, keepdims=True) * gain,)


def test_an_unknown_operator_keeps_its_dims_and_the_message_says_how_to_add_a_rule():
    reasons = {group.reason for group in inspect(custom()).groups}
    assert reasons == {
        f"{kind} {name!r} has no growth rule (my.company::{kind}, opset 1; see onnx_net2net.rules.rule)"
        for kind, name in (("MyLinear", "h"), ("MyNorm", "r"), ("MyLinear", "y"))
    }
    with pytest.raises(RefusedError, match="nothing grows: 'up': MyLinear 'h' has no growth rule"):
        widen(custom(), factor=2)


def test_a_users_own_operators_grow_by_the_users_own_rules(registry):
    rules.signature("MyLinear", "*b k, n k -> *b n", domain="my.company")

    @rules.rule("MyNorm", domain="my.company")
    def my_norm(op):
        op.apply("*b c, c -> *b c", uniform="c")
        op.scales(1)

    widening = widen(custom(), factor=2)
    assert new_sizes(widening) == {"up": 32}
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    expected, actual = (
        ReferenceEvaluator(proto, new_ops=[MyLinear, MyNorm]).run(None, feeds)[0]
        for proto in (custom(), contents(widening.student))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_an_operator_of_onnxruntime_grows_by_a_rule_from_outside(registry):
    del rules._registry["", "Relu"]
    assert (
        inspect(mlp()).groups[0].reason == "Relu 'r' has no growth rule (Relu, opset 18; see onnx_net2net.rules.rule)"
    )
    rules.signature("Relu", "*x -> *x", pointwise="relu")
    assert new_sizes(widen_exactly(mlp(), factor=1.5)) == {"up": 24}
