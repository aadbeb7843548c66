"""What was done can be done again, from a student's own record or from a recipe."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_net2net import BadInputError, RefusedError, deepen, load, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations.replay import replay, steps_of

MODELS = Path(__file__).parents[2] / "models"
RESNET = MODELS / "digits_resnet.onnx"
INCEPTION = MODELS / "digits_inception_bn.onnx"


def made(teacher, folder, *operations):
    """Students of students, each a file."""
    for number, operation in enumerate(operations):
        path = folder / f"student{number}.onnx"
        operation(load(teacher)).student.save(path)
        teacher = path
    return teacher


@pytest.mark.parametrize("teacher", [RESNET, INCEPTION], ids=lambda path: path.stem)
def test_a_record_makes_the_same_bytes(teacher, tmp_path, capsys):
    student = made(
        teacher,
        tmp_path,
        lambda model: widen(model, factor=1.37, seed=3, spread=0.5),
        lambda model: deepen(model, all=True, seed=1),
        lambda model: widen(model, sizes={"fc": 12}, only=["conv1*"], factor=1.2, prior=0.1),
        lambda model: deepen(model, after=["conv1*"], way="residual", count=2, seed=5),
    )
    assert [step["operation"] for step in steps_of(student)] == ["widen", "deepen", "widen", "deepen"]
    replay(teacher, steps_of(student), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == student.read_bytes()
    assert main(["replay", str(teacher), str(student)]) == 0
    assert "4 steps make the same bytes" in capsys.readouterr().out


def test_other_bytes_are_told(tmp_path, capsys):
    student = made(RESNET, tmp_path, lambda model: widen(model, factor=1.5))
    proto = onnx.load(student)
    proto.graph.doc_string = "edited"
    onnx.save(proto, student)
    assert main(["replay", str(RESNET), str(student)]) == 1
    assert "other bytes" in capsys.readouterr().out


def test_a_record_of_another_teacher_is_refused(tmp_path):
    student = made(RESNET, tmp_path, lambda model: widen(model, factor=1.5))
    with pytest.raises(BadInputError, match="step 1 was not applied to this model"):
        replay(INCEPTION, steps_of(student), tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_what_was_calibrated_on_data_cannot_be_done_again(tmp_path):
    data = {"image": np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32)}
    student = made(INCEPTION, tmp_path, lambda model: deepen(model, all=True, calibrate=data))
    with pytest.raises(BadInputError, match="calibrated on data"):
        steps_of(student)


def test_a_recipe(tmp_path):
    recipe, student = tmp_path / "recipe.yaml", tmp_path / "student.onnx"
    recipe.write_text("- operation: deepen\n  all: true\n- operation: widen\n  factor: 1.5\n  only: ['layer3*']\n")
    assert main(["replay", str(RESNET), str(recipe), "-o", str(student)]) == 0
    assert verify(RESNET, student).equivalent
    assert [step["operation"] for step in steps_of(student)] == ["deepen", "widen"]


def test_a_transfer_in_a_recipe(tmp_path, capsys):
    target, recipe, student = (tmp_path / name for name in ("target.onnx", "recipe.yaml", "student.onnx"))
    deepen(widen(RESNET, factor=1.5).student, all=True).student.save(target)
    recipe.write_text(f"- operation: transfer\n  target: {target}\n  seed: 1\n")
    assert main(["replay", str(RESNET), str(recipe), "-o", str(student)]) == 0
    assert verify(RESNET, student).equivalent
    assert main(["replay", str(RESNET), str(student)]) == 2
    assert "transfer needs the network that is filled" in capsys.readouterr().err
    with pytest.raises(RefusedError, match="step 1: the transfer is not exact"):
        replay(target, [{"operation": "transfer", "target": RESNET}], tmp_path / "narrow.onnx")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no steps"),
        ("operation: widen", "has no steps"),
        ("- operation: shrink", "no such operation; there are widen, deepen, narrow"),
        ("- widen", "no such operation"),
        ("- operation: widen\n  width: 3", "widen has no option width"),
        ("- [", "cannot read"),
        ("- operation: widen\n  factor: wide", "step 1"),
        ("- operation: transfer", "transfer needs the network that is filled (target: FILE, in a recipe)"),
    ],
)
def test_recipes_that_make_no_sense(text, words, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert main(["replay", str(RESNET), str(recipe), "-o", str(tmp_path / "s.onnx")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s.onnx").exists()


def test_a_step_that_cannot_be_exact_is_refused(tmp_path):
    with pytest.raises(RefusedError):
        replay(RESNET, [{"operation": "deepen", "after": ["fc"], "way": "identity"}], tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())
