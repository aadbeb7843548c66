"""Inputs and outputs that grow on request: new classes, vocabulary and input channels beside the old ones."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import BadInputError, NotEquivalentError, RefusedError, inspect, load, verify, widen
from onnx_net2net.algebra.maps import NEVER
from onnx_net2net.cli.main import main
from onnx_net2net.model.history import grown_interface

HEAD = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) z = MatMul(r, down) y = Add(z, bias) }"


def draw(*shape):
    return (np.random.default_rng(shape).standard_normal(shape) * 0.5).astype(np.float32)


def classifier(text=HEAD):
    weights = {"up": draw(8, 16), "down": draw(16, 4), "bias": draw(4)}
    return net(text, **{name: w for name, w in weights.items() if name in text})


def grow(teacher, **options):
    """Widen, and assert that the teacher's part is as it was."""
    student = widen(teacher, **options).student
    assert verify(teacher, student).equivalent
    with student.on_disk() as path:
        return student, onnx.load(path)


def run(proto, **feeds):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def name_of(teacher, size, reason=""):
    """The dim of this size that grows on request only."""
    (group,) = [g for g in inspect(teacher).groups if g.size == size and g.on_request and reason in g.reason]
    return group.name


@pytest.mark.parametrize("prior", [None, 0.01, 0.25, 0.0])
def test_new_classes_start_at_the_prior_and_the_old_ones_stay(prior):
    teacher, x = classifier(), draw(5, 8)
    student, proto = grow(teacher, sizes={name_of(teacher, 4): 7}, prior=prior)
    (old,), (new,) = run(teacher, x=x), run(proto, x=x)
    np.testing.assert_array_equal(new[:, :4], old)
    share = 0.01 if prior is None else prior
    np.testing.assert_allclose(new[:, 4:], np.log(share / (1 - share)) if share else NEVER, rtol=1e-6)
    assert grown_interface(load(teacher), student) == {("y", 1): (4, 7)}
    assert proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7


def test_a_layer_without_a_bias_gets_one_for_the_prior():
    teacher = classifier("(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }")
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.5)
    assert not any(node.op_type == "Sub" for node in proto.graph.node)
    np.testing.assert_allclose(run(proto, x=draw(3, 8))[0][:, 4:], 0, atol=0)
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.1)
    np.testing.assert_allclose(run(proto, x=draw(3, 8))[0][:, 4:], np.log(1 / 9), rtol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_under_a_softmax_new_classes_have_probability_zero(log):
    kind = "LogSoftmax" if log else "Softmax"
    teacher = classifier(HEAD.replace("y = Add(z, bias)", f"w = Add(z, bias) y = {kind}(w)"))
    name, x = name_of(teacher, 4), draw(5, 8)
    _, proto = grow(teacher, sizes={name: 6})
    (old,), (new,) = run(teacher, x=x), run(proto, x=x)
    assert [node.op_type for node in proto.graph.node].count("Add") == 2
    new = np.exp(new) if log else new
    np.testing.assert_allclose(new, np.pad(np.exp(old) if log else old, [(0, 0), (0, 2)]), rtol=1e-6)
    with pytest.raises(RefusedError, match="under a softmax new classes change the old ones"):
        widen(teacher, sizes={name: 6}, prior=0.1)


def test_under_a_softmax_with_hidden_units_classes_and_copies_keep_the_old_shares():
    text = """(float[N, 8] x) => (float[N, 3] y, float[N, 4] z) {
        h = MatMul(x, up) z = MatMul(x, classes) c = Concat<axis=1>(h, z) p = Softmax<axis=1>(c)
        s = Slice(p, start, end, axis) y = MatMul(s, down) }"""
    places = {name: np.array([value]) for name, value in (("start", 0), ("end", 6), ("axis", 1))}
    teacher = net(text, up=draw(8, 6), classes=draw(8, 4), down=draw(6, 3), **places)
    student, _ = grow(teacher, sizes={name_of(teacher, 4): 6}, factor=1.5)
    assert grown_interface(load(teacher), student) == {("z", 1): (4, 6)}


def test_what_else_runs_over_classes_refuses():
    teacher = classifier(HEAD.replace("y = Add(z, bias)", "w = Add(z, bias) y = ReduceMax<keepdims=1>(w, one)"))
    teacher.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    del teacher.graph.output[:]
    teacher.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1]))
    teacher.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(RefusedError):
        widen(teacher, sizes={name_of(teacher, 4): 6})


