"""Parts of a network that can do nothing: all that they add can be 0, and all that they multiply by can be 1.

Such a part ends in exits, where something else goes on: x + f(x), x * gate(x), or both x - f(z) and y + g(z) for one z.
All of its nodes are read by its nodes and exits alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from onnx_net2net.analysis.inference import DIVISIBLE
from onnx_net2net.analysis.layers import LONGEST_BLOCK, LayerGraph
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node, Place, Tensor
from onnx_net2net.operations.transfer.settling import Settled, Settling
from onnx_net2net.rules import traits
from onnx_net2net.rules.inverses import NEUTRAL

_ROUNDS = 8
"""Parts that share what they are made of are put together so often."""

Exits = frozenset[Place]


@dataclass(frozen=True)
class Spare:
    """A part that may do nothing.

    Attributes:
        nodes: Its nodes.
        holders: Those of them that have weights.
        exits: The inputs of nodes that read it, and are no part of it.
        values: What its weights hold if it does nothing.
        reason: Why it cannot do nothing, "" if it can.
        rank: 0 if it is computed from what goes on beside it, 1 if it multiplies something, 2 if it is a term.
    """

    nodes: frozenset[int]
    holders: frozenset[int]
    exits: Exits
    values: Settled = field(default_factory=dict)
    reason: str = ""
    rank: int = 0


def find_spares(network: LayerGraph, holders: Collection[int]) -> list[Spare]:
    """Return the parts that have weights, the smallest first.

    Args:
        network: The layers of the graph.
        holders: The nodes that have weights.
    """
    return list(_Finding(network).find(frozenset(holders)))


class _Finding:
    def __init__(self, network: LayerGraph) -> None:
        self._network, self._analysis = network, network.analysis
        self._before: list[int] = []  # for each node a mask of those that it depends on, itself included
        for number, node in enumerate(self._analysis.nodes):
            mask = 1 << number
            for tensor in node.inputs:
                age = network.age(tensor)
                mask |= self._before[age] if 0 <= age < number else 0
            self._before.append(mask)

    def find(self, holders: frozenset[int]) -> Iterator[Spare]:
        parts = {frozenset((use,)): self._part((use,)) for use in self._exits()}
        for _ in range(_ROUNDS):
            more = {exits: self._part(exits) for exits in self._joined(parts) if exits not in parts}
            if not more:
                break
            parts |= more
        for exits, nodes in sorted(parts.items(), key=lambda part: (len(part[1]), sorted(part[0]))):
            if not nodes.isdisjoint(holders):
                yield self._spare(exits, nodes, nodes & holders)

    def _exits(self) -> Iterator[Place]:
        """Yield the inputs of nodes beside which there is one that could go on alone."""
        sizes, told = self._analysis.sizes, self._network.told
        for number, node in enumerate(self._analysis.nodes):
            if node.op not in NEUTRAL or sizes.dtype(node.outputs[0].name) not in DIVISIBLE:
                continue
            for index in range(len(node.inputs)):
                if index in NEUTRAL[node.op][1] and node.inputs[index].name in told and self._beside((number, index)):
                    yield number, index

    def _beside(self, use: Place) -> list[Tensor]:
        """Return the other operands of a node that are as large as its result."""
        node, network = self._analysis.nodes[use[0]], self._network
        shape = network.shape(node.outputs[0])
        return [tensor for index, tensor in enumerate(node.inputs)
                if index != use[1] and tensor.name in network.told and network.shape(tensor) == shape]  # fmt: skip

    def _part(self, exits: Iterable[Place]) -> frozenset[int]:
        """Return the nodes that only exits read, by way of others."""
        exits, nodes = frozenset(exits), set[int]()
        pending = [-self._network.age(self._analysis.nodes[number].inputs[index]) for number, index in exits]
        heapq.heapify(pending)
        while pending and len(nodes) < LONGEST_BLOCK:
            number = -heapq.heappop(pending)  # the newest first, so that all readers of a node have been seen
            if number < 0 or number in nodes or not self._is_alone(self._analysis.nodes[number], nodes, exits):
                continue
            nodes.add(number)
            for tensor in self._analysis.nodes[number].inputs:
                heapq.heappush(pending, -self._network.age(tensor))
        return frozenset(nodes)

    def _is_alone(self, node: Node, nodes: Collection[int], exits: Exits) -> bool:
        """Tell whether nobody else reads what a node makes; who asks for its shape reads nothing."""
        if node.op in traits.SHAPES or any(tensor.name in self._analysis.kept for tensor in node.outputs):
            return False
        uses = ((self._network.number(reader), index) for reader, index in _readings(node))
        return all(use[0] in nodes or use in exits for use in uses)

    def _joined(self, parts: Mapping[Exits, frozenset[int]]) -> set[Exits]:
        """Return the exits of parts that together are all that reads a tensor."""
        owner: dict[int, Exits] = {}
        for exits, nodes in sorted(parts.items(), key=lambda part: -len(part[1])):
            owner.update(dict.fromkeys(nodes, exits))
        found: set[Exits] = set()
        for node in self._analysis.nodes:
            alone, owned = set[Exits | None](), set[Exits | None]()  # a reader may be an exit, or in a larger part
            for reader, index in _readings(node):
                own, whole = (
                    frozenset(((self._network.number(reader), index),)),
                    owner.get(self._network.number(reader)),
                )
                alone.add(own if own in parts else whole)
                owned.add(whole or (own if own in parts else None))
            for owners in (alone, owned):
                exits = frozenset().union(*(own or () for own in owners))
                if len(owners) > 1 and None not in owners and self._go_on(exits):
                    found.add(exits)
        return found

    def _go_on(self, exits: Exits) -> bool:
        """Tell whether something goes on at each of some exits that is no part of what ends there."""
        if len({number for number, _ in exits}) < len(exits):
            return False
        nodes = self._part(exits)
        return all(any(self._network.age(tensor) not in nodes for tensor in self._beside(use)) for use in exits)

    def _spare(self, exits: Exits, nodes: frozenset[int], holders: frozenset[int]) -> Spare:
        wanted = {use: NEUTRAL[self._analysis.nodes[use[0]].op][0] for use in sorted(exits)}
        is_branch = any(value == 0 and self._is_branch(use, nodes) for use, value in wanted.items())
        rank = 0 if is_branch else 1 if 1 in wanted.values() else 2
        try:
            return Spare(nodes, holders, exits, Settling(self._network, nodes).settle(wanted), rank=rank)
        except RefusedError as error:
            return Spare(nodes, holders, exits, reason=str(error), rank=rank)

    def _is_branch(self, use: Place, nodes: Collection[int]) -> bool:
        """Tell whether a part is computed from what goes on beside it."""
        read = [tensor for number in nodes for tensor in self._analysis.nodes[number].inputs
                if self._network.age(tensor) not in nodes and tensor.name in self._network.told]  # fmt: skip
        for beside in self._beside(use):
            age = self._network.age(beside)
            if any(t is beside or (age >= 0 <= (own := self._network.age(t)) and self._before[own] >> age & 1)
                   for t in read):  # fmt: skip
                return True
        return False


def _readings(node: Node) -> Iterator[tuple[Node, int]]:
    """Yield the inputs of nodes that read a result of a node, but for those that only ask for its shape."""
    for tensor in node.outputs:
        for reader in tensor.outputs:
            if reader.op not in traits.SHAPES:
                yield from ((reader, index) for index, operand in enumerate(reader.inputs) if operand is tensor)
