"""What became of each constant of a graph, and so of the entries of a state dict that it was exported from.

The way back of a student that grew (`checkpoint`) and that of a target that was filled (`fill_state_dict`) are one way.
An entry is found among the old constants by its values. A constant may have several descendants in the student, each
for some of its readers. An entry is the descendant that its own module reads, as far as names tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_net2net.algebra import views
from onnx_net2net.algebra.maps import ORIGINS, identity
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth
from onnx_net2net.errors import RefusedError, some
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.statedict.folded import match_folded
from onnx_net2net.framework.statedict.match import Match, Matches, Piece, StoredConstant, in_common, match, match_parts
from onnx_net2net.rewrite.constants import GrownConstant

ConstantGrowths = Mapping[str, Sequence[GrownConstant]]
"""How each constant grew in a step, by the name that it had before."""


@dataclass(frozen=True)
class Descendant:
    """What a constant became for some of its readers."""

    final: str  # its name in the student
    scopes: tuple[str, ...] = ()  # the modules of the nodes that read its values, "" where the file does not tell
    # How it grew in each step, None where it did not; nothing if it was filled.
    chain: tuple[GrownConstant | None, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """The same for descendants that grew alike."""
        growths = (grown and grown.growth for grown in self.chain)
        return tuple(growth and (growth.factor, *(axis.key for axis in growth.axes)) for growth in growths)


def descendants_of(constant: StoredConstant, steps: Sequence[ConstantGrowths]) -> list[Descendant]:
    """Return what steps made of a constant, for all its readers."""
    descendants = [Descendant(constant.name, tuple(read.scope for read in constant.reads))]
    for step in steps:
        descendants = [
            Descendant(
                grown.student if grown else descendant.final,
                grown.scopes if grown else descendant.scopes,
                (*descendant.chain, grown),
            )
            for descendant in descendants
            for grown in step.get(descendant.final) or (None,)
        ]
    return descendants


def nearness(entry: str, scope: str) -> int:
    """Return how many steps the paths of an entry's module and of a node have in common, counted from the end."""
    return in_common(entry.split(".")[-2::-1], scope.split(".")[::-1] if scope else [])


def match_all(entries: StateDict, constants: Mapping[str, StoredConstant]) -> Matches:
    """Find each entry of a state dict in a graph, whole, in parts or folded."""
    matches = match(entries, constants)
    match_parts(entries, constants, matches)
    match_folded(entries, constants, matches)
    return matches


@dataclass
class Carrier:
    """Says which constants the entries of a state dict are, and what became of these."""

    entries: StateDict  # the state dict, as it was when the old graph was exported
    old: Mapping[str, StoredConstant]  # the constants of the old graph
    new: Mapping[str, StoredConstant]  # those of the student
    descendants: Mapping[str, Sequence[Descendant]]  # what each of the old ones became
    matches: Matches  # which of them each entry may be
    unclear: str  # what an error says where descendants differ, and the file does not tell which of them `{entry}` is
    # What the modules of the graph call entries that have other names there.
    called: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # the names of the student's constants that entries are

    def explained(self) -> set[str]:
        """Return the old constants that entries are."""
        return {piece.constant for found in self.matches.values() for match in found for piece in match.pieces}

    def best(self, name: str) -> Match:
        """Return the match that the names speak for, where several constants have the values of an entry.

        Raises:
            RefusedError: If they speak for several that grew differently, or were filled with different values.
        """
        matches = self.matches[name]
        ranks = [self._rank(name, match) for match in matches]
        best = [match for match, rank in zip(matches, ranks, strict=True) if rank == max(ranks)]
        constants = list(dict.fromkeys(match.pieces[0].constant for match in best))
        descendants = [descendant for constant in constants for descendant in self._near(name, constant)]
        if len(constants) > 1 and not all(self._are_alike(descendants[0], other) for other in descendants[1:]):
            became = "grew differently" if descendants[0].chain else "got different values"
            raise RefusedError(
                f"{name} is equal to {some(constants)}, which {became}: the export made one for each use "
                "(export with folding off)"
            )
        self.used.update(descendant.final for descendant in descendants if len(constants) > 1)
        return best[0]

    def _rank(self, name: str, match: Match) -> tuple[bool, int]:
        """Return how well the names say that a constant is an entry."""
        constants = [self.old[piece.constant] for piece in match.pieces]
        named = all(c.name == name or f".{c.name}".endswith(f".{name}") for c in constants)
        return named, min(self._nearness(name, [read.scope for read in c.reads]) for c in constants)

    def _nearness(self, name: str, scopes: Sequence[str]) -> int:
        called = self.called.get(name, name)
        return max((nearness(called, scope) for scope in scopes), default=0)

    def _near(self, name: str, constant: str) -> list[Descendant]:
        """Return the descendants of a constant that are read nearest to the module of an entry."""
        descendants = [v for v in self.descendants[constant] if v.scopes] or list(self.descendants[constant])
        near = [self._nearness(name, descendant.scopes) for descendant in descendants]
        return [descendant for descendant, score in zip(descendants, near, strict=True) if score == max(near)]

    def nearest(self, name: str, constant: str) -> Descendant:
        """Return the descendant of a constant that the module of an entry reads.

        Raises:
            RefusedError: If it may be one of several that differ.
        """
        first, *others = self._near(name, constant)
        if not all(self._are_alike(first, other) for other in others):
            raise RefusedError(self.unclear.format(entry=name))
        self.used.add(first.final)
        return first

    def _are_alike(self, one: Descendant, other: Descendant) -> bool:
        """Tell whether descendants grew alike; of those that were filled, whether they got the same values."""
        if one.chain or one.final == other.final:
            return one.key == other.key
        return np.array_equal(self.new[one.final].read(), self.new[other.final].read())

    def carried(self, name: str, match: Match) -> tuple[Match, tuple[WeightGrowth, ...]]:
        """Return what an entry is in the student, and how it grew in each step.

        Raises:
            RefusedError: If it did not grow axis by axis, or it is not clear how.
        """
        descendants = [self.nearest(name, piece.constant) for piece in match.pieces]
        if match.axes is not None:
            pieces = [replace(piece, constant=v.final) for piece, v in zip(match.pieces, descendants, strict=True)]
            growths = [
                _folded(grown.growth if grown else None, match, self.entries[name].shape)
                for grown in descendants[0].chain
            ]
        else:
            followed = [self.follow(*pair) for pair in zip(match.pieces, descendants, strict=True)]
            pieces = [piece for piece, _ in followed]
            growths = [_joined(step, match.axis) for step in zip(*(steps for _, steps in followed), strict=True)]
        return replace(match, pieces=tuple(pieces)), tuple(growths)

    def later(self, name: str) -> list[Match]:
        """Return what an entry may be in the student, the best first; nothing if it is not in it."""
        best = self.best(name) if name in self.matches else None
        found: list[Match] = []
        for one in (best, *(other for other in self.matches[name] if other is not best)) if best else ():
            with contextlib.suppress(RefusedError):
                found.append(self.carried(name, one)[0])
        return found

    def follow(self, piece: Piece, descendant: Descendant) -> tuple[Piece, list[WeightGrowth]]:
        """Return what a piece is in a descendant, and how it grew in each step.

        Raises:
            RefusedError: If it did not grow axis by axis.
        """
        view, shape = piece.view, self.old[piece.constant].shape
        growths: list[WeightGrowth] = []
        for grown in descendant.chain:
            growth = grown.growth if grown else _still(shape)
            shape = growth.shape
            view, axes = views.carry_view(view, growth.axes)
            growths.append(replace(growth, axes=axes))
        return Piece(descendant.final, view), growths


