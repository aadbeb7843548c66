"""The training protocol: how the user's training command is run, and what it leaves in a folder.

The command is a template. `{init}`, `{optimizer}`, `{out}` and other places stand for files and numbers (`PLACES`); it
runs without a shell. While it runs it writes lines of JSON to `{out}/metrics.jsonl`, each with a `step` and its
metrics; the first line comes before the first step. When it ends, or gets SIGTERM, it leaves its weights in
`{out}/state.pt` (or `.safetensors`). It may also leave `optimizer.pt` and `model.onnx`.

A run writes into a temporary folder, which gets its final name when it is complete. So a folder of the final name
always holds a completed training.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.staging import writing
from onnx_net2net.search import guard

PLACES = {
    "init": "the state dict to start from",
    "optimizer": "the optimizer's state to start from; empty where there is none",
    "student": "the network as a file, with the weights of {init}",
    "teacher": "the network that it was grown from, trained",
    "features": "which tensors of teacher and student are the same, and by which maps; empty but for stages of a chain",
    "out": "the folder to write into",
    "name": "what the network is called",
    "seed": "a number that is the same whenever this training is done again",
    "start": "how many steps were done before",
    "steps": "after how many steps to end, counted with those that were done before",
}
"""What a template may say, besides names of the user's own."""

STATES = ("state.safetensors", "state.pt")
"""Where a training leaves its weights."""

DONE, FAILED = "done.json", "failed.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"

Cause = Literal["crash", "silence", "number", "metric", "checkpoint"]
MetricCallback = Callable[[float, float], None]
"""Called with a step and the metric there, as soon as the training has written them."""

_INTERVAL = 0.05

_ROOM = 1 << 16
"""Bytes; a disk with less is full."""

