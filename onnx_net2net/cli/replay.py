"""The command `replay`."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx_net2net.cli.options import TEACHER, Command, argument
from onnx_net2net.cli.output import say
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import load
from onnx_net2net.model.saving import check_target
from onnx_net2net.model.staging import work_folder
from onnx_net2net.operations.replay import replay, steps_of


def run(options: argparse.Namespace) -> int:
    """Do the steps again; write the result, or compare it."""
    steps = steps_of(options.steps)
    if options.output is not None:
        check_target(options.output, load(options.teacher).sources)
        replay(options.teacher, steps, options.output)
        say(f"wrote {options.output} after {len(steps)} steps")
        return 0
    if options.steps.suffix != ".onnx":
        raise BadInputError("say where to write the student: -o STUDENT")
    with work_folder() as folder:
        again = folder / options.steps.name
        replay(options.teacher, steps, again)
        same = again.read_bytes() == options.steps.read_bytes()
    say(f"{len(steps)} steps make {'the same' if same else 'other'} bytes")
    return 0 if same else 1


COMMAND = Command(
    "replay", "do again what a student's record or a YAML recipe says",
    "teacher.onnx student.onnx",
    [
        TEACHER,
        argument("steps", type=Path, metavar="RECORD", help="a student (.onnx) or a recipe (.yaml)"),
        argument("-o", "--output", type=Path, metavar="STUDENT",
                 help="the file to write (default: only compare with the bytes of the student)"),
    ],
    run,
)  # fmt: skip
