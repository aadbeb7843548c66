"""The whole chain by the public commands: from a trained PyTorch network to the grown one, through ONNX."""

from __future__ import annotations

import contextlib
import io
import shlex
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from onnx_net2net import cli

TEACHER, STUDENT = "teacher.onnx", "student.onnx"
TEACHER_STATE, STUDENT_STATE = "teacher.safetensors", "student.safetensors"
CALIBRATION = "calibration.npz"
FILES = (TEACHER, STUDENT, TEACHER_STATE, STUDENT_STATE, CALIBRATION)


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Export so that the file keeps batch normalisation as nodes.

    Args:
        model: The network, in evaluation mode.
        example: A batch of inputs, at least two.
        path: The ONNX file to write.
    """
    options: dict[str, Any]
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        # The default exporter folds batch normalisation into the convolutions.
        options = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
        options |= {"opset_version": 17, "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}
    else:
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": [{0: torch.export.Dim("batch")}]}
        options |= {"verbose": False, "optimize": False}  # the initializers keep the names of the state dict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations
        torch.onnx.export(model, (example[:2],), str(path), input_names=["input"], output_names=["logits"], **options)


def grow(teacher: nn.Module, student: nn.Module, example: Tensor, arguments: Sequence[str], exact: bool) -> list[str]:
    """Give `student` the weights of the grown `teacher`.

    Export, ``widen`` or ``deepen``, ``verify``, ``checkpoint``, ``load_state_dict(strict=True)``.

    Args:
        teacher: The trained network, on the CPU.
        student: A network of the grown shape, on the CPU; its weights are replaced.
        example: Inputs to export by, and to calibrate inserted normalisations on.
        arguments: The command that grows and its options, without files.
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
    teacher.eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(teacher, example, folder / TEACHER)
        safetensors.torch.save_file(teacher.state_dict(), folder / TEACHER_STATE)
        np.savez(folder / CALIBRATION, input=example.numpy())
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