_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""What a program says whose files have no room."""

_PLACE = re.compile(r"\{([a-z_][a-z_0-9]*)\}")


class TrainingError(BadInputError):
    """The training command did not do its part.

    Attributes:
        cause: What it did instead.
    """

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True)
class Stop:
    """What is measured, and when a training has come far enough.

    Attributes:
        metric: The key of the metric in the lines of `metrics.jsonl`.
        mode: "min" if small values are good, "max" if large ones are.
        steps: End after this step. A command that takes `{steps}` does that itself.
        target: End as soon as the metric reaches this value.
        patience: End after so many values without a better one.
        seconds: End after so many seconds.
        silence: Seconds without a line after which a training counts as hung.
        grace: Seconds that the command has after SIGTERM to leave a checkpoint.
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    steps: int | None = None
    target: float | None = None
    patience: int | None = None
    seconds: float | None = None
    silence: float = 600.0
    grace: float = 60.0

    def is_better(self, value: float, other: float) -> bool:
        """Tell whether a value is better than another."""
        return value < other if self.mode == "min" else value > other

    def signed(self, value: float | None) -> float:
        """Return a value so that small is good; infinity for none."""
        return math.inf if value is None else value if self.mode == "min" else -value

    def best(self, values: list[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.mode == "min" else max(values)


@dataclass
class Outcome:
    """The result of a training.

    Attributes:
        ended: Why it ended: "finished", "steps", "target", "patience" or "seconds".
        duration: How many seconds it took.
        curve: Pairs of a step and the metric at this step.
        extras: The other values of the last line.
    """

    ended: str = "finished"
    duration: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    extras: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, read: Mapping[str, Any]) -> Outcome:
        """Return what `asdict` made of one and JSON kept."""
        return cls(read["ended"], read["duration"], [(step, value) for step, value in read["curve"]], read["extras"])

    @property
    def first(self) -> float:
        """The metric before the first step."""
        return self.curve[0][1]

    @property
    def last(self) -> float:
        """The metric at the end."""
        return self.curve[-1][1]

    @property
    def steps(self) -> float:
        """The last step."""
        return self.curve[-1][0]


@dataclass(frozen=True)
class Template:
    """A training command with places to fill.

    Attributes:
        words: Its words, as a shell would cut them.
        folder: Where it is run.
    """

    words: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, text: str, folder: Path, own: Mapping[str, object] | tuple[str, ...] = ()) -> Template:
        """Read a template.

        Args:
            text: The command.
            folder: Where it is run.
            own: Names that it may have besides `PLACES`.

        Raises:
            BadInputError: If it names what there is not, or can leave nothing.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise BadInputError(f"the training command cannot be read: {error}") from error
        named = [name for word in words for name in _PLACE.findall(word)]
        unknown = [name for name in named if name not in PLACES and name not in own]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in (*PLACES, *own))
            raise BadInputError(f"the training command has {{{unknown[0]}}}, which is none of {known}")
        if "out" not in named or not {"init", "student"} & set(named):
            raise BadInputError("the training command needs {out}, and {init} or {student} to start from")
        return cls(words, folder)

    @property
    def files(self) -> list[Path]:
        """The files that it names itself, such as the script; a change of these is another training."""
        return [self.folder / word for word in self.words if (self.folder / word).is_file()]

    def names(self, place: str) -> bool:
        """Tell whether it has a place."""
        return any(place in _PLACE.findall(word) for word in self.words)

    def filled(self, values: Mapping[str, object]) -> list[str]:
        """Return the words of a command."""
        return [_PLACE.sub(lambda place: str(values.get(place[1], "")), word) for word in self.words]


def train(
    template: Template,
    values: Mapping[str, object],
    out: Path,
    stop: Stop,
    watch: MetricCallback | None = None,
    halt: threading.Event | None = None,
) -> Outcome:
    """Run a training command and follow it.

    Args:
        template: The command.
        values: What its places stand for, besides `{steps}` and `{out}`.
        out: The folder that there is afterwards. If it fails there is one named `.failed` instead.
        stop: When to end it.
        watch: Told each value of the metric; what it raises ends the training.
        halt: Set by another thread that wants it to end at once.

    Raises:
        TrainingError: If it does not do its part; `log.txt` in the folder has what it printed.
        WriteError: If the folder cannot be written, also where the command found that out.
    """
    failed = out.with_name(f"{out.name}.failed")
    for old in (failed, *out.parent.glob(f"{out.name}.running-*")):
        shutil.rmtree(old, ignore_errors=True)
    running = out.with_name(f"{out.name}.running-{os.getpid()}")
    with writing(running):
        running.mkdir(parents=True)
    try:
        with _no_blame_for_a_full_disk(running):
            filled = {**values, "steps": stop.steps or "", "out": running}
            outcome = _follow(template, filled, running, stop, watch, halt)
            if not any((running / name).is_file() for name in STATES):
                raise TrainingError("checkpoint", f"the training left no {' or '.join(STATES)}")
        with writing(running / DONE):
            (running / DONE).write_text(json.dumps(asdict(outcome)))
            running.rename(out)
    except TrainingError as error:
        told = TrainingError(error.cause, f"{error}, see {failed / LOG}")
        with contextlib.suppress(OSError):
            (running / FAILED).write_text(json.dumps({"cause": told.cause, "text": str(told)}))
            running.rename(failed)
        raise told from error
    except BaseException:
        shutil.rmtree(running, ignore_errors=True)
        raise
    return outcome


@contextlib.contextmanager
def _no_blame_for_a_full_disk(folder: Path) -> Iterator[None]:
    """Tell a training that failed from one that had no room; a second try of that one may succeed."""
    try:
        yield
    except TrainingError as error:
        with writing(folder):
            if shutil.disk_usage(folder).free < _ROOM or any(text in _tail(folder / LOG) for text in _FULL):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def completed(out: Path) -> Outcome | None:
    """Return what a training came to that was completed in a folder; None where there is none."""
    try:
        read = json.loads((out / DONE).read_text())
    except OSError:
        return None
    return Outcome.of(read)


def failure_of(out: Path) -> TrainingError | None:
    """Return how the last training into a folder failed; None where it did not."""
    try:
        read = json.loads((out.with_name(f"{out.name}.failed") / FAILED).read_text())
    except OSError:
        return None
    return TrainingError(read["cause"], read["text"])


def checkpoint_of(out: Path) -> tuple[Path, Path | None, Path | None]:
    """Return the weights, the optimizer's state and the network that a training left; None for what it did not."""
    state = next(out / name for name in STATES if (out / name).is_file())
    optimizer, model = (path if path.is_file() else None for path in (out / "optimizer.pt", out / "model.onnx"))
    return state, optimizer, model


