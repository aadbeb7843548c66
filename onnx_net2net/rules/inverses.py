"""What an operator has to be given, that it makes one number everywhere; and what leaves the other operand as it is."""

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
"""What makes a number of an operator; numbers that it never makes raise ValueError or ZeroDivisionError."""

RECTIFIERS = frozenset({"Relu", "LeakyRelu", "Elu", "Celu", "Abs"})
"""Operators that leave positive numbers as they are."""

SPREADS = traits.MOVES | {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
"""Operators that make of one number everywhere the same again."""

ALIKE = traits.JOINS | traits.EXTREMES | {"Where", "Mean", "ScatterND"}
"""Operators that make one number where all their data is that number."""

NEUTRAL: Mapping[str, float] = {**dict.fromkeys(traits.SUMS, 0.0), "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
"""What an operand (of Sub and Div the second) is that leaves the other one as it is."""
