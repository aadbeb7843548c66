"""Operators of com.microsoft that optimizers emit, and the RMS normalisers of ai.onnx.

Most are an operator of ai.onnx with another one fused into it. Operators that are not here freeze their dims.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from onnx_net2net.rules import rule, signature
from onnx_net2net.rules.attention import MICROSOFT
from onnx_net2net.rules.convolution import pool
from onnx_net2net.rules.linear import gemm
from onnx_net2net.rules.movement import match_runs, pad
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.traits import UNARY
from onnx_net2net.rules.typing import Attributes, InputValues, Typed, TypeFunction, Types, type_function


def like(kind: str, opset: int = 18) -> TypeFunction:
    """Return the type function of an operator whose output is typed as that of one of ai.onnx."""
    schema = defs.get_schema(kind, opset, "")

    def typed(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
        names = [f"i{index}" if known else "" for index, known in enumerate(types[: len(schema.inputs)])]
        known = {name: helper.make_tensor_type_proto(*one) for name, one in zip(names, types, strict=False) if one}
        data = {
            name: numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in zip(names, values, strict=False)
            if value is not None
        }
        shared = {name: value for name, value in attrs.items() if name in schema.attributes}
        node = helper.make_node(kind, names, ["y"], **shared)
        imports = [helper.make_opsetid("", opset)]
        result = shape_inference.infer_node_outputs(schema, node, known, data, opset_imports=imports)["y"].tensor_type
        return [(result.elem_type, tuple(dim.dim_value for dim in result.shape.dim))]

    return typed


def activated(op: Op) -> None:
    """State what the activation that is fused into a node, if one is, does to each unit of the result."""
    kind = str(op.attrs.get("activation", ""))
    parameters = [float(value) for value in op.attrs.get("activation_params", ())]
    if kind == "Clip":
        low, high = (*parameters, -np.inf, np.inf)[:2] if parameters else (-np.inf, np.inf)
        op.pointwise("any" if low > 0 or high < 0 else "relu" if 0 in (low, high) else "zero")
    elif kind:
        op.pointwise(next((what for what in ("relu", "any") if kind in UNARY[what]), "zero"))


# --- Units alone -----------------------------------------------------------------------------------------------

signature("Gelu", "QuickGelu", "*x -> *x", domain=MICROSOFT, pointwise="zero")
signature("BiasGelu", "FastGelu", "*x c, c -> *x c", domain=MICROSOFT, pointwise="zero")
signature("BiasAdd", "n s c, c, n s c -> n s c", domain=MICROSOFT, pointwise="zero")
signature("BiasDropout", "*x c, c, *x c, *r, *t -> *x c, *x c", domain=MICROSOFT, pointwise="zero")


@rule("BiasSplitGelu", domain=MICROSOFT, pointwise="zero")
def bias_split_gelu(op: Op) -> None:
    """The first half of each row of X + bias times Gelu of the other."""
    op.apply("n s (k c), (k c) -> n s c", sizes={"k": 2}, fixed="k")


@type_function("BiasSplitGelu", domain=MICROSOFT)
def _typed_half(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = types[0] or (0, ())
    return [(dtype, (*shape[:-1], shape[-1] // 2))]


@rule("BitmaskDropout", domain=MICROSOFT)
def bitmask_dropout(op: Op) -> None:
    """Pass the data through; the mask has a bit for each element."""
    op.apply("*x -> *x")
    op.scalars(1, 2)
    if op.output(1) is not None:
        op.freeze_all("returns a bit for each element")


# --- Products of matrices --------------------------------------------------------------------------------------


@rule("FusedGemm", domain=MICROSOFT)
def fused_gemm(op: Op) -> None:
    """Gemm and an activation."""
    gemm(op)
    activated(op)


type_function("FusedGemm", domain=MICROSOFT)(like("Gemm"))


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(op: Op) -> None:
    """Alpha * A' B': transBatch takes the first axis behind the other leading ones, then trans swaps the last two."""
    a, b, result = op.known(0), op.known(1), op.result()
    left, right = _orders(len(a), len(b), op.attrs)
    inner = right[-min(2, len(right))]
    op.unify(a[left[-1]], b[inner])
    op.contract(a[left[-1]], [(0, left[-1]), (1, inner)])
    rows, columns = [a[p] for p in left[-2:-1]], [b[p] for p in right[1:][-1:]]
    split = len(result) - len(rows) - len(columns)
    op.unify_all((*rows, *columns), result[split:])
    op.broadcast([tuple(a[p] for p in left[:-2]), tuple(b[p] for p in right[:-2])], result[:split])


@type_function("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _typed_matmul(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    (dtype, a), (_, b) = (known for known in types[:2] if known)
    left, right = ([x[p] for p in order] for x, order in zip((a, b), _orders(len(a), len(b), attrs), strict=True))
    return [(dtype, (*np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2])), *left[-2:-1], *right[1:][-1:]))]


def _orders(a: int, b: int, attrs: Attributes) -> tuple[list[int], list[int]]:
    """Return the order in which the axes of A and of B are multiplied."""
    orders = []
    for rank, side in ((a, "A"), (b, "B")):
        order = list(range(rank))
        if attrs.get(f"transBatch{side}", 0) and rank > 2:
            order = [*order[1:-1], order[0], order[-1]]
        if attrs.get(f"trans{side}", 0) and rank > 1:
            order[-2:] = order[:-3:-1]
        orders.append(order)
    return orders[0], orders[1]


@rule("CDist", domain=MICROSOFT)
def pairwise_distance(op: Op) -> None:
    """Distance of each row of A to each of B: copies of a coordinate together weigh its square."""
    op.apply("m k, n k -> m n")
    sides = op.input(0), op.input(1)
    op.said.contractions = ()
    for index, axes in enumerate(sides):
        if axes is not None:
            op.contract(axes[1], [(index, 1)], "square")
            op.only_copies(axes[0], "returns distances of each unit")
    op.pointwise("any")


@type_function("CDist", domain=MICROSOFT)
def _typed_distance(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    (dtype, a), (_, b) = (known for known in types[:2] if known)
    return [(dtype, (a[0], b[0]))]


# --- Convolutions and positions --------------------------------------------------------------------------------


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(op: Op) -> None:
    """Conv, a sum with Z and an activation."""
    op.apply(
        "n (g i) *x, (g o) i *k, (g o), n (g o) *y -> n (g o) *y", sizes={"g": "group"}, fixed="x y k"
    )  # group j of the output reads group j of the input
    activated(op)


type_function("FusedConv", domain=MICROSOFT)(like("Conv"))


@rule("MaxpoolWithMask", domain=MICROSOFT)
def masked_max_pool(op: Op) -> None:
    """Pool each channel where the mask allows."""
    pool(op)
    source = op.input(0)
    if source is not None:
        op.broadcast([op.input(1)], source)


type_function("MaxpoolWithMask", domain=MICROSOFT)(like("MaxPool"))

signature(
    "GridSample", "n c h w, n y x two -> n c y x", domain=MICROSOFT, fixed="h w two", scales=(1,), pointwise="zero"
)
signature("Trilu", "*b m n, *k -> *b m n", domain=MICROSOFT, fixed="m n k", pointwise="zero")
signature("Inverse", "*b m n -> *b m n", domain=MICROSOFT, fixed="m n", pointwise="any")
rule("Pad", domain=MICROSOFT)(pad)
type_function("Pad", domain=MICROSOFT)(like("Pad"))


@rule("ExpandDims", domain=MICROSOFT)
def expand_dims(op: Op) -> None:
    """Add an axis of size 1."""
    op.scalars(1)
    match_runs(op, op.input(0), op.output())


@type_function("ExpandDims", domain=MICROSOFT)
def _typed_expand_dims(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    (dtype, shape), axis = types[0] or (0, ()), values[1]
    if axis is None:
        raise ValueError("has an axis that is not known")
    at = int(axis.reshape(-1)[0]) % (len(shape) + 1)
    return [(dtype, (*shape[:at], 1, *shape[at:]))]


# --- Normalisers -----------------------------------------------------------------------------------------------


@rule("RMSNormalization", since=23)
@rule("SimplifiedLayerNormalization")
def rms_normalization(op: Op) -> None:
    """Divide by the root of the mean square over the axes from `axis` on; InvStdVar keeps them as size 1."""
    axes = op.known(0)
    at = op.axis(len(axes), -1)
    op.unify_all(axes, op.output() or axes)
    op.broadcast([op.input(1)], axes)
    op.uniform(axes[at:], "rms", scale=1)
    op.unify_all(axes[:at], (op.output(1) or axes)[:at])
    op.scales(1)


@type_function("LayerNormalization", "SimplifiedLayerNormalization", domain="")
def _typed_layer_norm(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    """Type it at any opset: optimizers emit it below 17, where ai.onnx has none."""
    dtype, shape = types[0] or (0, ())
    at = attrs.get("axis", -1) % len(shape)
    kept = attrs.get("stash_type", TensorProto.FLOAT), (*shape[:at], *(1 for _ in shape[at:]))
    return [(dtype, shape), kept, kept]


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(op: Op) -> None:
    """Normalise input + skip + bias over the last axis; the sum is the last output."""
    source = op.known(0)
    op.broadcast(op.inputs[1:], source)
    law, bias, shift = ("layer", 4, 3) if op.kind == "SkipLayerNormalization" else ("rms", 3, None)
    op.uniform(source[-1:], law, inputs=(0, 1, bias), scale=2, shift=shift, total=3, epsilon=1e-12)
    for index, axes in enumerate(op.outputs):
        op.unify_all((axes or source)[: -1 if index in (1, 2) else None], source[: -1 if index in (1, 2) else None])
    op.scales(2)


@type_function("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _typed_skip(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, shape = types[0] or (0, ())
    kept = TensorProto.FLOAT, (*shape[:-1], 1)
    return [(dtype, shape), kept, kept, (dtype, shape)]


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(op: Op) -> None:
    """Normalise a sum of rows of three tables, one of them by position."""
    for table in (op.input(2), op.input(3), op.input(4)):
        for axis in (table or ())[:1]:
            op.look_up(axis)
    op.apply("b s, b s, v c, p c, g c, c, c, b s, b2~ s -> b s c, b, b s c", fixed="s")
    if (result := op.output()) is not None:
        op.uniform(result[-1:], "layer", inputs=(2, 3, 4), scale=5, shift=6, total=2, epsilon=1e-12)
    op.scales(5)


@type_function("EmbedLayerNormalization", domain=MICROSOFT)
def _typed_embedding(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    (_, tokens), (dtype, table) = types[0] or (0, ()), types[2] or (0, ())
    result = dtype, (*tokens, table[1])
    return [result, (TensorProto.INT32, tokens[:1]), result]


@rule("GroupNorm", domain=MICROSOFT)
def group_norm(op: Op) -> None:
    """Normalise groups of channels, which stand last unless `channels_last` is 0, and maybe apply SiLU."""
    source = "n *x (g c)" if op.attrs.get("channels_last", 1) else "n (g c) *x"
    op.apply(f"{source}, (g c), (g c) -> {source}", sizes={"g": "groups"}, uniform="x c")
    op.scales(1)


@rule("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(op: Op) -> None:
    """Normalise X + skip + bias in groups of channels, which stand last; the sum is the second output."""
    source, skip = op.input(0), op.input(3)
    if not op.attrs.get("channels_last", 1):
        op.freeze_all("has its channels in front")
        return
    op.apply("n *x (g c), (g c), (g c), *skip, (g c) -> n *x (g c), n *x (g c)", sizes={"g": "groups"}, uniform="x c")
    if source is not None and skip is not None:
        op.broadcast([skip], source if len(skip) == len(source) else (source[0], source[-1]))
    op.scales(1)


@type_function("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def _typed_group_norm(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    return [known for known in types[:1] if known] * 2


# --- What stays as it is ---------------------------------------------------------------------------------------

BLOCKED = "holds channels in blocks of the width of a register"
INTEGERS = "multiplies integers, which cannot be divided among copies"
FIXED = {
    BLOCKED: ("Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample", "ReorderInput",
              "ReorderOutput"),
    INTEGERS: ("QAttention", "QEmbedLayerNormalization", "DynamicQuantizeLSTM", "MatMulInteger16", "MatMulBnb4",
               "MatMulFpQ4", "GatherBlockQuantized"),
}  # fmt: skip


def _fixed(reason: str) -> None:
    @rule(*FIXED[reason], domain="com.microsoft.nchwc" if reason == BLOCKED else MICROSOFT)
    def fixed(op: Op) -> None:
        """Nothing grows."""
        op.freeze_all(reason)


for _reason in FIXED:
    _fixed(_reason)
for _kind in ("Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"):
    type_function(_kind, domain="com.microsoft.nchwc")(like(_kind))


@type_function("ReorderOutput", domain="com.microsoft.nchwc")
def _typed_reordered(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    dtype, (batch, _, *space) = types[0] or (0, (0, 0))
    inner = (*space, attrs["channels"]) if attrs.get("channels_last") else (attrs["channels"], *space)
    return [(dtype, (batch, *inner))]
