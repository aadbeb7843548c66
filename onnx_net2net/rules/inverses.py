"""Inputs for which an operator returns one given number everywhere, and operands that change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

NEUTRAL: Mapping[str, tuple[float, Sequence[int]]] = {
    **dict.fromkeys(traits.SUMS, (0.0, traits.EVERY)), "Sub": (0.0, (1,)), "Mul": (1.0, traits.EVERY),
    "Div": (1.0, (1,)), "PRelu": (1.0, (1,)),
}  # fmt: skip
"""The value of an operand that leaves the other operand unchanged, and which inputs can be that operand."""


def before(kind: str, attrs: Mapping[str, Any], value: float) -> float:
    """Return the number that the first input of an operator must be everywhere so that its result is another one.

    Args:
        kind: The operator.
        attrs: Its attributes.
        value: The number that the result is to be everywhere.

    Raises:
        ValueError: If the operator never returns this number.
        ZeroDivisionError: The same.
        KeyError: If nothing is known of the operator.
    """
    if kind in SPREADS or (kind in RECTIFIERS and value > 0):
        return value
    if kind == "HardSigmoid":
        return (value - float(attrs.get("beta", 0.5))) / float(attrs.get("alpha", 0.2))
    return INVERSES[kind](value)
