"""Students for a framework's class: nothing but weights and sizes differs, and what cannot be so stays."""

import json

import numpy as np
import onnx
import pytest
from classes import attention, draw, program, reasons, sizes_of, widen_for_class
from graphs import net, weights
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import BadInputError, RefusedError, load, verify, widen
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.loadable import frozen_constants, inspect_for
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of


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


def test_a_scale_that_a_class_computes_is_found():
    found = list(frozen_constants(infer(load(attention(width=9)))))
    assert [(constant.axis.size, constant.power) for constant in found] == [(9, -0.5)]
    assert not list(frozen_constants(infer(load(attention(scale=0.3)))))


def test_norms_are_neither_padded_nor_filled_up():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        e = MatMul(x, embed) n = LayerNormalization <epsilon = 0.001> (e, gain, shift) y = MatMul(n, head) }"""
    teacher = net(text, embed=draw(6, 8), gain=draw(8), shift=draw(8), head=draw(8, 3))
    assert sizes_of(widen(teacher, sizes={"embed": 12})) == {"embed": 12}
    with pytest.raises(RefusedError, match=r"whole factors .* possible are 8 and 16$"):
        widen(teacher, framework="torch", sizes={"embed": 12})
    assert sizes_of(widen_for_class(teacher, sizes={"embed": 16})) == {"embed": 16}
    with pytest.raises(BadInputError, match="fill-norms"):
        widen(teacher, framework="torch", factor=1.5, fill_norms=True)


def test_a_norm_of_single_operators_grows_by_whole_factors():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        e = MatMul(x, embed) s = Mul(e, e) m = ReduceMean <keepdims = 1> (s, last) a = Add(m, eps) r = Sqrt(a)
        n = Div(e, r) g = Mul(n, gain) y = MatMul(g, head) }"""
    constants = {"last": np.array([-1]), "eps": np.array(1e-5, np.float32)}
    teacher = net(text, embed=draw(6, 8), gain=draw(8), head=draw(8, 3), **constants)
    assert len(program(widen(teacher, sizes={"embed": 12}).student)) > len(program(teacher))
    with pytest.raises(RefusedError, match="takes a mean over it"):
        widen(teacher, framework="torch", sizes={"embed": 12})
    assert sizes_of(widen_for_class(teacher, factor=2)) == {"embed": 16}


def test_convolutions_and_batch_normalizations_grow_to_any_width():
    text = """(float[N, 3, 6, 6] x) => (float[N, 4] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
        b = BatchNormalization(a, g, s, m, v)
        c = Relu(b)
        d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (c, w2)
        e = GlobalAveragePool(d)
        f = Flatten(e)
        y = Gemm <transB = 1> (f, w3, b3) }"""
    teacher = net(text, w1=draw(8, 3, 3, 3), g=draw(8), s=draw(1, 8)[0], m=draw(8, 1)[:, 0], v=draw(2, 8)[0] ** 2 + 1,
                  w2=draw(8, 1, 3, 3), w3=draw(4, 8), b3=draw(4))  # fmt: skip
    assert sizes_of(widen_for_class(teacher, factor=1.37)) == {"w1": 11}


def test_a_channel_shuffle_stays_a_shuffle():
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        a = Conv(x, w1)
        r = Reshape(a, split)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        b = Reshape(t, merged)
        y = Conv(b, w2) }"""
    sizes = {"split": np.array([0, 2, 3, 4, 4]), "merged": np.array([0, 6, 4, 4])}
    teacher = net(text, w1=draw(6, 3, 1, 1), w2=draw(5, 6, 1, 1), **sizes)
    widening = widen_for_class(teacher, factor=1.5)
    assert widening.covered == 1


def test_a_scaled_embedding_keeps_its_width():
    text = """(int64[N, 5] ids) => (float[N, 5, 4] y) {
        e = Gather(table, ids) s = Mul(e, scale) h = MatMul(s, up) r = Relu(h) y = MatMul(r, down) }"""
    teacher = net(text, table=draw(20, 8), up=draw(8, 16), down=draw(16, 4), scale=np.array(8**0.5, np.float32))
    widening = widen_for_class(teacher, factor=1.5)
    assert sizes_of(widening) == {"up": 24}
    assert "= sqrt(8), which a class computes anew" in reasons(widening)["table"]


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


def test_a_list_of_places_does_not_grow():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) r = Relu(h) g = Gather <axis = 1> (r, places) y = MatMul(g, down) }"""
    teacher = net(text, up=draw(6, 16), down=draw(16, 3), places=np.arange(16))
    assert sizes_of(widen(teacher, factor=1.5))
    with pytest.raises(RefusedError, match=r"looks its units up by a list|picks its units"):
        widen_for_class(teacher, factor=1.5)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("h = MatMul(x, up) p = Softmax(h) y = MatMul(p, down)", "divides a whole among its units"),
        ("h = MatMul(x, up) r = Relu(h) q = Mul(r, r) s = ReduceSum <keepdims = 1> (q, last) d = Div(r, s) "
         "y = MatMul(d, down)", "no weight of the class could weigh copies"),
        ("h = MatMul(x, up) r = Relu(h) s = Gather <axis = 1> (r, places) y = MatMul(s, half)", "a class does not"),
        ("k = MatMul(table, up) h = MatMul(x, other) r = Relu(h) z = MatMul(r, down) q = MatMul(k, down) "
         "y = Add(z, q)", "multiplies constants"),
    ],
)  # fmt: skip
def test_what_would_need_another_operation_stays(body, match):
    constants = {"last": np.array([-1]), "places": np.arange(0, 16, 2)}
    constants |= {"up": draw(6, 16), "down": draw(16, 3), "half": draw(8, 3), "table": draw(1, 6), "other": draw(6, 16)}
    constants = {name: value for name, value in constants.items() if name in body}
    teacher = net(f"(float[N, 6] x) => (float[N, 3] y) {{ {body} }}", **constants)
    try:
        found = " ".join(filter(None, reasons(widen_for_class(teacher, factor=1.5)).values()))
    except RefusedError as error:
        found = str(error)
    assert match.split()[0] in found
    assert match in found


