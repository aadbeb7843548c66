"""What sizes a target gives the dims of a teacher: axes of matched parameters are bound to one another."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from onnx_net2net.algebra.dims import Axis, Concat, Dim, leaves, resolve


@dataclass
class TargetSizes:
    """What sizes the target gives the teacher's dims.

    Attributes:
        wanted: For each dim the sizes that it should have, each with the number of elements that say so.
        pending: Axes of which only the whole size is known so far.
        partner: The teacher's dim that a dim of the target is like.
    """

    wanted: dict[Dim, Counter[int]] = field(default_factory=dict)
    pending: list[tuple[Axis, Axis, int]] = field(default_factory=list)
    partner: dict[Dim, Dim] = field(default_factory=dict)

    def bind(self, teacher: Axis, target: Axis, weight: int) -> None:
        """State that an axis of the teacher is to be like one of the target."""
        teacher, target = resolve(teacher), resolve(target)
        if isinstance(teacher, Dim):
            self.wanted.setdefault(teacher, Counter())[target.size] += weight
            if isinstance(target, Dim):
                self.partner.setdefault(target, teacher)
        elif type(teacher) is type(target) and len(teacher.parts) == len(target.parts):
            for old, new in zip(teacher.parts, target.parts, strict=True):
                self.bind(old, new, weight)
        else:
            self.pending.append((teacher, target, weight))

    def segments(self, teacher: Axis, target: Axis) -> list[tuple[int, bool]] | None:
        """Return the parts of a target's concatenation: their sizes, and whether the teacher has such a part.

        Returns:
            None if all parts are the teacher's, or it cannot be told which.
        """
        old, new = (
            list(axis.parts) if isinstance(axis, Concat) else [axis] for axis in map(resolve, (teacher, target))
        )
        if len(new) <= len(old):
            return None
        known = [any(dim in self.partner for dim in leaves(part)) for part in new]
        return [(part.size, own) for part, own in zip(new, known, strict=True)] if sum(known) == len(old) else None

    def solve(self) -> dict[Dim, int]:
        """Return a size for each dim that got one: the one that most elements ask for."""
        waiting = []
        for teacher, target, weight in self.pending:
            segments = self.segments(teacher, target) or [(target.size, True)]
            waiting.append((teacher, sum(size for size, own in segments if own), weight))
        while waiting:
            later = [(axis, size, weight) for axis, size, weight in waiting if not self._solve(axis, size, weight)]
            if len(later) == len(waiting):
                break
            waiting = later
        return {dim: counter.most_common(1)[0][0] for dim, counter in self.wanted.items()}

    def _solve(self, axis: Axis, size: int, weight: int) -> bool:
        """Find the size of the only dim of an axis that has none yet."""
        unknown = {dim for dim in leaves(axis) if dim not in self.wanted and not dim.frozen}
        if len(unknown) > 1:
            return False
        for dim in unknown:
            fitting = [n for n in range(1, size + 1) if self._size(axis, {dim: n}) == size]
            if fitting:
                self.wanted.setdefault(dim, Counter())[fitting[0]] += weight
        return True

    def _size(self, axis: Axis, assumed: dict[Dim, int]) -> int:
        axis = resolve(axis)
        if isinstance(axis, Dim):
            known = self.wanted.get(axis)
            return assumed.get(axis) or (known.most_common(1)[0][0] if known else axis.size)
        sizes = [self._size(part, assumed) for part in axis.parts]
        return sum(sizes) if isinstance(axis, Concat) else math.prod(sizes)
