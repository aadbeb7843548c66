"""A few nodes of a model, cut out and run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.run.session import LEVELS, Runner, provider_name


def run_region(
    proto: onnx.ModelProto,
    numbers: Sequence[int],
    start: tuple[str, int],
    end: tuple[str, int],
    constants: Mapping[str, Array],
    inputs: Sequence[Array],
) -> list[Array]:
    """Run nodes of a model alone, on each of some arrays.

    Args:
        proto: The model.
        numbers: The nodes, in order.
        start: Name and `TensorProto.DataType` of the tensor that the arrays take the place of.
        end: Name and type of the tensor that is returned.
        constants: The values of all other tensors that the nodes read, by name.
        inputs: The arrays, all of one shape.

    Raises:
        Exception: If onnxruntime cannot run them; its errors have no base of their own.
    """
    graph = helper.make_graph(
        [proto.graph.node[number] for number in numbers], "region",
        [helper.make_tensor_value_info(*start, inputs[0].shape)], [helper.make_tensor_value_info(*end, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=proto.ir_version, opset_imports=list(proto.opset_import))
    run = Runner(model.SerializeToString(), LEVELS[0], provider=provider_name("cpu"))
    return [run({start[0]: array})[end[0]] for array in inputs]
