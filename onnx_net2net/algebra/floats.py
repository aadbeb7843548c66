"""Arrays, and the types of floats that they may have: those of numpy and of ml_dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
Compute = Callable[[], Array]
"""Computes an array when it is needed."""


def is_float(dtype: np.dtype) -> bool:
    """Tell whether values of this type can be divided among copies."""
    return dtype.name in ("float16", "float32", "float64", "bfloat16")


def spacing(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a float type."""
    return float(ml_dtypes.finfo(dtype).eps)


def epsilon(dtype: np.dtype[Any]) -> float | None:
    """Return the distance from 1 to the next number of a float type, None for any other type."""
    try:
        return spacing(dtype)
    except ValueError:
        return None


def are_equal(one: Array, other: Array) -> bool:
    """Tell whether arrays are the same; what is no number in both is (JAX guards a variance of nothing by NaN)."""
    if np.array_equal(one, other):
        return True
    return one.shape == other.shape and is_float(one.dtype) and np.array_equal(one, other, equal_nan=True)
