"""The light models of onnx.backend.test: well-known networks whose weights are drawn here."""

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnx_net2net import load

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LARGE = ("bvlc_alexnet", "vgg19", "zfnet512")
NAMES = [path.stem.removeprefix("light_") for path in sorted(LIGHT.glob("*.onnx"))]


@functools.lru_cache(maxsize=1)
def model(name):
    """A light model with weights drawn at random in place of constant ones, and the logits as an output too."""
    proto = onnx.load(LIGHT / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scales = {
        node.input[index] for node in proto.graph.node if node.op_type == "BatchNormalization" for index in (1, 4)
    }
    scales |= {node.input[0] for node in proto.graph.node if node.op_type == "Unsqueeze"}
    values = dict(given)
    for node in proto.graph.node:
        if node.op_type == "ConstantOfShape":
            values[node.output[0]] = _random_weight(given[node.input[0]].tolist(), rng)
    values.update({name: _random_weight([values[name].size], rng) + np.float32(1) for name in scales})
    nodes = [node for node in proto.graph.node if node.op_type != "ConstantOfShape"]
    read = {name for node in nodes for name in node.input}
    inputs = [value for value in proto.graph.input if value.name not in given and value.name in read]
    tensors = [numpy_helper.from_array(array, name) for name, array in values.items() if name in read]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    outputs = list(proto.graph.output)
    outputs += [onnx.ValueInfoProto(name=node.input[0]) for node in nodes if node.op_type == "Softmax"]
    for field, items in (("node", nodes), ("input", inputs), ("initializer", tensors), ("output", outputs)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(items)
    return load(proto)


def _random_weight(shape, rng):
    """Uniform values, scaled as by He for layers of rectifiers."""
    values = rng.random(shape, dtype=np.float32) - np.float32(0.5)
    values *= np.float32(np.sqrt(24 / np.prod(shape[1:])) if len(shape) > 1 else 0.2)
    return values


@functools.lru_cache(maxsize=1)
def answer(name):
    return run(model(name), image(name))


def image(name):
    graph = model(name).proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    (image,) = [value.name for value in graph.input if value.name not in constants]
    return {image: np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)}


def run(student, feeds):
    """Return the outputs of a model in memory."""
    with student.on_disk() as path:
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
