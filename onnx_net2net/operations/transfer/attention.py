"""Products of activations, as in attention, that sum over more units in a target: its layers weigh the copies.

`widen` puts a node in front of such a product and keeps the teacher's scale of attention. A target has no such node,
and its scale follows the width of a head. Both are compensated in the layer that makes an operand. The nodes between
layer and product (which cut heads out of a joint projection, turn and scale them) are not read but run: numbers take
the place of the layer's result, and where they arrive at the product tells which unit is where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import helper

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Growth, compose
from onnx_net2net.analysis import layers
from onnx_net2net.graph.graph import Place, Tensor
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Network, Networks
from onnx_net2net.rules import traits
from onnx_net2net.run.region import run_region

_FAR = 8
"""At most so many nodes scale and mask a product in front of its Softmax."""

_MASKED = 1e3
"""A mask adds numbers beyond this to scores that do not count."""


@dataclass
class Compensation:
    """Products that the layers in front of them compensate for.

    Attributes:
        factors: Multiply the units of the target's parameters.
        products: The teacher's products that need nothing else.
        scaled: The teacher's nodes around them, whose numbers make no difference any more.
    """

    factors: dict[Place, Array] = field(default_factory=dict)
    products: set[int] = field(default_factory=set)
    scaled: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Operand:
    """One of the two tensors that are multiplied.

    Attributes:
        module: The layer that it comes from.
        places: The unit of the layer at each of its places; the axis that is summed over is the last.
        scale: The factor between the layer's results and it.
        nodes: The nodes between.
    """

    module: Module
    places: np.ndarray
    scale: float
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class _Product:
    """A product of two layers' results with a Softmax behind.

    Attributes:
        number: Its node.
        operands: Both operands.
        scale: The factor between the product of the layers' results and what the Softmax reads.
        nodes: The nodes between layers and Softmax.
    """

    number: int
    operands: tuple[_Operand, _Operand]
    scale: float
    nodes: frozenset[int]

    @property
    def layers(self) -> tuple[int, int]:
        """The nodes of the two layers."""
        return self.operands[0].module.node, self.operands[1].module.node


def weigh_products(networks: Networks, found: Alignment, growth: Growth) -> Compensation:
    """Let layers of the target weigh what its products of activations sum over.

    Args:
        networks: The two networks; the teacher has not been grown yet.
        found: Which of their modules correspond.
        growth: Map of each dim of the teacher that grows.

    Returns:
        The products that are compensated for; those that are not of attention, or do not run alone, are left out.
    """
    weighing = Compensation()
    partner = {old.node: new.node for old, new in found.pairs}
    target = {product.layers: product for product in _Products(networks.target).find()} if growth else {}
    for product in _Products(networks.teacher).find() if target else ():
        other = target.get((partner.get(product.layers[0], -1), partner.get(product.layers[1], -1)))
        if other is not None and _weigh(networks.teacher, product, other, growth, weighing.factors):
            weighing.products.add(product.number)
            weighing.scaled |= product.nodes
    return weighing


def _weigh(teacher: Network, old: _Product, new: _Product, growth: Growth, factors: dict[Place, Array]) -> bool:
    """Find the factors of one of the layers in front of a product; tell whether it can have them."""
    (contraction,) = teacher.analysis.said[old.number].contractions
    index, position = contraction.sides[0]
    axes = teacher.analysis.input_axes(old.number, index) or ()
    weighed = {dim for dim in leaves(contraction.axis) if dim in growth}
    weights = compose(axes[position], growth, weighed).weight * old.scale / new.scale
    for operand in new.operands:
        if operand.places.shape[-1] != len(weights):
            continue
        wanted = np.broadcast_to(weights, operand.places.shape)
        made = np.ones(operand.module.shape[0])
        made[operand.places] = wanted
        if np.array_equal(made[operand.places], wanted):  # no unit is needed in two places with different weights
            whats = ("scale", "shift") if operand.module.norm is not None else ("weight", "bias")
            for what in whats if not np.allclose(made, 1, rtol=1e-9) else ():
                if what in operand.module.parameters:
                    factors[operand.module.parameters[what].use] = made
            return True
    return False


class _Products:
    """Finds the products of one network."""

    def __init__(self, network: Network) -> None:
        self._network, self._analysis = network, network.analysis
        self._layers = layers.LayerGraph(network.analysis)
        self._modules = {module.end: module for module in network.modules if module.is_layer}

    def find(self) -> Iterator[_Product]:
        """Yield the products of two layers' results that a Softmax reads."""
        for number in self._layers.products:
            node, contractions = self._analysis.nodes[number], self._analysis.said[number].contractions
            behind = self._softmax(node.outputs[0])
            if len(contractions) != 1 or len(contractions[0].sides) != 2 or behind is None:
                continue
            operands = [self._operand(node.inputs[index], position) for index, position in contractions[0].sides]
            scale = self._scale(node.outputs[0], behind)
            if operands[0] is not None and operands[1] is not None and scale:
                first, second = operands[0], operands[1]
                nodes = {*first.nodes, *second.nodes, *self._between(node.outputs[0], behind)}
                yield _Product(number, (first, second), first.scale * second.scale * scale, frozenset(nodes))

    def _softmax(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor that a Softmax not far behind reads, None if there is none."""
        for _ in range(_FAR):
            if len(tensor.outputs) != 1 or not tensor.outputs[0].outputs:
                return None
            if tensor.outputs[0].op in traits.SHARES:
                return tensor
            tensor = tensor.outputs[0].outputs[0]
        return None

    def _operand(self, tensor: Tensor, position: int) -> _Operand | None:
        """Return an operand that is the result of one layer, only moved and scaled; None for others."""
        stop = {*self._modules, *self._layers.products, *self._layers.layers}
        ends = self._layers.sources(tensor, stop) & self._modules.keys()
        if len(ends) != 1:
            return None
        (end,) = ends
        module, start = self._modules[end], self._analysis.nodes[end].outputs[0]
        shape, size = self._layers.shape(start), module.shape[0]
        axis = 1 if self._layers.layers[module.node].convolves else len(shape) - 1
        if not shape or shape[axis] != size:
            return None
        numbers = np.arange(1, size + 1).reshape([-1 if place == axis else 1 for place in range(len(shape))])
        tried = self._try(start, tensor, [np.zeros(()), np.ones(()), numbers])
        if tried is None or tried[0].any() or not tried[1].any() or not _is_one_number(tried[1]):
            return None
        scale = float(tried[1].reshape(-1)[0])
        units = tried[2] / scale - 1
        places = np.rint(units).astype(np.int64)
        if np.abs(units - places).max() > 0.1 or places.min() < 0 or places.max() >= size:
            return None
        return _Operand(module, np.moveaxis(places, position, -1), scale, tuple(self._between(start, tensor)))

    def _between(self, start: Tensor, end: Tensor) -> list[int]:
        """Return the nodes on the ways from one tensor to another, in order."""
        return self._layers.region(start, [end], self._modules)

    def _scale(self, start: Tensor, end: Tensor) -> float:
        """Return the factor between a tensor and a later one, 0.0 if it is more than multiplied."""
        tried = self._try(start, end, [np.zeros(()), np.ones(()), np.full((), 2.0)])
        if tried is None:
            return 0.0
        seen = np.abs(tried[0]) < _MASKED
        once, twice = (values[seen] - tried[0][seen] for values in tried[1:])
        once, twice = once[once != 0], twice[once != 0]  # where a mask replaces a score, nothing is seen of it
        is_linear = once.size > 0 and _is_one_number(once) and np.allclose(twice, 2 * once, rtol=1e-5)
        return float(once[0]) if is_linear else 0.0

    def _try(self, start: Tensor, end: Tensor, values: Sequence[Array]) -> list[Array] | None:
        """Return a later tensor for each of some values of an earlier one; other activations are zero."""
        kind = self._analysis.sizes.dtype
        dtype = helper.tensor_dtype_to_np_dtype(kind(start.name))
        feeds = [np.broadcast_to(array, self._layers.shape(start)).astype(dtype) for array in values]
        numbers = self._between(start, end)
        if not numbers:
            return feeds
        nodes = [self._analysis.nodes[number] for number in numbers]
        made = {start.name, *(tensor.name for node in nodes for tensor in node.outputs)}
        read = [tensor for node in nodes for tensor in node.inputs if tensor.name and tensor.name not in made]
        constants = {tensor.name: self._value(tensor) for tensor in read}
        ends = [(tensor.name, kind(tensor.name)) for tensor in (start, end)]
        try:
            found = run_region(self._network.opened.model.proto, numbers, ends[0], ends[1], constants, feeds)
        except Exception:  # onnxruntime's errors have no base of their own; the nodes do not run alone
            return None
        return [np.asarray(array, np.float64) for array in found]

    def _value(self, tensor: Tensor) -> Array:
        """Return a constant, a size, or zeros for an activation."""
        constant = constant_of(tensor)
        if constant is not None:
            return np.asarray(self._analysis.graph.read(constant))
        known = self._analysis.sizes.values.get(tensor.name)
        if known is not None:
            return known
        dtype = helper.tensor_dtype_to_np_dtype(self._analysis.sizes.dtype(tensor.name))
        return np.zeros(self._layers.shape(tensor), dtype)


def _is_one_number(values: Array) -> bool:
    return bool(np.ptp(values) <= 1e-5 * np.abs(values).max(initial=0))
