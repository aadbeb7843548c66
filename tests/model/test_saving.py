"""A model and its data take their places together or not at all."""

import errno
import os

import numpy as np
import pytest
from small import build, mlp, run, save_external

from onnx_net2net import widen
from onnx_net2net.algebra import rows
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model import model as model_module, threads
from onnx_net2net.model.model import load


def test_replacing_a_model_keeps_model_and_data_together(tmp_path, monkeypatch):
    """The old data file stays until the new model is in place, and goes then."""
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", 0)
    target = tmp_path / "m.onnx"
    first, second, third = (load(mlp(width)) for width in (64, 72, 80))
    first.save(target)
    assert set(os.listdir(tmp_path)) == {"m.onnx", "m.onnx.data"}
    second.save(target)
    assert set(os.listdir(tmp_path)) == {"m.onnx", "m.onnx.1.data"}
    with third.stage(target) as staged:
        assert run(staged.path, {"x": np.ones((1, 8), np.float32)})[0].shape == (1, 8)
        assert load(target).proto.graph.initializer[0].dims[1] == 72
        staged.commit()
    assert set(os.listdir(tmp_path)) == {"m.onnx", "m.onnx.data"}
    assert load(target).proto.graph.initializer[0].dims[1] == 80
    load(build()).save(target)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_foreign_data_files_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", 0)
    save_external(mlp(), tmp_path)
    os.rename(tmp_path / "m.onnx.data", tmp_path / "other.data")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes().replace(b"m.onnx.data", b"other.data "))
    (tmp_path / "m.onnx.data").write_text("somebody's")
    load(mlp()).save(tmp_path / "m.onnx")
    assert set(os.listdir(tmp_path)) == {"m.onnx", "m.onnx.data", "m.onnx.1.data", "other.data"}
    assert (tmp_path / "m.onnx.data").read_text() == "somebody's"


@pytest.mark.parametrize("limit", [10**9, 0], ids=["single file", "external"])
def test_failure_while_saving_changes_nothing(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", limit)
    load(mlp()).save(tmp_path / "m.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail():
        raise RuntimeError("no such weight")

    draft = Graph(load(mlp()))
    draft.replace(draft.graph.nodes[2].inputs[1], (64, 8), fail)
    with pytest.raises(RuntimeError, match="no such weight"):
        draft.finish().save(tmp_path / "m.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_staging_without_commit_leaves_nothing(tmp_path):
    with load(mlp()).stage(tmp_path / "m.onnx") as staged:
        assert staged.path.is_file()
    assert not os.listdir(tmp_path)


def test_unusable_destinations(tmp_path):
    path = save_external(mlp(), tmp_path)
    student = Graph(load(path)).finish()
    os.link(path, tmp_path / "link.onnx")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "m.onnx": "the model reads its weights from it",
        "link.onnx": "the model reads its weights from it",
        "m.onnx.data": "the model reads its weights from it",
        "folder": "it is a folder",
        "none/m.onnx": "the folder .*none does not exist",
    }.items():
        with pytest.raises(BadInputError, match=f"^cannot write .*{reason}$"):
            student.save(tmp_path / name)
    with pytest.raises(BadInputError, match=r"^cannot write /proc/m.onnx: [^\n]+$"):
        student.save("/proc/m.onnx")


@pytest.mark.parametrize("limit", [10**9, 0], ids=["single file", "external"])
def test_the_seed_fixes_the_bytes_on_any_number_of_threads(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", limit)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2048)  # many blocks
    found, teacher = set(), mlp(256)
    for count in (1, 2, 5):
        monkeypatch.setattr(threads, "processors", lambda count=count: count)
        widen(teacher, factor=1.7).student.save(tmp_path / "m.onnx")
        student = load(tmp_path / "m.onnx")
        found.add(b"".join(student.tensor(tensor).tobytes() for tensor in student.proto.graph.initializer))
    assert len(found) == 1


def test_a_thread_that_fails_ends_the_work(tmp_path):
    begun = []

    def jobs():
        for number in range(100):
            yield lambda number=number: (begun.append(number), 1 / (number != 3))

    with pytest.raises(ZeroDivisionError):
        threads.in_threads(jobs(), 3)
    assert len(begun) < 10


def test_a_disk_that_is_full_says_so_before_weights_are_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "SINGLE_FILE_LIMIT", 0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    draft = Graph(load(mlp()))
    draft.replace(draft.graph.nodes[2].inputs[1], (64, 8), lambda: pytest.fail("computed"))
    with pytest.raises(BadInputError, match="No space left"):
        draft.finish().save(tmp_path / "m.onnx")
    assert not os.listdir(tmp_path)
