"""What tests of commands have in common."""

import os

import pytest
from commands import MLP, Result

from onnx_net2net.cli.main import main


@pytest.fixture
def cli(capsys):
    """Runs the command line in this process."""

    def run(*arguments):
        try:
            code = main([os.fspath(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's way to end
            code = exit.code
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.onnx"
    path.write_bytes(MLP.read_bytes())
    return path


@pytest.fixture
def student(cli, teacher):
    path = teacher.parent / "student.onnx"
    assert cli("widen", teacher, "-o", path, "--factor", "1.5").code == 0
    return path
