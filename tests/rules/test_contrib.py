"""Operators of com.microsoft: op(E·x) = E·op(x) in onnxruntime, and what widening makes of graphs of them."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping
from typing import Any

import graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import analyse_open, conform, growable, value_info
from onnx import helper, numpy_helper, parser

from onnx_net2net import RefusedError, inspect, verify, widen
from onnx_net2net.model.model import load

FLOAT = np.float32


class Fed:
    """An operand that is no constant."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)


def floats(*shape: int, seed: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) - 0.5).astype(FLOAT)


def model(
    nodes: list[onnx.NodeProto],
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray | None],
    constants: Mapping[str, np.ndarray],
    opset: int = 20,
) -> onnx.ModelProto:
    """A model that imports com.microsoft as well; outputs without an array are found by running it."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    untyped = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        if name == "scores"
        else onnx.ValueInfoProto(name=name)
        for name in outputs
    ]
    graph = helper.make_graph(nodes, "g", [value_info(n, a) for n, a in feeds.items()], untyped, tensors)
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 21 else 10)
    results = dict(zip(outputs, graphs.run(proto, feeds), strict=True))
    del proto.graph.output[:]
    proto.graph.output.extend(value_info(name, array) for name, array in results.items())
    return proto


def one(
    kind: str,
    operands: tuple[Any, ...],
    rng: np.random.Generator,
    *,
    domain: str,
    opset: int,
    outputs: str,
    **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One node: a shape stands for random floats, some of them constants; an array for a constant."""
    arrays, held, names = {}, set(), []
    for index, operand in enumerate(operands):
        name = "" if operand is None else f"i{index}"
        names.append(name)
        if isinstance(operand, tuple):
            arrays[name] = (rng.random(operand) - 0.3).astype(FLOAT)
            if index and rng.random() < 0.5:
                held.add(name)
        elif isinstance(operand, Fed):
            arrays[name] = operand.array
        elif operand is not None:
            arrays[name] = operand
            held.add(name)
    results = [name if name != "-" else "" for name in outputs.split()]
    node = helper.make_node(kind, names, results, "node", domain=domain, **attrs)
    feeds = {name: array for name, array in arrays.items() if name not in held}
    constants = {name: array for name, array in arrays.items() if name in held}
    return model([node], feeds, dict.fromkeys(filter(None, results)), constants, opset), feeds


def hold(kind: str, operands: tuple[Any, ...], free: set[int], **options: Any) -> None:
    """Assert that the node grows exactly, along dims of the sizes `free` and no others."""
    rng = np.random.default_rng(7)
    for _ in range(2):
        proto, feeds = one(kind, operands, rng, **options)
        conform(proto, feeds, rng)
    assert {(dim.origin or dim).size for dim in growable(analyse_open(load(proto)))} == free


ROWS: list[Any] = []


def row(kind: str, *operands: Any, free: set[int], domain: str = "com.microsoft", opset: int = 20,
        outputs: str = "y", **attrs: Any) -> None:  # fmt: skip
    given = " ".join(str(o.array.shape if isinstance(o, Fed) else getattr(o, "shape", o)) for o in operands)
    extras = " ".join(f"{key}={value}" for key, value in attrs.items())
    options = {"domain": domain, "opset": opset, "outputs": outputs, **attrs}
    ROWS.append(pytest.param(kind, operands, free, options, id=f"{kind} {given} {extras}"))


# Units alone.
row("Gelu", (2, 3), free={2, 3})
row("QuickGelu", (2, 3), free={2, 3}, alpha=1.7)
row("BiasGelu", (2, 5, 3), (3,), free={2, 3, 5})
row("FastGelu", (2, 5, 3), (3,), free={2, 3, 5})
row("FastGelu", (2, 5, 3), free={2, 3, 5})

