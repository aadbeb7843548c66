"""Numbers that are sizes: attributes, constants, computed ones, and those that are no sizes but data."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import net
from wide import contents, draw, widen_exactly

from onnx_net2net import RefusedError, widen


def attributes(student: object, op: str) -> dict[str, object]:
    (node,) = (node for node in contents(student).graph.node if node.op_type == op)
    return {a.name: list(a.ints) or a.i for a in node.attribute}


def test_an_attribute_that_is_a_size_is_set() -> None:
    text = """(float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
        h = Conv(x, a) r = Relu(h) d = Conv<group=6>(r, b) s = Relu(d) y = Conv(s, c) }"""
    teacher = net(text, a=draw(6, 8, 1, 1), b=draw(6, 1, 1, 1), c=draw(4, 6, 1, 1))
    student = widen_exactly(teacher, factor=1.5).student
    groups = [a.i for node in contents(student).graph.node for a in node.attribute if a.name == "group"]
    assert groups == [9]


def test_parts_that_are_no_longer_equal_are_written_down() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) a, b = Split<axis=1, num_outputs=2>(h)
        r = Relu(a) p = MatMul(r, v) s = Relu(b) q = MatMul(s, u) y = Add(p, q) }"""
    teacher = net(text, w=draw(8, 16), v=draw(8, 4), u=draw(8, 4))
    names = [change.name for change in widen(teacher, factor=2).changes]
    student = widen_exactly(teacher, sizes={names[0]: 12}).student
    assert attributes(student, "Split") == {"axis": 1}


def test_what_is_no_number_stays_none() -> None:
    """As JAX guards a variance: where a count is positive, else NaN."""
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) r = Relu(h) q = MatMul(r, v)
        none = Expand(nan, one) w2 = Where(yes, q, none) y = Relu(w2) }"""
    constants = {"nan": np.array(np.nan, np.float32), "one": np.array([1]), "yes": np.array(True)}
    student = widen_exactly(net(text, w=draw(8, 16), v=draw(16, 4), **constants), factor=1.5)
    assert student.inserted == ()


def test_a_size_that_is_data_keeps_the_teachers_value() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) s = Shape<start=1>(h) f = Cast<to=1>(s)
        q = Sqrt(f) d = Div(h, q) r = Relu(d) y = MatMul(r, v) }"""
    widening = widen_exactly(net(text, w=draw(8, 16), v=draw(16, 4)), factor=2)
    assert widening.inserted == ("the teacher's size in Div 'd'",)


def test_sizes_that_are_computed_are_corrected_where_others_are_dynamic() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) n = Shape<start=0, end=1>(x)
        t = Concat<axis=0>(n, two, rest) a = Reshape(h, t) r = Relu(a) u = Concat<axis=0>(n, flat) f = Reshape(r, u)
        y = MatMul(f, v) }"""
    sizes = {"two": np.array([2]), "rest": np.array([8]), "flat": np.array([16])}
    widen_exactly(net(text, w=draw(8, 16), v=draw(16, 4), **sizes), factor=1.5)


def test_a_size_that_is_an_output_cannot_grow() -> None:
    text = """(float[N, 8] x) => (float[N, 4] y, int64[1] s) { h = MatMul(x, w) s = Shape<start=1>(h) r = Relu(h)
        y = MatMul(r, v) }"""
    with pytest.raises(RefusedError, match="the model's output 's' is a size that would grow"):
        widen(net(text, w=draw(8, 16), v=draw(16, 4)), factor=2)


def test_a_shuffle_becomes_one_gather_of_grown_units() -> None:
    text = """(float[2, 3, 4, 4] x) => (float[2, 5, 4, 4] y) {
        h = Conv(x, up) a = Reshape(h, split) b = Transpose<perm=[0, 2, 1, 3, 4]>(a) c = Reshape(b, merged)
        s = Add(c, h) y = Conv(s, down) }"""
    shapes = {"split": np.array([2, 2, 3, 4, 4]), "merged": np.array([2, 6, 4, 4])}
    widening = widen_exactly(net(text, up=draw(6, 3, 1, 1), down=draw(5, 6, 1, 1), **shapes), factor=1.5)
    assert widening.inserted == ("Gather instead of Reshape 'c'",)
    assert [node.op_type for node in contents(widening.student).graph.node] == ["Conv", "Gather", "Add", "Conv"]
