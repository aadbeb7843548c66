"""Quantized graphs grow exactly: integers are copied, and shared among copies in whole parts.

Scales are powers of two and integers small, so that float arithmetic on them is exact and no rounding hides an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import graphs
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import analyse_open, conform, growable, run, value_info, weighty
from onnx import helper, numpy_helper

from onnx_net2net import inspect, verify, widen
from onnx_net2net.algebra.maps import from_index, padded, replicate
from onnx_net2net.algebra.weights import AxisGrowth, Style, grow
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load
from onnx_net2net.rules.attention import MICROSOFT

Array = np.ndarray
RANGES = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-20, 20), "uint8": (100, 140), "int32": (-90, 90)}


def integers(*shape: int, dtype: Any = np.int8, seed: int = 0) -> Array:
    low, high = RANGES[np.dtype(dtype).name]
    return np.random.default_rng([seed, *shape]).integers(low, high + 1, shape).astype(dtype)


def scales(*shape: int) -> Array:
    return np.array(2.0 ** -np.random.default_rng(shape).integers(2, 6, shape), np.float32)


def number(value: int, dtype: type = np.uint8) -> Array:
    return np.array(value, dtype)


def model(
    nodes: list[onnx.NodeProto], feeds: Mapping[str, Array], constants: Mapping[str, Array], opset: int = 21
) -> onnx.ModelProto:
    """A model of these nodes whose output is the last one's first."""
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    infos = [value_info(name, array) for name, array in feeds.items()]
    output = onnx.ValueInfoProto(name=nodes[-1].output[0])
    graph = helper.make_graph(nodes, "g", infos, [output], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 21 else 10)
    (result,) = run(proto, feeds)
    proto.graph.output[0].CopyFrom(value_info(output.name, result))
    return proto


# --- Rules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fed:
    """An operand that is an input of the model."""

    array: Array


@dataclass(frozen=True)
class Case:
    name: str
    node: onnx.NodeProto
    feeds: dict[str, Array]
    constants: dict[str, Array]
    version: int
    free: set[int]


TABLE: list[Case] = []


def case(
    kind: str, *operands: Array | Fed | None, free: set[int], version: int = 21, outputs: int = 1, **attrs: Any
) -> None:
    """Add one operator; arrays are constants. Sizes of dims are distinct, so that `free` can tell which may grow."""
    names = ["" if operand is None else f"i{index}" for index, operand in enumerate(operands)]
    feeds = {name: x.array for name, x in zip(names, operands, strict=True) if isinstance(x, Fed)}
    constants = {name: x for name, x in zip(names, operands, strict=True) if isinstance(x, Array)}
    domain, _, operator = kind.rpartition("::")
    node = helper.make_node(operator, names, [f"y{k}" for k in range(outputs)], domain=domain, **attrs)
    shapes = " ".join("-" if x is None else str(list(getattr(x, "array", x).shape)).replace(" ", "") for x in operands)
    name = f"{operator}-{version} {shapes}" + "".join(f" {key}={value}" for key, value in attrs.items())
    TABLE.append(Case(name, node, feeds, constants, version, free))


def fed(*shape: int, dtype: Any = np.uint8) -> Fed:
    if np.dtype(dtype).kind == "f":
        return Fed(np.random.default_rng(shape).integers(-40, 40, shape).astype(dtype) / 8)
    return Fed(integers(*shape, dtype=dtype))


MS = MICROSOFT + "::"
Q = (scales(), number(120))  # of a whole tensor

