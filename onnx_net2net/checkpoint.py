"""The way back into training: a grown model's weights under the names and in the layouts of the framework.

The student's record says how it was grown. The steps are done again in memory, and what they do to each axis of each
constant is done to the entries of the teacher's state dict that the constants were exported from. An entry that is
in the graph, in whatever layout, gets the student's own values; one that the export folded away (the parts of a
BatchNormalization) grows by the same maps.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx_net2net import statedict
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.history import history
from onnx_net2net.layout import Sides, apply, follow, joined
from onnx_net2net.maps import Filler, Side, Style, grow, identity, is_float
from onnx_net2net.matching import Constant, Match, Piece, constants_of, match
from onnx_net2net.model import Model, load
from onnx_net2net.replay import redo
from onnx_net2net.rewrite import GrownConstant
from onnx_net2net.statedict import StateDict, Stored
from onnx_net2net.tensors import Array

Kind = Literal["weight", "gradient", "square"]
"""What an array holds for each element of an entry: a value, its gradient (or a mean of these), or their square."""


@dataclass(frozen=True)
class Growth:
    """How an entry grows in one step of the student's history.

    Attributes:
        sides: How each axis grows.
        filler: What it has for units that are no copies.
        factor: By which all of it is multiplied.
        style: How new values are drawn.
    """

    sides: Sides
    filler: Filler = "own"
    factor: float = 1.0
    style: Style = field(default_factory=Style)

    def apply(self, values: Array, kind: Kind, salt: int) -> Array:
        """Grow an array of the entry's shape; see `Entry.grow`."""
        if kind == "weight":
            rng = np.random.Generator(np.random.SFC64([self.style.seed, salt]))
            return grow(values, list(self.sides), self.style, rng, self.filler, self.factor)
        power = 1 if kind == "gradient" else 2
        for axis, side in enumerate(self.sides):
            if side.map.is_identity:
                continue
            values = np.take(values, side.map.index, axis=axis)
            if not side.reads:  # what is read by weights that are divided has the gradient divided
                weight = (side.map.weight**power).astype(values.dtype)
                values = values * weight.reshape(-1, *(1,) * (values.ndim - 1 - axis))
        return values if self.factor == 1 else values / np.array(self.factor**power, values.dtype)


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
    """

    name: str
    relation: str
    constants: tuple[str, ...]
    old: tuple[int, ...]
    new: tuple[int, ...]
    growths: tuple[Growth, ...] = field(default=(), repr=False)
    note: str = ""
    value: Callable[[], Array] = field(default=lambda: np.zeros(0), repr=False, compare=False)

    def grow(self, values: Array, kind: Kind = "weight") -> Array:
        """Grow an array that has an element for each of the teacher's entry.

        Args:
            values: Of the shape `old`.
            kind: "weight" for values (which are divided where they are read, unevenly as `Style.spread` says),
                "gradient" for gradients and means of these (`exp_avg`, momentum: copied where values are divided,
                and divided where values are copied), "square" for squares of gradients (`exp_avg_sq`). The law is
                m' = D^T m E^T, growth-math.md section 3.2.

        Returns:
            An array of the shape `new` and the same dtype.

        Raises:
            BadInputError: If the shape is another one.
        """
        if values.shape != self.old:
            raise BadInputError(f"{self.name} has the shape {list(self.old)}, not {list(values.shape)}")
        for growth in self.growths:
            values = growth.apply(values, kind, zlib.crc32(self.name.encode()))
        return values


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a student under the framework's names; computed when they are asked for.

    Attributes:
        entries: The entries, in the order of the teacher's state dict, and the new ones.
        sources: The files that they are computed from.
        notes: What else there is to say, for people.
    """

    entries: tuple[Entry, ...]
    sources: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def arrays(self) -> dict[str, Array]:
        """Return the values of all entries."""
        return {entry.name: entry.value() for entry in self.entries}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a state dict: .safetensors, or a file of torch (.pt, .pth); see `onnx_net2net.statedict.write`."""
        values = {entry.name: entry.value for entry in self.entries}
        statedict.write(path, values, lambda name: values[name](), self.sources)


def checkpoint(
    teacher: str | os.PathLike[str] | Model,
    student: str | os.PathLike[str] | Model,
    state_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    untie: bool = False,
) -> Checkpoint:
    """Carry the growth of a student over to the teacher's state dict.

    Args:
        teacher: The model that the student was grown from.
        student: The student, with its record.
        state_dict: The teacher's state dict: a file (.safetensors, .pt), or what `state_dict()` returns.
        untie: Whether entries that are tied may grow differently. The class must not tie them, then.

    Returns:
        The student's state dict, which the same class takes at the student's sizes.

    Raises:
        BadInputError: If the student was not grown from the teacher, or a file cannot be used.
        RefusedError: If it was narrowed, or an entry that must have grown cannot be derived.
    """
    model, grown = load(teacher), load(student)
    sources = [*model.sources, *grown.sources]
    if isinstance(state_dict, Mapping):
        entries = statedict.from_torch(state_dict)
    else:
        entries = statedict.read(state_dict)
        sources.append(Path(state_dict))
    steps = _steps(model, grown)
    made = _Made(_redo(model, grown, steps), constants_of(grown))
    result = _Derivation(entries, constants_of(model), made, untie).entries()
    return Checkpoint(tuple(result), tuple(sources), ())


def _steps(teacher: Model, student: Model) -> list[dict[str, Any]]:
    """Return what was done to the teacher."""
    before, steps = history(teacher), history(student)
    if not steps or steps[: len(before)] != before:
        raise BadInputError("the student has no record of how it was grown from this teacher")
    steps = steps[len(before) :]
    if any(step["operation"] == "narrow" for step in steps):
        raise RefusedError("the student was narrowed, which is not carried over to a state dict")
    return steps


def _redo(teacher: Model, student: Model, steps: Sequence[dict[str, Any]]) -> list[dict[str, list[GrownConstant]]]:
    """Grow the teacher again, and return how each constant grew in each step, by the name that it had before it."""
    grown: list[dict[str, list[GrownConstant]]] = []
    model = teacher
    with tempfile.TemporaryDirectory(prefix="onnx_net2net.") as folder:
        for number, step in enumerate(steps, 1):
            result = redo(model, step, number)
            by_name: dict[str, list[GrownConstant]] = {}
            for constant in getattr(result, "constants", ()):
                by_name.setdefault(constant.teacher, []).append(constant)
            grown.append(by_name)
            model = result.student
            if number < len(steps):
                path = Path(folder) / f"{number}.onnx"
                model.save(path)  # each step was applied to a file
                model = load(path)
        _compare(model, student)
    return grown


def _compare(again: Model, student: Model) -> None:
    """Refuse a student that has other weights than its record makes."""
    ours, theirs = constants_of(again), constants_of(student)
    for name, constant in ours.items():
        other = theirs.get(name)
        if other is None or other.shape != constant.shape or not np.array_equal(constant.read(), other.read()):
            raise BadInputError(f"the student is not what its record makes of the teacher: {name} differs")


@dataclass(frozen=True)
class _Made:
    """What became of the teacher's constants."""

    steps: list[dict[str, list[GrownConstant]]]
    final: Mapping[str, Constant]

    def chain(self, constant: str, entry: str) -> tuple[list[GrownConstant | None], str]:
        """Return how a constant grew where an entry's module reads it, and its name in the student."""
        chain: list[GrownConstant | None] = []
        for step in self.steps:
            versions = step.get(constant)
            chosen = _nearest(versions, entry) if versions else None
            chain.append(chosen)
            constant = chosen.student if chosen else constant
        return chain, constant


