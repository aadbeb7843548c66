"""The command line: inspect, widen, deepen, narrow, transfer, verify, replay, checkpoint.

Results go to stdout, progress to stderr and only to a terminal. Exit codes: 0 done and equivalent, 1 not
equivalent, 2 bad input or usage, 3 refused, 128 + N stopped by signal N; a command that exits with 1, 2 or 3 has
written nothing, and one that is stopped says whether it has.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from onnx_net2net.errors import BadInputError, Net2NetError, NotEquivalentError, RefusedError, one_line, shown
from onnx_net2net.model import staging

if TYPE_CHECKING:
    from rich.table import Table

    from onnx_net2net.algebra.floats import Array
    from onnx_net2net.framework.module import ModuleRunner
    from onnx_net2net.model.model import Model
    from onnx_net2net.operations.deepen.deepen import Deepening
    from onnx_net2net.operations.narrow.narrow import Narrowing
    from onnx_net2net.operations.widen.widen import Widening

Progress = Callable[[str, int, int], None]

_TRIED = 200_000_000
"""Bytes of a teacher up to which other ways to grow it are tried, to name one that works."""

WAYS = ("identity", "pair", "residual", "prelu", "maxout", "cancel")
"""What `deepen` can insert."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_streams()
    staging.written.clear()
    with _stopping() as came:
        try:
            return _run(arguments)
        except MemoryError:
            _complain("there is not enough memory for a model of this size")
        except OSError as error:
            _complain(f"{shown(error.filename) if error.filename else 'cannot go on'}: {staging.reason(error)}")
        except BaseException as error:
            if not came and not isinstance(error, KeyboardInterrupt):
                raise
            done = f"after {staging.written[-1].name} was" if staging.written else "nothing"
            _complain(f"interrupted, {done} written")
            return 128 + (came[0] if came else signal.SIGINT)
        return BadInputError.exit_code


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line, and say what it refuses."""
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:
            _print("", end="")  # what argparse has printed
            raise
        with warnings.catch_warnings(), _tracing(options.debug):
            warnings.simplefilter("default" if options.debug else "ignore")  # of libraries, about their own insides
            return int(options.run(options))
    except Net2NetError as error:
        said = _first_said(getattr(options, "teacher", None), error) if isinstance(error, RefusedError) else error
        _complain(str(said))
        return said.exit_code
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of a file that nobody has thought of
        given = (value if isinstance(value, list) else [value] for value in vars(options).values())
        files = ", ".join(shown(path) for paths in given for path in paths if isinstance(path, Path))
        _complain(f"cannot work with {files}: {type(error).__name__}: {one_line(error)} (--debug shows where)")
        return BadInputError.exit_code


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Let every signal that asks the process to end interrupt it as Ctrl-C does; yields those that came."""
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    changed: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        changed = {number: signal.getsignal(number) for number in staging.SIGNALS}
        changed = {number: old for number, old in changed.items() if old not in (signal.SIG_IGN, None)}  # nohup
    try:
        for number in changed:
            signal.signal(number, stop)
        yield came
    finally:
        for number, old in changed.items():
            signal.signal(number, old)


def _open_streams() -> None:
    """Open closed standard streams on nothing, lest the next file takes the number of one and gets what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


@contextlib.contextmanager
def _tracing(wanted: bool) -> Iterator[None]:
    """Print where an error comes from, if that is wanted."""
    try:
        yield
    except Exception:
        if wanted:
            traceback.print_exc()
        raise


def _first_said(teacher: Path | None, error: RefusedError) -> Net2NetError:
    """Return that a teacher does not run, where one was refused for other reasons, which would be beside the point."""
    from onnx_net2net.model.model import load
    from onnx_net2net.proof.verify import check_runs

    try:
        if teacher is not None:
            check_runs(load(teacher))
    except BadInputError as invalid:
        return invalid
    return error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(BadInputError.exit_code, f"onnx-net2net: {shown(message)} (see {self.prog} --help)\n")


class _Help(argparse.HelpFormatter):
    """Adds the default where there is one to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        plain = action.default in (None, [], False, True, argparse.SUPPRESS) or "default" in text
        return text if plain else f"{text} (default: %(default)s)"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="onnx-net2net", description="Grow a trained ONNX model without changing what it computes.")
    parser.add_argument("--version", action="version", version=version("onnx-net2net"))
    parser.add_argument("--debug", action="store_true", help="show where an error comes from, and warnings")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_widen(commands)
    _add_deepen(commands)
    _add_narrow(commands)
    _add_transfer(commands)
    _add_verify(commands)
    _add_similarity(commands)
    _add_replay(commands)
    _add_checkpoint(commands)
    return parser


