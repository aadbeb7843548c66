"""Quantized weights and activations: an integer stands for its distance from a zero point, times a scale.

Copying units copies their integers, and their scales and zero points where these are per unit. Readers of copies
share the integers of a weight among them in whole parts (see `Op.integers`), so that every sum of integers is
exactly what it was, whatever the number of copies.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_net2net.algebra.dims import Axes, Concat, Dim, Product
from onnx_net2net.rules import rule
from onnx_net2net.rules.attention import MICROSOFT
from onnx_net2net.rules.contrib import like
from onnx_net2net.rules.linear import matmul
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.typing import Attributes, InputValues, Typed, Types, type_function


def _per_unit(op: Op, index: int, data: Axes | None, axis: int, block: int = 0) -> None:
    """State what a scale or zero point is per: the tensor, a unit of an axis, or a block of its units."""
    axes = op.input(index)
    if not axes or data is None or (len(axes) == 1 == axes[0].size):
        return
    if len(axes) == 1:
        op.unify(axes[0], data[axis])
    elif block and len(axes) == len(data):
        for position, (a, b) in enumerate(zip(axes, data, strict=True)):
            blocks = (a, Dim(block, op.why("quantizes blocks of this size"))) if position == axis else (a,)
            op.unify(Product(blocks), b, "does not divide this axis into whole blocks")
    else:
        op.broadcast([axes], data)


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def quantize(op: Op) -> None:
    """Divide by the scale and add the zero point, or the reverse; those of an axis or its blocks follow it."""
    axes = op.input(0) or ()
    op.apply("*x -> *x")
    at = op.axis(len(axes), 1)
    for index in (1, 2):
        _per_unit(op, index, axes, at, op.attrs.get("block_size", 0))
    op.scales(1)
    op.pointwise("any")
    if op.kind == "DequantizeLinear":
        op.integers(0, 2, at)


@rule("DynamicQuantizeLinear", pointwise="any")
def dynamic_quantize(op: Op) -> None:
    """Quantize by the extremes of the whole tensor, which copies do not change."""
    op.apply("*x -> *x, , ")
    for axis in op.input(0) or ():
        op.only_copies(axis, "quantizes by the extremes of this tensor")


@rule("QLinearConv", pointwise="any")
@rule("QLinearConv", domain=MICROSOFT, pointwise="any")
def conv(op: Op) -> None:
    """Conv of integers; the weight's scale and zero point are per tensor or per output channel."""
    x, y = ("n *x (g i)", "n *y (g o)") if op.attrs.get("channels_last", 0) else ("n (g i) *x", "n (g o) *y")
    op.apply(f"{x}, *a, *b, (g o) i *k, *c, *d, *e, *f, (g o) -> {y}", sizes={"g": "group"}, fixed="x y k")
    for index in (4, 5):
        _per_unit(op, index, op.input(3), 0)
    op.integers(3, 5, 0)


@rule("ConvInteger", pointwise="any")
def conv_integer(op: Op) -> None:
    """Conv of integers to an integer; the weight's zero point is per tensor or per output channel."""
    op.apply("n (g i) *x, (g o) i *k, *a, *b -> n (g o) *y", sizes={"g": "group"}, fixed="x y k")
    _per_unit(op, 3, op.input(1), 0)
    op.integers(1, 3, 0)


def _multiply(op: Op, left: int, right: int) -> None:
    """State what MatMul does of two inputs."""
    plain = Op(op.kind, op.label, [op.input(left), op.input(right)], op.outputs)
    matmul(plain)
    for contraction in plain.said.contractions:
        op.contract(contraction.axis, [((left, right)[index], position) for index, position in contraction.sides])


def _matmul(op: Op, left: int, right: int, rows: Sequence[int], columns: Sequence[int], zeros: tuple[int, int]) -> None:
    """Multiply integer matrices; scales and zero points of A are per tensor or row, those of B per tensor or column."""
    a, b = op.input(left), op.input(right)
    _multiply(op, left, right)
    if a is None or b is None:
        return
    for index in rows:
        _per_unit(op, index, a, max(len(a) - 2, 0))
    for index in columns:
        _per_unit(op, index, b, len(b) - 1)
    op.integers(left, zeros[0], max(len(a) - 2, 0))
    op.integers(right, zeros[1], len(b) - 1)


@rule("MatMulInteger", pointwise="any")
def matmul_integer(op: Op) -> None:
    """A, B, and their zero points."""
    _matmul(op, 0, 1, rows=(2,), columns=(3,), zeros=(2, 3))


@rule("QLinearMatMul", pointwise="any")
def qlinear_matmul(op: Op) -> None:
    """A and B, each with scale and zero point; those of the result are per tensor or row."""
    _matmul(op, 0, 3, rows=(1, 2), columns=(4, 5), zeros=(2, 5))
    for index in (6, 7):
        _per_unit(op, index, op.output(), max(len(op.output() or ()) - 2, 0))