for _kind, _dtype in (("DequantizeLinear", np.uint8), ("QuantizeLinear", np.float32)):
    case(_kind, fed(2, 3, 5, dtype=_dtype), *Q, free={2, 3, 5}, version=10)
    case(_kind, fed(2, 3, 5, dtype=_dtype), scales(3), integers(3, dtype=np.uint8), free={2, 3, 5}, version=13)
    case(_kind, fed(2, 3, 5, dtype=_dtype), scales(5), integers(5, dtype=np.uint8), free={2, 3, 5}, axis=-1)
    case(_kind, fed(2, 12, dtype=_dtype), scales(2, 3), integers(2, 3, dtype=np.uint8), free={2, 3}, axis=1,
         block_size=4)  # fmt: skip
    case(_kind, fed(2, 10, dtype=_dtype), scales(2, 3), integers(2, 3, dtype=np.uint8), free={2}, axis=1,
         block_size=4)  # fmt: skip
    case(_kind, fed(2, 4, dtype=_dtype), scales(2, 1), integers(2, 1, dtype=np.uint8), free={2}, axis=1,
         block_size=4)  # fmt: skip
    case(MS + _kind, fed(2, 3, dtype=_dtype), *Q, free={2, 3}, axis=1)
case("DequantizeLinear", integers(7, dtype=np.int32), scales(7), free={7}, axis=0)
case("DequantizeLinear", integers(7), scales(7), integers(7), free={7}, axis=0)
case("QuantizeLinear", fed(2, 3, dtype=np.float32), scales(), free={2, 3})

BIAS, BIAS_21 = integers(7, dtype=np.int32), integers(21, dtype=np.int32)
case("QLinearConv", fed(2, 3, 4, 4), *Q, integers(7, 3, 3, 3), scales(7), np.zeros(7, np.int8), *Q, BIAS,
     free={2, 3, 7}, pads=[1] * 4)  # fmt: skip
case("QLinearConv", fed(2, 3, 4, 4), *Q, integers(7, 3, 1, 1, dtype=np.uint8), scales(), number(117), *Q,
     free={2, 3, 7})  # fmt: skip
case(MS + "QLinearConv", fed(2, 4, 4, 15), *Q, integers(21, 5, 1, 1), scales(21), np.zeros(21, np.int8), *Q, BIAS_21,
     free={2, 3, 5, 7}, group=3, channels_last=1)  # fmt: skip
case("QLinearConv", fed(2, 15, 4), *Q, integers(21, 5, 1), scales(21), np.zeros(21, np.int8), *Q,
     integers(21, dtype=np.int32), free={2, 3, 5, 7}, group=3)  # fmt: skip
case("QLinearConv", fed(2, 7, 4, 4), *Q, integers(7, 1, 3, 3), scales(7), np.zeros(7, np.int8), *Q, free={2, 7},
     group=7)  # fmt: skip
case("ConvInteger", fed(2, 3, 4, 4), integers(7, 3, 3, 3, dtype=np.uint8), number(120), number(117), free={2, 3, 7})
case("ConvInteger", fed(2, 3, 4, 4), integers(7, 3, 3, 3, dtype=np.uint8), free={2, 3, 7}, strides=[2, 2])
case("ConvInteger", fed(2, 3, 4, 4), fed(7, 3, 3, 3), free={2, 7})
case("ConvInteger", fed(2, 15, 4), integers(21, 5, 1, dtype=np.uint8), free={2, 3, 5, 7}, group=3)

case("MatMulInteger", fed(2, 3), integers(3, 5), number(120), number(3, np.int8), free={2, 3, 5})
case("MatMulInteger", fed(2, 3), integers(3, 5), None, integers(5), free={2, 3, 5})
case("MatMulInteger", fed(7, 2, 3), integers(3, 5, dtype=np.uint8), free={2, 3, 5, 7})
case("MatMulInteger", integers(2, 3, dtype=np.uint8), fed(3, 5), number(120), free={2, 3, 5})
case("MatMulInteger", fed(2, 3), fed(3, 5, dtype=np.int8), free={2, 5})
case("MatMulInteger", fed(2, 3), integers(3, 5), None, Fed(number(3, np.int8)), free={2, 5})
case("QLinearMatMul", fed(2, 3), *Q, integers(3, 5), scales(), number(3, np.int8), *Q, free={2, 3, 5})
case("QLinearMatMul", fed(7, 2, 3), *Q, integers(3, 5), scales(5), integers(5), *Q, free={2, 3, 5, 7})
case("QLinearMatMul", fed(2, 3), *Q, fed(3, 5), *Q, *Q, free={2, 5})
case(MS + "MatMulIntegerToFloat", fed(2, 3), integers(3, 5), scales(), scales(5), number(120), integers(5),
     scales(5), free={2, 3, 5})  # fmt: skip
