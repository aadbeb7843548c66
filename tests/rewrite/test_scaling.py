"""Padded dims whose norms keep their epsilon: the stream around them is scaled instead, and nothing is inserted."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from graphs import assert_close, net, run, weighty

from onnx_net2net import RefusedError, load
from onnx_net2net.algebra.maps import pad
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.padding import State, paddable
from onnx_net2net.rewrite.rewrite import rewrite
from onnx_net2net.rewrite.scaling import Scaling, rescale


def draw(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


SHAPES = {"up": (6, 8), "shift": (8,), "gain": (8,), "bias": (8,), "mid": (8, 10), "out": (10, 8), "down": (8, 4)}
NUMBERS = {"half": 0.5, "two": 2.0}


def teacher(body: str) -> onnx.ModelProto:
    text = f"(float[N, 6] x) => (float[N, 4] y) {{ h = Gemm(x, up, shift) {body} y = MatMul(z, down) }}"
    words = set(re.findall(r"\w+", text))
    weights = {name: draw(*shape) for name, shape in SHAPES.items() if name in words}
    return net(text, **weights, **{name: np.float32(value) for name, value in NUMBERS.items() if name in words})


def padded(proto: onnx.ModelProto, size: int = 11) -> tuple[onnx.ModelProto, Scaling]:
    """A student whose stream of 8 units is padded, and scaled for that."""
    model = load(proto)
    analysis = infer(model)
    ((dim, held),) = [(dim, held) for dim, held in paddable(analysis).items() if dim.size == 8]
    growth = {dim: pad(8, size, held)}
    scaling = rescale(analysis, growth, {dim: held})
    return weighty(rewrite(model, analysis, growth, Style(), {}, scaling).model), scaling


LAYER = "LayerNormalization<epsilon = 0.1>"
STREAMS = {
    "a norm": f"z = {LAYER}(h, gain, bias)",
    "a residual branch": (
        f"n = {LAYER}(h, gain, bias) i = MatMul(n, mid) r = Relu(i) o = MatMul(r, out) s = Add(h, o) "
        f"z = {LAYER}(s, gain)"),
    "a number in the stream": f"t = Mul(h, half) z = {LAYER}(t, gain, bias)",
    "numbers and their inverse": f"t = Div(h, two) n = Neg(t) z = {LAYER}(n, gain, bias)",
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [11, 16, 19])
def test_the_student_computes_the_same_with_the_same_nodes(name: str, size: int) -> None:
    proto = teacher(STREAMS[name])
    student, _ = padded(proto, size)
    assert [(node.op_type, list(node.attribute)) for node in student.graph.node] == [
        (node.op_type, list(node.attribute)) for node in proto.graph.node
    ]
    assert {t.name: list(t.dims) for t in student.graph.initializer}["up"] == [6, size]
    feeds = {"x": draw(5, 6)}
    assert_close(run(student, feeds)[0], run(proto, feeds)[0], tolerance=1e-5)


def test_all_that_makes_the_stream_is_multiplied_by_the_root_of_how_many_units_there_are_of_each() -> None:
    proto = teacher(STREAMS["a residual branch"])
    _, scaling = padded(proto, 11)
    places = {node.output[0]: number for number, node in enumerate(proto.graph.node)}
    made = [(places["h"], 1), (places["h"], 2), (places["o"], 1)]
    assert scaling.factors == {use: pytest.approx((11 / 8) ** 0.5) for use in made}
    _, whole = padded(proto, 16)
    assert set(whole.factors.values()) == {1.0}, "copies of all units are no padding"


@pytest.mark.parametrize(
    ("body", "words"),
    [("k = Add(h, two)", "adds a number to what would have to be scaled"), ("k = Softplus(h)", "cannot be scaled")],
)
def test_what_cannot_be_scaled_is_refused_with_the_node(body: str, words: str) -> None:
    proto = teacher(f"{body} z = {LAYER}(k, gain)")
    analysis = infer(load(proto))
    (dim,) = {dim for dim in analysis.dims() if dim.size == 8}
    kind = body.split()[2].split("(")[0]
    with pytest.raises(RefusedError, match=f"^{kind} .*{words}"):
        rescale(analysis, {dim: pad(8, 11, "mean")}, {dim: "mean"})


@pytest.mark.parametrize("held", ["mean", "zero"])
def test_a_normalization_behind_another_one_would_notice_padding(held: State) -> None:
    """The first wants the mean in it and makes zeros of that, which the second takes for units (ConvNeXt's stem)."""
    analysis = infer(load(teacher(f"k = {LAYER}(h, gain) z = {LAYER}(k, gain)")))
    (dim,) = {dim for dim in analysis.dims() if dim.size == 8}
    with pytest.raises(RefusedError, match=f"would notice padding that holds {held} values"):
        rescale(analysis, {dim: pad(8, 11, held)}, {dim: held})
