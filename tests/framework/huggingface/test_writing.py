"""The student's folder appears as a whole; what a killed run has finished is not made again."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")

from onnx_net2net import BadInputError, NotEquivalentError
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface import writing
from onnx_net2net.framework.huggingface.folder import read_folder
from onnx_net2net.framework.huggingface.parameters import StudentParameter, Written
from onnx_net2net.framework.huggingface.skeleton import Cut, Skeleton
from onnx_net2net.framework.huggingface.student import Request
from onnx_net2net.framework.huggingface.teacher import Teacher
from onnx_net2net.framework.huggingface.writing import shards_of, write_folder

VALUES = {name: np.full((4, 5), number, np.float32) for number, name in enumerate("abcd")}


@pytest.fixture
def student(tmp_path):
    """Four matrices of 80 bytes that stay as they are, with a teacher of one shard."""
    from torch import nn

    teacher = tmp_path / "teacher"
    teacher.mkdir()
    writing.write_shard(teacher / "model.safetensors", list(tensors()))
    for name, text in {
        "config.json": "{}",
        "tokenizer.json": "t",
        "README.md": "---\nx: y\n---\nold",
        "o.pt": "",
    }.items():
        (teacher / name).write_text(text)
    skeleton = Skeleton(nn.Module(), SimpleNamespace(to_dict=dict), {}, {})
    return SimpleNamespace(
        teacher=Teacher(read_folder(teacher), skeleton, {}, str, None), skeleton=skeleton, tensors=tuple(tensors()),
        nbytes=4 * 80, config={"width": 5}, parameters={}, record=[],
    )  # fmt: skip


def tensors(made=None):
    for name, values in VALUES.items():

        def read(name=name, values=values):
            if made is not None:
                made.append(name)
            return values

        own = StudentParameter(name, Stored(values.shape, values.dtype, read))
        yield Written(name, Cut(name, values.shape, 0, (5, 1)), own)


def grow(student, output, check=lambda folder: ["compared"]):
    write_folder(student, Request(factor=2.0), output, check, limit=160)


def test_shards_index_config_card_and_other_files_are_written(student, tmp_path):
    grow(student, tmp_path / "out")
    out = tmp_path / "out"
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert [name for name, _ in shards_of(student, 160)] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "config.json", "tokenizer.json", "model.safetensors.index.json", *names]
    )
    loaded = {**load_file(out / names[0]), **load_file(out / names[1])}
    assert all(np.array_equal(loaded[name], values) for name, values in VALUES.items())
    assert json.loads((out / "config.json").read_text()) == {"width": 5}
    assert list(read_folder(out).tensors) == list(VALUES)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nx: y\n---\n")
    assert "compared" in card
    assert card.endswith("old")


@pytest.mark.parametrize("when", ["check", "shard"])
def test_after_an_error_nothing_is_left(student, tmp_path, when, monkeypatch):
    def fail(folder):
        raise NotEquivalentError("differs")

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    if when == "shard":
        monkeypatch.setattr(writing, "write_shard", full)
    with pytest.raises(NotEquivalentError if when == "check" else BadInputError, match=r"differs|No space left"):
        grow(student, tmp_path / "out", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_killed_run_goes_on_with_the_shards_that_are_missing(student, tmp_path):
    class Killed(BaseException):
        pass

    def die(folder):
        raise Killed

    with pytest.raises(Killed):
        grow(student, tmp_path / "out", die)
    left = tmp_path / ".out.growing"
    first, second = sorted(left.glob("*.safetensors"))
    before = os.stat(first).st_mtime_ns
    second.rename(second.with_name(f"{second.name}.part"))
    made: list[str] = []
    student.tensors = tuple(tensors(made))
    grow(student, tmp_path / "out")
    assert made == ["c", "d"]
    assert (tmp_path / "out" / first.name).stat().st_mtime_ns == before
    assert not left.exists()


def test_what_another_run_left_is_not_taken(student, tmp_path):
    left = tmp_path / ".out.growing"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_text("of another plan")
    (left / writing.PLAN).write_text("another")
    grow(student, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")) == {"a", "b"}


def test_a_folder_with_something_in_it_and_a_full_disk_are_refused(student, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(BadInputError, match="there is something of this name"):
        grow(student, tmp_path / "out")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(BadInputError, match="are free"):
        grow(student, tmp_path / "other")
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["out", "teacher"]


def test_the_time_that_computing_takes_is_estimated_from_some_pieces(student):
    assert 0 < writing.seconds_for(student) < 10
