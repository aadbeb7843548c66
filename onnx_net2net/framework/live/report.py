"""What a growth did to a module, for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from onnx_net2net.framework.live.growth import Difference, Found, Renumbered
from onnx_net2net.operations.widen.plan import Change
from onnx_net2net.texts import fold_rows, lines_by_reason


@dataclass(frozen=True)
class Report:
    """What a growth did to a module.

    Attributes:
        changes: The dims that grew: names, sizes before and after.
        fixed: The dims that kept their size, with the reason.
        numbers: The numbers that its modules keep, which changed.
        parameters: How many parameters it has, before and after.
        difference: How far the outputs of both are apart in double precision, relative to the largest.
        covered: Share of the weights that grew.
        notes: What else there is to say.
        loads: Whether the module's config makes the grown one, so that it can be saved and loaded; None without config.
    """

    changes: tuple[Change, ...]
    fixed: tuple[tuple[str, str], ...] = field(repr=False)
    numbers: tuple[Renumbered, ...]
    parameters: tuple[int, int]
    difference: float
    covered: float
    notes: tuple[str, ...] = ()
    loads: bool | None = None

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
        yield f"parameters {self.parameters[0]:,} -> {self.parameters[1]:,}"
        yield from (f"stays: {line}" for line in lines_by_reason(self.fixed))
        yield from self.notes
        yield f"computes the same: off by {self.difference:.1e} (relative) in double precision"


def report_of(teacher: nn.Module, student: nn.Module, found: Found, difference: Difference) -> Report:
    """Write the report of a growth; the difference is that of the module's own weights."""
    counts = tuple(sum(one.numel() for one in module.parameters()) for module in (teacher, student))
    notes = list(found.growth.checkpoint.notes)
    if found.loads is False:
        notes.append("no config makes these sizes: the module trains on, and save_pretrained cannot make it again")
    return Report(
        found.widening.changes, found.widening.kept, found.growth.numbers, (counts[0], counts[1]),
        max(difference.error, found.difference.error), found.widening.covered, tuple(notes), found.loads,
    )  # fmt: skip
