"""The whole numbers that modules keep: in attributes, in tuples and lists, and in objects such as configs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onnx_net2net.framework.configs import SMALL

Number = Any
"""A whole number, a tuple of such, or a float."""

_OWN = frozenset(vars(nn.Module())) | {"forward"}
"""Attributes of every module."""

_DEPTH = 3
"""How deep objects are looked into."""

_MOST = 64
"""How many ways there are at most to change a list."""

NO_WIDTHS = re.compile(
    r"(kernel|stride|padding|dilation|patch|window|img|image|grid|input_res|resolution|depth|layers|blocks|vocab|classes|labels|"
    r"max_|position|seed|_id$|_ids$|tokens|stage|scale_factor|reduction|expansion|_ratio|version|eps|iter|steps|length)"
)
"""Names of attributes that are no widths: they are changed only if the module needs it."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A place where a module keeps a number, or a list of whole ones."""

    path: str  # the module
    keys: tuple[Any, ...]  # the attribute, and what leads from its value on
    holder: Any  # the dict or list that has it
    value: Number  # what it is

    @property
    def name(self) -> str:
        """How a user would write it."""
        return ".".join(map(str, (self.path, *self.keys) if self.path else self.keys))

    def set(self, value: Number) -> None:
        """Put another value there, of the same type."""
        old = self.holder[self.keys[-1]]
        self.holder[self.keys[-1]] = type(old)(value) if isinstance(value, tuple) else value


def set_all(change: Mapping[Slot, Number]) -> None:
    """Put other values into places."""
    for slot, value in change.items():
        slot.set(value)


def slots_of(module: nn.Module, path: str, floats: bool = False) -> list[Slot]:
    """Return where a module keeps whole numbers, or floats too; what its children keep is theirs."""
    own = {key: value for key, value in vars(module).items() if key not in _OWN}
    kinds = (int, float) if floats else (int,)
    return list(_slots(path, (), own, vars(module), kinds, set()))


def _slots(
    path: str, keys: tuple[Any, ...], items: Mapping[Any, Any], holder: Any, kinds: tuple[type, ...], seen: set[int]
) -> Iterator[Slot]:
    for key, value in items.items():
        where = (*keys, key)
        if type(value) in kinds:
            yield Slot(path, where, holder, value)
        elif isinstance(value, list | tuple) and value and all(type(one) is int for one in value):
            if type(value) in (list, tuple, torch.Size):
                yield Slot(path, where, holder, tuple(value))
        elif len(where) < _DEPTH and id(value) not in seen:
            seen.add(id(value))
            inner = _inside(value)
            if inner is not None:
                yield from _slots(path, where, *inner, kinds, seen)


def _inside(value: Any) -> tuple[Mapping[Any, Any], Any] | None:
    """Return the members of a dict, a list or a plain object, and what holds them."""
    if isinstance(value, dict):
        return value, value
    if type(value) is list:
        return dict(enumerate(value)), value
    is_plain = (
        hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.Tensor | type) and not callable(value)
    )
    return (vars(value), vars(value)) if is_plain else None


# --- What they may become ------------------------------------------------------------------------------------

Became = Mapping[int, Sequence[int]]
"""What sizes became, the likeliest first."""


class SizeChanges:
    """What the sizes of a teacher became in its student."""

    def __init__(
        self,
        old: Mapping[str, tuple[int, ...]],
        new: Mapping[str, tuple[int, ...]],
        dims: Iterable[tuple[str, int, int]],
    ) -> None:
        """Compare shapes of tensors by name; `dims` are names of dims, and their sizes in both."""
        self._pairs = [(name, a, b) for name in old for a, b in zip(old[name], new[name], strict=True)]
        self._dims = list(dims)

    @property
    def pairs(self) -> frozenset[tuple[int, int]]:
        """Sizes of dims and axes in the teacher, each with what it became."""
        return frozenset((old, new) for _, old, new in (*self._pairs, *self._dims))

    def near(self, path: str, depth: int | None = None) -> Became:
        """Return what the sizes of the tensors in a module became, down to a depth, each once."""
        prefix = f"{path}." if path else ""
        levels = prefix.count(".") + (depth or 99)
        return _became((a, b) for name, a, b in self._pairs if name.startswith(prefix) and name.count(".") < levels)

    def candidates(self, path: str, value: int) -> list[int]:
        """Return what a number that a module keeps may become, the likeliest first."""
        prefix = f"{path}." if path else ""
        near = [(a, b) for name, a, b in self._pairs if name.startswith(prefix)]
        named = [(a, b) for name, a, b in self._dims if name.startswith(prefix) or name == path]
        ratios = list(dict.fromkeys((b, a) for a, b in (*named, *near) if a != b and a))
        scaled = [(value, value * b // a) for b, a in ratios if value * b % a == 0]
        everywhere = [(a, b) for _, a, b in (*self._dims, *self._pairs)]
        found = [b for a, b in (*named, *near, *scaled, *everywhere) if a == value != b]
        return list(dict.fromkeys(found))[:6]

    def values(self, slot: Slot, original: Number) -> list[Number]:
        """Return what a slot may hold, other than what it does."""
        if isinstance(original, int):
            options: Iterable[Number] = [original, *self.candidates(slot.path, original)]
        else:
            kinds = list(dict.fromkeys(original))
            ways = [[*self.candidates(slot.path, kind), kind] for kind in kinds]
            choices = itertools.islice(itertools.product(*ways), _MOST)
            options = [tuple(dict(zip(kinds, choice, strict=True))[one] for one in original) for choice in choices]
        return [value for value in options if value != slot.value]


def _became(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for old, new in pairs:
        if new not in found.setdefault(old, []):
            found[old].append(new)
    return found


def likely(slot: Slot, near: Became) -> Number | None:
    """Return what a number becomes if it is a width by its name, and all sizes like it became one; else None."""
    values = (slot.value,) if isinstance(slot.value, int) else slot.value
    if NO_WIDTHS.search(str(slot.keys[0])) or not all(
        value > SMALL and len(near.get(value, ())) == 1 for value in values
    ):
        return None
    new = tuple(near[value][0] for value in values)
    return None if new == values else new[0] if isinstance(slot.value, int) else new
