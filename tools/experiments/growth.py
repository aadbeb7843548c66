"""The whole chain by the public commands: from a trained PyTorch network to the grown one, through ONNX."""

from __future__ import annotations

import contextlib
import io
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from onnx_net2net.cli import main as cli

TEACHER, STUDENT = "teacher.onnx", "student.onnx"
TEACHER_STATE, STUDENT_STATE = "teacher.safetensors", "student.safetensors"
CALIBRATION = "calibration.npz"
FILES = (TEACHER, STUDENT, TEACHER_STATE, STUDENT_STATE, CALIBRATION)


def export(teacher: nn.Module, example: Tensor, folder: Path) -> None:
    """Write a trained network as a user would: an ONNX file, the state dict, and inputs to calibrate on.

    Args:
        teacher: The network, on the CPU.
        example: A batch of inputs.
        folder: Where to write.
    """
    options: dict[str, Any]
    if any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules()):
        # The default exporter folds batch normalisation into the convolutions.
        options = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
        options |= {"opset_version": 17, "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}
    else:
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": [{0: torch.export.Dim("batch")}]}
        options |= {"verbose": False, "optimize": False}  # the initializers keep the names of the state dict
    options |= {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations
        torch.onnx.export(teacher.eval(), (example[:2],), str(folder / TEACHER), **options)
    safetensors.torch.save_file(teacher.state_dict(), folder / TEACHER_STATE)
    np.savez(folder / CALIBRATION, input=example.numpy())


def grow(student: nn.Module, folder: Path, arguments: Sequence[str], exact: bool) -> list[str]:
    """Give `student` the weights of the grown teacher.

    ``widen`` or ``deepen``, ``verify``, ``checkpoint``, ``load_state_dict(strict=True)``.

    Args:
        student: A network of the grown shape, on the CPU; its weights are replaced.
        folder: Where `export` has written the teacher.
        arguments: The command that grows and its options, files by their names above.
        exact: Whether the student has to be equivalent; random padding and noise are not.

    Returns:
        The commands that were run.

    Raises:
        RuntimeError: A command failed.
    """
    command, *options = arguments
    lines = [[command, TEACHER, "-o", STUDENT, *options]]
    if exact:
        lines.append(["verify", TEACHER, STUDENT])
    lines.append(["checkpoint", TEACHER, STUDENT, "--state-dict", TEACHER_STATE, "-o", STUDENT_STATE])
    for line in lines:
        _run([str(folder / argument) if argument in FILES else argument for argument in line])
    student.load_state_dict(safetensors.torch.load_file(folder / STUDENT_STATE), strict=True)
    return [shlex.join(["onnx-net2net", *line]) for line in lines]


def _run(arguments: Sequence[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(arguments)
    if code:
        raise RuntimeError(f"onnx-net2net {shlex.join(arguments)} ended with {code}:\n{said.getvalue()}")
