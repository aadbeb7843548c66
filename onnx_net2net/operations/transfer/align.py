"""Match the layers of two networks, in the order of both graphs.

Dynamic programming aligns the segments, and then the modules inside of matched blocks, as DPIAT does (Czyzewski, Nowak,
Piechowiak 2022). It also looks at what shapes do not tell: operator, kernel, stride, groups, resolution, and which
segments of the target can be left out because they can compute the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.blocks import Block
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.segments import Segment
from onnx_net2net.rules import traits

_LOST = 1.0
"""The cost of leaving out a module of the teacher; a perfect match of two modules gains 1."""

_KEPT = 0.5
"""The cost of leaving out a module of the target that cannot be the identity."""

_FREE = 0.001
"""The cost of leaving out a module of the target that can be the identity."""

_TORN = 0.05
"""The same for a module of a block whose other modules are matched."""

_KNOWN = 0.01
"""The gain of equal names: they break ties, and no more."""


@dataclass(frozen=True)
class Alignment:
    """The modules of a teacher and a target that correspond.

    Attributes:
        pairs: The matched modules, teacher first, in order.
        added: Items of the target that nothing corresponds to.
        lost: Modules of the teacher that nothing corresponds to.
    """

    pairs: tuple[tuple[Module, Module], ...]
    added: tuple[Segment, ...]
    lost: tuple[Module, ...]

    @property
    def parameters(self) -> list[tuple[Parameter, Parameter]]:
        """The parameters that both of two matched modules have, the teacher's first."""
        return [(own, new.parameters[what]) for old, new in self.pairs for what, own in old.parameters.items()
                if what in new.parameters]  # fmt: skip


# --- Similarity ----------------------------------------------------------------------------------------------


def alikeness(teacher: Module, target: Module) -> float:
    """Return how alike two modules are, from 0 (another operator) to 1.

    The shapes count as in DPIAT (the product of the smaller size over the larger one), the resolution likewise.
    """
    shape = teacher.shape
    if target.routes:
        return 0.0
    if teacher.kind == "linear" and target.kind in traits.PLAIN_CONVOLUTIONS:  # a kernel of one place
        shape = (*shape, *(1 for _ in target.shape[2:]))
    elif teacher.kind in traits.PLAIN_CONVOLUTIONS and target.kind == "linear" and math.prod(shape[2:]) == 1:
        shape = shape[:2]
    elif teacher.kind != target.kind:
        return 0.0
    elif _longer(teacher, target) is not None:
        shape = min(shape, target.shape, key=len)
        return 0.9 * math.sqrt(_ratio(shape, max(teacher.shape, target.shape, key=len)[1:]))
    if len(shape) != len(target.shape):
        return 0.0
    alike: float = math.sqrt(_ratio(shape, target.shape))
    if len(teacher.resolution) == len(target.resolution):
        alike *= _ratio(teacher.resolution, target.resolution)
    alike *= 0.5 ** sum(a != b for a, b in zip(teacher.settings, target.settings, strict=False))
    missing = len(set(teacher.parameters) - set(target.parameters))
    if any(old > new for old, new in zip(shape, target.shape, strict=True)):
        alike *= 0.7  # the target does not contain the teacher
    return alike * 0.9**missing * 0.97 ** abs(teacher.depth - target.depth)


def _longer(one: Module, other: Module) -> Module | None:
    """Return the one of two constants that only repeats the other, None if neither does."""
    longer = one if len(one.shape) > len(other.shape) else other
    return longer if longer.repeats and abs(len(one.shape) - len(other.shape)) == 1 else None


def _unrepeated(module: Module, other: Module) -> Module:
    """Return a module without the axis by which it repeats another one."""
    if _longer(module, other) is not module:
        return module
    parameters = {what: replace(one, repeats=True) for what, one in module.parameters.items()}
    return replace(module, shape=module.shape[1:], parameters=parameters)


