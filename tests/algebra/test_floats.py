"""Which types can be divided among copies, and how precise they are."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnx_net2net.algebra.floats import are_equal, epsilon, is_float


@pytest.mark.parametrize(
    ("dtype", "divisible", "precision"),
    [
        (np.float64, True, 2.0**-52),
        (np.float32, True, 2.0**-23),
        (np.float16, True, 2.0**-10),
        (ml_dtypes.bfloat16, True, 2.0**-7),
        (ml_dtypes.float8_e4m3fn, False, 2.0**-3),
        (np.int64, False, None),
        (np.bool_, False, None),
        (np.complex64, False, None),
        (np.str_, False, None),
    ],
)
def test_types(dtype: Any, divisible: bool, precision: float | None) -> None:
    assert is_float(np.dtype(dtype)) is divisible
    if dtype is not np.complex64:  # has one, which nobody asks for
        assert epsilon(np.dtype(dtype)) == precision


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_no_number_is_equal_to_itself(dtype: Any) -> None:
    one = np.array([1.0, np.nan]).astype(dtype)
    assert are_equal(one, one.copy())
    assert not are_equal(one, np.array([1.0, 2.0]).astype(dtype))
    assert not are_equal(one, one[:1])
    assert are_equal(np.array(["a"]), np.array(["a"]))
    assert not are_equal(np.array(["a"]), np.array(["b"]))
