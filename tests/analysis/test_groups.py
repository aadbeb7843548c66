"""The dims of a model as people see them: how large, on how many weights, and why one cannot grow."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from graphs import net

from onnx_net2net import BadInputError, inspect, load
from onnx_net2net.algebra.dims import unify
from onnx_net2net.algebra.maps import replicate
from onnx_net2net.analysis.groups import Group, covered, inspect_analysis, paused_gc
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.names import name_dims


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def groups(proto: onnx.ModelProto) -> dict[str, Group]:
    return {group.name: group for group in inspect(proto).groups}


MLP = """(float[N, 6] x) => (float[N, 4] y) {
    h = Gemm(x, "up.weight", "up.bias") r = Relu(h) y = MatMul(r, "down.weight") }"""


def mlp() -> onnx.ModelProto:
    return net(MLP, **{"up.weight": draw(6, 8), "up.bias": draw(8), "down.weight": draw(8, 4)})


def test_a_dim_counts_the_constants_that_have_it_and_their_elements() -> None:
    found = groups(mlp())
    up, down = found["up"], found["down"]
    assert (up.size, up.tensors, up.elements, up.reason) == (8, 3, 6 * 8 + 8 + 8 * 4, None)
    assert (down.size, down.tensors, down.elements) == (4, 1, 32)
    assert inspect(mlp()).elements == 6 * 8 + 8 + 8 * 4


def test_a_constant_that_is_read_twice_is_counted_once() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        h = MatMul(x, up) a = Add(h, b) r = Relu(a) s = Add(r, b) y = MatMul(s, down) }"""
    found = groups(net(text, up=draw(6, 8), b=draw(8), down=draw(8, 4)))
    assert (found["up"].tensors, found["up"].elements) == (3, 48 + 8 + 32)


def test_the_interface_grows_only_on_request_and_kernels_never() -> None:
    text = """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        h = Conv<pads = [1, 1, 1, 1]>(x, up) r = Relu(h) y = Conv(r, down) }"""
    found = inspect(net(text, up=draw(8, 3, 3, 3), down=draw(4, 8, 1, 1))).groups
    told = {group.size: (bool(group.reason), group.on_request) for group in found if "kernel" not in group.role}
    assert told[8] == (False, False)
    assert told[4] == (True, True)
    kernels = [group for group in found if group.size == 3 and not group.on_request]
    assert len(kernels) == 2
    assert all(group.reason for group in kernels)


def test_what_nobody_sums_over_does_not_grow() -> None:
    text = "(float[N, 6] x) => (float[N, 1] y) { h = MatMul(x, up) m = ReduceMax<keepdims = 1>(h, last) y = Relu(m) }"
    (up,) = [group for group in inspect(net(text, up=draw(6, 8), last=np.array([-1]))).groups if group.size == 8]
    assert up.reason == "no weight sums over it, so that nothing would read new units"


def test_a_statistic_lets_whole_factors_or_padding_grow() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        h = MatMul(x, up) r = Relu(h) n = LayerNormalization(r, gain) y = MatMul(n, down) }"""
    known = {"up": draw(6, 8), "gain": draw(8), "down": draw(8, 4)}
    behind = groups(net(text, **known))["up"]
    assert behind.is_uniform
    assert behind.is_whole, "a Relu keeps no means"
    assert behind.fillable
    assert "whole factors" in repr(behind)
    linear = groups(net(text.replace("Relu", "Identity"), **known))["up"]
    assert linear.padding == "mean"
    assert not linear.is_whole
    assert "growable" in repr(linear)


def test_a_dim_whose_growth_drags_a_fixed_one_along_does_not_grow() -> None:
    text = """(float[N, 6] x, float[N, 8] skip) => (float[N, 4] y) {
        h = MatMul(x, up) c = Concat<axis = 1>(h, skip) n = LayerNormalization(c, gain) y = MatMul(n, down) }"""
    found = groups(net(text, up=draw(6, 8), gain=draw(16), down=draw(16, 4)))
    assert "is the model's input 'skip'" in str(found["up"].reason)


def test_dims_that_were_made_one_after_they_were_named_have_both_names() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        a = MatMul(x, "one.weight") r = Relu(a) b = MatMul(r, "two.weight") s = Relu(b)
        y = MatMul(s, "down.weight") }"""
    model = load(net(text, **{"one.weight": draw(6, 8), "two.weight": draw(8, 8), "down.weight": draw(8, 4)}))
    analysis = infer(model)
    names = name_dims(analysis, model.proto)
    one, two = (next(dim for dim, name in names.items() if name == wanted) for wanted in ("one", "two"))
    assert unify(one, two, "a class makes them of one size")
    (group,) = [group for group in inspect_analysis(model, analysis, names).groups if group.reason is None]
    assert {group.name, *group.aliases} == {"one", "two"}
    assert group.tensors == 3


def test_covered_is_the_share_of_the_weights_on_a_grown_axis() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        h = Gemm(x, up, b) r = Relu(h) i = MatMul(r, mid) s = Relu(i) y = MatMul(s, down) }"""
    known = {
        "mask": np.ones((1, 6), np.float32),
        "up": draw(6, 8),
        "b": draw(8),
        "mid": draw(8, 10),
        "down": draw(10, 4),
    }
    model = load(net(text, **known))
    analysis = infer(model)
    (dim,) = [dim for dim in analysis.dims() if dim.size == 8 and not dim.frozen]
    weights = 48 + 8 + 80 + 40
    assert covered(analysis, {}) == 0
    growth = {dim: replicate(8, 12, np.random.default_rng(0))}
    assert covered(analysis, growth) == pytest.approx((48 + 8 + 80) / weights)


def test_the_collector_is_as_it_was() -> None:
    assert gc.isenabled()
    with paused_gc():
        assert not gc.isenabled()
        with paused_gc():
            pass
        assert not gc.isenabled(), "whoever paused it first wakes it"
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), paused_gc():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_a_model_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(BadInputError):
        inspect(onnx.ModelProto())