def _command(commands: Any, name: str, help: str, example: str, run: Callable[[argparse.Namespace], int]) -> Any:
    command = commands.add_parser(
        name, help=help, description=help, epilog=f"example: onnx-net2net {name} {example}",
        formatter_class=_Help,
    )  # fmt: skip
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    command.set_defaults(run=run)
    return command


def _add_inspect(commands: Any) -> None:
    command = _command(commands, "inspect", "list the dims of a model and what may be done with them",
                       "teacher.onnx", _inspect)  # fmt: skip
    command.add_argument("model", type=Path, metavar="MODEL")
    command.add_argument("--for", choices=("torch",), dest="framework",
                         help="what may be done where a class of the framework has to follow")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON, with every fixed axis too")


def _add_widen(commands: Any) -> None:
    command = _command(commands, "widen", "widen hidden dims; the student computes what the teacher computes",
                       "teacher.onnx -o student.onnx --factor 1.5 --set 'layer3.*=2x'", _widen)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="TEACHER")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="STUDENT", help="the file to write")
    command.add_argument("--factor", type=float, metavar="F", help="width multiplier of all dims (or those of --only)")
    command.add_argument("--set", action="append", default=[], metavar="PATTERN=SIZE", dest="sizes",
                         help="size of the dims of that name or role: units (96) or a multiplier (2x)")  # fmt: skip
    command.add_argument("--only", action="append", default=[], metavar="PATTERN",
                         help="names or roles (ffn) of the dims that --factor is for")  # fmt: skip
    command.add_argument("--multiple-of", type=int, default=1, metavar="M", help="new sizes are multiples of this")
    command.add_argument("--map", default="replicate", choices=("replicate", "zero_out", "zero_in", "random_pad"),
                         help="what new units are: copies, unread, silent, or random (not exact)")  # fmt: skip
    command.add_argument("--spread", type=float, default=0.3, metavar="S",
                         help="how unevenly copies share their outgoing weights (exact; 0: evenly)")  # fmt: skip
    command.add_argument("--noise", type=float, default=0.0, metavar="S",
                         help="noise on the incoming weights of copies, as in the paper (not exact)")  # fmt: skip
    command.add_argument("--fill-norms", action=argparse.BooleanOptionalAction,
                         help="any width where norms admit multiples only, by filling up what they read (default: "
                         "where multiples would miss --factor by a tenth)")  # fmt: skip
    command.add_argument("--prior", type=float, metavar="P",
                         help="probability at which new classes start (default: 0.01, under a softmax 0)")  # fmt: skip
    command.add_argument("--for", choices=("torch",), dest="framework",
                         help="only growth that a class of the framework can follow")  # fmt: skip
    command.add_argument("--keep-numbers", action="store_true",
                         help="with --for: the class computes no number (like alpha / r) from its sizes")  # fmt: skip
    _add_report(command)
    command.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    _add_proof(command)


def _add_deepen(commands: Any) -> None:
    command = _command(commands, "deepen", "insert layers; the student computes what the teacher computes",
                       "teacher.onnx -o student.onnx --after 'layer3.*'", _deepen)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="TEACHER")
    command.add_argument("-o", "--output", type=Path, metavar="STUDENT", help="the file to write")
    command.add_argument("--list", action="store_true", help="list layers, blocks and what can be inserted behind each")
    command.add_argument("--after", action="append", default=[], metavar="PATTERN", help="names of layers")
    command.add_argument("--all", action="store_true", help="behind every layer that an identity can follow")
    command.add_argument("--count", type=int, default=1, metavar="N", help="how many behind each")
    command.add_argument("--pairs", type=int, default=0, metavar="N",
                         help="instead N pairs of a horizontal and a vertical convolution behind each")  # fmt: skip
    command.add_argument("--with", dest="way", choices=WAYS, metavar="KIND",
                         help=f"instead of the best for each layer or block: {', '.join(WAYS)}")  # fmt: skip
    command.add_argument(
        "--width", metavar="W", help="units of the new layers, like 96 or 2x, at least as many as before"
    )
    command.add_argument("--repeat", action="append", default=[], metavar="PATTERN=+N",
                         help="N copies of residual blocks of that name or group, like 'layer3=+4'")  # fmt: skip
    command.add_argument("--depth", metavar="F", help="copies for every group of blocks, like 2x")
    command.add_argument("--append", action="store_true",
                         help="copies behind the last block of the group, not behind their originals")  # fmt: skip
    command.add_argument("--calibrate", type=Path, metavar="NPZ", help="inputs to calibrate normalisations on")
    command.add_argument("--for", choices=("torch",), dest="framework",
                         help="only copies of blocks that a deeper class of the framework has")  # fmt: skip
    _add_report(command)
    command.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    _add_proof(command)


