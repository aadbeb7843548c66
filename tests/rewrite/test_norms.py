"""Widths that are no multiples in front of normalisers, which get what they read filled up to whole multiples."""

import numpy as np
import onnx
import pytest
from graphs import net
from onnx import TensorProto, helper

from onnx_net2net import RefusedError, inspect, verify, widen
from onnx_net2net.cli.main import main


def draw(*shape, dtype=np.float32):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(dtype)


POST_NORM = """(FLOAT[N, S, 6] x) => (FLOAT[N, S, 4] y) {
    h = MatMul(x, up) n = NORM i = MatMul(n, mid) r = Relu(i) o = MatMul(r, out) a = Add(n, o) s = Sigmoid(a)
    m = NORM_AGAIN y = MatMul(m, down) }"""


def post_norm(norm, kind="float", dtype=np.float32, opset=18, imports="", **more):
    text = POST_NORM.replace("NORM_AGAIN", norm.replace("h", "s", 1)).replace("NORM", norm).replace("FLOAT", kind)
    shapes = {"up": (6, 8), "mid": (8, 12), "out": (12, 8), "down": (8, 4)}
    weights = {name: draw(*shape, dtype=dtype) for name, shape in shapes.items()}
    weights |= {"gain": 1 + draw(8, dtype=dtype), "shift": draw(8, dtype=dtype)}
    return net(text, opset, imports=imports, **{n: w for n, w in {**weights, **more}.items() if n in text})


def ops(model):
    return [node.op_type for node in model.proto.graph.node]


def stream(model):
    """The dim of 8 units."""
    (group,) = [g for g in inspect(model).groups if g.size == 8 and g.reason is None]
    return group


NORMS = {
    "LayerNormalization": "LayerNormalization<epsilon=1e-3>(h, gain, shift)",
    "without a shift": "LayerNormalization(h, gain)",
    "RMSNormalization": "RMSNormalization<epsilon=1e-3>(h, gain)",
    "SimplifiedLayerNormalization": "SimplifiedLayerNormalization<epsilon=1e-3>(h, gain)",
    "SkipLayerNormalization": "com.microsoft.SkipLayerNormalization(h, skipped, gain, shift, bias)",
    "SkipSimplifiedLayerNormalization": "com.microsoft.SkipSimplifiedLayerNormalization(h, skipped, gain)",
}


PRE_NORM = """(FLOAT[N, 6] x) => (FLOAT[N, 4] y) { h = Gemm(x, up, shift) n = NORM y = MatMul(n, down) }"""


@pytest.mark.parametrize("norm", ["LayerNormalization", "SimplifiedLayerNormalization"])
@pytest.mark.parametrize("size", [10, 11, 16])
def test_doubles_get_no_epsilon_that_they_would_notice(norm, size):
    """An epsilon is single precision; one that makes up for padding would be off in the eighth digit."""
    text = PRE_NORM.replace("NORM", f"{norm}<epsilon=1e-3>(h, gain)")
    for kind, dtype, pads in (("float", np.float32, True), ("double", np.float64, False)):
        small = {"up": draw(6, 8, dtype=dtype) * dtype(0.01), "shift": draw(8, dtype=dtype) * dtype(0.01)}
        others = {"gain": 1 + draw(8, dtype=dtype), "down": draw(8, 4, dtype=dtype)}
        teacher = net(text.replace("FLOAT", kind), 18, **small, **others)
        widening = widen(teacher, sizes={stream(teacher).name: size}, fill_norms=True)
        verify(teacher, widening.student).raise_if_different()
        (made,) = [node for node in widening.student.proto.graph.node if node.op_type == norm]
        (epsilon,) = [attribute.f for attribute in made.attribute if attribute.name == "epsilon"]
        assert (epsilon == np.float32(1e-3)) != (pads and size != 16), (kind, epsilon)


