"""Repeats the steps that a model's record or a recipe lists."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from onnx_net2net.errors import BadInputError, RefusedError, one_line
from onnx_net2net.model.history import check_values, fingerprint, history
from onnx_net2net.model.model import Model, load
from onnx_net2net.model.staging import work_folder
from onnx_net2net.operations.deepen.deepen import deepen
from onnx_net2net.operations.narrow.narrow import narrow
from onnx_net2net.operations.transfer.transfer import transfer
from onnx_net2net.operations.unmask import unmask
from onnx_net2net.operations.upcycle import upcycle
from onnx_net2net.operations.widen.widen import widen

OPERATIONS: dict[str, Callable[..., Any]] = {
    "widen": widen, "deepen": deepen, "narrow": narrow, "transfer": transfer, "upcycle": upcycle,
    "unmask": unmask,
}  # fmt: skip

_NOTES = {"operation", "version", "teacher", "filled", "interface", "inlined functions", "folded Ifs", "calibrated on"}
"""What a record says besides the options of the operation."""


def steps_of(source: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read steps from the record of a student (.onnx) or from a recipe (.yaml).

    Args:
        source: The file. A recipe is a list of steps, each a mapping with `operation` and the options of that function.

    Returns:
        The steps, as `replay` takes them.

    Raises:
        BadInputError: The file has no steps, or a step has an unknown operation or option.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        try:
            steps = yaml.safe_load(path.read_text(encoding="utf-8"))
        except Exception as error:  # of files, of text, of YAML, and of whatever a value with a tag is made by
            raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    else:
        steps = history(load(path))
    if not isinstance(steps, list) or not steps:
        raise BadInputError(f"{path} has no steps: a list of operations, each with its options")
    for number, step in enumerate(steps, 1):
        check_step(step, f"{path}, step {number}")
    return steps


def check_step(step: object, where: str) -> None:
    """Refuse a step that cannot be repeated.

    Args:
        step: The step, as it was read.
        where: The file and the number of the step; messages begin with it.

    Raises:
        BadInputError: The step has an unknown operation or option, or depends on data that no record holds.
    """
    check_values(step, where)
    assert isinstance(step, Mapping)
    if step["operation"] == "transfer" and "target" not in step:
        raise BadInputError(f"{where}: transfer needs the network that is filled (target: FILE, in a recipe)")
    known = inspect.signature(OPERATIONS[step["operation"]]).parameters
    unknown = [str(key) for key in step if key not in known and key not in _NOTES]
    if unknown:
        raise BadInputError(f"{where}: {step['operation']} has no option {', '.join(unknown)}")
    if step.get("calibrated on") == "data":
        raise BadInputError(f"{where}: it was calibrated on data that the record does not have")


def replay(
    teacher: str | os.PathLike[str] | Model, steps: Sequence[Mapping[str, Any]], output: str | os.PathLike[str]
) -> None:
    """Apply steps to a model, one after another, and write the student.

    Args:
        teacher: The model to start from: the one that the record names, or for a recipe any model.
        steps: The steps; see `steps_of`.
        output: The file to write. If it has the name that the student had, it gets the same bytes.

    Raises:
        BadInputError: The record belongs to another teacher, or a value makes no sense.
        RefusedError: A step cannot be carried out.
    """
    with work_folder() as folder:
        *_, last = redo(load(teacher), steps, folder)
        last.student.save(output)


def redo(model: Model, steps: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Any]:
    """Apply steps to a model, one after another.

    A step was applied either to a student in memory or to a student's file; here it is applied to the same.

    Args:
        model: The model that the first step was applied to.
        steps: The steps; see `steps_of`.
        folder: Where students that were files are written; it must exist as long as the results.

    Yields:
        The result of each operation, like a `Widening`.

    Raises:
        BadInputError: The record belongs to another model, or a value makes no sense.
        RefusedError: A step cannot be carried out.
    """
    on_data = False
    for number, step in enumerate(steps, 1):
        teacher = step.get("teacher")
        if number > 1 and teacher != fingerprint(model):
            path = folder / f"{number}.onnx"
            model.save(path)
            model = load(path)
        if on_data and teacher is not None:
            raise BadInputError(f"step {number} follows a calibration on data that the record does not have")
        on_data = step.get("calibrated on") == "data"
        if teacher not in (None, fingerprint(model)):
            raise BadInputError(f"step {number} was not applied to this model, but to another")
        operation = OPERATIONS[step["operation"]]
        known = inspect.signature(operation).parameters
        options = {key: value for key, value in step.items() if key in known and key not in _NOTES}
        try:
            result = operation(model, **options)
        except TypeError as error:
            raise BadInputError(f"step {number}: {one_line(error)}") from error
        if obstacles := getattr(result, "obstacles", ()):
            raise RefusedError(f"step {number}: the transfer is not exact, {obstacles[0]}")
        yield result
        model = result.student
