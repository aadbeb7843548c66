"""Feed-forward blocks are found in the forms that exporters write; what stands in the way is said."""

import numpy as np
import pytest
from feedforwards import BLOCKS, D, H, S, constants, dense

from onnx_net2net.analysis.feedforward import find_feedforwards
from onnx_net2net.analysis.inference import infer
from onnx_net2net.model.model import load


def found(proto):
    model = load(proto)
    return find_feedforwards(infer(model), model.proto)


@pytest.mark.parametrize("form", BLOCKS)
def test_a_block_is_found_in_every_form(form):
    block = next(block for block in found(dense(form)) if block.widens)
    assert (block.reads, block.hidden, block.makes, block.reason) == (D, H, D, "")
    assert (block.entry, block.exit) == ("x", "m")


@pytest.mark.parametrize(
    "text",
    [
        "u = MatMul(x, up) m = MatMul(u, down)",  # nothing bends: the two are one layer
        "u = MatMul(x, up) h = Softmax<axis=-1>(u) m = MatMul(h, down)",
        "u = MatMul(x, up) h = Softmax<axis=1>(u) m = MatMul(h, down)",
        "u = MatMul(x, up) c = CumSum(u, one_axis) h = Relu(c) m = MatMul(h, down)",
    ],
)
def test_what_is_no_function_of_one_position_is_no_block(text):
    assert not [block for block in found(dense(text, one_axis=np.array(1))) if block.exit == "m"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g = MatMul(inputs, other) u = MatMul(x, up) s = Tanh(g) h = Mul(s, u) m = MatMul(h, down)",
         "its first layers read different tensors"),
        ("u = MatMul(x, up) h = Relu(u) d = MatMul(h, down) e = MatMul(h, down2) m = Add(d, e)",
         "h inside it is read outside"),
        ("u = MatMul(x, up) b = Add(u, by_position) h = Relu(b) m = MatMul(h, down)",
         "by_position, which Add reads, is no vector of units"),
    ],
)  # fmt: skip
def test_an_obstacle_is_said(text, reason):
    more = {
        "other": np.ones((6, H), np.float32), "down2": constants()["down"] * 2,
        "by_position": np.ones((S, H), np.float32),
    }  # fmt: skip
    assert reason in [block.reason for block in found(dense(text, **more))]
