"""Edits of a graph that keep everything else as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from onnx_net2net.algebra.floats import Array
from onnx_net2net.graph.graph import Constant, Graph, Node, Tensor, Variable


@dataclass(frozen=True)
class Version:
    """What a constant becomes for some of its readers.

    Attributes:
        readers: The nodes that read it, each with the number of the input.
        shape: Its new shape.
        compute: Computes its new values; None if it keeps those that it has.
    """

    readers: Sequence[tuple[Node, int]]
    shape: Sequence[int] = ()
    compute: Callable[[], Array] | None = None


def assign(graph: Graph, constant: Constant, versions: Sequence[Version], name: str | None = None) -> list[str]:
    """Give a constant the values that its readers need; readers of one version share one tensor.

    The constant itself becomes the first version, or stays as it is if one keeps its values; the others get constants
    of their own, which are called `name` (by default like the constant), made unique.

    Returns:
        The name of each version.
    """
    is_taken = any(version.compute is None for version in versions)
    names = []
    for version in versions:
        own = constant
        if version.compute is not None and is_taken:
            kind = graph.type_of(constant)
            own = graph.lazy_constant(name or constant.name, kind, version.shape, version.compute, like=constant)
            for node, index in version.readers:
                node.inputs[index] = own
        elif version.compute is not None:
            graph.replace(constant, version.shape, version.compute)
            is_taken = True
        names.append(str(own.name))
    return names


def add_node(
    graph: Graph, kind: str, name: str, inputs: Sequence[Tensor], result: Variable | str | None = None, **attrs: object
) -> Variable:
    """Add a node.

    Args:
        graph: The graph.
        kind: The operator.
        name: The name of the node, made unique.
        inputs: What it reads.
        result: What it makes, or the name of that, made unique; by default it is called like the node.
        attrs: Its attributes.

    Returns:
        What it makes.
    """
    name = graph.unique_name(name)
    if not isinstance(result, Variable):
        result = Variable(graph.unique_name(result or f"{name}_out"))
    graph.graph.nodes.append(Node(kind, name, dict(attrs), list(inputs), [result]))
    return result


def drop_unread(graph: Graph, kept: Collection[str]) -> None:
    """Remove the nodes that nobody reads, and whom only these read.

    Args:
        graph: The graph.
        kept: The tensors that are read by more than nodes: outputs, and what bodies capture.
    """

    def is_unread(node: Node) -> bool:
        return not any(tensor.outputs or tensor.name in kept for tensor in node.outputs)

    unread = [node for node in graph.graph.nodes if is_unread(node)]
    while unread:
        node = unread.pop()
        producers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
        node.inputs.clear()
        node.outputs.clear()
        unread += filter(is_unread, producers)
    graph.graph.nodes[:] = [node for node in graph.graph.nodes if node.outputs]