@pytest.mark.parametrize("tail", [
    "Relu(w)", "Neg(w)", "Sigmoid(w)", "Tanh(w)", "Abs(w)", "Mul(w, w)", "Div(w, far)", "Clip(w, low, high)",
])  # fmt: skip
@pytest.mark.parametrize("bias", [(4,), (1, 4), (1, 1)])
def test_whatever_stands_between_a_layer_and_the_softmax_new_classes_have_probability_zero(tail, bias):
    text = HEAD.replace("y = Add(z, bias)", f"w = Add(z, bias) v = {tail} y = Softmax(v)")
    numbers = {name: np.array(value, np.float32) for name, value in (("far", -5e3), ("low", -2), ("high", 2))}
    teacher = net(
        text, up=draw(8, 16), down=draw(16, 4), bias=draw(*bias), **{k: v for k, v in numbers.items() if k in tail}
    )
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6})
    x = draw(5, 8)
    (old,), (new,) = run(teacher, x=x), run(proto, x=x)
    np.testing.assert_allclose(new, np.pad(old, [(0, 0), (0, 2)]), rtol=1e-6)


def test_classes_may_be_divided_by_what_is_no_class():
    tail = """w = Add(z, bias) a = Constant<value_ints = [1]>() m = ReduceL1<keepdims = 1>(x, a) v = Div(w, m)
        y = Softmax(v)"""
    teacher = classifier(HEAD.replace("y = Add(z, bias)", tail))
    grow(teacher, sizes={name_of(teacher, 4): 6})


def test_what_makes_infinities_of_new_classes_refuses_in_front_of_a_softmax_only():
    teacher = classifier(HEAD.replace("y = Add(z, bias)", "w = Add(z, bias) v = Reciprocal(w) y = Softmax(v)"))
    with pytest.raises(RefusedError, match="may make an infinity"):
        widen(teacher, sizes={name_of(teacher, 4): 6})
    teacher = classifier(HEAD.replace("y = Add(z, bias)", "w = Add(z, bias) v = Softmax(w) y = Log(v)"))
    grow(teacher, sizes={name_of(teacher, 4): 6})


def test_a_softmax_of_integers_refuses():
    tail = """w = Add(z, bias) q = QuantizeLinear(w, s, t) v = com.microsoft.QLinearSoftmax<opset=13>(q, s, t, u, t)
        y = DequantizeLinear(v, u, t)"""
    teacher = classifier(HEAD.replace("y = Add(z, bias)", tail))
    teacher.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    values = {"s": np.array(0.05, np.float32), "u": np.array(1 / 256, np.float32), "t": np.array(0, np.uint8)}
    teacher.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    with pytest.raises(RefusedError, match="normalised in integers"):
        widen(teacher, sizes={name_of(teacher, 4): 6})


@pytest.mark.parametrize(
    "tail", ["c = Add(z, wide) y = Add(c, bias)", "y = Add(z, wide)", "c = Mul(z, bias) y = Add(c, wide)"]
)
def test_new_classes_start_at_the_prior_once_however_many_vectors_they_meet(tail):
    text = HEAD.replace("y = Add(z, bias)", tail)
    weights = {"up": draw(8, 16), "down": draw(16, 4), "bias": draw(4), "wide": draw(1, 4)}
    teacher = net(text, **{name: weight for name, weight in weights.items() if name in text})
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.25)
    np.testing.assert_allclose(run(proto, x=draw(5, 8))[0][:, 4:], np.log(1 / 3), rtol=1e-6)


@pytest.mark.parametrize("table", [draw(5, 4), draw(1)])
def test_new_classes_start_at_the_prior_also_where_their_bias_is_no_vector(table):
    text = HEAD.replace("bias", "table").replace("[N, ", "[5, ")
    teacher = net(text, up=draw(8, 16), down=draw(16, 4), table=table * 0)
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.25)
    np.testing.assert_allclose(run(proto, x=draw(5, 8))[0][:, 4:], np.log(1 / 3), rtol=1e-6)


