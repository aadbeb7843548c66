"""Operators that onnx2fx lacks or computes otherwise: `to_torch` compares each with onnxruntime."""

import numpy as np
import pytest
from graphs import net

from onnx_net2net import to_torch

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2fx")

MICROSOFT = ', "com.microsoft" : 1'


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


W = {"w": array(6, 8)}
CASES = {
    "BiasGelu": ("(float[n, 6] x) => (float[n, 8] y) { a = MatMul(x, w) y = com.microsoft.BiasGelu(a, b) }",
                 {**W, "b": array(8)}),
    "FastGelu": ("(float[n, 6] x) => (float[n, 8] y) { a = MatMul(x, w) y = com.microsoft.FastGelu(a) }", W),
    "QuickGelu": ("(float[n, 6] x) => (float[n, 8] y) { a = MatMul(x, w) y = com.microsoft.QuickGelu<alpha=1.5>(a) }",
                  W),
    "FusedMatMul": ("(float[n, 6] x) => (float[n, 5] y) { y = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(x, w) }",
                    {"w": array(5, 6)}),
    "FusedConv": ("""(float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) {
        y = com.microsoft.FusedConv<activation = "LeakyRelu", activation_params = [0.1], kernel_shape = [3, 3]>(x, w, b)
        }""", {"w": array(4, 3, 3, 3), "b": array(4)}),
    "SkipLayerNormalization": ("""(float[n, 5, 8] x, float[n, 5, 8] s) => (float[n, 5, 8] y, float[n, 5, 8] t) {
        y, mean, inverse, t = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(x, s, g, b, o)
        }""", {"g": array(8), "b": array(8, seed=1), "o": array(8, seed=2)}),
    "Attention": ("""(float[n, 5, 8] x, int32[n, 5] mask) => (float[n, 5, 8] y) {
        y = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(x, w, b, mask)
        }""", {"w": array(8, 24), "b": array(24)}),
    "MoE": ("""(float[5, 8] x) => (float[5, 8] y) {
        l = MatMul(x, r)
        y = com.microsoft.MoE<k = 2, activation_type = "silu", normalize_routing_weights = 1>(x, l, f, fb, s, sb)
        }""", {"r": array(8, 4), "f": array(4, 6, 8), "fb": array(4, 6), "s": array(4, 8, 6), "sb": array(4, 8)}),
    "Gather": ("(float[n, 6, 8] x) => (float[n, 8] y) { a = Gather<axis = 1>(x, last) y = MatMul(a, w) }",
               {"last": np.int64(-1), "w": array(8, 8)}),
    "GatherND": ("(float[n, 6, 8] x) => (float[m, 8] y) { a = GatherND(x, places) y = MatMul(a, w) }",
                 {"places": np.array([[0, 2], [-1, 5], [0, 2]]), "w": array(8, 8)}),
    "GatherND of each": ("(float[3, 6, 8] x) => (float[3, 8] y) { a = GatherND<batch_dims = 1>(x, places) "
                         "y = MatMul(a, w) }", {"places": np.array([[2], [-1], [0]]), "w": array(8, 8)}),
    "ScatterND": ("(float[3, 8] x) => (float[3, 8] y) { a = MatMul(x, w) y = ScatterND(a, places, new) }",
                  {"places": np.array([[2], [-3]]), "w": array(8, 8), "new": array(2, 8)}),
    "ScatterND, added": ("""(float[3, 8] x) => (float[3, 8] y) {
        a = MatMul(x, w) y = ScatterND<reduction = "add">(a, places, new)
        }""", {"places": np.array([[2], [0], [2]]), "w": array(8, 8), "new": array(3, 8)}),
    "ScatterND of nothing": ("""(float[3, 8] x) => (float[3, 8] y) {
        a = MatMul(x, w) none = NonZero(nothing) places = Transpose(none) b = GatherND(a, places)
        y = ScatterND<reduction = "add">(a, places, b)
        }""", {"nothing": np.zeros(3, np.int64), "w": array(8, 8)}),
    "Loop": ("""(float[2, 8] x) => (float[2, 8] y) <int64 count = {3}, bool yes = {1}> {
        z = Loop(count, yes, x)<body = step (int64 i, bool go, float[2, 8] old) => (bool on, float[2, 8] new) {
            on = Identity(go) p = MatMul(old, w) new = Tanh(p) }>
        y = Relu(z)
        }""", {"w": array(8, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(CASES))
def test_it_computes_what_onnxruntime_does_and_every_weight_has_a_gradient(kind):
    text, weights = CASES[kind]
    proto = net(text, imports=MICROSOFT, **weights)
    module = to_torch(proto)
    floats = {name for name, value in weights.items() if value.dtype.kind == "f"}
    assert {name for name, _ in module.named_parameters()} == floats
    shapes = [[size.dim_value or 3 for size in value.type.tensor_type.shape.dim] for value in proto.graph.input]
    ids = [value.type.tensor_type.elem_type != 1 for value in proto.graph.input]
    outputs = module(
        *(torch.ones(*s, dtype=torch.int32) if i else torch.randn(*s) for s, i in zip(shapes, ids, strict=True))
    )
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output**2).sum() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_quantizers_have_a_scale_for_each_channel_and_any_integer(kind):
    text = """(float[n, 6, 4] x) => (float[n, 6, 4] y) {
        q = QuantizeLinear<axis = 1>(x, scale, zero)
        d = DequantizeLinear<axis = 1>(q, scale, zero)
        w = DequantizeLinear<axis = 0>(k, ks, kz)
        a = MatMul(d, w)
        dq, ds, dz = DynamicQuantizeLinear(a)
        y = DequantizeLinear(dq, ds, dz)
    }"""
    rng = np.random.default_rng(0)
    known = {
        "scale": rng.uniform(0.01, 0.1, 6).astype(np.float32),
        "zero": rng.integers(0, 9, 6).astype(kind),
        "k": rng.integers(0, 99, (4, 4)).astype(np.int8),
        "ks": rng.uniform(0.01, 0.1, 4).astype(np.float32),
        "kz": rng.integers(0, 9, 4).astype(np.int8),
    }
    to_torch(net(text, **known))
