"""Widths that a class makes equal: heads and dense layers that are as wide as a stream."""

import numpy as np
import pytest
from classes import attention, draw, sizes_of, widen_for_class
from graphs import net
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import RefusedError, verify, widen


def test_heads_follow_the_stream_that_they_are_as_wide_as():
    widening = widen_for_class(attention(), factor=2)
    assert sizes_of(widening) == {"embed": 16, "wq[0]": 4}


def test_heads_that_a_mean_runs_over_follow_by_whole_factors():
    """As of PyTorch's own attention, which returns the scores that its heads agree on."""
    teacher = attention()
    averaged = helper.make_node("ReduceMean", ["p"], ["average"], axes=[1], keepdims=0)
    place = next(n for n, node in enumerate(teacher.graph.node) if "p" in node.output)
    norm = next(node for node in teacher.graph.node if node.op_type == "LayerNormalization")
    norm.CopyFrom(helper.make_node("Tanh", ["e"], ["n"]))  # lets the stream have any width
    teacher.graph.node.insert(place + 1, averaged)
    teacher.graph.output.append(helper.make_tensor_value_info("average", TensorProto.FLOAT, ["N", 5, 5]))
    teacher.opset_import[0].version = 17
    with pytest.raises(RefusedError, match="by whole factors"):
        widen(teacher, framework="torch", factor=1.5)
    assert sizes_of(widen_for_class(teacher, factor=2))["wq[0]"] == 4


def without_norm(teacher):
    """Let the stream of an attention have any width."""
    norm = next(node for node in teacher.graph.node if node.op_type == "LayerNormalization")
    norm.CopyFrom(helper.make_node("Tanh", ["e"], ["n"]))
    return teacher


def test_a_stream_has_sizes_that_heads_can_make_up():
    teacher = without_norm(attention(stream=12, heads=3))
    assert sizes_of(widen_for_class(teacher, factor=1.5)) == {"embed": 16, "wq[0]": 4}
    with pytest.raises(RefusedError, match=r"no multiple of 4; possible are 16 and 20"):
        widen(teacher, framework="torch", sizes={"embed": 18})


def test_a_stream_stays_where_the_only_head_is_as_wide_and_cannot_grow():
    teacher = without_norm(attention(stream=8, heads=1, width=8))
    with pytest.raises(RefusedError, match=r"is as wide as all heads of 'wq', which do not grow"):
        widen(teacher, framework="torch", sizes={"embed": 16})


def test_heads_follow_the_stream_past_a_layer_that_is_as_wide():
    """Keys and values of a SegFormer read a convolution of the stream, which makes as much as it reads."""
    teacher = attention()
    for node in teacher.graph.node:
        if node.op_type == "MatMul" and node.input[1] in ("wk", "wv"):
            node.input[0] = "reduced"
    place = next(n for n, node in enumerate(teacher.graph.node) if "n" in node.output)
    teacher.graph.node.insert(place + 1, helper.make_node("MatMul", ["n", "reduce"], ["reduced"]))
    teacher.graph.initializer.append(numpy_helper.from_array(draw(8, 8) * 5, "reduce"))
    assert sizes_of(widen_for_class(teacher, factor=2)) == {"embed": 16, "reduce": 16, "wq[0]": 4}


def test_a_learnt_query_grows_by_what_the_stream_grows():
    """Its class makes the result as wide as the stream that keys and values are made of, as in attention pooling."""
    teacher = attention()
    query = next(node for node in teacher.graph.node if node.input[1:] == ["wq"])
    query.input[0] = "latents"
    nodes = [helper.make_node("Shape", ["x"], ["rows"], end=1),
             helper.make_node("Concat", ["rows", "ones"], ["to"], axis=0),
             helper.make_node("Expand", ["latent", "to"], ["latents"])]  # fmt: skip
    for node in reversed(nodes):
        teacher.graph.node.insert(0, node)
    for name, values in {"latent": draw(1, 5, 8), "ones": np.ones(2, np.int64)}.items():
        teacher.graph.initializer.append(numpy_helper.from_array(values, name))
    with pytest.raises(RefusedError, match="nothing grows"):
        widen(teacher, framework="torch", factor=1.5)  # LayerNormalization wants whole multiples of the stream
    assert sizes_of(widen_for_class(teacher, factor=2)) == {"embed": 16, "latent": 16, "wq[0]": 4}


def test_without_a_class_the_width_of_a_head_may_grow():
    assert "wv[1]" not in sizes_of(widen_for_class(attention(), factor=3))
    assert sizes_of(widen(attention(), sizes={"wq[1]": 6})) == {"wq[1]": 6}


