"""`grow`: the user's own module, wider or deeper, computing what it did.

The module is exported without folding and widened as a class can follow; the maps of this growth are done to its own
tensors (`framework.checkpoint`), and to the moments of its optimizer. The numbers that its layers keep are set; those
that its own classes keep are searched (`search`). At the end the grown module has computed the same in double precision,
or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from onnx_net2net.errors import BadInputError, RefusedError, one_line
from onnx_net2net.framework.checkpoint import checkpoint
from onnx_net2net.framework.live.attributes import Sizes, likely, slots_of
from onnx_net2net.framework.live.blame import refusal
from onnx_net2net.framework.live.example import Example, Inputs
from onnx_net2net.framework.live.exported import duplicate, export, in_double, move_apart
from onnx_net2net.framework.live.growth import Difference, Growth, Yardstick, renumbered
from onnx_net2net.framework.live.layers import resize_layer
from onnx_net2net.framework.live.report import Report, report_of
from onnx_net2net.framework.live.search import Search
from onnx_net2net.framework.live.tensors import grow_tensors, tensors_of
from onnx_net2net.framework.live.trace import events_of
from onnx_net2net.framework.widths import WidthReport, compare_widths
from onnx_net2net.model.model import Model
from onnx_net2net.operations.widen.widen import Widening, widen


@dataclass(frozen=True)
class Grown:
    """A module that was grown.

    Attributes:
        module: The grown copy, of the same class, type, device and mode.
        optimizer: The optimizer of its parameters, if one was given.
        report: What grew, what did not and why, and the proof.
        growth: What was done, to do it to other copies of the module too.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    report: Report
    growth: Growth = field(repr=False)


def grow(
    module: nn.Module,
    example_inputs: Inputs,
    *,
    factor: float | None = None,
    sizes: Mapping[str, int | str] | None = None,
    only: Sequence[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> Grown:
    """Grow a copy of a module without changing what it computes (Net2WiderNet, paper section 2.3).

    Args:
        module: The module, of any class, type and device; it is not changed.
        example_inputs: What it is called with: a tensor, a tuple of arguments, or a dict of arguments by name.
        factor: Width multiplier (>= 1), as in `onnx_net2net.widen`.
        sizes: Sizes by name of the dim, pattern or role, as in `onnx_net2net.widen`.
        only: Names, patterns or roles of the dims that `factor` is for.
        optimizer: An optimizer of the module's parameters. Its copy has the grown state.
        seed: Seed of every random choice.

    Returns:
        The grown module, whose outputs in double precision are the old one's.

    Raises:
        BadInputError: The module cannot be called with the inputs, or an option makes no sense.
        RefusedError: It cannot be grown exactly; the text says which attribute or line of it is in the way.
    """
    options = {"factor": factor, "sizes": dict(sizes or {}), "only": tuple(only), "seed": seed}
    growth, report = find_growth(module, Example(example_inputs), options)
    grown = duplicate(module)
    growth.apply(grown)
    return Grown(grown, None, report, growth)


def find_growth(module: nn.Module, example: Example, options: Mapping[str, object]) -> tuple[Growth, Report]:
    """Find out how a module grows, and prove it; the module is not changed."""
    example = example.double()
    own = in_double(module)
    examples = [example, *example.variations()]
    try:
        real = Yardstick(own, examples)
    except Exception as error:  # of the user's own code
        what = f"{type(error).__name__}: {one_line(error)}"
        raise BadInputError(f"the module cannot be called with example_inputs: {what}") from error
    teacher = duplicate(own)
    move_apart(teacher)
    moved = Yardstick(teacher, examples)
    if not moved.is_finite:
        teacher, moved = duplicate(own), real
    model = export(teacher, example)
    attempt = _Attempt(teacher, moved, example, model, options)
    refusal_: RefusedError | None = None
    for keep_numbers in (True, False):
        try:
            growth, difference, widening, widths = attempt.run(keep_numbers)
            break
        except RefusedError as error:
            refusal_ = refusal_ or error
    else:
        raise refusal_ or RefusedError("nothing grows")
    student = duplicate(own)
    growth.apply(student)
    again = real.difference(student)
    if not again.is_none:
        raise RefusedError(f"the grown module differs by {again.error:.1e} (relative) with its own weights")
    return growth, report_of(module, student, growth, widening, max(difference, again, key=lambda one: one.error))


class _Attempt:
    """Grows a teacher whose weights are all different."""

    def __init__(
        self, teacher: nn.Module, yardstick: Yardstick, example: Example, model: Model, options: Mapping[str, object]
    ) -> None:
        self._teacher, self._yardstick, self._example = teacher, yardstick, example
        self._model, self._options = model, options

    def run(self, keep_numbers: bool) -> tuple[Growth, Difference, Widening, WidthReport]:
        """Grow it once.

        Raises:
            RefusedError: It cannot be grown so.
        """
        teacher = self._teacher
        widening = widen(self._model, **self._options, framework="torch", keep_numbers=keep_numbers)  # type: ignore[arg-type]
        entries = checkpoint(self._model, widening.student, tensors_of(teacher))
        widths = compare_widths(self._model, widening.student)
        student = duplicate(teacher)
        grow_tensors(student, entries)
        for path, module in student.named_modules():
            resize_layer(module, path, widths)
        old, new = ({name: tuple(one.shape) for name, one in tensors_of(m).items()} for m in (teacher, student))
        dims = [(change.name, change.old, change.new) for change in widening.changes]
        sizes = Sizes(old, new, dims)
        for path, module in student.named_modules():
            if not type(module).__module__.startswith("torch.nn"):
                near = sizes.near(path, 2)
                for slot in slots_of(module, path):
                    value = likely(slot, near) if len(slot.keys) == 1 else None
                    if value is not None:
                        slot.set(value)
        difference = self._settle(student, sizes)
        return Growth(entries, tuple(renumbered(teacher, student))), difference, widening, widths

    def _settle(self, student: nn.Module, sizes: Sizes) -> Difference:
        """Search the numbers that are still wrong."""
        found = self._difference(student)
        if found is not None and found.is_none:
            return found
        originals = {(path, slot.keys): slot.value for path, module in self._teacher.named_modules()
                     for slot in slots_of(module, path)}  # fmt: skip
        search = Search(student, originals, sizes, self._example, events_of(self._teacher, self._example))
        search.settle()
        found = self._difference(student)
        if found is None or not found.is_none:
            raise refusal(student, search.blamed, found)
        return found

    def _difference(self, student: nn.Module) -> Difference | None:
        try:
            return self._yardstick.difference(student)
        except Exception:  # of the user's own code, which keeps numbers that are no longer right
            return None
