"""Inputs that a model accepts: sizes for its dynamic axes and values that its operators can use.

Random numbers are not enough. An id must be an index of the table that it is looked up in, a mask must not mask
everything, and two axes with the same name must have the same size. The use of an input follows from the operators that
its values reach. Which sizes are accepted, only a run can tell.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.functions import inlined
from onnx_net2net.model.protos import free_inputs
from onnx_net2net.rules import traits
from onnx_net2net.run.input_uses import AxisSize, Flow, declared_shape

Feeds = dict[str, Array]

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


@dataclass(frozen=True)
class InputSpec:
    """What one input of a model takes.

    Attributes:
        name: The input's name.
        dtype: Its numpy dtype (``ml_dtypes`` for bfloat16, object for strings).
        shape: One size an axis; strings are resolved by a binding.
        kind: ``real``, ``positive``, ``whole``, ``mask``, ``flag``, ``choice`` or ``text``.
        low: The smallest value of a ``whole`` input.
        bounds: A ``whole`` input stays below ``size - shift`` for every ``(size, shift)``.
        choices: The values of a ``choice``.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[AxisSize, ...]
    kind: str = "real"
    low: int = 0
    bounds: tuple[tuple[AxisSize, int], ...] = ()
    choices: tuple[int, ...] = ()


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """Read what the model takes; the data of large weights may be missing from ``proto``.

    Raises:
        BadInputError: An input is not a tensor, or does not say how many axes it has.
    """
    graph = inlined(proto).graph
    flow = Flow(graph)
    return [_spec(info, flow) for info in free_inputs(graph)]


def bindings(specs: Sequence[InputSpec]) -> Iterator[dict[str, int]]:
    """Yield sizes for the dynamic axes, the most telling first; one empty binding where all is static."""
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
    specs: Sequence[InputSpec],
    run: Callable[[Feeds], object],
    rng: np.random.Generator,
    *,
    wanted: int | Callable[[], int] = 3,
) -> list[dict[str, int]]:
    """Return bindings with which the model runs.

    Args:
        specs: What `input_specs` returned.
        run: Runs the model once, and raises any exception where the model refuses.
        rng: Draws the values.
        wanted: How many bindings are enough, or what tells that after a run.

    Raises:
        BadInputError: The model refuses every candidate; the text ends with the last refusal.
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
        if len(found) >= (wanted() if callable(wanted) else wanted):
            break
    if not found:
        raise BadInputError(f"no generated input is accepted (--data inputs.npz can give some): {one_line(refusal)}")
    return found


def draw(
    specs: Sequence[InputSpec], binding: Mapping[str, int], rng: np.random.Generator, *, scale: float = 1.0
) -> Feeds:
    """Draw one sample: for every input, by name, an array of its dtype and shape.

    Args:
        specs: What `input_specs` returned.
        binding: A size for the name of every dynamic axis.
        rng: The source of the values.
        scale: Standard deviation of float inputs, which have both signs.
    """
    return {spec.name: np.asarray(_values(spec, binding, rng, scale)).astype(spec.dtype) for spec in specs}


def read_npz(path: str | os.PathLike[str], specs: Sequence[InputSpec]) -> Feeds:
    """Read the user's own inputs: for every input of the model one array under its name.

    Raises:
        BadInputError: The file is no npz of plain arrays, or does not fit the model.
    """
    return check_feeds(arrays_of(path), specs, str(path))


def arrays_of(path: str | os.PathLike[str]) -> Feeds:
    """Read an npz file.

    Raises:
        BadInputError: The file is no npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # of zip files, of decompression, of numpy, each has its own
        raise BadInputError(f"{path} is no npz of plain arrays: {one_line(error)}") from None


def check_feeds(feeds: Mapping[str, Array], specs: Sequence[InputSpec], source: str = "data") -> Feeds:
    """Return ``feeds`` in the dtypes that the model takes.

    Raises:
        BadInputError: A name is missing or unknown, or an array has another dtype or shape than declared.
    """
    wanted = {spec.name for spec in specs}
    if wanted != set(feeds):
        raise BadInputError(f"{source} has arrays {sorted(feeds)}, the model takes {sorted(wanted)}")
    return {spec.name: _checked(np.asarray(feeds[spec.name]), spec, source) for spec in specs}


def _recipes() -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """Yield batch size, sizes, and whether these go to the axes by name, each its own, or by position."""
    for own in (True, False):  # each size once, with the batches in turn
        yield from ((batch, sizes, own) for batch, sizes in zip(itertools.cycle(_BATCHES), _SIZES[:5], strict=False))
    yield from ((batch, sizes, own) for sizes in _SIZES for own in (True, False) for batch in _BATCHES)
    yield from ((batch, sizes, True) for sizes in _LARGE_SIZES for batch in sorted(_BATCHES))
    yield from ((batch, sizes, True) for batch in _RARE_BATCHES for sizes in _SIZES[:2])
    # Signals whose length comes first; further axes are the batch of states, under no name that would tell.
    yield from ((batch, (size, batch), True) for batch in _BATCHES for (size,) in _LARGE_SIZES)


