"""Hidden channels of size 1: which axes of size 1 are units, and do not broadcast.

An axis of size 1 may be a single unit, or may be broadcast to any number of units. So in general such axes keep their
size. If a layer of weights makes the axis, and all readers are such layers behind elementwise operators, it is a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import is_fixed_norm
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits

Position = tuple[str, int]
"""A tensor, by name, and an axis of it."""

Read = tuple[int, int, int]
"""A node by number, an input of it and an axis of that: of a constant, which may be read elsewhere in another way."""


@dataclass(frozen=True)
class Region:
    """What lies between a layer that makes a single unit and those that read it.

    Attributes:
        tensors: The axes of activations that are the unit.
        needed: Those that must be units too, as they are added or multiplied.
        reads: The axes of constants that are the unit.
    """

    tensors: set[Position]
    needed: set[Position]
    reads: set[Read]


class Singles:
    """The axes of size 1 that are hidden channels.

    Attributes:
        tensors: Axes of activations.
        reads: Axes of constants, where these nodes read them.
    """

    def __init__(
        self, nodes: list[Node], kept: frozenset[str], shape: Callable[[str], tuple[int, ...] | None],
        is_constant: Callable[[Tensor], bool],
    ) -> None:  # fmt: skip
        """Find them.

        Args:
            nodes: The nodes of the graph, in order.
            kept: Names of tensors that are read by more than nodes.
            shape: Tells the shape of a tensor, None where it is not known.
            is_constant: Tells whether a tensor is a constant.
        """
        self._shape, self._is_constant, self._kept = shape, is_constant, kept
        self._numbers = {id(node): number for number, node in enumerate(nodes)}
        self.tensors: set[Position] = set()
        self.reads: set[Read] = set()
        made = ((node, self._made(number, node)) for number, node in enumerate(nodes))
        regions = [region for node, one in made if one and (region := self._follow(node.outputs[0], *one))]
        while lost := [region for region in regions if not region.needed <= self._known(regions)]:
            regions = [region for region in regions if region not in lost]
        for region in regions:
            self.tensors |= region.tensors
            self.reads |= region.reads

    def _layer(self, node: Node) -> tuple[int, int, int] | None:
        """Return of a layer of weights (the axis of its data and result, that of its weight that makes, that reads)."""
        if node.domain not in DEFAULT_DOMAIN or len(node.inputs) < 2 or not self._is_constant(node.inputs[1]):
            return None
        axes, attrs = traits.weight_axes(node.op, node.attrs), node.attrs
        if node.op in traits.KERNELS and attrs.get("group", 1) == 1:
            return 1, *axes
        rank, weight = (len(self._shape(tensor.name) or ()) for tensor in (node.outputs[0], node.inputs[1]))
        is_layer = node.op in traits.MATRICES and not attrs.get("transA", 0) and rank > 1 and weight == 2
        return (rank - 1, *axes) if is_layer else None

    def _made(self, number: int, node: Node) -> tuple[int, set[Read]] | None:
        """Return the axis on which a layer makes a single unit, and its own constants that have it."""
        shape = (self._shape(node.outputs[0].name) if node.outputs else None) or ()
        layer = self._layer(node) if 1 in shape else None
        if layer is None or len(shape) <= layer[0] or shape[layer[0]] != 1:
            return None
        reads = {(number, 1, layer[1])}
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = self._shape(node.inputs[2].name)
            if not self._is_constant(node.inputs[2]) or bias is None:
                return None
            reads |= {(number, 2, len(bias) - 1)} if bias else set()
        return layer[0], reads

    @staticmethod
    def _known(regions: list[Region]) -> set[Position]:
        return set().union(*(region.tensors for region in regions))

    def _follow(self, start: Tensor, axis: int, reads: set[Read]) -> Region | None:
        """Return what lies between a layer and all that read it, None if they do not end in layers."""
        inside, needed, queue = {start.name}, set[str](), [start]
        ends = False
        while queue:
            tensor = queue.pop()
            if tensor.name in self._kept or not tensor.outputs:
                return None
            for reader in tensor.outputs:
                layer = self._layer(reader)
                number = self._numbers[id(reader)]
                if layer and reader.inputs[0] is tensor and layer[0] == axis:
                    reads.add((number, 1, layer[2]))
                    ends = True
                    continue
                others = self._beside(reader, number, tensor, axis)
                if others is None:
                    return None
                for other in others:
                    needed.update([other] if isinstance(other, str) else [])
                    reads.update([other] if isinstance(other, tuple) else [])
                result = reader.outputs[0]
                if result.name not in inside:
                    inside.add(result.name)
                    queue.append(result)
        return Region({(t, axis) for t in inside}, {(t, axis) for t in needed}, reads) if ends else None

    def _beside(self, node: Node, number: int, tensor: Tensor, axis: int) -> list[str | Read] | None:
        """Return what else a node reads that has the unit, None if it does more than operate on units alone."""
        if node.domain not in DEFAULT_DOMAIN or len(node.outputs) != 1 or node.inputs[0] is not tensor:
            found = node.op in traits.ARITHMETIC and len(node.inputs) == 2 and node.inputs[1] is tensor
            if not found or len(node.outputs) != 1:
                return None
        if node.op in traits.ALONE:
            return []
        if node.op in traits.POOLS and axis == 1:
            return []
        if is_fixed_norm(node, tensor) and axis == 1 and all(map(self._is_constant, node.inputs[1:])):
            return [(number, index, 0) for index in range(1, 5)]
        if node.op in traits.ARITHMETIC:
            return list(self._operands(node, number, tensor, axis))
        return None

    def _operands(self, node: Node, number: int, tensor: Tensor, axis: int) -> Iterator[str | Read]:
        """Yield the other operand of a sum or product, where it has the unit's axis."""
        rank = len(self._shape(tensor.name) or ())
        for index, other in enumerate(node.inputs):
            if other is tensor:
                continue
            shape = self._shape(other.name) or ()
            place = axis - rank + len(shape)
            if not self._is_constant(other):
                yield other.name if len(shape) == rank else ""  # nothing has that name
            elif place >= 0:
                yield (number, index, place) if shape[place] == 1 and len(shape) <= rank else ""