def test_the_bias_of_a_layer_holds_the_prior():
    teacher = classifier(HEAD.replace("z = MatMul(r, down) y = Add(z, bias)", "y = Gemm(r, down, bias)"))
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.25)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Relu", "Gemm"]
    np.testing.assert_allclose(run(proto, x=draw(5, 8))[0][:, 4:], np.log(1 / 3), rtol=1e-6)


def test_new_classes_of_a_layer_of_one_row_start_at_the_prior():
    teacher = net("(float[N, 1] x) => (float[N, 4] y) { y = MatMul(x, row) }", row=draw(1, 4))
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6}, prior=0.25)
    np.testing.assert_allclose(run(proto, x=draw(5, 1))[0][:, 4:], np.log(1 / 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("n = LayerNormalization(w, gain) y = Softmax(n)", "takes a statistic over it"),
        ("m = ReduceMax<keepdims=1>(w, last) s = Sub(w, m) y = Softmax(s)", "takes an extreme over this axis"),
    ],
)
def test_what_else_runs_over_classes_under_a_softmax_refuses(tail, reason):
    teacher = classifier(HEAD.replace("y = Add(z, bias)", f"w = Add(z, bias) {tail}"))
    values = {"gain": 1 + draw(4), "last": np.array([-1])}
    teacher.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n in tail)
    with pytest.raises(RefusedError, match=reason):
        widen(teacher, sizes={name_of(teacher, 4): 6})


def test_classes_that_are_rearranged_one_by_one_refuse():
    teacher = classifier(HEAD.replace("y = Add(z, bias)", "w = Add(z, bias) y = Gather<axis=1>(w, order)"))
    teacher.graph.initializer.append(numpy_helper.from_array(np.array([2, 0, 3, 1]), "order"))
    with pytest.raises(RefusedError, match="rearranged one by one"):
        widen(teacher, sizes={name_of(teacher, 4): 6})


