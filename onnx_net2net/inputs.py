"""Inputs that a model accepts: sizes for its dynamic axes and values that its operators can use.

Random numbers are not enough. An id has to lie inside the table that it indexes, a mask has to leave something
to look at, and two axes that share a name share a size. What an input is for is read off the graph by following
its values forward to the operators that limit them; which sizes are accepted, only a run can tell.
"""

from __future__ import annotations

import ast
import itertools
import operator
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from onnx_net2net.errors import BadInputError

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
Size = int | str  # a number, the name of a dynamic axis, or arithmetic over such names

SCALES = (1.0, 0.1, 3.0)
"""Standard deviations for float inputs, one a sample in turn."""

# Sizes of the dynamic axes that are not the batch. Odd and distinct ones show the most, U-Nets and patches want
# multiples of their stride, and the large ones are for models that take nothing smaller.
_SIZES = (
    *((5, 7, 9, 11, 13), (64, 96, 32, 48, 80), (33, 47, 29, 37, 41), (96, 64, 80, 48, 32)),
    *((3, 4, 6, 8), (32,), (1,), (2,), (16,)),
)
_LARGE_SIZES = ((128,), (224,), (256,), (384,), (512,))
_BATCHES = (2, 1, 3)
_RARE_BATCHES = (4, 8, 16, 32, 64)

# Operators that hand on the values of some inputs: all other values of their outputs are harmless.
_MOVES = """Cast CastLike Identity Reshape Flatten Squeeze Unsqueeze Slice Transpose Expand Tile Split Pad Clip Gather
    GatherElements GatherND ReduceMax ReduceMin ReverseSequence Floor Ceil Round Abs Dropout Trilu"""
_ONWARD: dict[str, Sequence[int]] = {
    **dict.fromkeys(_MOVES.split(), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), range(1000)),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}
# Operators that look values up: {index input: table input}, and the attribute that names the table's axis.
_LOOKUPS: dict[str, tuple[dict[int, int], str]] = {
    "Gather": ({1: 0}, "axis"),
    "GatherElements": ({1: 0}, "axis"),
    "ScatterElements": ({1: 0}, "axis"),
    "GatherBlockQuantized": ({1: 0}, "gather_axis"),
    "GatherND": ({1: 0}, "batch_dims"),
    "ScatterND": ({1: 0}, ""),
    "EmbedLayerNormalization": ({0: 2, 1: 4, 8: 3}, ""),
    "RotaryEmbedding": ({1: 2, 3: 1}, ""),
    "ArrayFeatureExtractor": ({1: 0}, "-1"),
}
_LENGTHS = {("LSTM", 4): "", ("GRU", 4): "", ("RNN", 4): "", ("ReverseSequence", 1): "time_axis"}
_COUNTS = {("Reshape", 1), ("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Range", 1), ("Loop", 0)}
_COUNTS |= {("TopK", 1), ("Resize", 3), ("Slice", 2)}
_POSITIVE = {("Sqrt", 0), ("Log", 0), ("BatchNormalization", 4)}
_MASKING = {"Equal", "Not", "And", "Or", "Sub", "Mul", "ReduceSum", "CumSum", "Greater", "Less", "Where"}
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.floordiv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """What one input of a model takes.

    Attributes:
        name: The input's name.
        dtype: Its numpy dtype (``ml_dtypes`` for bfloat16, object for strings).
        shape: One size an axis; strings are resolved by a binding.
        kind: ``real``, ``positive``, ``whole``, ``mask``, ``flag`` or ``text``.
        low: The smallest value of a ``whole`` input.
        bounds: A ``whole`` input stays below ``size - shift`` for every ``(size, shift)``.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Size, ...]
    kind: str = "real"
    low: int = 0
    bounds: tuple[tuple[Size, int], ...] = ()


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """Reads what the model takes; the data of large weights may be missing from ``proto``.

    Raises:
        BadInputError: An input is not a tensor, or does not say how many axes it has.
    """
    graph = (inliner.inline_local_functions(proto) if proto.functions else proto).graph
    constants = {tensor.name for tensor in graph.initializer}  # IR 3 lists them among the inputs
    flow = _Flow(graph)
    return [_spec(info, flow) for info in graph.input if info.name not in constants]


def bindings(specs: Sequence[InputSpec]) -> Iterator[dict[str, int]]:
    """Candidate sizes for the dynamic axes, the most telling first; one empty binding where all is static."""
    places: dict[str, int | None] = {}  # the axis where a name is first seen, None for a batch
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            for name in _names(size):
                leading = axis == 0 and len(spec.shape) > 1
                places.setdefault(name, None if leading or "batch" in name.lower() or name in "NB" else axis)
    ranks = {name: rank for rank, name in enumerate(name for name, axis in places.items() if axis is not None)}
    seen = set()
    for batch, sizes, distinct in _recipes():
        binding = {
            name: batch if axis is None else sizes[(ranks[name] if distinct else axis) % len(sizes)]
            for name, axis in places.items()
        }
        _close_totals(binding)
        key = tuple(binding.values())
        if key not in seen:
            seen.add(key)
            yield binding


def accepted(
    specs: Sequence[InputSpec], run: Callable[[Feeds], object], rng: np.random.Generator, *, wanted: int = 3
) -> list[dict[str, int]]:
    """Up to ``wanted`` bindings with which the model runs.

    Args:
        specs: What `input_specs` returned.
        run: Runs the model once and raises, whatever it likes, where the model refuses.
        rng: Draws the values.
        wanted: How many bindings are enough.

    Raises:
        BadInputError: The model refuses every candidate; the text has its last words.
    """
    found: list[dict[str, int]] = []
    refusal: Exception | None = None
    for binding in bindings(specs):
        largest = max((size for known in found for size in known.values()), default=0)
        if found and max(binding.values()) > max(largest, _SIZES[1][1]):
            continue  # large sizes are costly and small ones are accepted
        try:
            run(draw(specs, binding, rng, scale=SCALES[len(found) % len(SCALES)]))
            found.append(binding)
        except Exception as error:  # onnxruntime's errors have no base of their own
            refusal = error
        if len(found) == wanted:
            break
    if not found:
        raise BadInputError(f"no generated input is accepted (--data inputs.npz can give some): {one_line(refusal)}")
    return found


def draw(
    specs: Sequence[InputSpec], binding: Mapping[str, int], rng: np.random.Generator, *, scale: float = 1.0
) -> Feeds:
    """Draws one sample: for every input, by name, an array of its dtype and shape.

    Args:
        specs: What `input_specs` returned.
        binding: A size for the name of every dynamic axis.
        rng: The source of the values.
        scale: Standard deviation of float inputs, which have both signs.
    """
    return {spec.name: np.asarray(_values(spec, binding, rng, scale)).astype(spec.dtype) for spec in specs}


def read_npz(path: str | os.PathLike[str], specs: Sequence[InputSpec]) -> Feeds:
    """Reads the user's own inputs: for every input of the model one array under its name.

    Raises:
        BadInputError: The file is no npz of plain arrays, or does not fit the model.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise BadInputError(f"{path} is no npz of plain arrays: {one_line(error)}") from None
    return check_feeds(feeds, specs, str(path))


