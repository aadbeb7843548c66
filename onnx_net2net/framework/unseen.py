"""Entries of a state dict that no part of the graph is: layers that are not run, heads for training, averaged copies.

The graph does not say how they grow, and a strict load into the wider class asks for their new shapes. So each grows
as a sibling of it does: an entry of the same shape by the same name up to numbers (`r.2.weight` as `r.1.weight`), or
in another module with the same layers (`ema.fc1.weight` as `net.fc1.weight`). Where there is none, each of its axes
takes the one size that all axes of its size got, unless an export may have folded the entry into a constant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from onnx_net2net.algebra.maps import identity
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth

if TYPE_CHECKING:
    from onnx_net2net.framework.derivation import Entry

_NUMBER = re.compile(r"\d+")


class Guess(NamedTuple):
    """How an entry may grow that is not in the graph: step by step, and what that is taken from ("" if unknown)."""

    growths: tuple[WeightGrowth, ...]
    like: str


class Unseen:
    """Says how entries grow that are not in the graph."""

    def __init__(self, seen: Sequence[Entry], folded: bool) -> None:
        """Make one for the entries that are in the graph; `folded` says that it has weights which are no entry."""
        self._seen, self._folded = seen, folded
        self._axes: dict[int, list[tuple[Entry, int]]] = {}
        for entry in seen:
            for axis, size in enumerate(entry.old):
                self._axes.setdefault(size, []).append((entry, axis))

    def guess(self, name: str, shape: tuple[int, ...]) -> Guess | None:
        """Return how an entry may grow; None where nothing of its sizes grew."""
        if all(entry.new[axis] == size for size in shape for entry, axis in self._axes.get(size, ())):
            return None
        same = [entry for entry in self._seen if entry.old == shape]
        for siblings in _siblings(name, same):
            if len({entry.new for entry in siblings}) == 1:
                growths = [_plain(growth, growth.axes) for growth in siblings[0].growths]
                return Guess(tuple(growths), siblings[0].name)
        if self._folded:
            return Guess((), "")
        donors = [self._donor(len(shape), axis, size) for axis, size in enumerate(shape)]
        steps = max((entry.growths for entry in self._seen), key=len, default=())
        growths = []
        for number, step in enumerate(steps):
            chosen = [donor and donor[0].growths[number].axes[donor[1]] for donor in donors]
            axes = [axis or AxisGrowth(identity(size)) for axis, size in zip(chosen, shape, strict=True)]
            growths.append(_plain(step, axes))
        known = all(donor or size not in self._axes for donor, size in zip(donors, shape, strict=True))
        return Guess(tuple(growths), "all of its sizes") if known else Guess((), "")

    def _donor(self, rank: int, axis: int, size: int) -> tuple[Entry, int] | None:
        """Return an axis that one of a size may grow like, one in its place first; None where they grew differently."""
        found = self._axes.get(size, [])
        alike = [(entry, at) for entry, at in found if len(entry.old) == rank and at == axis]
        return next((some[0] for some in (alike, found) if len({entry.new[at] for entry, at in some}) == 1), None)


def _siblings(name: str, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield entries that are like one of a name: by the same name up to numbers, in a module with the same layers."""
    numbered = [entry for entry in entries if _NUMBER.sub("#", entry.name) == _NUMBER.sub("#", name)]
    yield sorted(numbered, key=lambda entry: _distance(entry.name, name))
    common = {entry.name: _common(entry.name, name) for entry in entries}
    most = max(common.values(), default=0)
    yield [entry for entry in entries if common[entry.name] == most > 1]


def _distance(one: str, other: str) -> list[int]:
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return [abs(int(a) - int(b)) for a, b in pairs]


def _common(one: str, other: str) -> int:
    """Return how many steps two names have in common at their ends, up to numbers."""
    paths = zip(*(reversed(_NUMBER.sub("#", name).split(".")) for name in (one, other)), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], paths))


def _plain(growth: WeightGrowth, axes: Sequence[AxisGrowth]) -> WeightGrowth:
    """Return a growth of other axes, which multiplies nothing."""
    return replace(growth, axes=tuple(replace(axis, scale=None) for axis in axes), factor=1.0)
