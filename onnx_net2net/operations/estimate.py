"""What a student will cost, before it is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_net2net.graph.costs import Costs, costs_of
from onnx_net2net.model.model import Model

_TRIED_SECONDS = 0.3
"""For so long weights are computed to see how fast that is."""


@dataclass(frozen=True)
class Estimate:
    """What a student will cost.

    Attributes:
        parameters: Of teacher and student.
        multiplications: Of one run of teacher and student, where dynamic axes have the sizes `binding`.
        activations: Bytes of all that the nodes of teacher and student compute in one run.
        binding: The sizes of the dynamic axes.
        nbytes: Bytes of its files.
        free: Bytes that the disk has left.
        seconds: Processor time to compute its weights.
    """

    parameters: tuple[int, int]
    multiplications: tuple[int, int]
    activations: tuple[int, int]
    binding: Mapping[str, int]
    nbytes: int
    free: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        (old, new), (less, more) = self.parameters, self.multiplications
        sizes = ", ".join(f"{name} = {size}" for name, size in self.binding.items())
        return (
            f"{new:,} parameters ({new / max(old, 1):.2f} x), {more:,} multiplications a run "
            f"({more / max(less, 1):.2f} x{', ' if sizes else ''}{sizes}), "
            f"{self.activations[1] / 1e6:,.1f} MB of activations, {self.nbytes / 1e6:,.1f} MB on a disk with "
            f"{self.free / 1e6:,.0f} MB left, about {self.seconds:.1f} s of a processor"
        )


def both_costs(teacher: Model, student: Model) -> tuple[Costs, Costs]:
    """Return what one run of teacher and student costs, at the same sizes of dynamic axes."""
    less = costs_of(teacher)
    return less, costs_of(student, less.binding)


def estimate(teacher: Model, student: Model, costs: tuple[Costs, Costs], folder: Path) -> Estimate:
    """Estimate what a student costs that is going to be written into a folder, from what `both_costs` returned."""
    less, more = costs
    return Estimate(
        parameters=(teacher.parameters, student.parameters),
        multiplications=(less.multiplications, more.multiplications),
        activations=(less.activations, more.activations),
        binding=less.binding,
        nbytes=student.nbytes,
        free=shutil.disk_usage(folder).free,
        seconds=student.nbytes * _seconds_per_byte(student),
    )


def _seconds_per_byte(student: Model) -> float:
    """Compute some of the weights, and see how long that takes."""
    start, done = time.process_time(), 0
    for weight in sorted(student.weights.values(), key=lambda weight: -weight.nbytes):
        for _, read in weight.pieces() if weight.has_rows else ():
            done += len(content) if isinstance(content := read(), bytes) else content.nbytes
            if time.process_time() - start > _TRIED_SECONDS:
                return (time.process_time() - start) / done
    return (time.process_time() - start) / max(done, 1)