def one_each(matches: Mapping[str, list[Match]], constants: Mapping[str, StoredConstant]) -> dict[str, list[Match]]:
    """Let each of several entries of equal values be a constant of its own, as copies of blocks are.

    Names tell most of them apart. Where they do not, entries and constants are in the order in which they run.

    Args:
        matches: What each entry may be, the best first.
        constants: The constants of the graph.

    Returns:
        The same with other matches first.
    """
    groups: dict[frozenset[str], list[str]] = {}
    for name, found in matches.items():
        groups.setdefault(frozenset(match.pieces[0].constant for match in found), []).append(name)
    result = dict(matches)
    for choices, names in groups.items():
        best = {matches[name][0].pieces[0].constant for name in names if choices}
        if len(best) < len(names) == len(choices):
            order = sorted(choices, key=lambda name: min((read.node for read in constants[name].reads), default=-1))
            for name, choice in zip(names, order, strict=True):
                result[name] = sorted(matches[name], key=lambda match: match.pieces[0].constant != choice)
    return result


def _still(shape: Sequence[int]) -> WeightGrowth:
    return WeightGrowth(tuple(AxisGrowth(identity(size)) for size in shape))


def _folded(growth: WeightGrowth | None, match: Match, shape: tuple[int, ...]) -> WeightGrowth:
    """Return how an entry grows when the export folded it, with others, into one constant."""
    assert match.axes is not None
    still = _still(shape)
    if growth is None:
        return still
    if growth.factor != 1 or any((axis.map.kind >= ORIGINS.index("mean")).any() for axis in growth.axes):
        raise RefusedError("its new units are no copies")
    divided = [axis for axis in match.axes if axis is not None and growth.axes[axis].reads]
    if len(shape) == 1 and any(not growth.axes[axis].map.is_identity for axis in divided):
        raise RefusedError("the norm that was folded into it would have to be divided (export with folding off)")
    axes = (own if axis is None else growth.axes[axis] for own, axis in zip(still.axes, match.axes, strict=True))
    return replace(growth, axes=tuple(axes), filler="copy" if match.scales else growth.filler)


def _joined(parts: Sequence[WeightGrowth], axis: int) -> WeightGrowth:
    """Return how an entry grows whose parts are laid end to end."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({part.factor for part in parts}) > 1:
        raise RefusedError("its parts are multiplied differently")
    whole = views.joined([part.axes[axis] for part in parts])
    return replace(first, axes=(*first.axes[:axis], whole, *first.axes[axis + 1 :]))
