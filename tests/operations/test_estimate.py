"""What a student will cost is said before anything is written."""

import json
import os
import shutil

import pytest
from small import mlp, save_external

from onnx_net2net import BadInputError, load, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations.estimate import both_costs, estimate


def test_estimates_are_those_of_the_student(tmp_path):
    teacher = load(mlp(256))
    student = widen(teacher, factor=2).student
    found = estimate(teacher, student, both_costs(teacher, student), tmp_path)
    student.save(tmp_path / "m.onnx")
    size = (tmp_path / "m.onnx").stat().st_size
    assert size * 0.95 < found.nbytes <= size * 1.05
    assert found.parameters == (2 * 8 * 256, 2 * 8 * 512)
    assert found.multiplications[1] == 2 * found.multiplications[0] > 0
    assert found.seconds > 0
    assert "2.00 x" in str(found)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    teacher = save_external(mlp(256), tmp_path)
    before = set(os.listdir(tmp_path))
    command = ["widen", str(teacher), "-o", str(tmp_path / "s.onnx"), "--factor", "2", "--dry-run"]
    assert main(command) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["parameters"] == [4096, 8192]
    assert set(os.listdir(tmp_path)) == before


def test_a_disk_without_room_is_said_at_once(tmp_path, monkeypatch):
    student = widen(mlp(256), factor=2).student
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BadInputError, match=r"0\.00 GB are needed, the disk has 0\.00 GB left"):
        student.save(tmp_path / "m.onnx")
    assert not os.listdir(tmp_path)
