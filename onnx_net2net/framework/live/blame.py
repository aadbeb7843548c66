"""Which attribute or line of a module is in the way of its growth."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import sys
import traceback
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from onnx_net2net.errors import RefusedError, one_line, some
from onnx_net2net.framework.live.attributes import slots_of
from onnx_net2net.framework.live.example import Example, tensors_in
from onnx_net2net.framework.live.growth import Difference
from onnx_net2net.framework.live.trace import Trace, agrees, slow_attention

_NOT_THEIRS = tuple(os.path.join(os.path.dirname(one), "") for one in (torch.__file__, __file__))
"""Folders whose code is not the user's."""


class GrowthRefusedError(RefusedError):
    """A module cannot be grown exactly as it is written.

    Attributes:
        module: The path of the module in the way, "" for the whole one, None where that is not known.
        line: The line of its code, as "file:number".
    """

    def __init__(self, text: str, module: str | None = None, line: str | None = None) -> None:
        super().__init__(text)
        self.module, self.line = module, line


def refusal(
    teacher: nn.Module, student: nn.Module, example: Example, run: Trace | None, difference: Difference | None
) -> GrowthRefusedError:
    """Say what is in the way of a student that does not compute what its teacher does.

    Args:
        teacher: The teacher.
        student: The student.
        example: What both are called with.
        run: Where the student's modules stop to agree with the teacher's, if that was found.
        difference: How far the outputs are apart, if the student can be run.
    """
    if run is None or run.culprit is None:
        off = f"by {difference.error:.1e} (relative)" if difference else "and fails"
        return GrowthRefusedError(f"the grown module computes something else, {off}, and no single module is to blame")
    module = dict(student.named_modules())[run.culprit]
    name = f"{run.culprit} ({type(module).__name__})" if run.culprit else type(module).__name__
    kept = [f"{slot.keys[0] if len(slot.keys) == 1 else '.'.join(map(str, slot.keys))}={slot.value}"
            for slot in slots_of(module, run.culprit)]  # fmt: skip
    numbers = f"no other values of {some(kept, 6)} help" if kept else "it keeps no number in an attribute"
    line, code = _place(run.error, module) if run.error else _first_line(teacher, student, example)
    where = f" ({line}: {code})" if line else ""
    rest = f'; to grow the rest, give sizes={{"{run.culprit}.*": "1x"}}' if run.culprit else ""
    if run.error is None:
        return GrowthRefusedError(
            f"{name} computes something else when its layers grow{where}: a number in its code depends on a width, "
            f"and {numbers}{rest}",
            run.culprit,
            line,
        )
    return GrowthRefusedError(
        f"{name} fails when its layers grow{where}: {type(run.error).__name__}: {one_line(run.error, 160)}; "
        f"{numbers}{rest}",
        run.culprit,
        line,
    )


def _place(error: Exception, module: nn.Module) -> tuple[str | None, str]:
    """Return the last line of a module's own code that an error came through."""
    try:
        source = inspect.getsourcefile(type(module))
    except TypeError:  # a class of no file
        source = None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    if not frames:
        return None, ""
    return _shown(frames[-1].filename, frames[-1].lineno or 0)


def _shown(file: str, number: int) -> tuple[str, str]:
    return f"{os.path.basename(file)}:{number}", linecache.getline(file, number).strip()


class _Calls(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
    """Notes what each function of torch returns, and the line of other code that called it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int, list[torch.Tensor]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
            frame = frame.f_back
        tensors = [one.detach().clone() for one in tensors_in(result)]
        self.found.append((frame.f_code.co_filename, frame.f_lineno, tensors))
        return result


def _first_line(teacher: nn.Module, student: nn.Module, example: Example) -> tuple[str | None, str]:
    """Return the first line of code whose results are no longer the teacher's."""
    both = []
    for module in (teacher, student):
        with slow_attention(), _Calls() as calls:
            with contextlib.suppress(Exception):  # of the user's own code, which ends the run
                example(module)
            both.append(calls.found)
    for (file, number, wanted), (other, line, results) in zip(*both, strict=False):
        same = (file, number, len(wanted)) == (other, line, len(results))
        if not same or not all(map(agrees, wanted, results)):
            return _shown(other, line)
    return None, ""
