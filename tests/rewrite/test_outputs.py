"""Outputs that are hidden units too: they grow inside, and are cut to the teacher's units."""

import dataclasses

import numpy as np
import onnx
import pytest
from graphs import net, weights
from onnx import TensorProto, helper
from wide import contents, draw, new_sizes, run, widen_exactly

from onnx_net2net import RefusedError, load, widen
from onnx_net2net.rewrite.outputs import cut_again, uncut

HIDDEN_OUTPUT = """(float[N, 8] x) => (float[N, 4] y, float[N, 12] a) {
    a = MatMul(x, up) r = Relu(a) i = MatMul(r, mid) s = Relu(i) y = MatMul(s, down) }"""


@pytest.mark.parametrize("kind", ["replicate", "zero_out"])
def test_a_hidden_tensor_that_is_also_an_output_grows_and_is_cut_to_the_teachers_units(kind):
    teacher = net(HIDDEN_OUTPUT, up=draw(8, 12), mid=draw(12, 6), down=draw(6, 4))
    widening = widen_exactly(teacher, factor=1.5, map=kind)
    assert new_sizes(widening) == {"up": 18, "mid": 9}
    graph = contents(widening.student).graph
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in graph.output] == [4, 12]
    assert [node.op_type for node in graph.node].count("Gather") == 1
    assert widening.notes == ("outputs cut to the teacher's units (a Gather): a",)


def test_an_output_of_several_hidden_axes_is_cut_along_each():
    text = """(float[2, 8] x) => (float[2, 4] y, float[2, 3, 5] a, float[2, 15] h) {
        h = MatMul(x, up) a = Reshape(h, heads) t = Transpose<perm=[0, 2, 1]>(a) f = Reshape(t, flat)
        y = MatMul(f, down) }"""
    shapes = {"heads": np.array([2, 3, 5]), "flat": np.array([2, 15])}
    teacher = net(text, up=draw(8, 15), down=draw(15, 4), **shapes)
    widening = widen_exactly(teacher, sizes={"up[0]": 4, "up[1]": "2x"})
    assert weights(widening.student)["up"].shape == (8, 40)


def shown_shuffle(shown):
    """A channel shuffle, of which a tensor in the middle is an output as well."""
    text = f"""(float[2, 3, 4, 4] x) => (float[2, 5, 4, 4] y, float[] {shown}) {{
        h = Conv(x, up) a = Reshape(h, split) b = Transpose<perm=[0, 2, 1, 3, 4]>(a) c = Reshape(b, merged)
        s = Add(c, h) y = Conv(s, down) }}"""
    shapes = {"a": (2, 2, 3, 4, 4), "b": (2, 3, 2, 4, 4), "c": (2, 6, 4, 4)}
    weights = {"up": draw(6, 3, 1, 1), "down": draw(5, 6, 1, 1)}
    teacher = net(text, split=np.array(shapes["a"]), merged=np.array(shapes["c"]), **weights)
    teacher.graph.output[1].CopyFrom(helper.make_tensor_value_info(shown, TensorProto.FLOAT, shapes[shown]))
    return teacher


def test_a_channel_shuffle_with_an_output_inside_is_not_replaced_by_a_gather():
    widen_exactly(shown_shuffle("c"), factor=1.5)
    for shown in "ab":
        with pytest.raises(RefusedError):
            widen(shown_shuffle(shown), factor=1.5)


def test_a_rearranged_weight_that_is_also_an_output_keeps_its_values():
    """What divides the weight among copies must stand behind the output."""
    text = """(float[N, 8] x) => (float[N, 4] y, float[12, 4] t) {
        h = MatMul(x, up) t = Transpose<perm=[1, 0]>(down) y = MatMul(h, t) }"""
    teacher = net(text, up=draw(8, 12), down=draw(4, 12))
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.notes == ("outputs cut to the teacher's units (a Gather): t",)


def test_a_constant_that_is_an_output_keeps_its_size():
    text = "(float[N, 8] x) => (float[N, 4] y, float[12, 4] c) { h = MatMul(x, up) y = MatMul(h, w) c = Identity(w) }"
    with pytest.raises(RefusedError, match="is the model's output 'c'"):
        widen(net(text, up=draw(8, 12), w=draw(12, 4)), factor=1.5)