# Products of matrices.
row("FusedMatMul", (7, 2, 3), (7, 3, 5), free={2, 3, 5, 7}, alpha=0.3)
row("FusedMatMul", (7, 3, 2), (3, 5), free={2, 3, 5, 7}, transA=1)
row("FusedMatMul", (2, 3), (7, 5, 3), free={2, 3, 5, 7}, transB=1)
row("FusedMatMul", (11, 7, 3, 2), (11, 1, 5, 3), free={2, 3, 5, 7, 11}, transA=1, transB=1)
row("FusedMatMul", (2, 11, 7, 3), (11, 7, 3, 5), free={2, 3, 5, 7, 11}, transBatchA=1)
row("FusedMatMul", (3, 7, 2), (5, 7, 3), free={2, 3, 5, 7}, transBatchA=1, transA=1, transBatchB=1, transB=1)
row("FusedMatMul", (3,), (7, 3, 5), free={3, 5, 7})
row("FusedMatMul", (7, 2, 3), (3,), free={2, 3, 7})
row("TransposeMatMul", (7, 3, 2), (7, 3, 5), free={2, 3, 5, 7}, transA=1)
row("FusedGemm", (2, 3), (5, 3), (5,), free={2, 3, 5}, transB=1, alpha=0.5, activation="Relu")
row("FusedGemm", (3, 2), (3, 5), free={2, 3, 5}, transA=1, activation="Sigmoid")
row("CDist", (2, 3), (5, 3), free={2, 3, 5}, metric="sqeuclidean")
row("CDist", (2, 3), (5, 3), free={2, 3, 5}, metric="euclidean")

# Packed rows are copied whole.
BITS = np.random.default_rng(1).integers(0, 256, (5, 2, 8), np.uint8)
row("MatMulNBits", (2, 3, 32), BITS, floats(10), free={2, 3, 5}, K=32, N=5, bits=4, block_size=16)
row("MatMulNBits", (2, 3, 32), BITS, floats(5, 2), free={2, 3, 5}, K=32, N=5, bits=4, block_size=16)
row("MatMulNBits", (2, 3, 32), BITS, floats(10), BITS[:, :, 0][:, :1].reshape(-1), None, (5,), free={2, 3, 5},
    K=32, N=5, bits=4, block_size=16)  # fmt: skip

# Channels.
row("FusedConv", (2, 3, 4, 4), (5, 3, 3, 3), (5,), free={2, 3, 5}, activation="Relu", pads=[1, 1, 1, 1])
row("FusedConv", (2, 15, 4, 4), (21, 5, 3, 3), free={2, 3, 5, 7}, group=3, activation="Clip",
    activation_params=[0.0, 6.0])  # fmt: skip
row("FusedConv", (2, 3, 4, 4), (5, 3, 1, 1), (5,), (2, 5, 4, 4), free={2, 3, 5}, activation="Relu")
row("FusedConv", (2, 5, 4, 4), (5, 1, 3, 3), free={2, 5}, group=5, activation="HardSigmoid",
    activation_params=[0.2, 0.5])  # fmt: skip
row("MaxpoolWithMask", (2, 3, 4, 4), Fed(np.ones((2, 3, 4, 4), np.int32)), free={2, 3}, kernel_shape=[2, 2])
row("GridSample", (2, 3, 4, 4), (2, 5, 6, 2), free={2, 3, 5, 6})
row("Trilu", (2, 3, 4), free={2}, upper=0)
row("Inverse", np.eye(4, dtype=FLOAT)[None].repeat(3, 0), free={3})
if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 28):  # older ones crash on an axis in raw bytes
    row("ExpandDims", (2, 3), np.array(1, np.int32), free={2, 3})
row("Pad", (2, 3), np.array([0, 1, 0, 2]), np.array(7, FLOAT), free={2, 3}, mode="constant")

