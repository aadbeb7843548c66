"""Faults in rules that the tables of cases do not show: what new units must not reach, and weights all different."""

from __future__ import annotations

import glob
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from graphs import analyse_open, build, conform, growable, needs, weighty
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_net2net import RefusedError, inspect, load, verify, widen

MAPS = ("zero_in", "zero_out")


def draw(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def net(text: str, opset: int = 18, **weights: Any) -> onnx.ModelProto:
    """A model in ONNX's textual syntax, with initializers."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    proto = parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def check(proto: onnx.ModelProto, *, refused: bool = False, **options: Any) -> onnx.ModelProto | None:
    """Assert that widening is exact, or refused where it may be; return the student."""
    try:
        student = widen(proto, **options).student
    except RefusedError:
        assert refused
        return None
    verify(proto, student).raise_if_different()
    return weighty(student)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("kind", ["GlobalMaxPool", "ReduceMax", "ReduceMin"])
def test_an_extreme_sees_no_units_but_copies(kind: str, map: str) -> None:
    reduced = f"{kind}(h)" if kind == "GlobalMaxPool" else f"{kind}(h, last)"
    flip = "Identity" if kind == "ReduceMin" else "Neg"  # zero is the extreme
    last = {} if kind == "GlobalMaxPool" else {"last": np.array([-1])}
    text = f"""(float[2, 6, 8] x) => (float[2, 6, 4] y) {{ u = MatMul(x, up) n = Abs(u) h = {flip}(n) m = {reduced}
        d = MatMul(m, down) o = MatMul(h, other) y = Add(d, o) }}"""
    proto = net(text, up=draw(8, 16), down=draw(1, 4), other=draw(16, 4), **last)
    check(proto, refused=True, factor=1.5, map=map)
    assert check(proto, factor=1.5) is not None


@pytest.mark.parametrize("size", [20, 32])
def test_a_cast_to_integers_is_not_linear(size: int) -> None:
    text = """(float[5, 8] x) => (float[5, 4] y) { h = MatMul(x, up) i = Cast<to = 6>(h) f = Cast<to = 1>(i)
        l = LayerNormalization(f, s, b) y = MatMul(l, down) }"""
    proto = net(text, up=10 * draw(8, 16), s=1 + draw(16), b=draw(16), down=draw(16, 4))
    check(proto, refused=size % 16 != 0, sizes={"up": size})


@pytest.mark.parametrize("map", ["replicate", *MAPS])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_what_a_pad_writes_is_in_all_units(value: float, map: str) -> None:
    text = """(float[2, 5, 8] x) => (float[2, 7, 4] y) { h = MatMul(x, up) p = Pad(h, pads, value)
        r = Relu(p) y = MatMul(r, down) }"""
    proto = net(
        text, up=draw(8, 16), down=draw(16, 4), pads=np.array([0, 1, 0, 0, 1, 0]), value=np.array(value, np.float32)
    )
    check(proto, refused=map == "zero_in", factor=1.5, map=map)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_units_of_zeros_behind_a_pad(value: float) -> None:
    text = """(float[2, 5, 8] x) => (float[2, 7, 4] y) { h = MatMul(x, up) p = Pad(h, pads, value)
        y = MatMul(p, down) }"""
    proto = net(
        text, up=draw(8, 16), down=draw(16, 4), pads=np.array([0, 1, 0, 0, 1, 0]), value=np.array(value, np.float32)
    )
    check(proto, refused=True, factor=1.5, map="zero_in")


@pytest.mark.parametrize("size", [17, 20, 32, 43])
@pytest.mark.parametrize("kind", ["RMSNormalization", "SimplifiedLayerNormalization"])
def test_units_of_zeros_change_no_rms_normalization(kind: str, size: int) -> None:
    text = f"""(float[5, 8] x) => (float[5, 4] y) {{ h = MatMul(x, up) l = {kind}<epsilon = 0.01>(h, s)
        y = MatMul(l, down) }}"""
    proto = net(text, 23 if kind == "RMSNormalization" else 18, up=draw(8, 16), s=1 + draw(16), down=draw(16, 4))
    student = check(proto, sizes={"up": size})
    assert student is not None
    assert {t.name: t.dims[0] for t in student.graph.initializer}["down"] == size


def test_tables_of_rotary_embeddings_are_copied() -> None:
    text = """(float[2, 5, 8] x) => (float[2, 5, 4] y) { q0 = MatMul(x, wq) k0 = MatMul(x, wk) v = MatMul(x, wv)
        q = RotaryEmbedding<num_heads = 2>(q0, cos, sin, at) k = RotaryEmbedding<num_heads = 2>(k0, cos, sin, at)
        a = Attention<q_num_heads = 2, kv_num_heads = 2, scale = 0.3>(q, k, v) y = MatMul(a, wo) }"""
    tables = {"cos": np.cos(np.arange(36.0)).reshape(9, 4), "sin": np.sin(np.arange(36.0)).reshape(9, 4)}
    named = {name: draw(8, 16) for name in ("wq", "wk", "wv")}
    tables = {name: table.astype(np.float32) for name, table in tables.items()}
    proto = net(text, 23, **named, **tables, wo=draw(16, 4), at=np.array([[0, 1, 2, 3, 4]] * 2))
    student = check(proto, sizes={"wq[[]1]": "1.5x"}, map="zero_in")
    assert student is not None
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in student.graph.initializer}
    for name, table in tables.items():
        assert values[name].shape == (9, 6)
        assert {*values[name][1]} == {*table[1]}


@pytest.mark.parametrize("kind", ["Mul", "PRelu"])
def test_what_scales_units_one_by_one_is_copied(kind: str) -> None:
    text = f"(float[2, 8] x) => (float[2, 4] y) {{ h = MatMul(x, up) d = {kind}(h, scale) y = MatMul(d, down) }}"
    scale = 1 + draw(1, 16) ** 2
    student = check(net(text, up=draw(8, 16), scale=scale, down=draw(16, 4)), factor=1.5, map="zero_in")
    assert student is not None
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in student.graph.initializer}
    assert values["scale"].shape == (1, 24)
    assert {*values["scale"][0]} == {*scale[0]}


def hold(
    kind: str,
    operands: dict[str, np.ndarray],
    held: set[str],
    free: set[int],
    *,
    opset: int = 20,
    outputs: int = 1,
    **attrs: Any,
) -> None:
    """Assert that one node grows exactly, along dims of the sizes `free` and no others."""
    names = [name if array.size else "" for name, array in operands.items()]
    node = helper.make_node(kind, names, [f"y{index}" for index in range(outputs)], **attrs)
    feeds = {name: array for name, array in operands.items() if array.size and name not in held}
    constants = {name: array for name, array in operands.items() if array.size and name in held}
    proto = build([node], feeds, node.output, constants, opset=opset)
    rng = np.random.default_rng(3)
    for _ in range(2):
        conform(proto, feeds, rng)
    assert {(dim.origin or dim).size for dim in growable(analyse_open(load(proto)))} == free


@pytest.mark.parametrize("loose", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_with_weights_that_all_differ(kind: str, gates: int, direction: str, loose: bool) -> None:
    d, t, n, i, h = 2 if direction == "bidirectional" else 1, 7, 4, 3, 5
    operands = {
        "x": draw(t, n, i),
        "w": draw(d, gates * h, i),
        "r": draw(d, gates * h, h),
        "b": draw(d, 2 * gates * h),
        "lengths": np.array([7, 2, 5, 3], np.int32),
        "h0": draw(d, n, h),
    }
    if kind == "LSTM":
        operands |= {"c0": draw(d, n, h) / 2, "p": draw(d, 3 * h)}
    options = {"layout": 0} if kind == "LSTM" else {"linear_before_reset": 1} if kind == "GRU" else {}
    held = {"lengths"} | (set() if loose else {"w", "r", "b", "h0", "p"})
    outputs = 3 if kind == "LSTM" else 2
    hold(kind, operands, held, {i, h}, opset=14, outputs=outputs, hidden_size=h, direction=direction, **options)


def test_softmax_before_opset_13_is_over_all_axes_from_1_on() -> None:
    for opset, free in ((11, {2}), (13, {2, 3, 5})):
        hold("Softmax", {"x": draw(2, 3, 5)}, set(), free, opset=opset, outputs=1)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_with_the_batch_first(kind: str, gates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return ReferenceEvaluator(proto).run(None, feeds)  # onnxruntime knows the other layout only
        except ValueError:
            needs(False, "reference of recurrent layers with the batch first")
            raise

    monkeypatch.setattr(graphs, "run", evaluate)
    operands = {"x": draw(4, 7, 3), "w": draw(1, gates * 5, 3), "r": draw(1, gates * 5, 5), "b": draw(1, gates * 10)}
    hold(kind, operands, {"w", "r"}, {3, 5}, opset=14, outputs=2, hidden_size=5, layout=1)


def test_scattering_over_a_whole_axis_keeps_its_order() -> None:
    places = np.array([[1, 0, 2, 4, 3], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]])
    hold("ScatterElements", {"x": draw(3, 5), "i": places, "u": draw(3, 5) + 1}, {"i"}, {3}, axis=1)
    hold("ScatterElements", {"x": draw(3, 5), "i": places, "u": draw(3, 5) + 1}, set(), {3}, axis=1)


def test_groups_are_outermost_in_the_biases_of_deformable_convolutions() -> None:
    operands = {"x": draw(3, 10, 5, 6), "w": draw(14, 5, 1, 1), "o": draw(3, 2, 5, 6), "b": draw(14)}
    hold("DeformConv", operands, {"w", "b"}, {2, 3, 5, 7}, group=2)
    hold("DeformConv", operands, set(), {2, 3, 5, 7}, group=2)


@pytest.mark.parametrize("map", ["replicate", *MAPS])
def test_groups_are_outermost_in_the_sums_of_fused_convolutions(map: str) -> None:
    text = """(float[2, 5, 4, 4] x) => (float[2, 4, 4, 4] y) { h = Conv(x, up) z = Conv(x, side)
        f = com.microsoft.FusedConv<group = 2, activation = "Relu">(h, w, b, z) y = Conv(f, down) }"""
    proto = net(text, up=draw(6, 5, 1, 1), side=draw(8, 5, 1, 1), w=draw(8, 3, 1, 1), b=draw(8), down=draw(4, 8, 1, 1))
    names = [group.name for group in inspect(proto).groups if group.reason is None]
    assert len(names) == 3
    for name in names:
        check(proto, refused=map != "replicate", sizes={glob.escape(name): "2x"}, map=map)


@pytest.mark.parametrize("activation", ["Sigmoid", "Relu", "Tanh"])
def test_units_of_zeros_behind_a_fused_activation(activation: str) -> None:
    text = f"""(float[5, 8] x) => (float[5, 4] y) {{
        h = com.microsoft.FusedGemm<activation = "{activation}">(x, up) y = MatMul(h, down) }}"""
    student = check(net(text, up=draw(8, 16), down=draw(16, 4)), refused=True, factor=1.5, map="zero_in")
    assert (student is None) == (activation != "Tanh")
