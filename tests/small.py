"""Models of a few nodes, built as protos, written with external data, and run."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.tensors import clear_data

FLOAT = TensorProto.FLOAT
rng = np.random.default_rng(0)


def tensor(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def info(name, shape=(2, 3), dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def build(nodes=None, inputs=None, outputs=None, initializers=(), opset=18, ir_version=10, **kwargs):
    """A model; by default y = Relu(x)."""
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], outputs or [info("y")], list(initializers))
    kwargs.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, ir_version=ir_version, **kwargs)


def mlp(width=64, **kwargs):
    """X @ w -> Relu -> @ v, weights large enough to become stubs."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="down"),
    ]
    weights = [rng.normal(size=(8, width)), rng.normal(size=(width, 8))]
    initializers = [tensor(name, value.astype(np.float32)) for name, value in zip("wv", weights, strict=True)]
    return build(nodes, [info("x", ("batch", 8))], [info("y", ("batch", 8))], initializers, **kwargs)


def save_external(proto, folder, name="m.onnx", **kwargs):
    path = Path(folder) / name
    onnx.save(proto, path, save_as_external_data=True, location=f"{name}.data", size_threshold=100, **kwargs)
    return path


def run(path, feeds):
    return ort.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def normalised(proto, folder=None):
    """With all tensors' data in raw_data, so that models can be compared whatever their layout."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    if folder is not None:
        onnx.load_external_data_for_model(proto, os.fspath(folder))
    for item in all_tensors(proto):
        if item.data_type not in (TensorProto.STRING, TensorProto.UNDEFINED):
            content = ir.serde.TensorProtoTensor(item).tobytes()
            clear_data(item)
            item.raw_data = content
    return proto


def annotate(message, key="pkg.torch.name"):
    message.metadata_props.add(key=key, value="encoder.layer.0")


def finish_and_run(draft, tmp_path, feeds, **kwargs):
    finished = draft.finish(**kwargs)
    finished.save(tmp_path / "student.onnx")
    onnx.checker.check_model(tmp_path / "student.onnx")
    return finished, run(tmp_path / "student.onnx", feeds)[0]


FEEDS = {"x": rng.normal(size=(3, 8)).astype(np.float32)}


def arrays(proto):
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
