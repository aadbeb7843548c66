"""Layers of weights with the tensors around them, and second moments of what tensors hold when a network runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra.dims import Axis
from onnx_net2net.algebra.floats import Array
from onnx_net2net.graph.graph import Node, dtype_of
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Network
from onnx_net2net.rules import traits

CHUNK = 1 << 22
"""So many elements are processed together."""


@dataclass(frozen=True)
class Reader:
    """A Conv, Gemm or MatMul of a tensor with weights.

    Attributes:
        module: The layer.
        node: Its node.
        tensor: The tensor that it reads.
        position: The axis of the tensor that it sums over.
        axis: The dims of this axis.
        result: The tensor that it makes.
        makes: The axis of the result with the units that it makes.
        skip: The tensor that is added to its result, a bias or BatchNormalization later at most; "" if there is none.
        known: The number of the node that makes `skip`, -1 if none does.
    """

    module: Module
    node: Node
    tensor: str
    position: int
    axis: Axis
    result: str
    makes: int
    skip: str
    known: int


def reader_of(network: Network, module: Module) -> Reader | None:
    """Return a module with what it reads and makes, None if it is no such layer; before the network grows."""
    node, analysis = network.nodes[module.node], network.analysis
    weight = network.constant(module.parameters["weight"]) if module.is_layer else None
    if weight is None or dtype_of(weight).kind != "f" or node.op not in traits.PLAIN_LAYERS:
        return None
    if any(node.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return None
    axes, result = analysis.input_axes(module.node, 0), node.outputs[0].name
    for contraction in analysis.said[module.node].contractions:
        data = [place for place in contraction.sides if not analysis.is_derived(module.node, place[0])]
        if axes is not None and len(contraction.sides) == 2 and [index for index, _ in data] == [0]:
            position = data[0][1]
            makes = 1 if node.op in traits.CONVOLUTIONS else len(analysis.axes[result]) - 1
            return Reader(
                module, node, node.inputs[0].name, position, axes[position], result, makes, *_skip(network, module)
            )
    return None


def _skip(network: Network, module: Module) -> tuple[str, int]:
    """Return the tensor that an Add behind a module adds to its result, and the number of the node that makes it."""
    analysis, tensor = network.analysis, network.nodes[module.node].outputs[0]
    own = {parameter.use[0] for parameter in module.parameters.values()}
    while len(tensor.outputs) == 1 and tensor.name not in analysis.kept:
        (reader,) = tensor.outputs
        number = analysis.numbers[id(reader)]
        if number in own:
            tensor = reader.outputs[0]
            continue
        if reader.op != "Add" or any(analysis.is_derived(number, index) for index in (0, 1)):
            break
        other = reader.inputs[1 if reader.inputs[0] is tensor else 0]
        if other is tensor or analysis.sizes.shape(other.name) != analysis.sizes.shape(tensor.name):
            break
        return other.name, analysis.numbers[id(other.inputs[0])] if other.inputs else -1
    return "", -1


class Moments:
    """Means and covariances of the units of two tensors, summed run by run (Chan, Golub, LeVeque 1983).

    The units may be in groups, g of them, which are looked at one by one.

    Attributes:
        count: Number of rows so far.
        mean: float64 [g, n], the means of the first tensor.
        spread: float64 [g, n, n], sums of products of its distances from them.
        other: float64 [g, m], the means of the second tensor.
        cross: float64 [g, m, n], sums of products of the second tensor's distances with the first one's.
        power: float64 [g, m], sums of squares of the second tensor's distances.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.spread = self.other = self.cross = self.power = np.zeros(())

    def add(self, first: Array, second: Array | None = None) -> None:
        """Add rows [g, r, n], and [g, r, m] of the second tensor."""
        second = first[..., :0] if second is None else second
        step = max(1, CHUNK // max(math.prod(first.shape[::2]), 1))
        for start in range(0, first.shape[1], step):
            x, y = (values[:, start : start + step].astype(np.float64) for values in (first, second))
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

    def covariances(self, *, centred: bool = True) -> tuple[Array, Array]:
        """Return Cov(x, x) and Cov(y, x), or the second moments if not centred: float64 [g, n, n], [g, m, n]."""
        spread, cross = self.spread / self.count, self.cross / self.count
        if not centred:
            spread = spread + self.mean[..., :, None] * self.mean[..., None, :]
            cross = cross + self.other[..., :, None] * self.mean[..., None, :]
        return spread, cross
