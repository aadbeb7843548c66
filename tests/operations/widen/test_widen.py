"""Wider classifiers are as accurate as their teachers, and other networks compute the same."""

import functools

import light
import numpy as np
import onnx
import pytest
from graphs import net, weights
from onnx.reference import ReferenceEvaluator
from wide import DIGITS, MLP, MODELS, RESNET, contents, draw, mlp, new_sizes, normed, run, widen_exactly

from onnx_net2net import inspect, verify, widen


@functools.cache
def test_set():
    with np.load(MODELS / "digits_test.npz") as arrays:
        return arrays["image"], arrays["label"]


test_set.__test__ = False


@functools.cache
def logits_of_teacher(name):
    return logits(MODELS / f"{name}.onnx")


def logits(model):
    return run(model, {"image": test_set()[0]})[0]


def accuracy(scores):
    return np.mean(scores.argmax(axis=1) == test_set()[1])


@pytest.mark.parametrize("factor", [1.37, 1.5, 2, 3])
@pytest.mark.parametrize("name", DIGITS)
def test_a_wider_classifier_has_the_accuracy_of_its_teacher(name, factor):
    widening = widen_exactly(MODELS / f"{name}.onnx", factor=factor)
    expected, actual = logits_of_teacher(name), logits(widening.student)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert accuracy(actual) == accuracy(expected) > 0.98
    assert all(change.new == round(change.old * factor) for change in widening.changes)
    assert widening.covered > 0.95
    assert widening.student.parameters > factor * widening.teacher.parameters


@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_exact_maps_keep_the_accuracy(map):
    widening = widen_exactly(RESNET, factor=1.5, map=map)
    assert {change.map for change in widening.changes} == {map}
    assert accuracy(logits(widening.student)) == accuracy(logits_of_teacher("digits_resnet"))


def test_a_widened_model_can_be_widened_again():
    once = widen_exactly(RESNET, factor=1.37).student
    twice = widen_exactly(once, factor=1.5, seed=1)
    verify(RESNET, twice.student).raise_if_different()
    assert accuracy(logits(twice.student)) == accuracy(logits_of_teacher("digits_resnet"))


def test_random_new_units_are_not_exact():
    widening = widen(RESNET, factor=1.5, map="random_pad")
    assert not widening.exact
    assert {change.map for change in widening.changes} == {"random_pad"}
    assert not verify(RESNET, widening.student).equivalent


def test_noise_is_not_exact():
    widening = widen(MLP, factor=1.5, noise=0.05)
    assert not widening.exact
    assert not verify(MLP, widening.student).equivalent
    assert accuracy(logits(widening.student)) > 0.9


def test_a_factor_of_one_changes_nothing():
    widening = widen_exactly(MLP, factor=1)
    before, after = weights(MLP), weights(widening.student)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_objects_are_readable():
    widening = widen(MLP, factor=1.5)
    assert repr(inspect(MLP)).splitlines()[0] == "fc1 (128, 3 tensors, growable)"
    assert "fc3 (10, 2 tensors, fixed: is the model's output 'logits')" in repr(inspect(MLP))
    assert "whole factors" in repr(inspect(normed("Relu")))
    for text in ("Widening(", "digits_mlp.onnx", "name='fc1', old=128, new=192", "exact=True", "seed=0"):
        assert text in repr(widening)
    assert "0x" not in repr(widening)
    assert len(repr(widening)) < 1000


def test_every_dim_has_a_name():
    text = """(float[N, 2] x) => (float[N, 2] y) {
        c = Constant<value = float[2, 3] {1.0, 2.0, -1.0, 0.5, -0.5, 0.25}>()
        h = MatMul(x, c) r = Relu(h) y = MatMul(r, w) }"""
    groups = inspect(net(text, w=draw(3, 2))).groups
    assert len(groups) == len({group.name for group in groups}) == 3
    assert all(group.name.strip("#[]0123456789") for group in groups)


