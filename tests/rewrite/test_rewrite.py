"""From maps to a student: it computes the same, and the result says how each constant grew and what else it took."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_close, net, run, weights, weighty

from onnx_net2net import load
from onnx_net2net.algebra.dims import Dim
from onnx_net2net.algebra.maps import Map, from_index, pad, padded, uniform
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis.inference import infer
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.model import Model
from onnx_net2net.rewrite.rewrite import Rewritten, rewrite


def draw(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


MLP = "(float[N, 6] x) => (float[N, 4] y) { h = MatMul(x, up) a = Add(h, bias) r = Relu(a) y = MatMul(r, down) }"
NORMED = MLP.replace("r = Relu(a)", "r = LayerNormalization<epsilon = 0.1>(a, gain)")
WEIGHTS = {"up": draw(6, 8), "bias": draw(8), "gain": 1 + draw(8), "down": draw(8, 4)}


def model(text: str = MLP) -> Model:
    return load(net(text, **{name: values for name, values in WEIGHTS.items() if name in text}))


def grown(teacher: Model, map: Map, spread: float = 0.3, seed: int = 0) -> Rewritten:
    """The model with this map for its dim of 8 units."""
    analysis = infer(teacher)
    (dim,) = {dim for dim in analysis.dims() if dim.size == 8}
    assert isinstance(dim, Dim)
    return rewrite(teacher, analysis, {dim: map}, Style(seed, spread), {"grown": "yes"})


MAPS = {
    "copies in any order": from_index(8, np.array([3, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0])),
    "copies of all": uniform(8, 24),
    "units that nobody reads": padded(8, 11, "zero_out"),
    "units of zeros": padded(8, 11, "zero_in"),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_student_computes_what_the_teacher_does(name: str) -> None:
    teacher, spread = model(), 0.3 if MAPS[name].index[0] == 0 else 0.0
    student = grown(teacher, MAPS[name], spread).model
    feeds = {"x": draw(5, 6)}
    assert_close(run(weighty(student), feeds)[0], run(weighty(teacher), feeds)[0], tolerance=1e-5)
    assert weights(student)["up"].shape == (6, MAPS[name].new)


def test_the_result_says_how_each_constant_grew() -> None:
    made = grown(model(), uniform(8, 16))
    assert sorted(constant.teacher for constant in made.constants) == ["bias", "down", "up"]
    assert all(constant.student == constant.teacher for constant in made.constants)
    assert (made.inserted, made.untied) == ((), ())
    assert {entry.key: entry.value for entry in made.model.proto.metadata_props}["grown"] == "yes"


def test_weights_are_drawn_by_the_seed_alone() -> None:
    one, same, other = (weights(grown(model(), uniform(8, 16), seed=seed).model)["down"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_teacher_is_not_changed_and_no_weight_is_read_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    teacher = model()
    before = teacher.proto.SerializeToString()
    monkeypatch.setattr(Graph, "read", lambda *_: pytest.fail("a weight was read"))
    student = grown(teacher, uniform(8, 16)).model
    assert teacher.proto.SerializeToString() == before
    monkeypatch.undo()
    assert weights(student)["up"].shape == (6, 16)


def test_padding_changes_the_epsilon_and_the_gain_of_a_norm() -> None:
    teacher = model(NORMED)
    student = weighty(grown(teacher, pad(8, 11, "mean")).model)
    (norm,) = [node for node in student.graph.node if node.op_type == "LayerNormalization"]
    (epsilon,) = [attribute.f for attribute in norm.attribute if attribute.name == "epsilon"]
    assert epsilon == pytest.approx(0.1 * 8 / 11)
    feeds = {"x": draw(5, 6)}
    assert_close(run(student, feeds)[0], run(weighty(teacher), feeds)[0], tolerance=1e-5)


def test_a_product_of_activations_gets_a_node_which_is_named() -> None:
    text = """(float[N, 6] x) => (float[N, 1] y) {
        h = MatMul(x, up) r = Sigmoid(h) s = Tanh(h) m = Mul(r, s) y = ReduceSum<keepdims = 1>(m, last) }"""
    teacher = load(net(text, up=WEIGHTS["up"], last=np.array([-1])))
    made = grown(teacher, uniform(8, 16))
    assert len(made.inserted) == 1
    assert str(made.inserted[0]).startswith("Mul")
    feeds = {"x": draw(5, 6)}
    assert_close(run(weighty(made.model), feeds)[0], run(weighty(teacher), feeds)[0], tolerance=1e-5)


def test_a_matrix_whose_uses_grow_differently_is_untied() -> None:
    text = "(float[N, 6] x) => (float[N, 6] z) { h = MatMul(x, w) t = Transpose(w) z = MatMul(h, t) }"
    teacher = load(net(text, w=WEIGHTS["up"]))
    made = grown(teacher, uniform(8, 16))
    feeds = {"x": draw(5, 6)}
    assert_close(run(weighty(made.model), feeds)[0], run(weighty(teacher), feeds)[0], tolerance=1e-5)
    assert made.untied == ("w",)