# Statistics.
row("SkipLayerNormalization", (2, 3, 5), (2, 3, 5), (5,), free={2, 3, 5})
row("SkipLayerNormalization", (2, 3, 5), (2, 3, 5), (5,), (5,), (5,), free={2, 3, 5}, outputs="y - - s", epsilon=1e-5)
row("SkipLayerNormalization", (2, 3, 5), (1, 3, 5), (5,), (5,), free={2, 3, 5})
row("SkipLayerNormalization", (2, 3, 5), (3, 5), (5,), (5,), free={2, 3, 5}, epsilon=1e-5)
row("SkipLayerNormalization", (3, 5), (3, 5), (5,), (5,), free={3, 5}, epsilon=1e-5)
row("SkipSimplifiedLayerNormalization", (2, 3, 5), (2, 3, 5), (5,), free={2, 3, 5}, epsilon=1e-5)
row("SkipSimplifiedLayerNormalization", (2, 3, 5), (2, 3, 5), (5,), (5,), free={2, 3, 5}, outputs="y - - s")
row("SimplifiedLayerNormalization", (2, 3, 5), (5,), free={2, 3, 5}, domain="", outputs="y v")
row("SimplifiedLayerNormalization", (2, 3, 5), (3, 5), free={2, 3, 5}, domain="", axis=1)
row("RMSNormalization", (2, 3, 5), (5,), free={2, 3, 5}, domain="", opset=23)
row("LayerNormalization", (2, 3, 5), (5,), (5,), free={2, 3, 5}, domain="", opset=14)
IDS = Fed(np.array([[1, 4, 0], [2, 2, 6]], np.int32))
row("EmbedLayerNormalization", IDS, None, (7, 5), (4, 5), None, (5,), (5,), free={2, 5}, outputs="y m")
row("EmbedLayerNormalization", IDS, Fed(np.array([[0, 1, 1], [1, 0, 0]], np.int32)), (7, 5), (4, 5), (2, 5), (5,), (5,),
    Fed(np.array([[1, 1, 0], [1, 1, 1]], np.int32)), free={2, 5}, outputs="y m s")  # fmt: skip

# Mixtures of experts: which are chosen of 4 stays, the width and the units of an expert grow.
LOGITS = Fed(floats(7, 4, seed=3))
row("MoE", (7, 3), LOGITS, (4, 5, 3), (4, 5), (4, 3, 5), (4, 3), free={3, 5, 7}, activation_type="relu", k=2,
    normalize_routing_weights=1)  # fmt: skip
row("MoE", (7, 3), LOGITS, (4, 5, 3), None, (4, 3, 5), free={3, 5, 7}, activation_type="gelu", k=1)
row("MoE", (7, 3), LOGITS, (4, 10, 3), (4, 10), (4, 3, 5), (4, 3), free={3, 5, 7}, activation_type="swiglu",
    swiglu_fusion=1, k=2)  # fmt: skip
STEPS = np.random.default_rng(3).integers(0, 256, (4, 32, 16), np.uint8)
row("QMoE", (7, 32), LOGITS, STEPS, (4, 32), None, STEPS[::-1].copy(), (4, 32), free=set(), activation_type="silu", k=2,
    expert_weight_bits=4, normalize_routing_weights=1)  # fmt: skip


@pytest.mark.parametrize(("kind", "operands", "free", "options"), ROWS)
def test_a_grown_operator_computes_grown_outputs(
    kind: str, operands: tuple[Any, ...], free: set[int], options: dict[str, Any]
) -> None:
    hold(kind, operands, free, **options)


