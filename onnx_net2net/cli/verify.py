"""The command `verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onnx_net2net.cli.options import JSON, SEED_OF_INPUTS, Command, argument, checking, checking_arguments
from onnx_net2net.cli.output import answer, progress_bar
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.module import ModuleRunner, build, load_strictly
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.verify import verify
from onnx_net2net.run.session import provider_name


def run(options: argparse.Namespace) -> int:
    """Compare two models."""
    if (options.student is None) == (options.module is None):
        raise BadInputError("give a second model or --module, and not both")
    teacher = load(options.teacher)
    checked = checking(options, teacher)
    student = options.student or _module(options, teacher)
    with progress_bar() as progress:
        verification = verify(teacher, student, progress=progress, **checked)
    answer(options, verification.to_dict(), [verification])
    return 0 if verification.equivalent else 1


COMMAND = Command(
    "teacher.onnx student.onnx --provider cuda",
    [
        argument("teacher", type=Path, metavar="A", help="the reference (.onnx)"),
        argument("student", type=Path, metavar="B", nargs="?", help="the model to check (.onnx)"),
        argument("--module", metavar="PACKAGE.MODULE:FACTORY",
                 help="check a PyTorch module instead of B: its class, or a function that returns it"),
        argument("--state-dict", type=Path, metavar="FILE",
                 help="with --module: the state dict to load into it, strictly"),
        argument("--args", metavar="JSON",
                 help="with --module: the arguments of the class or function, like '{\"width\": 96}' or '[10]'"),
        SEED_OF_INPUTS,
        JSON,
        *checking_arguments(),
    ],
    run,
)  # fmt: skip


def _module(options: argparse.Namespace, teacher: Model) -> ModuleRunner:
    """Build the user's module, and load it."""
    try:
        arguments = json.loads(options.args or "[]")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict | list):
        raise BadInputError(f"--args {options.args}: write a JSON object or list, like '{{\"width\": 96}}'")
    if options.state_dict is None:
        raise BadInputError("give the weights of the module: --state-dict student.safetensors")
    module = build(options.module, arguments)
    load_strictly(module, options.state_dict)
    on_gpu = provider_name(options.provider) == "CUDAExecutionProvider"
    return ModuleRunner(module, teacher, device="cuda" if on_gpu else "cpu")
