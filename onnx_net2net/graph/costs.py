"""What a network costs, as far as its graph tells: multiplications and activations of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper

from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.sizes import Sizes, bind_axes, infer_at, infer_sizes
from onnx_net2net.model.model import Model
from onnx_net2net.model.tensors import type_bits
from onnx_net2net.rules.work import WORK


@dataclass(frozen=True)
class Costs:
    """What one run of a network costs.

    Attributes:
        multiplications: Products that are summed (multiply-accumulates).
        activations: Bytes of all that nodes compute; a training keeps them for the backward pass.
        binding: The sizes of the dynamic axes that both hold for.
    """

    multiplications: int
    activations: int
    binding: Mapping[str, int]


def costs_of(model: Model, binding: Mapping[str, int] | None = None) -> Costs:
    """Count what one run costs; a body of a loop counts once, and what cannot be typed counts nothing.

    Args:
        model: The model.
        binding: Sizes of the dynamic axes. By default each is 1, or what shapes are inferred with where a product
            has no shape then (an image of one pixel, for example).
    """
    proto = open_bodies(model).model.proto
    nodes = proto.graph.node
    sizes = infer_at(proto, bind_axes(proto.graph, [1] * 64) if binding is None else binding)
    if binding is None and any(_products(node, sizes) is None for node in nodes):
        sizes = infer_sizes(proto)
    return Costs(
        sum(_products(node, sizes) or 0 for node in nodes),
        sum(_bytes(name, sizes) for node in nodes for name in node.output if name not in sizes.constant),
        dict(sizes.binding),
    )


def _products(node: onnx.NodeProto, sizes: Sizes) -> int | None:
    """Return how many products a node sums, or None where a shape that tells it is not known."""
    work = WORK.get(node.op_type)
    if work is None:
        return 0
    inputs = [sizes.shape(name) if name else () for name in node.input]
    output = sizes.shape(node.output[0])
    if output is None or None in inputs or not prod(output):
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        return work([shape for shape in inputs if shape is not None], output, attributes)
    except (IndexError, KeyError):  # an operator of this name in a domain of somebody's own
        return None


def _bytes(name: str, sizes: Sizes) -> int:
    shape, dtype = sizes.shape(name), sizes.dtype(name)
    if shape is None or dtype in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 0
    return prod(shape) * type_bits(dtype) // 8