def test_operators_without_a_kernel_hold_as_they_are_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    def gelu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-1.7 * x))

    def group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, last: int) -> np.ndarray:
        y = np.moveaxis(x, -1, 1) if last else x
        parts = y.reshape(len(y), groups, -1)
        normal = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
        normal = normal.reshape(y.shape) * gamma[:, None, None] + beta[:, None, None]
        return np.moveaxis(normal, 1, -1) if last else normal

    def evaluate(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        (node,) = proto.graph.node
        held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | feeds
        x, *rest = (held[name] for name in node.input)
        attrs = {a.name: a.i for a in node.attribute}
        if node.op_type == "BiasAdd":
            results = [x + rest[0] + rest[1]]
        elif node.op_type == "BiasSplitGelu":
            left, right = np.split(x + rest[0], 2, -1)
            results = [left * gelu(right)]
        elif node.op_type == "GroupNorm":
            results = [group_norm(x, *rest, attrs["groups"], attrs["channels_last"])]
        else:
            skip = rest[2].reshape(len(x), *rest[2].shape[1:-1] or (1, 1), -1)
            total = x + skip + (rest[3] if len(rest) > 3 else 0)
            results = [group_norm(total, *rest[:2], attrs["groups"], 1), total]
        return [result.astype(FLOAT) for result in results]

    monkeypatch.setattr(graphs, "run", evaluate)
    options: dict[str, Any] = {"domain": "com.microsoft", "opset": 20, "outputs": "y"}
    hold("BiasAdd", ((2, 3, 5), (5,), (2, 3, 5)), {2, 3, 5}, **options)
    hold("BiasSplitGelu", ((2, 3, 14), (14,)), {2, 3, 7}, **options)
    norm = {"groups": 3, "activation": 0}
    hold("GroupNorm", ((2, 4, 5, 21), (21,), (21,)), {2, 3, 4, 5, 7}, channels_last=1, **norm, **options)
    hold("GroupNorm", ((2, 21, 4, 5), (21,), (21,)), {2, 3, 4, 5, 7}, channels_last=0, **norm, **options)
    for skip in ((2, 4, 5, 21), (2, 1, 1, 21), (2, 21)):
        operands = ((2, 4, 5, 21), (21,), (21,), skip, (21,))
        hold("SkipGroupNorm", operands, {2, 3, 4, 5, 7}, **norm, **{**options, "outputs": "y s"})


# --- In a graph --------------------------------------------------------------------------------------------------


def parse(
    body: str, width: int, weights: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray], opset: int = 17
) -> onnx.ModelProto:
    """A graph from h, the image of x under a matrix, to r, which another matrix reads."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        g (float[2, 5, 4] x) => (float[2, 5, 3] y) {{ h = MatMul(x, first) {body} y = MatMul(r, last) }}"""
    proto = parser.parse_model(text)
    arrays = {name: floats(*shape, seed=seed) for seed, (name, shape) in enumerate(weights.items())}
    arrays |= {"first": floats(4, width, seed=98), "last": floats(width, 3, seed=99), **values}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in arrays if name in read)
    return proto


def check_every_dim(proto: onnx.ModelProto) -> int:
    """Assert that each dim grows exactly, alone, with all others and by other maps; return how many there are."""
    names = [group.name for group in inspect(proto).groups if group.reason is None]
    uniform = {group.name for group in inspect(proto).groups if group.is_uniform}
    for name in names:
        for size in ("2x", "3x") if name in uniform else ("2x", "1.51x"):
            verify(proto, widen(proto, sizes={glob.escape(name): size}).student, samples=1).raise_if_different()
        for kind in ("zero_out", "zero_in"):
            with contextlib.suppress(RefusedError):  # not every dim admits it
                grown = widen(proto, sizes={glob.escape(name): "2x"}, map=kind)  # type: ignore[arg-type]
                verify(proto, grown.student, samples=1).raise_if_different()
    for factor in (1.37, 2):
        verify(proto, widen(proto, factor=factor).student, samples=1).raise_if_different()
    return len(names)


