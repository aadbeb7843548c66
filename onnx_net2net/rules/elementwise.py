"""Operators that act on each unit alone: a selection of units commutes with them."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.traits import BROADCASTING, UNARY
from onnx_net2net.rules.typing import Typed, type_function


def _unary(kind: str) -> None:
    @rule(*UNARY[kind])
    def unary(op: Op) -> None:
        """phi(x), unit by unit; of a further input (the type of CastLike) no data is read."""
        op.apply("*x -> *x")
        op.ignores(1)
        op.pointwise(kind)


for _kind in UNARY:
    _unary(_kind)


@rule("Cast")
def cast(op: Op) -> None:
    """Convert each unit; between types with fractions that is linear up to rounding."""
    op.apply("*x -> *x")
    fractions = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    op.pointwise("linear" if op.attrs.get("to") in fractions else "zero")


@rule("Clip")
def clip(op: Op) -> None:
    """Clip each unit; the bounds are scalars. Relu6 and the like keep zero but stop its gradient at the edge."""
    op.apply("*x -> *x")
    op.scalars(1, 2)
    low, high = (op.attrs.get(name, op.value(index + 1)) for index, name in enumerate(("min", "max")))
    holds_zero = (low is None or low <= 0) and (high is None or high >= 0)
    op.pointwise(("relu" if low == 0 or high == 0 else "zero") if holds_zero else "any")


@rule("Dropout")
def dropout(op: Op) -> None:
    """Pass the data through, with the mask beside it."""
    op.apply("*x -> *x, *x")
    op.scalars(1, 2)
    op.pointwise("linear")


@type_function("GreaterOrEqual", "LessOrEqual", domain="")
def typed_as_comparison(types: Sequence[Typed | None], *_: object) -> list[Typed]:
    """Type a comparison, which onnx's inference of single nodes does not before opset 16."""
    return [(TensorProto.BOOL, np.broadcast_shapes(*(known[1] for known in types if known)))]


@rule(*BROADCASTING)
def broadcasting(op: Op) -> None:
    """Combine operands unit by unit, broadcast to the result."""
    result = op.output()
    if result is None or (op.version < 7 and op.attrs.get("broadcast")):
        op.freeze_all("has operands of unknown shape")
        return
    op.broadcast(op.inputs, result)
    if op.kind == "Equal" and op.listed:
        _count(op)
    if op.kind in ("Mul", "Div", "PRelu", "Pow", "Mod"):
        op.scales(*range(len(op.inputs)))
    zero = op.kind in ("Add", "Sub", "Sum", "Mean", "Max", "Min", "Mul", "PRelu")
    # What new units are divided by is one number, by which the old ones are divided, too.
    zero |= op.kind == "Div" and all(axis.size == 1 for axis in op.input(1) or ())
    if op.kind == "Pow" and (power := op.value(1)) is not None:
        zero |= power.size == 1 and float(power.reshape(-1)[0]) in (1.0, 2.0, 3.0)
    op.pointwise("zero" if zero else "partial" if op.kind in ("Div", "Pow", "Mod") else "any")


def _count(op: Op) -> None:
    """State that places which a node chose are compared with all places there are: 0, 1, 2, ... along one axis."""
    for index, source in op.listed.items():
        axes, value = op.input(1 - index) or (), op.value(1 - index)
        wide = [position for position, axis in enumerate(axes) if axis.size > 1]
        is_list = op.constant[1 - index] and len(wide) == 1
        if value is not None and is_list and np.array_equal(value.reshape(-1), np.arange(source.size)):
            op.look_up(axes[wide[0]], index)
            op.said.counts += ((1 - index, wide[0]),)
