"""Which attribute or line of a module is in the way of its growth."""

from __future__ import annotations

import inspect
import linecache
import traceback

from torch import nn

from onnx_net2net.errors import RefusedError, one_line, some
from onnx_net2net.framework.live.attributes import slots_of
from onnx_net2net.framework.live.growth import Difference
from onnx_net2net.framework.live.trace import Run


class GrowthRefusedError(RefusedError):
    """A module cannot be grown exactly as it is written.

    Attributes:
        module: The path of the module in the way, "" for the whole one, None where that is not known.
        line: The line of its code, as "file:number".
    """

    def __init__(self, text: str, module: str | None = None, line: str | None = None) -> None:
        super().__init__(text)
        self.module, self.line = module, line


def refusal(student: nn.Module, run: Run | None, difference: Difference | None) -> GrowthRefusedError:
    """Say what is in the way of a student that does not compute what its teacher does."""
    if run is None or run.culprit is None:
        off = f"by {difference.error:.1e} (relative)" if difference else "and fails"
        return GrowthRefusedError(f"the grown module computes something else, {off}, and no module of it tells where")
    module = dict(student.named_modules())[run.culprit]
    name = f"{run.culprit} ({type(module).__name__})" if run.culprit else type(module).__name__
    kept = [f"{slot.keys[0] if len(slot.keys) == 1 else '.'.join(map(str, slot.keys))}={slot.value}"
            for slot in slots_of(module, run.culprit)]  # fmt: skip
    numbers = f"its numbers are {some(kept, 6)}" if kept else "it keeps no number"
    if run.error is None:
        return GrowthRefusedError(
            f"{name} computes something else when its layers grow, and no other value of its numbers changes that "
            f"({numbers}); its forward may have a number in it that depends on a width",
            run.culprit,
        )
    line, code = _place(run.error, module)
    where = f", line {line}: {code}" if line else ""
    return GrowthRefusedError(
        f"{name} fails when its layers grow{where}: {type(run.error).__name__}: {one_line(run.error, 160)} ({numbers}, "
        "and no other value of them helps)",
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
    last = frames[-1]
    code = last.line or linecache.getline(last.filename, last.lineno or 0)
    return f"{last.filename.rpartition('/')[2]}:{last.lineno}", code.strip()
