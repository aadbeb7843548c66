"""The command itself: help, usage, terminals, pipes and interrupts."""

import json
import os
import re
import subprocess
import sys

import onnx
import pytest
from commands import MLP, MODELS, SCRIPT, Result, assert_refused, contents, good


@pytest.mark.parametrize("command", ["inspect", "widen", "verify"])
def test_help_has_an_example(cli, command):
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    example = out[out.index("example:") :]
    assert f"onnx-net2net {command} teacher.onnx" in example


@pytest.mark.parametrize("command", ["widen", "verify"])
def test_help_tells_the_defaults_that_there_are(cli, command):
    text = " ".join(cli(command, "--help").out.split())
    assert not re.search(r"\(default: (None|\[\]|False|True|==SUPPRESS==)\)", text)
    assert "inputs (default: 3, or 2 if runs are slow)" in text
    assert text.count("(default: from the teacher's float noise)") == 2


def test_help_lists_the_commands(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(command in out for command in ("inspect", "widen", "verify"))
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", cli("--version").out)


def test_the_example_of_widen_works_as_printed(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.onnx").write_bytes((MODELS / "digits_resnet.onnx").read_bytes())
    example = " ".join(cli("widen", "--help").out.partition("example:")[2].split())
    arguments = [word.strip("'") for word in example.split()[1:]]
    assert arguments[0] == "widen"
    assert cli(*arguments).code == 0
    assert (tmp_path / "student.onnx").exists()


def test_progress_is_shown_on_a_terminal_only_and_never_on_stdout(cli, teacher, monkeypatch):
    path = teacher.parent / "student.onnx"
    arguments = ("widen", teacher, "-o", path, "--factor", "1.5", "--json")
    assert cli(*arguments).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = cli(*arguments)
    assert code == 0
    assert json.loads(out)["exact"]
    assert err != ""


def test_too_little_memory_is_one_line(cli, teacher, monkeypatch):
    def exhaust(*_, **__):
        raise MemoryError

    before = contents(teacher.parent)
    for place in ("operations.widen.widen.rewrite", "cli.student.verify"):
        with monkeypatch.context() as patch:
            patch.setattr(f"onnx_net2net.{place}", exhaust)
            result = cli("widen", teacher, "-o", teacher.parent / "student.onnx", "--factor", "2")
        assert_refused(result, 2, "not enough memory")
        assert contents(teacher.parent) == before


USAGE = {
    (): "the following arguments are required: COMMAND",
    ("enlarge", "teacher.onnx"): "invalid choice: 'enlarge'",
    ("inspect",): "the following arguments are required: MODEL",
    ("widen", "teacher.onnx", "--factor", "2"): "the following arguments are required: -o",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "twice"): "--factor: invalid float value: 'twice'",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--map", "copy"): "invalid choice: 'copy'.*replicate",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--seed", "1.5"): "--seed: invalid int value: '1.5'",
    ("widen", "teacher.onnx", "-o", "s.onnx", "--factor", "2", "--depth", "2"): "unrecognized arguments: --depth 2",
    ("verify", "teacher.onnx", "teacher.onnx", "--atol", "small"): "--atol: invalid float value: 'small'",
}


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage_errors_are_one_line_that_says_what_is_wrong(cli, teacher, monkeypatch, arguments):
    monkeypatch.chdir(teacher.parent)
    result = cli(*arguments)
    assert_refused(result, 2, USAGE[arguments])
    assert result.out == ""
    assert re.search(r" \(see onnx-net2net( inspect| widen| verify)? --help\)$", result.err)
    assert [path.name for path in teacher.parent.iterdir()] == ["teacher.onnx"]


@pytest.mark.parametrize("name", ["attn[red]", "attn[/b]", "[bold]attn", "häuser/größe"])
def test_names_are_printed_as_they_are(cli, tmp_path, name):
    proto = good()
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = f"{name}.weight"
    path = tmp_path / "teacher[red].onnx"
    onnx.save(proto, path)
    out = cli("inspect", path).out
    assert name in out
    assert "teacher[red].onnx" in out
    out = cli("widen", path, "-o", tmp_path / "stu[dent].onnx", "--factor", "2").out
    assert name in out
    assert "stu[dent].onnx" in out.splitlines()[-1]


def test_long_lines_are_not_wrapped(cli, teacher):
    path = teacher.parent / ("long" * 40) / "student.onnx"
    path.parent.mkdir()
    lines = cli("widen", teacher, "-o", path, "--factor", "1.5").out.splitlines()
    assert lines[-1].startswith(f"wrote {path} in ")
    assert lines[-2].startswith("equivalent in ")
    assert lines[-2].endswith(")")


def spawn(*arguments, command=(SCRIPT,)):
    done = subprocess.run([*command, *map(os.fspath, arguments)], capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((SCRIPT,), marks=pytest.mark.skipif(not SCRIPT.exists(), reason="not installed"), id="script"),
        pytest.param((sys.executable, "-m", "onnx_net2net"), id="module"),
    ],
)
def test_the_command_itself(tmp_path, command):
    path = tmp_path / "student.onnx"
    code, out, err = spawn("widen", MLP, "-o", path, "--factor", "1.5", command=command)
    assert (code, err) == (0, "")
    assert re.search(r"^equivalent in \d+ runs", out, re.MULTILINE)
    assert path.exists()
    assert_refused(
        spawn("widen", MLP, "-o", tmp_path / "s.onnx", "--set", "fc1=150", "--multiple-of", "8", command=command),
        3,
        "exactly",
    )


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", MLP), 0),
        (("inspect", MLP, "--json"), 0),
        (("widen", MLP, "-o", "student.onnx", "--factor", "1.5"), 0),
        (("verify", MLP, MODELS / "digits_resnet.onnx"), 1),
        (("widen", "--help"), 0),
    ],
    ids=lambda value: " ".join(map(os.fspath, value[::2])) if isinstance(value, tuple) else "",
)
def test_a_reader_that_leaves_early_ends_no_work(tmp_path, arguments, code, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "onnx_net2net", *arguments]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, timeout=120, cwd=tmp_path, env=environment, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")
    assert (tmp_path / "student.onnx").exists() == ("-o" in arguments)


def test_an_interrupt_leaves_nothing_behind(cli, teacher, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_net2net.cli.student.verify", interrupt)
    before = contents(teacher.parent)
    code, _, err = cli("widen", teacher, "-o", teacher.parent / "student.onnx", "--factor", "1.5")
    assert (code, err) == (130, "onnx-net2net: interrupted, nothing written\n")
    assert contents(teacher.parent) == before
