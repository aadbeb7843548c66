"""Grouped attention with more heads of keys and values, and attention of one head with more of them."""

import numpy as np
import pytest
from graphs import build
from onnx import helper
from test_transfer import Net, fill


def attention(seed, heads, kv=None, width=4, stream=8, merged=False):
    """Pre-norm attention with `heads` heads of queries and `kv` of keys and values.

    Merged: keys and values are made at once, and keys merged with rows, as PyTorch exports its attention.
    """
    kv = heads if kv is None else kv
    net = Net(seed, (2, 5, 3), opset=20)
    net.width = 3
    entry = net.linear("in", stream, "MatMul").last
    normed = net.norm("norm", 0.05).last

    def made(name, count, order):
        net.last, net.width = normed, stream
        net.linear(name, count * width, "MatMul")
        net.node("Reshape", net.constant(f"{name}_shape", np.array([2, 5, count, width])))
        return net.node("Transpose", perm=order).last

    def repeated(tensor, name):
        net.last = tensor
        if heads == kv:
            return tensor
        net.node("Unsqueeze", net.constant("two", np.array([2])))
        size = [*net_sizes(name), width] if name == "v" else [2, kv, heads // kv, width, 5]
        net.node("Expand", net.constant(f"{name}_repeated", np.array(size)))
        return net.node("Reshape", net.constant(f"{name}_joined", np.array([2, heads, *size[3:]]))).last

    def net_sizes(name):
        return [2, kv, heads // kv, 5]

    queries = made("q", heads, [0, 2, 1, 3])

    def of_both(place):
        """Return keys or values that one layer makes."""
        net.last = both
        return net.node("Gather", net.constant(f"place{place}", np.array(place)), axis=0).last

    if merged:
        net.last, net.width = normed, stream
        net.linear("kv", 2 * kv * width, "MatMul")
        net.node("Reshape", net.constant("kv_shape", np.array([2, 5, 2, kv, width])))
        both = net.node("Transpose", perm=[2, 0, 3, 1, 4]).last
        of_both(0)
        net.node("Reshape", net.constant("k_merged", np.array([-1, 5, width]))).node("Transpose", perm=[0, 2, 1])
        keys = net.node("Reshape", net.constant("k_apart", np.array([2, kv, width, 5]))).last
        values = of_both(1)
    else:
        keys = repeated(made("k", kv, [0, 2, 3, 1]), "k")
        values = repeated(made("v", kv, [0, 2, 1, 3]), "v")
    net.last = queries
    net.node("MatMul", keys).node("Mul", net.constant("scale", np.array(width**-0.5)))
    net.node("Add", net.constant("mask", np.zeros((1, 1, 5, 5)))).node("Softmax", axis=-1).node("MatMul", values)
    net.node("Transpose", perm=[0, 2, 1, 3])
    net.node("Reshape", net.constant("joined", np.array([2, 5, heads * width])))
    net.width = heads * width
    net.linear("out", stream, "MatMul").add(entry)
    return net.linear("head", 3, "MatMul").build("y")


PAIRS = {
    "one head to two": (attention(0, 1), attention(1, 2)),
    "one head to three, wider": (attention(0, 1), attention(1, 3, stream=16)),
    "one head to two, made at once and merged with rows": (
        attention(0, 1, merged=True),
        attention(1, 2, merged=True, stream=16),
    ),
    "one head, wider": (attention(0, 1), attention(1, 1, width=6)),
    "2 shared heads to 4": (attention(0, 4, 2), attention(1, 4, 4)),
    "one shared head to 2": (attention(0, 4, 1), attention(1, 4, 2)),
    "one shared head to 4": (attention(0, 4, 1), attention(1, 4, 4)),
    "2 shared heads to 4, and more queries": (attention(0, 4, 2), attention(1, 8, 8, width=6, stream=16)),
    "one shared head to 2, and more queries": (attention(0, 4, 1), attention(1, 8, 2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_more_heads_are_exact(name):
    _, verification, obstacles = fill(*PAIRS[name])
    assert obstacles == []
    assert verification.equivalent


def test_narrower_heads_are_no_shared_ones():
    _, _, obstacles = fill(attention(0, 1, width=12), attention(1, 4, width=6, stream=16))
    assert any("12 units do not fit into 6" in text for text in obstacles)


def test_fewer_shared_heads_are_refused():
    _, _, obstacles = fill(attention(0, 4, 4), attention(1, 4, 2))
    assert obstacles


def batched(seed, heads, width=4, stream=4):
    """The heads as nn.MultiheadAttention cuts them: out of the batch, behind a Transpose."""
    net = Net(seed, (5, 2, 3), opset=20)
    net.width = 3
    entry = net.linear("in", stream, "MatMul").last

    def made(name):
        net.last, net.width = entry, stream
        net.linear(name, heads * width, "MatMul")
        net.node("Reshape", net.constant(f"{name}_cut", np.array([5, 2 * heads, width]))).node(
            "Transpose", perm=[1, 0, 2]
        )
        return net.node("Reshape", net.constant(f"{name}_heads", np.array([2, heads, 5, width]))).last

    queries, keys, values = map(made, "qkv")
    net.last = keys
    keys = net.node("Transpose", perm=[0, 1, 3, 2]).last
    net.last = queries
    net.node("MatMul", keys).node("Mul", net.constant("scale", np.array(width**-0.5))).node("Softmax", axis=-1)
    net.node("MatMul", values).node("Transpose", perm=[2, 0, 1, 3])
    net.node("Reshape", net.constant("joined", np.array([10, heads * width])))
    net.width = heads * width
    net.linear("out", stream).node("Reshape", net.constant("shape", np.array([5, 2, stream]))).add(entry)
    return net.linear("head", 3, "MatMul").build("y")


def test_one_head_that_is_cut_out_of_the_batch():
    _, verification, obstacles = fill(batched(0, 1), batched(1, 2))
    assert obstacles == []
    assert verification.equivalent


def test_an_output_that_is_a_parameter_is_filled():
    def policy(seed, width):
        net = Net(seed, (3, 4)).linear("a", width).node("Tanh").linear("pi", 2)
        net.nodes.append(helper.make_node("Identity", [net.last], ["mean"]))
        net.constant("log_std", net.draw(2))
        return build(net.nodes, {"x": net.input}, ["mean", "log_std"], net.constants, opset=net.opset)

    teacher = policy(0, 5)
    result, verification, obstacles = fill(teacher, policy(1, 8))
    assert obstacles == []
    assert verification.equivalent
    assert [s.origin for s in result.sources if s.name == "log_std"] == ["teacher"]


def towers(seed, width, activation="Relu", norm=False):
    """The dot product of one layer's results with themselves, in pairs."""
    net = Net(seed, (3, 4)).linear("a", width).node(activation)
    one = net.last
    if norm:
        net.node("ReduceL2", net.constant("last", np.array([-1])), keepdims=1)
        length, net.last = net.last, one
        one = net.node("Div", length).last
    two, net.last = net.node("Transpose", perm=[1, 0]).last, one
    return net.node("MatMul", two).build("y")


@pytest.mark.parametrize("norm", [False, True])
def test_units_that_products_would_notice_are_zero(norm):
    _, verification, obstacles = fill(towers(0, 6, norm=norm), towers(1, 8, norm=norm))
    assert obstacles == []
    assert verification.equivalent


def test_units_that_cannot_be_zero_are_named():
    _, _, obstacles = fill(towers(0, 6, "Sigmoid"), towers(1, 8, "Sigmoid"))
    assert len(obstacles) == 1
    assert "its 6 units, which are 8 in the target" in obstacles[0]
    assert "units of zero do not stay zero behind Sigmoid" in obstacles[0]