def test_heads_of_their_own_width_grow_by_the_factor():
    widening = widen_for_class(attention(stream=10), factor=1.5)
    assert sizes_of(widening) == {"wq[0]": 3}  # LayerNormalization wants whole multiples of the stream


def test_heads_grow_when_they_are_asked_for():
    assert sizes_of(widen_for_class(attention(), factor=1.5, only=["heads"])) == {"wq[0]": 3}
    assert sizes_of(widen_for_class(attention(), sizes={"heads": 3})) == {"wq[0]": 3}


def test_a_dense_layer_as_wide_as_the_stream_follows_it():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        e = MatMul(x, embed) n = LayerNormalization(e, gain, shift) u = MatMul(n, up) r = Relu(u) d = MatMul(r, down)
        s = Add(e, d) m = LayerNormalization(s, gain2, shift2) p = MatMul(m, pool) t = Tanh(p) y = MatMul(t, head) }"""
    given = {"embed": draw(6, 8), "gain": draw(8), "shift": draw(8), "up": draw(8, 16), "down": draw(16, 8),
             "gain2": draw(8), "shift2": draw(8), "pool": draw(8, 8), "head": draw(8, 3)}  # fmt: skip
    assert sizes_of(widen_for_class(net(text, **given), factor=1.5)) == {"up": 24}
    assert sizes_of(widen_for_class(net(text, **given), factor=2)) == {"embed": 16, "up": 32, "pool": 16}
    assert sizes_of(widen_for_class(net(text, **given), factor=1.5, only=["pool"])) == {"pool": 12}
    other = {**given, "pool": draw(8, 10), "head": draw(10, 3)}
    assert sizes_of(widen_for_class(net(text, **other), factor=1.5)) == {"up": 24, "pool": 15}


def test_the_width_of_queries_and_keys_stays():
    with pytest.raises(RefusedError, match=r"cannot grow: .*0\.5 = 4 \*\* -0\.5, which a class computes anew"):
        widen(attention(), framework="torch", sizes={"wq[1]": 8})
    assert "wq[1]" not in sizes_of(widen_for_class(attention(scale=0.3), factor=2))


def test_the_width_of_queries_and_keys_grows_when_it_is_asked_for_and_no_size_is_in_their_scale():
    """The queries' weight carries the division of q k'."""
    assert sizes_of(widen_for_class(attention(scale=0.3), sizes={"wq[1]": 6})) == {"wq[1]": 6}


@pytest.mark.parametrize(("factor", "sizes"), [(2, {"embed": 16, "qkv[0]": 4, "mix": 4}), (1.5, {"ffn": 15})])
def test_heads_that_a_layer_mixes_follow_the_stream_too(factor, sizes):
    """Talking heads: what mixes them makes as many as there are."""
    text = """(float[N, 5, 6] x) => (float[N, 5, 3] y) {
        h = MatMul(x, embed) n = LayerNormalization(h, scale, shift) f = MatMul(n, qkv) g = Reshape(f, split)
        t = Transpose<perm=[2, 0, 3, 1, 4]>(g) q = Gather(t, zero) k = Gather(t, one) v = Gather(t, two)
        kt = Transpose<perm=[0, 1, 3, 2]>(k) s = MatMul(q, kt) st = Transpose<perm=[0, 2, 3, 1]>(s)
        m = MatMul(st, mix) mt = Transpose<perm=[0, 3, 1, 2]>(m) p = Softmax<axis=-1>(mt)
        pt = Transpose<perm=[0, 2, 3, 1]>(p) w = MatMul(pt, back) wt = Transpose<perm=[0, 3, 1, 2]>(w)
        c = MatMul(wt, v) ct = Transpose<perm=[0, 2, 1, 3]>(c) cm = Reshape(ct, merge) o = MatMul(cm, out)
        r = Add(h, o) z = LayerNormalization(r, scale, shift) u = MatMul(z, ffn) a = Relu(u) y = MatMul(a, head) }"""
    rng = np.random.default_rng(0)
    shapes = {"embed": (6, 8), "qkv": (8, 24), "mix": (2, 2), "back": (2, 2), "out": (8, 8), "ffn": (8, 10),
              "head": (10, 3), "scale": (8,), "shift": (8,)}  # fmt: skip
    floats = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    lists = {"split": np.array([0, 5, 3, 2, 4]), "merge": np.array([0, 5, 8])}
    places = {"zero": np.array(0), "one": np.array(1), "two": np.array(2)}
    teacher = net(text, **floats, **lists, **places)
    widening = widen(teacher, factor=factor, framework="torch")
    verify(teacher, widening.student).raise_if_different()
    grown = {change.name: change.new for change in widening.changes if change.new != change.old}
    assert {name: size for name, size in grown.items() if name in sizes} == sizes
    assert factor == 2 or set(grown) == set(sizes)