WEIGHTS = {
    "gain": (12,), "bias": (12,), "gain2": (12,), "bias2": (12,), "up": (12, 20), "up_bias": (20,), "down": (20, 12),
    "scales": (40,), "gate": (12, 20),
}  # fmt: skip
PACKED = {"packed": np.random.default_rng(2).integers(0, 256, (20, 2, 8), np.uint8)}
GRAPHS = {
    "SkipLayerNormalization": """
        n = LayerNormalization(h, gain, bias)
        u = MatMul(n, up) f = com.microsoft.BiasGelu(u, up_bias) d = MatMul(f, down)
        s, , , r = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(d, n, gain2, bias2, bias)
    """,
    "SkipLayerNormalization as in BERT": """
        u = MatMul(h, up) f = com.microsoft.FastGelu(u, up_bias) d = MatMul(f, down)
        r = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(d, h, gain2, bias2, bias)
    """,
    "SkipSimplifiedLayerNormalization": """
        n = SimplifiedLayerNormalization<epsilon = 0.001>(h, gain)
        g = MatMul(n, gate) s = com.microsoft.QuickGelu(g) u = MatMul(n, up) m = Mul(s, u) d = MatMul(m, down)
        o, , , t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.001>(d, h, gain2)
        r = Add(o, t)
    """,
    "FusedMatMul": """
        u = com.microsoft.FusedMatMul<alpha = 0.5>(h, up) g = MatMul(h, gate)
        s = com.microsoft.FusedMatMul<transB = 1, alpha = 0.2>(u, g) p = Softmax<axis = -1>(s)
        q = com.microsoft.FusedMatMul<transA = 1>(p, g) r = MatMul(q, down)
    """,
    "MatMulNBits": """
        x2 = Concat<axis = -1>(x, x, x, x, x, x, x, x)
        u = com.microsoft.MatMulNBits<K = 32, N = 20, bits = 4, block_size = 16>(x2, packed, scales)
        f = com.microsoft.Gelu(u) d = MatMul(f, down) r = Add(d, h)
    """,
}


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh"])
def test_what_is_behind_a_fused_activation_is_not_padded(activation: str) -> None:
    body = f"""
        f = Reshape(h, flat) g = com.microsoft.FusedGemm<activation = "{activation}">(f, up)
        r0 = LayerNormalization(g, gain3) d = MatMul(r0, down) r = Reshape(d, back)
    """
    flat, back = np.array([10, 12]), np.array([2, 5, 12])
    proto = parse(body, 12, {**WEIGHTS, "gain3": (20,)}, {"flat": flat, "back": back})
    with pytest.raises(RefusedError, match="whole factors"):
        widen(proto, sizes={"up": 27})
    check_every_dim(proto)


@pytest.mark.parametrize("body", GRAPHS.values(), ids=GRAPHS.keys())
def test_every_dim_around_a_fused_operator_grows_exactly(body: str) -> None:
    assert check_every_dim(parse(body, 12, WEIGHTS, PACKED)) >= 2


@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("epsilon", ["", "<epsilon = 0.1>"])
def test_a_stream_that_skip_normalisers_read_grows_to_any_width(kind: str, epsilon: str) -> None:
    shift = "bias2, " if kind == "SkipLayerNormalization" else ""
    body = f"""
        u = MatMul(h, up) d = MatMul(u, down)
        n, , , s = com.microsoft.{kind}{epsilon}(d, h, gain, {shift}bias)
        u2 = MatMul(n, gate) f2 = com.microsoft.Gelu(u2) d2 = MatMul(f2, down)
        r, , , s2 = com.microsoft.{kind}{epsilon}(d2, s, gain2)
    """
    proto = parse(body, 12, WEIGHTS, {})
    for size in (13, 17, 24, 29):
        grown = widen(proto, sizes={"first": size})
        assert [change.new for change in grown.changes] == [size]
        verify(proto, grown.student, samples=1).raise_if_different()


@pytest.mark.parametrize("act", ["Relu", "Exp"])
def test_a_skip_normaliser_of_what_is_not_linear_grows_by_whole_factors(act: str) -> None:
    body = f"a = {act}(h) d = MatMul(h, square) r = com.microsoft.SkipLayerNormalization(d, a, gain, bias)"
    proto = parse(body, 12, {**WEIGHTS, "square": (12, 12)}, {})
    with pytest.raises(RefusedError, match="whole factors"):
        widen(proto, sizes={"first": 17})
    verify(proto, widen(proto, sizes={"first": 24}).student, samples=1).raise_if_different()
