"""A student is what its record says, weight by weight, or it is told where not."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_net2net import deepen, load, narrow, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations import lineage

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

MODELS = Path(__file__).parents[2] / "models"
MLP = MODELS / "digits_mlp.onnx"

WAYS = {
    "wider": lambda model: widen(model, factor=1.5).student,
    "deeper": lambda model: deepen(model, all=True).student,
    "deeper, then wider": lambda model: widen(deepen(model, all=True).student, factor=1.37, map="zero_out").student,
    "wider and back": lambda model: narrow(widen(model, factor=2).student).student,
}


def spoiled(path, edit, kept=True):
    """The student in a file with other values in its second matrix, with its record or without."""
    proto = onnx.load(path)
    tensor = [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1][1]
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if not kept:
        del proto.metadata_props[:]
    return proto


def off_by(error):
    def edit(values):
        values.flat[np.argmax(np.abs(values.flat[5:])) + 5] *= 1 + error

    return edit


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["digits_mlp", "digits_inception_bn"])
def test_one_wrong_weight_is_found_where_outputs_do_not_show_it(way, name, tmp_path):
    teacher, path = MODELS / f"{name}.onnx", tmp_path / "student.onnx"
    WAYS[way](teacher).save(path)
    assert verify(teacher, path, samples=1).equivalent
    for error in (1e-3, -1e-4):
        result = verify(teacher, spoiled(path, off_by(error)), samples=1)
        assert not result.equivalent
        assert result.departure is None or result.departure.elements == 1
    assert result.departure.off == pytest.approx(1e-4, rel=0.01)
    assert "is not what the student's record says: 1 of " in str(result)
    assert result.to_dict()["departure"]["tensor"] == result.departure.tensor


def test_it_is_found_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "student.onnx"
    widen(MLP, factor=1.5).student.save(path)
    assert main(["verify", str(MLP), str(path)]) == 0
    onnx.save(spoiled(path, off_by(1e-4)), path)
    assert main(["verify", str(MLP), str(path)]) == 1
    assert "not equivalent: 'fc2.weight' is not what the student's record says" in capsys.readouterr().out


def test_teachers_may_be_in_memory_or_in_another_file(tmp_path):
    student = widen(MLP, factor=1.5).student
    student.save(tmp_path / "student.onnx")
    other = onnx.load(MLP)
    other.doc_string = "the same weights"
    assert not verify(other, spoiled(tmp_path / "student.onnx", off_by(1e-4))).equivalent
    assert not verify(other, load(spoiled(tmp_path / "student.onnx", off_by(1e-4)))).equivalent
    assert verify(other, onnx.load(tmp_path / "student.onnx")).equivalent
    assert student.is_fresh
    assert not load(tmp_path / "student.onnx").is_fresh


def test_a_student_with_its_weights_in_another_file_is_compared_too(tmp_path):
    path = tmp_path / "student.onnx"
    widen(MLP, factor=1.5).student.save(path)
    outside = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save_model(onnx.load(path), tmp_path / "sound.onnx", location="sound.data", **outside)
    onnx.save_model(spoiled(path, off_by(1e-4)), tmp_path / "spoiled.onnx", location="spoiled.data", **outside)
    assert not load(tmp_path / "sound.onnx").is_fresh
    assert verify(MLP, tmp_path / "sound.onnx", samples=1).equivalent
    found = verify(MLP, tmp_path / "spoiled.onnx", samples=1).departure
    assert found is not None
    assert found.elements == 1


def test_what_the_user_allows_is_no_departure(tmp_path):
    path = tmp_path / "student.onnx"
    widen(MLP, factor=1.5).student.save(path)
    wrong = spoiled(path, off_by(1e-4))
    assert verify(MLP, wrong, atol=1e-2).equivalent
    assert verify(MLP, wrong, record=False).equivalent
    assert verify(MLP, spoiled(path, off_by(1e-4), kept=False)).equivalent


@pytest.mark.parametrize("change", ["drawn otherwise", "other version", "other nodes", "rounding"])
def test_a_record_that_does_not_tell_is_left_alone(change, tmp_path, monkeypatch):
    path = tmp_path / "student.onnx"
    widen(MLP, factor=1.5).student.save(path)
    proto = onnx.load(path)
    if change == "drawn otherwise":  # as an older version would have, or training
        record = proto.metadata_props[0]
        proto = onnx.load(path)
        record.value = record.value.replace('"seed": 0', '"seed": 5')
        del proto.metadata_props[:]
        proto.metadata_props.append(record)
    if change == "other version":
        monkeypatch.setattr(lineage, "version", lambda name: "9")
        proto = spoiled(path, off_by(1e-4))
    if change == "other nodes":
        proto = spoiled(path, off_by(1e-4))
        proto.graph.node[0].name = "renamed"
    if change == "rounding":
        proto = spoiled(path, off_by(1e-6))
    assert verify(MLP, proto).equivalent


def test_a_departure_compares_values_of_every_type():
    teacher = load(MLP)
    assert lineage.departure(teacher, teacher) is None
    assert lineage._off(np.array([0, 1, np.nan, np.inf, 2]), np.array([-0.0, 1, np.nan, 1, 4])).tolist() == [
        0,
        0,
        0,
        1,
        0.5,
    ]


def test_planted_errors_are_found(capsys):
    import planted

    assert planted.main(["--random", "6", "--errors", "1e-3"]) == 0
    assert "6 correct students, 0 turned down" in capsys.readouterr().out
    assert planted.main(["--random", "3", "--errors", "1e-7", "--least", "0.1"]) == 1  # nobody finds these
