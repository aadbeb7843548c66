"""The command line: one command a module, see `_COMMANDS`.

Results go to stdout, progress to stderr and only to a terminal. Exit codes: 0 done and equivalent, 1 not
equivalent, 2 bad input or usage, 3 refused, 128 + N stopped by signal N; a command that exits with 1, 2 or 3 has
written nothing (`chain` and `explore` keep what was trained), and one that is stopped says whether it has.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from onnx_net2net.cli.options import Completion, Parser, ShowVersion
from onnx_net2net.cli.output import complain, log, say, voice
from onnx_net2net.errors import BadInputError, Net2NetError, RefusedError, one_line, shown
from onnx_net2net.model import staging
from onnx_net2net.model.signals import caught_signals

_COMMANDS = {
    "inspect": "list the dims of a model, and which of them can grow",
    "widen": "widen hidden dims; the student computes the same as the teacher",
    "deepen": "insert layers; the student computes the same as the teacher",
    "grow": "grow a checkpoint of Hugging Face, shard by shard, without loading it",
    "upcycle": "turn feed-forward blocks into mixtures of experts; the student computes the same as the teacher",
    "unmask": "remove the masks of copied experts from a trained student, and print how far that changes it",
    "narrow": "remove identity layers, exact duplicates of units, and units that no weight reads",
    "transfer": "fill a larger or different network of yours from a trained one",
    "verify": "compare all outputs of two models on several inputs and sizes",
    "similarity": "rank trained models by how well each can fill a target",
    "replay": "repeat the steps that a student's record or a YAML recipe lists",
    "checkpoint": "write a student's weights under the training framework's names",
    "refit": "put trained weights back into the model that the training started from",
    "plan": "read training logs, and print when to grow a network and whether that can pay",
    "draw": "draw a network, with what grew in colour",
    "chain": "train networks in ascending size, each grown from the last one",
    "explore": "search among networks grown from a teacher, each trained a little",
}
"""Each command with its help. Only the module of the command that is asked for is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_streams()
    staging.written.clear()
    with caught_signals(_interrupt) as came:  # they all end the work as Ctrl-C does
        try:
            return _run(arguments, came)
        except MemoryError:
            complain("there is not enough memory for a model of this size")
        except OSError as error:
            complain(f"{shown(error.filename) if error.filename else 'cannot go on'}: {staging.reason(error)}")
        except BaseException as error:
            if not came and not isinstance(error, KeyboardInterrupt):
                raise
            done = f"after {staging.written[-1].name} was" if staging.written else "nothing"
            complain(f"interrupted, {done} written")
            return 128 + (came[0] if came else signal.SIGINT)
        return BadInputError.exit_code


def _run(arguments: Sequence[str] | None, came: Sequence[int]) -> int:
    """Run the command line, and say what it refuses; `came` has the signals that came."""
    options = argparse.Namespace(debug=False)
    try:
        try:
            arguments = sys.argv[1:] if arguments is None else arguments
            options = _parser(arguments).parse_args(arguments)
        except SystemExit:
            say("", end="")  # what argparse has printed
            raise
        options.started = time.perf_counter()
        options.replaces = False
        _open_log(options)
        _load_own(options)
        with warnings.catch_warnings():
            warnings.simplefilter("default" if options.debug else "ignore")  # those of libraries are not for users
            return int(options.run(options))
    except Exception as error:
        if came:  # modules in C that are imported just then make errors of their own of the interruption
            raise KeyboardInterrupt from error
        if options.debug:
            traceback.print_exc()
        if isinstance(error, MemoryError | OSError):
            raise
        return _refused(options, error)


def _refused(options: argparse.Namespace, error: Exception) -> int:
    """Say why a command was not carried out, and return the exit code."""
    if isinstance(error, RefusedError):
        error = _first_said(getattr(options, "teacher", None), error)
    if isinstance(error, Net2NetError):
        complain(str(error))
        return error.exit_code
    given = (value if isinstance(value, list) else [value] for value in vars(options).values())
    files = ", ".join(shown(path) for paths in given for path in paths if isinstance(path, Path))
    complain(f"cannot work with {files}: {type(error).__name__}: {one_line(error)} (--debug shows where)")
    return BadInputError.exit_code  # a file that nobody has thought of


def _load_own(options: argparse.Namespace) -> None:
    """Load the rules and operators of the user's own."""
    if options.rules:
        from onnx_net2net.rules import load_rules

        for path in options.rules:
            load_rules(path)
    if options.custom_op_library:
        from onnx_net2net.run.session import use_library

        for path in options.custom_op_library:
            use_library(path)


def _open_log(options: argparse.Namespace) -> None:
    """Set how much is said, and where it is kept."""
    voice.quiet, voice.verbose, voice.all_rows = options.quiet, options.verbose, options.all_rows
    package = logging.getLogger("onnx_net2net")
    for handler in package.handlers[:]:
        handler.close()
        package.removeHandler(handler)
    if options.log_file is not None:
        kept = logging.FileHandler(options.log_file, encoding="utf-8", errors="backslashreplace")
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package.addHandler(kept)
        package.setLevel(logging.INFO)
        log.info("%s", " ".join(sys.argv))


def _parser(arguments: Sequence[str]) -> Parser:
    """Return a parser, which knows the options of the commands that are named among the arguments."""
    parser = Parser(prog="onnx-net2net", description="Grow a trained ONNX model without changing what it computes.")
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from, and warnings")
    parser.add_argument("--print-completion", choices=("bash", "zsh", "tcsh"), action=Completion,
                        help="print what completes the command line in a shell")  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    are_all_needed = any(argument.startswith("--print-completion") for argument in arguments)
    for name, help in _COMMANDS.items():
        if are_all_needed or name in arguments:
            import_module(f"onnx_net2net.cli.{name}").COMMAND.add_to(commands, name, help)
        else:
            commands.add_parser(name, help=help)
    return parser


def _interrupt() -> None:
    raise KeyboardInterrupt


def _open_streams() -> None:
    """Open closed standard streams on the null device: the next file would take their place and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _first_said(teacher: Path | None, error: RefusedError) -> Net2NetError:
    """Return the error that the teacher does not run at all; if it runs, the reason why it was refused."""
    from onnx_net2net.model.model import load
    from onnx_net2net.run.session import check_runs

    try:
        if teacher is not None:
            check_runs(load(teacher))
    except BadInputError as invalid:
        return invalid
    return error
