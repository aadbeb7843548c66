"""Layers of weights with the tensors around them, and second moments of what tensors hold when a network runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_net2net.alignment import Unit
from onnx_net2net.dims import Axis
from onnx_net2net.sides import Side
from onnx_net2net.tensors import Array

_ROWS = 8192
"""Rows that are multiplied at once."""


@dataclass(frozen=True)
class Reader:
    """A Conv, Gemm or MatMul of a tensor with weights.

    Attributes:
        unit: The layer.
        node: Its node.
        tensor: The tensor that it reads.
        position: Which of its axes has the units.
        axis: What this axis is made of.
        makes: Which axis of the result has the units that it makes.
        skip: What is added to its result, with a bias and a BatchNormalization at most in between; "" if there is none.
        known: The number of the node that makes `skip`.
    """

    unit: Unit
    node: gs.Node
    tensor: str
    position: int
    axis: Axis
    makes: int
    skip: str = ""
    known: int = -1

    @property
    def result(self) -> str:
        """The result of the node."""
        return str(self.node.outputs[0].name)


def reader_of(side: Side, unit: Unit) -> Reader | None:
    """Return what a unit reads and makes, None if it is no such layer."""
    node, analysis = side.nodes[unit.node], side.analysis
    if "weight" not in unit.slots or node.op not in ("Conv", "Gemm", "MatMul"):
        return None
    if any(node.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return None
    for contraction in analysis.said[unit.node].contractions:
        data = [place for place in contraction.sides if not analysis.is_derived(unit.node, place[0])]
        axes = analysis.input_axes(unit.node, 0)
        if len(contraction.sides) == 2 and len(data) == 1 and data[0][0] == 0 and axes is not None:
            position = data[0][1]
            makes = 1 if node.op == "Conv" else len(analysis.axes[node.outputs[0].name]) - 1
            skip, known = _skip(side, unit)
            return Reader(unit, node, node.inputs[0].name, position, axes[position], makes, skip, known)
    return None


def _skip(side: Side, unit: Unit) -> tuple[str, int]:
    """Return what an Add behind a unit adds to its result, and the number of the node that makes that."""
    analysis = side.analysis
    inside = {unit.node, *(slot.use[0] for slot in unit.slots.values())}
    tensor = side.nodes[unit.node].outputs[0]
    while len(tensor.outputs) == 1 and tensor.name not in analysis.kept:
        reader = tensor.outputs[0]
        number = analysis.numbers.get(id(reader), -1)
        if number in inside:
            tensor = reader.outputs[0]
        elif reader.op == "Add" and not any(analysis.is_derived(number, index) for index in (0, 1)):
            other = reader.inputs[1 if reader.inputs[0] is tensor else 0]
            shapes = [analysis.sizes.shape(one.name) for one in (tensor, other)]
            if other is tensor or shapes[0] != shapes[1]:
                return "", -1
            producer = other.inputs[0] if other.inputs else None
            return str(other.name), analysis.numbers[id(producer)] if producer is not None else -1
        else:
            break
    return "", -1


class Moments:
    """Means and covariances of the units of two tensors, summed run by run (Chan, Golub, LeVeque 1983).

    Attributes:
        count: Number of rows so far.
        mean: float64 [g, n] of the first tensor, whose units may be in groups.
        spread: float64 [g, n, n], the sums of products of its distances from its means.
        other: float64 [g, m], the means of the second tensor.
        cross: float64 [g, m, n], the sums of products of the second tensor's distances with the first one's.
        power: float64 [g, m], the sums of squares of the second tensor's distances.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.spread = self.other = self.cross = self.power = np.zeros(())

    def add(self, first: Array, second: Array) -> None:
        """Add rows [g, r, n] and [g, r, m]."""
        for start in range(0, first.shape[1], _ROWS):
            x, y = (values[:, start : start + _ROWS].astype(np.float64) for values in (first, second))
            part = Moments()
            part.count, part.mean, part.other = x.shape[1], x.mean(1), y.mean(1)
            x -= part.mean[:, None]
            y -= part.other[:, None]
            part.spread, part.cross, part.power = x.swapaxes(1, 2) @ x, y.swapaxes(1, 2) @ x, (y * y).sum(1)
            self.join(part)

    def join(self, other: Moments) -> Moments:
        """Add those of other rows; return itself."""
        if other.count:
            total = self.count + other.count
            share = self.count * other.count / total
            x, y = other.mean - self.mean, other.other - self.other
            self.spread = self.spread + other.spread + share * x[..., :, None] * x[..., None, :]
            self.cross = self.cross + other.cross + share * y[..., :, None] * x[..., None, :]
            self.power = self.power + other.power + share * y * y
            self.mean = self.mean + x * (other.count / total)
            self.other = self.other + y * (other.count / total)
            self.count = total
        return self

    def covariance(self) -> Array:
        """Return the covariance of the first tensor: float64 [g, n, n]."""
        return self.spread / max(self.count, 1)