case(MS + "DynamicQuantizeMatMul", fed(2, 3, dtype=np.float32), integers(3, 5), scales(5), None, scales(5),
     free={2, 3, 5})  # fmt: skip
case(MS + "DynamicQuantizeMatMul", fed(7, 2, 3, dtype=np.float32), integers(7, 3, 5), scales(), free={2, 3, 5, 7})
case(MS + "DynamicQuantizeMatMul", np.eye(2, 3, dtype=np.float32), integers(3, 5), Fed(scales(5)), free={2, 3, 5})
case(MS + "QGemm", fed(2, 3), *Q, integers(3, 5), scales(5), np.zeros(5, np.int8), integers(5, dtype=np.int32), *Q,
     free={2, 3, 5})  # fmt: skip
case(MS + "QGemm", fed(3, 2), *Q, integers(3, 5), scales(5), integers(5), None, *Q, free={2, 3, 5}, transA=1)
case(MS + "QGemm", fed(2, 3), *Q, integers(5, 3), scales(5), integers(5), None, *Q, free={2, 3, 5}, transB=1)
case(MS + "QGemm", fed(2, 3), *Q, integers(5, 3), scales(), number(3, np.int8), free={2, 3, 5}, transB=1)
PACKED = integers(3, 5, 8, dtype=np.uint8)
case(MS + "MatMulNBits", fed(2, 80, dtype=np.float32), PACKED, scales(3, 5), free={2, 3, 5}, K=80, N=3, bits=4,
     block_size=16)  # fmt: skip
case(MS + "MatMulNBits", fed(2, 80, dtype=np.float32), PACKED, scales(15), None, None, scales(3), free={2, 3, 5},
     K=80, N=3, bits=4, block_size=16)  # fmt: skip
case(MS + "MatMulNBits", fed(2, 80, dtype=np.float32), PACKED, scales(3, 5), integers(3, 3, dtype=np.uint8),
     free={2, 3}, K=80, N=3, bits=4, block_size=16)  # fmt: skip
case(MS + "MatMulNBits", fed(2, 71, dtype=np.float32), PACKED, scales(3, 5), free={2, 3}, K=71, N=3, bits=4,
     block_size=16)  # fmt: skip

case("DynamicQuantizeLinear", fed(2, 3, dtype=np.float32), free={2, 3}, outputs=3)
for _kind in ("QLinearAdd", "QLinearMul"):
    case(MS + _kind, fed(2, 3, 5), *Q, fed(3, 1), *Q, *Q, free={2, 3, 5})
case(MS + "QLinearWhere", Fed(np.eye(2, 3) > 0), fed(2, 3), *Q, fed(3), *Q, *Q, free={2, 3})
case(MS + "QLinearSigmoid", fed(2, 3), *Q, *Q, free={2, 3})
case(MS + "QLinearLeakyRelu", fed(2, 3), *Q, *Q, free={2, 3}, alpha=0.125)
case(MS + "QLinearSoftmax", fed(2, 3, 5), *Q, *Q, free={2, 3}, axis=-1, opset=13)
case(MS + "QLinearSoftmax", fed(2, 3, 5), *Q, *Q, free={2}, axis=1, opset=12)
case(MS + "QLinearConcat", *Q, fed(2, 3), *Q, fed(2, 5), *Q, free={2, 3, 5}, axis=1)
case(MS + "QLinearAveragePool", fed(2, 3, 4, 4), *Q, *Q, free={2, 3}, kernel_shape=[2, 2])
case(MS + "QLinearGlobalAveragePool", fed(2, 3, 4, 4), *Q, *Q, free={2, 3})
case(MS + "QLinearGlobalAveragePool", fed(2, 4, 4, 3), *Q, *Q, free={2, 3}, channels_last=1)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in TABLE])
def test_a_grown_operator_computes_grown_outputs(row: Case) -> None:
    proto = model([row.node], row.feeds, row.constants, row.version)
    conform(proto, row.feeds, np.random.default_rng(7))
    assert {dim.size for dim in growable(analyse_open(load(proto)))} == row.free