def check_feeds(feeds: Mapping[str, Array], specs: Sequence[InputSpec], source: str = "data") -> Feeds:
    """Returns ``feeds`` in the dtypes that the model takes.

    Raises:
        BadInputError: A name is missing or unknown, or an array has another dtype or shape than declared.
    """
    wanted = {spec.name for spec in specs}
    if wanted != set(feeds):
        raise BadInputError(f"{source} has arrays {sorted(feeds)}, the model takes {sorted(wanted)}")
    return {spec.name: _checked(np.asarray(feeds[spec.name]), spec, source) for spec in specs}


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error in one line of at most ``limit`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _recipes() -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """Batch size, sizes, and whether these go to the axes by name, each its own, or by position."""
    for own in (True, False):  # each size once, with the batches in turn
        yield from ((batch, sizes, own) for batch, sizes in zip(itertools.cycle(_BATCHES), _SIZES[:5], strict=False))
    yield from ((batch, sizes, own) for sizes in _SIZES for own in (True, False) for batch in _BATCHES)
    yield from ((batch, sizes, True) for sizes in _LARGE_SIZES for batch in sorted(_BATCHES))
    yield from ((batch, sizes, True) for batch in _RARE_BATCHES for sizes in _SIZES[:2])


def _close_totals(binding: dict[str, int]) -> None:
    """Makes a ``total_sequence_length`` the sum of past and present, as decoders name those axes."""
    parts = [size for name, size in binding.items() if ("past" in name or "seq" in name) and "total" not in name]
    for name in binding:
        if name.startswith("total") and parts:
            binding[name] = sum(parts)


def _expression(size: str) -> ast.expr | None:
    """A dim_param that is arithmetic, such as ``past_length + 1`` or ``2*s0``; None for a mere name."""
    if not any(sign in size for sign in ("+", "*", "/", " - ")):
        return None
    try:
        return ast.parse(size, mode="eval").body
    except SyntaxError:
        return None


def _names(size: Size) -> list[str]:
    if isinstance(size, int):
        return []
    expression = _expression(size)
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)] if expression else [size]


def _resolve(size: Size, binding: Mapping[str, int]) -> int | None:
    """The number that a size stands for, None where the binding does not tell."""
    if isinstance(size, int):
        return size
    expression = None if size in binding else _expression(size)
    try:
        return _evaluate(expression, binding) if expression else binding[size]
    except (KeyError, ZeroDivisionError):
        return None


def _evaluate(node: ast.expr, binding: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_evaluate(node.left, binding), _evaluate(node.right, binding))
    return binding[node.id if isinstance(node, ast.Name) else ast.unparse(node)]


def _values(spec: InputSpec, binding: Mapping[str, int], rng: np.random.Generator, scale: float) -> Any:
    sizes = [_resolve(size, binding) for size in spec.shape]
    if None in sizes:
        raise BadInputError(f"the size of an axis of input {spec.name!r} is unknown: {spec.shape}")
    shape = tuple(size for size in sizes if size is not None)
    if spec.kind == "text":
        return np.full(shape, "a", dtype=object)
    if spec.kind == "mask" and shape:  # ones, then zeros: what padding leaves
        return np.arange(shape[-1]) < rng.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True)
    if spec.kind in {"mask", "flag"}:
        flags = rng.integers(0, 2, shape or (1,))
        flags.flat[:1] = 1
        return flags.reshape(shape)
    if spec.kind == "whole":
        limits = [size - shift for bound, shift in spec.bounds if (size := _resolve(bound, binding)) is not None]
        return rng.integers(spec.low, max(spec.low + 1, min(limits, default=2)), shape)
    values = rng.standard_normal(shape) * scale
    return np.abs(values) if spec.kind == "positive" else values


def _checked(array: Array, spec: InputSpec, source: str) -> Array:
    if array.dtype.kind == "V" and array.dtype.itemsize == spec.dtype.itemsize:
        array = array.view(spec.dtype)  # how an npz keeps bfloat16
    if spec.dtype == object and array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype != spec.dtype:
        raise BadInputError(f"{source}: input {spec.name!r} is {array.dtype}, the model takes {spec.dtype}")
    fits = array.ndim == len(spec.shape) and all(
        isinstance(want, str) or have == want for have, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise BadInputError(f"{source}: input {spec.name!r} has shape {array.shape}, the model takes {spec.shape}")
    return array


def _spec(info: onnx.ValueInfoProto, flow: _Flow) -> InputSpec:
    """Decides what an input is for from its type, its name and the operators its values reach."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        kind = (info.type.WhichOneof("value") or "value without a type").removesuffix("_type").replace("_", " ")
        raise BadInputError(f"input {info.name!r} is a {kind}; only tensors can be fed")
    if not tensor.HasField("shape"):
        raise BadInputError(f"input {info.name!r} does not declare how many axes it has")
    dtype, shape = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), _shape(info)
    spec = partial(InputSpec, info.name, dtype, shape)
    uses, bounds = flow.follow(info.name)
    if tensor.elem_type == TensorProto.STRING:
        return spec("text")
    if "mask" in info.name.lower() and "id" not in info.name.lower():
        return spec("mask")
    if bounds:
        return spec("whole", low=int(any(use in _LENGTHS for use in uses)), bounds=tuple(bounds))
    if dtype.kind not in "iub":  # numpy does not count bfloat16 among its floats
        return spec("positive" if uses & _POSITIVE else "real")
    if uses & _COUNTS and dtype.kind != "b":
        return spec("whole", low=1, bounds=((4, 0),))
    if dtype.itemsize == 1 and dtype.kind in "iu" and len(shape) > 2:  # pixels
        return spec("whole", low=int(np.iinfo(dtype).min), bounds=((int(np.iinfo(dtype).max) + 1, 0),))
    masking = len(shape) > 1 and dtype.kind != "b" and any(op in _MASKING for op, _ in uses)
    return spec("mask" if masking else "flag")


def _shape(info: onnx.ValueInfoProto) -> tuple[Size, ...]:
    """The declared sizes; an axis without a usable name gets one of its own."""
    return tuple(
        dim.dim_value if dim.dim_value > 0
        else f"{info.name}[{axis}]" if dim.dim_param.strip() in {"", "?", "-1", "None"}
        else dim.dim_param.strip()
        for axis, dim in enumerate(info.type.tensor_type.shape.dim)
    )  # fmt: skip


class _Flow:
    """Where the values of a tensor go in a graph and in the bodies inside it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.producers: dict[str, onnx.NodeProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, tuple[Size, ...]] = {}
        self.aliases: dict[str, list[str]] = defaultdict(list)  # across the borders of If, Loop and Scan
        self._read(graph)

    def follow(self, name: str) -> tuple[set[tuple[str, int]], list[tuple[Size, int]]]:
        """The (operator, input) pairs that the values reach, and their bounds as in `InputSpec`."""
        uses: set[tuple[str, int]] = set()
        bounds: set[tuple[Size, int]] = set()
        queue = [(name, 0)]  # a tensor, and how much it exceeds the input at most
        seen = set(queue)
        while queue:
            tensor, shift = queue.pop()
            onward = [(alias, shift) for alias in self.aliases[tensor]]
            for node, index in self.readers[tensor]:
                uses.add((node.op_type, index))
                limits = [(size, shift + extra) for size, extra in self._limits(node, index)]
                # A shift by the whole table serves negative indices only: Where(i < 0, i + size, i).
                bounds.update((size, extra) for size, extra in limits if isinstance(size, str) or extra < size)
                step = self._step(node, index)
                onward += [(output, shift + step) for output in node.output if step is not None]
            queue += [state for state in onward if state not in seen and len(seen) < 100_000]  # loops may count
            seen.update(onward)
        return uses, sorted(bounds, key=str)

    def _read(self, graph: onnx.GraphProto) -> None:
        self.constants.update((tensor.name, tensor) for tensor in graph.initializer)
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                self.shapes[info.name] = _shape(info)
        for node in graph.node:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))
            self.producers.update(dict.fromkeys(node.output, node))
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self._read(attribute.g)
                    self._join(node, attribute.g)

    def _join(self, node: onnx.NodeProto, body: onnx.GraphProto) -> None:
        if node.op_type in {"Loop", "Scan"}:
            for outer, inner in zip(node.input, body.input, strict=False):
                self.aliases[outer].append(inner.name)
        handed_out = body.output[1:] if node.op_type == "Loop" else body.output  # a Loop keeps its condition
        for inner, name in zip(handed_out, node.output, strict=False):
            self.aliases[inner.name].append(name)

    def _step(self, node: onnx.NodeProto, index: int) -> int | None:
        """What the node adds at most to the values it hands on, None where it makes something else of them."""
        if node.op_type in {"Add", "Sub"} and len(node.input) == 2:
            other = self._whole(node.input[1 - index])
            if other is not None and (node.op_type, index) != ("Sub", 1):
                return int(other.max()) if node.op_type == "Add" else -int(other.min())
            return 0 if node.op_type == "Add" and self._switched(node.input[1 - index]) else None
        if node.op_type == "Mul" and self._switched(node.output[0]):
            return 0
        return 0 if index in _ONWARD.get(node.op_type, ()) else None

    def _switched(self, name: str) -> bool:
        """Whether a tensor is one side of ``a * switch + b * (1 - switch)``, which is Where in arithmetic."""
        node = self.producers.get(name)
        factors = [self.producers.get(factor) for factor in node.input] if node and node.op_type == "Mul" else []
        return any(factor is not None and factor.op_type == "Cast" for factor in factors)

    def _limits(self, node: onnx.NodeProto, index: int) -> list[tuple[Size, int]]:
        """The bounds that an input of the node puts on the values given to it."""
        if node.op_type == "OneHot" and index == 0:
            depth = self._whole(node.input[1])
            return [] if depth is None else [(int(depth.max()), 0)]
        if (node.op_type, index) in _LENGTHS:  # from one to the whole length
            axis = _attribute(node, _LENGTHS[node.op_type, index])
            return [(size, -1) for size in self._sizes(node.input[0])[axis:][:1]] or [(1, -1)]
        tables, axis_name = _LOOKUPS.get(node.op_type, ({}, ""))
        if index not in tables or tables[index] >= len(node.input):
            return []
        sizes = self._sizes(node.input[tables[index]])
        axis = -1 if axis_name == "-1" else _attribute(node, axis_name)
        if node.op_type.endswith("ND"):  # indexes several axes at once
            return [(size, 0) for size in sizes[axis:]]
        return [(sizes[axis], 0)] if -len(sizes) <= axis < len(sizes) else []

    def _sizes(self, name: str) -> Sequence[Size]:
        """The shape of a tensor where it is a constant, a stored weight or declared; else empty."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        node = self.producers.get(name)
        if node is not None and node.op_type in {"Identity", "Cast", "DequantizeLinear", "Transpose"}:
            sizes = self._sizes(node.input[0])
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), range(len(sizes))[::-1])
            return [sizes[axis] for axis in order] if sizes and node.op_type == "Transpose" else sizes
        return self.shapes.get(name, ())

    def _whole(self, name: str) -> Array | None:
        """An integer constant with its data, None for anything else."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type not in {TensorProto.INT32, TensorProto.INT64}:
            return None
        try:
            value = numpy_helper.to_array(tensor)
        except (ValueError, OSError):  # the data is not here
            return None
        return value if value.size else None


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
