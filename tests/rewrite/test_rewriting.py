"""Nodes that weigh units, and what is left over when all is rewritten."""

from __future__ import annotations

import numpy as np
from graphs import net, run

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.algebra.maps import uniform
from onnx_net2net.analysis.inference import infer
from onnx_net2net.model.model import load
from onnx_net2net.rewrite.rewriting import Rewriting

TEXT = """(float[2, 3] x) => (float[2, 3] y) <float[2, 3] a> { a = Relu(x) y = Neg(a) }"""


def rewriting(text: str = TEXT, **weights: np.ndarray) -> Rewriting:
    return Rewriting(infer(load(net(text, **weights))), {})


def result(made: Rewriting, x: np.ndarray) -> np.ndarray:
    with made.graph.finish().on_disk() as path:
        return run(load(path).proto, {"x": x})[0]


def test_operands_and_results_are_weighed_along_several_axes() -> None:
    made, x = rewriting(), np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    made.insert(1, 0, 0, times=np.array([1.0, 10]))
    made.insert(1, 0, 1, plus=np.array([0.0, 1, 2]))
    made.append(1, 1, times=np.array([1.0, 2, 3]))
    expected = -(x * [[1], [10]] + [0, 1, 2]) * [1, 2, 3]
    np.testing.assert_array_equal(result(made, x), expected)
    assert [str(inserted) for inserted in made.inserted] == ["Mul at 'a'", "Add at 'a_weighed'", "Mul at 'y'"]
    assert made.input_axes(1, 0) == made.analysis.axes["a"]


def test_the_dims_of_the_teacher_stay_what_they_were() -> None:
    made = rewriting()
    before = dict(made.analysis.axes)
    made.insert(1, 0, 1, times=np.ones(3))
    assert made.analysis.axes == before


def test_recorded_shapes_follow_and_unread_nodes_go() -> None:
    text = "(float[2, 3] x) => (float[2, 4] y) <float[2, 6] h> { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    made = rewriting(text, w=np.ones((3, 6), np.float32), v=np.ones((6, 4), np.float32))
    (dim,) = leaves(made.analysis.axes["h"][1])
    made.growth = {dim: uniform(6, 12)}
    made.nodes[2].inputs[0] = made.nodes[0].outputs[0]
    made.clean_up()
    assert [node.op for node in made.graph.graph.nodes] == ["MatMul", "MatMul"]
    assert made.nodes[0].outputs[0].shape == [2, 12]
