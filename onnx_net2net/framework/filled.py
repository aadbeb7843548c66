"""The weights of a filled target under the names of its own state dict.

The state dict is the target's, as it was when the target was exported: its entries are found in the file by their
values (`matching`, `folding`), and each gets the values that the student has in that place. Where the export folded
normalisations into layers, these stay in the state dict as they are, and the layer's weights and the shift make up for
them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.views import Reshape, Slice, apply
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework import files as statedict
from onnx_net2net.framework.derivation import nearness
from onnx_net2net.framework.folded import match_folded
from onnx_net2net.framework.match import Constant, Match, Piece, constants_of, match, match_parts, single
from onnx_net2net.operations.transfer.transfer import Transfer
from onnx_net2net.operations.transfer.values import Source


@dataclass(frozen=True)
class FilledState:
    """A filled state dict.

    Attributes:
        values: What computes each entry.
        sources: The files that it may still read.
        versions: Of the modules' classes, for a file of torch; see `onnx_net2net.framework.files.Entries`.
    """

    values: Mapping[str, Callable[[], Array]]
    sources: tuple[Path, ...] = field(default=(), repr=False)
    versions: Any = field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it: .safetensors, or a file of torch (.pt, .pth); see `onnx_net2net.framework.files.write`."""
        statedict.write(path, self.values, lambda name: self.values[name](), self.sources, self.versions)


def fill_state_dict(result: Transfer, state_dict: str | os.PathLike[str]) -> FilledState:
    """Return the student's weights under the names of the target's state dict.

    Args:
        result: The transfer.
        state_dict: The target's state dict (.safetensors, .pt), as it was when the target was exported.

    Raises:
        BadInputError: If it cannot be read.
        RefusedError: If tensors that were filled are no entry of it.
    """
    entries = statedict.read(state_dict)
    state = _State(result, entries)
    sources = (*result.teacher.sources, *result.target.sources, Path(state_dict))
    values = {name: state.value(name) for name in entries}
    for one, other in _tied(entries):
        if not np.array_equal(values[one](), values[other]()):
            raise RefusedError(f"{one} and {other} are one tensor of the target, of which the teacher has two")
    return FilledState(values, sources, getattr(entries, "versions", None))


def _tied(entries: statedict.StateDict) -> Iterator[tuple[str, str]]:
    """Yield matrices that have the same values: a state dict names what is tied twice."""
    known: dict[object, str] = {}
    for name, entry in entries.items():
        if sum(size > 1 for size in entry.shape) > 1 and is_float(entry.dtype):
            values = entry.read()
            first = known.setdefault((entry.shape, values[:1].tobytes()), name)
            if first != name and np.ptp(values) and np.array_equal(entries[first].read(), values):
                yield first, name


