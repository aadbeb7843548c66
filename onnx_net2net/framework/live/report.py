"""What a growth did to a module, for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from onnx_net2net.errors import some
from onnx_net2net.framework.live.attributes import SizeChanges, slots_of
from onnx_net2net.framework.live.deeper import Depth, Lengthened
from onnx_net2net.framework.live.growth import Difference, FoundGrowth, Renumbered
from onnx_net2net.framework.live.tensors import tensors_of
from onnx_net2net.operations.widen.plan import Change
from onnx_net2net.texts import fold_names, fold_rows, lines_by_reason

_MOST = 4
"""How many numbers are printed."""

_POWERS = (-0.5, 0.5, -1.0)
"""Numbers that classes compute of a width n: n ** power."""


@dataclass(frozen=True)
class Report:
    """What a growth did to a module.

    Attributes:
        changes: The dims that grew: names, and sizes before and after.
        fixed: The dims that kept their size, with the reasons.
        numbers: Numbers in attributes of modules that were changed, like a number of heads.
        kept: Numbers that classes once computed from a width that grew. They keep their value, so that the function
            stays the same.
        parameters: The number of parameters before and after.
        difference: How far the outputs of the two modules differ in double precision, relative to the largest output.
        covered: The fraction of the weight elements that lie on an axis that grew.
        notes: Further remarks for people.
        loads: Whether the module's config now makes the grown module, so that it can be saved and loaded; None if it
            has no config.
        lists: The lists of blocks that got copies.
    """

    changes: tuple[Change, ...]
    fixed: tuple[tuple[str, str], ...] = field(repr=False)
    numbers: tuple[Renumbered, ...]
    kept: tuple[str, ...]
    parameters: tuple[int, int]
    difference: float
    covered: float
    notes: tuple[str, ...] = ()
    loads: bool | None = None
    lists: tuple[Lengthened, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the report for people."""
        grew = [change for change in self.changes if change.new != change.old]
        rows = [([change.name, f"{change.old:,} -> {change.new:,}"], False) for change in grew]
        folded = [cells for cells, _ in fold_rows(rows)]
        width = max((len(name) for name, _ in folded), default=0)
        for name, sizes in folded:
            yield f"{name:<{width}}  {sizes}"
        yield from map(str, self.lists)
        yield f"parameters {self.parameters[0]:,} -> {self.parameters[1]:,}"
        own = fold_names([str(number) for number in self.numbers if not number.of_torch])
        for what, found in (("numbers set", own), ("numbers kept", fold_names(self.kept))):
            if found:
                yield f"{what}: {some(found, _MOST)}"
        yield from (f"stays: {line}" for line in lines_by_reason(self.fixed))
        yield from self.notes
        yield f"computes the same: off by {self.difference:.1e} (relative) in double precision"


def report_of(teacher: nn.Module, student: nn.Module, found: FoundGrowth, difference: Difference) -> Report:
    """Write the report of a growth; the difference is that of the module's own weights."""
    counts = tuple(sum(one.numel() for one in module.parameters()) for module in (teacher, student))
    notes = list(found.growth.checkpoint.notes)
    if found.loads is False:
        notes.append("no config makes these sizes: the module trains on, and save_pretrained cannot make it again")
    return Report(
        found.widening.changes, found.widening.kept, found.growth.numbers,
        tuple(_kept(teacher, student, found.widening.changes)), (counts[0], counts[1]),
        max(difference.error, found.difference.error), found.widening.covered, tuple(notes), found.loads,
    )  # fmt: skip


def deeper_report(
    teacher: nn.Module, student: nn.Module, wider: Report | None, depth: Depth, difference: Difference
) -> Report:
    """Write the report of a growth in depth, behind one in width if there was one."""
    before, after = (sum(one.numel() for one in module.parameters()) for module in (teacher, student))
    if wider is None:
        return Report((), (), (), (), (before, after), difference.error, 0.0, lists=depth.lists)
    error = max(wider.difference, difference.error)
    return replace(wider, parameters=(before, after), difference=error, lists=depth.lists)


def _kept(teacher: nn.Module, student: nn.Module, changes: Sequence[Change]) -> Iterator[str]:
    """Yield the numbers that are a power of a width that grew, and stay."""
    shapes = [{name: tuple(one.shape) for name, one in tensors_of(module).items()} for module in (teacher, student)]
    sizes = SizeChanges(shapes[0], shapes[1], [(change.name, change.old, change.new) for change in changes])
    for path, module in student.named_modules():
        widths = [old for old, news in sizes.near(path).items() if old > 1 and any(new != old for new in news)]
        for slot in slots_of(module, path, floats=True):
            powers = [(n, p) for n in widths for p in _POWERS if isinstance(slot.value, float)
                      and math.isclose(slot.value, n**p, rel_tol=1e-9)]  # fmt: skip
            if powers and len(slot.keys) == 1:
                yield f"{slot.name} {slot.value:.6g} = {powers[0][0]} ** {powers[0][1]:g}"
