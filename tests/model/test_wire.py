"""A file in parts has the bytes that protobuf would write."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_net2net import verify, widen
from onnx_net2net.errors import BadInputError
from onnx_net2net.model import wire
from onnx_net2net.model.model import load
from onnx_net2net.model.wire import serialized, size_of, without_data

MLP_FILE = Path(__file__).parents[2] / "models" / "digits_mlp.onnx"


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
    parts = serialized(model.proto, model.weights)
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


@pytest.fixture
def is_large(monkeypatch):
    monkeypatch.setattr(wire, "_LARGE", 0)


def large_file(tmp_path, **changes):
    large = weight("large", 1, 70_000)
    for name, value in changes.items():
        setattr(large, name, value)
    node = helper.make_node("Add", ["x", "large"], ["y"], name="n")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 70_000]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight("w", 3), large, weight("v", 9)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return proto, tmp_path / "m.onnx"


@pytest.mark.parametrize("changes", [{}, {"data_location": TensorProto.DEFAULT}, {"doc_string": "d"}], ids=str)
def test_the_weights_of_a_large_file_stay_there(changes, is_large, tmp_path):
    proto, path = large_file(tmp_path, **changes)
    bare = without_data(path)
    assert bare.ByteSize() < 1000
    onnx.external_data_helper.load_external_data_for_model(bare, str(tmp_path))
    assert [numpy_helper.to_array(t).tolist() for t in bare.graph.initializer] == [
        numpy_helper.to_array(t).tolist() for t in proto.graph.initializer
    ]
    model = load(path)
    assert (model.external, model.sources) == (False, (path,))
    model.save(tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")
    assert again == proto
    student = widen(MLP_FILE, factor=2).student
    student.save(tmp_path / "student.onnx")
    assert verify(MLP_FILE, tmp_path / "student.onnx").equivalent


def test_a_large_file_must_not_change(is_large, tmp_path):
    _, path = large_file(tmp_path)
    model = load(path)
    with pytest.raises(BadInputError, match="the model reads its weights from it"):
        model.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="changed while it was read"):
        model.save(tmp_path / "other.onnx")


@pytest.mark.parametrize("length", [1, 100, 200_000])
def test_what_protobuf_would_not_take_it_judges(length, is_large, tmp_path):
    _, path = large_file(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert without_data(path) is None
    with pytest.raises(BadInputError, match="is no ONNX model, or a truncated one"):
        load(path)


def test_small_files_are_read(tmp_path):
    _, path = large_file(tmp_path)
    assert without_data(path) is None
    assert not load(path).is_fresh


def test_files_of_tiny_fields_are_left_to_protobuf(is_large, monkeypatch, tmp_path):
    """To read them one by one would take minutes."""
    model, unknown = MLP_FILE.read_bytes(), b"\x78\0"  # field 15 is of no meaning
    (tmp_path / "m.onnx").write_bytes(model + unknown)
    assert without_data(tmp_path / "m.onnx") is not None
    (tmp_path / "m.onnx").write_bytes(model + b"\0\0")  # there is no field 0
    assert without_data(tmp_path / "m.onnx") is None
    monkeypatch.setattr(wire, "_MOST_FIELDS", 200)
    (tmp_path / "m.onnx").write_bytes(model + unknown * 300)
    assert without_data(tmp_path / "m.onnx") is None
    assert load(tmp_path / "m.onnx").to_bytes()