class _State:
    """Finds the entries of a state dict in the target, and reads them in the student."""

    def __init__(self, result: Transfer, entries: statedict.StateDict) -> None:
        self._result, self._entries = result, entries
        self._tables: dict[str, Constant] = {}
        self._old, self._new = constants_of(result.target), constants_of(result.student)
        self._matches = match(entries, self._old)
        match_parts(entries, self._old, self._matches)
        match_folded(entries, self._old, self._matches)
        self._sources: dict[str, list[Source]] = {}
        for source in result.sources:
            self._sources.setdefault(source.target, []).append(source)
        self._match_repeated()
        known = {piece.constant for found in self._matches.values() for m in found for piece in m.pieces}
        lost = [name for name, sources in self._sources.items() if name in self._old and name not in known
                and any(source.origin != "kept" for source in sources)]  # fmt: skip
        unknown = [name for name, entry in entries.items() if name not in self._matches and entry.shape]
        lost += self._match_tables()
        made = [name for name in lost if name not in self._old or math.prod(self._old[name].shape) == 1]
        name = (made or lost or [""])[0]
        if made or (lost and any(is_float(entries[name].dtype) for name in unknown)):
            raise RefusedError(
                f"{name} was filled and no entry of the state dict has its values (export the target with the "
                "weights that the state dict has, and with folding off: dynamo=True, optimize=False)"
            )

    def _match_tables(self) -> list[str]:
        """Find the entries that are masks, indices and other integers which were filled; return what is no entry."""
        old, new = (constants_of(model, floats=False) for model in (self._result.target, self._result.student))
        lost = []
        for name in [name for name in self._sources if name in old]:
            own = old[name].read()
            same = [key for key, entry in self._entries.items() if entry.shape == own.shape
                    and not is_float(entry.dtype) and np.array_equal(entry.read(), own)]  # fmt: skip
            values = [new[source.name].read() for source in self._sources[name]]
            if not same or any(not np.array_equal(values[0], other) for other in values[1:]):
                lost.append(name)
            self._tables.update((key, new[self._sources[name][0].name]) for key in same)
        return lost

    def _match_repeated(self) -> None:
        """Find entries that the export repeated, like a class token for each image of the batch."""
        known = {piece.constant for found in self._matches.values() for m in found for piece in m.pieces}
        lost = {name: single(entry.read()) for name, entry in self._entries.items()
                if name not in self._matches and entry.shape and is_float(entry.dtype)}  # fmt: skip
        for constant in [constant for name, constant in self._old.items() if name not in known and constant.shape]:
            values = single(constant.read())
            for axis, size in enumerate(values.shape):
                first = np.take(values, [0], axis)
                if size > 1 and np.array_equal(np.broadcast_to(first, values.shape), values):
                    for name, entry in lost.items():
                        if entry.size == first.size and np.array_equal(entry.reshape(-1), first.reshape(-1)):
                            view = (Slice(axis, 0, 1), Reshape(entry.shape))
                            self._matches[name] = [Match("reshaped", (Piece(constant.name, view),))]

    def value(self, name: str) -> Callable[[], Array]:
        """Return what computes an entry; one that is nowhere in the file stays as it is."""
        stored, found = self._entries[name], self._matches.get(name)
        if name in self._tables:
            table = self._tables[name]
            return lambda: np.asarray(table.read(), stored.dtype)
        if not found:
            return stored.read
        best = max(found, key=lambda match: self._rank(name, match))
        if best.relation == "gathered" and any(
            s.origin != "kept" for s in self._sources.get(best.pieces[0].constant, ())
        ):
            raise RefusedError(
                f"the file has only those entries of {name} that were looked up in the export; export with folding off "
                "(dynamo=True, optimize=False)"
            )
        if best.axes is not None:
            return self._unfolded(name, best) if best.relation == "folded" else stored.read

        def whole() -> Array:
            parts = [apply(piece.view, self._new[self._version(name, piece)].read()) for piece in best.pieces]
            values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=best.axis)
            return np.asarray(values, stored.dtype)

        return whole

    def _rank(self, name: str, match: Match) -> tuple[bool, int]:
        """Return how well the names say that a constant is an entry."""
        names = [piece.constant for piece in match.pieces]
        near = [max((nearness(name, read.scope) for read in self._old[own].reads), default=0) for own in names]
        return all(own == name or f".{own}".endswith(f".{name}") for own in names), min(near)

    def _version(self, name: str, piece: Piece) -> str:
        """Return what the student calls the constant that the module of an entry reads."""
        versions = self._sources.get(piece.constant, [])
        near = [max((nearness(name, scope) for scope in v.scopes), default=0) for v in versions]
        best = [v for v, score in zip(versions, near, strict=True) if score == max(near)]
        if len({v.name for v in best}) > 1 and not self._alike(best):
            raise RefusedError(
                f"{name} has the same values as other entries in the target, and the file does not say which is whose; "
                "export it with the names of modules, or with other values (add a little noise to all parameters); "
                "what is one tensor in the class has to be one in the teacher, too"
            )
        return best[0].name if best else piece.constant

    def _alike(self, versions: list[Source]) -> bool:
        first = self._new[versions[0].name].read()
        return all(np.array_equal(self._new[other.name].read(), first) for other in versions[1:])

    def _unfolded(self, name: str, found: Match) -> Callable[[], Array]:
        """Return what computes the entries of a layer whose normalisation was folded into it."""
        stored = self._entries[name]
        if len(stored.shape) > 1:
            assert found.axes is not None
            piece, order = found.pieces[0], [axis for axis in found.axes if axis is not None]

            def weight() -> Array:
                before, after = (
                    np.transpose(values, order)
                    for values in (self._old[piece.constant].read(), self._new[self._version(name, piece)].read())
                )
                plain = stored.read().astype(np.float64)
                axis = 1 if self._old[piece.constant].reads[0].operator == "ConvTranspose" else 0
                scale = self._scale(np.moveaxis(before, axis, 0), np.moveaxis(plain, axis, 0))
                shape = [-1 if position == axis else 1 for position in range(plain.ndim)]
                return np.asarray(after / scale.reshape(shape), stored.dtype)

            return weight
        if name.endswith("bias") and f"{name.rpartition('.')[0]}.running_mean" in self._entries:
            piece = found.pieces[-1]

            def shift() -> Array:
                moved = self._new[self._version(name, piece)].read() - self._old[piece.constant].read()
                return np.asarray(stored.read() + moved.reshape(stored.shape), stored.dtype)

            return shift
        return stored.read

    def _scale(self, folded: Array, plain: Array) -> Array:
        """Return by what each row was multiplied."""
        rows = [values.reshape(len(values), math.prod(values.shape[1:])) for values in (folded, plain)]
        scale: Array = (rows[0] * rows[1]).sum(axis=1) / (rows[1] ** 2).sum(axis=1)
        return scale
