"""Walk ONNX's protobuf messages: bodies inside nodes, tensors wherever they are, names, and the order of nodes."""

from __future__ import annotations

import graphlib
import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx

from onnx_net2net.errors import BadInputError
from onnx_net2net.rules import traits


def refill(repeated: Any, items: Iterable[Any]) -> None:
    """Replace the content of a repeated field by `items`, which may be some of what it holds."""
    items = list(items)
    del repeated[:]
    repeated.extend(items)


def unused(base: str, known: dict[str, int]) -> str:
    """Return `base`, or `base` with a number, such that it is not among the known names; now it is.

    Args:
        base: What the name is to be like.
        known: The names, each with the last number that was put behind it.
    """
    name = base
    while name in known:
        known[base] += 1
        name = f"{base}_{known[base]}"
    known[name] = 0
    return name


def by_name(items: Iterable[Any]) -> dict[str, Any]:
    """Return the items by their names."""
    return {item.name: item for item in items}


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """Return a whole number that a node has as an attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def constants_in(scope: Any) -> dict[str, onnx.TensorProto]:
    """Return the tensors of a graph or a function that are constants: initializers, and values of Constant nodes."""
    found = by_name(getattr(scope, "initializer", ()))
    for node in scope.node:
        if node.op_type in traits.CONSTANTS:
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def scopes(proto: onnx.ModelProto) -> Iterator[Any]:
    """Yield the main graph, the functions, and all bodies inside these (training graphs are left alone throughout)."""
    pending = deque([proto.graph, *proto.functions])
    while pending:
        scope = pending.popleft()
        yield scope
        pending.extend(body for node in scope.node for body in bodies(node))


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor, initializer or attribute, wherever it is."""
    for scope in scopes(proto):
        yield from getattr(scope, "initializer", ())
        yield from attribute_tensors(scope)


def attribute_tensors(scope: Any) -> Iterator[onnx.TensorProto]:
    """Yield the dense tensors in the attributes of the nodes of a graph or a function, not those in its bodies."""
    own = getattr(scope, "attribute_proto", ())
    for attribute in itertools.chain(own, *(node.attribute for node in scope.node)):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def value_names(values: Iterable[Any]) -> list[str]:
    """Return the names of inputs or outputs, which functions list as plain strings."""
    return [getattr(value, "name", value) for value in values]


def initializer_names(scope: Any) -> list[str]:
    """Return the names of the initializers, the sparse ones last."""
    dense = [tensor.name for tensor in getattr(scope, "initializer", ())]
    return dense + [sparse.values.name for sparse in getattr(scope, "sparse_initializer", ())]


def free_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have to be fed: IR version 3 lists the initializers among the inputs."""
    constants = set(initializer_names(graph))
    return [value for value in graph.input if value.name not in constants]


def captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that the bodies of nodes take from the enclosing graphs."""
    names: set[str] = set()
    for body in itertools.chain.from_iterable(map(bodies, nodes)):
        local = {*value_names(body.input), *initializer_names(body)}.union(*(inner.output for inner in body.node))
        used = captured(body.node).union(value_names(body.output), *(inner.input for inner in body.node))
        names |= used - local - {""}
    return names


def sorted_indices(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """Return the order in which the nodes can run that is closest to the given one.

    Raises:
        BadInputError: If there is none.
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    reads = ({*node.input, *captured([node])} for node in nodes)
    needs = {index: {producer[name] for name in names if name in producer} for index, names in enumerate(reads)}
    sorter = graphlib.TopologicalSorter(needs)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        names = ", ".join(nodes[index].name or nodes[index].op_type for index in error.args[1][:3])
        raise BadInputError(f"its graph has a cycle through {names}") from None
    order: list[int] = []
    ready: list[int] = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order
