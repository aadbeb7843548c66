"""If, Loop and Scan: what goes into a body and comes out of it has the dims that it has outside.

These are the rules of the nodes that `onnx_net2net.graph.flatten` puts where a body begins and ends.
"""

from collections.abc import Sequence

import onnx

from onnx_net2net.algebra.dims import Axes
from onnx_net2net.rules import rule
from onnx_net2net.rules.movement import match_runs
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.typing import STEPS, Attributes, InputValues, Typed, Types, UntypableError, type_function

BODY = "onnx_net2net.body"
MOST_STEPS = 1_000_000  # a larger limit says only that there is none


@rule("If", domain=BODY)
def if_end(op: Op) -> None:
    """Either branch gives the outputs: condition, outputs of one branch, outputs of the other -> outputs.

    Branches may differ in axes of size 1 where sizes say which is taken, as when an axis of dynamic size is squeezed.
    """
    count = len(op.outputs)
    for number, output in enumerate(op.outputs):
        one, other = op.input(1 + number), op.input(1 + count + number)
        if op.value(0) is not None and one is not None and other is not None and len(one) != len(other):
            match_runs(op, one, other)
        else:
            _same(op, one, other)
        if output is not None:
            _same(op, one if one is not None and len(one) == len(output) else other, output)
    op.pointwise("linear")


@type_function("If", domain=BODY)
def _typed_if(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    count = len(types) // 2
    pairs = list(zip(types[1 : 1 + count], types[1 + count :], strict=True))
    if values[0] is not None:
        return [one if values[0].item() else other for one, other in pairs if one is not None and other is not None]
    if any(one != other for one, other in pairs):
        raise UntypableError("has branches that give other shapes")
    return [one for one, _ in pairs if one is not None]


@rule("LoopStart", domain=BODY)
def loop_start(op: Op) -> None:
    """A state starts as what is given: limit, condition, states -> iteration, condition, states, steps."""
    _carry(op, op.inputs[2:], op.outputs[2:-1])
    op.freeze(op.outputs[-1], "counts its steps")
    op.pointwise("any")  # what padding units hold after the first step is not known here


@type_function("LoopStart", domain=BODY)
def _typed_loop(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    limit = values[0]
    steps = int(limit.item()) if limit is not None and 0 < limit.item() <= MOST_STEPS else STEPS
    states = _all_known(types[2:])
    return [(onnx.TensorProto.INT64, ()), (onnx.TensorProto.BOOL, ()), *states, (onnx.TensorProto.INT64, (steps,))]


@rule("Loop", "Scan", domain=BODY)
def end(op: Op) -> None:
    """A state keeps its dims; the rest is stacked: states, steps, results (of a Loop after a condition) -> outputs."""
    count = int(op.attrs["states"])
    results = op.inputs[len(op.inputs) - len(op.outputs) :]
    for before, after, output in zip(op.inputs[:count], results[:count], op.outputs[:count], strict=True):
        _same(op, before, after)
        if output is not None:
            _same(op, after, output)
    for number, (part, whole) in enumerate(zip(results[count:], op.outputs[count:], strict=True)):
        if part is not None and whole is not None:
            axis = _axis(op.attrs, "scan_output_axes", number, len(whole))
            op.freeze(whole[axis], "stacks its steps on this axis")
            _same(op, part, whole[:axis] + whole[axis + 1 :])
    op.pointwise("any")


@type_function("Loop", "Scan", domain=BODY)
def _typed_end(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    known = _all_known(types)
    count = int(attrs["states"])
    results = known[count + 1 + int(attrs["conditions"]) :]
    if results[:count] != known[:count]:
        raise ValueError("has a state whose shape changes")
    stacks = []
    for number, (dtype, shape) in enumerate(results[count:]):
        axis = _axis(attrs, "scan_output_axes", number, len(shape) + 1)
        stacks.append((dtype, (*shape[:axis], *known[count][1], *shape[axis:])))
    return known[:count] + stacks


@rule("ScanStart", domain=BODY)
def scan_start(op: Op) -> None:
    """A step sees one slice of each sequence: states, sequences -> states, slices, steps."""
    scans = int(op.attrs["num_scan_inputs"])
    count = len(op.inputs) - scans
    _carry(op, op.inputs[:count], op.outputs[:count])
    for number in range(scans):
        whole, part = op.inputs[count + number], op.outputs[count + number]
        if whole is not None and part is not None:
            axis = _axis(op.attrs, "scan_input_axes", number, len(whole))
            op.freeze(whole[axis], "runs along this axis")
            _same(op, whole[:axis] + whole[axis + 1 :], part)
    op.freeze(op.outputs[-1], "counts its steps")
    op.pointwise("any")


@type_function("ScanStart", domain=BODY)
def _typed_scan(types: Types, attrs: Attributes, values: InputValues) -> list[Typed]:
    known = _all_known(types)
    count = len(known) - int(attrs["num_scan_inputs"])
    slices: list[Typed] = []
    steps = 0
    for number, (dtype, shape) in enumerate(known[count:]):
        axis = _axis(attrs, "scan_input_axes", number, len(shape))
        steps = shape[axis]
        slices.append((dtype, shape[:axis] + shape[axis + 1 :]))
    return [*known[:count], *slices, (onnx.TensorProto.INT64, (steps,))]


def _carry(op: Op, given: Sequence[Axes | None], inside: Sequence[Axes | None]) -> None:
    for before, after in zip(given, inside, strict=True):
        _same(op, before, after)


def _same(op: Op, one: Axes | None, other: Axes | None) -> None:
    """State that two tensors have the same axes; where one is missing or has another rank, the other is fixed."""
    if one is not None and other is not None and len(one) == len(other):
        op.unify_all(one, other)
    else:
        op.freeze([*(one or ()), *(other or ())], "gives tensors of several shapes")


def _axis(attrs: Attributes, name: str, number: int, rank: int) -> int:
    axes = attrs.get(name) or ()
    return int(axes[number]) % rank if number < len(axes) else 0


def _all_known(types: Types) -> list[Typed]:
    known = [typed for typed in types if typed is not None]
    if len(known) < len(types):
        raise ValueError("takes something that is no tensor of known shape")
    return known
