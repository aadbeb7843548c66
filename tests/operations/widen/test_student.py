"""A student is one file for one seed, has a record, and keeps all that did not grow."""

import json

import numpy as np
import onnx
import pytest
from graphs import net, weights
from onnx import TensorProto, helper
from wide import MLP, RESNET, contents, draw, mlp, widen_exactly

from onnx_net2net import load, verify, widen
from onnx_net2net.model.history import HISTORY, fingerprint, history, unmark_grown


def saved(widening, folder):
    widening.student.save(folder / "student.onnx")
    return (folder / "student.onnx").read_bytes()


@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"map": "zero_out"}, {"map": "random_pad"}], ids=str)
def test_the_same_seed_gives_the_same_file(options, tmp_path):
    first, second = (saved(widen(MLP, factor=1.5, seed=3, **options), tmp_path) for _ in range(2))
    assert first == second
    assert first != saved(widen(MLP, factor=1.5, seed=4, **options), tmp_path)


def test_a_student_is_the_same_however_often_it_is_computed(tmp_path):
    widening = widen(MLP, factor=1.5)
    assert saved(widening, tmp_path) == saved(widening, tmp_path)


def test_what_was_done_is_recorded():
    once = widen(MLP, sizes={"fc1": "2x"}, seed=7, spread=0.1).student
    (record,) = history(once)
    assert record["operation"] == "widen"
    assert record["sizes"] == {"fc1": "2x"}
    assert (record["seed"], record["spread"], record["map"]) == (7, 0.1, "replicate")
    assert record["teacher"] == fingerprint(load(MLP))
    twice = widen(once, factor=1.5).student
    assert history(twice)[0] == record
    assert [step["factor"] for step in history(twice)] == [None, 1.5]
    (entry,) = [entry for entry in twice.proto.metadata_props if entry.key == HISTORY]
    assert json.loads(entry.value) == history(twice)


def test_the_hash_of_a_teacher_in_memory_is_that_of_its_content():
    teacher = net("(float[N, 8] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=draw(8, 64))
    other = net("(float[N, 8] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=draw(8, 64, seed=1))
    assert fingerprint(load(teacher)) == fingerprint(load(teacher)) != fingerprint(load(other))


def test_a_growth_can_be_repeated_from_its_record(tmp_path):
    widening = widen(MLP, factor=1.5, only=["fc1"], seed=7, multiple_of=4)
    (record,) = history(widening.student)
    names = ("factor", "sizes", "only", "multiple_of", "map", "spread", "noise", "seed")
    assert saved(widen(MLP, **{name: record[name] for name in names}), tmp_path) == saved(widening, tmp_path)


def test_a_foreign_history_is_no_obstacle():
    for text in ("no json", '{"a": 1}'):
        teacher = mlp()
        teacher.metadata_props.add(key=HISTORY, value=text)
        assert len(history(widen(teacher, factor=2).student)) == 1


def test_the_teacher_is_not_changed():
    proto, before = mlp(), mlp()
    model = load(proto)
    proto_before = model.proto.SerializeToString()
    widen_exactly(proto, factor=1.5)
    widen_exactly(model, factor=1.5)
    assert proto == before
    assert model.proto.SerializeToString() == proto_before
    content = MLP.read_bytes()
    widen_exactly(MLP, factor=1.5)
    assert MLP.read_bytes() == content


def test_paths_protos_and_models_give_the_same_student():
    sources = (MLP, str(MLP), onnx.load(MLP), load(MLP))
    first, *others = (weights(widen(source, factor=1.5).student) for source in sources)
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)


def test_everything_else_is_kept():
    for path in (MLP, RESNET):
        teacher, student = onnx.load(path), contents(widen(path, factor=1.5).student)
        assert student.ir_version == teacher.ir_version
        assert student.opset_import == teacher.opset_import
        assert student.producer_name == teacher.producer_name
        assert student.graph.input == teacher.graph.input
        assert student.graph.output == teacher.graph.output
        assert [n.name for n in student.graph.node] == [n.name for n in teacher.graph.node]
        unmark_grown(student)  # what is new
        assert [n.metadata_props for n in student.graph.node] == [n.metadata_props for n in teacher.graph.node]
        assert _float_names(student) == _float_names(teacher)
        onnx.checker.check_model(student, full_check=True)


def _float_names(proto):
    return [tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT]


def test_recorded_shapes_of_hidden_tensors_are_brought_up_to_date():
    teacher = mlp()
    teacher.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 16]))
    student = widen_exactly(teacher, factor=1.5).student.proto
    assert student.graph.value_info == [helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 24])]
    onnx.checker.check_model(contents(widen(RESNET, factor=1.37).student), full_check=True)


def test_external_data_stays_external(tmp_path):
    path = tmp_path / "teacher.onnx"
    onnx.save(onnx.load(RESNET), path, save_as_external_data=True, location="teacher.weights", size_threshold=100)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    widening = widen_exactly(path, factor=1.5)
    widening.student.save(tmp_path / "student.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {*before, "student.onnx", "student.onnx.data"}
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    verify(path, tmp_path / "student.onnx").raise_if_different()
    inline, external = weights(widen(RESNET, factor=1.5).student), weights(tmp_path / "student.onnx")
    assert all(np.array_equal(inline[name], external[name]) for name in inline)
