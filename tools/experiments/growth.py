"""The whole chain by the public commands: from a trained PyTorch network to the grown one, through ONNX."""

from __future__ import annotations

import contextlib
import io
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from onnx_net2net.cli import main as cli

TEACHER = "teacher.onnx"
TEACHER_STATE, STUDENT_STATE = "teacher.safetensors", "student.safetensors"
TEACHER_ADAM, STUDENT_ADAM = "adam.pt", "student.optimizer.pt"
CALIBRATION = "calibration.npz"


def export(teacher: nn.Module, example: Tensor, folder: Path) -> None:
    """Write a trained network as a user would: an ONNX file, the state dict, and inputs to calibrate on.

    Args:
        teacher: The network, on the CPU.
        example: A batch of inputs.
        folder: Where to write.
    """
    # The other exporter folds batch normalisation into the convolutions.
    options = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    options |= {"opset_version": 17, "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}
    options |= {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations
        torch.onnx.export(teacher.eval(), (example[:2],), str(folder / TEACHER), **options)
    safetensors.torch.save_file(teacher.state_dict(), folder / TEACHER_STATE)
    np.savez(folder / CALIBRATION, input=example.numpy())


def grow(
    student: nn.Module,
    folder: Path,
    commands: Sequence[Sequence[str]],
    adam: Mapping[str, Any] | None = None,
) -> tuple[list[str], Mapping[str, Any] | None]:
    """Give `student` the weights of the grown teacher.

    ``widen`` or ``deepen``, which compare the two in onnxruntime, ``checkpoint``, ``load_state_dict(strict=True)``.

    Args:
        student: A network of the grown shape, on the CPU; its weights are replaced.
        folder: Where `export` has written the teacher.
        commands: The commands that grow, one after the other, and their options.
        adam: The state of the teacher's optimizer.

    Returns:
        The commands that were run, and the state of the student's optimizer.

    Raises:
        RuntimeError: A command failed.
    """
    lines, grown = [], TEACHER
    for number, (command, *options) in enumerate(commands, 1):
        lines.append([command, grown, "-o", f"student{number}.onnx", *options])
        grown = f"student{number}.onnx"
    lines.append(["checkpoint", TEACHER, grown, "--state-dict", TEACHER_STATE, "-o", STUDENT_STATE])
    if adam is not None:
        torch.save(adam, folder / TEACHER_ADAM)
        lines[-1] += ["--optimizer", TEACHER_ADAM]
    with contextlib.chdir(folder):
        for line in lines:
            _run(line)
    student.load_state_dict(safetensors.torch.load_file(folder / STUDENT_STATE), strict=True)
    state = None if adam is None else torch.load(folder / STUDENT_ADAM, weights_only=True)
    return [shlex.join(["onnx-net2net", *line]) for line in lines], state


def _run(arguments: Sequence[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(arguments)
    if code:
        raise RuntimeError(f"onnx-net2net {shlex.join(arguments)} ended with {code}:\n{said.getvalue()}")