def _nearest(versions: Sequence[GrownConstant], entry: str) -> GrownConstant:
    """Return the version of a constant that the module of an entry reads."""
    if len(versions) == 1:
        return versions[0]
    near = [max(map(partial(nearness, entry), version.scopes)) for version in versions]
    best = max(near)
    if near.count(best) > 1:
        raise RefusedError(
            f"{entry} is {versions[0].teacher} in the graph, which other modules use too and which grew in several "
            "ways; the file does not say which is which (export it with the names of modules, or folding off)"
        )
    return versions[near.index(best)]


def nearness(entry: str, scope: str) -> int:
    """Return how many steps the paths of an entry's module and of a node have in common, counted from the end."""
    own, other = entry.split(".")[:-1][::-1], scope.split(".")[::-1] if scope else []
    same = 0
    for a, b in zip(own, other, strict=False):
        if a != b:
            break
        same += 1
    return same


class _Derivation:
    """Derives the entries of the student's state dict."""

    def __init__(self, entries: StateDict, constants: Mapping[str, Constant], made: _Made, untie: bool) -> None:
        self._entries, self._constants, self._made, self._untie = entries, constants, made, untie
        self._matches = match(entries, constants)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries."""
        self._refuse_unknown()
        for name, stored in self._entries.items():
            matches = self._matches.get(name)
            if matches:
                yield self._derived(name, stored, max(matches, key=lambda match: self._rank(name, match)))
            else:
                yield Entry(name, "passed through", (), stored.shape, stored.shape, value=stored.read)

    def _refuse_unknown(self) -> None:
        """Refuse if constants grew that no entry is, and there are entries that are no constant."""
        known = {piece.constant for found in self._matches.values() for match in found for piece in match.pieces}
        grown = [name for name in self._made.steps[0] if name in self._constants and name not in known]
        lost = [n for n, e in self._entries.items() if n not in self._matches and is_float(e.dtype) and e.shape]
        if grown and lost:
            raise RefusedError(
                f"these grew, and no entry of the state dict explains them: {_some(grown)}; these may have to "
                f"grow, and are not in the graph: {_some(lost)} (export with folding off: dynamo=True, optimize=False)"
            )

    def _rank(self, name: str, match: Match) -> tuple[bool, int]:
        """Return how well the names say that a constant is an entry."""
        constants = [self._constants[piece.constant] for piece in match.pieces]
        named = all(c.name == name or f".{c.name}".endswith(f".{name}") for c in constants)
        near = [max((nearness(name, read.scope) for read in c.reads), default=0) for c in constants]
        return named, min(near)

    def _derived(self, name: str, stored: Stored, match: Match) -> Entry:
        try:
            parts = [self._followed(name, piece) for piece in match.pieces]
            growths = [_joined([part.growths[k] for part in parts], match.axis) for k in range(len(self._made.steps))]
        except RefusedError as error:
            raise RefusedError(f"{name} cannot be derived from {match.pieces[0].constant}: {error}") from error
        shape = list(stored.shape)
        for growth in growths:
            shape = [side.map.new for side in growth.sides]

        def value() -> Array:
            arrays = [part.value() for part in parts]
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=match.axis)
            return whole.astype(stored.dtype, copy=False)

        constants = tuple(piece.constant for piece in match.pieces)
        return Entry(name, match.relation, constants, stored.shape, tuple(shape), tuple(growths), value=value)

    def _followed(self, name: str, piece: Piece) -> _Part:
        chain, final = self._made.chain(piece.constant, name)
        view, sizes = piece.view, self._constants[piece.constant].shape
        growths: list[Growth] = []
        for constant in chain:
            sides = constant.sides if constant else tuple(Side(identity(size)) for size in sizes)
            sizes = tuple(side.map.new for side in sides)
            view, sides = follow(view, sides)
            growths.append(
                Growth(sides, constant.filler, constant.factor, constant.style) if constant else Growth(sides)
            )
        read = self._made.final[final].read
        return _Part(growths, lambda: apply(view, read()))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _Part:
    growths: list[Growth]
    value: Callable[[], Array]


def _joined(parts: Sequence[Growth], axis: int) -> Growth:
    """Return how an entry grows whose parts are laid end to end."""
    first = parts[0]
    if len(parts) == 1:
        return first
    sides = tuple(
        joined([part.sides[k] for part in parts]) if k == axis else first.sides[k] for k in range(len(first.sides))
    )
    if len({part.factor for part in parts}) > 1:
        raise RefusedError("its parts are multiplied differently")
    return replace(first, sides=sides)
