"""Units that pad what a norm reads: they hold the mean or zero on their whole way."""

import numpy as np
import onnx
import pytest
from graphs import net
from wide import draw, new_sizes, widen_exactly

from onnx_net2net import RefusedError, verify, widen


def test_a_tied_matrix_that_reads_padding_as_zeros_in_one_place_and_as_means_in_another_is_untied():
    """Units that pad a LayerNormalization hold a mean in front of it and zero behind it; only zeros are read freely."""
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((4, 6)),
        "gain": 1 + rng.random(6),
        "shift": rng.standard_normal(6),
        "down": rng.standard_normal((6, 3)),
    }
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[5, 4] x) => (float[5, 3] y) {
        h = MatMul(x, up) n = LayerNormalization(h, gain, shift)
        a = MatMul(n, down) b = MatMul(h, down) y = Add(a, b)
    }"""
    teacher = onnx.parser.parse_model(text)
    for name, values in weights.items():
        teacher.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    result = widen(teacher, sizes={"up": 9})
    assert [change.map for change in result.changes] == ["mean_pad"]
    assert result.notes == ("untied, as their uses grow differently: down",)
    assert verify(teacher, result.student).equivalent


def residual_layer(branch, **extra):
    """x + branch(LayerNormalization(x)), read by a LayerNormalization and a matrix."""
    text = f"""(float[5, 4] x) => (float[5, 3] y) {{
        h = MatMul(x, up) n = LayerNormalization(h, gain, shift) {branch}
        s = Add(h, f) m = LayerNormalization(s, gain, shift) y = MatMul(m, down)
    }}"""
    own = {"up": draw(4, 6), "gain": 1 + draw(6), "shift": draw(6), "down": draw(6, 3)}
    return net(text, **own, **extra)


@pytest.mark.parametrize("scale", [draw(6), np.zeros(6, np.float32), np.array([1, -1, 1, -1, 0, 0], np.float32)])
@pytest.mark.parametrize("factor", [1.37, 2.5])
def test_padding_goes_through_a_scale_of_each_unit(scale, factor):
    """What makes the units puts the mean of the scaled units into the padding, over the padding's own scale."""
    branch = "a = MatMul(n, into) g = Gelu(a) b = MatMul(g, out) c = Add(b, bias) f = Mul(scale, c)"
    teacher = residual_layer(branch, into=draw(6, 8), out=draw(8, 6), bias=draw(6, seed=1), scale=scale, opset=20)
    result = widen_exactly(teacher, factor=factor)
    assert {change.map for change in result.changes} == {"mean_pad", "replicate"}
    assert result.covered == 1


@pytest.mark.parametrize(
    ("branch", "columns"),
    [
        ("b = MatMul(n, out) c = Mul(b, scale) f = Add(b, c)", 6),  # scaled and read as it is
        ("b = MatMul(n, out) c, d = Split<axis = 1, num_outputs = 2>(b) f = Sub(c, d)", 12),  # a mean of each half
    ],
)
def test_padding_is_refused_where_one_row_cannot_hold_two_means(branch, columns):
    teacher = residual_layer(branch, out=draw(6, columns), scale=draw(6))
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


def test_padding_goes_through_a_number_before_another_scale():
    branch = "b = MatMul(n, out) c = Mul(b, half) f = Mul(c, scale)"
    teacher = residual_layer(branch, out=draw(6, 6), scale=draw(6), half=np.array(0.5, np.float32))
    assert new_sizes(widen_exactly(teacher, sizes={"up": 9})) == {"up": 9}


@pytest.mark.parametrize(
    "branch",
    [
        pytest.param("f = Mul(b, c)", id="product of means"),
        pytest.param("d = Sigmoid(c) f = Div(half, d)", id="quotient of sigmoids"),
        pytest.param("f = Div(half, b)", id="quotient of means"),
        pytest.param("f = Max(b, c)", id="extremes of means"),
    ],
)
def test_padding_is_refused_behind_what_keeps_no_means(branch):
    teacher = residual_layer(
        f"b = MatMul(n, one) c = MatMul(n, two) {branch}",
        one=draw(6, 6), two=draw(6, 6, seed=1), half=np.array(0.5, np.float32),
    )  # fmt: skip
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})


@pytest.mark.parametrize("made", ["a = MatMul(x, up) h = Add(a, half)", "h = Gemm(x, up, half)"])
def test_padding_of_zeros_is_refused_where_a_number_is_added(made):
    text = f"(float[5, 4] x) => (float[5, 3] y) {{ {made} n = RMSNormalization(h, gain) y = MatMul(n, down) }}"
    weights = {"up": draw(4, 6), "half": np.array([0.5], np.float32), "gain": 1 + draw(6), "down": draw(6, 3)}
    teacher = net(text, opset=23, **weights)
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("p = Softmax(h) f = MatMul(p, square)", id="softmax and a normaliser"),
        pytest.param("f = ReduceMax<keepdims = 1>(h, last)", id="extreme and a normaliser"),
        pytest.param("i = Cast<to = 1>(bytes) f = MatMul(x, i)", id="integers and a normaliser"),
    ],
)
def test_padding_is_refused_where_something_else_would_notice(other):
    text = f"""(float[5, 4] x) => (float[5, 3] y) {{ h = MatMul(x, up) {other} s = Add(h, f)
        n = LayerNormalization(s, gain) y = MatMul(n, down) }}"""
    weights = {"square": draw(6, 6), "last": np.array([-1]), "bytes": np.arange(24, dtype=np.int8).reshape(4, 6)}
    used = {name: value for name, value in weights.items() if name in other}
    teacher = net(text, up=draw(4, 6), gain=1 + draw(6), down=draw(6, 3), **used)
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


def test_units_that_are_normalised_beside_fixed_ones_stay():
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) c = Concat<axis=1>(h, x)
        n = LayerNormalization(c, gain) y = MatMul(n, down) }"""
    teacher = net(text, up=draw(8, 12), gain=1 + draw(20), down=draw(20, 4))
    with pytest.raises(RefusedError, match="is the model's input 'x'"):
        widen(teacher, sizes={"up": "2x"})
