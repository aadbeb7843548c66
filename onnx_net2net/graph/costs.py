"""What a network costs, as far as its graph tells: multiplications of one run.

`search.cost` counts more, all sums of products that rules state (Einsum too), where an analysis is there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnx_net2net.graph.sizes import Sizes, bind, infer_at
from onnx_net2net.model.model import Model
from onnx_net2net.rules.work import WORK


def multiplications(model: Model, binding: Mapping[str, int] | None = None) -> tuple[int, dict[str, int]]:
    """Count the products that one run sums.

    Args:
        model: The model. What bodies of control flow do is not counted.
        binding: Sizes of the dynamic axes; by default 1 each.

    Returns:
        The number, and the sizes of the dynamic axes that it holds for. What cannot be typed counts nothing.
    """
    proto = model.proto
    sizes = infer_at(proto, bind(proto.graph, [1] * 64) if binding is None else binding)
    return sum(_products(node, sizes) for node in proto.graph.node), dict(sizes.binding)


def _products(node: onnx.NodeProto, sizes: Sizes) -> int:
    work = WORK.get(node.op_type)
    if work is None:
        return 0
    shapes = [sizes.shape(name) for name in (*node.input, node.output[0]) if name]
    *inputs, output = [shape for shape in shapes if shape is not None]
    return work(inputs, output) if len(inputs) + 1 == len(shapes) else 0
