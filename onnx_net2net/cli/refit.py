"""The command `refit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx_net2net.cli.options import Command, argument
from onnx_net2net.cli.output import progress_bar, say_written
from onnx_net2net.cli.student import check_replaced
from onnx_net2net.framework.refit import refit
from onnx_net2net.model.model import load
from onnx_net2net.model.saving import check_target


def run(options: argparse.Namespace) -> int:
    """Put trained weights back into a model."""
    check_target(options.output, load(options.model).sources)
    check_replaced(options)
    trained = refit(options.model, options.state_dict, before=options.before)
    with progress_bar() as progress:
        trained.save(options.output, progress=progress)
    say_written(options, options.output)
    return 0


COMMAND = Command(
    "student.onnx --state-dict trained.safetensors -o trained.onnx",
    [
        argument("model", type=Path, metavar="MODEL", help="the model that the training started from (.onnx)"),
        argument("--state-dict", type=Path, metavar="FILE", required=True,
                 help="the trained weights, under the names of onnx_net2net.to_torch or of your class (.safetensors, "
                 ".pt)"),
        argument("--before", type=Path, metavar="FILE",
                 help="needed for weights of your class: its state dict from before the training, with the weights "
                 "that MODEL has"),
        argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write"),
    ],
    run,
)  # fmt: skip