def _follow(
    template: Template,
    values: Mapping[str, object],
    folder: Path,
    stop: Stop,
    watch: MetricCallback | None,
    halt: threading.Event | None,
) -> Outcome:
    """Run a command to its end, or to where it has come far enough."""
    outcome, log = Outcome(), _Log(folder / METRICS)
    limits = replace(stop, steps=None) if template.names("steps") else stop
    began = heard = time.monotonic()
    asked: float | None = None
    with _started(template, template.filled(values), folder) as process:
        is_over = False
        while not is_over:
            is_over = process.poll() is not None  # before the last lines are read
            new = log.read()
            for line in new:
                _note(outcome, line, stop, watch)
            now = time.monotonic()
            heard = now if new else heard
            if asked is None and not is_over and (reason := _reached(outcome, limits, now - began)):
                outcome.ended, asked = reason, now
                _say(process, b"T")
            if halt is not None and halt.is_set():
                raise KeyboardInterrupt
            _check_alive(stop, None if asked is None else now - asked, now - heard)
            time.sleep(0 if is_over else _INTERVAL)
    outcome.duration = time.monotonic() - began
    if process.returncode and (asked is None or process.returncode != 128 + signal.SIGTERM):
        raise TrainingError("crash", f"the training ended with {process.returncode}{_last_line(folder / LOG)}")
    if not outcome.curve:
        raise TrainingError("metric", f"the training wrote no {stop.metric!r} to {METRICS}")
    return outcome


@contextlib.contextmanager
def _started(template: Template, words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command; on leaving the context it has ended with all its processes."""
    with writing(folder), open(folder / LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, *words],
            cwd=template.folder, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, bufsize=0,
        )  # fmt: skip
    try:
        yield process
    finally:
        _say(process, b"K")
        process.wait()
        if process.stdin:
            process.stdin.close()


def _say(process: subprocess.Popen[bytes], word: bytes) -> None:
    """Ask the guard for something, if it is still there."""
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.write(word)


class _Log:
    """A file of lines of JSON that somebody is writing."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._lines = path, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return what came since the last time, whole lines only.

        Raises:
            TrainingError: If a line is no JSON object.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        found = []
        for line in whole.split(b"\n") if newline else ():
            self._lines += 1
            if line.strip():
                found.append(self._entry(line))
        return found

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not is_number(entry.get("step")):
            raise TrainingError("metric", f"line {self._lines} of {METRICS} is no JSON object with a step")
        return entry


def is_number(value: object) -> bool:
    """Tell whether a value of JSON or YAML is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _note(outcome: Outcome, entry: Mapping[str, Any], stop: Stop, watch: MetricCallback | None) -> None:
    """Note a line; one without the metric says only that the training is alive."""
    value, step = entry.get(stop.metric), float(entry["step"])
    if value is None:
        return
    if not is_number(value) or not math.isfinite(value):
        raise TrainingError("number", f"{stop.metric} is {one_line(value, 40)} at step {step:g}")
    outcome.curve.append((step, float(value)))
    outcome.extras = {
        name: float(other) for name, other in entry.items()
        if name not in ("step", stop.metric) and is_number(other) and math.isfinite(other)
    }  # fmt: skip
    if watch is not None:
        watch(step, float(value))


def _reached(outcome: Outcome, stop: Stop, seconds: float) -> str:
    """Return why a training has come far enough; empty if it has not."""
    values = [value for _, value in outcome.curve]
    if stop.seconds is not None and seconds > stop.seconds:
        return "seconds"
    if stop.steps is not None and values and outcome.steps >= stop.steps:
        return "steps"
    if stop.target is not None and values and not stop.is_better(stop.target, values[-1]):
        return "target"
    if stop.patience is not None and len(values) > stop.patience:
        recent = values[-stop.patience :]
        if not stop.is_better(stop.best(recent), stop.best(values[: -stop.patience])):
            return "patience"
    return ""


def _check_alive(stop: Stop, since_asked: float | None, since_heard: float) -> None:
    if since_asked is not None and since_asked > stop.grace:
        raise TrainingError("silence", f"the training did not end within {stop.grace:g} s of SIGTERM")
    if since_asked is None and since_heard > stop.silence:
        raise TrainingError("silence", f"the training wrote no line to {METRICS} for {stop.silence:g} s")


def _last_line(log: Path) -> str:
    """Return the last line that a command printed, which most often says why it failed."""
    last = next((line for line in reversed(_tail(log).split("\n")) if line.strip()), "")
    return f": {one_line(last, 200)}" if last else ""


def _tail(log: Path) -> str:
    """Return the end of what a command printed."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        return file.read().decode(errors="replace")
