"""Edits keep everything else as it is: names, what others read, and what is read outside of the graph."""

from __future__ import annotations

import numpy as np
from graphs import net, run

from onnx_net2net.graph.edit import Version, Writer, assign, drop_unread
from onnx_net2net.graph.graph import Graph, Variable
from onnx_net2net.model.model import Model, load

TEXT = "(float[2, 3] x) => (float[2, 3] a, float[2, 3] b, float[2, 3] c) { a = Add(x, w) b = Mul(x, w) c = Sub(x, w) }"
VALUES = np.array([1, 2, 3], np.float32)


def graph() -> tuple[Graph, Model]:
    model = load(net(TEXT, w=VALUES))
    return Graph(model), model


def results(graph: Graph, x: np.ndarray) -> list[list[float]]:
    model = graph.finish()
    with model.on_disk() as path:
        return [array[0].tolist() for array in run(load(path).proto, {"x": x})]


def versions(graph: Graph, *factors: int | None) -> list[Version]:
    """One version for each node: a multiple of the values, or the values themselves."""
    nodes = graph.graph.nodes
    return [
        Version([(node, 1)], (3,), None if factor is None else lambda factor=factor: VALUES * np.float32(factor))
        for node, factor in zip(nodes, factors, strict=True)
    ]


def test_the_first_version_is_the_constant_itself() -> None:
    made, _ = graph()
    constant = made.graph.nodes[0].inputs[1]
    assert assign(made, constant, versions(made, 2, 3, 4)) == ["w", "w_1", "w_2"]
    assert results(made, np.ones((2, 3), np.float32)) == [[3, 5, 7], [3, 6, 9], [-3, -7, -11]]


def test_who_keeps_the_values_keeps_the_constant() -> None:
    made, _ = graph()
    constant = made.graph.nodes[0].inputs[1]
    assert assign(made, constant, versions(made, 2, None, 4)) == ["w_1", "w", "w_2"]
    assert results(made, np.ones((2, 3), np.float32)) == [[3, 5, 7], [1, 2, 3], [-3, -7, -11]]


def test_readers_of_one_version_share_it() -> None:
    made, _ = graph()
    first, second, third = made.graph.nodes
    shared = Version([(first, 1), (third, 1)], (3,), lambda: VALUES * np.float32(2))
    assert assign(made, first.inputs[1], [Version([(second, 1)]), shared]) == ["w", "w_1"]
    assert first.inputs[1] is third.inputs[1]
    assert results(made, np.ones((2, 3), np.float32)) == [[3, 5, 7], [1, 2, 3], [-1, -3, -5]]


def test_names_of_new_nodes_and_what_they_make_are_unique() -> None:
    made, _ = graph()
    (x,) = made.graph.inputs
    op = Writer(made, "layer.")
    first, second = (op.Relu(x) for _ in range(2))
    third = op.LeakyRelu(second, name="bent", alpha=0.5)
    assert [tensor.name for tensor in (first, second, third)] == [
        "layer.Relu_out", "layer.Relu_1_out", "layer.bent_out",
    ]  # fmt: skip
    assert made.graph.nodes[-1].attrs == {"alpha": 0.5}


def test_a_node_can_make_given_tensors() -> None:
    made, _ = graph()
    (x,) = made.graph.inputs
    parts = [Variable("low"), Variable("high")]
    assert Writer(made, "").Split(x, result=parts, axis=1) is parts[0]
    assert made.graph.nodes[-1].outputs == parts


def test_what_nobody_reads_goes_and_what_is_kept_stays() -> None:
    made, _ = graph()
    (x,) = made.graph.inputs
    op = Writer(made, "")
    op.Neg(op.Relu(x))
    drop_unread(made, {"a", "c"})
    assert [node.op for node in made.graph.nodes] == ["Add", "Sub"]
