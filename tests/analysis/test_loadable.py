"""Students for a framework's class: nothing but weights and sizes differs, and what cannot be so stays."""

import json

import numpy as np
import onnx
import pytest
from classes import attention, draw, program, reasons, sizes_of, widen_for_class
from graphs import net, weights

from onnx_net2net import BadInputError, RefusedError, load, widen
from onnx_net2net.analysis.loadable import inspect_for
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of


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


def test_a_state_that_starts_at_zeros_holds_no_weight():
    """As jax2onnx writes the first step of a recurrent cell: a weight times zeros."""
    text = """(float[N, 6] x) => (float[N, 3] y) {
        a = MatMul(x, up) z = ConstantOfShape(size) b = MatMul(z, again) h = Add(a, b) t = Tanh(h)
        c = MatMul(t, again) s = Tanh(c) y = MatMul(s, down) }"""
    size = np.array([1, 16])
    teacher = net(text, up=draw(6, 16), again=draw(16, 16), down=draw(16, 3), size=size)
    assert sizes_of(widen_for_class(teacher, factor=1.5)) == {"up": 24}


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