@rule("MatMulIntegerToFloat", domain=MICROSOFT, pointwise="any")
def matmul_to_float(op: Op) -> None:
    """A and B, their scales, their zero points, and a bias."""
    _matmul(op, 0, 1, rows=(2, 4), columns=(3, 5, 6), zeros=(4, 5))


@rule("DynamicQuantizeMatMul", domain=MICROSOFT, pointwise="any")
def dynamic_matmul(op: Op) -> None:
    """Quantize A by its extremes and multiply by B, which alone can weigh copies."""
    a, b = op.input(0), op.input(1)
    _multiply(op, 0, 1)
    if a is None or b is None:
        return
    for axis in a:
        op.only_copies(axis, "quantizes by the extremes of this tensor")
    op.said.contractions = ()
    rows = max(len(b) - 2, 0)
    op.contract(b[rows], [(1, rows)])
    for index in (2, 3, 4):
        _per_unit(op, index, b, len(b) - 1)
    op.integers(1, 3, len(b) - 1)


@rule("QGemm", domain=MICROSOFT, pointwise="any")
def gemm(op: Op) -> None:
    """Alpha * A' B' + C of integers; B's scale and zero point are per tensor or column."""
    a = "k m" if op.attrs.get("transA", 0) else "m k"
    b, columns = ("n k", 0) if op.attrs.get("transB", 0) else ("k n", 1)
    op.apply(f"{a}, *a, *b, {b}, *c, *d, m~ n~, *e, *f -> m n")
    for index in (4, 5):
        _per_unit(op, index, op.input(3), columns)
    op.integers(3, 5, columns)


@rule("MatMulNBits", domain=MICROSOFT, pointwise="any")
def matmul_nbits(op: Op) -> None:
    """A (K) times the transpose of B (N, K), packed in blocks along K; the scale of a block weighs its copies."""
    size = int(op.attrs.get("block_size", 0))
    a, packed, scales = op.input(0), op.input(1), op.input(2)
    if a is None or packed is None or scales is None or len(packed) != 3 or op.attrs.get("weight_prepacked", 0):
        op.freeze_all("holds its weight in an order that is not known")
        return
    zeros = "(n z)" if len(op.input(3) or ()) == 1 else "n z"
    op.apply(f"*b (k c), n k p, {'(n k)' if len(scales) == 1 else 'n k'}, {zeros}, *g, n -> *b n",
             sizes={"n": packed[0].size, "k": packed[1].size}, fixed="c p z")  # fmt: skip
    op.said.contractions = ()
    op.contract(packed[1], [(0, len(a) - 1), (2, len(scales) - 1)])
    op.attribute("K", a[-1])
    op.attribute("N", packed[0])
    if op.has(3) or op.has(4) or a[-1].size != size * packed[1].size:
        op.freeze(packed[1], "packs what belongs to this axis")
    op.scales(2)


@rule("QLinearAdd", "QLinearMul", "QLinearWhere", domain=MICROSOFT, pointwise="any")
def broadcasting(op: Op) -> None:
    """Combine operands unit by unit, broadcast to the result; each has a scale and a zero point."""
    operands = (0, 1, 4) if op.kind == "QLinearWhere" else (0, 3)
    op.broadcast([op.input(index) for index in operands], op.output() or ())
    op.scalars(*{*range(1, 9)}.difference(operands))


@rule("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MICROSOFT, pointwise="any")
def unary(op: Op) -> None:
    """phi(x), unit by unit; a softmax normalises over its axis (before opset 13: over all from it on)."""
    axes = op.input(0)
    op.apply("*x -> *x")
    op.scalars(1, 2, 3, 4)
    if axes and op.kind == "QLinearSoftmax":
        single = op.attrs.get("opset", 13) >= 13
        at = op.axis(len(axes), -1 if single else 1)
        op.normalise(axes[at : at + 1 if single else None])


@rule("QLinearConcat", domain=MICROSOFT, pointwise="any")
def concat(op: Op) -> None:
    """Lay tensors end to end, each followed by its scale and zero point."""
    parts, target = [op.known(index) for index in range(2, len(op.inputs), 3)], op.result()
    at = op.axis(len(target), 1)
    for axes in parts:
        op.unify_all([*axes[:at], *axes[at + 1 :]], [*target[:at], *target[at + 1 :]])
    op.unify(Concat(axes[at] for axes in parts), target[at])


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT, pointwise="any")
def pool(op: Op) -> None:
    """Average positions of each channel."""
    op.apply("n *x c -> n *y c" if op.attrs.get("channels_last", 0) else "n c *x -> n c *y", fixed="x y")
    op.scalars(1, 2, 3, 4)


