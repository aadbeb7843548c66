"""Norms of weights: a gain makes up for the norm of a divided weight."""

import numpy as np
import pytest
from graphs import net, weights
from grown import draw, grown

from onnx_net2net import RefusedError, widen

NORMED = {
    "v / |v| * g": "n = ReduceL2<keepdims = 1>(v, axes) u = Div(v, n) w = Mul(u, g)",
    "v * (g / |v|)": "n = ReduceL2<keepdims = 1>(v, axes) q = Div(g, n) w = Mul(v, q)",
    "g / sqrt(sum of squares) * v": "s = Mul(v, v) t = ReduceSum<keepdims = 1>(s, axes) n = Sqrt(t) q = Div(g, n) "
    "w = Mul(q, v)",
    "v * g * (1 / |v|)": "n = ReduceL2<keepdims = 1>(v, axes) o = Reciprocal(n) p = Mul(v, g) w = Mul(p, o)",
}


@pytest.mark.parametrize("framework", [None, "torch"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_a_gain_makes_up_for_the_norm_of_a_divided_weight(name, transposed, framework):
    """With copies that share v unevenly its length is another one, which depends on the values."""
    kind = "ConvTranspose" if transposed else "Conv"
    text = f"""(float[N, 6, 9] x) => (float[N, 3, L] y) {{
        h = Conv(x, up) r = Relu(h) {NORMED[name]} c = {kind}(r, w, bias) z = Relu(c) y = Conv(z, down) }}"""
    given = {"up": draw(8, 6, 1), "v": draw(8, 8, 2), "g": draw(8, 1, 1) + 1, "bias": draw(8), "down": draw(3, 8, 1),
             "axes": np.array([1, 2])}  # fmt: skip
    teacher = net(text, **given)
    found, widening = grown(teacher, framework=framework, factor=1.5)
    assert found == {"up": 12, "bias": 12} or sorted(found.values()) == [12, 12]
    values = weights(widening.student)
    lengths = [np.sqrt(np.square(array["v"]).sum((1, 2))) for array in (given, values)]
    assert values["v"].shape == (12, 12, 2)
    assert not np.allclose(lengths[1][:8], lengths[0])  # it has changed, and the gain with it


def test_a_normed_weight_whose_outputs_stay_gets_another_gain_too():
    text = f"""(float[N, 6, 9] x) => (float[N, 3, L] y) {{
        h = Conv(x, up) r = Relu(h) {NORMED["v / |v| * g"]} y = Conv(r, w) }}"""
    teacher = net(text, up=draw(8, 6, 1), v=draw(3, 8, 2), g=draw(3, 1, 1), axes=np.array([1, 2]))
    assert grown(teacher, factor=1.5)[0] == {"up": 12}


def test_a_normed_weight_without_a_gain_stays():
    text = """(float[N, 6, 9] x) => (float[N, 3, L] y) {
        h = Conv(x, up) r = Relu(h) n = ReduceL2<keepdims = 1>(v, axes) w = Div(v, n) y = Conv(r, w) }"""
    teacher = net(text, up=draw(8, 6, 1), v=draw(3, 8, 2), axes=np.array([1, 2]))
    with pytest.raises(RefusedError, match="takes a norm of weights over it, and no gain could correct it"):
        widen(teacher, factor=1.5, framework="torch")