def _add_narrow(commands: Any) -> None:
    command = _command(commands, "narrow", "remove identity layers, exact duplicates of units and units nobody reads",
                       "grown.onnx -o smaller.onnx", _narrow)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="MODEL")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write")
    command.add_argument("--seed", type=int, default=0, help="seed of the generated inputs")
    _add_proof(command)


def _add_transfer(commands: Any) -> None:
    command = _command(commands, "transfer", "fill a larger or different network of yours from a trained one",
                       "teacher.onnx target.onnx -o student.onnx", _transfer)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="TEACHER")
    command.add_argument("target", type=Path, metavar="TARGET", help="the network to fill, with any weights")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="STUDENT",
                         help="the file to write; with --state-dict a .safetensors or .pt file")  # fmt: skip
    command.add_argument("--state-dict", type=Path, metavar="FILE",
                         help="the target's state dict, as it was when the target was exported")  # fmt: skip
    command.add_argument("--method", default="net2net", choices=("net2net", "dpiat"),
                         help="dpiat: crop and pad as Czyzewski et al. (2022) do, to compare with")  # fmt: skip
    command.add_argument("--partial", action="store_true",
                         help="write also what is not exact (default: only with --data or --method dpiat)")  # fmt: skip
    command.add_argument("--exact", action="store_true", help="refuse what is not exact, with these two, too")
    command.add_argument("--spread", type=float, default=0.3, metavar="S",
                         help="how unevenly copies share their outgoing weights (exact; 0: evenly)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_checking(
        command, "examples to choose units and fit layers by where the transfer is not exact, and to compare on"
    )


def _add_verify(commands: Any) -> None:
    command = _command(commands, "verify", "compare all outputs of two models on several inputs and sizes",
                       "teacher.onnx student.onnx --provider cuda", _verify)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="A")
    command.add_argument("student", type=Path, metavar="B", nargs="?")
    command.add_argument("--module", metavar="PACKAGE.MODULE:FACTORY",
                         help="instead of B a PyTorch class, or a function that makes a module")  # fmt: skip
    command.add_argument("--state-dict", type=Path, metavar="FILE", help="what the module is loaded with, strictly")
    command.add_argument("--args", metavar="JSON", help="what it is made with, like '{\"width\": 96}' or '[10]'")
    command.add_argument("--seed", type=int, default=0, help="seed of the generated inputs")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_checking(command)


def _add_similarity(commands: Any) -> None:
    command = _command(commands, "similarity", "rank trained models by how much of them a target can be filled with",
                       "target.onnx teacher1.onnx teacher2.onnx", _similarity)  # fmt: skip
    command.add_argument("target", type=Path, metavar="TARGET")
    command.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    command.add_argument("--measure", default="agreement", choices=("kept", "filled", "dpiat", "agreement"),
                         help="rank by how the filled target answers like the source, for which the transfers are done "
                         "and run, or at once by the share of the source's parameters that have a place in the target, "
                         "the share of the target's filled, or DPIAT's similarity (default: %(default)s)")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_replay(commands: Any) -> None:
    command = _command(commands, "replay", "do again what a student's record or a YAML recipe says",
                       "teacher.onnx student.onnx", _replay)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="TEACHER")
    command.add_argument("steps", type=Path, metavar="RECORD", help="a student (.onnx) or a recipe (.yaml)")
    command.add_argument("-o", "--output", type=Path, metavar="STUDENT",
                         help="the file to write (default: only compare with the bytes of the student)")  # fmt: skip


def _add_report(command: Any) -> None:
    command.add_argument("--report", choices=("text", "json"),
                         help="also tell the new sizes of modules and configs (json: like --json)")  # fmt: skip


