"""Operators of com.microsoft that are whole mixtures of experts: a router's logits choose among stacked layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_net2net.algebra.dims import Axes, Axis, Dim, Product
from onnx_net2net.rules import rule
from onnx_net2net.rules.attention import MICROSOFT
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.typing import Typed, type_function

_INERT = "activation_alpha activation_beta activation_type k normalize_routing_weights swiglu_limit use_sparse_mixer"

_QUANTIZED = "expert_weight_bits block_size"


@rule("MoE", domain=MICROSOFT, inert=_INERT)
def mixture(op: Op) -> None:
    """Sum g_e fc2_e act(fc1_e x) over the k experts of the largest logits; fc1 or fc3 may hold what is gated."""
    data, result, logits, first, second = op.known(0), op.result(), op.known(1), op.known(2), op.known(4)
    fusion = int(op.attrs.get("swiglu_fusion", 0))
    expert, hidden = first[0], second[2]
    rows: Axis = hidden
    if fusion:
        pair = Dim(2, op.why("pairs gates and values"))
        rows = Product((hidden, pair) if fusion == 1 else (pair, hidden))
    op.unify(logits[-1], expert)
    op.choose(1, len(logits) - 1)
    op.unify_all(data, result)  # its width is that of the data
    if len(logits) == len(data):
        op.unify_all(logits[:-1], data[:-1])
    op.unify(first[1], rows)
    for index, axes in (
        (3, (expert, rows)),
        (5, (expert, result[-1])),
        (6, (expert, hidden, data[-1])),
        (7, (expert, hidden)),
    ):
        if op.has(index):
            op.unify_all(op.known(index), axes)
    op.unify(first[2], data[-1])
    op.unify_all(second[:2], (expert, result[-1]))
    for index in (2, 6) if op.has(6) else (2,):
        op.contract(data[-1], [(0, len(data) - 1), (index, 2)])
    op.contract(hidden, [(4, 2)])
    op.pointwise("any")


@rule("QMoE", domain=MICROSOFT, inert=f"{_INERT} {_QUANTIZED}")
def quantized_mixture(op: Op) -> None:
    """The same with quantized weights, several in one byte: only the experts can get copies."""
    logits, expert = op.known(1), op.known(2)[0]
    op.unify(logits[-1], expert)
    op.choose(1, len(logits) - 1)
    stacks: list[Axes] = [axes for axes in op.inputs[2:] if axes is not None]
    for axes in stacks:
        op.unify(axes[0], expert)
        op.freeze(axes[1:], "holds quantized weights, which cannot be divided among copies")
    op.freeze((*op.known(0), *op.result(), *logits[:-1]), "multiplies quantized weights")
    op.pointwise("any")


@type_function("MoE", "QMoE", domain=MICROSOFT)
def _typed_mixture(types: Sequence[Typed | None], attrs: Mapping[str, Any], values: Sequence[Any]) -> list[Typed]:
    return [types[0]] if types[0] is not None else []
