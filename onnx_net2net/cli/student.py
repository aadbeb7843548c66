"""What widen, deepen, upcycle and narrow have in common: they prove a student, write it, and say what was done."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onnx_net2net.cli.options import checking
from onnx_net2net.cli.output import answer, progress_bar, size_text
from onnx_net2net.cli.page import check_free, check_page, picture, write_page
from onnx_net2net.errors import Net2NetError, NotEquivalentError
from onnx_net2net.framework.recipe import next_steps, recipe_of
from onnx_net2net.framework.widths import compare_widths
from onnx_net2net.graph.costs import Costs
from onnx_net2net.model.model import Model
from onnx_net2net.model.saving import check_target
from onnx_net2net.operations.deepen.deepen import Deepening
from onnx_net2net.operations.estimate import both_costs, estimate
from onnx_net2net.operations.narrow.narrow import Narrowing
from onnx_net2net.operations.unmask import Unmasking
from onnx_net2net.operations.upcycle import Upcycling
from onnx_net2net.operations.verify import verify
from onnx_net2net.operations.widen.widen import Widening

Sums = Sequence[Sequence[str]]
"""The last rows of a table: what is summed up, before, and after."""

OtherWay = tuple[str, Callable[[], Widening]]
"""Options that may help where a student differs, and what makes a student with them."""

_TRIED = 200_000_000
"""Bytes of a teacher up to which other ways to grow it are tried, to name one that works."""


def _costs(teacher: Model, student: Model, counted: tuple[Costs, Costs]) -> dict[str, dict[str, int]]:
    """Return what a teacher and its student cost: for each quantity, ``before`` and ``after``.

    Multiplications are those of one run, activations are bytes, both at the same sizes of dynamic axes.
    """
    less, more = counted
    pairs = {
        "parameters": (teacher.parameters, student.parameters),
        "bytes": (_file_size(teacher), student.nbytes),
        "multiplications": (less.multiplications, more.multiplications),
        "activations": (less.activations, more.activations),
    }
    return {name: {"before": before, "after": after} for name, (before, after) in pairs.items()}


def _sums(costs: Mapping[str, Mapping[str, int]]) -> Sums:
    """Return the same as rows of a table."""
    sized = {"bytes": "file size", "activations": "activations"}
    return [
        [sized.get(name, name), *(size_text(value) if name in sized else f"{value:,}" for value in pair.values())]
        for name, pair in costs.items()
    ]


def _file_size(model: Model) -> int:
    """Return the bytes of a model's files, or of its weights where it has no file."""
    return sum(map(os.path.getsize, model.sources)) if model.sources else model.nbytes


def prepare(options: argparse.Namespace, teacher: Model) -> dict[str, Any]:
    """Return the options of the comparison; refuse them, or the destination, before anything costs time."""
    found = checking(options, teacher)
    check_target(options.output, teacher.sources)
    check_replaced(options)
    check_page(options)
    return found


def deliver(
    options: argparse.Namespace,
    result: Widening | Deepening | Narrowing | Upcycling | Unmasking,
    checking: dict[str, Any],
    to_dict: Callable[[Any], dict[str, Any]],
    table: Callable[[Any, str, Sums], object],
    lines: Iterable[object] = (),
    *,
    inexact: str = "",
    others: Iterable[OtherWay] = (),
) -> int:
    """Verify a student, write it, and say so; one that differs and should not is not written.

    Args:
        options: What was asked for.
        result: What was done.
        checking: What `prepare` returned.
        to_dict: Makes the same for JSON.
        table: Makes the same for people, of a title and the last rows.
        lines: What else there is to say.
        inexact: Why the student may differ; empty if it must not.
        others: What else could be done where the student differs.
    """
    widths = widths_of(options, result.teacher, result.student)
    counted = both_costs(result.teacher, result.student)
    costs = _costs(result.teacher, result.student, counted)
    title = f"{options.teacher.name} -> {options.output.name}"
    record = {**to_dict(result), **costs, **widths}
    lines = [table(result, title, _sums(costs)), *lines, *widths.get("widths", ())]
    if options.dry_run:
        estimated = estimate(result.teacher, result.student, counted, options.output.parent)
        told = [*lines, f"would have {estimated}", "nothing was written (--dry-run)"]
        return answer(options, {**record, "estimate": estimated.to_dict(), "output": None}, told)
    verification = None
    with progress_bar() as progress, result.student.stage(options.output, progress=progress) as staged:
        if options.verify:
            verification = verify(result.teacher, staged.path, progress=progress, record=False, **checking)
            if not inexact and not verification.equivalent:
                raise NotEquivalentError(f"{verification}{_remedy(result.teacher, others, checking)}")
        staged.commit()
    advice = None if isinstance(result, Narrowing | Upcycling | Unmasking) else recipe_of(result)
    told = [*lines, *([next_steps(advice)] if advice else [])]
    told += [f"not exact, as asked ({inexact})"] if inexact else []
    told.append(verification or "not verified (--no-verify)")
    if options.html:
        write_page(options.html, title, [*told, *picture(result.teacher, result.student)])
    record |= {"verification": verification.to_dict() if verification else None, "output": str(options.output)}
    record |= {"recipe": advice.as_dict()} if advice else {}
    return answer(options, record, told, options.output)


def check_replaced(options: argparse.Namespace) -> None:
    """Note whether a file is going to be replaced, so that the last line says so.

    Raises:
        BadInputError: No operation has made that file, and --force is not given.
    """
    options.replaces = options.output.is_file()
    check_free(options.output, options.force)


def widths_of(options: argparse.Namespace, teacher: Model, student: Model) -> dict[str, Any]:
    """Return the width report that was asked for, as an entry of the record: lines, or JSON-ready values."""
    if options.report is None:
        return {}
    options.json |= options.report == "json"
    found = compare_widths(teacher, student)
    return {"widths": found.to_dict() if options.json else list(found.lines())}


def _remedy(teacher: Model, ways: Iterable[OtherWay], checking: dict[str, Any]) -> str:
    """Return the first of other ways that makes an equivalent student, which is tried where that costs little."""
    for text, grow in ways if sum(map(os.path.getsize, teacher.sources)) < _TRIED else ():
        with contextlib.suppress(Net2NetError):
            if verify(teacher, grow().student, **checking).equivalent:
                return f"; with {text} it is equivalent"
    return ""
