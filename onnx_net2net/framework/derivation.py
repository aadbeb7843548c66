"""How each entry of a state dict grows, from what became of the constants of the graph that it is in."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.maps import ORIGINS, identity
from onnx_net2net.algebra.views import Transpose, View, apply, follow, joined
from onnx_net2net.algebra.weights import AxisGrowth, Held, WeightGrowth
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.framework.files import StateDict, Stored
from onnx_net2net.framework.folded import match_folded
from onnx_net2net.framework.match import Constant, Match, Matches, Piece, match, match_parts
from onnx_net2net.framework.unseen import Unseen
from onnx_net2net.rewrite.constants import GrownConstant


@dataclass(frozen=True)
class Entry:
    """An entry of the grown state dict.

    Attributes:
        name: Its name.
        relation: What it was in the teacher's graph.
        constants: The names of the constants there.
        old: Its shape in the teacher.
        new: Its shape in the student.
        growths: How it grows, step by step.
        note: What else there is to say, for people.
        shared: The same for entries that are one tensor in memory, None where the file does not tell.
    """

    name: str
    relation: str
    constants: tuple[str, ...]
    old: tuple[int, ...]
    new: tuple[int, ...]
    growths: tuple[WeightGrowth, ...] = field(default=(), repr=False)
    note: str = ""
    shared: object = field(default=None, repr=False, compare=False)
    value: Callable[[], Array] = field(default=lambda: np.zeros(0), repr=False, compare=False)

    def grow(self, values: Array, held: Held = "weight") -> Array:
        """Grow an array that has an element for each of the teacher's entry.

        Args:
            values: Of the shape `old`.
            held: "weight" for values (which are divided where they are read, unevenly as `Style.spread` says),
                "gradient" for gradients and means of these (`exp_avg`, momentum: copied where values are divided,
                and divided where values are copied, by the shares of the copies), "square" for squares of gradients
                (`exp_avg_sq`). The law is m' = D^T m E^T, growth-math.md section 3.2.

        Returns:
            An array of the shape `new` and the same dtype.

        Raises:
            BadInputError: If the shape is another one.
        """
        if values.shape != self.old:
            raise BadInputError(f"{self.name} has the shape {list(self.old)}, not {list(values.shape)}")
        for growth in self.growths:
            values = growth.apply(values, zlib.crc32(self.name.encode()), held)
        return values


@dataclass(frozen=True)
class Version:
    """What a constant became for some of its readers.

    Attributes:
        chain: How it grew in each step, None where it did not.
        final: Its name in the student.
        scopes: The modules of the nodes that read its values, "" where the file does not tell.
    """

    chain: tuple[GrownConstant | None, ...]
    final: str
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What became of the teacher's constants."""

    steps: list[dict[str, list[GrownConstant]]]
    final: Mapping[str, Constant]

    def versions(self, constant: Constant) -> list[Version]:
        """Return what a constant became, for all its readers."""
        versions = [Version((), constant.name, tuple(read.scope for read in constant.reads))]
        for step in self.steps:
            versions = [
                Version((*version.chain, grown), grown.student, grown.scopes)
                if grown
                else Version((*version.chain, None), version.final, version.scopes)
                for version in versions
                for grown in step.get(version.final) or (None,)
            ]
        return versions


def nearness(entry: str, scope: str) -> int:
    """Return how many steps the paths of an entry's module and of a node have in common, counted from the end."""
    own, other = entry.split(".")[:-1][::-1], scope.split(".")[::-1] if scope else []
    same = 0
    for a, b in zip(own, other, strict=False):
        if a != b:
            break
        same += 1
    return same


