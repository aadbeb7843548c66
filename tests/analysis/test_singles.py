"""Hidden channels of size 1 grow where they are units; axes of size 1 that broadcast stay."""

import numpy as np
import pytest
from graphs import net, weights

from onnx_net2net import RefusedError, inspect, narrow, verify, widen


def draw(*shape):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def vectors(middle, **more):
    text = f"(float[N, 6] x) => (float[N, 4] y) {{ h = Gemm(x, up, b) {middle} y = MatMul(m, down) }}"
    known = {"up": draw(6, 1), "b": draw(1), "down": draw(1, 4), "c": draw(1), "s": draw(), "w": draw(1, 1)}
    return net(text, 18, **{name: values for name, values in {**known, **more}.items() if f"{name}" in text})


def images(middle, **more):
    text = f"(float[N, 3, 8, 8] x) => (float[N, 4, H, W] y) {{ h = Conv(x, up, b) {middle} y = Conv(m, down) }}"
    known = {"up": draw(1, 3, 3, 3), "b": draw(1), "down": draw(4, 1, 1, 1), "v": np.abs(draw(1)), "c": draw(1, 1, 1)}
    return net(text, 18, **{name: values for name, values in {**known, **more}.items() if f"{name}" in text})


UNITS = {
    "nothing between": vectors("m = Identity(h)"),
    "an activation": vectors("m = Tanh(h)"),
    "SiLU": vectors("g = Sigmoid(h) m = Mul(h, g)"),
    "a bias behind": vectors("a = Add(h, c) m = Relu(a)"),
    "a number": vectors("a = Mul(s, h) m = Relu(a)"),
    "two layers": vectors("a = Relu(h) i = MatMul(a, w) m = Add(h, i)"),
    "images": images("m = Sigmoid(h)"),
    "a BatchNormalization": images("n = BatchNormalization(h, v, b, b, v) m = Relu(n)"),
    "pooled": images("p = MaxPool<kernel_shape=[2, 2]>(h) m = Add(p, c)"),
    "transposed": images("t = ConvTranspose(h, w) m = Relu(t)", w=draw(1, 1, 2, 2)),
}


@pytest.mark.parametrize("factor", [2, 5])
@pytest.mark.parametrize("name", UNITS)
def test_a_single_hidden_channel_grows(name, factor):
    teacher = UNITS[name]
    student = widen(teacher, factor=factor).student
    verify(teacher, student).raise_if_different()
    assert weights(student)["up"].shape[0 if "Conv" in str(teacher) else 1] == factor
    back = narrow(student).student
    verify(teacher, back).raise_if_different()
    assert weights(back)["up"].shape == weights(teacher)["up"].shape


BROADCAST = {
    "a gate": net(
        """(float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
            h = Conv(x, up) g = Sigmoid(h) m = Mul(x, g) y = Conv(m, w) }""",
        up=draw(1, 8, 1, 1), w=draw(4, 8, 1, 1),
    ),
    "a bias that stretches": vectors("m = Add(h, c)", c=draw(5), down=draw(5, 4)),
    "an output": net(
        "(float[N, 6] x) => (float[N, 1] h, float[N, 4] y) { h = MatMul(x, up) y = MatMul(h, w) }",
        up=draw(6, 1), w=draw(1, 4),
    ),
    "a sum": vectors("one = Constant<value_ints=[1]>() m = ReduceSum(h, one)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROADCAST)
def test_an_axis_that_broadcasts_stays(name):
    assert not [group for group in inspect(BROADCAST[name]).groups if group.reason is None and group.size == 1]


def test_why_a_single_channel_stays_is_said_of_its_own_axis():
    with pytest.raises(RefusedError, match=r"nothing grows: MatMul 'y' reads a single unit, whose axis of size 1 may"):
        widen(vectors("one = Constant<value_ints=[1]>() m = ReduceMax(h, one)"), factor=2)