def evaluate(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Compute one operator as the specification says, where onnxruntime takes fewer kinds of operands."""
    (node,) = proto.graph.node
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | dict(feeds)
    a, b, *rest = (held[name].astype(float) for name in node.input)
    if node.op_type == "ConvInteger":
        return [np.einsum("nit, oi -> not", a - rest[0], b[:, :, 0] - rest[1][:, None]).astype(np.int32)]
    if node.op_type == "MatMulInteger":
        return [((a - rest[0][:, None]) @ (b - rest[1])).astype(np.int32)]
    if node.op_type == "QLinearMatMul":
        za, right, sb, zb, sy, zy = rest
        result = ((a - za[:, None]) * b[:, None]) @ ((right - zb) * sb) / sy[:, None] + zy[:, None]
        return [np.clip(np.rint(result), 0, 255).astype(np.uint8)]
    attrs = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    mean = a.mean(tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))
    return [np.rint((mean - rest[0]) * b / rest[1] + rest[2]).astype(np.uint8)]


def test_operators_without_a_kernel_hold_as_they_are_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "run", evaluate)
    monkeypatch.setitem(globals(), "run", evaluate)
    start = len(TABLE)
    codes = {"dtype": np.uint8}
    case("MatMulInteger", fed(2, 3), integers(3, 5), integers(2, **codes), integers(5), free={2, 3, 5})
    case("MatMulInteger", integers(2, 3, **codes), fed(3, 5, dtype=np.int8), integers(2, **codes), integers(5),
         free={2, 3, 5})  # fmt: skip
    case("QLinearMatMul", fed(2, 3), scales(2), integers(2, **codes), integers(3, 5), scales(5), integers(5),
         scales(2), integers(2, **codes), free={2, 3, 5})  # fmt: skip
    case("ConvInteger", fed(2, 3, 4), integers(7, 3, 1, **codes), number(120), integers(7, **codes), free={2, 3, 7})
    for keepdims in (0, 1):
        case(MS + "QLinearReduceMean", fed(2, 3, 5), *Q, *Q, free={2, 5}, axes=[1], keepdims=keepdims)
    for row in [TABLE.pop() for _ in TABLE[start:]]:
        test_a_grown_operator_computes_grown_outputs(row)


WEIGHTS: dict[str, tuple[Array, tuple[Array, ...], dict[str, int]]] = {
    "tensor": (integers(3, 5), (scales(), number(3, np.int8)), {}),
    "columns": (integers(3, 5), (scales(5), integers(5)), {"axis": 1}),
    "rows": (integers(3, 5), (scales(3), integers(3)), {"axis": 0}),
    "no zero point": (integers(3, 5), (scales(5),), {"axis": 1}),
    "blocks": (integers(12, 5, dtype=np.uint8), (scales(3, 5), integers(3, 5, dtype=np.uint8)),
               {"axis": 0, "block_size": 4}),
    "blocks of columns": (integers(3, 20), (scales(3, 5), integers(3, 5)), {"axis": 1, "block_size": 4}),
    "int4": (integers(3, 5, dtype=ml_dtypes.int4), (scales(5),), {"axis": 1}),
    "uint4": (integers(3, 5, dtype=ml_dtypes.uint4), (scales(), number(7, ml_dtypes.uint4)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_dequantized_weight_carries_the_division(name: str) -> None:
    weight, parameters, attrs = WEIGHTS[name]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"][: 1 + len(parameters)], ["d"], **attrs),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    feeds = {"x": fed(2, weight.shape[0], dtype=np.float32).array}
    proto = model(nodes, feeds, {"w": weight, **dict(zip("sz", parameters, strict=False))})
    conform(proto, feeds, np.random.default_rng(7))
    assert {dim.size for dim in growable(analyse_open(load(proto)))} == {2, 3, 5}


def test_groups_and_their_inputs_grow_together() -> None:
    """Copies of a group are not summed, so that the weight does not carry the division of its inputs alone."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0),
        helper.make_node("ConvTranspose", ["x", "d"], ["y"], group=3),
    ]
    feeds = {"x": fed(2, 15, 4, dtype=np.float32).array}
    proto = model(nodes, feeds, {"w": integers(15, 7, 1), "s": scales(15)})
    conform(proto, feeds, np.random.default_rng(7))
    assert {dim.size for dim in growable(analyse_open(load(proto)))} == {2, 3, 5, 7}


