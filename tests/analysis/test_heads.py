"""Axes of size 1 that stand for one head are dims, and others are not."""

import numpy as np
from graphs import build
from onnx import helper

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.analysis.heads import find_heads
from onnx_net2net.analysis.inference import infer
from onnx_net2net.model.model import load


def attention(masked=False, squeezed=False, typed=False):
    """One head between two Reshapes."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in "qkvo"}
    constants |= {
        "cut": np.array([2, 5, 1, 6]),
        "join": np.array([2, 5, 6]),
        "mask": np.zeros((1, 1, 5, 5), np.float32),
        "scale": np.array(0.5, np.float64),
    }
    nodes = []
    for name, perm in zip("qkv", ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        nodes += [helper.make_node("MatMul", ["x", name], [f"{name}0"]),
                  helper.make_node("Reshape", [f"{name}0", "cut"], [f"{name}1"]),
                  helper.make_node("Transpose", [f"{name}1"], [f"{name}2"], perm=perm)]  # fmt: skip
    if typed:
        nodes.append(helper.make_node("CastLike", ["scale", "q2"], ["factor"]))
    nodes += [helper.make_node("Mul", ["q2", "factor"], ["scaled"]) if typed else
              helper.make_node("Identity", ["q2"], ["scaled"]),
              helper.make_node("MatMul", ["scaled", "k2"], ["scores"]),
              helper.make_node("Add", ["scores", "mask"], ["masked"]) if masked else
              helper.make_node("Identity", ["scores"], ["masked"]),
              helper.make_node("Softmax", ["masked"], ["p"], axis=1 if squeezed else -1),
              helper.make_node("MatMul", ["p", "v2"], ["a0"]),
              helper.make_node("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
              helper.make_node("Reshape", ["a1", "join"], ["a2"]),
              helper.make_node("MatMul", ["a2", "o"], ["y"])]  # fmt: skip
    return load(build(nodes, {"x": np.zeros((2, 5, 6), np.float32)}, ["y"], constants, opset=18))


def sizes(model, heads):
    """The sizes of the dims that the projections make, in layout order."""
    analysis = infer(model, by_units=False, heads=heads)
    number = next(n for n, node in enumerate(analysis.nodes) if node.inputs[1].name == "q")
    return [dim.size for dim in leaves(analysis.uses[number, 1].axes[1])]


def test_one_head_is_a_dim_where_it_is_asked_for():
    assert sizes(attention(), find_heads) == [1, 6]
    assert sizes(attention(masked=True), find_heads) == [1, 6]
    assert sizes(attention(typed=True), find_heads) == [1, 6], "reading the type of the queries reads no head"
    assert sizes(attention(), None) == [6]


def test_a_softmax_over_it_keeps_it():
    assert find_heads(infer(attention(squeezed=True), by_units=False)) < find_heads(infer(attention(), by_units=False))
