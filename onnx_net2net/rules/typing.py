"""Dtypes and shapes of the outputs of operators that have no schema in `onnx`; modules of rules register them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

Typed = tuple[int, tuple[int, ...]]
"""An element type (onnx.TensorProto.DataType) and a shape."""

Types = Sequence["Typed | None"]
Attributes = Mapping[str, Any]
InputValues = Sequence["np.ndarray | None"]

TypeFunction = Callable[[Types, Attributes, InputValues], Sequence["Typed"]]
"""Returns dtype and shape of each output, given those of the inputs, the attributes, and the input values if known."""

SMALL_TENSOR = 2048
"""The largest number of elements of a tensor that is evaluated: more than sizes have, enough for a dim's units."""

_LARGE = SMALL_TENSOR**2
"""Elements that two small inputs make at most; no node is evaluated that makes more."""

STEPS = 43
"""How often a loop runs for the sake of sizes, unless the most that it may is known."""

type_functions: dict[tuple[str, str], TypeFunction] = {}
"""The type functions, by domain and operator."""


class UntypableError(ValueError):
    """The shapes of an operator's outputs cannot be told. The text says why; in messages it follows the node's name."""


def type_function(*kinds: str, domain: str) -> Callable[[TypeFunction], TypeFunction]:
    """Register a function that tells the outputs of operators without a schema in `onnx`; use it as a decorator.

    Args:
        kinds: Operator types.
        domain: Operator domain.
    """

    def register(function: TypeFunction) -> TypeFunction:
        type_functions.update({(domain, kind): function for kind in kinds})
        return function

    return register


def is_large(kind: str, inputs: Sequence[np.ndarray | None]) -> bool:
    """Tell whether the result of an operator on small inputs is too large to be computed for the sake of its shape."""
    if kind in ("Sum", "Max", "Min", "Mean", "Where"):
        return prod(np.broadcast_shapes(*(value.shape for value in inputs if value is not None))) > _LARGE
    if kind == "OneHot":
        indices, depth = inputs[:2]
        return indices is None or depth is None or abs(float(np.max(depth))) * max(indices.size, 1) > SMALL_TENSOR
    if kind == "Einsum":
        return prod(value.size for value in inputs if value is not None) > _LARGE
    if kind in ("ConstantOfShape", "Expand"):
        shape = inputs[-1]
        return shape is None or abs(float(np.prod(shape.astype(float)))) > SMALL_TENSOR
    if kind == "Range":
        start, limit, delta = (float(np.asarray(value)) for value in inputs)
        return delta == 0 or (limit - start) / delta > SMALL_TENSOR
    if kind == "Tile":
        tiled, repeats = inputs
        return tiled is None or repeats is None or prod(map(int, repeats.reshape(-1))) * tiled.size > SMALL_TENSOR
    return kind in ("Resize", "Upsample", "Pad")
