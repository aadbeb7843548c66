"""Dims have the names of the modules that make them, as users know them."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from zeros import grouped, net

from onnx_net2net import inspect


def renamed(up, node="", scopes=None):
    """A network of two layers whose first weight and node have other names."""
    proto = net("(float[2, 8] x) => (float[2, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }", v=(16, 4))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 16), np.float32), up))
    proto.graph.node[0].input[1] = up
    proto.graph.node[0].name = node
    if scopes is not None:
        proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return proto


@pytest.mark.parametrize(
    ("up", "node", "scopes", "name"),
    [
        ("fc1.weight", "", None, "fc1"),
        ("layer3.0.conv1.weight", "/layer3/layer3.0/conv1/Conv", None, "layer3.0.conv1"),
        ("blocks.2.attn.qkv.weight", "", None, "blocks.2.attn.qkv"),
        ("conv1_w", "", None, "conv1"),
        ("dense/kernel", "", None, "dense"),
        ("model/dense/MatMul/ReadVariableOp", "", None, "model/dense"),
        ("model/dense/Cast/ReadVariableOp:0", "", None, "model/dense"),
        ("model/norm/ReadVariableOp_1:0", "", None, "model/norm"),
        ("model/conv2d_5/convolution/merged_input:0", "", None, "model/conv2d_5"),
        ("linear_3.w_0", "", None, "linear_3"),
        ("fc1.weight_quantized", "", None, "fc1"),
        ("cell.weight_hh", "", None, "cell"),
        ("rnn.weight_ih_l0_reverse", "", None, "rnn"),
        ("pos_embed", "", None, "pos_embed"),
        ("onnx::MatMul_123", "/encoder/encoder.0/linear1/MatMul", None, "encoder.0.linear1"),
        ("onnx::MatMul_123", "/encoder/linear1/MatMul", None, "encoder.linear1"),
        ("onnx::Conv_9", "/stages/stages.0/blocks/blocks.1/conv/Conv", None, "stages.0.blocks.1.conv"),
        ("onnx::Conv_9", "/embed/proj/proj.0/proj.0.1/Conv", None, "embed.proj.0.1"),
        ("onnx::Conv_77", "Conv_12", None, "onnx::Conv_77"),
        ("val_12", "node_MatMul_3", "['', 'layers', 'layers.0', 'layers.0.fc', 'linear']", "layers.0.fc"),
        ("val_12", "/fc/MatMul", "not a list", "fc"),
        ("val_12", "/fc/MatMul", "['linear']", "fc"),
        ("12", "", None, "12"),
    ],
)
def test_dims_are_named_after_the_module_that_makes_them(up, node, scopes, name):
    assert inspect(renamed(up, node, scopes)).groups[0].name == name


def test_quantized_weights_are_named_after_the_layer_that_reads_them():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        w = DequantizeLinear("onnx::MatMul_9_quantized", scale) h = MatMul(x, w) y = MatMul(h, v) }"""
    proto = net(text, **{"onnx::MatMul_9_quantized": np.zeros((8, 16), np.int8)}, scale=np.float32(1), v=(16, 4))
    proto.graph.node[0].name, proto.graph.node[1].name = "onnx::MatMul_9_DequantizeLinear", "/encoder/fc1/MatMul"
    assert inspect(proto).groups[0].name == "encoder.fc1"


def test_dims_are_named_after_the_layer_that_makes_them_also_where_its_weights_are_quantized():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        d = DequantizeLinear("second.weight", scale) w = DequantizeLinear("first.weight", scale)
        h = MatMul(x, w) y = MatMul(h, d) }"""
    weights = {"first.weight": np.zeros((8, 16), np.int8), "second.weight": np.zeros((16, 4), np.int8)}
    assert [group.name for group in inspect(net(text, **weights, scale=np.float32(1))).groups][:1] == ["first"]


def test_names_are_unique():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, "fc.weight") i = MatMul(h, "fc.w") j = MatMul(i, "fc.kernel") y = MatMul(j, down) }"""
    proto = net(text, **{"fc.weight": (8, 16), "fc.w": (16, 17), "fc.kernel": (17, 18), "down": (18, 4)})
    names = [group.name for group in inspect(proto).groups]
    assert names[:3] == ["fc", "fc#2", "fc#3"]
    assert len(set(names)) == len(names)


def test_names_do_not_depend_on_sizes():
    names = [
        [group.name for group in inspect(grouped(4, 4 * inner, (4 * outer, inner, 1, 1))).groups]
        for inner, outer in ((2, 3), (5, 6))
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("name", "first"),
    [("digits_mlp", "fc1"), ("digits_resnet", "conv1"), ("digits_inception_bn", "conv1.conv")],
)
def test_dims_of_exported_models_are_named_as_in_pytorch(name, first):
    groups = inspect(Path(__file__).parents[2] / "models" / f"{name}.onnx").groups
    growable = [group.name for group in groups if group.reason is None]
    assert growable[0] == first
    assert not any("#" in name or "[" in name for name in growable)
