"""Branches of a graph that end in one sum, as those of experts do that are modules of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node
from onnx_net2net.graph.walk import label_of
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class Branch:
    """What depends on one start and on no other one, and what only serves that.

    Attributes:
        nodes: Its nodes, in order.
        join: The node that adds its result to those of other branches.
        reads: The inputs of that node that the branch makes.
    """

    nodes: tuple[Node, ...]
    join: Node
    reads: tuple[int, ...]


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes such that each comes behind those that it reads, and else in the order in which they are."""
    own = {id(node) for node in nodes}
    missing = {id(node): len({id(m) for t in node.inputs for m in t.inputs if id(m) in own}) for node in nodes}
    ready = [node for node in reversed(nodes) if not missing[id(node)]]
    result: list[Node] = []
    while ready:
        node = ready.pop()
        result.append(node)
        readers = {id(reader): reader for tensor in node.outputs for reader in tensor.outputs if id(reader) in own}
        for reader in readers.values():
            missing[id(reader)] -= 1
            if not missing[id(reader)]:
                ready.append(reader)
    return result


def find_branches(nodes: Sequence[Node], starts: Sequence[Node], kept: Collection[str]) -> tuple[Node, list[Branch]]:
    """Return the node that makes the sum of all branches, and the branches, one for each start.

    Args:
        nodes: The nodes of the graph, each behind those that it reads.
        starts: Where the branches begin.
        kept: The tensors that are read by more than nodes.

    Raises:
        RefusedError: If the branches do not end in one sum; says at which node.
    """
    measured = _measured(nodes, kept)
    marks, last = _marked(nodes, starts, measured)
    mixed = [node for node in nodes[: last + 1] if marks.get(id(node), 0).bit_count() > 1]
    for node in mixed:
        adds = node.op in traits.SUMS or (node.op in traits.SCATTERS and node.attrs.get("reduction") == "add")
        if not adds and node.op not in traits.COPIES | traits.CASTS:
            raise RefusedError(f"{label_of(node)} combines the results of experts otherwise than by a sum")
    owner = {key: mark for key, mark in marks.items() if mark.bit_count() == 1}
    for node in reversed(nodes[:last]):
        if id(node) not in marks and node.op not in traits.CONSTANTS:
            owners = {owner.get(id(reader), 0) for tensor in node.outputs for reader in tensor.outputs}
            shown = any(tensor.name in kept for tensor in node.outputs)
            if len(owners) == 1 and not shown and (mark := owners.pop()):
                owner[id(node)] = mark
    inside: dict[int, list[Node]] = {}
    for node in nodes[: last + 1]:
        if id(node) in owner:
            inside.setdefault(owner[id(node)], []).append(node)
    return nodes[last], [_branch(inside[1 << place], owner, kept, measured) for place in range(len(starts))]


def _measured(nodes: Sequence[Node], kept: Collection[str]) -> set[int]:
    """Return the nodes, by id, that tell a shape or make what only that is asked of."""
    found: set[int] = set()
    for node in reversed(nodes):
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        shown = any(tensor.name in kept for tensor in node.outputs)
        if node.op in traits.SHAPES or (readers and not shown and all(id(reader) in found for reader in readers)):
            found.add(id(node))
    return found


def _marked(nodes: Sequence[Node], starts: Sequence[Node], measured: Collection[int]) -> tuple[dict[int, int], int]:
    """Return for each node on which starts it depends, as bits, and the place of the first that depends on all."""
    marks = {id(node): 1 << place for place, node in enumerate(starts)}
    whole = (1 << len(starts)) - 1
    for place, node in enumerate(nodes):
        mark = marks.get(id(node), 0)
        for tensor in node.inputs if id(node) not in measured else ():
            for maker in tensor.inputs:
                mark |= marks.get(id(maker), 0)
        if mark:
            marks[id(node)] = mark
        if mark == whole:
            return marks, place
    raise RefusedError("the results of its experts are not combined by one node")


def _branch(nodes: list[Node], owner: dict[int, int], kept: Collection[str], measured: Collection[int]) -> Branch:
    """Return a branch; one that is read by more than the sum is refused."""
    mark = owner[id(nodes[0])]
    joins: dict[int, Node] = {}
    for node in nodes:
        for tensor in node.outputs:
            if tensor.name in kept:
                raise RefusedError(f"{label_of(node)} belongs to one expert, and more than the sum reads its result")
            outside = [reader for reader in tensor.outputs if owner.get(id(reader)) != mark]
            joins.update((id(reader), reader) for reader in outside if id(reader) not in measured)
    if len(joins) != 1:
        raise RefusedError(f"{label_of(nodes[-1])} belongs to one expert, and more than the sum reads its result")
    (join,) = joins.values()
    made = {id(tensor) for node in nodes for tensor in node.outputs}
    return Branch(tuple(nodes), join, tuple(k for k, tensor in enumerate(join.inputs) if id(tensor) in made))
