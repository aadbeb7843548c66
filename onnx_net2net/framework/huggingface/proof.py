"""Compares a checkpoint's teacher and student: both classes run on the same inputs, with a part of a weight in memory.

The two models are those that `from_pretrained` would load from the two folders: the classes at their own configs, with
the weights of their files. Hidden states behind each block are compared through the map of the residual stream, and
the output directly.

The tolerance follows from rounding. Copies are not rounded, and the parts in which copies share a weight sum to it, in
half precision, too. Other weights (scaled ones, means) are rounded to the dtype of the checkpoint. And classes compute
some tensors in single precision (norms, rotary tables), whatever dtype they run in. So the teacher runs once more, with
each weight moved by half a unit in the last place: that of single precision, or that of its own dtype if growth rounds
it. The tolerance of a block's result follows from how far the result moves then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch

from onnx_net2net.algebra.maps import Map
from onnx_net2net.errors import NotEquivalentError, one_line
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface.parameters import StudentParameter
from onnx_net2net.framework.huggingface.running import MEMORY, BlockOutputs, run_blocks
from onnx_net2net.framework.huggingface.student import Student
from onnx_net2net.framework.huggingface.teacher import Teacher

PATIENCE = 5.0
"""How many times the teacher's movement by rounding a student may be away."""

_LENGTH = 24
"""Tokens of the sentences that are drawn."""

_FLOOR = 1e3
"""Roundings of the computation itself that are always allowed."""


@dataclass(frozen=True)
class BlockError:
    """How far a block's hidden states are apart.

    Attributes:
        name: The block.
        error: The largest difference, relative to the largest value.
        tolerance: What is allowed, relative to the same.
    """

    name: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Attributes:
        error: The largest difference of outputs.
        largest: The largest value of the teacher's output.
        tolerance: The largest difference that is allowed.
        blocks: The blocks whose hidden states could be compared.
        precision: What it was computed in.
    """

    error: float
    largest: float
    tolerance: float
    blocks: tuple[BlockError, ...]
    precision: str

    @property
    def is_equivalent(self) -> bool:
        """Whether the student computes what the teacher does, behind each block and in the end."""
        return self.error <= self.tolerance and not self.differing

    @property
    def differing(self) -> list[BlockError]:
        """The blocks behind which the hidden states differ."""
        return [block for block in self.blocks if not block.error <= block.tolerance]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return {
            "equivalent": self.is_equivalent, "error": self.error, "largest": self.largest,
            "tolerance": self.tolerance, "precision": self.precision,
            "blocks": {block.name: {"error": block.error, "tolerance": block.tolerance} for block in self.blocks},
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Yield what was found, for people."""
        word = "equivalent" if self.is_equivalent else "NOT equivalent"
        yield (
            f"{word} in {self.precision}: outputs differ by {self.error:.2g} at most (relative "
            f"{self.error / (self.largest or 1):.2g}, tolerance {self.tolerance:.2g})"
        )
        if self.blocks:
            worst = max(self.blocks, key=lambda block: block.error)
            yield (
                f"hidden states behind {len(self.blocks)} blocks differ by {worst.error:.2g} at most, behind "
                f"{worst.name} (tolerance {worst.tolerance:.2g})"
            )

    def raise_if_different(self) -> None:
        """Refuse a student that differs.

        Raises:
            NotEquivalentError: With the first block behind which the hidden states differ.
        """
        if self.is_equivalent:
            return
        first = next(iter(self.differing), None)
        where = f"; the first to differ is {first.name}, by {first.error:.2g}" if first else ""
        raise NotEquivalentError(f"{next(self.lines())}{where}")


