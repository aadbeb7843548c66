"""Float noise: move the inputs of a model and the results of its layers by one unit in the last place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_net2net.algebra.floats import epsilon
from onnx_net2net.model.protos import refill
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import Feeds, InputSpec

_LAYERS = traits.LAYERS | traits.ARITHMETIC | traits.ROWS
"""Where the error of one unit in the last place is put."""

_SHIFTS = traits.ARITHMETIC - traits.FACTORS
"""Where even a single number gets an error: a large one costs the other operand digits."""

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}

_DYNAMIC = "DynamicQuantizeLinear"

_BEFORE_ROUNDING = 64
"""The error before a quantizer, in units in the last place. Whatever it is, it moves a few values by a whole step."""

_BEFORE_DYNAMIC_ROUNDING = 1024 * float(np.finfo(np.float32).eps)
"""The same for a quantizer that chooses its steps, as a part of the value. Each value gets an error of its own."""


def nudged(feeds: Feeds, specs: Sequence[InputSpec], rng: np.random.Generator) -> Feeds:
    """Return the inputs with every float moved by one unit in the last place, up or down at random."""
    moved = dict(feeds)
    for spec in specs:
        if spec.kind in {"real", "positive"} and spec.dtype.kind == "f":  # a moved mask or id would be another one
            target = np.where(rng.random(feeds[spec.name].shape) < 0.5, np.inf, -np.inf)
            moved[spec.name] = np.asarray(np.nextafter(feeds[spec.name], target.astype(spec.dtype)))
    return moved


def scores_in(proto: onnx.ModelProto) -> dict[str, float]:
    """Return the floats that decide what a model computes with, as in a router of experts: equal ones tie.

    Returns:
        By their names, the distance from 1 to the next number of their type.
    """
    names = {node.input[0] for node in proto.graph.node if node.op_type in traits.WINNERS}
    if not names:
        return {}
    with contextlib.suppress(Exception):  # what cannot be typed is not moved
        proto = onnx.shape_inference.infer_shapes(proto)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.value_info)}
    known = ((name, kinds.get(name)) for name in names)
    return {name: epsilon(helper.tensor_dtype_to_np_dtype(kind)) or 0.0 for name, kind in known if kind in FLOATS}


def is_rounded_dynamically(proto: onnx.ModelProto) -> bool:
    """Tell whether `noisy_twin` finds quantizers that choose their own steps."""
    return any(node.op_type == _DYNAMIC for node in proto.graph.node)


@dataclass(frozen=True)
class Error:
    """An input that `noisy_twin` added. The units of a layer are multiplied by it: by 1 plus or minus `step`."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    step: float


def drawn(errors: Sequence[Error], rng: np.random.Generator) -> Feeds:
    """Draw values for the inputs that `noisy_twin` added, with other signs each time."""
    return {e.name: np.asarray(1 + rng.choice([-1, 1], e.shape) * e.step, e.dtype) for e in errors}


def noisy_twin(proto: onnx.ModelProto, *, steps: bool = True) -> list[Error]:
    """Put an error of one unit in the last place behind every layer that has weights. The model is changed.

    Moving the inputs alone would miss what gets lost later, where numbers are larger, and a language model takes
    nothing but whole numbers.

    Args:
        proto: The model.
        steps: Whether dynamic quantizers shall round some values to another step.

    Returns:
        The inputs that the model has got (`drawn`).
    """
    errors: list[Error] = []

    def error(output: str, kind: int, shape: Sequence[int], step: float) -> str:
        """Add an input and return its name."""
        made = Error(f"{output}/error", np.dtype(helper.tensor_dtype_to_np_dtype(kind)), tuple(shape), step)
        errors.append(made)
        proto.graph.input.append(helper.make_tensor_value_info(made.name, kind, shape))
        return made.name

    floats = {
        t.name: (t, e) for t in proto.graph.initializer if (e := epsilon(helper.tensor_dtype_to_np_dtype(t.data_type)))
    }
    nodes, scores = [], scores_in(proto)
    values = {value.name for value in proto.graph.input if value.type.tensor_type.elem_type in FLOATS}
    for node in proto.graph.node:
        carries = node.op_type not in traits.SHAPES and not values.isdisjoint(node.input)
        if node.op_type == "QuantizeLinear" and node.input[1] in floats:
            kind, step = floats[node.input[1]][0].data_type, floats[node.input[1]][1] * _BEFORE_ROUNDING
            factor = error(node.output[0], kind, [], step)
            nodes.append(helper.make_node("Mul", [node.input[0], factor], [f"{node.output[0]}/moved"]))
            node.input[0] = f"{node.output[0]}/moved"
        if steps and node.op_type == _DYNAMIC:  # its scale follows a factor, so that each value gets its own
            nodes += _moved(node, _BEFORE_DYNAMIC_ROUNDING)
        if node.op_type in traits.WINNERS and node.input[0] in scores:  # rows that are equal get errors that are not
            nodes += _moved(node, scores[node.input[0]])
        nodes.append(node)
        weight, step = next((floats[name] for name in node.input if name in floats), (None, 0.0))
        many = weight is not None and math.prod(weight.dims) > 4  # fewer: sizes and scales
        if weight is not None and (node.op_type in _LAYERS if many else node.op_type in _SHIFTS and carries):
            carries = True
            name = node.output[0]
            node.output[0] = f"{name}/exact"
            factor = error(name, weight.data_type, _per_unit(node, weight), step)
            nodes.append(helper.make_node("Mul", [node.output[0], factor], [name]))
        values.update(nodes[-1].output if carries else ())
    refill(proto.graph.node, nodes)
    return errors


def _moved(node: onnx.NodeProto, step: float) -> list[onnx.NodeProto]:
    """Let a node read its first input with an error at each value, drawn anew in each run; return what makes it."""
    value, factor, moved = node.input[0], f"{node.output[-1]}/factor", f"{node.output[-1]}/moved"
    node.input[0] = moved
    uniform = helper.make_node("RandomUniformLike", [value], [factor], low=1 - step, high=1 + step, seed=0.0)
    return [uniform, helper.make_node("Mul", [value, factor], [moved])]


def _per_unit(node: onnx.NodeProto, weight: onnx.TensorProto) -> list[int]:
    """Return the shape of one factor for each output unit of a layer, or of a single one where that is hard to tell."""
    dims, flags = list(weight.dims), {attribute.name for attribute in node.attribute if attribute.i}
    place = list(node.input).index(weight.name)
    if len(dims) < 2 or flags & {"transA", "axis"} or place != (node.op_type not in traits.ROWS):
        return []
    if node.op_type in traits.PLAIN_CONVOLUTIONS:
        return [dims[0], *[1] * (len(dims) - 2)]
    return [dims[0 if "transB" in flags else -1]] if node.op_type in traits.MATRICES | traits.ROWS else []
