"""Students for a framework's class: the same program with other weights and sizes."""

import numpy as np
from graphs import net, weights

from onnx_net2net import load, verify, widen

SIZES = ("group", "hidden_size", "num_heads")
"""Attributes that are sizes, which the caller of a class gives it."""


def draw(*shape):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def program(model):
    """The operators of a model, and what a class would not compute from its sizes."""
    return [
        (node.op_type, sorted(str(a) for a in node.attribute if a.name not in SIZES))
        for node in load(model).proto.graph.node
        if node.op_type != "Constant"
    ]


def numbers(model):
    return sorted(float(value) for value in weights(model).values() if value.size == 1 and value.dtype.kind == "f")


def widen_for_class(teacher, **options):
    """Widen, and assert that the student is the same program with other weights and sizes."""
    widening = widen(teacher, framework="torch", **options)
    verify(teacher, widening.student).raise_if_different()
    assert program(teacher) == program(widening.student)
    assert numbers(teacher) == numbers(widening.student)
    return widening


def sizes_of(widening):
    return {change.name: change.new for change in widening.changes if change.new != change.old}


def reasons(widening):
    return {group.name: group.reason for group in widening.fixed}


def attention(stream=8, heads=2, width=4, scale=None):
    """y = proj(softmax(q k' * scale) v) of a normalised stream; weights as x @ w."""
    inner = heads * width
    split = f"Constant <value = int64[4] {{0, 5, {heads}, {width}}}> ()"
    text = f"""(float[N, 5, 6] x) => (float[N, 5, 3] y) {{
        e = MatMul(x, embed)
        n = LayerNormalization(e, gain, shift)
        q0 = MatMul(n, wq)  k0 = MatMul(n, wk)  v0 = MatMul(n, wv)
        parts = {split}
        q1 = Reshape(q0, parts)  k1 = Reshape(k0, parts)  v1 = Reshape(v0, parts)
        q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v = Transpose <perm = [0, 2, 1, 3]> (v1)
        raw = MatMul(q, k)
        scores = Mul(raw, scale)
        p = Softmax <axis = -1> (scores)
        o = MatMul(p, v)
        o1 = Transpose <perm = [0, 2, 1, 3]> (o)
        whole = Constant <value = int64[3] {{0, 5, {inner}}}> ()
        o2 = Reshape(o1, whole)
        o3 = MatMul(o2, proj)
        s = Add(e, o3)
        y = MatMul(s, head)
    }}"""
    value = np.array(width**-0.5 if scale is None else scale, np.float32)
    return net(text, embed=draw(6, stream), gain=draw(stream), shift=draw(stream), wq=draw(stream, inner),
               wk=draw(stream, inner) * 2, wv=draw(inner, stream).T.copy(), scale=value, proj=draw(inner, stream) * 3,
               head=draw(stream, 3))  # fmt: skip
