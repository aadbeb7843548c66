"""What was grown can be narrowed to what it was: the strongest test of widening and deepening."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import net
from onnx import numpy_helper

from onnx_net2net import RefusedError, deepen, load, narrow, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.model.history import history

MODELS = Path(__file__).parents[3] / "models"
DIGITS = ("digits_mlp", "digits_resnet", "digits_inception_bn")


def on_disk(model):
    with load(model).on_disk() as path:
        return onnx.load(path)


def weights(proto):
    """Return the weights by the node that reads them, as vectors of equal values may share one."""
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {(node.name, index): arrays[name] for node in proto.graph.node for index, name in enumerate(node.input)
            if name in arrays}  # fmt: skip


def narrow_back(teacher, student, atol=0.0):
    """Narrow a student, and compare the result with the teacher, in its function, nodes and weights."""
    narrowing = narrow(student)
    verify(teacher, narrowing.student).raise_if_different()
    before, after = on_disk(teacher), on_disk(narrowing.student)
    assert sorted((n.name, n.op_type) for n in before.graph.node) == sorted(
        (n.name, n.op_type) for n in after.graph.node
    )
    old, new = weights(before), weights(after)
    assert {key: (w.shape, w.dtype) for key, w in old.items()} == {key: (w.shape, w.dtype) for key, w in new.items()}
    for key, values in old.items():
        np.testing.assert_allclose(new[key], values, rtol=0, atol=atol)
    return narrowing


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("factor", [1.37, 1.5, 2])
@pytest.mark.parametrize("name", DIGITS)
def test_what_was_widened(name, factor):
    teacher = MODELS / f"{name}.onnx"
    widening = widen(teacher, factor=factor)
    narrowing = narrow_back(teacher, widening.student, atol=1e-6)
    assert not narrowing.removed
    sizes = {change.name: (change.new, change.old) for change in widening.changes if change.new != change.old}
    assert {change.name: (change.old, change.new) for change in narrowing.changes} == sizes


@pytest.mark.parametrize("name", DIGITS)
def test_plain_copies_come_back_to_the_bit(name):
    teacher = MODELS / f"{name}.onnx"
    narrow_back(teacher, widen(teacher, factor=2, map="zero_out").student)
    if name != "digits_resnet":  # its units are copied at random, some to three
        narrow_back(teacher, widen(teacher, factor=2, spread=0).student)


@pytest.mark.parametrize(
    "options", [{}, {"count": 2}, {"way": "residual"}, {"way": "pair"}, {"way": "prelu"}, {"way": "maxout"}]
)
@pytest.mark.parametrize("name", DIGITS)
def test_what_was_deepened(name, options):
    teacher = MODELS / f"{name}.onnx"
    narrowing = narrow_back(teacher, deepen(teacher, all=True, **options).student)
    assert narrowing.removed
    assert not narrowing.changes


@pytest.mark.parametrize("options", [{}, {"way": "cancel"}])
def test_blocks_that_were_repeated(options):
    teacher = MODELS / "digits_resnet.onnx"
    narrow_back(teacher, deepen(teacher, depth=2, **options).student)


NORMALISED = {
    "ReduceL2": "r = ReduceL2<axes=[-1]>(h) m = Div(h, r)",
    "not below a number": "r = ReduceL2<axes=[-1]>(h) e = Constant<value_float=1e-6>() c = Max(r, e) m = Div(h, c)",
    "ReduceSumSquare": "s = ReduceSumSquare<axes=[-1]>(h) r = Sqrt(s) m = Div(h, r)",
    "by hand": "q = Mul(h, h) s = ReduceSum(q, last) r = Sqrt(s) m = Div(h, r)",
    "ReduceL1": "r = ReduceL1<axes=[-1]>(h) m = Div(h, r)",
}


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("norm", NORMALISED)
def test_what_is_divided_by_its_norm(norm, factor):
    text = f"(float[N, 6] x) => (float[N, 4] y) {{ h = Gemm(x, up, b) {NORMALISED[norm]} y = MatMul(m, down) }}"
    shapes = {"up": (6, 8), "b": (8,), "down": (8, 4)}
    constants = {"last": np.array([-1])} if "last" in text else {}
    teacher = net(text, 13, **{name: draw(*shape) for name, shape in shapes.items()}, **constants)
    for map in ("replicate", "zero_out"):
        narrow_back(teacher, widen(teacher, factor=factor, map=map).student, atol=1e-6)


def test_distances_weigh_both_sides_alike_or_stay():
    text = """(float[N, 4] x) => (float[N, 3] y) { h = Gemm(x, up) g = Mul(h, first) f = Mul(points, second)
        d = com.microsoft.CDist<metric="sqeuclidean">(g, f) y = Identity(d) }"""
    doubled = {"up": np.repeat(draw(4, 3), 2, axis=1), "points": np.repeat(draw(3, 3), 2, axis=1)}
    uneven = {"first": np.float32([1, 2, 1, 1, 1, 1]), "second": np.float32([2, 1, 1, 1, 1, 1])}
    teacher = net(text, 13, imports=', "com.microsoft" : 1', **doubled, **uneven)
    try:
        student = narrow(teacher).student
    except RefusedError:
        return
    verify(teacher, student).raise_if_different()


def test_what_is_computed_twice_in_different_ways_stays():
    text = """(float[N, 6] x) => (float[N, 6] y) {
        a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) d = Sub(a, b) s = Add(x, d) y = MatMul(s, w) }"""
    with pytest.raises(RefusedError, match="nothing to remove"):
        narrow(net(text, w=draw(6, 6)))


@pytest.mark.parametrize("name", DIGITS[1:])
def test_pairs_of_convolutions(name):
    teacher = MODELS / f"{name}.onnx"
    narrow_back(teacher, deepen(teacher, all=True, pairs=2).student)


@pytest.mark.parametrize("name", DIGITS)
def test_a_trained_network_has_nothing_to_remove(name):
    with pytest.raises(RefusedError, match="nothing to remove"):
        narrow(MODELS / f"{name}.onnx")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DIGITS)
def test_a_chain_comes_back(name, seed):
    teacher = MODELS / f"{name}.onnx"
    rng = np.random.default_rng(seed)
    student = widen(teacher, factor=rng.uniform(1.2, 2), seed=seed).student
    student = deepen(student, all=True, way=rng.choice(["identity", "pair", "residual"]), seed=seed).student
    student = widen(student, factor=rng.uniform(1.2, 2), seed=seed + 1).student
    narrow_back(teacher, student, atol=1e-5)


def test_what_is_almost_equal_stays():
    up = draw(6, 8)
    up[:, 7] = up[:, 0]
    up[0, 7] = np.nextafter(up[0, 7], np.float32(9))
    model = net("(float[N, 6] x) => (float[N, 4] y) { v = MatMul(x, up) a = Relu(v) y = MatMul(a, down) }",
                up=up, down=draw(8, 4))  # fmt: skip
    with pytest.raises(RefusedError):
        narrow(model)


def test_outputs_keep_their_units():
    up = np.repeat(draw(6, 4), 2, axis=1)
    text = "(float[N, 6] x) => (float[N, 8] a, float[N, 4] y) { a = MatMul(x, up) y = MatMul(a, down) }"
    with pytest.raises(RefusedError):
        narrow(net(text, up=up, down=draw(8, 4)))


def test_outputs_that_were_cut_come_back():
    text = "(float[N, 6] x) => (float[N, 8] a, float[N, 4] y) { v = MatMul(x, up) a = Relu(v) y = MatMul(a, down) }"
    teacher = net(text, up=draw(6, 8), down=draw(8, 4))
    student = widen(teacher, factor=1.5).student
    assert "Gather" in {node.op_type for node in student.proto.graph.node}
    narrow_back(teacher, student, atol=1e-6)


def test_shares_of_products_of_activations_come_back():
    text = """(float[N, 5, 6] x) => (float[N, 5, 4] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0, 2, 1]>(k) s = MatMul(q, t) p = Softmax(s)
        v = MatMul(x, wv) a = MatMul(p, v) y = MatMul(a, wo) }"""
    given = {"wq": draw(6, 8), "wk": draw(8, 6).T.copy(), "wv": draw(6, 7), "wo": draw(7, 4)}
    teacher = net(text, **given)
    student = widen(teacher, factor=1.5).student
    assert "Mul" not in {node.op_type for node in student.proto.graph.node}  # the queries' weight has the shares
    narrow_back(teacher, student, atol=1e-6)
    bent = net(text.replace("s = MatMul(q, t)", "g = Sigmoid(q) l = Sigmoid(t) s = MatMul(g, l)"), **given)
    student = widen(bent, factor=1.5).student
    assert "Mul" in {node.op_type for node in student.proto.graph.node}
    narrow_back(bent, student, atol=1e-6)


def test_fused_projections_and_an_output_of_hidden_units_come_back():
    """Queries, keys and values are parts of one axis, which has the dims of heads three times."""
    text = """(float[N, 5, 6] x) => (float[N, 5, 8] y) {
        h = MatMul(x, embed) n = LayerNormalization(h, scale, shift) f = MatMul(n, qkv) g = Reshape(f, split)
        q4, k4, v4 = Split<axis=2>(g, ones) q = Squeeze(q4, two) k = Squeeze(k4, two) v = Squeeze(v4, two)
        qt = Transpose<perm=[0, 2, 1, 3]>(q) kt = Transpose<perm=[0, 2, 3, 1]>(k) vt = Transpose<perm=[0, 2, 1, 3]>(v)
        s = MatMul(qt, kt) p = Softmax<axis=-1>(s) c = MatMul(p, vt) ct = Transpose<perm=[0, 2, 1, 3]>(c)
        m = Reshape(ct, merge) o = MatMul(m, out) r = Add(h, o) y = LayerNormalization(r, scale2, shift) }"""
    lists = {"split": np.array([0, 5, 3, 2, 4]), "merge": np.array([0, 5, 8]), "ones": np.array([1, 1, 1]),
             "two": np.array([2])}  # fmt: skip
    floats = {"embed": draw(6, 8), "qkv": draw(8, 24), "out": draw(8, 8), "shift": draw(8)}
    teacher = net(text, **lists, **floats, scale=1 + draw(8), scale2=2 + draw(8))
    for factor in (2, 1.37):  # the second pads what the norms read
        student = widen(teacher, factor=factor).student
        assert student.parameters > factor * load(teacher).parameters
        narrow_back(teacher, student, atol=1e-5)


def test_shares_inside_a_loop_come_back():
    """A weight that a loop hands on to itself, and that is weighed where it is read."""
    text = """(float[N, 6] x) => (float[N, 4] y) {
        t = Constant<value = bool {1}>() m = Constant<value_int = 3>() h = MatMul(x, up)
        f, g = Loop(m, t, h, mid) <body = body (int64 i, bool c, float[N, 8] s, float[8, 8] w) =>
            (bool co, float[N, 8] so, float[8, 8] wo) {
            co = Identity(c) v = MatMul(s, w) so = Relu(v) wo = Identity(w) }>
        y = MatMul(f, down) }"""
    teacher = net(text, up=draw(6, 8), mid=draw(8, 8), down=draw(8, 4))
    student = widen(teacher, factor=1.5).student
    assert narrow(student).student.parameters == load(teacher).parameters


NORMS = {
    "padded by means": "n = LayerNormalization(h, scale, shift) s = MatMul(n, back) r = Add(h, s) "
                       "m = LayerNormalization(r, scale2, shift) y = MatMul(m, down)",
    "padded by zeros": "n = RMSNormalization(h, scale) s = MatMul(n, back) r = Add(h, s) "
                       "m = RMSNormalization(r, scale2) y = MatMul(m, down)",
    "filled up": "n = LayerNormalization(h, scale, shift) s = MatMul(n, back) r = Add(n, s) "
                 "m = LayerNormalization(r, scale2, shift) y = MatMul(m, down)",
    "of nodes, weighed": "q = Mul(h, h) e = ReduceMean<keepdims=1>(q, last) c = Add(e, tiny) d = Sqrt(c) z = Div(h, d) "
                         "n = Mul(z, scale) s = MatMul(n, back) r = Add(h, s) y = MatMul(r, down)",
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_widths_that_are_no_multiples_come_back_from_under_norms(norm):
    text = f"(float[N, 5, 6] x) => (float[N, 5, 4] y) {{ h = MatMul(x, up) {NORMS[norm]} }}"
    given = {"scale": 1 + draw(8), "scale2": 2 + draw(8), "shift": draw(8), "last": np.array([-1]),
             "tiny": np.array(1e-3, np.float32)}  # fmt: skip
    used = {name: values for name, values in given.items() if name in text}
    teacher = net(text, opset=23, up=draw(6, 8), back=draw(8, 8), down=draw(8, 4), **used)
    student = widen(teacher, sizes={"up": 11}, fill_norms=True).student
    narrowing = narrow_back(teacher, student, atol=1e-5)
    assert [(change.old, change.new) for change in narrowing.changes] == [(11, 8)]


def test_units_under_a_statistic_go_only_in_equal_numbers():
    text = """(float[N, 6] x) => (float[N, 4] y) {
        v = MatMul(x, up) n = LayerNormalization(v, scale, shift) y = MatMul(n, down) }"""
    rest = {"down": draw(8, 4), "scale": np.ones(8, np.float32), "shift": np.zeros(8, np.float32)}
    twice = net(text, up=np.tile(draw(6, 4), 2), **rest)
    narrowing = narrow(twice)
    verify(twice, narrowing.student).raise_if_different()
    assert [(change.old, change.new) for change in narrowing.changes] == [(8, 4)]
    uneven = draw(6, 8)
    uneven[:, 7] = uneven[:, 0]
    with pytest.raises(RefusedError):
        narrow(net(text, up=uneven, **rest))


def test_layers_that_are_no_identity_stay():
    text = "(float[N, 4] x) => (float[N, 4] y) { v = MatMul(x, w) a = Relu(v) y = MatMul(a, down) }"
    for off in (1e-3, 1.0):
        with pytest.raises(RefusedError):
            narrow(net(text, w=np.eye(4, dtype=np.float32) + off * np.eye(4, k=1, dtype=np.float32), down=draw(4, 4)))
    assert narrow(net(text, w=np.eye(4, dtype=np.float32), down=draw(4, 4))).removed


NEUTRAL = {
    "a product with ones": "z = Mul(ones, a)", "a quotient by ones": "z = Div(a, ones)",
    "a slope of one": "z = PRelu(a, ones)", "a sum with zeros": "o = MatMul(x, zeros) z = Add(o, a)",
    "a difference from zeros": "o = MatMul(x, zeros) z = Sub(a, o)",
}  # fmt: skip
MATTERS = {
    "the inverse": "z = Div(ones, a)", "the negative": "o = MatMul(x, zeros) z = Sub(o, a)",
    "a slope of what is read": "z = PRelu(ones, a)",
}  # fmt: skip


@pytest.mark.parametrize("operand", NEUTRAL | MATTERS)
def test_an_operand_that_changes_nothing_goes_with_its_node(operand):
    text = f"(float[N, 4] x) => (float[N, 4] y) {{ v = MatMul(x, w) a = Sigmoid(v) {(NEUTRAL | MATTERS)[operand]} " \
           "y = MatMul(z, down) }"  # fmt: skip
    given = {"ones": np.ones(4, np.float32), "zeros": np.zeros((4, 4), np.float32)}
    teacher = net(text, w=draw(4, 4), down=draw(4, 4), **{name: given[name] for name in given if name in text})
    if operand in MATTERS:
        with pytest.raises(RefusedError):
            narrow(teacher)
        return
    narrowing = narrow(teacher)
    verify(teacher, narrowing.student).raise_if_different()
    assert [node.op_type for node in narrowing.student.proto.graph.node] == ["MatMul", "Sigmoid", "MatMul"]


def test_the_command(tmp_path, capsys):
    student, narrowed = tmp_path / "student.onnx", tmp_path / "narrowed.onnx"
    assert main(["widen", str(MODELS / "digits_mlp.onnx"), "-o", str(student), "--factor", "1.5"]) == 0
    assert main(["narrow", str(student), "-o", str(narrowed)]) == 0
    assert "parameters" in capsys.readouterr().out
    assert [step["operation"] for step in history(load(narrowed))] == ["widen", "narrow"]
    assert main(["narrow", str(student), "-o", str(narrowed), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verification"]["equivalent"]
    assert said["dims"]
    assert main(["narrow", str(narrowed), "-o", str(tmp_path / "no.onnx")]) == 3
    assert not (tmp_path / "no.onnx").exists()
    assert main(["replay", str(MODELS / "digits_mlp.onnx"), str(narrowed)]) == 0