class Derivation:
    """Derives the entries of the student's state dict."""

    def __init__(
        self, entries: StateDict, constants: Mapping[str, Constant], made: Made, matches: Matches | None,
        called: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Make one.

        Args:
            entries: The teacher's state dict.
            constants: The constants of its graph.
            made: What became of these.
            matches: Which of them each entry may be; None to find out.
            called: What the modules of the graph call entries that have other names there.
        """
        self._called = called or {}
        self._entries, self._constants, self._made = entries, constants, made
        self._matches = match_all(entries, constants) if matches is None else matches
        self._versions = {name: made.versions(constant) for name, constant in constants.items()}
        self._used: dict[str, set[str]] = {}

    def entries(self) -> Iterator[Entry]:
        """Yield all entries."""
        self._refuse_unknown()
        derived = {
            name: self._derived(name, stored, self._best(name))
            for name, stored in self._entries.items()
            if name in self._matches
        }
        unseen = Unseen(list(derived.values()), self._has_folded())
        for name, stored in self._entries.items():
            yield replace(derived.get(name) or _unseen(name, stored, unseen), shared=stored.shared)

    def added(self) -> Iterator[Entry]:
        """Yield the weights of layers that the teacher does not have."""
        old = {version.final for versions in self._versions.values() for version in versions}
        for name, constant in self._made.final.items():
            if name not in old and constant.shape:
                yield _added(constant)

    def untied(self, entries: Sequence[Entry]) -> Iterator[str]:
        """Yield what entries that are tied, or that the graph uses several times, became different tensors."""
        first: dict[object, Entry] = {}
        for entry in entries:
            stored = self._entries[entry.name]
            matrix = sum(size > 1 for size in stored.shape) > 1
            key = (stored.shared, stored.shape) if stored.shared is not None else entry.constants if matrix else None
            if not key:
                continue
            other = first.setdefault(key, entry)
            was_tied = other is not entry and _same(self._entries[other.name].read(), stored.read())
            if was_tied and not _same(other.value(), entry.value()):
                yield f"{other.name} and {entry.name}"
            for found in self._matches.get(entry.name, ()) if matrix else ():
                yield from self._unused(entry, found)

    def _unused(self, entry: Entry, match: Match) -> Iterator[str]:
        """Yield the versions of an entry's constants that are no entry and differ from it."""
        for piece in match.pieces if match.axes is None and len(match.pieces) == 1 else ():
            for version in self._versions[piece.constant]:
                if version.scopes and version.final not in self._used.get(piece.constant, ()):
                    part = self._followed(piece, version)
                    if not _same(part.value(), entry.value()):
                        yield f"{entry.name} in {' and '.join(filter(None, version.scopes)) or version.final}"

    def _explained(self) -> set[str]:
        """Return the constants that entries are."""
        return {piece.constant for found in self._matches.values() for match in found for piece in match.pieces}

    def _has_folded(self) -> bool:
        """Tell whether there are matrices that no entry is: what they were made of grows as they do not tell."""
        unknown = self._constants.keys() - self._explained()
        return any(sum(size > 1 for size in self._constants[name].shape) > 1 for name in unknown)

    def _refuse_unknown(self) -> None:
        """Refuse if constants grew that no entry is, and there are entries that are no constant."""
        known = self._explained()
        grown = [name for name in self._versions if name not in known and not self._is_computed_anew(name)]
        lost = [n for n, e in self._entries.items() if n not in self._matches and is_float(e.dtype) and e.shape]
        if grown:
            advice = f"; these may have to grow, and are not in the graph: {some(lost)}" if lost else ""
            raise RefusedError(
                f"these grew, and no entry of the state dict explains them: {some(grown)}{advice} (export with folding "
                "off: dynamo=True, optimize=False; grow with --for torch)"
            )

    def _is_computed_anew(self, name: str) -> bool:
        """Tell whether a class that makes a constant itself makes the student's: the same all along what grew.

        States that start at zeros are such, and masks of ones.
        """
        old = self._constants[name]
        for version in self._versions[name]:
            new = self._made.final[version.final]
            if not any(version.chain):
                continue
            if len(new.shape) != len(old.shape):
                return False
            one, other = _along(new.read(), old.shape), _along(old.read(), new.shape)
            if one is None or other is None or not np.array_equal(one, other):
                return False
        return True

    def _best(self, name: str) -> Match:
        """Return the match that the names speak for, where several constants have the values of an entry."""
        matches = self._matches[name]
        ranks = [self._rank(name, match) for match in matches]
        best = [match for match, rank in zip(matches, ranks, strict=True) if rank == max(ranks)]
        if len(best) > 1:
            constants = list(dict.fromkeys(match.pieces[0].constant for match in best))
            if len({_growth_key(self._nearest(name, constant)) for constant in constants}) > 1:
                raise RefusedError(
                    f"{name} is equal to {some(constants)}, which grew differently: the export made one for each use "
                    "(export with folding off)"
                )
        return best[0]

    def _rank(self, name: str, match: Match) -> tuple[bool, int]:
        """Return how well the names say that a constant is an entry."""
        constants = [self._constants[piece.constant] for piece in match.pieces]
        named = all(c.name == name or f".{c.name}".endswith(f".{name}") for c in constants)
        near = [max((self._nearness(name, read.scope) for read in c.reads), default=0) for c in constants]
        return named, min(near)

    def _derived(self, name: str, stored: Stored, match: Match) -> Entry:
        try:
            if match.axes is not None:
                version = self._nearest(name, match.pieces[0].constant)
                growths = [_like(grown.growth if grown else None, match, stored) for grown in version.chain]
                parts = []
            else:
                parts = [self._followed(piece, self._nearest(name, piece.constant)) for piece in match.pieces]
                growths = [
                    _joined([part.growths[k] for part in parts], match.axis) for k in range(len(self._made.steps))
                ]
        except RefusedError as error:
            raise RefusedError(f"{name} cannot be derived from {match.pieces[0].constant}: {error}") from error
        shape = growths[-1].shape if growths else stored.shape
        constants = tuple(piece.constant for piece in match.pieces)
        entry = Entry(name, match.relation, constants, stored.shape, shape, tuple(growths))

        def value() -> Array:
            if match.axes is not None:
                return entry.grow(stored.read())
            arrays = [part.value() for part in parts]
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=match.axis)
            if whole.shape != shape:
                raise RefusedError(f"{name} would have the shape {list(whole.shape)}, where {list(shape)} was derived")
            return whole.astype(stored.dtype, copy=False)

        return replace(entry, value=value)

    def _nearest(self, entry: str, constant: str) -> Version:
        """Return the version of a constant that the module of an entry reads."""
        versions = [v for v in self._versions[constant] if v.scopes] or self._versions[constant]
        near = [max((self._nearness(entry, scope) for scope in version.scopes), default=0) for version in versions]
        best = [version for version, score in zip(versions, near, strict=True) if score == max(near)]
        if len({_growth_key(version) for version in best}) > 1:
            raise RefusedError(
                "other modules use it too, it grew in several ways, and the file does not say which is whose "
                "(export with the names of modules, or folding off)"
            )
        self._used.setdefault(constant, set()).add(best[0].final)
        return best[0]

    def _nearness(self, entry: str, scope: str) -> int:
        return nearness(self._called.get(entry, entry), scope)

    def later(self, name: str) -> list[Match]:
        """Return what an entry may be in the graph behind all steps, the best first; nothing if it is not in it."""
        best = self._best(name) if name in self._matches else None
        result: list[Match] = []
        for one in (best, *(other for other in self._matches[name] if other is not best)) if best else ():
            with contextlib.suppress(RefusedError):
                result.append(replace(one, pieces=tuple(self._later(name, one, piece) for piece in one.pieces)))
        return result

    def _later(self, name: str, match: Match, piece: Piece) -> Piece:
        version = self._nearest(name, piece.constant)
        return Piece(version.final, self._followed(piece, version).view if match.axes is None else piece.view)

    def _followed(self, piece: Piece, version: Version) -> _Part:
        view, sizes = piece.view, self._constants[piece.constant].shape
        growths: list[WeightGrowth] = []
        for grown in version.chain:
            growth = grown.growth if grown else _still(sizes)
            sizes = growth.shape
            view, axes = follow(view, growth.axes)
            growths.append(replace(growth, axes=axes))
        read = self._made.final[version.final].read
        return _Part(growths, lambda: apply(view, read()), view)


