"""Behind which layers something can be inserted: activations are told by trying them out, however they are written."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from graphs import net

from onnx_net2net import load
from onnx_net2net.analysis import activations
from onnx_net2net.analysis.activations import Site, find_sites
from onnx_net2net.analysis.inference import infer


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def sites(proto: onnx.ModelProto) -> dict[str, Site]:
    model = load(proto)
    return {site.name: site for site in find_sites(infer(model), model.proto)}


NUMBERS = {
    "root": 2**0.5,
    "one": 1,
    "half": 0.5,
    "two": 2,
    "three": 3,
    "zero": 0,
    "six": 6,
    "c": 0.044715,
    "k": 0.797885,
}


def behind(activation: str, kind: str = "float", dtype: type = np.float32, opset: int = 20) -> Site:
    """The site behind a dense layer with a bias and this activation of b, called r."""
    text = f"""({kind}[N, 6] x) => ({kind}[N, 4] y) {{
        a = MatMul(x, up) b = Add(a, bias) {activation} y = MatMul(r, down) }}"""
    weights = {name: draw(*shape).astype(dtype) for name, shape in {"up": (6, 8), "bias": (8,), "down": (8, 4)}.items()}
    numbers = {name: dtype(value) for name, value in NUMBERS.items() if re.search(rf"\b{name}\b", activation)}
    return sites(net(text, opset, **weights, **numbers))["up"]


IDEMPOTENT = {
    "Relu": "r = Relu(b)",
    "a maximum": "r = Max(b, zero)",
    "ReLU6": "r = Clip(b, zero, six)",
}

PAIRS = {
    "LeakyRelu": ("r = LeakyRelu<alpha = 0.1>(b)", 1.1),
    "SiLU": ("s = Sigmoid(b) r = Mul(b, s)", 1.0),
    "GELU": ("d = Div(b, root) e = Erf(d) p = Add(e, one) m = Mul(b, p) r = Mul(m, half)", 2.0),
    "an operator GELU": ("r = Gelu(b)", 1.0),
    "GELU by tanh": (
        "q = Mul(b, b) t = Mul(q, b) u = Mul(t, c) v = Add(b, u) w = Mul(v, k) z = Tanh(w) p = Add(z, one) "
        "m = Mul(b, p) r = Mul(m, half)", 2.0),
    "HardSwish": ("r = HardSwish(b)", 1.0),
    "HardSwish in parts": ("p = Add(b, three) q = Clip(p, zero, six) m = Mul(b, q) r = Div(m, six)", 6.0),
    "Softplus": ("r = Softplus(b)", 1.0),
}  # fmt: skip
"""What follows the layer, and phi(v) - phi(-v) in parts of v; a number that is last is no part of phi."""

NEITHER = {"Tanh": "r = Tanh(b)", "Sigmoid": "r = Sigmoid(b)", "Elu": "r = Elu(b)", "Sin": "r = Sin(b)"}


@pytest.mark.parametrize("name", IDEMPOTENT)
def test_behind_an_idempotent_activation_an_identity_can_stand(name: str) -> None:
    site = behind(IDEMPOTENT[name])
    assert site.ways[0] == "identity"
    assert (site.tensor, site.operator, site.channels, site.reason) == ("r", "MatMul", 8, "")


@pytest.mark.parametrize("name", PAIRS)
def test_where_the_difference_of_both_signs_is_a_multiple_a_pair_can_stand(name: str) -> None:
    text, factor = PAIRS[name]
    site = behind(text)
    assert site.ways[0] == "pair"
    assert site.factor == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("name", NEITHER)
def test_elsewhere_only_branches_and_layers_with_an_activation_of_their_own(name: str) -> None:
    site = behind(NEITHER[name])
    assert site.ways == ("residual", "prelu", "maxout", "factor")
    assert "is not idempotent, and phi(v) - phi(-v) is not proportional to v" in site.reason


@pytest.mark.parametrize("scale", ["r = Mul(b, two)", "r = Identity(b)", "r = Neg(b)"])
def test_what_is_linear_is_no_activation(scale: str) -> None:
    site = behind(scale)
    assert "no activation follows" in site.reason
    assert site.factor is None or "pair" not in site.ways


@pytest.mark.parametrize("line", ["Mul(b, two)", "Neg(b)"])
def test_a_line_may_stand_in_front_of_the_activation(line: str) -> None:
    site = behind(f"s = {line} r = Relu(s)")
    assert site.ways[0] == "identity"
    assert site.tensor == "r"


@pytest.mark.parametrize(("kind", "dtype"), [("double", np.float64), ("float16", np.float16)])
def test_other_floats_are_tried_out_in_their_own_precision(kind: str, dtype: type) -> None:
    assert behind(PAIRS["SiLU"][0], kind, dtype).ways[0] == "pair"


def test_a_result_inside_that_others_read_is_no_part_of_an_activation() -> None:
    site = behind("s = Sigmoid(b) m = Mul(b, s) r = Add(m, s)")
    assert "pair" not in site.ways


def convolution(rest: str, more: str = "") -> onnx.ModelProto:
    text = f"""(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y{more}) {{
        h = Conv<pads = [1, 1, 1, 1], group = 1>(x, up) {rest} y = Conv(r, down) }}"""
    known = {
        "up": draw(8, 3, 3, 3),
        "gain": draw(8),
        "shift": draw(8),
        "mean": draw(8),
        "var": np.abs(draw(8)),
        "n1": draw(8, 1, 1),
    }
    used = {name: value for name, value in known.items() if name in text}
    return net(text, **used, down=draw(4, 8, 1, 1))


def test_a_batch_normalization_belongs_to_the_layer() -> None:
    proto = convolution("n = BatchNormalization(h, gain, shift, mean, var) r = Relu(n)")
    site = sites(proto)["up"]
    assert (site.norm, site.operator, site.kernel, site.group, site.channels) == (1, "Conv", (3, 3), 1, 8)
    assert site.activation == (2,)
    assert site.ways[0] == "identity"


def test_what_is_added_behind_the_norm_belongs_to_the_layer_too() -> None:
    site = sites(convolution("n = BatchNormalization(h, gain, shift, mean, var) a = Add(n, n1) r = Relu(a)"))["up"]
    assert (site.norm, site.activation) == (1, (3,))


def test_what_others_read_in_front_of_the_norm_ends_the_layer() -> None:
    site = sites(convolution("n = BatchNormalization(h, gain, shift, mean, var) s = Relu(n) r = Add(s, h)"))["up"]
    assert (site.norm, site.activation, site.tensor) == (None, (), "h")


def test_an_output_of_the_model_is_read_outside() -> None:
    for rest in ("r = Relu(h)", "a = Add(h, n1) r = Relu(a)"):
        site = sites(convolution(rest, more=", float[N, 8, 8, 8] h"))["up"]
        assert site.activation == ()
        assert site.tensor == "h"


def test_integer_layers_have_nothing_behind_them() -> None:
    text = "(uint8[N, 6] x) => (int32[N, 4] y) { y = MatMulInteger(x, w) }"
    (site,) = sites(net(text, w=np.ones((6, 4), np.uint8))).values()
    assert site.ways == ()
    assert site.reason == "behind MatMulInteger nothing can be inserted"


def test_a_module_that_is_called_twice_has_two_names() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y) {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, v) }"""
    assert list(sites(net(text, w=draw(8, 8), v=draw(8, 4)))) == ["w", "w#2", "v"]


@pytest.mark.parametrize(("second", "times"), [("Relu", 1), ("Tanh", 2)])
def test_equal_activations_are_tried_out_once(second: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    measure = activations.Finder._measure
    monkeypatch.setattr(activations.Finder, "_measure", lambda *given: tried.append(given) or measure(*given))
    text = f"(float[N, 8] x) => (float[N, 8] y) {{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = {second}(c) }}"
    assert len(sites(net(text, w=draw(8, 8), v=draw(8, 8)))) == 2
    assert len(tried) == times
