"""What onnx-graphsurgeon drops is put back: an unchanged graph is the model that it came from."""

import numpy as np
import onnx
import pytest
from features import FEATURES, with_attribute
from onnx import helper
from small import FEEDS, FLOAT, annotate, build, finish_and_run, info, mlp, normalised, run, tensor

from onnx_net2net.graph.graph import Graph
from onnx_net2net.model import model as model_module, tensors
from onnx_net2net.model.model import load


@pytest.mark.parametrize("inline", [1024, 0], ids=["inline", "stubs"])
@pytest.mark.parametrize("name", FEATURES)
def test_round_trip_loses_nothing(name, inline, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "INLINE_BYTES", inline)
    original = FEATURES[name]()
    before = original.SerializeToString()
    loaded = load(original)
    finished = Graph(loaded).finish()
    assert str(finished.proto) == str(loaded.proto)  # unlike ==, knows that NaN is NaN
    finished.save(tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    assert str(normalised(saved)) == str(normalised(original))
    assert original.SerializeToString() == before  # what was loaded is left alone
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("name", FEATURES)
def test_round_trip_with_external_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "INLINE_BYTES", 64)
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", 0)
    original = FEATURES[name]()
    load(original).save(tmp_path / "m.onnx")
    again = Graph(load(tmp_path / "m.onnx")).finish()
    again.save(tmp_path / "n.onnx")
    saved = onnx.load(tmp_path / "n.onnx", load_external_data=False)
    assert str(normalised(saved, tmp_path)) == str(normalised(original))


def test_changing_an_attribute_keeps_the_rest_of_the_node(tmp_path):
    elu = helper.make_node("Elu", ["x"], ["y"], name="elu", doc_string="doc", alpha=1.0)
    annotate(elu)
    draft = Graph(load(build([elu])))
    draft.graph.nodes[0].attrs["alpha"] = 0.5
    finished, result = finish_and_run(draft, tmp_path, {"x": np.full((2, 3), -1, np.float32)})
    np.testing.assert_allclose(result, 0.5 * np.expm1(-1) * np.ones((2, 3)), rtol=1e-6)
    node = finished.proto.graph.node[0]
    assert (node.doc_string, node.name, node.metadata_props[0].value) == ("doc", "elu", "encoder.layer.0")
    assert node.attribute[0].f == 0.5


def test_adding_and_removing_attributes():
    proto = with_attribute(keep=1, drop=2, odd=b"\xff", t=tensor("", np.ones(2, np.float32)))
    draft = Graph(load(proto))
    attributes = draft.graph.nodes[0].attrs
    assert set(attributes) == {"keep", "drop", "t"}
    del attributes["drop"]
    attributes["new"] = [1, 2]
    finished = draft.finish().proto.graph.node[0]
    assert [attribute.name for attribute in finished.attribute] == ["keep", "odd", "t", "new"]


def test_nodes_of_new_domains_are_imported(tmp_path):
    draft = Graph(load(build()))
    relu_node = draft.graph.nodes[0]
    gelu = draft.graph.layer(op="Gelu", domain="com.microsoft", inputs=[relu_node.inputs[0]], outputs=["gelu"])
    relu_node.inputs[0] = gelu[0]
    finished = draft.finish()
    assert [(opset.domain, opset.version) for opset in finished.proto.opset_import] == [("", 18), ("com.microsoft", 1)]
    finished.save(tmp_path / "m.onnx")
    assert run(tmp_path / "m.onnx", {"x": np.ones((2, 3), np.float32)})[0].shape == (2, 3)


def test_unused_constants_go_when_an_edit_made_them_so():
    proto = mlp()
    proto.graph.initializer.append(tensor("never used", np.ones(3)))
    draft = Graph(load(proto))
    old = draft.graph.nodes[0].inputs[1]
    new = draft.lazy_constant("w", FLOAT, (8, 64), lambda: np.ones((8, 64), np.float32), like=old)
    draft.graph.nodes[0].inputs[1] = new
    finished = draft.finish()
    assert [item.name for item in finished.proto.graph.initializer] == ["v", "never used", "w_1"]
    assert len(finished.weights) == 2


def test_captured_tensors_are_known_and_kept():
    proto = FEATURES["bodies_and_outer_weights"]()
    proto.graph.node.append(helper.make_node("Add", ["y", "w"], ["z"]))
    draft = Graph(load(proto))
    branch, add = draft.graph.nodes
    assert draft.captured(branch) == {"x", "w"}
    assert draft.captured(add) == frozenset()
    add.inputs[1] = draft.constant("other", np.ones(300, np.float32))
    assert [item.name for item in draft.finish().proto.graph.initializer] == ["w", "other"]


def test_ir_3_new_and_changed_initializers_are_inputs_too(tmp_path):
    proto = mlp(ir_version=3, opset=7)
    proto.graph.input.extend([info("w", (8, 64)), info("v", (64, 8))])
    draft = Graph(load(proto))
    up, _, down = draft.graph.nodes
    draft.replace(up.inputs[1], (8, 2), lambda: np.ones((8, 2), np.float32))
    down.inputs[1] = draft.constant("new", np.ones((2, 8), np.float32))
    finished, result = finish_and_run(draft, tmp_path, FEEDS)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in finished.proto.graph.input}
    assert shapes == {"x": [0, 8], "w": [8, 2], "new": [2, 8]}
    assert finished.proto.ir_version == 3
    np.testing.assert_allclose(result, 2 * np.maximum(FEEDS["x"].sum(1, keepdims=True), 0).repeat(8, 1), rtol=1e-4)
    # Small enough to be seen by whoever analyses the student.
    assert not any(item.external_data for item in finished.proto.graph.initializer)


def test_changing_the_shape_of_an_output():
    proto = mlp()
    proto.graph.output[0].doc_string = "doc"
    draft = Graph(load(proto))
    draft.graph.outputs[0].shape = ["batch", 12]
    output = draft.finish().proto.graph.output[0]
    assert output.type.tensor_type.shape.dim[1].dim_value == 12
    assert output.doc_string == "doc"