# --- Shares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_shares_are_whole_and_sum_to_what_they_were(dtype: str, spread: float) -> None:
    rng = np.random.default_rng(3)
    kind = getattr(ml_dtypes, dtype) if "4" in dtype else np.dtype(dtype)
    values = integers(5, 4, 6, dtype=kind)
    low, high = values.astype(int).min(), values.astype(int).max()
    for zero in (np.zeros((), kind), integers(1, 4, 1, dtype=kind), integers(5, 1, 1, dtype=kind)):
        for map in (replicate(5, 17, rng), padded(5, 9, "zero_out"), from_index(5, np.array([0, 0, 1, 2, 3, 4]))):
            sides = [
                AxisGrowth(map, reads=True),
                AxisGrowth(from_index(4, np.arange(4))),
                AxisGrowth(replicate(6, 11, rng), reads=True),
            ]
            grown = grow(values, sides, Style(spread=spread), rng, "own", zero=zero)
            assert grown.dtype == values.dtype
            spare = np.minimum(low, zero.astype(int).min()), np.maximum(high, zero.astype(int).max())
            assert spare[0] <= grown.astype(int).min()
            assert grown.astype(int).max() <= spare[1]
            moved = np.take(zero, map.index, 0) if zero.ndim and zero.shape[0] == 5 else zero
            parts = grown.astype(int) - moved.astype(int)
            sums = np.zeros(values.shape, int)
            np.add.at(sums, np.ix_(map.index, range(4), sides[2].map.index), parts)
            np.testing.assert_array_equal(sums, values.astype(int) - zero.astype(int))


# --- Whole graphs -------------------------------------------------------------------------------------------------


def layer(nodes: list[onnx.NodeProto], kind: str, x: str, y: str, *more: str, **attrs: Any) -> None:
    nodes.append(helper.make_node(kind, [x, *more], [y], **attrs))


WIDTHS = (6, 10, 8, 4)


