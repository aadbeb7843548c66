"""Experts that are separate modules: a node compares the indices that a router chose with the number of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.branches import find_branches, in_order
from onnx_net2net.graph.graph import Place
from onnx_net2net.graph.walk import constant_of


@dataclass(frozen=True)
class Modules:
    """The experts of one router.

    Attributes:
        axis: The axis that the router chooses along.
        numbers: For each expert, in order, the input of a node that is its number.
    """

    axis: Axis
    numbers: tuple[Place, ...]


def selected(analysis: Analysis, number: int) -> tuple[int, int] | None:
    """Return which input of a node is the number of one expert, and that number; None for other nodes."""
    node = analysis.nodes[number]
    if node.op != "Equal":
        return None
    for index, tensor in enumerate(node.inputs):
        constant = constant_of(tensor)
        if constant is not None and analysis.places.get(node.inputs[1 - index].name) is not None:
            values = analysis.graph.read(constant).reshape(-1)
            return (index, int(values[0])) if len(values) == 1 else None
    return None


def find_modules(analysis: Analysis, grown: Collection[Dim]) -> tuple[Modules, ...]:
    """Return the experts, of dims that get copies, that are modules of their own.

    Raises:
        RefusedError: If copies of them could not be added to what they make; says which node and why.
    """
    found: dict[frozenset[Dim], tuple[Axis, dict[int, Place]]] = {}
    for number in range(len(analysis.nodes)):
        chosen = selected(analysis, number)
        if chosen is None:
            continue
        index, expert = chosen
        axis = analysis.places[analysis.nodes[number].inputs[1 - index].name]
        dims = frozenset(leaf_set(axis))
        if dims & set(grown):
            known = found.setdefault(dims, (axis, {}))[1]
            if expert in known:
                raise RefusedError(f"experts cannot get copies: expert {expert} is asked for twice")
            known[expert] = number, index
    result = []
    for axis, numbers in found.values():
        if sorted(numbers) != list(range(axis.size)):
            raise RefusedError("experts cannot get copies: some have a module of their own, others have none")
        result.append(Modules(axis, tuple(numbers[expert] for expert in range(axis.size))))
    nodes = in_order(analysis.nodes) if result else []
    for modules in result:
        try:
            find_branches(nodes, [analysis.nodes[number] for number, _ in modules.numbers], analysis.kept)
        except RefusedError as error:
            raise RefusedError(f"experts cannot get copies: {error}") from error
    return tuple(result)