@pytest.mark.parametrize("size", [11, 16, 19])
@pytest.mark.parametrize("norm", NORMS)
def test_any_width_behind_a_norm_is_exact(norm, size):
    text, opset, imports = NORMS[norm], 23 if norm == "RMSNormalization" else 18, ""
    more = {}
    if "microsoft" in text:
        imports, more = ', "com.microsoft" : 1', {"skipped": draw(1, 1, 8), "bias": draw(8)}
        text = text.replace("skipped", "k")
        more["k"] = np.broadcast_to(draw(5, 8), (1, 5, 8)).copy()
    teacher = post_norm(text, opset=opset, imports=imports, **more)
    if "microsoft" in text:  # the shape of the skip must be that of the input
        for value in (*teacher.graph.input, *teacher.graph.output):
            for axis, number in enumerate((1, 5)):
                value.type.tensor_type.shape.dim[axis].dim_value = number
    widening = widen(teacher, sizes={stream(teacher).name: size}, fill_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert ops(widening.student).count("Concat") >= (2 if size % 8 else 0)
    assert ("Concat" in ops(widening.student)) == (size % 8 != 0), "whole factors need nothing"
    assert "Gather" not in ops(widening.student)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_other_float_types(kind, dtype):
    teacher = post_norm(NORMS["LayerNormalization"], kind, dtype)
    widening = widen(teacher, factor=1.37, fill_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert widening.changes[0].new == 11


def test_a_model_of_opset_9():
    teacher = post_norm(NORMS["SimplifiedLayerNormalization"], opset=9)
    verify(teacher, widen(teacher, factor=1.37, fill_norms=True).student).raise_if_different()


def test_a_norm_over_several_axes():
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        h = Conv(x, up) r = Relu(h) n = LayerNormalization<axis=1>(r, gain, shift) y = Conv(n, down) }"""
    weights = {"up": draw(6, 3, 1, 1), "gain": 1 + draw(6, 4, 4), "shift": draw(6, 4, 4), "down": draw(5, 6, 1, 1)}
    teacher = net(text, **weights)
    assert all(group.is_whole for group in inspect(teacher).groups if group.size == 6 and group.reason is None)
    verify(teacher, widen(teacher, sizes={"up": 8}, fill_norms=True).student).raise_if_different()


@pytest.mark.parametrize("opset", [11, 18])
def test_groups_that_exporters_write_as_instances(opset):
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        h = Conv(x, up) g = Reshape(h, groups) n = InstanceNormalization<epsilon=1e-3>(g, ones, zeros)
        b = Reshape(n, back) r = Relu(b) y = Conv(r, down) }"""
    weights = {"up": draw(12, 3, 1, 1), "down": draw(5, 12, 1, 1), "ones": 1 + draw(3), "zeros": draw(3)}
    teacher = net(text, opset, groups=np.array([0, 3, -1]), back=np.array([-1, 12, 4, 4]), **weights)
    inside = next(group for group in inspect(teacher).groups if group.size == 4 and group.reason is None)
    assert inside.is_whole
    widening = widen(teacher, sizes={inside.name: 7}, fill_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert "Gather" not in ops(widening.student), "copies of whole maps lie behind all others"


def test_standardised_weights():
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        h = Conv(x, up) r = Relu(h) f = Reshape(k, flat)
        b, rm, rv = BatchNormalization<training_mode=1, epsilon=1e-3>(f, gain, shift, mean, var) w = Reshape(b, back)
        y = Conv(r, w) }"""
    weights = {"up": draw(6, 3, 1, 1), "k": draw(5, 6, 3, 3), "gain": 1 + draw(5), "shift": draw(5)}
    sizes = {"flat": np.array([1, 5, -1]), "back": np.array([5, 6, 3, 3])}
    teacher = net(text, mean=np.zeros(5, np.float32), var=np.ones(5, np.float32), **weights, **sizes)
    teacher.graph.node[-1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    assert any(group.is_whole for group in inspect(teacher).groups if group.size == 6)
    verify(teacher, widen(teacher, sizes={"up": 8}, fill_norms=True).student).raise_if_different()
    verify(teacher, widen(teacher, sizes={"up": 12}).student).raise_if_different()


def test_a_norm_over_several_axes_that_all_grow():
    text = """(float[2, 6] x) => (float[2, 5] y) { h = MatMul(x, up) s = Reshape(h, split)
        n = LayerNormalization<axis=1>(s, gain) r = Reshape(n, whole) y = MatMul(r, down) }"""
    weights = {"up": draw(6, 12), "gain": 1 + draw(3, 4), "down": draw(12, 5)}
    teacher = net(text, split=np.array([2, 3, 4]), whole=np.array([2, 12]), **weights)
    widening = widen(teacher, sizes={"up[[]0]": 4, "up[[]1]": 7}, fill_norms=True)
    assert [change.new for change in widening.changes] == [4, 7]
    verify(teacher, widening.student).raise_if_different()


def test_without_it_the_nearest_multiples_are_named():
    teacher = post_norm(NORMS["LayerNormalization"])
    with pytest.raises(RefusedError, match=r"possible are 8 and 16 \(any with fill_norms\)"):
        widen(teacher, sizes={stream(teacher).name: 11})


def test_a_statistic_that_is_read_elsewhere_stays():
    teacher = post_norm("LayerNormalization(h, gain, shift)")
    for node, name in zip([n for n in teacher.graph.node if n.op_type == "LayerNormalization"], "ab", strict=True):
        node.output.extend([f"mean_{name}"])
        teacher.graph.output.append(helper.make_tensor_value_info(f"mean_{name}", TensorProto.FLOAT, ["N", "S", 1]))
    verify(teacher, widen(teacher, sizes={stream(teacher).name: 11}, fill_norms=True).student).raise_if_different()


def test_the_sum_that_a_skip_normaliser_gives_out_is_still_there():
    text = """(float[1, 5, 6] x) => (float[1, 5, 4] y) { h = MatMul(x, up)
        n, , , t = com.microsoft.SkipLayerNormalization(h, k, gain, shift) r = Sigmoid(n) s = Add(r, t)
        m = LayerNormalization(s, gain, shift) y = MatMul(m, down) }"""
    weights = {"up": draw(6, 8), "k": draw(1, 5, 8), "gain": 1 + draw(8), "shift": draw(8), "down": draw(8, 4)}
    teacher = net(text, 17, imports=', "com.microsoft" : 1', **weights)
    widening = widen(teacher, sizes={stream(teacher).name: 11}, fill_norms=True)
    verify(teacher, widening.student).raise_if_different()


@pytest.mark.parametrize(("one", "two"), [(5, 3), (4, 6), (9, 7), (11, 3)])
def test_parts_that_are_normalised_together_count_equally_often(one, two):
    text = """(float[N, 6] x) => (float[N, 4] y) {
        a = MatMul(x, one) b = MatMul(x, two) r = Relu(a) h = Concat<axis=1>(r, b)
        n = LayerNormalization(h, gain, shift) y = MatMul(n, down) }"""
    teacher = net(text, one=draw(6, 4), two=draw(6, 3), gain=1 + draw(7), shift=draw(7), down=draw(7, 4))
    widening = widen(teacher, sizes={"one": one, "two": two}, fill_norms=True)
    assert [change.new for change in widening.changes] == [one, two]
    verify(teacher, widening.student).raise_if_different()


@pytest.mark.parametrize("size", [7, 13])
def test_groups_of_an_operator(size):
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        h = Conv(x, up) n = GroupNormalization<num_groups=3, epsilon=1e-3>(h, gain, shift) r = Relu(n)
        y = Conv(r, down) }"""
    weights = {"up": draw(12, 3, 1, 1), "down": draw(5, 12, 1, 1), "gain": 1 + draw(12), "shift": draw(12)}
    teacher = net(text, 21, **weights)
    inside = next(group for group in inspect(teacher).groups if group.size == 4 and group.reason is None)
    widening = widen(teacher, sizes={inside.name: size}, fill_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert "Gather" in ops(widening.student), "copies lie inside the groups"


def test_padding_is_preferred_because_it_inserts_nothing():
    text = "(float[N, 6] x) => (float[N, 4] y) { h = MatMul(x, up) n = LayerNormalization(h, g) y = MatMul(n, down) }"
    teacher = net(text, up=draw(6, 8), g=1 + draw(8), down=draw(8, 4))
    widening = widen(teacher, factor=1.37, fill_norms=True)
    assert "Concat" not in ops(widening.student)
    assert widening.changes[0].map == "mean_pad"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--factor", "1.37"], "filled up to multiples for norms (--no-fill-norms leaves these as they are): up"),
        (["--factor", "1.37", "--no-fill-norms"], "multiples only, far from what was wanted (--fill-norms"),
        (["--factor", "1.95"], None),
        (["--set", "up=11", "--fill-norms"], "filled up to multiples"),
        (["--set", "up=16"], None),
    ],
)
def test_the_command_line_says_what_became_of_norms(tmp_path, capsys, options, hint):
    path, student = tmp_path / "t.onnx", tmp_path / "s.onnx"
    onnx.save(post_norm(NORMS["LayerNormalization"]), path)
    assert main(["widen", str(path), "-o", str(student), *options]) == 0
    out = capsys.readouterr().out
    assert "equivalent in" in out
    assert hint in out if hint else "fill-norms" not in out
    added = [node.op_type for node in onnx.load(student).graph.node].count("Concat")
    assert added == (6 if "filled" in (hint or "") else 0), "what is normalised, scale and shift, twice"


def test_an_explicit_size_that_is_no_multiple_is_refused_unless_norms_may_be_filled_up(tmp_path, capsys):
    path = tmp_path / "t.onnx"
    onnx.save(post_norm(NORMS["LayerNormalization"]), path)
    assert main(["widen", str(path), "-o", str(tmp_path / "s.onnx"), "--set", "up=11"]) == 3
    assert "possible are 8 and 16" in capsys.readouterr().err