def _close_totals(binding: dict[str, int]) -> None:
    """Make a ``total_sequence_length`` the sum of past and present, as decoders name those axes."""
    parts = [size for name, size in binding.items() if ("past" in name or "seq" in name) and "total" not in name]
    for name in binding:
        if name.startswith("total") and parts:
            binding[name] = sum(parts)


def _expression(size: str) -> Any:
    """Return a dim_param that is arithmetic, such as ``past_length + 1`` or ``2*s0``; None for a mere name."""
    if "**" in size or not any(sign in size for sign in ("+", "*", "/", " - ")):  # powers could take for ever
        return None
    from onnx_ir import SymbolicDim  # brings sympy, which takes a second

    dim = SymbolicDim(re.sub("/+", "//", size))  # sizes are whole
    try:
        dim.free_symbols()
    except (ValueError, TypeError, ArithmeticError):  # no arithmetic after all
        return None
    return dim


def _names(size: AxisSize) -> list[str]:
    if isinstance(size, int):
        return []
    expression = _expression(size)
    return sorted(expression.free_symbols()) if expression else [size]


def _resolve(size: AxisSize, binding: Mapping[str, int]) -> int | None:
    """Return the number that a size stands for, None where the binding does not tell."""
    if isinstance(size, int):
        return size
    expression = None if size in binding else _expression(size)
    value = expression.evaluate(binding) if expression else binding.get(size)
    return value if isinstance(value, int) else None


def _values(spec: InputSpec, binding: Mapping[str, int], rng: np.random.Generator, scale: float) -> Any:
    sizes = [_resolve(size, binding) for size in spec.shape]
    if None in sizes:
        raise BadInputError(f"the size of an axis of input {spec.name!r} is unknown: {spec.shape}")
    shape = tuple(size for size in sizes if size is not None)
    if spec.kind == "text":
        return np.full(shape, "a", dtype=object)
    if spec.kind == "mask" and shape:  # ones, then zeros: what padding leaves
        return np.arange(shape[-1]) < rng.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True)
    if spec.kind == "choice":
        return rng.choice(spec.choices, shape)
    if spec.kind in {"mask", "flag"}:
        flags = rng.integers(0, 2, shape or (1,))
        flags.flat[:1] = 1
        return flags.reshape(shape)
    if spec.kind == "whole":
        limits = [size - shift for bound, shift in spec.bounds if (size := _resolve(bound, binding)) is not None]
        count = max(1, min(limits, default=2) - spec.low)
        # All are different where there are enough: in a TopK over tokens equal ones tie, and rounding would choose.
        return spec.low + rng.choice(count, shape, replace=math.prod(shape) > count)
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


def _spec(info: onnx.ValueInfoProto, flow: Flow) -> InputSpec:
    """Decide what an input is for from its type, its name and the operators its values reach."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        kind = (info.type.WhichOneof("value") or "value without a type").removesuffix("_type").replace("_", " ")
        raise BadInputError(f"input {info.name!r} is a {kind}; only tensors can be fed")
    if not tensor.HasField("shape"):
        raise BadInputError(f"input {info.name!r} does not declare how many axes it has")
    dtype, shape = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), declared_shape(info)
    spec = partial(InputSpec, info.name, dtype, shape)
    uses, bounds = flow.follow(info.name)
    if tensor.elem_type == TensorProto.STRING:
        return spec("text")
    if "mask" in info.name.lower() and "id" not in info.name.lower():
        return spec("mask")
    if bounds:
        return spec("whole", low=int(any(use in traits.LENGTHS for use in uses)), bounds=tuple(bounds))
    if dtype.kind not in "iub":  # numpy does not count bfloat16 among its floats
        return spec("positive" if uses & traits.DOMAINS else "real")
    if uses & traits.COUNTS and dtype.kind != "b":
        return spec("whole", low=1, bounds=((4, 0),))
    if dtype.itemsize == 1 and dtype.kind in "iu" and len(shape) > 2:  # pixels
        return spec("whole", low=int(np.iinfo(dtype).min), bounds=((int(np.iinfo(dtype).max) + 1, 0),))
    choices = flow.compared(info.name) if shape in ((), (1,)) else []
    if choices:  # a mode, like a sampling rate; where one is asked for, there is another
        return spec("choice", choices=tuple(choices) if len(choices) > 1 else (choices[0], choices[0] + 1))
    masking = len(shape) > 1 and dtype.kind != "b" and any(op in traits.MASKING for op, _ in uses)
    return spec("mask" if masking else "flag")