@rule("QLinearReduceMean", domain=MICROSOFT, pointwise="any")
def reduce_mean(op: Op) -> None:
    """Average over `axes` (all by default), which stay; the others pass."""
    source, target = op.input(0) or (), op.output() or ()
    op.scalars(1, 2, 3, 4)
    axes = op.ints("axes")
    reduced = {a % len(source) for a in axes} if axes else set(range(len(source)))
    kept = [axis for position, axis in enumerate(source) if position not in reduced]
    op.unify_all(kept, [t for p, t in enumerate(target) if p not in reduced] if op.attrs.get("keepdims", 1) else target)
    op.freeze((source[position] for position in sorted(reduced)), "averages integers along this axis")


# --- Types of what has no schema in onnx ---------------------------------------------------------------------


def _given(types: Types, index: int) -> Typed:
    known = types[index]
    if known is None:
        raise ValueError("lacks an operand")
    return known


@type_function("DequantizeLinear", "QuantizeLinear", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
               domain=MICROSOFT)  # fmt: skip
def _type_unary(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype = _given(types, 0)[0]
    if dtype in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):  # QuantizeLinear
        dtype = types[2][0] if len(types) > 2 and types[2] else onnx.TensorProto.UINT8
    elif len(types) <= 3:  # DequantizeLinear
        dtype = _given(types, 1)[0]
    return [(dtype, _given(types, 0)[1])]


@type_function("QLinearConv", domain=MICROSOFT)
def _type_conv(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    shape, last = _given(types, 0)[1], attrs.get("channels_last", 0)
    first = (shape[0], shape[-1], *shape[1:-1]) if last else shape
    operands = [(onnx.TensorProto.FLOAT, first), (onnx.TensorProto.FLOAT, _given(types, 3)[1])]
    ((_, made),) = like("Conv")(operands, attrs, ())
    return [(_given(types, 7)[0], (made[0], *made[2:], made[1]) if last else made)]


@type_function("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _type_broadcasting(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    a, b = _given(types, 0), _given(types, 3)
    return [(a[0], np.broadcast_shapes(a[1], b[1]))]


@type_function("QLinearWhere", domain=MICROSOFT)
def _type_where(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    return [(_given(types, 1)[0], np.broadcast_shapes(*(_given(types, index)[1] for index in (0, 1, 4))))]


@type_function("QLinearConcat", domain=MICROSOFT)
def _type_concat(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = _given(types, 2)
    at = attrs["axis"] % len(shape)
    total = sum(_given(types, index)[1][at] for index in range(2, len(types), 3))
    return [(dtype, (*shape[:at], total, *shape[at + 1 :]))]


@type_function("QLinearAveragePool", domain=MICROSOFT)
def _type_pool(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    if attrs.get("channels_last", 0):
        raise ValueError("pools the middle axes")
    dtype, shape = _given(types, 0)
    ((_, pooled),) = like("AveragePool")([(onnx.TensorProto.FLOAT, shape)], attrs, ())
    return [(dtype, pooled)]


@type_function("QLinearGlobalAveragePool", domain=MICROSOFT)
def _type_global_pool(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = _given(types, 0)
    ones = (1,) * (len(shape) - 2)
    return [(dtype, (shape[0], *ones, shape[-1]) if attrs.get("channels_last", 0) else (*shape[:2], *ones))]


@type_function("QLinearReduceMean", domain=MICROSOFT)
def _type_mean(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = _given(types, 0)
    reduced = {a % len(shape) for a in attrs.get("axes") or range(len(shape))}
    keep = attrs.get("keepdims", 1)
    return [(dtype, tuple(1 if p in reduced else n for p, n in enumerate(shape) if keep or p not in reduced))]


@type_function("QGemm", domain=MICROSOFT)
def _type_gemm(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    a, b = _given(types, 0), _given(types, 3)
    quantized = len(types) > 8 and types[8]
    shape = (a[1][1 if attrs.get("transA", 0) else 0], b[1][0 if attrs.get("transB", 0) else 1])
    return [(quantized[0] if quantized else _given(types, 1)[0], shape)]


@type_function("MatMulIntegerToFloat", "DynamicQuantizeMatMul", domain=MICROSOFT)
def _type_matmul(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    (_, a), (_, b) = _given(types, 0), _given(types, 1)
    return [(_given(types, 2)[0], (*np.broadcast_shapes(a[:-2], b[:-2]), *a[-2:-1], *b[-1:] * (len(b) > 1)))]


@type_function("MatMulNBits", domain=MICROSOFT)
def _type_nbits(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = _given(types, 0)
    return [(dtype, (*shape[:-1], attrs["N"]))]
