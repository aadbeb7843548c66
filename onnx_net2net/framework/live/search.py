"""Numbers that a module has to keep otherwise in the student, found by running it.

A run is compared with the teacher's module by module. Where it stops to agree, the module whose code ran last keeps a
number that is no longer right. Each is tried with its old value and with those that its sizes became; what brings the
run further is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import nn

from onnx_net2net.framework.live.attributes import Number, SizeChanges, Slot, set_all, slots_of
from onnx_net2net.framework.live.example import Example
from onnx_net2net.framework.live.trace import Event, Trace, trace_student

MOST_TRIES = 400
"""How many changes are tried at one module."""

NumberChange = dict[Slot, Number]


class NumberSearch:
    """Changes the numbers of a student until it runs like its teacher.

    Attributes:
        blamed: The first module that could not be brought to agree, and the run that ended there.
    """

    def __init__(
        self, student: nn.Module, originals: dict[tuple[str, tuple[object, ...]], Number], sizes: SizeChanges,
        example: Example, events: Sequence[Event],
    ) -> None:  # fmt: skip
        self._student, self._originals, self._sizes = student, originals, sizes
        self._example, self._events = example, events
        self._modules = dict(student.named_modules())
        self._ignored: set[int] = set()
        self.blamed: Trace | None = None

    def settle(self) -> None:
        """Go on until the run agrees to its end, or fails in a way that no number changes."""
        run = self._run()
        while run.culprit is not None:
            change, after = self._best(run)
            if change:
                set_all(change)
                self._repeat(change)
                again = self._run()
                run = again if again.reached >= after.reached else after
                continue
            self.blamed = self.blamed or run
            if run.error is not None:
                return
            self._ignored.add(run.reached)
            run = self._run()

    def _run(self, start: int = 0) -> Trace:
        return trace_student(self._student, self._example, self._events, self._ignored, start)

    def _best(self, run: Trace) -> tuple[NumberChange, Trace]:
        """Return the change that brings the run furthest; none if no change does."""
        assert run.culprit is not None
        best: NumberChange = {}
        furthest = run
        for changes in self._stages(run.culprit):
            for change in itertools.islice(changes, MOST_TRIES):
                before = {slot: slot.value for slot in change}
                set_all(change)
                again = self._run(run.reached)
                set_all(before)
                if again.reached > furthest.reached or (again.culprit is None and furthest.culprit is not None):
                    best, furthest = change, again
            if best:
                break
        return best, furthest

    def _stages(self, culprit: str) -> Iterator[Iterator[NumberChange]]:
        """Yield the changes to try: one number of a module, several of it, and those around it."""
        own = self._options(culprit)
        yield ({slot: value} for slot, values in own for value in values)
        yield self._several(own)
        inner = [
            path for path in self._modules if path.startswith(f"{culprit}." if culprit else "") and path != culprit
        ]
        outer = [path for path in self._modules if culprit.startswith(f"{path}.") or not path]
        for paths in (inner, outer[::-1]):
            options = [option for path in paths for option in self._options(path)]
            yield ({slot: value} for slot, values in options for value in values)

    @staticmethod
    def _several(options: Sequence[tuple[Slot, list[Number]]]) -> Iterator[NumberChange]:
        for count in (2, 3):
            for chosen in itertools.combinations(options, count):
                for values in itertools.product(*(values for _, values in chosen)):
                    yield dict(zip((slot for slot, _ in chosen), values, strict=True))

    def _options(self, path: str) -> list[tuple[Slot, list[Number]]]:
        found = []
        for slot in slots_of(self._modules[path], path):
            values = self._sizes.values(slot, self._originals.get((path, slot.keys), slot.value))
            if values:
                found.append((slot, values))
        return found

    def _repeat(self, change: NumberChange) -> None:
        """Do the same to modules of the same class."""
        for slot, value in change.items():
            kind = type(self._modules[slot.path])
            for path, module in self._modules.items():
                if path != slot.path and type(module) is kind:
                    for other in slots_of(module, path):
                        if other.keys == slot.keys and other.value == slot.value and value in self._sizes.values(
                            other, self._originals.get((path, other.keys), other.value)
                        ):  # fmt: skip
                            other.set(value)
