"""Models that a config makes, as transformers' are: the config of the grown one, so that it can be saved and loaded.

A field of the config is right if the class, made by it without weights, has tensors of the grown shapes. Fields that no
shape shows (numbers of heads) are right if the module computes the same with the numbers that this class keeps.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from onnx_net2net.framework.live.attributes import Number, Sizes, Slot, likely, set_all, slots_in, slots_of

_MOST_PAIRS = 200
"""How many pairs of fields are tried together."""


def configured(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a config makes and that save themselves with it; those inside of one are part of it."""
    found: list[str] = []
    for path, one in module.named_modules():
        is_inside = any(path.startswith(f"{outer}.") or not outer for outer in found)
        if not is_inside and hasattr(one, "save_pretrained") and hasattr(getattr(one, "config", None), "to_dict"):
            found.append(path)
            yield path, one


class ConfigSearch:
    """Changes the config of a student until its class makes the student."""

    def __init__(self, student: nn.Module, path: str, sizes: Sizes, told: Mapping[str, tuple[Any, Any]]) -> None:
        """Start with the fields that the graph tells (`WidthReport.config`)."""
        self._student: Any = student
        self._path, self._sizes = path, sizes
        self._shapes = _shapes(student)
        self._originals = {slot.keys: slot.value for slot in self._slots()}
        names = getattr(self._student.config, "attribute_map", {})
        fields = {(names.get(name, name),): pair for name, pair in told.items()}
        self._told = {keys: new for keys, (old, new) in fields.items() if self._originals.get(keys) == old}

    def fit(self, is_exact: Callable[[nn.Module], bool]) -> bool:
        """Find the config, and give the student's modules the numbers that the class made by it keeps.

        Args:
            is_exact: Tells whether what computes in the student's place does what its teacher does.

        Returns:
            Whether there is one; if not, the config and the numbers are as they were.
        """
        kept = [(slot, slot.value) for path, module in self._student.named_modules()
                for slot in slots_of(module, path, floats=True)]  # fmt: skip
        for _ in range(2):
            if self._fit_shapes() and self._fit_numbers(is_exact):
                return True
            if not self._told:
                break
            self._told = {}  # equal numbers may be others
            for slot, value in kept:
                slot.set(value)
        for slot, value in kept:
            slot.set(value)
        return False

    def _slots(self) -> list[Slot]:
        return slots_in(self._student.config, self._path)

    def _made(self) -> nn.Module | None:
        """Return the class as the config makes it, without weights; None if it does not."""
        try:
            with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
                made: nn.Module = type(self._student)(copy.deepcopy(self._student.config))
                return made
        except Exception:  # of the class: sizes that do not fit one another
            return None

    def _missed(self) -> float:
        """Return how many tensors of the class have other shapes than the student's."""
        made = self._made()
        if made is None:
            return float("inf")
        shapes = _shapes(made)
        return len(shapes.keys() ^ self._shapes.keys()) + sum(
            shapes[name] != shape for name, shape in self._shapes.items() if name in shapes
        )

    def _fit_shapes(self) -> bool:
        near = self._sizes.near(self._path)
        before = self._missed()
        for slot in self._slots():
            value = self._told.get(slot.keys) or likely(slot, near)
            if value is not None:
                slot.set(value)
        missed = self._missed()
        if missed > before:
            self._reset()
            missed = before
        while missed:
            best, least = None, missed
            for change in self._changes():
                with _tried(change):
                    found = self._missed()
                if found < least:
                    best, least = change, found
                if not found:
                    break
            if best is None:
                return False
            set_all(best)
            missed = least
        return True

    def _changes(self) -> Iterator[dict[Slot, Number]]:
        """Yield other values of one field, and of two."""
        free = [slot for slot in self._slots() if slot.keys not in self._told]
        options = [(slot, self._sizes.values(slot, self._originals[slot.keys])) for slot in free]
        options = [(slot, values) for slot, values in options if values]
        yield from ({slot: value} for slot, values in options for value in values)
        pairs = (
            {one: a, other: b} for (one, first), (other, second) in itertools.combinations(options, 2)
            for a, b in itertools.product(first, second)
        )  # fmt: skip
        yield from itertools.islice(pairs, _MOST_PAIRS)

    def _reset(self) -> None:
        for slot in self._slots():
            slot.set(self._originals[slot.keys])

    def _fit_numbers(self, is_exact: Callable[[nn.Module], bool]) -> bool:
        """Find the fields that no shape shows."""
        if self._take_numbers() and is_exact(self._student):
            return is_exact(self._loaded())
        for change in self._changes():
            with _tried(change, keep=True) as undo:
                if not self._missed() and self._take_numbers() and is_exact(self._student):
                    return is_exact(self._loaded())
                undo()
        return False

    def _loaded(self) -> nn.Module:
        """Return the class as the config makes it, with the student's weights: as if it was saved and loaded."""
        made: nn.Module = type(self._student)(copy.deepcopy(self._student.config))
        made.to(next(self._student.parameters()).dtype).load_state_dict(self._student.state_dict())
        return made.eval()

    def _take_numbers(self) -> bool:
        """Give the student's modules the numbers that the class keeps; what only the student has is left."""
        made = self._made()
        if made is None:
            return False
        own = dict(self._student.named_modules())
        for path, module in made.named_modules():
            values = {slot.keys: slot.value for slot in slots_of(module, path, floats=True)}
            for slot in slots_of(own[path], path, floats=True) if path in own else ():
                if slot.keys in values and slot.keys[0] != "config" and slot.value != values[slot.keys]:
                    slot.set(values[slot.keys])
        return True


def _shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@contextlib.contextmanager
def _tried(change: Mapping[Slot, Number], keep: bool = False) -> Iterator[Callable[[], None]]:
    """Make a change; it is undone at the end, or when that is asked for if it is to be kept."""

    def undo() -> None:
        set_all({slot: slot.value for slot in change})

    set_all(change)
    try:
        yield undo
    finally:
        if not keep:
            undo()