def test_a_rearranged_weight_is_not_divided_for_those_who_look_units_up_in_it():
    text = """(int64[N] ids) => (float[N, 20] y) {
        t = Transpose<perm=[1, 0]>(table) u = Gather<axis=1>(t, ids) e = Transpose<perm=[1, 0]>(u) r = Relu(e)
        y = MatMul(r, t) }"""
    assert new_sizes(widen_exactly(net(text, table=draw(20, 12)), factor=1.5)) == {"table": 18}


def test_an_output_that_no_weight_reads_keeps_its_size():
    text = """(float[N, 8] x) => (float[N, 4] y, float[N, 12] a) {
        h = MatMul(x, up) a = MatMul(x, side) y = MatMul(h, down) s = ReduceSum<keepdims=1>(a, one) }"""
    teacher = net(text, up=draw(8, 6), side=draw(8, 12), down=draw(6, 4), one=np.array([1]))
    widening = widen_exactly(teacher, factor=1.5)
    assert new_sizes(widening) == {"up": 9}
    assert "is the model's output 'a'" in {group.reason for group in widening.fixed}


def test_a_cut_is_taken_off_and_cut_again():
    teacher = net(HIDDEN_OUTPUT, up=draw(8, 12), mid=draw(12, 6), down=draw(6, 4))
    student = widen_exactly(teacher, sizes={"up": 18}).student
    whole, cuts = uncut(student)
    (cut,) = cuts
    assert (cut.output.name, cut.axis, cut.places.tolist()) == ("a", 1, list(range(12)))
    assert "Gather" not in {node.op_type for node in whole.proto.graph.node}
    (shown,) = [value for value in whole.proto.graph.output if value.name != "y"]
    assert shown.name == cut.node.input[0]
    assert not shown.type.tensor_type.shape.dim[1].HasField("dim_value"), "as many as there are"
    again = contents(cut_again(whole, cuts))
    onnx.checker.check_model(again, full_check=True)
    feeds = {"x": draw(3, 8)}
    assert list(again.graph.output) == list(student.proto.graph.output)
    for one, other in zip(run(again, feeds), run(contents(student), feeds), strict=True):
        np.testing.assert_array_equal(one, other)


def test_places_of_a_cut_may_change_while_it_is_off():
    teacher = net(HIDDEN_OUTPUT, up=draw(8, 12), mid=draw(12, 6), down=draw(6, 4))
    whole, (cut,) = uncut(widen_exactly(teacher, sizes={"up": 18}).student)
    student = cut_again(whole, [dataclasses.replace(cut, places=cut.places[::-1].copy())])
    backward, forward = (run(contents(model), {"x": draw(3, 8)})[1] for model in (student, load(teacher)))
    np.testing.assert_allclose(backward, forward[:, ::-1], rtol=1e-5)


def test_a_gather_that_somebody_else_reads_is_no_cut():
    text = """(float[N, 8] x) => (float[N, 4] y, float[N, 3] g) {
        h = MatMul(x, up) g = Gather<axis = 1>(h, places) y = MatMul(g, down) }"""
    model = load(net(text, up=draw(8, 12), down=draw(3, 4), places=np.array([0, 2, 4])))
    assert uncut(model) == (model, [])


def test_nor_is_one_of_what_the_model_is_given():
    text = "(float[N, 8] x) => (float[N, 4] y, float[N, 3] g) { g = Gather<axis = 1>(x, places) y = MatMul(x, down) }"
    model = load(net(text, down=draw(8, 4), places=np.array([0, 2, 4])))
    assert uncut(model) == (model, [])


def test_two_cuts_may_share_their_places():
    text = """(float[N, 8] x) => (float[N, 4] y, float[N, 12] a, float[N, 12] b) {
        a = MatMul(x, up) b = Relu(a) i = MatMul(b, mid) s = Relu(i) y = MatMul(s, down) }"""
    teacher = net(text, up=draw(8, 12), mid=draw(12, 6), down=draw(6, 4))
    proto = contents(widen_exactly(teacher, sizes={"up": 18}).student)
    first, second = (node for node in proto.graph.node if node.op_type == "Gather")
    second.input[1] = first.input[1]
    whole, cuts = uncut(load(proto))
    assert len(cuts) == 2
    cuts[1] = dataclasses.replace(cuts[1], places=cuts[1].places[::-1].copy())
    _, a, b = run(contents(cut_again(whole, cuts)), {"x": draw(3, 8)})
    np.testing.assert_allclose(np.maximum(a, 0)[:, ::-1], b)
