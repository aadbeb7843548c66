"""What `deepen` inserts learns: every new layer gets a gradient within two steps of training (extra `train`)."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_net2net import deepen

torch = pytest.importorskip("torch")
functional = torch.nn.functional

MODELS = Path(__file__).parents[2] / "models"
DIGITS = ("digits_mlp", "digits_resnet", "digits_inception_bn")


def convolve(attrs, x, w, b=None):
    pads = attrs.get("pads", [0, 0, 0, 0])
    padded = functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    return functional.conv2d(padded, w, b, attrs.get("strides", 1), 0, attrs.get("dilations", 1), attrs.get("group", 1))


def pool(kind, attrs, x):
    pads = attrs.get("pads", [0, 0, 0, 0])
    options = {"count_include_pad": bool(attrs.get("count_include_pad", 0))} if kind is functional.avg_pool2d else {}
    return kind(x, attrs["kernel_shape"], attrs.get("strides", 1), pads[:2], **options)


def gemm(attrs, a, b, c=0):
    return (a.T if attrs.get("transA") else a) @ (b.T if attrs.get("transB") else b) + c


def normalise(attrs, x, scale, bias, mean, var):
    """In training mode, by the statistics of the batch."""
    return functional.batch_norm(x, None, None, scale, bias, True, 0.0, attrs.get("epsilon", 1e-5))


OPERATORS = {
    "Conv": convolve,
    "Gemm": gemm,
    "BatchNormalization": normalise,
    "Max": lambda attrs, a, b: torch.maximum(a, b),
    "PRelu": lambda attrs, x, slope: torch.where(x > 0, x, slope * x),
    "Relu": lambda attrs, x: functional.relu(x),
    "Add": lambda attrs, a, b: a + b,
    "AveragePool": lambda attrs, x: pool(functional.avg_pool2d, attrs, x),
    "MaxPool": lambda attrs, x: pool(functional.max_pool2d, attrs, x),
    "GlobalAveragePool": lambda attrs, x: x.mean((2, 3), keepdim=True),
    "Concat": lambda attrs, *parts: torch.cat(parts, attrs["axis"]),
    "Flatten": lambda attrs, x: x.flatten(1),
    "Reshape": lambda attrs, x, shape: x.reshape(len(x), -1),
    "ReduceMean": lambda attrs, x, axes=None: x.mean((2, 3), keepdim=bool(attrs.get("keepdims", 1))),
}


def gradients(model):
    """The largest gradient of each new parameter in the first two steps of SGD on the digits."""
    with model.on_disk() as path:
        proto = onnx.load(path)
    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in proto.graph.initializer}
    new = {name: value for name, value in values.items() if "_new" in name and "running" not in name}
    trained = [value.requires_grad_() for value in values.values() if value.is_floating_point()]
    with np.load(MODELS / "digits_test.npz") as data:
        images, labels = torch.tensor(data["image"][:128]), torch.tensor(data["label"][:128])
    labels = (labels + 1) % 10  # the teacher knows the right ones already
    optimizer = torch.optim.SGD(trained, lr=0.1)
    largest = dict.fromkeys(new, 0.0)
    for _ in range(2):
        tensors = {**values, proto.graph.input[0].name: images}
        for node in proto.graph.node:
            attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            tensors[node.output[0]] = OPERATORS[node.op_type](attrs, *(tensors[name] for name in node.input))
        optimizer.zero_grad()
        functional.cross_entropy(tensors[proto.graph.output[0].name], labels).backward()
        largest = {name: max(largest[name], float(value.grad.abs().max())) for name, value in new.items()}
        optimizer.step()
    return largest


@pytest.mark.parametrize("way", ["identity", "residual", "prelu", "maxout"])
@pytest.mark.parametrize("name", DIGITS)
def test_every_new_layer_gets_a_gradient_within_two_steps(name, way):
    """A bias that the next normalisation takes off again has none, but its layer has."""
    student = deepen(MODELS / f"{name}.onnx", all=True, way=way).student
    blocks = {}
    for parameter, gradient in gradients(student).items():
        blocks.setdefault(parameter.rpartition(".")[0], []).append(gradient)
    assert blocks
    assert not [block for block, found in blocks.items() if max(found) < 1e-6]