def qdq(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Linear layers with int8 weights per column and int32 biases behind DequantizeLinear, and a residual."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {"s": np.array(0.125, np.float32), "z": number(128)}
    layer(nodes, "QuantizeLinear", "x", "q", "s", "z")
    layer(nodes, "DequantizeLinear", "q", "h0", "s", "z")
    for k, (m, n) in enumerate(pairwise(WIDTHS)):
        constants |= {f"w{k}": integers(m, n, seed=seed + k), f"ws{k}": scales(n), f"wz{k}": np.zeros(n, np.int8)}
        constants |= {f"b{k}": integers(n, dtype=np.int32), f"bs{k}": constants[f"ws{k}"] / 8}
        layer(nodes, "DequantizeLinear", f"w{k}", f"dw{k}", f"ws{k}", f"wz{k}", axis=1)
        layer(nodes, "DequantizeLinear", f"b{k}", f"db{k}", f"bs{k}", axis=0)
        layer(nodes, "Gemm", f"h{k}", f"g{k}", f"dw{k}", f"db{k}")
        layer(nodes, "Relu", f"g{k}", f"r{k}")
        layer(nodes, "QuantizeLinear", f"r{k}", f"q{k}", "s", "z")
        layer(nodes, "DequantizeLinear", f"q{k}", f"h{k + 1}", "s", "z")
    feeds = {"x": fed(5, WIDTHS[0], dtype=np.float32).array}
    return model(nodes, feeds, constants, 17), feeds


def qoperator() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Convolutions of integers: plain, depthwise, concatenated, pooled, and a QGemm."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {"s": np.array(0.125, np.float32), "z": number(128), "v": np.array(1 / 64, "f4")}

    def conv(x: str, y: str, inner: int, outer: int, group: int = 1) -> None:
        constants.update({f"{y}w": integers(outer, inner, 3, 3), f"{y}s": scales(outer) / 8})
        constants.update({f"{y}z": np.zeros(outer, np.int8), f"{y}b": integers(outer, dtype=np.int32)})
        layer(nodes, "QLinearConv", x, y, "s", "z", f"{y}w", f"{y}s", f"{y}z", "s", "z", f"{y}b", group=group,
              pads=[1] * 4)  # fmt: skip

    layer(nodes, "QuantizeLinear", "x", "q", "s", "z")
    conv("q", "a", 3, 6)
    conv("a", "b", 1, 6, group=6)
    conv("b", "c", 6, 10)
    layer(nodes, "QLinearConcat", "s", "d", "z", "a", "s", "z", "c", "s", "z", axis=1, domain=MICROSOFT)
    layer(nodes, "QLinearLeakyRelu", "d", "e", "s", "z", "s", "z", alpha=0.25, domain=MICROSOFT)
    conv("e", "f", 16, 8)
    layer(nodes, "QLinearGlobalAveragePool", "f", "p", "s", "z", "s", "z", domain=MICROSOFT)
    layer(nodes, "Flatten", "p", "l")
    constants |= {"w": integers(8, 4), "wz": number(2, np.int8)}
    layer(nodes, "QGemm", "l", "o", "s", "z", "w", "v", "wz", "", "s", "z", domain=MICROSOFT)
    layer(nodes, "DequantizeLinear", "o", "y", "s", "z")
    feeds = {"x": fed(2, 3, 6, 6, dtype=np.float32).array}
    return model(nodes, feeds, constants, 17), feeds


def dynamic() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Linear layers that quantize what they read by its extremes."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    x = "x"
    for k, (m, n) in enumerate(pairwise(WIDTHS)):
        constants |= {f"w{k}": integers(m, n, seed=k), f"ws{k}": scales(n), f"wz{k}": integers(n), f"b{k}": scales(n)}
        nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"q{k}", f"s{k}", f"z{k}"]))
        layer(nodes, "MatMulInteger", f"q{k}", f"i{k}", f"w{k}", f"z{k}", f"wz{k}")
        layer(nodes, "Cast", f"i{k}", f"f{k}", to=1)
        layer(nodes, "Mul", f"s{k}", f"m{k}", f"ws{k}")
        layer(nodes, "Mul", f"f{k}", f"g{k}", f"m{k}")
        layer(nodes, "Add", f"g{k}", f"a{k}", f"b{k}")
        layer(nodes, "Relu", f"a{k}", f"r{k}")
        x = f"r{k}"
    feeds = {"x": fed(5, WIDTHS[0], dtype=np.float32).array}
    return model(nodes, feeds, constants, 17), feeds


def run_at(proto: onnx.ModelProto, feeds: Mapping[str, Array], level: ort.GraphOptimizationLevel) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize(
    ("make", "map"),
    [(qdq, "replicate"), (qdq, "zero_out"), (qoperator, "replicate"), (qoperator, "zero_out"), (dynamic, "replicate")],
)
def test_a_widened_graph_computes_the_same_numbers(make: Any, map: Any, level: str) -> None:
    proto, feeds = make()
    expected = run_at(proto, feeds, getattr(ort.GraphOptimizationLevel, level))
    assert len(np.unique(expected)) > 3
    for factor in (1.37, 2):
        widening = widen(proto, factor=factor, map=map)
        assert widening.covered > 0.9
        assert not any(group.reason for group in widening.fixed if group.size in WIDTHS[1:3])
        student = weighty(widening.student)
        assert len(student.graph.node) == len(proto.graph.node)
        np.testing.assert_array_equal(run_at(student, feeds, getattr(ort.GraphOptimizationLevel, level)), expected)


