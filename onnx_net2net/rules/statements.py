"""The statements of a rule about its node, besides the dims that it unifies. An axis is an expression over dims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_net2net.algebra.dims import Axis


@dataclass(frozen=True)
class Contraction:
    """The node sums over an axis, so that the copies of a unit must be multiplied by shares that sum to 1.

    Attributes:
        axis: The axis that is summed over.
        sides: (input, position of the axis) for each operand that has it; one of them is multiplied by the shares.
        law: "sum"; "mean" (the node divides by the size); "square" (it sums squares).
    """

    axis: Axis
    sides: tuple[tuple[int, int], ...]
    law: str = "sum"


@dataclass(frozen=True)
class Integers:
    """An input holds quantized integers, counted from a zero point.

    Attributes:
        zero_point: The input that holds the zero point; where the node leaves it out, the zero point is 0.
        axis: The axis of the integers along which a one-dimensional zero point lies.
    """

    zero_point: int
    axis: int


@dataclass(frozen=True)
class SizeInput:
    """Element `element` of integer input `input` is the product of the sizes of `axes`.

    If the element is an index along an axis (ends of Slice), `whole` is this axis: a negative index counts from its
    end, and a large one means its end. Numbers in `instead` are no sizes: they stand for the size of an axis (0 of
    Reshape), or for any size that fits (None).
    """

    input: int
    element: int
    axes: tuple[Axis, ...]
    whole: Axis | None = None
    instead: Mapping[int, Axis | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SizeAttribute:
    """Attribute `name` (or entry `element` of a list) is the product of the sizes of `axes`; see `SizeInput`."""

    name: str
    element: int | None
    axes: tuple[Axis, ...]
    whole: Axis | None = None


@dataclass(frozen=True)
class Selection:
    """The node picks units along an axis: result[k] = units[order[k]].

    Attributes:
        axis: The position of the axis.
        units: The units of the input along it, in order.
        order: int64, the index of each unit of the output among `units`.
        input: The input that holds `order`; None if there is none, so that the node becomes a Gather when it grows.
    """

    axis: int
    units: tuple[Axis, ...]
    order: np.ndarray
    input: int | None


@dataclass(frozen=True)
class IndexRange:
    """An input holds indices (as of ScatterND) that count up along one of its axes: a range of an axis of the data.

    Attributes:
        input: The input with the indices. Its last axis has one entry for each axis of the data.
        column: The axis of the data, as a position in this last axis.
        along: The axis of the input along which the indices count up.
        before: The part of the data's axis in front of the range.
        units: The range.
        rest: The part behind the range.
    """

    input: int
    column: int
    along: int
    before: Axis
    units: Axis
    rest: Axis


@dataclass(frozen=True)
class Statistic:
    """The node normalises by a statistic over axes.

    Attributes:
        axes: The axes that the statistic runs over.
        law: "layer" (mean and variance) or "rms" (mean square): padding is possible, by units that hold the mean or
            zero. None for other statistics.
        inputs: The inputs whose sum is normalised, as far as the node has them.
        scale: The input that multiplies the result, if any.
        shift: The input that is added to the result, if any.
        total: The output that holds the sum of the inputs, if any.
        epsilon: The value of the attribute `epsilon` if it is absent.
    """

    axes: tuple[Axis, ...]
    law: str | None = None
    inputs: tuple[int, ...] = (0,)
    scale: int | None = None
    shift: int | None = None
    total: int | None = None
    epsilon: float = 1e-5


@dataclass(slots=True)
class Statements:
    """All statements of a rule about its node; `onnx_net2net.rules.op.Op` has a method for each."""

    contractions: tuple[Contraction, ...] = ()
    size_inputs: tuple[SizeInput, ...] = ()
    size_attributes: tuple[SizeAttribute, ...] = ()
    selections: tuple[Selection, ...] = ()
    runs: tuple[IndexRange, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    defaults: tuple[tuple[str, float, Axis], ...] = ()
    shares: tuple[int, ...] = ()
    pointwise: str | None = None
    scales: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()
    integers: dict[int, Integers] = field(default_factory=dict)
    tables: tuple[Axis, ...] = ()
    choices: tuple[tuple[int, int], ...] = ()
    places: dict[int, Axis] = field(default_factory=dict)
    counts: tuple[tuple[int, int], ...] = ()
    chosen: tuple[Axis, ...] = ()
    normalised: tuple[Axis, ...] = ()
    closed: bool = False