def match_all(entries: StateDict, constants: Mapping[str, Constant]) -> Matches:
    """Find each entry of a state dict in a graph, whole, in parts or folded."""
    matches = match(entries, constants)
    match_parts(entries, constants, matches)
    match_folded(entries, constants, matches)
    return matches


def _growth_key(version: Version) -> tuple[object, ...]:
    growths = (grown and grown.growth for grown in version.chain)
    return tuple(growth and (growth.factor, *(axis.key for axis in growth.axes)) for growth in growths)


def _still(shape: Sequence[int]) -> WeightGrowth:
    return WeightGrowth(tuple(AxisGrowth(identity(size)) for size in shape))


def _like(growth: WeightGrowth | None, match: Match, stored: Stored) -> WeightGrowth:
    """Return how an entry grows when the export folded it, with others, into one constant."""
    assert match.axes is not None
    still = _still(stored.shape)
    if growth is None:
        return still
    if growth.factor != 1 or any((axis.map.kind >= ORIGINS.index("mean")).any() for axis in growth.axes):
        raise RefusedError("its new units are no copies")
    axes = (own if axis is None else growth.axes[axis] for own, axis in zip(still.axes, match.axes, strict=True))
    return replace(growth, axes=tuple(axes), filler="copy" if match.scales else growth.filler)


