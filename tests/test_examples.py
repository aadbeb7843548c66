"""The three doors of the README as scripts: a class of PyTorch, a folder of Hugging Face, a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("cnn", ("torch", "onnxscript")),
        ("language_model", ("torch", "onnxscript", "transformers")),
        ("onnx_file", ("torch", "onnx2fx")),
    ],
)
def test_a_network_grows_without_a_jump_and_learns_on(script: str, needs: tuple[str, ...]) -> None:
    for package in needs:
        pytest.importorskip(package)
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^\w+: ([\d,]+) parameters, (?:loss ([\d.]+)|([\d.]+)% right)", done.stdout, re.M)
    before, grown, after = ((int(size.replace(",", "")), float(loss or f"-{right}")) for size, loss, right in said)
    assert before[0] < grown[0] == after[0]
    assert grown[1] == pytest.approx(before[1], abs=2e-4)
    assert after[1] < grown[1]
