"""From a tensor to what it is a copy of, and to who reads it."""

from __future__ import annotations

import numpy as np
from graphs import net

from onnx_net2net.graph.graph import Graph, Tensor
from onnx_net2net.graph.walk import constant_of, is_alias, is_fixed_norm, made_by, makers, result, source
from onnx_net2net.model.model import load

GRAPH = Graph(
    load(
        net(
            """(float[2,3] x) => (float[6] y, float[2,3] z) {
                again = Identity(w)
                made = Constant<value = float[1] {2.0}>()
                turned = Transpose(again)
                flat = Reshape(turned, shape)
                y = Relu(flat)
                both = Add(x, made)
                z = Mul(both, x)
            }""",
            w=np.ones((2, 3), np.float32),
            shape=np.array([6]),
        )
    )
)


def tensor(name: str) -> Tensor:
    return GRAPH.graph.tensors()[name]


def test_a_constant_is_an_initializer_a_node_or_a_name_of_one():
    for name in ("w", "again"):
        constant = constant_of(tensor(name))
        assert constant is not None
        assert constant.name == "w"
    made = constant_of(tensor("made"))
    assert made is not None
    assert GRAPH.read(made).tolist() == [2.0]
    for name in ("x", "turned", "both"):
        assert constant_of(tensor(name)) is None


def test_an_alias_only_names_a_constant():
    assert [node.op for node in GRAPH.nodes if is_alias(node)] == ["Identity", "Constant"]


def test_makers_are_followed_by_first_inputs():
    kinds = {"Reshape", "Transpose", "Identity"}
    assert [node.op for node in makers(tensor("flat"), kinds)] == ["Reshape", "Transpose", "Identity"]
    assert source(tensor("flat"), kinds).name == "w"
    assert source(tensor("flat"), {"Reshape"}).name == "turned"
    assert source(tensor("z"), {"Reshape"}).name == "z"


def test_the_maker_of_a_tensor_is_told_by_its_operator():
    node = made_by(tensor("z"), {"Mul", "Add"})
    assert node is not None
    assert node.op == "Mul"
    assert made_by(tensor("z"), {"Add"}) is None
    assert made_by(tensor("x"), {"Mul"}) is None


def test_a_batch_normalization_is_one_of_its_first_input_alone():
    text = """(float[1,3] x, float[3] scale) => (float[1,3] y) {
        y = BatchNormalization(x, scale, shift, mean, variance)
    }"""
    ones = np.ones(3, np.float32)
    graph = Graph(load(net(text, shift=ones, mean=ones, variance=ones)))
    (node,) = graph.nodes
    assert is_fixed_norm(node, node.inputs[0])
    assert not is_fixed_norm(node, node.inputs[1])
    assert not is_fixed_norm(made_by(tensor("z"), {"Mul"}), tensor("both"))


def test_results_are_followed_by_only_readers():
    assert result(tensor("again"), {"Reshape", "Transpose"}).name == "flat"
    assert result(tensor("x"), {"Add", "Mul"}).name == "x"


def test_a_graph_knows_the_only_reader_of_a_tensor():
    reader = GRAPH.only_reader(tensor("both"))
    assert reader is not None
    assert reader.op == "Mul"
    assert GRAPH.only_reader(tensor("x")) is None
    assert GRAPH.only_reader(tensor("z")) is None
    assert GRAPH.kept == {"y", "z"}
    assert [GRAPH.numbers[id(node)] for node in GRAPH.nodes] == list(range(len(GRAPH.nodes)))
