"""Tell rounding from wrong students: run a graph and its student in double precision.

Each node is run by onnxruntime in doubles, by onnx's reference operators where that has no such kernel, and by
onnxruntime in single precision where neither can. What a node rounds there shows as a difference: nothing that is wrong
is called rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_net2net import RefusedError, widen
from onnx_net2net.model.protos import captured, scopes

Array = np.ndarray
Values = Mapping[str, Any]
Way = Callable[[onnx.ModelProto, onnx.NodeProto, Values], list[Any]]
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
DIGITS = 1e-5
"""By how much of the largest number of an output two may differ; a tangent of large numbers makes much of 1e-15."""


def is_exact_in_doubles(model: onnx.ModelProto, runs: int = 5, **options: Any) -> bool:
    """Tell whether the student of a graph agrees with it to five digits when both compute in double precision.

    Args:
        model: The graph.
        runs: With how many inputs.
        options: How `widen` grows it.

    Raises:
        Exception: If one of them cannot be run; libraries have errors of many kinds.
    """
    teacher = in_doubles(model)
    student = _student(model, teacher, **options)
    rng = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    for _ in range(runs):
        feeds = {}
        for value in teacher.graph.input:
            kind = value.type.tensor_type.elem_type
            shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            if value.name not in held:
                drawn = rng.standard_normal(shape) * (1 if kind == TensorProto.DOUBLE else 3)
                feeds[value.name] = np.asarray(drawn).astype(helper.tensor_dtype_to_np_dtype(kind))
        with np.errstate(all="ignore"):
            moved = {name: array * (1 + 1e-15) if array.dtype == np.float64 else array for name, array in feeds.items()}
            answers = (evaluated(teacher, feeds), evaluated(student, feeds), evaluated(teacher, moved))
            if not all(map(_agree, *answers)):
                return False
    return True


def _student(model: onnx.ModelProto, teacher: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return the student in doubles; of the single one where that of doubles is refused (norms cannot be filled up)."""
    try:
        with widen(teacher, **options).student.on_disk() as file:
            return onnx.load(file)
    except RefusedError:
        with widen(model, **options).student.on_disk() as file:
            return in_doubles(onnx.load(file))


def _agree(answer: Array, other: Array, moved: Array) -> bool:
    """Compare to five digits, or to what the last place of the inputs makes: a determinant of zero has no digits."""
    scale = np.abs(answer[np.isfinite(answer)]).max(initial=1e-30) if answer.dtype.kind == "f" else 1.0
    noise = 0.0
    if answer.dtype.kind == "f" and answer.shape == moved.shape:
        gaps = np.abs(moved - answer)
        noise = gaps[np.isfinite(gaps)].max(initial=0.0)
    slack = max(DIGITS * scale, 100 * noise)
    return answer.shape == other.shape and np.allclose(other, answer, rtol=0, atol=slack, equal_nan=True)


# --- Graphs in doubles ----------------------------------------------------------------------------------------------


def in_doubles(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes in double precision, but for what an operator takes as single."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for scope in scopes(model):
        single = {name for node in scope.node if node.op_type == "Resize" for name in node.input[1:]}
        if isinstance(scope, onnx.GraphProto):
            del scope.value_info[:]
            for value in (*scope.input, *scope.output):
                if value.type.tensor_type.elem_type in FLOATS:
                    value.type.tensor_type.elem_type = TensorProto.DOUBLE
            for tensor in scope.initializer:
                if tensor.name not in single:
                    _to_double(tensor)
        for node in scope.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and node.output[0] not in single:
                    _to_double(attribute.t)
                if node.op_type == "Cast" and attribute.i in FLOATS and node.output[0] not in single:
                    attribute.i = TensorProto.DOUBLE
    return model


def _to_double(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


# --- Nodes ----------------------------------------------------------------------------------------------------------


def evaluated(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Return the outputs of a graph, computed node by node.

    Raises:
        Exception: If nothing runs one of its nodes; libraries have errors of many kinds.
    """
    values: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values.update(feeds)
    for node in model.graph.node:
        read = {name: values[name] for name in dict.fromkeys((*node.input, *sorted(captured([node])))) if name}
        made = _first_that_works((_run, _refer, _run_in_single), model, node, read)
        values.update((name, value) for name, value in zip(node.output, made, strict=False) if name)
    return [values[value.name] for value in model.graph.output]


def _first_that_works(ways: Sequence[Way], model: onnx.ModelProto, node: onnx.NodeProto, read: Values) -> list[Any]:
    for way in ways[:-1]:
        with contextlib.suppress(Exception):
            return way(model, node, read)
    return ways[-1](model, node, read)


def _run(model: onnx.ModelProto, node: onnx.NodeProto, read: Values) -> list[Any]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in read.items()
    ]
    made = iter(_session(_alone(model, node, inputs).SerializeToString()).run(None, dict(read)))
    return [next(made) if name else None for name in node.output]


def _run_in_single(model: onnx.ModelProto, node: onnx.NodeProto, read: Values) -> list[Any]:
    given = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in read.items()}
    made = _run(model, node, given)
    return [array.astype(np.float64) if getattr(array, "dtype", None) == np.float32 else array for array in made]


def _refer(model: onnx.ModelProto, node: onnx.NodeProto, read: Values) -> list[Any]:
    inputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in read]
    made = iter(ReferenceEvaluator(_alone(model, node, inputs), new_ops=[Conv]).run(None, dict(read)))
    return [next(made) if name else None for name in node.output]


def _alone(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Return a model of one node of another; its outputs have no types."""
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "alone", inputs, outputs)
    meant = {"opset_imports": model.opset_import, "functions": model.functions, "ir_version": model.ir_version}
    return helper.make_model(graph, **meant)


@functools.lru_cache(maxsize=1000)
def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Conv(OpRun):  # type: ignore[misc]
    """Convolve place by place of the kernel, without the copies of the input that the reference operator makes."""

    def _run(
        self,
        data: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[np.ndarray]:
        if auto_pad not in (None, "NOTSET"):
            raise NotImplementedError(auto_pad)
        (batch, _, *sizes), (units, inner, *kernel) = data.shape, weight.shape
        rank = len(sizes)
        steps, gaps, ends = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
        axes = list(zip(sizes, kernel, steps, gaps, ends, ends[rank:], strict=False))
        lengths = [(size + low + high - gap * (wide - 1) - 1) // step + 1 for size, wide, step, gap, low, high in axes]
        total = np.zeros((batch, units, *lengths), data.dtype)
        data = data.reshape(batch, group, inner, *sizes)
        weight = weight.reshape(group, units // group, inner, *kernel)
        for place in np.ndindex(*kernel):
            read, made = [], []
            for (size, _, step, gap, low, _), length, at in zip(axes, lengths, place, strict=True):
                source = np.arange(length) * step + at * gap - low
                made.append(np.flatnonzero((source >= 0) & (source < size)))
                read.append(source[made[-1]])
            part = data[np.ix_(*map(range, data.shape[:3]), *read)]
            product = np.einsum("bgi...,gui->bgu...", part, weight[(..., *place)], optimize=True)
            total[np.ix_(range(batch), range(units), *made)] += product.reshape(batch, units, *map(len, made))
        return (total if bias is None else total + bias.reshape(-1, *[1] * rank),)