@pytest.mark.parametrize(("make", "map"), [(qdq, "zero_in"), (qoperator, "zero_in"), (dynamic, "zero_out")])
def test_maps_that_integers_do_not_admit_are_refused(make: Any, map: Any) -> None:
    with pytest.raises(RefusedError, match="replicate does"):
        widen(make()[0], factor=2, map=map)


def test_what_is_quantized_inside_a_product_does_not_admit_other_units() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    layer(nodes, "DynamicQuantizeMatMul", "h", "y", "w", "s", domain=MICROSOFT)
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    proto = model(nodes, feeds, {"v": fed(3, 5, dtype=np.float32).array, "w": integers(5, 4), "s": scales()})
    assert [change.new for change in widen(proto, factor=1.6).changes] == [8]
    with pytest.raises(RefusedError, match="replicate does"):
        widen(proto, factor=1.6, map="zero_out")


def test_copies_of_a_quantized_unit_are_read_unevenly() -> None:
    proto, _ = qdq()
    student = weighty(widen(proto, factor=2, spread=0.5).student)
    weight = next(numpy_helper.to_array(t) for t in student.graph.initializer if t.name == "w1").astype(int)
    assert weight.shape == (20, 16)
    assert (weight[:10] != weight[10:]).any()


def test_a_weight_that_two_layers_read_is_divided_by_its_readers() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    layer(nodes, "DequantizeLinear", "w", "d", "s")
    layer(nodes, "MatMul", "h", "a", "d")
    layer(nodes, "Relu", "h", "r")
    layer(nodes, "MatMul", "r", "b", "d")
    layer(nodes, "Add", "a", "y", "b")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    proto = model(nodes, feeds, {"v": fed(3, 5, dtype=np.float32).array, "w": integers(5, 4), "s": scales()}, 17)
    widening = widen(proto, factor=1.6)
    assert [change.new for change in widening.changes] == [8]
    assert verify(proto, widening.student).equivalent


def test_a_weight_that_is_quantized_in_the_graph_is_divided_behind() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    layer(nodes, "QuantizeLinear", "w", "q", "s", "z")
    layer(nodes, "DequantizeLinear", "q", "d", "s", "z")
    layer(nodes, "MatMul", "h", "y", "d")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    weights = {"v": fed(3, 5, dtype=np.float32).array, "w": fed(5, 4, dtype=np.float32).array / 3}
    proto = model(nodes, feeds, {**weights, "s": scales(), "z": number(7)}, 17)
    widening = widen(proto, factor=1.6)
    assert [change.new for change in widening.changes] == [8]
    assert verify(proto, widening.student).equivalent


def test_floats_of_one_byte_are_no_integers() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    layer(nodes, "DequantizeLinear", "w", "d", "s")
    layer(nodes, "MatMul", "h", "y", "d")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    weights = {"v": fed(3, 5, dtype=np.float32).array, "w": integers(5, 4).astype(ml_dtypes.float8_e4m3fn)}
    proto = model(nodes, feeds, {**weights, "s": scales()}, 19)
    widening = widen(proto, factor=1.6)
    assert [change.new for change in widening.changes] == [8]
    assert verify(proto, widening.student).equivalent


def test_readers_of_one_weight_may_count_from_different_zero_points() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    for k in "ab":
        layer(nodes, "DequantizeLinear", "w", f"d{k}", "s", f"z{k}")
        layer(nodes, "MatMul", "h", k, f"d{k}")
    layer(nodes, "Sub", "a", "y", "b")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    weights = {"v": fed(3, 5, dtype=np.float32).array, "w": integers(5, 4), "s": scales()}
    proto = model(nodes, feeds, {**weights, "za": number(0, np.int8), "zb": number(9, np.int8)}, 17)
    widening = widen(proto, factor=2)
    assert [change.new for change in widening.changes] == [10]
    assert verify(proto, widening.student).equivalent


