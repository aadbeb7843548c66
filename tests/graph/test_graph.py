"""Edits of a graph: weights that are computed later, new nodes, new constants, and names."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from features import FEATURES
from onnx import helper, numpy_helper
from small import FEEDS, annotate, arrays, build, finish_and_run, info, mlp, rng, tensor

from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model import model as model_module
from onnx_net2net.model.model import load


@pytest.mark.parametrize("limit", [10**9, 0], ids=["single file", "external"])
def test_widening_by_lazy_weights(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", limit)
    proto = mlp()
    proto.graph.value_info.append(info("h", ("batch", 64)))
    annotate(proto.graph.initializer[0])
    teacher = load(proto)
    draft = Graph(teacher)
    up, _, down = draft.graph.nodes
    read_up, read_down = draft.reader(up.inputs[1]), draft.reader(down.inputs[1])
    copies = np.r_[np.arange(64), np.arange(32)]
    counts = np.bincount(copies).astype(np.float32)
    draft.replace(up.inputs[1], (8, 96), lambda: read_up().take(copies, 1))
    draft.replace(down.inputs[1], (96, 8), lambda: (read_down() / counts[:, None]).take(copies, 0))
    student, result = finish_and_run(draft, tmp_path, FEEDS, metadata={"grown": "64 -> 96"}, stale={"h"})
    weights = arrays(proto)
    expected = np.maximum(FEEDS["x"] @ weights["w"], 0) @ weights["v"]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    saved = onnx.load(tmp_path / "student.onnx")
    assert {entry.key: entry.value for entry in saved.metadata_props} == {"grown": "64 -> 96"}
    assert not saved.graph.value_info
    assert saved.graph.initializer[0].metadata_props == proto.graph.initializer[0].metadata_props
    assert teacher.parameters == 1024
    assert student.parameters == 1536
    assert draft.read(up.inputs[1]).shape == (8, 96)


def test_growing_twice_chains_the_computations(tmp_path):
    proto = mlp()
    model = load(proto)
    for factor in (2, 4):
        draft = Graph(model)
        constant = draft.graph.nodes[0].inputs[1]
        read = draft.reader(constant)
        draft.replace(constant, (8, 64), lambda read=read, factor=factor: read() * factor)
        model = draft.finish()
    model.save(tmp_path / "m.onnx")
    assert len(model.weights) == 2
    assert (arrays(onnx.load(tmp_path / "m.onnx"))["w"] == 8 * arrays(proto)["w"]).all()


def test_inserting_a_node(tmp_path):
    """The new node may be appended; finish sorts, and everything else stays in its order."""
    proto = mlp()
    draft = Graph(load(proto))
    node = draft.graph.nodes[2]
    scale = draft.constant("scale", np.full(64, 2, np.float32))
    scaled = draft.graph.layer(name=draft.unique_name("mul"), op="Mul", inputs=[node.inputs[0], scale], outputs=["s"])
    node.inputs[0] = scaled[0]
    finished, result = finish_and_run(draft, tmp_path, FEEDS)
    np.testing.assert_allclose(result, 2 * reference(proto), rtol=1e-5, atol=1e-5)
    assert [node.name for node in finished.proto.graph.node] == ["up", "relu", "mul", "down"]
    assert [item.name for item in finished.proto.graph.initializer] == ["w", "v", "scale"]


def reference(proto):
    weights = arrays(proto)
    return np.maximum(FEEDS["x"] @ weights["w"], 0) @ weights["v"]


def test_stale_types_are_dropped_everywhere():
    proto = FEATURES["bodies_and_outer_weights"]()
    proto.graph.node[0].attribute[1].g.value_info.append(info("m"))
    proto.graph.value_info.append(info("w", (300,)))
    draft = Graph(load(proto))
    assert len(draft.finish(stale={"m"}).proto.graph.value_info) == 1
    for stale in ({"m"}, "all"):
        assert not draft.finish(stale=stale).proto.graph.node[0].attribute[1].g.value_info
    assert not draft.finish(stale="all").proto.graph.value_info


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.int64, np.bool_, np.complex64, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fnuz],
)
@pytest.mark.parametrize("size", [3, 3000])
def test_constants_of_any_type(dtype, size):
    values = np.arange(size).astype(np.int8).astype(dtype)
    draft = Graph(load(build()))
    constant = draft.constant("c", values)
    assert (draft.read(constant) == values).all()
    draft.graph.outputs.append(constant)
    finished = draft.finish()
    again = Graph(finished)
    output = again.graph.outputs[1]
    assert again.read(output).dtype == dtype
    assert (again.read(output) == values).all()
    assert bool(finished.weights) == (finished.tensor(finished.proto.graph.initializer[0]).nbytes > 1024)


def test_reading_inline_stub_attribute_and_own_values():
    weight = rng.normal(size=300).astype(np.float32)
    constant = helper.make_node("Constant", [], ["c"], value=tensor("", weight))
    proto = build([constant, helper.make_node("Add", ["c", "x"], ["y"])], initializers=[])
    draft = Graph(load(proto))
    assert (draft.read(draft.graph.nodes[0].attrs["value"]) == weight).all()
    draft.replace(draft.graph.nodes[0].attrs["value"], (3,), lambda: np.ones(3, np.float32))
    finished = draft.finish()
    assert numpy_helper.to_array(finished.proto.graph.node[0].attribute[0].t).tolist() == [1, 1, 1]
    own = draft.constant("own", np.zeros(2))
    own.values = np.ones(2)
    assert draft.read(own).tolist() == [1, 1]


def test_copied_constants_keep_their_names():
    draft = Graph(load(mlp()))
    duplicate = draft.graph.nodes[0].inputs[1].copy()
    duplicate.name = draft.unique_name("w")
    draft.graph.outputs.append(duplicate)
    assert [item.name for item in draft.finish().proto.graph.initializer] == ["w", "v", "w_1"]


def test_sparse_constants_cannot_be_read():
    draft = Graph(load(FEATURES["sparse_initializer"]()))
    with pytest.raises(BadInputError, match="tensor s is sparse"):
        draft.read(draft.graph.nodes[0].inputs[1])


def test_unique_names():
    draft = Graph(load(FEATURES["bodies_and_outer_weights"]()))
    assert [draft.unique_name(name) for name in ("inner", "m", "new", "new")] == ["inner_1", "m_1", "new", "new_1"]


def test_broken_edits_are_found():
    draft = Graph(load(mlp()))
    del draft.graph.nodes[0]
    with pytest.raises(BadInputError, match="node relu needs tensor h, which nothing provides"):
        draft.finish()


def test_large_plain_values_become_stubs():
    draft = Graph(load(mlp()))
    draft.graph.nodes[0].inputs[1].values = np.ones((8, 64), np.float32)
    finished = draft.finish()
    assert len(finished.weights) == 2
    assert finished.proto.ByteSize() < 1000