def _unseen(name: str, stored: Stored, unseen: Unseen) -> Entry:
    """Return an entry that is not in the graph, grown like others where some of its sizes grew."""
    guess = unseen.guess(name, stored.shape) if is_float(stored.dtype) and stored.shape else None
    if guess is None:
        return Entry(name, "passed through", (), stored.shape, stored.shape, value=stored.read)
    if not guess.like:
        note = "is not in the graph, and nothing there tells how it grows"
        return Entry(name, "passed through", (), stored.shape, stored.shape, note=note, value=stored.read)
    new = guess.growths[-1].shape
    note = f"is not in the graph, and grew like {guess.like}"
    entry = Entry(name, "not in the graph", (), stored.shape, new, guess.growths, note)
    return replace(entry, value=lambda: entry.grow(stored.read()))


def _added(constant: Constant) -> Entry:
    """Return the entry of a new layer's weight; of a Linear's, which a MatMul reads, the transpose."""
    view, read = _view_of_new(constant), constant.read
    shape = constant.shape[::-1] if view else constant.shape
    return Entry(constant.name, "new", (), shape, shape, value=lambda: apply(view, read()))


def _view_of_new(constant: Constant) -> View:
    turned = len(constant.shape) == 2 and any(r.operator == "MatMul" and r.input == 1 for r in constant.reads)
    return (Transpose((1, 0)),) if turned else ()


def new_match(entry: Entry, constants: Mapping[str, Constant]) -> list[Match]:
    """Return which constant the entry of a new layer is; nothing for others."""
    if entry.relation != "new":
        return []
    return [Match("same", (Piece(entry.name, _view_of_new(constants[entry.name])),))]


def _along(values: Array, other: tuple[int, ...]) -> Array | None:
    """Return what an array has along axes where another shape differs, None where it varies there."""
    for axis, size in enumerate(other):
        if values.shape[axis] != size:
            first = values.take([0], axis)
            if not np.array_equal(values, np.broadcast_to(first, values.shape)):
                return None
            values = first
    return values


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def some(names: Sequence[str]) -> str:
    """Return the first names of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _Part:
    """A constant seen through a view: how that grows, and its values in the student."""

    growths: list[WeightGrowth]
    value: Callable[[], Array]
    view: View


def _joined(parts: Sequence[WeightGrowth], axis: int) -> WeightGrowth:
    """Return how an entry grows whose parts are laid end to end."""
    first = parts[0]
    if len(parts) == 1:
        return first
    axes = list(first.axes)
    axes[axis] = joined([part.axes[axis] for part in parts])
    if len({part.factor for part in parts}) > 1:
        raise RefusedError("its parts are multiplied differently")
    return replace(first, axes=tuple(axes))
