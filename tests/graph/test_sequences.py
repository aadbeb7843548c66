"""Sequences of tensors: where constants say which part is meant, a sequence is nothing but its parts."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_net2net import load, verify, widen
from onnx_net2net.graph.sequences import without_sequences


def net(text, **weights):
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g (float[2, 8] x) => (float[2, 3] y) {text}')
    rng = np.random.default_rng(0)
    for name, value in weights.items():
        value = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.array(value, np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


HALVES = """{
    h = MatMul(x, w)
    s = SplitToSequence<axis=1>(h%s)
    a = SequenceAt(s, zero)
    b = SequenceAt(s, %s)
    p = Mul(a, b)
    y = MatMul(p, v)
}"""
LISTED = """{
    h = MatMul(x, w)
    g = Relu(h)
    %s
    y = MatMul(z, v)
}"""
MODELS = {
    "parts of one size": net(HALVES % (", n", "one"), w=(8, 12), v=(6, 3), n=6, zero=0, one=1),
    "parts of listed sizes": net(HALVES % (", n", "last"), w=(8, 12), v=(6, 3), n=[6, 6], zero=0, last=-1),
    "parts of a size that does not divide": net(
        HALVES.replace("Mul(a, b)", "Concat<axis=1>(b, a)") % (", n", "one"), w=(8, 11), v=(11, 3), n=6, zero=0, one=1
    ),
    "single units": net(
        HALVES.replace("x, w)", "x, w) h3 = Reshape(h, s3)").replace("<axis=1>(h%s", "<axis=1, keepdims=0>(h3%s")
        % ("", "last"),
        w=(8, 12), v=(6, 3), s3=[2, 2, 6], zero=0, last=-1,
    ),
    "a list": net(LISTED % "s = SequenceConstruct(h, g) z = SequenceAt(s, one)", w=(8, 6), v=(6, 3), one=1),
    "a list that grows": net(
        LISTED
        % "e = SequenceEmpty() i = SequenceInsert(e, h) s = SequenceInsert(i, g) z = ConcatFromSequence<axis=1>(s)",
        w=(8, 6), v=(12, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("factor", [1.37, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_sequence_grow(name, factor):
    widened = widen(MODELS[name], factor=factor)
    assert widened.covered == 1
    verify(MODELS[name], widened.student).raise_if_different()
    assert not any("Sequence" in node.op_type for node in widened.student.proto.graph.node)


STAYS = {
    "counted from the end without a length": net(HALVES % (", n", "last"), w=(8, 12), v=(6, 3), n=6, zero=0, last=-1),
    "an element that is put in between": net(
        LISTED % "e = SequenceEmpty() i = SequenceInsert(e, h) s = SequenceInsert(i, g, zero) z = SequenceAt(s, zero)",
        w=(8, 6), v=(6, 3), zero=0,
    ),
    "stacked along a new axis": net(
        LISTED % "s = SequenceConstruct(h, g) c = ConcatFromSequence<axis=0, new_axis=1>(s) "
        "z = ReduceMax<keepdims=0>(c, axes)",
        w=(8, 6), v=(6, 3), axes=[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_a_sequence_that_is_more_than_its_parts_stays(name):
    kinds = [node.op_type for node in without_sequences(STAYS[name]).graph.node]
    assert {"SequenceAt", "ConcatFromSequence"}.intersection(kinds)
    assert any("Sequence" in kind for kind in kinds if kind not in ("SequenceAt", "ConcatFromSequence"))


def test_an_axis_is_dropped_only_where_no_lengths_are_given():
    split = HALVES.replace("<axis=1>(h%s", "<axis=1, keepdims=0>(h%s") % (", n", "one")
    proto = without_sequences(net(split, w=(8, 12), v=(6, 3), n=6, zero=0, one=1))
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Slice", "Slice", "Mul", "MatMul"]


def test_a_place_that_can_be_fed_leaves_the_sequence_as_it_stays():
    proto = net(HALVES % (", n", "one"), w=(8, 12), v=(6, 3), n=6, zero=0, one=1)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("one", onnx.TensorProto.INT64, []))
    assert [node.op_type for node in without_sequences(proto).graph.node].count("SequenceAt") == 1


def test_a_sequence_that_is_an_output_stays():
    proto = net(HALVES % (", n", "one"), w=(8, 12), v=(6, 3), n=6, zero=0, one=1)
    proto.graph.output.append(onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None))
    kinds = [node.op_type for node in without_sequences(proto).graph.node]
    assert kinds == ["MatMul", "SplitToSequence", "Slice", "Slice", "Mul", "MatMul"]


def test_a_part_that_data_chooses_leaves_the_sequence_as_it_is():
    proto = net(HALVES % (", n", "any"), w=(8, 12), v=(6, 3), n=6, zero=0)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("any", onnx.TensorProto.INT64, []))
    kinds = [node.op_type for node in without_sequences(proto).graph.node]
    assert kinds == ["MatMul", "SplitToSequence", "Slice", "SequenceAt", "Mul", "MatMul"]


def test_a_model_without_sequences_is_not_copied():
    proto = load(net("{ h = Relu(x) y = MatMul(h, v) }", v=(8, 3))).proto
    assert without_sequences(proto) is proto
