"""A file in parts has the bytes that protobuf would write."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_net2net.model.model import load
from onnx_net2net.model.wire import parts_of, size_of


def weight(name, *shape):
    return numpy_helper.from_array(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name)


@pytest.mark.parametrize("width", [1, 300, 70_000])
def test_parts_are_what_protobuf_writes(width):
    nodes = [helper.make_node("Add", ["x", "small"], ["h"]), helper.make_node("Mul", ["h", "large"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("x", "y")]
    large = weight("large", 1, width)
    large.doc_string = "behind the data"
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight("small", 1, 1), large, weight("unused", 900)])
    graph.doc_string = "behind the weights"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], doc_string="m", ir_version=8)
    helper.set_model_props(proto, {"a": "b"})
    model = load(proto)
    parts = parts_of(model.proto, model.weights)
    found = b"".join(part if isinstance(part, bytes) else model.weights[part].tobytes() for part in parts)
    assert sum(size_of(part, model.weights) for part in parts) == len(found)
    assert found == proto.SerializeToString()
    assert sum(isinstance(part, int) for part in parts) == 1 + (width >= 300)


def test_a_weight_in_a_body_is_written_there(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 18]> g (bool c, float[n, 300] x) => (float[n, 300] y) {
        y = If(c) <then_branch = t () => (float[n, 300] a) { a = Identity(x) },
                   else_branch = e () => (float[n, 300] b) { b = Neg(x) }> }"""
    proto = parser.parse_model(text)
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(weight("w", 1, 300))
    body.node[0].CopyFrom(helper.make_node("Mul", ["x", "w"], ["a"]))
    load(proto).save(tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == proto
