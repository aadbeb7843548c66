"""What a rule says about its node, beyond the dims that it unifies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_net2net.algebra.dims import Axis


@dataclass(frozen=True)
class Contraction:
    """The node sums over an axis: copies of a unit must together weigh what the unit weighed.

    Attributes:
        axis: What is summed over, as an expression over dims.
        sides: (input, axis position) of each operand that has it; the weight is put on one of them.
        law: "sum"; "mean" (the node divides by the size); "square" (it sums squares).
    """

    axis: Axis
    sides: tuple[tuple[int, int], ...]
    law: str = "sum"


@dataclass(frozen=True)
class Integers:
    """An input holds integers to compute with, counted from a zero point.

    Attributes:
        zero_point: The input that holds it, where the node has that; 0 otherwise.
        axis: The axis along which a zero point of one dimension lies.
    """

    zero_point: int
    axis: int


@dataclass(frozen=True)
class SizeInput:
    """Element `element` of integer input `input` is the total size of `axes`.

    Where it is a place on an axis, `whole` is that axis: negative places count from its end, large ones mean it.
    Numbers in `instead` are no sizes, but stand for that of an axis (0 of Reshape), or for whatever fits (None).
    """

    input: int
    element: int
    axes: tuple[Axis, ...]
    whole: Axis | None = None
    instead: Mapping[int, Axis | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SizeAttribute:
    """Attribute `name` (its entry `element`, when it is a list) is the total size of `axes`; see `SizeInput`."""

    name: str
    element: int | None
    axes: tuple[Axis, ...]
    whole: Axis | None = None


@dataclass(frozen=True)
class Selection:
    """The node picks units along an axis: result[k] = units[order[k]].

    Attributes:
        axis: The axis.
        units: The units of the source, in order.
        order: int64, which of them the result has.
        input: The input that lists the places; None where no input does, so that a grown node becomes a Gather.
    """

    axis: int
    units: tuple[Axis, ...]
    order: np.ndarray
    input: int | None


@dataclass(frozen=True)
class Run:
    """A list of places counts up along an axis of its own: all units of a run on an axis of the data, in order.

    Attributes:
        input: The input that is the list, whose last axis has the axes of the data.
        column: The axis of the data.
        along: The axis of the list along which the places count up.
        before: What lies in front of the run.
        units: The run.
        rest: What lies behind it.
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
        axes: What the statistic runs over.
        law: "layer" (mean and variance) or "rms", which units that it does not notice can pad; None otherwise.
        inputs: The inputs whose sum is normalised, as far as the node has them.
        scale: The input that scales the result.
        shift: The input that is added to it, if any.
        total: The output that is the sum, if any.
        epsilon: What the attribute is where it is left out.
    """

    axes: tuple[Axis, ...]
    law: str | None = None
    inputs: tuple[int, ...] = (0,)
    scale: int | None = None
    shift: int | None = None
    total: int | None = None
    epsilon: float = 1e-5


@dataclass
class Statements:
    """What a rule said about its node, beyond the dims that it unified."""

    contractions: list[Contraction] = field(default_factory=list)
    size_inputs: list[SizeInput] = field(default_factory=list)
    size_attributes: list[SizeAttribute] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    defaults: list[tuple[str, float, Axis]] = field(default_factory=list)
    shares: list[int] = field(default_factory=list)
    pointwise: str | None = None
    scales: set[int] = field(default_factory=set)
    ignored: set[int] = field(default_factory=set)
    integers: dict[int, Integers] = field(default_factory=dict)
    tables: list[Axis] = field(default_factory=list)
    choices: list[tuple[int, int]] = field(default_factory=list)
    places: dict[int, Axis] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    chosen: list[Axis] = field(default_factory=list)
    normalised: list[Axis] = field(default_factory=list)
    closed: bool = False
