"""`upcycle`: what is printed and written, and which options make no sense."""

import json

import onnx
import pytest
from feedforwards import dense


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.onnx"
    onnx.save(dense("relu"), path)
    return path


def test_a_student_is_verified_written_and_told_of(cli, teacher):
    path = teacher.parent / "moe.onnx"
    code, out, err = cli("upcycle", teacher, "-o", path, "--experts", "4", "--k", "2")
    assert (code, err) == (0, "")
    assert "4, 2 chosen" in out
    assert "equivalent in" in out
    assert path.exists()
    code, out, err = cli("upcycle", teacher, "-o", path, "--experts", "4", "--shared", "--json")
    record = json.loads(out)
    assert (record["experts"], record["k"], record["shared"], len(record["mixtures"])) == (4, 2, True, 1)
    assert record["verification"]["equivalent"] is True


def test_blocks_are_listed(cli, teacher):
    code, out, err = cli("upcycle", teacher, "--list", "--json")
    assert (code, err) == (0, "")
    (block, *_) = [block for block in json.loads(out)["blocks"] if block["default"]]
    assert (block["reads"], block["hidden"], block["makes"]) == (8, 12, 8)
    assert "yes" in cli("upcycle", teacher, "--list").out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "say where to write the student, and how many experts"),
        (["--experts", "1"], 2, "experts must be at least 2"),
        (["--experts", "4", "--k", "1"], 3, "never has a gradient"),
        (["--experts", "4", "--only", "zork"], 2, "no block is named 'zork'"),
    ],
)
def test_what_makes_no_sense_writes_nothing(cli, teacher, options, code, said):
    result = cli("upcycle", teacher, "-o", teacher.parent / "moe.onnx", *options)
    assert result.code == code
    assert said in result.err
    assert [file.name for file in teacher.parent.iterdir()] == ["teacher.onnx"]