def test_an_output_that_is_hidden_is_not_cut():
    text = "(float[N, 6] x) => (float[N, 8] h, float[N, 3] y) { a = MatMul(x, up) h = Relu(a) y = MatMul(h, down) }"
    teacher = net(text, up=draw(6, 8), down=draw(8, 3))
    assert sizes_of(widen(teacher, factor=1.5)) == {"up": 12}
    with pytest.raises(RefusedError, match="is the model's output 'h', which a class would not cut"):
        widen(teacher, framework="torch", factor=1.5)


@pytest.mark.parametrize(
    ("number", "reason"), [("Sqrt(f)", r"0\.353553 = 8 \*\* -0\.5"), ("Mul(f, f)", "needs the teacher's size in Div")]
)
def test_a_size_used_as_a_number_is_refused(number, reason):
    text = """(float[N, 6] x) => (float[N, 3] y) {
        h = MatMul(x, up) s = Shape(h) i = Gather(s, last) f = Cast <to = 1> (i) r = NUMBER d = Div(h, r)
        y = MatMul(d, down) }"""
    teacher = net(text.replace("NUMBER", number), up=draw(6, 8), down=draw(8, 3), last=np.array(1))
    assert sizes_of(widen(teacher, factor=1.5)) == {"up": 12}
    with pytest.raises(RefusedError, match=reason):
        widen(teacher, framework="torch", factor=1.5)


def test_new_classes_need_a_bias_of_their_own():
    def teacher(body):
        given = {"up": draw(6, 8), "down": draw(8, 4), "bias": draw(4)}
        given = {name: value for name, value in given.items() if name in body}
        return net(f"(float[N, 6] x) => (float[N, 4] y) {{ {body} }}", **given)

    plain = "h = MatMul(x, up) r = Relu(h) y = MatMul(r, down)"
    widen_for_class(teacher("h = MatMul(x, up) r = Relu(h) m = MatMul(r, down) y = Add(m, bias)"), sizes={"down": 6})
    with pytest.raises(RefusedError, match="could not follow: the student needs Add"):
        widen(teacher(plain), framework="torch", sizes={"down": 6})


def test_the_record_says_what_it_was_grown_for(tmp_path):
    widen(attention(), factor=2, framework="torch").student.save(tmp_path / "student.onnx")
    (step,) = steps_of(tmp_path / "student.onnx")
    assert step["framework"] == "torch"
    (tmp_path / "teacher.onnx").write_bytes(attention().SerializeToString())
    widen(tmp_path / "teacher.onnx", factor=2, framework="torch").student.save(tmp_path / "student.onnx")
    replay(tmp_path / "teacher.onnx", steps_of(tmp_path / "student.onnx"), tmp_path / "again.onnx")
    assert weights(load(tmp_path / "again.onnx"))["wq"].shape == (16, 16)


def test_an_unknown_framework_is_refused():
    with pytest.raises(BadInputError, match="no framework 'mxnet'"):
        widen(attention(), factor=2, framework="mxnet")


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


@pytest.mark.parametrize("scale", [0.5, 0.3])
def test_inspection_for_a_class_says_what_widening_for_it_does(scale, tmp_path, capsys):
    model = attention(scale=scale)
    groups = {group.name: group.reason for group in inspect_for("torch", model).groups}
    widening = widen_for_class(model, factor=2)
    fixed = {group.name: group.reason for group in widening.fixed}
    assert {name: reason for name, reason in groups.items() if reason} == fixed
    assert sizes_of(widening).keys() <= groups.keys() - fixed.keys()
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["inspect", str(tmp_path / "model.onnx"), "--for", "torch", "--json"]) == 0
    dims = json.loads(capsys.readouterr().out)["dims"]
    assert {dim["name"]: dim["reason"] for dim in dims} == groups
