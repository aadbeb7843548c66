"""What a weight has to be, that a tensor is one number, is told by running the graph with it."""

import numpy as np
import onnx
import pytest
from small import run
from test_transfer import Net

from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load
from onnx_net2net.operations.transfer.settling import Settling

ENDS = {
    "Sigmoid": (0.0, 0.25, 1.0), "Tanh": (-0.5, 0.0, 1.0), "Relu": (0.0, 2.0), "Softplus": (0.0, 1.0),
    "Exp": (0.5, 1.0),
    "HardSigmoid": (0.0, 0.5, 1.0), "Sqrt": (0.0, 3.0), "LeakyRelu": (0.0, 1.5), "Neg": (-1.0, 1.0), "Elu": (0.0, 1.0),
    "HardSwish": (0.0,), "Gelu": (0.0,), "Reciprocal": (0.5, 1.0),
}  # fmt: skip


def settled(net, value):
    """The results of a net of which the last result is to be a number."""
    proto = net.build("y")
    analysis = infer(load(proto))
    number = len(analysis.nodes) - 1
    found = Settling(LayerGraph(analysis), set(range(number))).settle({(number, 0): value})
    names = {analysis.nodes[node].inputs[index].name: held for (node, index), held in found.items()}
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            values = np.full(tuple(tensor.dims), names[tensor.name], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto, net


@pytest.mark.parametrize(("op", "value"), [(op, value) for op, values in ENDS.items() for value in values])
def test_inverse(op, value, tmp_path):
    net = Net(0, (3, 4), opset=20).linear("a", 5).node("Relu").linear("b", 6).node(op).node("Identity")
    proto, _ = settled(net, value)
    onnx.save(proto, tmp_path / "m.onnx")
    (found,) = run(tmp_path / "m.onnx", {"x": net.input})
    assert np.abs(found - value).max() < 1e-6


@pytest.mark.parametrize(("op", "value"), [("Sigmoid", 2.0), ("Relu", -1.0), ("Exp", -1.0), ("Gelu", 1.0)])
def test_what_an_operator_never_makes(op, value):
    net = Net(0, (3, 4), opset=20).linear("a", 5).node(op).node("Identity")
    with pytest.raises(RefusedError):
        settled(net, value)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_sums_products_and_norms(value, tmp_path):
    net = Net(0, (3, 4), opset=20).linear("a", 5)
    one = net.node("Tanh").last
    two = net.linear("b", 5).norm("c").last
    net.last = one
    net.node("Mul", two).node("Sub", net.constant("half", np.array(0.5))).node("Mul", net.constant("v", net.draw(5)))
    net.node("Identity")
    proto, _ = settled(net, value)
    onnx.save(proto, tmp_path / "m.onnx")
    (found,) = run(tmp_path / "m.onnx", {"x": net.input})
    assert np.abs(found - value).max() < 1e-6


@pytest.mark.parametrize("op", ["Max", "Min", "Mean"])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_each_operand_of_an_extreme_or_a_mean_is_settled(op, value, tmp_path):
    net = Net(0, (3, 4), opset=20)
    start = net.last
    one = net.linear("a", 5).last
    net.last, net.width = start, 4
    net.linear("b", 5).node(op, one).node("Identity")
    proto, _ = settled(net, value)
    onnx.save(proto, tmp_path / "m.onnx")
    (found,) = run(tmp_path / "m.onnx", {"x": net.input})
    assert np.abs(found - value).max() < 1e-6
