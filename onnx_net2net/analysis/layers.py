"""Which nodes are layers of weights, which are products of activations, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from onnx_net2net.algebra.dims import Axis, Concat, Dim, leaves, resolve
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.graph import Node, Place, Tensor
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.rules import traits

LONGEST_BLOCK = 2000
"""No block has more nodes; in a recurrence of many steps a search for its layers would go back through all of them."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies activations by weights.

    Attributes:
        number: The node.
        kind: Its operator.
        weights: Which input holds the weights.
        reads: The dims that it sums over, and the groups that these stand in.
        makes: The dims that only the weights bring into the result.
        shared: The dims of the weights that the activations have too, such as groups.
        terms: The dims that it makes, for each axis and each part of a concatenation.
        sizes: The size of each of these axes and parts.
        width: The size of the axis that it reads.
        kernel: The dims that a convolution works along.
    """

    number: int
    kind: str
    weights: int
    reads: frozenset[Dim]
    makes: frozenset[Dim]
    shared: frozenset[Dim]
    terms: tuple[tuple[Dim, ...], ...]
    sizes: tuple[int, ...]
    width: int
    kernel: frozenset[Dim]

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution."""
        return self.kind in traits.CONVOLUTIONS


class LayerGraph:
    """The layers of a graph.

    Attributes:
        analysis: The dims.
        layers: The nodes that multiply activations by weights, by number.
        products: The numbers of the nodes that multiply activations by one another and sum.
        made: The dims that layers make.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.layers: dict[int, Layer] = {}
        self.products: dict[int, Axis] = {}
        self._find_layers()
        self.made = frozenset(dim for layer in self.layers.values() for dim in layer.makes)

    def _find_layers(self) -> None:
        for number, said in self.analysis.said.items():
            node = self.analysis.nodes[number]
            for contraction in said.contractions:
                weights = [side for side in contraction.sides if self.is_weight(node.inputs[side[0]])]
                others = [side for side in contraction.sides if side not in weights]
                if len(others) > 1:
                    self.products[number] = contraction.axis
                elif len(weights) == len(others) == 1:
                    self.layers.setdefault(number, self._layer(number, contraction.axis, weights[0], others[0]))

    def _layer(self, number: int, axis: Axis, weights: tuple[int, int], data: tuple[int, int]) -> Layer:
        """Read what a node makes of activations, summing over one axis of them and one of the weights."""
        kind, result, summed = self.analysis.nodes[number].op, self.result(number), dims_of(axis)
        axes = list(self.analysis.input_axes(number, data[0]) or ())
        rest = list(self.analysis.input_axes(number, weights[0]) or ())
        read = axes.pop(data[1])
        reads = dims_of(read) | summed
        rest.pop(weights[1])
        shared = dims_of(*rest) & result & (dims_of(*axes) | (reads - summed))
        parts = [part for axis in rest for part in parts_of(axis)]
        terms = [
            tuple(dim for dim in map(unit_of, leaves(part)) if dim.size > 1 and dim in result and dim not in shared)
            for part in parts
        ]
        return Layer(
            number, kind, weights[0], frozenset(reads), frozenset(dim for term in terms for dim in term),
            frozenset(shared), tuple(terms), tuple(part.size for part in parts), read.size,
            frozenset(dims_of(*rest[1:]) if kind in traits.CONVOLUTIONS else ()),
        )  # fmt: skip

    # -- nodes and tensors -------------------------------------------------------------------------------------

    def number(self, node: Node) -> int:
        """Return the number of a node."""
        return self.analysis.numbers[id(node)]

    def dims(self, number: int, index: int) -> set[Dim]:
        """Return the dims of an input of a node."""
        return dims_of(*(self.analysis.input_axes(number, index) or ()))

    def axes(self, number: int) -> tuple[Axis, ...]:
        """Return the axes of the first output of a node."""
        return self.analysis.axes.get(self.analysis.nodes[number].outputs[0].name, ())

    def result(self, number: int) -> set[Dim]:
        """Return the dims of the first output of a node."""
        return dims_of(*self.axes(number))

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape of a tensor, or () where it is not known."""
        constant = constant_of(tensor)
        shape = constant.shape if constant is not None else self.analysis.sizes.shape(tensor.name)
        return tuple(shape or ())

    def elements(self, tensor: Tensor) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self.shape(tensor))

    def age(self, tensor: Tensor) -> int:
        """Return the number of the node that a tensor comes from, -1 for what comes from none."""
        return max(map(self.number, tensor.inputs), default=-1)

    def activations(self, node: Node) -> list[Tensor]:
        """Return the inputs of a node that depend on what the model is given and are no picked weights."""
        return [tensor for tensor in node.inputs if tensor.name in self.live and tensor.name not in self.weights]

    def is_weight(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a constant, a moved or scaled one, or picked from a stack of matrices."""
        return tensor.name in self.weights or constant_of(tensor) is not None

    @cached_property
    def weights(self) -> set[str]:
        """The tensors that are moved or scaled constants, or picked from a stack of matrices."""
        found: set[str] = set()
        for number, node in enumerate(self.analysis.nodes):
            said = self.analysis.said.get(number)
            if said is not None and any(len(contraction.sides) > 1 for contraction in said.contractions):
                continue  # what a layer makes of constants, such as learnt queries, is no weight
            known = [tensor.name in found or constant_of(tensor) is not None for tensor in node.inputs if tensor.name]
            if known and (all(known) or (known[0] and node.op in traits.PICKS and self.is_stack(node.inputs[0]))):
                found.update(tensor.name for tensor in node.outputs)
        return found

    def is_stack(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is several matrices."""
        return sum(size > 1 for size in self.shape(tensor)) > 2

    @cached_property
    def live(self) -> set[str]:
        """The tensors that depend on what the model is given, be it on its shape alone."""
        return self._reached(())

    @cached_property
    def told(self) -> set[str]:
        """The tensors that depend on the values that the model is given."""
        return self._reached(traits.SHAPES)

    def _reached(self, ends: Collection[str]) -> set[str]:
        """Return the tensors that the inputs of the model reach, but not through operators in `ends`."""
        found = {tensor.name for tensor in self.analysis.graph.inputs}
        for node in self.analysis.nodes:
            if node.op not in ends and any(tensor.name in found for tensor in node.inputs):
                found.update(tensor.name for tensor in node.outputs)
        return found

    def stack_of(self, layer: int) -> Place | None:
        """Return the read of the constant that a layer's weights are, perhaps picked or moved first."""
        number, index = layer, self.layers[layer].weights
        while (number, index) not in self.analysis.uses:
            tensor = self.analysis.nodes[number].inputs[index]
            if not tensor.inputs or tensor.inputs[0].op not in traits.PICKS | traits.REARRANGES:
                return None
            number, index = self.number(tensor.inputs[0]), 0
        return number, index

    def behind(self, tensor: Tensor, stop: Collection[int] = (), after: int = -1) -> Iterator[Node]:
        """Yield the nodes with a number above `after` that a tensor is computed by, none behind those in `stop`.

        Of factors only those as large as the result are followed; the others are gates of tokens or channels.
        """
        pending, seen = [tensor], set()
        while pending:
            for node in pending.pop().inputs:
                number = self.number(node)
                if number in seen or number <= after:
                    continue
                seen.add(number)
                yield node
                if number not in stop:
                    found = self.activations(node)
                    pending += self.whole(node, found) if node.op in traits.FACTORS else found

    def sources(self, tensor: Tensor, stop: Collection[int], sums: bool = True) -> set[int]:
        """Return the nodes in `stop` that a tensor is computed from by way of no other one.

        Args:
            tensor: The tensor; what only depends on shapes is not followed.
            stop: Numbers of nodes.
            sums: Whether sums of several activations are followed, too.
        """
        found, seen, pending = set(), set(), [tensor]
        while pending:
            number = self.age(pending.pop())
            if number < 0 or number in seen:
                continue
            seen.add(number)
            if number in stop:
                found.add(number)
                continue
            node = self.analysis.nodes[number]
            told = [value for value in node.inputs if value.name in self.told]
            pending += told if sums or len(told) < 2 or node.op not in traits.SUMS else []
        return found

    def region(self, start: Tensor, ends: Iterable[Tensor], stop: Collection[int] = ()) -> list[int]:
        """Return the nodes on the ways from one tensor to others, in order; none through shapes, or nodes in `stop`."""
        oldest = self.age(start)
        back: set[int] = set()
        pending = list(ends)
        while pending and len(back) < LONGEST_BLOCK:
            number = self.age(pending.pop())
            is_new = number > oldest and number not in back and number not in stop
            if is_new and self.analysis.nodes[number].op not in traits.SHAPES:
                back.add(number)
                pending += self.analysis.nodes[number].inputs
        made, found = {start.name}, []
        for number in sorted(back):
            node = self.analysis.nodes[number]
            if any(value.name in made for value in node.inputs):
                found.append(number)
                made.update(value.name for value in node.outputs)
        return found

    def whole(self, node: Node, tensors: Collection[Tensor]) -> list[Tensor]:
        """Return those of the tensors that are as large as the result of a node."""
        size = self.elements(node.outputs[0])
        return [tensor for tensor in tensors if self.elements(tensor) == size]

    def between(self, older: Tensor, newer: Tensor) -> list[Layer]:
        """Return the layers that make a tensor of an older one; none where it is not computed from that."""
        trunk = {tensor.name for node in older.inputs for tensor in node.outputs} | {older.name}
        while older.inputs and self.age(older) not in self.layers and len(self.activations(older.inputs[0])) == 1:
            (older,) = self.activations(older.inputs[0])
            trunk.add(older.name)
        nodes = list(islice(self.behind(newer, after=self.age(older)), LONGEST_BLOCK))
        if not any(tensor.name in trunk for node in nodes for tensor in node.inputs):
            return []
        return [self.layers[number] for number in map(self.number, nodes) if number in self.layers]


def unit_of(dim: Dim) -> Dim:
    """Return the dim that a single unit was cut out of, or the dim itself."""
    return dim.origin or dim


def dims_of(*axes: Axis) -> set[Dim]:
    """Return the dims of axes that have more than one unit."""
    return {unit for axis in axes for dim in leaves(axis) if (unit := unit_of(dim)).size > 1}


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """Return the parts of a concatenation, or the axis itself."""
    axis = resolve(axis)
    return axis.parts if isinstance(axis, Concat) else (axis,)
