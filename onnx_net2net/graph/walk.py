"""Walk a graph: from a tensor to the tensor that it is a copy of, or to the nodes that read it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from onnx_net2net.graph.graph import Constant, Graph, Node, Tensor
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits


def label_of(node: Node) -> str:
    """Return how messages call a node."""
    return f"{node.op} {node.name or node.outputs[0].name!r}"


def number_in(graph: Graph, tensor: Tensor) -> float | None:
    """Return the one number that a constant holds; None where a tensor is none, or has more."""
    constant = constant_of(tensor)
    if constant is None or constant.shape is None or math.prod(constant.shape) != 1:
        return None
    return float(graph.reader(constant)().reshape(-1)[0])


def constant_of(tensor: Tensor) -> Constant | None:
    """Return the constant that a tensor is: an initializer, a Constant node's value, or an Identity of one."""
    while not isinstance(tensor, Constant):
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None or producer.domain not in DEFAULT_DOMAIN:
            return None
        if producer.op in traits.CONSTANTS:
            value = producer.attrs.get("value")
            return value if isinstance(value, Constant) else None
        if producer.op not in traits.RENAMES:
            return None
        tensor = producer.inputs[0]
    return tensor


def is_alias(node: Node) -> bool:
    """Tell whether a node only names a constant, whose readers then count as readers of the constant itself."""
    return node.op in traits.CONSTANTS or (node.op in traits.RENAMES and constant_of(node.inputs[0]) is not None)


def is_fixed_norm(node: Node, tensor: Tensor) -> bool:
    """Tell whether a node normalises a tensor by constants alone, as a BatchNormalization does in inference."""
    return node.op in traits.FIXED_NORMS and node.inputs[0] is tensor and len(node.outputs) == 1


def made_by(tensor: Tensor, kinds: Collection[str]) -> Node | None:
    """Return the node that makes a tensor if it has one of these operators, else None."""
    return tensor.inputs[0] if tensor.inputs and tensor.inputs[0].op in kinds else None


def makers(tensor: Tensor, kinds: Collection[str]) -> Iterator[Node]:
    """Yield the nodes, all of these operators, that make a tensor one from the first input of the other, last first."""
    while tensor.inputs and tensor.inputs[0].op in kinds:
        yield tensor.inputs[0]
        tensor = tensor.inputs[0].inputs[0]


def source(tensor: Tensor, kinds: Collection[str]) -> Tensor:
    """Return the tensor that nodes of these operators make a tensor from, by their first inputs."""
    for node in makers(tensor, kinds):
        tensor = node.inputs[0]
    return tensor


def result(tensor: Tensor, kinds: Collection[str]) -> Tensor:
    """Return what nodes of these operators make of a tensor, as long as each is the only reader."""
    while len(tensor.outputs) == 1 and tensor.outputs[0].op in kinds:
        tensor = tensor.outputs[0].outputs[0]
    return tensor
