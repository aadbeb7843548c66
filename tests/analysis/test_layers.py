"""Which nodes are layers, what they read and make, and what lies between tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import net

from onnx_net2net import load
from onnx_net2net.algebra.dims import Concat, Dim, Product
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.layers import Layer, LayerGraph, dims_of, parts_of, unit_of
from onnx_net2net.graph.graph import Tensor


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def network(text: str, opset: int = 18, **weights: np.ndarray) -> LayerGraph:
    return LayerGraph(infer(load(net(text, opset, **weights))))


def sizes(dims: frozenset[Dim]) -> list[int]:
    return sorted(dim.size for dim in dims)


def tensor(found: LayerGraph, name: str) -> Tensor:
    return found.analysis.graph.tensors()[name]


def only(found: LayerGraph) -> Layer:
    (layer,) = found.layers.values()
    return layer


def test_a_dense_layer_reads_and_makes() -> None:
    layer = only(
        network("(float[N, 6] x) => (float[N, 8] y) { y = Gemm<transB = 1>(x, w, b) }", w=draw(8, 6), b=draw(8))
    )
    assert (layer.kind, layer.weights, layer.width, layer.convolves) == ("Gemm", 1, 6, False)
    assert (sizes(layer.reads), sizes(layer.makes), layer.sizes) == ([6], [8], (8,))
    assert not layer.shared


def test_weights_may_be_the_first_operand() -> None:
    layer = only(network("(float[6, S] x) => (float[8, S] y) { y = MatMul(w, x) }", w=draw(8, 6)))
    assert (layer.weights, layer.width, sizes(layer.makes)) == (0, 6, [8])


@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_has_groups_in_common_with_what_it_reads(group: int) -> None:
    text = f"""(float[N, 3, 8, 8] x) => (float[N, 10, 6, 6] y) {{
        h = Conv(x, up) y = Conv<group = {group}>(h, w) }}"""
    found = network(text, up=draw(4, 3, 1, 1), w=draw(10, 4 // group, 3, 3))
    layer = found.layers[1]
    assert layer.convolves
    assert sizes(layer.kernel) == [3, 3]
    assert sizes(layer.shared) == ([2] if group == 2 else [])
    assert sizes(layer.makes - layer.kernel) == [10 // group]
    assert np.prod(sizes(layer.reads)) == 4


def test_products_of_activations_are_no_layers() -> None:
    found = network("(float[N, 5, 6] x) => (float[N, 5, 5] y) { t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t) }")
    assert not found.layers
    assert [axis.size for axis in found.products.values()] == [6]


def test_weights_that_are_moved_scaled_or_picked_are_weights() -> None:
    text = """(float[N, 6] x, int64[1] which) => (float[N, 4] y) {
        t = Transpose(w) s = Mul(t, number) a = MatMul(x, s) r = Relu(a)
        e = Gather<axis = 0>(experts, which) p = Reshape(e, shape) y = MatMul(r, p) }"""
    found = network(text, w=draw(8, 6), number=np.float32(2), experts=draw(3, 8, 4), shape=np.array([8, 4]))
    assert {found.analysis.nodes[number].outputs[0].name for number in found.layers} == {"a", "y"}
    assert {"t", "s", "e"} <= found.weights
    assert found.is_stack(tensor(found, "experts"))
    assert not found.is_stack(tensor(found, "w"))


def test_what_a_layer_makes_of_constants_is_no_weight() -> None:
    text = """(float[N, 6] x) => (float[N, 5] y) {
        q = MatMul(learnt, w) t = Transpose(q) h = MatMul(x, up) y = MatMul(h, t) }"""
    found = network(text, learnt=draw(5, 7), w=draw(7, 8), up=draw(6, 8))
    assert "q" not in found.weights


def test_a_fused_layer_makes_parts() -> None:
    text = """(float[N, 6] x) => (float[N, 4] y) {
        h = MatMul(x, w) a, b = Split<axis = 1>(h, parts) s = Sigmoid(a) c = Concat<axis = 1>(s, b)
        y = MatMul(c, down) }"""
    found = network(text, w=draw(6, 8), parts=np.array([3, 5]), down=draw(8, 4))
    assert found.layers[0].sizes == (3, 5)
    assert [sizes(frozenset(term)) for term in found.layers[0].terms] == [[3], [5]]


BRANCH = """(float[N, 6] x) => (float[N, 4] y) {
    h = MatMul(x, up) r = Relu(h) i = MatMul(r, mid) g = Sigmoid(i) o = MatMul(g, out) s = Add(h, o)
    n = Shape(s) z = Reshape(s, n) y = MatMul(z, down) }"""


def branch() -> LayerGraph:
    return network(BRANCH, up=draw(6, 8), mid=draw(8, 10), out=draw(10, 8), down=draw(8, 4))


def names(found: LayerGraph, numbers: list[int] | set[int]) -> list[str]:
    return [found.analysis.nodes[number].outputs[0].name for number in sorted(numbers)]


def test_layers_between_two_tensors() -> None:
    found = branch()
    between = found.between(tensor(found, "h"), tensor(found, "o"))
    assert sorted(names(found, {layer.number for layer in between})) == ["i", "o"]
    assert found.between(tensor(found, "o"), tensor(found, "h")) == []


def test_the_region_between_two_tensors_does_not_go_through_shapes() -> None:
    found = branch()
    assert names(found, found.region(tensor(found, "h"), [tensor(found, "s")])) == ["r", "i", "g", "o", "s"]
    assert names(found, found.region(tensor(found, "s"), [tensor(found, "y")])) == ["z", "y"]
    assert names(found, found.region(tensor(found, "h"), [tensor(found, "s")], stop=[4])) == ["s"]


def test_sources_are_the_nearest_of_those_that_are_looked_for() -> None:
    found = branch()
    layers = set(found.layers)
    assert names(found, found.sources(tensor(found, "s"), layers)) == ["h", "o"]
    assert names(found, found.sources(tensor(found, "s"), layers, sums=False)) == []
    assert names(found, found.sources(tensor(found, "g"), layers)) == ["i"]


def test_what_depends_on_values_and_what_on_shapes() -> None:
    found = branch()
    assert {"n", "z", "h"} <= found.live
    assert "n" not in found.told
    assert {"z", "h", "y"} <= found.told
    assert not found.live & {"up", "mid"}


def test_gates_are_not_followed() -> None:
    text = """(float[N, 6] x) => (float[N, 8] y) {
        h = MatMul(x, up) k = MatMul(x, key) g = Sigmoid(k) m = Mul(h, g) y = Relu(m) }"""
    found = network(text, up=draw(6, 8), key=draw(6, 1))
    behind = {node.outputs[0].name for node in found.behind(tensor(found, "y"))}
    assert behind == {"y", "m", "h"}


def test_dims_parts_and_units_of_axes() -> None:
    a, b, one = Dim(3), Dim(4), Dim(1)
    assert dims_of(Product((a, b)), one) == {a, b}
    assert parts_of(Concat((a, b))) == (a, b)
    assert parts_of(a) == (a,)
    assert unit_of(a) is a


def test_a_graph_without_weights_has_no_layers() -> None:
    proto = net("(float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }")
    assert isinstance(proto, onnx.ModelProto)
    found = LayerGraph(infer(load(proto)))
    assert (found.layers, found.products, found.made) == ({}, {}, frozenset())
