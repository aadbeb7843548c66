"""Tied weights: what they make and sum over grows evenly, or stays."""

import numpy as np
import pytest
from classes import draw, sizes_of, widen_for_class
from graphs import net, weights

from onnx_net2net import RefusedError, widen


def test_a_tied_matrix_keeps_what_it_makes_and_sums_over():
    text = """(int64[N, 5] ids) => (float[N, 5, 20] y) {
        e = Gather(table, ids) h = MatMul(e, up) r = Relu(h) d = MatMul(r, down)
        t = Transpose <perm = [1, 0]> (table) y = MatMul(d, t) }"""
    teacher = net(text, table=draw(20, 8), up=draw(8, 16), down=draw(16, 8))
    widening = widen_for_class(teacher, factor=1.5)
    assert widening.covered > 0.5
    recurrent = net("(float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w2) "
                    "d = Tanh(c) e = MatMul(d, w2) f = Tanh(e) y = MatMul(f, out) }",
                    w=draw(8, 6), w2=draw(6, 6), out=draw(6, 8))  # fmt: skip
    assert sizes_of(widen(recurrent, factor=1.5)) == sizes_of(widen_for_class(recurrent, factor=1.5)) == {"w": 9}
    text = """(int64[N, 5] ids) => (float[N, 5, 20] y) {
        e = Gather(table, ids) r = Relu(e) t = Transpose <perm = [1, 0]> (table) y = MatMul(r, t) }"""
    with pytest.raises(RefusedError, match="made and summed over by the tied weight 'table'"):
        widen(net(text, table=draw(20, 8)), framework="torch", factor=1.5)


def test_the_folded_transpose_of_a_tied_table_is_a_tie():
    text = """(int64[N, 5] ids) => (float[N, 5, 20] y) {
        e = Gather(table, ids) h = MatMul(e, up) r = Relu(h) d = MatMul(r, down) s = Add(e, d) y = MatMul(s, head) }"""
    given = {"table": draw(20, 8), "up": draw(8, 16), "down": draw(16, 8)}
    tied = net(text, **given, head=given["table"].T.copy())
    assert sizes_of(widen_for_class(tied, factor=1.5)) == {"up": 24}
    assert sizes_of(widen_for_class(net(text, **given, head=draw(8, 20)), factor=1.5)) == {"table": 12, "up": 24}


@pytest.mark.parametrize("norm", [
    "n = LayerNormalization(s, gain, shift)",
    "q = Mul(s, s) m = ReduceMean <keepdims = 1> (q, last) o = Sqrt(m) d2 = Div(s, o) g = Mul(d2, gain) "
    "n = Add(g, shift)",
    "q = MatMul(s, gain) n = Add(q, shift)",
    "s2 = Reshape(s, rows) q = Gemm(s2, gain, shift) n = Reshape(q, back)",
])  # fmt: skip
@pytest.mark.parametrize("is_folded", [False, True])
def test_a_tie_behind_a_norm_grows_by_whole_factors(norm, is_folded):
    head = "y = MatMul(n, head)" if is_folded else "t = Transpose <perm = [1, 0]> (table) y = MatMul(n, t)"
    text = f"""(int64[N, 5] ids) => (float[N, 5, 20] y) {{
        e = Gather(table, ids) h = MatMul(e, up) r = Relu(h) d = MatMul(r, down) s = Add(e, d) {norm} {head} }}"""
    given = {"table": draw(20, 8), "up": draw(8, 16), "down": draw(16, 8), "gain": draw(8), "shift": draw(1, 8)[0]}
    lists = {"last": np.array([-1]), "rows": np.array([-1, 8]), "back": np.array([-1, 5, 8])}
    given |= {name: value for name, value in lists.items() if name in norm}
    given["gain"] = draw(8, 8) if "MatMul" in norm or "Gemm" in norm else given["gain"]
    teacher = net(text, **given, **({"head": given["table"].T.copy()} if is_folded else {}))
    assert sizes_of(widen_for_class(teacher, factor=1.5)) == {"up": 24}
    widening = widen_for_class(teacher, factor=3)
    assert sizes_of(widening) == {"table": 24, "up": 48}
    found = weights(widening.student)
    np.testing.assert_array_equal(found["table"], np.tile(given["table"], 3))
    if given["gain"].ndim == 1:
        np.testing.assert_allclose(found["gain"], np.tile(given["gain"], 3) / 3, rtol=1e-6)
    np.testing.assert_allclose(found["shift"], np.tile(given["shift"], 3) / 3, rtol=1e-6)
    if is_folded:
        np.testing.assert_array_equal(found["head"], found["table"].T)


def test_copies_of_a_weight_that_layers_share_stay_copies():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        e = MatMul(x, embed) u1 = MatMul(e, up1) r1 = Relu(u1) d1 = MatMul(r1, down1) s1 = Add(e, d1)
        u2 = MatMul(s1, up2) r2 = Relu(u2) d2 = MatMul(r2, down2) s2 = Add(s1, d2) y = MatMul(s2, head) }"""
    up, down = draw(8, 16), draw(16, 8)
    teacher = net(text, embed=draw(6, 8), up1=up, up2=up, down1=down, down2=down, head=draw(8, 3))
    assert sizes_of(widen(teacher, factor=1.5)) == {"embed": 12, "up1": 24, "up2": 24}
    assert sizes_of(widen_for_class(teacher, sizes={"up2": 20})) == {"up1": 20}
    widening = widen_for_class(teacher, factor=1.5)
    assert sizes_of(widening) == {"embed": 12, "up1": 24}
    found = weights(widening.student)
    assert found["up1"].shape == (12, 24)
    for name in ("up", "down"):
        np.testing.assert_array_equal(found[f"{name}1"], found[f"{name}2"])


def test_a_tie_behind_a_norm_that_others_read_too_stays():
    text = """(int64[N, 5] ids) => (float[N, 5, 20] y, float[N, 5, 3] z) {
        e = Gather(table, ids) h = MatMul(e, up) r = Relu(h) d = MatMul(r, down) s = Add(e, d)
        n = LayerNormalization(s, gain, shift) t = Transpose <perm = [1, 0]> (table) y = MatMul(n, t)
        z = MatMul(n, other) }"""
    teacher = net(text, table=draw(20, 8), up=draw(8, 16), down=draw(16, 8), gain=draw(8), shift=draw(1, 8)[0],
                  other=draw(8, 3))  # fmt: skip
    assert sizes_of(widen_for_class(teacher, factor=2)) == {"up": 32}


def test_who_reads_the_shape_of_a_weight_is_no_second_reader():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        s = Shape(up) n = Gather(s, one) w = ConstantOfShape(n) h = MatMul(x, up) a = Add(h, w) r = Relu(a)
        y = MatMul(r, down) }"""
    teacher = net(text, up=draw(6, 16), down=draw(16, 3), one=np.array([1]))
    widening = widen_for_class(teacher, factor=1.5)
    assert sizes_of(widening) == {"up": 24}
    assert [constant.student for constant in widening.constants] == ["up", "down"]
