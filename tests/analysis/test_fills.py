"""Tensors that are one number everywhere."""

import numpy as np
import pytest
from graphs import analyse_open, net

from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.model.model import load


@pytest.mark.parametrize(
    ("node", "number"),
    [
        ("f = Expand(three, shape)", 3.0),
        ("f = ConstantOfShape(shape)", 0.0),
        ("f = ConstantOfShape<value = float[1] {-2.0}>(shape)", -2.0),
        ("a = Shape(x) f = ConstantOfShape(a)", 0.0),
        ("a = Expand(three, shape) b = Unsqueeze(a, last) f = Squeeze(b, last)", 3.0),
        ("f = Identity(x)", None),
        ("f = Add(x, apart)", None),
    ],
)
def test_a_fill_is_found_behind_whatever_moves_it(node, number):
    constants = {
        "three": np.float32(3), "shape": np.array([2, 4]), "last": np.array([-1]), "apart": np.float32([1, 2, 3, 4]),
    }  # fmt: skip
    text = f"(float[N, 4] x) => (float[N, 4] y) {{ {node} y = Mul(x, f) }}"
    analysis = analyse_open(load(net(text, **{name: v for name, v in constants.items() if name in text})))
    (product,) = [n for n in analysis.nodes if n.op == "Mul"]
    assert fill_of(analysis, product.inputs[1]) == number