def test_grouped_and_depthwise_convolutions():
    text = """(float[N, 6, 8, 8] x) => (float[N, 4, 8, 8] y) {
        h = Conv(x, up) r = Relu(h) g = Conv<group=4>(r, grouped) s = Relu(g) i = Conv(s, mix) t = Relu(i)
        d = Conv<group=10>(t, deep) y = Conv(d, down) }"""
    ends = {"up": draw(8, 6, 1, 1), "grouped": draw(12, 2, 1, 1), "mix": draw(10, 12, 1, 1)}
    teacher = net(text, **ends, deep=draw(10, 1, 1, 1), down=draw(4, 10, 1, 1))
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.covered == 1
    groups = [a.i for n in widening.student.proto.graph.node for a in n.attribute if a.name == "group"]
    assert groups[-1] == 15


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 17, 20])
def test_operator_sets(opset):
    split = "a, b = Split<axis=1>(n)" if opset < 18 else "a, b = Split<axis=1, num_outputs=2>(n)"
    squeeze = "Squeeze<axes=[2, 3]>(p)" if opset < 13 else "Squeeze(p, ends)"
    text = f"""(float[2, 3, 9, 9] x) => (float[2, 5] y) {{
        h = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, up, bias) n = BatchNormalization(h, s, z, m, v) {split}
        c = Add(a, b) r = Relu(c) q = MaxPool<kernel_shape=[2, 2]>(r) i = Conv<kernel_shape=[1, 1]>(q, side)
        l = Sigmoid(i) j = Concat<axis=1>(l, q) p = GlobalAveragePool(j) f = {squeeze} d = Dropout(f)
        y = Gemm<transB=1>(d, down, out) }}"""
    vectors = {"bias": draw(12), "s": 1 + draw(12), "z": draw(12), "m": draw(12), "v": 1 + np.abs(draw(12))}
    matrices = {"up": draw(12, 3, 3, 3), "side": draw(4, 6, 1, 1), "down": draw(5, 10), "out": draw(5)}
    ends = {"ends": np.array([2, 3])} if opset >= 13 else {}
    teacher = net(text, opset=opset, **matrices, **vectors, **ends)
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.student.proto.opset_import == teacher.opset_import
    assert widening.covered > 0.98  # all but the bias of the output
    assert sorted(new_sizes(widening).values()) == [6, 9]


def test_ir_3_lists_its_initializers_as_inputs():
    text = "(float[N, 8] x, float[8, 16] up, float[16, 4] down) => (float[N, 4] y) {"
    text += " h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    teacher = net(text, opset=8, ir=3, up=draw(8, 16), down=draw(16, 4))
    student = contents(widen_exactly(teacher, factor=1.5).student)
    assert student.ir_version == 3
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][1:] for i in student.graph.input}
    assert shapes == {"x": [8], "up": [24], "down": [4]}
    onnx.checker.check_model(student, full_check=True)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
@pytest.mark.parametrize("factor", [1.5, 2])
def test_other_float_types(kind, dtype, factor):
    teacher = mlp(dtype=dtype, kind=kind)
    assert {w.dtype for w in weights(widen_exactly(teacher, factor=factor).student).values()} == {np.dtype(dtype)}


def test_doubles_agree_to_their_last_digits():
    text = """(double[2, 3, 6, 6] x) => (double[2, 4] y) {
        h = Conv(x, up) r = Relu(h) i = Conv(r, mid) s = Add(i, r) p = GlobalAveragePool(s) f = Flatten(p)
        y = Gemm(f, down) }"""
    named = {"up": draw(8, 3, 3, 3, dtype=float), "mid": draw(8, 8, 1, 1, dtype=float), "down": draw(8, 4, dtype=float)}
    teacher = net(text, **named)
    student = contents(widen(teacher, factor=1.37).student)
    image = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6))}
    expected, actual = (ReferenceEvaluator(proto).run(None, image)[0] for proto in (teacher, student))
    assert student.graph.initializer[0].dims[0] == 11
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        pytest.param(name, factor, marks=[pytest.mark.slow] * (name in light.LARGE))
        for name in light.NAMES
        for factor in (1.37, 2)
    ],
)
def test_light_models_widen_exactly_and_nearly_all_of_their_weights_grow(name, factor):
    widening = widen(light.model(name), factor=factor)
    assert widening.covered >= 0.9 or factor != 2
    for expected, actual in zip(light.answer(name), light.run(widening.student, light.image(name)), strict=True):
        largest = np.abs(expected).max()
        assert 0 < largest < np.inf
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * largest)
