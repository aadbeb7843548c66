"""Habits of command lines: how much is said, what is replaced, what a shell completes."""

import os
import shutil
import subprocess

import pytest
from commands import MLP, assert_refused

from onnx_net2net import load


def test_no_option_is_taken_by_its_beginning(cli, tmp_path):
    result = cli("widen", MLP, "-o", tmp_path / "s.onnx", "--fact", "2")
    assert result.code == 2
    assert "unrecognized arguments: --fact 2" in result.err


def test_quiet_prints_nothing_and_writes_the_same(cli, tmp_path):
    loud = cli("widen", MLP, "-o", tmp_path / "s.onnx", "--factor", "1.5")
    quiet = cli("widen", MLP, "-o", tmp_path / "quiet" / ".." / "q.onnx", "--factor", "1.5", "-q")
    assert quiet.code == 2  # errors are still said
    assert "quiet" in quiet.err
    quiet = cli("widen", MLP, "-o", tmp_path / "q.onnx", "--factor", "1.5", "-q")
    assert (loud.code, quiet) == (0, (0, "", ""))
    assert load(tmp_path / "q.onnx").parameters == load(tmp_path / "s.onnx").parameters
    assert '"dims"' in cli("inspect", MLP, "--json", "-q").out


def test_verbose_prints_each_step(cli, tmp_path):
    result = cli("widen", MLP, "-o", tmp_path / "s.onnx", "--factor", "1.5", "-v")
    assert "fc1.weight (" in result.err
    assert "fc1" in result.out


def test_a_log_file_keeps_what_was_said(cli, tmp_path):
    log = tmp_path / "log.txt"
    cli("widen", MLP, "-o", tmp_path / "s.onnx", "--factor", "1.5", "-q", "--log-file", log)
    cli("widen", MLP, "-o", tmp_path / "s.onnx", "--factor", "0.5", "--log-file", log)
    text = log.read_text()
    assert "INFO equivalent in" in text
    assert "ERROR" in text.splitlines()[-1]
    cli("inspect", MLP)
    assert log.read_text() == text


def test_a_log_file_that_cannot_be_written_is_one_line(cli, tmp_path):
    result = cli("inspect", MLP, "--log-file", tmp_path / "none" / "log.txt")
    assert_refused(result, 2, "No such file")


def test_what_is_replaced_is_named_and_what_is_not_ours_is_kept(cli, tmp_path):
    student = tmp_path / "student.onnx"
    assert f"wrote {student} in" in cli("widen", MLP, "-o", student, "--factor", "1.5").out
    assert f"replaced {student} in" in cli("widen", MLP, "-o", student, "--factor", "2").out
    shutil.copy(MLP, student)
    assert_refused(cli("widen", MLP, "-o", student, "--factor", "2"), 2, "was not made by this tool; --force replaces")
    assert student.read_bytes() == MLP.read_bytes()
    assert cli("widen", MLP, "-o", student, "--factor", "2", "--force").code == 0


def test_state_dicts_are_kept_too(cli, tmp_path):
    student, weights = tmp_path / "student.onnx", tmp_path / "weights.safetensors"
    cli("widen", MLP, "-o", student, "--factor", "1.5", "--for", "torch")
    assert cli("checkpoint", MLP, student, "-o", weights).code == 0
    assert f"replaced {weights} in" in cli("checkpoint", MLP, student, "-o", weights).out
    for content in (b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}"):
        weights.write_bytes(content)
        assert_refused(cli("checkpoint", MLP, student, "-o", weights), 2, "was not made by this tool")


def test_examples_stand_on_lines_of_their_own(cli):
    lines = cli("widen", "--help").out.splitlines()
    assert lines[-2] == "for example:"
    assert lines[-1].startswith("  onnx-net2net widen teacher.onnx -o student.onnx")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(cli, tmp_path):
    pytest.importorskip("shtab")
    script = tmp_path / "completion.sh"
    script.write_text(cli("--print-completion", "bash").out)
    ask = f"""source {script}
        COMP_WORDS=(onnx-net2net widen --fac); COMP_CWORD=2; _shtab_onnx_net2net; echo "${{COMPREPLY[@]}}" """
    env = {**os.environ, "COMP_TYPE": "9"}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.split() == ["--factor"], done.stderr
