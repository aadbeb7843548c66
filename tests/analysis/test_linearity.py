"""Who carries the division among copies where no weight is read by the sum itself."""

import numpy as np
import pytest
from graphs import net
from grown import draw, grown, reasons

from onnx_net2net import RefusedError, verify, widen

LINEAR = {
    "a vector that is multiplied on and summed over": (
        "h = MatMul(x, up) t = Tanh(h) m = Mul(t, att) e = ReduceSum<keepdims = 1>(m, last) g = Sigmoid(e) "
        "z = Mul(t, g) y = MatMul(z, down)", {"att": (8,)}, {"up": 12}),
    "two layers in front of a product": (
        "q = MatMul(x, up) k = MatMul(x, key) kb = Add(k, bias) kr = Relu(kb) t = Transpose<perm = [1, 0]>(kr) "
        "s = MatMul(q, t) p = Tanh(s) y = MatMul(p, x3)", {"key": (6, 8), "bias": (8,)}, {"up": 12}),
    "the one of two layers that nobody else reads": (
        "q = MatMul(x, up) n = Tanh(q) k = MatMul(x, key) m = Mul(n, k) e = ReduceSum<keepdims = 1>(m, last) "
        "z = Mul(n, e) y = MatMul(z, down)", {"key": (6, 8)}, {"up": 12}),
    "a part of what a layer makes": (
        "h = MatMul(x, fused) a, c = Split<axis = 1, num_outputs = 2>(h) s = Sigmoid(a) m = Mul(s, c) "
        "e = ReduceSum<keepdims = 1>(m, last) g = MatMul(s, down) y = Mul(g, e)", {"fused": (6, 16)}, {"fused": 12}),
    "a weight times a number": (
        "w = Mul(up, number) h = MatMul(x, w) r = Relu(h) v = Mul(down, number) y = MatMul(r, v)", {}, {"up": 12}),
    "a weight over its largest stretch u' W v": (
        "h = MatMul(x, up) r = Relu(h) wt = Transpose<perm = [1, 0]>(down) wv = MatMul(wt, right) s = MatMul(left, wv) "
        "v = Div(down, s) y = MatMul(r, v)", {"right": (8,), "left": (3,)}, {"up": 12}),
    "rows of a layer in front of a homogeneous function": (
        "q = MatMul(x, up) r = LeakyRelu(q) k = Sigmoid(q2) m = Mul(r, k) e = ReduceSum<keepdims = 1>(m, last) "
        "y = MatMul(e, one_row)", {"one_row": (1, 3)}, {"aside": 12}),
}  # fmt: skip


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("name", LINEAR)
def test_whatever_is_linear_carries_the_division(name, factor):
    body, shapes, sizes = LINEAR[name]
    body = body.replace("q2", "side") if "q2" in body else body
    if "side" in body:
        body = "side = MatMul(x, aside) " + body
        shapes = {**shapes, "aside": (6, 8)}
    if "x3" in body:
        body = "x3 = MatMul(x, out) " + body
        shapes = {**shapes, "out": (6, 3)}
    shapes = {"up": (6, 8), "down": (8, 3), **shapes}
    given = {key: draw(*shape, seed=len(key)) for key, shape in shapes.items() if key in body}
    given |= {"last": np.array([-1])} if "last" in body else {}
    given |= {"number": np.array(0.37, np.float32)} if "number" in body else {}
    teacher = net(f"(float[N, 6] x) => (float[N, 3] y) {{ {body} }}", **given)
    found, widening = grown(teacher, factor=factor)
    assert found == {key: int(size * factor / 1.5) for key, size in sizes.items()}
    assert "no weight of the class" not in reasons(widening)
    grown(teacher, framework=None, factor=factor)  # nor does plain widening need a node


def test_the_values_of_a_constant_node_carry_it_too():
    """Exporters leave them without a name."""
    values = ", ".join(map(str, draw(8, 3).ravel()))
    text = f"""(float[N, 6] x) => (float[N, 3] y) {{
        h = MatMul(x, up) r = Tanh(h) w = Constant<value = float[8, 3] {{ {values} }}>() y = MatMul(r, w) }}"""
    _, widening = grown(net(text, up=draw(6, 8)), framework=None, factor=2)
    assert widening.inserted == ()


def test_what_is_multiplied_on_keeps_its_precision():
    """Shares of half precision that are used as floats would be rounded."""
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) r = Relu(h) w = Cast<to = 1>(half) y = MatMul(r, w) }"""
    teacher = net(text, up=draw(6, 8), half=draw(8, 3).astype(np.float16))
    widening = widen(teacher, factor=1.5)
    verify(teacher, widening.student).raise_if_different()


def test_a_factor_that_both_operands_come_from_is_not_divided_twice():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) t = Tanh(h) m = Mul(t, t) e = ReduceSum<keepdims = 1>(m, last) z = Mul(t, e)
        y = MatMul(z, down) }"""
    teacher = net(text, up=draw(6, 8), down=draw(8, 3), last=np.array([-1]))
    with pytest.raises(RefusedError, match="no weight of the class could weigh copies"):
        widen(teacher, factor=1.5, framework="torch")
    verify(teacher, widen(teacher, factor=1.5).student).raise_if_different()


@pytest.mark.parametrize("others", ["", "k = MatMul(h, down) z = Add(s, k)"], ids=["alone", "read by another sum"])
@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_copies_get_equal_shares_in_front_of_a_sum_of_absolute_values(others, spread):
    text = f"""(float[N, 6] x) => (float[N, K] y) {{ h = MatMul(x, up) s = ReduceL1<keepdims = 1>(h, last) {others}
        y = MatMul({"z" if others else "s"}, out) }}"""
    drawn = {"up": draw(6, 8), "down": draw(8, 5, seed=1), "out": draw(5 if others else 1, 3, seed=2)}
    teacher = net(text, last=np.array([-1]), **(drawn if others else {**drawn, "down": draw(1)}))
    for factor in (1.37, 2.0):
        student = widen(teacher, sizes={"up": int(8 * factor)}, spread=spread).student
        verify(teacher, student).raise_if_different()