def _ratio(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the product of the smaller size over the larger one; both may be 0, as those of empty tensors are."""
    return math.prod(1.0 if a == b else min(a, b) / max(a, b) for a, b in zip(one, other, strict=True))


# --- The alignment -------------------------------------------------------------------------------------------

LIMIT = 1 << 22
"""Pairs that are compared, twice that at most: all of networks of 2,000 modules, those of like place in larger ones."""

T = TypeVar("T", Segment, Module)


@dataclass(frozen=True)
class _Path(Generic[T]):
    """The best alignment of two sequences: its value, the matched pairs, and what is left of each."""

    value: float
    pairs: tuple[tuple[T, T], ...]
    lost: tuple[T, ...]
    added: tuple[T, ...]


def _best(
    old: Sequence[T], new: Sequence[T], gain: Callable[[T, T], float], loss: Callable[[T], float],
    excess: Callable[[T], float], leaps: Mapping[int, int] | None = None, known: float = 0.0,
) -> _Path[T]:  # fmt: skip
    """Align two sequences in order; of equally good alignments take the one that matches earliest.

    Args:
        old: The sequence that should be matched as a whole.
        new: The other one.
        gain: The value of a match, which follows from the signatures; minus infinity where there can be none.
        loss: The cost of leaving out one of `old`.
        excess: The cost of leaving out one of `new`.
        leaps: Starts and ends of runs of `new` that can be left out together for little.
        known: The gain of equal names.
    """
    m, n = len(old), len(new)
    table = _Gains(old, new, gain, known)
    losses, costs = [loss(a) for a in old], np.array([excess(b) for b in new])
    ends = leaps or {}
    spent, cheap = (np.concatenate([[0.0], np.cumsum(own)]) for own in (costs, _in_leaps(costs, ends)))
    whole = np.ones(n + 1, bool)  # the places that are not inside of a run
    for start, end in ends.items():
        whole[start + 1 : end] = False
    half = max(LIMIT // (m + 1), n // (m + 1) + 1)  # far from the diagonal nothing is looked at
    lows = [max(0, i * n // max(m, 1) - half) for i in range(m + 1)]
    highs = [min(n, i * n // max(m, 1) + half) + 1 if i < m else n + 1 for i in range(m + 1)]
    rows = [np.zeros(0)] * (m + 1)
    for i in range(m, -1, -1):
        low, high = lows[i], highs[i]
        row = np.full(high - low, -math.inf)
        if i == m:
            row[-1] = 0.0
        else:
            below = np.full(high - low + 1, -math.inf)
            first, last = max(low, lows[i + 1]), min(high + 1, highs[i + 1])
            below[first - low : last - low] = rows[i + 1][first - lows[i + 1] : last - lows[i + 1]]
            row = below[:-1] - losses[i]
            made = table.row(i, low, min(high, n))
            row[: len(made)] = np.maximum(row[: len(made)], below[1 : len(made) + 1] + made)
        row = _running(row, spent[low:high])
        if ends:  # to the end of a run step by step, from run to run, and into the last one step by step
            inside = whole[low:high]
            row[inside] = _running(row[inside], cheap[low:high][inside])
            row = _running(row, spent[low:high])
        rows[i] = row

    def value(i: int, j: int) -> float:
        return float(rows[i][j - lows[i]]) if lows[i] <= j < highs[i] else -math.inf

    pairs: list[tuple[T, T]] = []
    lost: list[T] = []
    added: list[T] = []
    i = j = 0
    while i < m or j < n:
        here = value(i, j) - 1e-9
        if i < m and j < n and here <= value(i + 1, j + 1) + table.of(i, j):
            pairs.append((old[i], new[j]))
            i, j = i + 1, j + 1
        elif j in ends and here <= value(i, ends[j]) - _FREE * (ends[j] - j):
            added += new[j : ends[j]]
            j = ends[j]
        elif j < n and (i == m or here <= value(i, j + 1) - costs[j]):
            added.append(new[j])
            j += 1
        else:
            lost.append(old[i])
            i += 1
    return _Path(value(0, 0), tuple(pairs), tuple(lost), tuple(added))


def _running(row: Array, spent: Array) -> Array:
    """Return the best value at each place or behind it, less the cost of going there."""
    return np.asarray(np.maximum.accumulate((row - spent)[::-1])[::-1] + spent)


def _in_leaps(costs: Array, leaps: Mapping[int, int]) -> Array:
    """Return the cost of leaving out each, if runs are left out as a whole."""
    cheap: Array = costs.copy()
    for start, end in leaps.items():
        cheap[start:end] = _FREE
    return cheap


class _Gains(Generic[T]):
    """The gains of matches, computed once for all with the same signatures."""

    def __init__(self, old: Sequence[T], new: Sequence[T], gain: Callable[[T, T], float], known: float) -> None:
        self._old: Sequence[T] = old
        self._new: Sequence[T] = new
        self._gain: Callable[[T, T], float] = gain
        self._known = known
        self._kinds = [_numbered([one.signature for one in side]) for side in (old, new)]
        names = _numbered([one.name for one in (*old, *new)])
        self._names = names[: len(old)], names[len(old) :]
        self._found: dict[tuple[int, int], float] = {}

    def of(self, i: int, j: int) -> float:
        """Return the gain of matching two."""
        key = int(self._kinds[0][i]), int(self._kinds[1][j])
        if key not in self._found:
            self._found[key] = self._gain(self._old[i], self._new[j])
        return self._found[key] + (self._known if self._names[0][i] == self._names[1][j] else 0.0)

    def row(self, i: int, low: int, high: int) -> Array:
        """Return the gains of matching one with each of a range."""
        kinds, first, where = np.unique(self._kinds[1][low:high], return_index=True, return_inverse=True)
        mine = int(self._kinds[0][i])
        for kind, place in zip(kinds.tolist(), first.tolist(), strict=True):
            if (mine, kind) not in self._found:
                self._found[mine, kind] = self._gain(self._old[i], self._new[low + place])
        gains = np.array([self._found[mine, kind] for kind in kinds.tolist()])[where]
        gains[self._names[1][low:high] == self._names[0][i]] += self._known
        return gains


def _numbered(keys: Sequence[object]) -> Array:
    """Return a number for each key, the same for equal ones."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.intp)


def align(teacher: Sequence[Segment], target: Sequence[Segment]) -> Alignment:
    """Align the segments of two networks, and the modules of matched blocks.

    Where something is left over, as exporters write the same blocks differently and blocks lie in blocks, the modules
    alone are aligned too, and the alignment that leaves out less is returned.
    """
    found = _align(teacher, target)
    if _left_out(found):
        found = min(found, _align_modules(teacher, target), key=_left_out)
    pairs = tuple((_unrepeated(old, new), _unrepeated(new, old)) for old, new in found.pairs)
    return _postponed(replace(found, pairs=pairs), target)


def _left_out(found: Alignment) -> float:
    """Return the cost of the modules without a counterpart."""
    kept = [module for segment in found.added if not segment.neutral for module in segment.modules]
    return _LOST * len(found.lost) + sum(map(_excess, kept))


def _align_modules(teacher: Sequence[Segment], target: Sequence[Segment]) -> Alignment:
    """Align modules, whatever blocks they are in; but where all of a block is in excess, it is left out as a whole."""
    both = ([module for segment in side for module in segment.modules] for side in (teacher, target))
    old, new = (sorted(modules, key=lambda module: module.place) for modules in both)
    places = {id(module): place for place, module in enumerate(new)}
    leaps: dict[int, int] = {}
    whole: set[int] = set()
    for segment in target:
        if segment.block is not None and segment.neutral:
            whole.update(map(id, segment.modules))
            start, end = places[id(segment.modules[0])], places[id(segment.modules[-1])] + 1
            if end - start == len(segment.modules):  # nothing else lies between them
                leaps[start] = end

    def excess(module: Module) -> float:
        return _TORN if module.neutral and id(module) in whole else _excess(module)

    path = _best(old, new, _gain, lambda _: _LOST, excess, leaps, known=_KNOWN)
    added = tuple(Segment((module,)) for module in path.added)
    return _regrouped(Alignment(path.pairs, added, path.lost), target)


def _regrouped(found: Alignment, target: Sequence[Segment]) -> Alignment:
    """Put added modules together again where they are all that a block has."""
    added = {id(module) for segment in found.added for module in segment.modules}
    segments = []
    for segment in target:
        left = [module for module in segment.modules if id(module) in added]
        segments += [segment] if len(left) == len(segment.modules) else [Segment((module,)) for module in left]
    return Alignment(found.pairs, tuple(segments), found.lost)


def _postponed(found: Alignment, target: Sequence[Segment]) -> Alignment:
    """Match a normalisation with the last one of the target, where only post-norm blocks in excess lie between.

    With branches of zero these normalise one after another what has been normalised, which changes nothing as long as
    no scale or shift comes before the last of them.
    """
    added = {id(segment): segment for segment in found.added}
    place = {id(segment.modules[0]): number for number, segment in enumerate(target) if segment.block is None}
    pairs = []
    for old, new in found.pairs:
        first = last = place.get(id(new), len(target))
        while _goes_on(more := target[last + 1 : last + 3]) and all(id(segment) in added for segment in more):
            last += 2
        if last > first and new.normalises:
            run = target[first:last]
            added |= {id(segment): replace(segment, repeats=True) for segment in run}
            added.pop(id(target[last]))
            new = target[last].modules[0]
        pairs.append((old, new))
    return replace(found, pairs=tuple(pairs), added=tuple(added.values()))


def _goes_on(segments: Sequence[Segment]) -> bool:
    """Tell whether a post-norm block and its normalisation follow."""
    match segments:
        case [Segment(block=Block(normalised=True)), Segment(modules=(module,), block=None)]:
            return module.normalises
    return False


def _align(teacher: Sequence[Segment], target: Sequence[Segment]) -> Alignment:
    def gain(old: Segment, new: Segment) -> float:
        found = _inside(old.modules, new.modules)
        return found.value if found.pairs else -math.inf

    def excess(segment: Segment) -> float:
        return (_FREE if segment.neutral else _KEPT) * len(segment.modules)

    path = _best(teacher, target, gain, lambda segment: _LOST * len(segment.modules), excess, known=_KNOWN)
    pairs: list[tuple[Module, Module]] = []
    lost = [module for segment in path.lost for module in segment.modules]
    added = list(path.added)
    for old, new in path.pairs:
        found = _inside(old.modules, new.modules)
        pairs += found.pairs
        lost += found.lost
        added += [Segment((module,)) for module in found.added]
    return Alignment(tuple(pairs), tuple(added), tuple(lost))


def _inside(old: Sequence[Module], new: Sequence[Module]) -> _Path[Module]:
    """Align modules that are matched one by one."""
    return _best(old, new, _gain, lambda module: _LOST, _excess)


def _excess(module: Module) -> float:
    """Return the cost of leaving out a module of the target."""
    return _FREE if module.neutral or module.routes else _TORN if module.spare else _KEPT


def _gain(teacher: Module, target: Module) -> float:
    """Return the gain of matching two modules."""
    return alikeness(teacher, target) or -math.inf