def _add_checkpoint(commands: Any) -> None:
    command = _command(commands, "checkpoint", "write a student's weights under the training framework's names",
                       "teacher.onnx student.onnx --state-dict teacher.pt -o student.safetensors",
                       _checkpoint)  # fmt: skip
    command.add_argument("teacher", type=Path, metavar="TEACHER")
    command.add_argument("student", type=Path, metavar="STUDENT")
    command.add_argument("--state-dict", type=Path, metavar="FILE",
                         help="the teacher's state dict (default: names from the graph)")  # fmt: skip
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE",
                         help="the file to write (.safetensors, .pt)")  # fmt: skip
    command.add_argument("--untie", action="store_true",
                         help="let tied weights grow differently; the class must not tie them any more")  # fmt: skip
    command.add_argument("--optimizer", type=Path, metavar="FILE",
                         help="state of the teacher's Adam, AdamW or SGD (.pt), to be grown too; it is written beside "
                         "the output, with .optimizer.pt behind its name")  # fmt: skip
    _add_report(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_proof(command: Any) -> None:
    command.add_argument("--no-verify", action="store_false", dest="verify", help="write without comparing")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_checking(command)


def _add_checking(command: Any, data: str = "inputs to compare on, instead of generated ones") -> None:
    command.add_argument("--provider", default="cpu", help="where to run: cpu, cuda, ... or an execution provider")
    command.add_argument("--data", type=Path, metavar="NPZ", help=data)
    command.add_argument("--samples", type=int, metavar="N", help="least number of generated inputs (default: 3 or so)")
    command.add_argument("--rtol", type=float, help="allowed relative error (default: from the teacher's noise)")
    command.add_argument("--atol", type=float, help="allowed absolute error (default: from the teacher's noise)")


def _inspect(options: argparse.Namespace) -> int:
    from onnx_net2net.analysis.loadable import inspect_for
    from onnx_net2net.cli import tables as report
    from onnx_net2net.model.model import load
    from onnx_net2net.proof.verify import check_runs

    model = load(options.model)
    inspection = inspect_for(options.framework, model)
    if any("could not be inferred" in (group.reason or "") for group in inspection.groups):
        check_runs(model, "the model")
    if options.json:
        _print_json(report.inspection_dict(inspection))
        return 0
    _show(report.inspection_table(inspection, f"{options.model.name}: {inspection.elements:,} parameters"))
    routine = sum(map(report.is_routine, inspection.groups))
    if routine:
        _print(f"{routine} more axes are kernels, positions or lists of sizes (--json has them)")
    return 0


def _widen(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.model.model import load
    from onnx_net2net.model.saving import check_target
    from onnx_net2net.operations.widen.widen import widen

    started = time.perf_counter()
    teacher = load(options.teacher)
    checking = _checking(options, teacher)
    check_target(options.output, teacher.sources)
    arguments = {
        "factor": options.factor, "sizes": _sizes(options.sizes), "only": options.only,
        "multiple_of": options.multiple_of, "map": options.map, "spread": options.spread, "noise": options.noise,
        "seed": options.seed, "prior": options.prior, "fill_norms": options.fill_norms,
        "framework": options.framework, "keep_numbers": options.keep_numbers,
    }  # fmt: skip
    widening = widen(teacher, **arguments)
    record = report.widening_dict(widening) | _widths(options, teacher, widening.student)
    lines: list[Table | str] = [report.widening_table(widening, f"{options.teacher.name} -> {options.output.name}")]
    lines += [*report.fixed_lines(widening.fixed), *widening.notes]
    lines += record["widths"] if "widths" in record and not options.json else []
    return _finish(options, widening, record, checking, started, lines, _other_ways(teacher, arguments))


def _widths(options: argparse.Namespace, teacher: Model, student: Model) -> dict[str, Any]:
    """Return the width report that was asked for, as an entry of the record: lines, or JSON-ready values."""
    from onnx_net2net.framework.widths import compare_widths

    if options.report is None:
        return {}
    options.json |= options.report == "json"
    found = compare_widths(teacher, student)
    return {"widths": found.to_dict() if options.json else list(found.lines())}


def _deepen(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.model.model import load
    from onnx_net2net.model.saving import check_target
    from onnx_net2net.operations.deepen.deepen import blocks, deepen, places
    from onnx_net2net.proof.verify import check_runs

    started = time.perf_counter()
    teacher = load(options.teacher)
    if options.list:
        found, repeated = places(teacher), blocks(teacher)
        if not any(place.ways for place in found):
            check_runs(teacher)
        if options.json:
            _print_json({"layers": report.places_list(found), "blocks": report.blocks_list(repeated)})
        else:
            if found:
                _show(report.places_table(found, options.teacher.name))
            else:
                _print(f"{options.teacher.name} has no layers behind which anything could be inserted")
            if repeated:
                _show(report.blocks_table(repeated, "residual blocks"))
            else:
                _print("no residual blocks that could be repeated")
        return 0
    if options.output is None:
        raise BadInputError("say where to write the student: -o STUDENT (or --list)")
    checking = _checking(options, teacher)
    check_target(options.output, teacher.sources)
    with _progress() as progress:
        deepening = deepen(
            teacher, after=options.after, all=options.all, count=options.count, pairs=options.pairs,
            way=options.way, width=options.width, repeat=options.repeat, depth=options.depth, append=options.append,
            calibrate=options.calibrate, seed=options.seed, framework=options.framework, progress=progress,
        )  # fmt: skip
    record = report.deepening_dict(deepening) | _widths(options, teacher, deepening.student)
    lines: list[Table | str] = [report.deepening_table(deepening, f"{options.teacher.name} -> {options.output.name}")]
    lines += [*deepening.notes, *(record["widths"] if "widths" in record and not options.json else ())]
    return _finish(options, deepening, record, checking, started, lines)


def _narrow(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.model.model import load
    from onnx_net2net.model.saving import check_target
    from onnx_net2net.operations.narrow.narrow import narrow

    started = time.perf_counter()
    teacher = load(options.teacher)
    checking = _checking(options, teacher)
    check_target(options.output, teacher.sources)
    narrowing = narrow(teacher)
    lines = (report.narrowing_table(narrowing, f"{options.teacher.name} -> {options.output.name}"),)
    return _finish(options, narrowing, report.narrowing_dict(narrowing), checking, started, lines)


def _transfer(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.framework.files import check_output
    from onnx_net2net.framework.filled import fill_state_dict
    from onnx_net2net.model.model import load
    from onnx_net2net.model.saving import check_target
    from onnx_net2net.operations.transfer.dpiat.dpiat import transfer_dpiat
    from onnx_net2net.operations.transfer.transfer import Transfer, proof, transfer
    from onnx_net2net.run.inputs import arrays_of, input_specs
    from onnx_net2net.run.watch import in_batches

    started = time.perf_counter()
    teacher, target = load(options.teacher), load(options.target)
    data = arrays_of(options.data) if options.data else None
    checking = _checking(options, teacher, in_batches(data, input_specs(teacher.proto))[0] if data else None)
    sources = [*teacher.sources, *target.sources]
    if options.state_dict is None:
        check_target(options.output, sources)
    else:
        check_output(options.output, [*sources, options.state_dict])
    if options.method == "dpiat":
        result: Transfer = transfer_dpiat(teacher, target)
    else:
        with _progress() as progress:
            result = transfer(teacher, target, spread=options.spread, seed=options.seed, data=data, prove=False,
                              progress=progress)  # fmt: skip
    with _progress() as progress:
        verification, obstacles = proof(result, progress=progress, **checking)
    is_asked = options.partial or options.data is not None or options.method == "dpiat"
    if obstacles and (options.exact or not is_asked):
        for obstacle in obstacles[1:] if not options.json else ():
            _print(f"not exact: {obstacle}")
        more = f" (and {len(obstacles) - 1} more)" if len(obstacles) > 1 else ""
        raise RefusedError(
            f"not exact: {obstacles[0]}{more}{'' if options.exact else '; --partial writes it as it is'}"
        )
    if options.state_dict is None:
        result.student.save(options.output)
    else:
        fill_state_dict(result, options.state_dict).save(options.output)
    if options.json:
        _print_json({**report.transfer_dict(result, obstacles), "output": str(options.output),
                     "verification": verification.to_dict() if verification else None})  # fmt: skip
        return 0
    _show(report.transfer_table(result, f"{options.teacher.name} -> {options.target.name}"))
    for obstacle in obstacles:
        _print(shown(f"not exact: {obstacle}"))
    if not obstacles:
        _print("exact: the student computes what the teacher computes")
    _print(shown(verification or "not compared"))
    _print(f"wrote {options.output} in {time.perf_counter() - started:.1f} s")
    return 0


def _other_ways(teacher: Model, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Widening]]]:
    """Yield what else to try where a student turns out to differ: copies that share evenly, or units nobody reads."""
    from onnx_net2net.operations.widen.widen import widen

    if arguments["spread"]:
        yield "--spread 0", lambda: widen(teacher, **{**arguments, "spread": 0.0})
    if arguments["map"] == "replicate":
        yield "--map zero_out", lambda: widen(teacher, **{**arguments, "map": "zero_out"})


def _remedy(teacher: Model, ways: Iterable[tuple[str, Callable[[], Widening]]], checking: dict[str, Any]) -> str:
    """Return the first of other ways that makes an equivalent student, which is tried where that costs little."""
    from onnx_net2net.operations.verify import verify

    for text, grow in ways if sum(map(os.path.getsize, teacher.sources)) < _TRIED else ():
        with contextlib.suppress(Net2NetError):
            if verify(teacher, grow().student, **checking).equivalent:
                return f"; with {text} it is equivalent"
    return ""


def _finish(
    options: argparse.Namespace,
    result: Widening | Deepening | Narrowing,
    record: dict[str, Any],
    checking: dict[str, Any],
    started: float,
    lines: Iterable[Table | str],
    others: Iterable[tuple[str, Callable[[], Widening]]] = (),
) -> int:
    """Verify a student, write it, and say so; one that differs and should not is not written.

    Args:
        options: What was asked for.
        result: What was done.
        record: The same for JSON.
        checking: Options of `verify`.
        started: When.
        lines: The same for people; they are shown when nothing stands in the way.
        others: What else could be done where the student differs.
    """
    from onnx_net2net.operations.verify import verify

    exact = getattr(result, "exact", True)
    verification = None
    with _progress() as progress, result.student.stage(options.output, progress=progress) as staged:
        if options.verify:
            verification = verify(result.teacher, staged.path, progress=progress, record=False, **checking)
            if exact and not verification.equivalent:
                raise NotEquivalentError(f"{verification}{_remedy(result.teacher, others, checking)}")
        staged.commit()
    for item in lines if not options.json else ():
        if isinstance(item, str):
            _print(shown(item))
        else:
            _show(item)
    if options.json:
        checked = verification.to_dict() if verification else None
        _print_json({**record, "verification": checked, "output": str(options.output)})
        return 0
    if not exact:
        _print(f"not exact, as asked ({'random_pad' if options.map == 'random_pad' else 'noise'})")
    _print(shown(verification or "not verified (--no-verify)"))
    _print(f"wrote {options.output} in {time.perf_counter() - started:.1f} s")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from onnx_net2net.model.model import load
    from onnx_net2net.model.saving import check_target
    from onnx_net2net.operations.replay import replay, steps_of

    steps = steps_of(options.steps)
    if options.output is not None:
        check_target(options.output, load(options.teacher).sources)
        replay(options.teacher, steps, options.output)
        _print(f"wrote {options.output} after {len(steps)} steps")
        return 0
    if options.steps.suffix != ".onnx":
        raise BadInputError("say where to write the student: -o STUDENT")
    with staging.work_folder() as folder:
        again = folder / options.steps.name
        replay(options.teacher, steps, again)
        same = again.read_bytes() == options.steps.read_bytes()
    _print(f"{len(steps)} steps make {'the same' if same else 'other'} bytes")
    return 0 if same else 1


def _checkpoint(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.framework.checkpoint import checkpoint
    from onnx_net2net.framework.files import check_output
    from onnx_net2net.framework.optimizer import grow_state, output_beside, read_state, with_note, write_state
    from onnx_net2net.model.model import load

    started = time.perf_counter()
    if options.optimizer and not options.state_dict:
        raise BadInputError("--optimizer needs --state-dict, whose names its parameters have")
    files = [path for path in (options.teacher, options.student, options.state_dict, options.optimizer) if path]
    check_output(options.output, files)
    outputs = [options.output]
    if options.optimizer:
        outputs.append(output_beside(options.output))
        check_output(outputs[-1], files)
    teacher, student = load(options.teacher), load(options.student)
    result = checkpoint(teacher, student, options.state_dict, untie=options.untie)
    widths = _widths(options, teacher, student)
    state = grow_state(read_state(options.optimizer), result) if options.optimizer else None
    beside = {outputs[-1]: partial(write_state, state)} if state is not None else None
    result.save(options.output, beside)
    if beside:
        result = with_note(result)
    if options.json:
        _print_json({**report.checkpoint_dict(result), **widths, "output": str(options.output)})
        return 0
    _show(report.checkpoint_table(result, f"{(options.state_dict or options.teacher).name} -> {options.output.name}"))
    for line in (*result.notes, *widths.get("widths", ())):
        _print(shown(line))
    _print(f"wrote {' and '.join(map(str, outputs))} in {time.perf_counter() - started:.1f} s")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from onnx_net2net.model.model import load
    from onnx_net2net.operations.verify import verify

    if (options.student is None) == (options.module is None):
        raise BadInputError("give a second model or --module, and not both")
    teacher = load(options.teacher)
    checking = _checking(options, teacher)
    student = options.student or _module(options, teacher)
    with _progress() as progress:
        verification = verify(teacher, student, progress=progress, **checking)
    if options.json:
        _print_json(verification.to_dict())
    else:
        _print(str(verification))
    return 0 if verification.equivalent else 1


def _module(options: argparse.Namespace, teacher: Model) -> ModuleRunner:
    """Build the user's module, and load it."""
    from onnx_net2net.framework.module import ModuleRunner, build, load_strictly
    from onnx_net2net.run.session import provider_name

    try:
        arguments = json.loads(options.args or "[]")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict | list):
        raise BadInputError(f"--args {options.args}: write a JSON object or list, like '{{\"width\": 96}}'")
    if options.state_dict is None:
        raise BadInputError("say what the module is loaded with: --state-dict student.safetensors")
    module = build(options.module, arguments)
    load_strictly(module, options.state_dict)
    on_gpu = provider_name(options.provider) == "CUDAExecutionProvider"
    return ModuleRunner(module, teacher, device="cuda" if on_gpu else "cpu")


def _similarity(options: argparse.Namespace) -> int:
    from onnx_net2net.cli import tables as report
    from onnx_net2net.operations.transfer.similarity import similarities

    found = similarities(options.target, options.sources, measure=options.measure)
    if options.json:
        _print_json(report.similarities_dict(options.target.name, found))
    else:
        _show(report.similarities_table(found, f"sources for {options.target.name}"))
    return 0


def _checking(options: argparse.Namespace, teacher: Model, data: Mapping[str, Array] | None = None) -> dict[str, Any]:
    """Return the options of the comparison, with data if it is read already; refused before anything costs time."""
    from onnx_net2net.proof.verify import check_options
    from onnx_net2net.run.inputs import input_specs, read_npz
    from onnx_net2net.run.session import provider_name

    check_options(options.samples, options.rtol, options.atol, options.seed)
    provider = provider_name(options.provider)
    if data is None and options.data:
        data = read_npz(options.data, input_specs(teacher.proto))
    rest = {name: getattr(options, name) for name in ("samples", "rtol", "atol", "seed")}
    return {"provider": provider, "data": data, **rest}


def _sizes(items: Sequence[str]) -> dict[str, int | str]:
    sizes: dict[str, int | str] = {}
    for item in items:
        pattern, equals, size = item.rpartition("=")
        if not equals or not pattern or not size:
            raise BadInputError(f"--set {item}: write PATTERN=SIZE, like 'layer3.*=96' or 'layer3.*=1.5x'")
        sizes[pattern] = size
    return sizes


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


def _show(table: Table) -> None:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    text = io.StringIO()  # only `_print` knows what to do where stdout takes no more
    console = Console(
        file=text, force_terminal=is_terminal or None, markup=False, highlight=False, width=None if is_terminal else 160
    )
    console.print(table)
    _print(text.getvalue(), end="")


def _print(text: str, end: str = "\n") -> None:
    """Print, and go on with the work where whoever read the output has seen enough.

    Raises:
        BadInputError: If what is printed is lost, and nothing has been written yet; afterwards that is a warning.
    """
    try:
        print(text, end=end, flush=True)
    except UnicodeEncodeError:  # a terminal, or a file, that has not all letters
        print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding), end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        lost = f"cannot print the results: {staging.reason(error)}"
        if isinstance(error, BrokenPipeError):
            return
        if not staging.written:
            raise BadInputError(lost) from error
        _complain(f"warning: {lost}")


def _complain(text: str) -> None:
    """Print a line to stderr, if that takes it."""
    try:
        print(f"onnx-net2net: {text}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextlib.contextmanager
def _progress() -> Iterator[Progress | None]:
    """Yield a function that moves a bar on a terminal's stderr, or None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=escape(shown(what)), completed=done, total=total)