def test_classes_of_integers_refuse_and_inputs_of_integers_grow():
    text = """(float[N, 8] x) => (float[N, 4] y) { d = DequantizeLinear(up, scale) h = MatMul(x, d) r = Relu(h)
        e = DequantizeLinear(down, scale) y = MatMul(r, e) }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.integers(-9, 9, shape, np.int8) for name, shape in {"up": (8, 16), "down": (16, 4)}.items()}
    teacher = net(text, **weights, scale=np.array(0.125, np.float32))
    with pytest.raises(RefusedError, match="its weights are integers"):
        widen(teacher, sizes={name_of(teacher, 4): 6})
    grow(teacher, sizes={name_of(teacher, 8): 11})


def test_a_softmax_over_inputs_refuses():
    teacher = classifier("(float[N, 8] x) => (float[N, 16] y) { p = Softmax(x) y = MatMul(p, up) }")
    with pytest.raises(RefusedError, match="a softmax over it would notice them"):
        widen(teacher, sizes={name_of(teacher, 8): 11})


def test_what_is_fixed_grows_not_even_on_request():
    text = "(float[N, 3, 6] x) => (float[N, 5, 4] y) { h = Conv(x, k) y = Conv(h, m) }"
    teacher = net(text, k=draw(6, 3, 3), m=draw(5, 6, 1))
    assert not [group for group in inspect(teacher).groups if group.on_request and "along this axis" in group.reason]
    (kernel,) = [group.name for group in inspect(teacher).groups if "along this axis" in (group.reason or "")]
    with pytest.raises(RefusedError, match="works along this axis"):
        widen(teacher, sizes={kernel: 4})


def test_new_input_channels_do_not_matter_yet():
    text = "(float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) { h = Conv<pads=[1, 1, 1, 1]>(x, k) y = Conv(h, m) }"
    teacher = net(text, k=draw(6, 3, 3, 3), m=draw(5, 6, 1, 1))
    _, proto = grow(teacher, sizes={name_of(teacher, 3): 4})
    x = draw(2, 3, 6, 6)
    (old,) = run(teacher, x=x)
    for extra in draw(2, 1, 6, 6), 100 + draw(2, 1, 6, 6):
        np.testing.assert_allclose(run(proto, x=np.concatenate([x, extra], axis=1))[0], old, rtol=1e-5, atol=1e-6)
    assert [tuple(t.dims) for t in proto.graph.initializer] == [(6, 4, 3, 3), (5, 6, 1, 1)]


EMBEDDED = """(int64[N, S] x) => (float[N, S, 20] y) {
    e = Gather(table, x) h = MatMul(e, up) r = Relu(h) d = MatMul(r, down) HEAD }"""


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_grows_at_its_end(tied):
    head = "t = Transpose<perm=[1, 0]>(table) y = MatMul(d, t)" if tied else "y = MatMul(d, out)"
    weights = {"table": draw(20, 8), "up": draw(8, 12), "down": draw(12, 8), **({} if tied else {"out": draw(8, 20)})}
    teacher = net(EMBEDDED.replace("HEAD", head), **weights)
    names = {group.name for group in inspect(teacher).groups if group.size == 20}
    assert len(names) == (1 if tied else 2)
    _, proto = grow(teacher, sizes=dict.fromkeys(names, 24))
    (y,) = run(proto, x=np.array([[3, 23, 0]]))
    assert y.shape == (1, 3, 24)
    assert np.isfinite(y).all()
    table = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "table")
    assert table.shape == (24, 8)
    assert table[20:].std() == pytest.approx(weights["table"].std(), rel=0.5), "new tokens look like the old ones"


def test_units_that_a_statistic_reads_are_refused():
    text = "(float[N, 8] x) => (float[N, 4] y) { n = LayerNormalization(x, gamma) y = MatMul(n, down) }"
    teacher = net(text, gamma=draw(8), down=draw(8, 4))
    with pytest.raises(RefusedError, match="takes a statistic over it"):
        widen(teacher, sizes={name_of(teacher, 8): 12})


def test_old_outputs_are_never_shifted():
    text = "(float[N, 8] x) => (float[N, 9] y) { a = MatMul(x, one) b = MatMul(x, two) y = Concat<axis=1>(a, b) }"
    teacher = net(text, one=draw(8, 4), two=draw(8, 5))
    with pytest.raises(RefusedError, match="the units of 'y' would be shifted"):
        widen(teacher, sizes={name_of(teacher, 4): 6})
    grow(teacher, sizes={name_of(teacher, 5): 6})


@pytest.mark.parametrize("factor", [None, 1.5])
def test_an_output_of_hidden_units_and_new_ones_loses_the_copies_only(factor):
    text = """(float[N, 3, 8] x) => (float[N, 4] y, float[N, 3, 6] h) {
        h = MatMul(x, up) r = Relu(h) m = MatMul(mix, r) f = Flatten(m) y = MatMul(f, down) }"""
    teacher = net(text, up=draw(8, 6), mix=draw(5, 3), down=draw(30, 4))
    student, proto = grow(teacher, sizes={name_of(teacher, 3): 5}, factor=factor)
    assert grown_interface(load(teacher), student) == {("x", 1): (3, 5), ("h", 1): (3, 5)}
    assert [dim.dim_value for dim in proto.graph.output[1].type.tensor_type.shape.dim] == [0, 5, 6]
    assert run(proto, x=draw(2, 5, 8))[1].shape == (2, 5, 6)


@pytest.mark.parametrize("first", ["up", "x"])
def test_an_axis_of_hidden_units_and_new_ones_loses_the_copies_only(first):
    text = """(float[N, 8] x) => (float[N, 4] y, float[N, 14] c) {
        h = MatMul(x, up) c = Concat<axis=1>(h, x) r = Relu(c) y = MatMul(r, down) }"""
    teacher = net(text, up=draw(8, 6), down=draw(14, 4))
    sizes = {"up": 9, name_of(teacher, 8): 10}
    _, proto = grow(teacher, sizes=sizes if first == "up" else dict(reversed(sizes.items())))
    x = draw(2, 8)
    result = run(proto, x=np.concatenate([x, [[100, 200]] * 2], axis=1).astype(np.float32))[1]
    np.testing.assert_allclose(result[:, :14], run(teacher, x=x)[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result[:, 14:], [[100, 200]] * 2)


def test_a_weight_that_is_an_output_keeps_its_size():
    text = """(float[N, 8] x) => (float[N, 4] y, float[8, 6] u) {
        u = Identity(up) h = MatMul(x, u) r = Relu(h) y = MatMul(r, down) }"""
    teacher = net(text, up=draw(8, 6), down=draw(6, 4))
    assert [group.size for group in inspect(teacher).groups if group.on_request] == [4]
    with pytest.raises(RefusedError, match="is on a weight that is the model's output 'u'"):
        widen(teacher, sizes={"up": 8})


def test_a_pattern_that_matches_hidden_dims_leaves_the_interface_alone():
    widening = widen(classifier(), sizes={"*": "2x"})
    assert [(change.old, change.new) for change in widening.changes] == [(16, 32)]
    assert not grown_interface(widening.teacher, widening.student)


def test_a_factor_leaves_the_interface_alone():
    assert [change.old for change in widen(classifier(), factor=2).changes] == [16]


@pytest.mark.parametrize("prior", [-0.1, 1.0, float("nan")])
def test_a_prior_is_a_probability(prior):
    with pytest.raises(BadInputError, match="prior"):
        widen(classifier(), factor=2, prior=prior)


def test_verify_takes_other_sizes_only_from_a_student_that_was_given_them():
    teacher = classifier()
    student, proto = grow(teacher, sizes={name_of(teacher, 4): 6})
    del proto.metadata_props[:]
    with pytest.raises(NotEquivalentError, match="output"):
        verify(teacher, proto)
    twice, _ = grow(student, sizes={name_of(student.proto, 6): 9})
    assert verify(teacher, twice).equivalent


def test_verify_sees_a_wrong_old_class():
    teacher = classifier()
    _, proto = grow(teacher, sizes={name_of(teacher, 4): 6})
    bias = next(t for t in proto.graph.initializer if t.name == "bias")
    values = numpy_helper.to_array(bias).copy()
    values[2] += 0.1
    bias.CopyFrom(numpy_helper.from_array(values, "bias"))
    assert not verify(teacher, proto).equivalent


def test_the_command_line_grows_classes(tmp_path, capsys):
    teacher, student = tmp_path / "t.onnx", tmp_path / "s.onnx"
    onnx.save(classifier(), teacher)
    assert main(["inspect", str(teacher)]) == 0
    assert "only by --set: is the model's output 'y'" in " ".join(capsys.readouterr().out.split())
    name = name_of(classifier(), 4)
    assert main(["widen", str(teacher), "-o", str(student), "--set", f"{name}=6", "--prior", "0.2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(d["before"], d["after"], d["map"]) for d in record["dims"]] == [(4, 6, "prior")]
    assert record["verification"]["equivalent"]
    assert main(["verify", str(teacher), str(student)]) == 0


# --- Names of inputs and outputs -----------------------------------------------------------------------------

POLICY = """(float[2, 7] glob, int64[2] hero, bool[2, 6] allowed) => (float[2, 6] action, float[2, 3] aim) {
    g = MatMul(glob, see) h = Gather(heroes, hero) s = Add(g, h) r = Relu(s) l = MatMul(r, act)
    m = Where(allowed, l, low) action = Softmax<axis=-1>(m) aim = MatMul(r, where) }"""


def policy():
    rng = np.random.default_rng(0)
    shapes = {"see": (7, 10), "heroes": (5, 10), "act": (10, 6), "where": (10, 3)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return net(POLICY, low=np.float32(-1e9), **weights)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("inputs.glob", 7, 9),
        ("inputs.glob[1]", 7, 9),
        ("inputs.hero", 5, 8),
        ("outputs.action", 6, 8),
        ("outputs.aim", 3, 4),
    ],
)
def test_people_name_what_they_call_inputs_and_outputs(name, before, after):
    widening = widen(policy(), sizes={name: after})
    assert [(change.old, change.new) for change in widening.changes] == [(before, after)]
    assert verify(policy(), widening.student).equivalent


def test_the_report_says_how_new_actions_come_in():
    notes = " ".join(widen(policy(), sizes={"outputs.action": 8}).notes)
    assert "probability 0" in notes
    assert "log(p / (1 - p))" in notes
    assert "learning rate" in notes
    assert "probability 0" not in " ".join(widen(policy(), sizes={"inputs.glob": 9}).notes)


def test_an_unknown_input_is_told_which_there_are():
    with pytest.raises(BadInputError, match=r"inputs\.glob"):
        widen(policy(), sizes={"inputs.globe": 9})
