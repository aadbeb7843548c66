"""Inputs for which an operator returns one given number everywhere, and operands that change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnx_net2net.rules import traits

OPEN, CLOSED = 20.0, -100.0
"""Where a Sigmoid is 1 and 0 in single precision."""


def _logit(value: float) -> float:
    return OPEN if value == 1 else CLOSED if value == 0 else math.log(value / (1 - value))


INVERSES: Mapping[str, Callable[[float], float]] = {
    "Sigmoid": _logit, "Tanh": lambda v: math.copysign(OPEN, v) if abs(v) == 1 else math.atanh(v),
    "Exp": lambda v: math.log(v) if v else CLOSED, "Log": math.exp, "Neg": lambda v: -v, "Sqrt": lambda v: v * v,
    "Softplus": lambda v: math.log(math.expm1(v)) if v else CLOSED, "Reciprocal": lambda v: 1 / v,
}  # fmt: skip
"""For each operator: the input for a wanted output. ValueError or ZeroDivisionError: it never has that output."""

RECTIFIERS = frozenset({"Relu", "LeakyRelu", "Elu", "Celu", "Abs"})
"""Operators that leave positive numbers as they are."""

SPREADS = traits.MOVES | {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
"""Operators that return one number everywhere if their input is that number everywhere."""

ALIKE = traits.JOINS | traits.EXTREMES | {"Where", "Mean", "ScatterND"}
"""Operators that return one number everywhere if all their data inputs are that number everywhere."""

NEUTRAL: Mapping[str, float] = {**dict.fromkeys(traits.SUMS, 0.0), "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
"""The value of an operand (for Sub and Div the second one) that leaves the other operand unchanged."""
