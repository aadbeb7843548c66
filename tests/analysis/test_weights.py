"""Which constants are weights, and which are masks, sizes and places."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import net

from onnx_net2net import load
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.weights import weight_uses


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def names(proto: onnx.ModelProto) -> list[str]:
    return sorted(use.constant.name for use in weight_uses(infer(load(proto))))


def test_matrices_and_what_shares_their_units_are_weights() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        h = Gemm(x, up, bias) s = Mul(h, gain) r = Reshape(s, shape) t = Mul(r, number) y = MatMul(t, down) }"""
    known = {"up": draw(6, 8), "bias": draw(8), "gain": draw(8), "down": draw(8, 4)}
    proto = net(text, **known, shape=np.array([-1, 8]), number=np.float32(2))
    assert names(proto) == ["bias", "down", "gain", "up"]


def test_tables_that_are_looked_up_are_weights_and_places_are_none() -> None:
    text = """(int64[N, 5] i) => (float[N, 3, 4] y) {
        e = Gather<axis = 0>(table, i) p = Gather<axis = 1>(e, places) y = MatMul(p, down) }"""
    assert names(net(text, table=draw(9, 8), places=np.array([0, 2, 4]), down=draw(8, 4))) == ["down", "table"]


def test_masks_are_no_weights() -> None:
    text = """(float[N, 5, 8] x) => (float[N, 5, 5] y) {
        q = MatMul(x, up) t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(q, t) y = Add(s, mask) }"""
    assert names(net(text, up=draw(8, 8), mask=draw(5, 5))) == ["up"]


def test_a_constant_that_is_read_twice_is_listed_once() -> None:
    text = "(float[N, 8] x) => (float[N, 8] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }"
    assert names(net(text, w=draw(8, 8))) == ["w"]
