"""Copies share a weight in parts of itself: no digits are lost, zeros stay, and whole sums stay whole."""

import ml_dtypes
import numpy as np
import pytest
from graphs import net, weights

from onnx_net2net import verify, widen
from onnx_net2net.algebra.maps import from_index, halved, identity, pad, replicate, uniform
from onnx_net2net.algebra.weights import AxisGrowth, Style, grow

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32, dead=None, by=1.0):
    """Weights of about unit gain, one unit of an axis switched off."""
    values = np.random.default_rng(shape).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    if dead is not None:
        np.moveaxis(values, dead, 0)[3] *= by
    return values.astype(dtype)


def undo(by, *shape, dtype=np.float32):
    """A scale that brings the switched-off unit back."""
    values = np.ones(16, dtype)
    values[3] = 1 / by
    return values.reshape(16, *shape)


def dense(by, kind="float", dtype=np.float32):
    text = f"({kind}[N, 8] x) => ({kind}[N, 4] y) {{ h = Gemm(x, w1, b) r = Relu(h) c = MatMul(r, w2) d = Mul(c, s) "
    made = {"w1": draw(8, 32, dtype=dtype), "b": np.abs(draw(32, 1, dtype=dtype)[:, 0]), "s": undo(by, dtype=dtype)}
    return net(text + "y = MatMul(d, w3) }", **made, w2=draw(32, 16, dtype=dtype, dead=1, by=by),
               w3=draw(16, 4, dtype=dtype))  # fmt: skip


def convolution(by):
    text = """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { h = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(h)
        c = Conv<group = 16, pads = [1, 1, 1, 1]>(r, w2) q = Relu(c) m = Conv(q, w3) d = Mul(m, s) y = Conv(d, w4) }"""
    return net(text, w1=draw(16, 3, 3, 3), w2=draw(16, 1, 3, 3), w3=draw(16, 16, 1, 1, dead=0, by=by),
               s=undo(by, 1, 1), w4=draw(4, 16, 1, 1))  # fmt: skip


def recurrent(by):
    text = """(float[5, 2, 6] x) => (float[5, 1, 2, 4] y) { p = MatMul(x, w1) a, b, c = LSTM<hidden_size = 8>(p, w, r)
        y = MatMul(a, w3) }"""
    return net(text, w1=draw(6, 16), w=draw(1, 32, 16, dead=1, by=by), r=draw(1, 32, 8, dead=1, by=by), w3=draw(8, 4))


def embedding(by):
    text = "(int64[N, S] i) => (float[N, S, 4] y) { e = Gather(t, i) a = MatMul(e, w) d = Mul(a, s) y = MatMul(d, o) }"
    return net(text, t=draw(20, 24), w=draw(24, 16, dead=1, by=by), s=undo(by), o=draw(16, 4))


def fused(by):
    text = """(float[2, 5, 16] x) => (float[2, 5, 16] y) { q = MatMul(x, wq)
        a = com.microsoft.Attention<num_heads = 4>(q, w, b) y = MatMul(a, wo) }"""
    made = {"wq": draw(16, 16), "w": draw(16, 48, dead=1, by=by), "b": np.zeros(48, np.float32), "wo": draw(16, 16)}
    return net(text, imports=', "com.microsoft" : 1', **made)


@pytest.mark.parametrize("factor", [1.5, 4])
@pytest.mark.parametrize("by", [1e-2, 1e-8])
@pytest.mark.parametrize("make", [dense, convolution, recurrent, embedding, fused], ids=lambda make: make.__name__)
def test_a_unit_of_small_weights_loses_no_digits(make, by, factor):
    teacher = make(by)
    result = verify(teacher, widen(teacher, factor=factor).student)
    assert result.equivalent
    assert max(report.ratio for report in result.outputs) < 10


@pytest.mark.parametrize(("kind", "dtype", "by"), [("float16", np.float16, 1e-2), ("double", np.float64, 1e-12)])
def test_nor_does_one_of_other_types(kind, dtype, by):
    teacher = dense(by, kind, dtype)
    verify(teacher, widen(teacher, factor=2).student).raise_if_different()


def test_zeros_stay_zeros():
    rng = np.random.default_rng(1)
    sparse = {
        f"w{k}": draw(*shape) * (rng.random(shape) < 0.1) for k, shape in enumerate([(16, 64), (64, 64), (64, 8)])
    }
    text = """(float[N, 16] x) => (float[N, 8] y) { a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c)
        y = MatMul(d, w2) }"""
    student = weights(widen(net(text, **{k: v.astype(np.float32) for k, v in sparse.items()}), factor=2).student)
    for name, values in sparse.items():
        assert np.mean(student[name] == 0) > np.mean(values == 0) - 0.05


