"""What people and programs read: tables, lines and JSON on stdout; complaints and progress on stderr."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_net2net.errors import BadInputError, shown
from onnx_net2net.model import staging
from onnx_net2net.texts import fold_rows, shorten

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from onnx_net2net.model.saving import Progress

Row = tuple[Iterable[str], bool]
"""The cells of a row, and whether it is pale."""


@dataclass
class Voice:
    """Who hears what is said.

    Attributes:
        quiet: Whether only errors and JSON are printed.
        verbose: Whether each step is printed to stderr.
        all_rows: Whether tables have a row for each of many layers of one kind.
    """

    quiet: bool = False
    verbose: bool = False
    all_rows: bool = False


voice = Voice()
"""Of this process: each command sets it when it begins."""

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # what is said is printed already
"""What is said goes there, too."""


_PROSE = 24
"""Letters of a cell of the last column above which its words may stand on several lines."""

_NAME = 16
"""Letters that are left of a name at least."""


def table(title: str, columns: Sequence[str], rows: Iterable[Row], totals: Sequence[Sequence[str]] = ()) -> Table:
    """Return a table.

    Args:
        title: What stands above it.
        columns: The names of the columns; one that begins with ``>`` is flush right.
        rows: The rows, from above. The first cell is a name. Rows of repeated layers are folded, unless all are asked
            for.
        totals: Further rows, below a line.
    """
    from rich import box  # imported where there is something to show: it takes a tenth of a second
    from rich.table import Table

    made = Table(title=_text(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
                 padding=(0, 1, 0, 0))  # fmt: skip
    lines = list(rows) if voice.all_rows else fold_rows(rows)
    names = [name.lstrip(">") for name in columns]
    bodies = [names, *(list(cells) for cells, _ in lines), *map(list, totals)]
    widths = [max((len(body[place]) for body in bodies if len(body) > place), default=0) for place in range(len(names))]
    prose = names[-1] if widths[-1] > _PROSE else ""  # its words may stand on several lines; nothing else breaks
    rest = sum(widths[1:-1]) + min(widths[-1], _PROSE) + 2 * len(names) + 1
    first = max(_width() - rest, _NAME)
    for place, name in enumerate(names):
        is_right = columns[place].startswith(">")
        made.add_column(name, justify="right" if is_right else "left", no_wrap=name != prose, overflow="fold")
    for cells, is_pale in lines:
        name, *others = cells
        made.add_row(*map(_text, (shorten(name, first), *others)), style="dim" if is_pale else None)
    made.add_section()
    for cells in totals:
        made.add_row(*map(_text, cells))
    return made


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people write it."""
    return " x ".join(map(str, shape)) or "scalar"


def size_text(size: int) -> str:
    """Return a number of bytes with a suffix that fits."""
    amount = float(size)
    for suffix in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {suffix}"
        amount /= 1000
    return f"{amount:.2f} GB"


def answer(options: argparse.Namespace, record: Any, told: Iterable[object], *written: os.PathLike[str]) -> int:
    """Say what was found and written, for people or as JSON; return the exit code.

    Args:
        options: What was asked for.
        record: What was found, JSON-ready.
        told: The same for people.
        written: What was written.
    """
    if options.json:
        say_json(record)
        return 0
    tell(told)
    if written:
        say_written(options, *written)
    return 0


def say_written(options: argparse.Namespace, *paths: os.PathLike[str]) -> None:
    """Say what was written, and in what time."""
    verb = "replaced" if options.replaces else "wrote"
    say(f"{verb} {' and '.join(map(str, paths))} in {time.perf_counter() - options.started:.1f} s")


def tell(items: Iterable[object]) -> None:
    """Print tables, and the texts of all else, each in one line."""
    from rich.table import Table

    for item in items:
        if isinstance(item, Table):
            _print_table(item)
        else:
            say(shown(item))


def say(text: str, end: str = "\n") -> None:
    """Print; where nobody reads the output any more, go on with the work.

    Raises:
        BadInputError: Printing fails and no file has been written yet; afterwards there is a warning instead.
    """
    log.info("%s", text.rstrip())
    if not voice.quiet:
        _print(text, end)


def _print(text: str, end: str = "\n") -> None:
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
        complain(f"warning: {lost}")


def say_json(value: Any) -> None:
    """Print JSON."""
    _print(json.dumps(value, indent=2))


def complain(text: str) -> None:
    """Print a line to stderr, if that takes it."""
    log.error("%s", text)
    try:
        print(f"onnx-net2net: {text}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Yield a function that moves a bar on stderr, or prints each step; None where neither is asked for."""
    if voice.verbose:
        yield _step
        return
    if voice.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=escape(shown(what)), completed=done, total=total)


def _step(what: str, done: int, total: int) -> None:
    log.info("%s (%d of %d)", shown(what), done, total)
    print(f"{shown(what)} ({done:,} of {total:,})", file=sys.stderr, flush=True)


@contextlib.contextmanager
def following() -> Iterator[Callable[[str, float, float], None]]:
    """Yield a function that shows how a training goes (name, step, metric) on stderr, if that is a terminal."""
    if voice.quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(TextColumn("{task.description}"), SpinnerColumn(), TimeElapsedColumn(),
             console=Console(stderr=True), transient=True) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        yield lambda name, step, value: bar.update(task, description=escape(f"{name}: step {step:g}, {value:.4g}"))


def _text(value: str) -> Text:
    """Return the text of a cell, without markup and without control characters."""
    from rich.text import Text

    return Text(shown(value))


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160


def _print_table(made: Table) -> None:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    text = io.StringIO()  # only `say` knows what to do where stdout takes no more
    width = _width()
    Console(file=text, force_terminal=is_terminal or None, markup=False, highlight=False, width=width).print(made)
    say(text.getvalue(), end="")
