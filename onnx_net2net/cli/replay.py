"""The command `replay`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_net2net.cli.options import TEACHER, Command, argument
from onnx_net2net.cli.output import progress_bar, say, say_written, tell
from onnx_net2net.cli.student import check_replaced
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import load
from onnx_net2net.model.saving import check_target
from onnx_net2net.model.staging import work_folder
from onnx_net2net.operations.replay import redo, replay, steps_of
from onnx_net2net.operations.verify import verify


def run(options: argparse.Namespace) -> int:
    """Do the steps again; write the result, or compare it."""
    steps = steps_of(options.steps)
    if options.output is not None:
        return _write(options, steps)
    if options.steps.suffix != ".onnx":
        raise BadInputError("say where to write the student: -o STUDENT")
    with work_folder() as folder:
        again = folder / options.steps.name
        replay(options.teacher, steps, again)
        same = again.read_bytes() == options.steps.read_bytes()
    say(f"{len(steps)} steps make {'the same' if same else 'other'} bytes")
    return 0 if same else 1


def _write(options: argparse.Namespace, steps: Sequence[Mapping[str, Any]]) -> int:
    """Write what the steps make, if it is equivalent or not meant to be."""
    teacher = load(options.teacher)
    check_target(options.output, teacher.sources)
    check_replaced(options)
    with work_folder() as folder, progress_bar() as progress:
        results = list(redo(teacher, steps, folder))
        with results[-1].student.stage(options.output, progress=progress) as staged:
            verification = None
            if all(getattr(result, "exact", True) for result in results):
                verification = verify(teacher, staged.path, progress=progress, record=False)
                verification.raise_if_different()
            staged.commit()
    tell([verification or "not exact, as a step asks for"])
    say_written(options, options.output)
    return 0


COMMAND = Command(
    "teacher.onnx student.onnx",
    [
        TEACHER,
        argument("steps", type=Path, metavar="RECORD", help="a student with a record (.onnx), or a recipe (.yaml)"),
        argument("-o", "--output", type=Path, metavar="STUDENT",
                 help="the file to write (default: write nothing, and compare with the bytes of the student)"),
    ],
    run,
)  # fmt: skip