def test_a_layer_of_integers_reads_no_padding() -> None:
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMul", "x", "h", "v")
    layer(nodes, "LayerNormalization", "h", "n", "g")
    layer(nodes, "DequantizeLinear", "w", "d", "s", "z")
    layer(nodes, "MatMul", "n", "y", "d")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    weights = {"v": fed(3, 10, dtype=np.float32).array, "w": integers(10, 4), "g": scales(10)}
    proto = model(nodes, feeds, {**weights, "s": scales(), "z": number(3, np.int8)}, 17)
    widening = widen(proto, factor=1.3)
    assert [change.new for change in widening.changes] == [13]
    assert verify(proto, widening.student).equivalent


def test_integers_hold_no_padding() -> None:
    """Zeros behind MatMulInteger would not be noticed by an RMSNormalization, but its weight holds copies."""
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "MatMulInteger", "x", "i", "w")
    layer(nodes, "Cast", "i", "h", to=onnx.TensorProto.FLOAT)
    layer(nodes, "RMSNormalization", "h", "n", "g")
    layer(nodes, "MatMul", "n", "y", "v")
    feeds = {"x": fed(2, 3).array}
    weights = {"w": integers(3, 10), "v": fed(10, 4, dtype=np.float32).array, "g": scales(10)}
    proto = model(nodes, feeds, weights, 23)
    assert verify(proto, widen(proto, factor=2).student).equivalent
    assert verify(proto, widen(proto, factor=1.3).student).equivalent
    with pytest.raises(RefusedError, match="nothing"):
        widen(proto, factor=1.3, fill_norms=False)


def test_integers_are_not_padded_by_a_mean() -> None:
    """A LayerNormalization would let a float stream grow to any width."""
    nodes: list[onnx.NodeProto] = []
    layer(nodes, "DequantizeLinear", "w", "d", "s")
    layer(nodes, "MatMul", "x", "h", "d")
    layer(nodes, "LayerNormalization", "h", "n", "g")
    layer(nodes, "MatMul", "n", "y", "v")
    feeds = {"x": fed(2, 3, dtype=np.float32).array}
    weights = {"w": integers(3, 10), "v": fed(10, 4, dtype=np.float32).array, "g": scales(10)}
    proto = model(nodes, feeds, {**weights, "s": scales()}, 17)
    (group,) = (group for group in inspect(proto).groups if group.size == 10)
    assert group.reason is None
    assert [change.new for change in widen(proto, factor=1.9).changes] == [20]
    assert verify(proto, widen(proto, factor=1.3).student).equivalent
    with pytest.raises(RefusedError, match="nothing"):
        widen(proto, factor=1.3, fill_norms=False)


def dynamically_quantized(width: int) -> onnx.ModelProto:
    """Two layers; what the first makes is rounded to steps of its own range."""
    text = """(float[16, 8] x) => (float[16, 3] y) { h = MatMul(x, w) r = Relu(h)
        q, s, z = DynamicQuantizeLinear(r) i = MatMulInteger(q, v, z) f = Cast<to = 1>(i) y = Mul(f, s) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, width)).astype(np.float32), "v": rng.integers(-90, 90, (width, 3), np.int8)}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return proto


def test_a_rounding_step_behind_dynamic_quantization_is_noise() -> None:
    teacher = dynamically_quantized(48)
    student = dynamically_quantized(48)
    weights = numpy_helper.to_array(student.graph.initializer[0])
    moved = weights * (1 + 2e-6 * np.sign(weights - weights.mean()))  # a few units in the last place
    student.graph.initializer[0].CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "w"))
    assert all(verify(teacher, student, seed=seed).equivalent for seed in range(4))


@pytest.mark.parametrize("factor", [1.05, 1.5])
def test_no_rounding_steps_excuse_what_is_wrong_in_most_runs(factor: float) -> None:
    teacher, wrong = dynamically_quantized(2000), dynamically_quantized(2000)  # so many that each run has other steps
    weights = numpy_helper.to_array(wrong.graph.initializer[0]).copy()
    weights[:, 5] *= factor
    wrong.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    found = verify(teacher, wrong)
    assert not found.equivalent
    assert found.outputs[0].max_rel < 0.05
