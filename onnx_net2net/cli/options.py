"""A command and its arguments; those that several commands have are declared here, once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnx_net2net.errors import BadInputError, optional, shown
from onnx_net2net.texts import FRAMEWORKS

if TYPE_CHECKING:
    from onnx_net2net.algebra.floats import Array
    from onnx_net2net.model.model import Model

Argument = tuple[tuple[str, ...], dict[str, Any]]
"""What `add_argument` of argparse takes."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        example: Arguments that show it.
        arguments: What it takes.
        run: Carries it out and returns the exit code.
    """

    example: str
    arguments: Sequence[Argument]
    run: Callable[[argparse.Namespace], int]

    def add_to(self, commands: Any, name: str, help: str) -> None:
        """Add a parser of it, with what it does, to those of the other commands."""
        examples = "\n".join(f"  onnx-net2net {name} {line}" for line in self.example.splitlines())
        parser = commands.add_parser(name, help=help, description=help, formatter_class=_Help,
                                     epilog=f"for example:\n{examples}")  # fmt: skip
        for names, settings in self.arguments:
            parser.add_argument(*names, **settings)
        written = {"--output", "--html", "--csv"}
        output = [FORCE] if any(written & set(names) for names, _ in self.arguments) else []
        for names, settings in (*output, *COMMON):
            parser.add_argument(*names, **settings)
        parser.set_defaults(run=self.run, report=None)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option by the beginning of its name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(BadInputError.exit_code, f"onnx-net2net: {shown(message)} (see {self.prog} --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds the default to a text that does not say it, and leaves examples on lines of their own."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        plain = action.default in (None, [], False, True, argparse.SUPPRESS) or "default" in text
        return text if plain else f"{text} (default: %(default)s)"


def argument(*names: str, **settings: Any) -> Argument:
    """Return an argument as `add_argument` of argparse takes it."""
    return names, settings


def checking_arguments(data: str = "compare on these inputs (arrays by name) and generate none") -> list[Argument]:
    """Return the arguments that say how two models are compared (`checking` reads them).

    Args:
        data: The help of ``--data``.
    """
    return [
        argument("--provider", default="cpu",
                 help="where both models run: cpu, cuda, ... or the full name of an execution provider of onnxruntime"),
        argument("--data", type=Path, metavar="NPZ", help=data),
        argument("--samples", type=int, metavar="N",
                 help="generate at least so many inputs (default: 3, or 2 if runs are slow)"),
        argument("--rtol", type=float,
                 help="allowed error, as a fraction of the teacher's value (default: from the teacher's float noise)"),
        argument("--atol", type=float, help="allowed absolute error (default: from the teacher's float noise)"),
    ]  # fmt: skip


class ShowVersion(argparse.Action):
    """Prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print it, and end."""
        from importlib.metadata import version  # takes longer than all else that is printed

        from onnx_net2net.cli.output import say

        say(version("onnx-net2net"))
        parser.exit()


class Completion(argparse.Action):
    """Prints what completes the command line in a shell."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, shell: Any, _option: Any = None) -> NoReturn:
        """Print it, and end."""
        shtab = optional("shtab", "completion needs shtab: pip install 'onnx-net2net[completion]'")
        _complete_files(parser, shtab.FILE)
        print(shtab.complete(parser, shell=shell))
        parser.exit()


def _complete_files(parser: argparse.ArgumentParser, files: dict[str, Any]) -> None:
    """Say to shtab which arguments are files."""
    for action in parser._actions:  # argparse has no public list of them
        if action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)


FORCE = argument("--force", action="store_true", help="replace an output file even if this tool has not made it")
COMMON = (
    argument("-q", "--quiet", action="store_true", help="print only errors and JSON"),
    argument("-v", "--verbose", action="store_true", help="print each step to stderr"),
    argument("--all-rows", action="store_true", help="in tables give each repeated layer a row of its own"),
    argument("--log-file", type=Path, metavar="FILE", help="append all messages with their time to this file, too"),
    argument(
        "--rules",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a Python file with growth rules for your own operators; may be given more than once",
    ),
    argument(
        "--custom-op-library",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a shared library with which onnxruntime runs your own operators; may be given more than once",
    ),
    argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS),
)
"""What every command takes."""

TEACHER = argument("teacher", type=Path, metavar="TEACHER", help="the trained model (.onnx)")
OUTPUT = argument("-o", "--output", type=Path, required=True, metavar="STUDENT", help="the file to write")
FACTOR = argument(
    "--factor", type=float, metavar="F", help="width multiplier of all hidden dims, or of those of --only"
)
ONLY = argument("--only", action="append", default=[], metavar="PATTERN",
                help="names, patterns or roles (ffn) of the dims that --factor is for")  # fmt: skip
SPREAD = argument("--spread", type=float, default=0.3, metavar="S",
                  help="how unevenly copies share their outgoing weights (0: evenly); exact in any case")  # fmt: skip
REPORT = argument("--report", choices=("text", "json"),
                  help="also print the new sizes of modules and of config fields (json implies --json)")  # fmt: skip
SEED = argument("--seed", type=int, default=0, help="seed of every random choice")
SEED_OF_INPUTS = argument("--seed", type=int, default=0, help="seed of the generated inputs")
HTML = argument("--html", type=Path, metavar="FILE", help="write a report to this file, too (.html)")
JSON = argument("--json", action="store_true", help="print JSON instead of tables")
DRY_RUN = argument(
    "--dry-run",
    action="store_true",
    help="write nothing; print what the student would cost: parameters, multiplications, activations, disk and time",
)
PROOF = (
    DRY_RUN,
    argument("--no-verify", action="store_false", dest="verify", help="do not compare student and teacher"),
    *(JSON, *checking_arguments()),
)
"""How a student is compared before it is written."""

GROWING = (REPORT, SEED, HTML, *PROOF)
"""What the commands that grow a model take."""

REDUCED = (
    argument("teacher", type=Path, metavar="MODEL", help="the model to make smaller (.onnx)"),
    argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write"),
    *(SEED_OF_INPUTS, HTML, *PROOF),
)
"""What the commands take that remove something from a model."""


def for_framework(help: str) -> Argument:
    """Return the argument that names a framework whose class has to follow."""
    return argument("--for", choices=FRAMEWORKS, dest="framework", help=help)


def checking(options: argparse.Namespace, teacher: Model, data: Mapping[str, Array] | None = None) -> dict[str, Any]:
    """Return the options of the comparison as `verify` takes them; refuse bad ones before anything costs time.

    Args:
        options: The command line.
        teacher: The reference.
        data: The arrays of ``--data``, if they were read already.
    """
    from onnx_net2net.proof.models import check_options
    from onnx_net2net.run.inputs import input_specs, read_npz
    from onnx_net2net.run.session import provider_name

    check_options(options.samples, options.rtol, options.atol, options.seed)
    provider = provider_name(options.provider)
    if data is None and options.data:
        data = read_npz(options.data, input_specs(teacher.proto))
    rest = {name: getattr(options, name) for name in ("samples", "rtol", "atol", "seed")}
    return {"provider": provider, "data": data, **rest}
