"""Edits of a graph that keep everything else as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

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


class Writer:
    """Writes nodes into a graph, each as a call: `op.Gather(table, places, axis=0)` adds one and returns what it makes.

    A node is called like its operator, behind a prefix.
    """

    def __init__(self, graph: Graph, prefix: str) -> None:
        """Take the graph, and what the names of all nodes begin with."""
        self._graph, self._prefix = graph, prefix

    def __getattr__(self, kind: str) -> Callable[..., Variable]:
        if not kind[0].isupper():
            raise AttributeError(kind)
        return partial(self.add, kind)

    def add(
        self, kind: str, *inputs: Tensor, name: str | None = None, domain: str | None = None,
        result: Variable | Sequence[Variable] | None = None, **attrs: object,
    ) -> Variable:  # fmt: skip
        """Add a node of an operator that only its caller knows.

        Args:
            kind: The operator.
            inputs: What the node reads.
            name: What it is called behind the prefix, in place of the operator; the whole is made unique.
            domain: The operator's domain.
            result: What it makes; by default a new tensor that is called like the node.
            attrs: Its attributes.

        Returns:
            What it makes, the first of that if it is several tensors.
        """
        label = self._graph.unique_name(f"{self._prefix}{kind if name is None else name}")
        result = result or Variable(self._graph.unique_name(f"{label}_out"))
        results = [result] if isinstance(result, Variable) else list(result)
        self._graph.graph.nodes.append(Node(kind, label, dict(attrs), list(inputs), results, domain=domain))
        return results[0]


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
