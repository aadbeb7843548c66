"""New classes start at a chosen probability, and under a softmax at none."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import net, weights
from wide import contents, draw

from onnx_net2net import verify, widen

HEAD = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) y = LAST }"


def grown(last: str, **options: object) -> tuple[list[str], dict[str, np.ndarray]]:
    """Six classes for four: the operators, and the weights."""
    constants = {"w": draw(8, 4)} | ({"b": draw(4)} if "b" in last else {})
    teacher = net(HEAD.replace("LAST", last), **constants)
    student = widen(teacher, sizes={"w": 6}, **options).student
    verify(teacher, student).raise_if_different()
    return [node.op_type for node in contents(student).graph.node], weights(student)


def test_a_bias_that_is_there_holds_the_prior() -> None:
    ops, arrays = grown("Add(h, b)", prior=0.2)
    assert ops == ["MatMul", "Add"]
    np.testing.assert_allclose(1 / (1 + np.exp(-arrays["b"][4:])), 0.2, rtol=1e-6)


def test_a_layer_without_a_bias_gets_one() -> None:
    ops, arrays = grown("Sigmoid(h)", prior=0.2)
    assert ops == ["MatMul", "Add", "Sigmoid"]
    (bias,) = (array for array in arrays.values() if array.ndim == 1)
    np.testing.assert_allclose(bias, [0] * 4 + [np.log(0.25)] * 2, rtol=1e-6)


@pytest.mark.parametrize("last", ["Softmax(h)", "LogSoftmax(h)"])
def test_under_a_softmax_new_classes_have_no_probability(last: str) -> None:
    ops, _ = grown(last)
    assert ops == ["MatMul", "Add", last[:-3]]