def test_zeros_of_integers_stay_zeros():
    values = np.array([[0, 100], [100, 0], [0, -100]], np.int8)
    grown = grow(
        values,
        [AxisGrowth(uniform(3, 9), reads=True), AxisGrowth(identity(2))],
        Style(),
        RNG,
        "own",
        zero=np.zeros((), np.int8),
    )
    np.testing.assert_array_equal(grown == 0, np.tile(values == 0, (3, 1)))
    np.testing.assert_array_equal(grown.reshape(3, 3, 2).sum(axis=0), values)
    assert len(np.unique(np.abs(grown[grown != 0]))) > 1


@pytest.mark.parametrize("spread", [0.3, 0.01])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_two_shares_sum_to_the_weight_exactly_and_differ(dtype, spread):
    values = draw(40, 30).astype(dtype)
    grown = grow(
        values, [AxisGrowth(identity(40)), AxisGrowth(uniform(30, 60), reads=True)], Style(spread=spread), RNG, "own"
    )
    first, second = grown.astype(np.float64).reshape(40, 2, 30).swapaxes(0, 1)
    misses = first + second != values.astype(np.float64)
    assert np.mean(misses) < 0.02  # where a share is larger than the weight itself there may be no bit left
    assert np.mean(first == second) < (0.05 if spread > 0.1 else 0.9)  # a step of half precision is 1 %
    assert np.abs(first / values.astype(np.float64)).max() < 1.1


def test_shares_that_are_powers_of_two():
    five_and_two = halved(from_index(2, np.array([0, 1, 0, 0, 1, 0, 0])))
    assert five_and_two.weight.tolist() == [1 / 4, 1 / 2, 1 / 4, 1 / 4, 1 / 2, 1 / 8, 1 / 8]
    for map in (replicate(5, 33, RNG), uniform(4, 12), pad(4, 11, "mean"), identity(3)):
        shares = halved(map).weight
        np.testing.assert_array_equal(np.bincount(map.index, shares, map.old), np.ones(map.old))
        assert set(np.frexp(shares[shares > 0])[0]) == {0.5}
        np.testing.assert_array_equal(shares == 0, map.weight == 0)


SIGNS = """ s = Sign(x) h = MatMul(s, {0}) a = Sign(h) c = MatMul(a, {1}) d = Sign(c) e = MatMul(d, {2}) f = Sign(e)
    y = MatMul(f, w4) }}"""
HEAD = "(float[N, 8] x) => (float[N, 6] y) {"


def signs(*shape):
    return np.sign(np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def binarized(way):
    """Networks whose sums are whole, of which half are 0, in front of Sign, thresholds and Floor."""
    made = {"w1": signs(8, 40), "w2": signs(40, 40), "w3": signs(40, 40), "w4": signs(40, 6)}
    if way == "weights":
        return net(HEAD + SIGNS.format("w1", "w2", "w3"), **made)
    if way == "signs of weights":
        latent = {name: draw(*value.shape) if name < "w4" else value for name, value in made.items()}
        return net(HEAD + "v1 = Sign(w1) v2 = Sign(w2) v3 = Sign(w3)" + SIGNS.format("v1", "v2", "v3"), **latent)
    if way == "thresholds":
        text = """ s = Sign(x) h = MatMul(s, w1) p = GreaterOrEqual(h, z) a = Where(p, one, less) c = MatMul(a, w2)
            q = GreaterOrEqual(c, z) d = Where(q, one, less) e = MatMul(d, w3) k = Div(e, two) f = Floor(k)
            y = MatMul(f, w4) }"""
        numbers = {"z": np.float32(0), "one": np.float32(1), "less": np.float32(-1), "two": np.float32(2)}
        return net(HEAD + text, **made, **numbers)
    text = """(float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) { s = Sign(x) h = Conv<pads = [1, 1, 1, 1]>(s, w1)
        a = Sign(h) c = Conv<pads = [1, 1, 1, 1]>(a, w2) n = BatchNormalization(c, g, o, o, g) d = Sign(n)
        y = Conv(d, w3) }"""
    norm = {"g": np.ones(20, np.float32), "o": np.zeros(20, np.float32)}
    return net(text, w1=signs(20, 3, 3, 3), w2=signs(20, 20, 3, 3), w3=signs(6, 20, 1, 1), **norm)


@pytest.mark.parametrize("spread", [0.3, 0])
@pytest.mark.parametrize("factor", [1.37, 2, 3.3])
@pytest.mark.parametrize("way", ["weights", "signs of weights", "thresholds", "convolutions"])
def test_whole_sums_stay_whole(way, factor, spread):
    """Whole numbers that are summed in shares of 1/3 miss 0 by a rounding, and Sign makes 1 of it."""
    teacher = binarized(way)
    result = verify(teacher, widen(teacher, factor=factor, spread=spread).student)
    assert result.equivalent
    assert result.outputs[0].max_abs == 0
