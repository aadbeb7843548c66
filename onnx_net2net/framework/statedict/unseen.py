"""Entries of a state dict that no part of the graph is: layers that are not run, heads for training, averaged copies.

The graph does not say how they grow, and a strict load into the wider class asks for their new shapes. So each grows
as a sibling of it does: an entry of the same shape by the same name up to numbers (`r.2.weight` as `r.1.weight`), or
in another module with the same layers (`ema.fc1.weight` as `net.fc1.weight`). Where there is none, each of its axes
takes the one size that all axes of its size got, unless an export may have folded the entry into a constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnx_net2net.algebra.floats import is_float
from onnx_net2net.algebra.maps import identity
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.match import in_common

_NUMBER = re.compile(r"\d+")

_Growths = list[WeightGrowth]


class Unseen:
    """Says how entries grow that are not in the graph."""

    def __init__(self, seen: Sequence[Entry], folded: bool) -> None:
        """Make one for the entries that are in the graph; `folded` says that it has weights which are no entry."""
        self._seen, self._folded = seen, folded
        self._axes: dict[int, list[tuple[Entry, int]]] = {}
        for entry in seen:
            for axis, size in enumerate(entry.old):
                self._axes.setdefault(size, []).append((entry, axis))

    def entry(self, name: str, stored: Stored) -> Entry:
        """Return an entry that is not in the graph, grown like others where some of its sizes grew."""
        kept = Entry(name, "passed through", (), stored)
        around = (entry.new[axis] != size for size in stored.shape for entry, axis in self._axes.get(size, ()))
        if not is_float(stored.dtype) or not any(around):
            return kept
        like, growths = self._like_sibling(name, stored.shape) or self._like_sizes(stored.shape) or ("", [])
        if not like:
            return replace(kept, note="is not in the graph, and nothing there tells how it grows")
        note = f"is not in the graph, and grew like {like}"
        return Entry(name, "not in the graph", (), stored, tuple(growths), note)

    def _like_sibling(self, name: str, shape: tuple[int, ...]) -> tuple[str, _Growths] | None:
        """Return the nearest sibling of an entry, and its growths; None where there is none or they differ."""
        for siblings in _siblings(name, [entry for entry in self._seen if entry.old == shape]):
            if len({entry.new for entry in siblings}) == 1:
                return siblings[0].name, [_plain(growth, growth.axes) for growth in siblings[0].growths]
        return None

    def _like_sizes(self, shape: tuple[int, ...]) -> tuple[str, _Growths] | None:
        """Return how an entry grows whose axes each grow like all of their size; None where these differ."""
        donors = [self._donor(len(shape), axis, size) for axis, size in enumerate(shape)]
        known = all(donor or size not in self._axes for donor, size in zip(donors, shape, strict=True))
        if self._folded or not known:
            return None
        steps = max((entry.growths for entry in self._seen), key=len, default=())
        growths = []
        for number, step in enumerate(steps):
            axes = [
                donor[0].growths[number].axes[donor[1]] if donor else AxisGrowth(identity(size))
                for donor, size in zip(donors, shape, strict=True)
            ]
            growths.append(_plain(step, axes))
        return "all of its sizes", growths

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
    return in_common(*(reversed(_NUMBER.sub("#", name).split(".")) for name in (one, other)))


def _plain(growth: WeightGrowth, axes: Sequence[AxisGrowth]) -> WeightGrowth:
    """Return a growth of other axes, which multiplies nothing."""
    return replace(growth, axes=tuple(replace(axis, scale=None) for axis in axes), factor=1.0)