class TeacherRun:
    """A teacher that was run, to compare students with it."""

    def __init__(
        self, teacher: Teacher, inputs: Mapping[str, torch.Tensor] | None = None, memory: int = MEMORY
    ) -> None:
        """Run a teacher.

        Args:
            teacher: The teacher.
            inputs: What it is called with; drawn by default.
            memory: Bytes that a part of a weight takes.
        """
        self._teacher, self._memory = teacher, memory
        self._inputs = inputs or teacher.skeleton.draw(_LENGTH)
        kinds = {stored.dtype.itemsize for stored in teacher.parameters.values() if stored.dtype.kind not in "iub"}
        self._dtype = torch.float64 if max(kinds, default=4) >= 4 else torch.float32
        self._before = self._run({})
        self._moved: tuple[Mapping[str, float], BlockOutputs] = ({}, self._before)

    def _run(self, moved: Mapping[str, float]) -> BlockOutputs:
        """Run the teacher, with its weights moved."""
        teacher = self._teacher
        return run_blocks(teacher.skeleton, teacher.parameters, self._inputs, self._dtype, moved, self._memory)

    def _run_moved(self, student: Student) -> BlockOutputs:
        """Run the teacher with its weights moved as far as a student's are rounded."""
        single = float(np.finfo(np.float32).eps) / 2
        steps: dict[int, float] = {}
        for one in student.parameters.values():
            if one.dtype.kind not in "iub":
                step = max(one.rounding * float(ml_dtypes.finfo(one.dtype).eps) / 2, single)
                steps[id(one.stored)] = max(step, steps.get(id(one.stored), 0.0))
        own = {name: steps[id(one)] for name, one in self._teacher.parameters.items() if id(one) in steps}
        if self._moved[0] != own:
            self._moved = own, self._run(own)
        return self._moved[1]

    def compare(self, student: Student, weights: Mapping[str, Stored]) -> Proof:
        """Compare a student with the teacher.

        Args:
            student: The student.
            weights: Its parameters by their names in the class.

        Raises:
            NotEquivalentError: If the student does not run.
        """
        before, moved = self._before, self._run_moved(student)
        try:
            after = run_blocks(student.skeleton, weights, self._inputs, self._dtype, memory=self._memory)
        except Exception as failure:  # of a class whose numbers do not fit its sizes
            raise NotEquivalentError(f"the student's class does not run: {one_line(failure)}") from failure
        old, new = student.vocabulary
        if old != new and after.output.shape[-1] == new:
            after.output = after.output[..., :old]
        largest, error = float(before.output.abs().max()), np.inf
        if after.output.shape == before.output.shape:
            error = float((after.output - before.output).abs().max())
        error = error if np.isfinite(error) else np.inf
        floor = _FLOOR * torch.finfo(self._dtype).eps
        tolerance = max(PATIENCE * float((moved.output - before.output).abs().max()), floor * largest)
        blocks = tuple(_compared(student, before, moved, after, floor))
        return Proof(error, largest, tolerance, blocks, str(self._dtype).removeprefix("torch."))

    def is_exact(self, student: Student) -> bool:
        """Tell whether a student computes what the teacher does, with weights that are computed when they are run."""
        weights = {name: one.tensor() for name, one in student.parameters.items()}
        try:
            return self.compare(student, weights).is_equivalent
        except NotEquivalentError:
            return False


# --- Hidden states ----------------------------------------------------------------------------------------------------


def _compared(
    student: Student, before: BlockOutputs, moved: BlockOutputs, after: BlockOutputs, floor: float
) -> Iterator[BlockError]:
    """Yield the errors behind the blocks, with the copies behind each."""
    for name, old in before.blocks.items():
        group, _, number = name.rpartition(".")
        is_deeper = group in student.layers.counts
        last = _last(student.layers.order(group), int(number)) if is_deeper else None
        new = after.blocks.get(name if last is None else f"{group}.{last}")
        if new is not None:
            maps = list(_maps(student.parameters, name, old, new)) or [None]
            errors = [error for map in maps if (error := _difference(old, new, map)) is not None]
            noise = float((moved.blocks[name] - old).abs().max()) / (float(old.abs().max()) or 1.0)
            yield from (BlockError(name, min(errors), max(PATIENCE * noise, floor)),) if errors else ()


def _last(order: Sequence[tuple[int, bool]], layer: int) -> int:
    """Return the last of a layer and the copies behind it."""
    place = order.index((layer, False))
    while place + 1 < len(order) and order[place + 1][1]:
        place += 1
    return place


def _maps(
    parameters: Mapping[str, StudentParameter], block: str, old: torch.Tensor, new: torch.Tensor
) -> Iterator[Map | None]:
    """Yield the maps of a block's vectors that the residual stream may have: those of its norms are among them."""
    seen = set()
    for name, parameter in parameters.items():
        growth = parameter.growth
        if name.startswith(f"{block}.") and growth and len(growth.axes) == 1:
            map = growth.axes[0].map
            key = map.index.tobytes() + map.kind.tobytes()
            if (map.old, map.new) == (old.shape[-1], new.shape[-1]) and key not in seen:
                seen.add(key)
                yield map


def _difference(old: torch.Tensor, new: torch.Tensor, map: Map | None) -> float | None:
    """Return the largest difference of hidden states, relative to the largest value; None if their sizes differ."""
    if map is not None:
        kept = np.flatnonzero(map.kind == 0)
        old, new = old[..., torch.from_numpy(map.index[kept])], new[..., torch.from_numpy(kept)]
    if old.shape != new.shape:
        return None
    scale = float((old * new).sum() / (old * old).sum().clamp_min(1e-300))  # padding scales the stream
    largest = float(old.abs().max()) * abs(scale) or 1.0
    return float((new - scale * old).abs().max()) / largest
