"""The weights of a filled target under the names of its own state dict.

The state dict is the target's, from the time of its export. Its entries are found in the file by their values (`match`,
`folded`), and each gets the student's values of that constant. Where the export folded a normalisation into a layer,
the entries of the normalisation stay as they are, except its shift. The layer's weights are chosen so that both
together compute the same as the student.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array, are_equal, is_float
from onnx_net2net.algebra.views import Reshape, Slice
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.statedict.carry import Carrier, Descendant, match_all
from onnx_net2net.framework.statedict.entries import is_matrix
from onnx_net2net.framework.statedict.folded import out_axis, row_factors, rows
from onnx_net2net.framework.statedict.match import (
    Match,
    Matches,
    Piece,
    StoredConstant,
    constants_of,
    is_lost,
    left_over,
    single,
)
from onnx_net2net.operations.transfer.transfer import Transfer
from onnx_net2net.operations.transfer.values import Provenance

_UNCLEAR = (
    "{entry} has the same values as other entries in the target, and the file does not say which is whose; export it "
    "with the names of modules, or with other values (add a little noise to all parameters); what is one tensor in the "
    "class has to be one in the teacher, too"
)


@dataclass(frozen=True)
class FilledState:
    """A filled state dict.

    Attributes:
        values: What computes each entry.
        sources: The files that it may still read.
        kept: What the target's file has beside tensors; see `onnx_net2net.framework.formats.stored.Entries`.
    """

    values: Mapping[str, Callable[[], Array]]
    sources: tuple[Path, ...] = field(default=(), repr=False)
    kept: Any = field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it in the format that the name says; see `onnx_net2net.framework.formats.state_dicts.write`."""
        state_dicts.write(path, self.values, lambda name: self.values[name](), self.sources, self.kept)


def fill_state_dict(result: Transfer, state_dict: str | os.PathLike[str] | StateDict) -> FilledState:
    """Return the student's weights under the names of the target's state dict.

    Args:
        result: The transfer.
        state_dict: The target's state dict (.safetensors, .pt, or its entries), as it was when the target was exported.

    Raises:
        BadInputError: If it cannot be read.
        RefusedError: If tensors that were filled are no entry of it.
    """
    entries = state_dict if isinstance(state_dict, Mapping) else state_dicts.read(state_dict)
    filling = _Filling(result, entries)
    files = [] if isinstance(state_dict, Mapping) else [Path(state_dict)]
    sources = (*result.teacher.sources, *result.target.sources, *files)
    values = {name: filling.value(name) for name in entries}
    for one, other in _tied(entries):
        if not np.array_equal(values[one](), values[other]()):
            raise RefusedError(f"{one} and {other} are one tensor of the target, and two of the teacher")
    return FilledState(values, sources, getattr(entries, "kept", None))


def _tied(entries: StateDict) -> Iterator[tuple[str, str]]:
    """Yield matrices that have the same values: a state dict names what is tied twice."""
    known: dict[object, str] = {}
    for name, entry in entries.items():
        if is_matrix(entry.shape) and is_float(entry.dtype):
            values = entry.read()
            first = known.setdefault((entry.shape, values[:1].tobytes()), name)
            if first != name and np.ptp(values) and np.array_equal(entries[first].read(), values):
                yield first, name


def _match_repeated(entries: StateDict, constants: Mapping[str, StoredConstant], matches: Matches) -> None:
    """Add to the matches the entries that the export repeated, like a class token for each image of the batch."""
    lost = {name: single(entry.read()) for name, entry in entries.items() if is_lost(name, entry, matches)}
    for constant in [constant for constant in left_over(constants, matches) if constant.shape]:
        values = single(constant.read())
        for axis, size in enumerate(values.shape):
            first = np.take(values, [0], axis)
            if size > 1 and np.array_equal(np.broadcast_to(first, values.shape), values):
                for name, entry in lost.items():
                    if entry.size == first.size and np.array_equal(entry.reshape(-1), first.reshape(-1)):
                        view = (Slice(axis, 0, 1), Reshape(entry.shape))
                        matches[name] = [Match("reshaped", (Piece(constant.name, view),))]


class _Filling:
    """Finds the entries of a state dict in the target, and reads them in the student."""

    def __init__(self, result: Transfer, entries: StateDict) -> None:
        sources: dict[str, list[Provenance]] = {}
        for source in result.sources:
            sources.setdefault(source.target, []).append(source)
        filled = {name for name, found in sources.items() if any(source.origin != "kept" for source in found)}
        old, new = constants_of(result.target), constants_of(result.student)
        descendants = {
            name: [Descendant(one.name, one.scopes) for one in sources.get(name, ())] or [Descendant(name)]
            for name in old
        }
        matches = match_all(entries, old)
        _match_repeated(entries, old, matches)
        self._entries, self._filled = entries, filled
        self._carrier = Carrier(entries, old, new, descendants, matches, _UNCLEAR)
        self._tables, lost_tables = _match_tables(result, entries, sources)
        lost = [name for name in sources if name in filled and name in old and name not in self._carrier.explained()]
        self._refuse_lost(lost, lost_tables)

    def _refuse_lost(self, lost: list[str], tables: list[str]) -> None:
        """Refuse what was filled and is no entry: what has other values now, and others if there may be an entry."""
        surely = [name for name in lost if self._differs(name)] + tables
        unknown = any(e.shape and is_float(e.dtype) for n, e in self._entries.items() if n not in self._carrier.matches)
        if surely or (lost and unknown):
            raise RefusedError(
                f"{(surely or lost)[0]} was filled and no entry of the state dict has its values (export the target "
                "with the weights that the state dict has, and with folding off: dynamo=True, optimize=False)"
            )

    def _differs(self, name: str) -> bool:
        """Tell whether a constant that is no entry has other values now: its class makes the old ones again."""
        new = self._carrier.new.get(name)
        return new is None or not are_equal(self._carrier.old[name].read(), new.read())

    def value(self, name: str) -> Callable[[], Array]:
        """Return what computes an entry; one that is nowhere in the file stays as it is.

        Raises:
            RefusedError: If the file does not have all of its values.
        """
        stored = self._entries[name]
        if name in self._tables:
            table = self._tables[name]
            return lambda: np.asarray(table.read(), stored.dtype)
        if name not in self._carrier.matches:
            return stored.read
        best = self._carrier.best(name)
        if best.relation == "gathered" and best.pieces[0].constant in self._filled:
            raise RefusedError(
                f"the file has only those entries of {name} that were looked up in the export; export with folding off "
                "(dynamo=True, optimize=False)"
            )
        if best.axes is None:
            later, _ = self._carrier.carried(name, best)
            return lambda: np.asarray(later.read(self._carrier.new), stored.dtype)
        return self._unfolded(name, best) if best.relation == "folded" else stored.read

    def _unfolded(self, name: str, found: Match) -> Callable[[], Array]:
        """Return what computes the entries of a layer whose normalisation was folded into it."""
        stored, carrier = self._entries[name], self._carrier

        def before_and_after(piece: Piece) -> tuple[StoredConstant, StoredConstant]:
            """Return what a constant was in the target, and what it is in the student."""
            return carrier.old[piece.constant], carrier.new[carrier.nearest(name, piece.constant).final]

        def weight() -> Array:
            before, after = before_and_after(found.pieces[0])
            order = [axis for axis in found.axes or () if axis is not None]
            axis = out_axis(before.reads[0].operator, len(stored.shape))
            plain = rows(stored.read().astype(np.float64), axis)
            scale = row_factors(rows(np.transpose(before.read(), order), axis), plain)
            shape = [-1 if position == axis else 1 for position in range(len(stored.shape))]
            return np.asarray(np.transpose(after.read(), order) / scale.reshape(shape), stored.dtype)

        def shift() -> Array:
            before, after = before_and_after(found.pieces[-1])
            moved = after.read() - before.read()
            return np.asarray(stored.read() + moved.reshape(stored.shape), stored.dtype)

        if len(stored.shape) > 1:
            return weight
        is_shift = name.endswith("bias") and f"{name.rpartition('.')[0]}.running_mean" in self._entries
        return shift if is_shift else stored.read


def _match_tables(
    result: Transfer, entries: StateDict, sources: Mapping[str, list[Provenance]]
) -> tuple[dict[str, StoredConstant], list[str]]:
    """Find the entries that are masks, indices and other integers which were filled; and what of these is no entry."""
    old, new = (constants_of(model, floats=False) for model in (result.target, result.student))
    tables: dict[str, StoredConstant] = {}
    lost = []
    for name in [name for name in sources if name in old]:
        own = old[name].read()
        same = [key for key, entry in entries.items() if entry.shape == own.shape
                and not is_float(entry.dtype) and np.array_equal(entry.read(), own)]  # fmt: skip
        values = [new[source.name].read() for source in sources[name]]
        if not same or any(not np.array_equal(values[0], other) for other in values[1:]):
            lost.append(name)
        tables.update((key, new[sources[name][0].name]) for key in same)
    return tables, lost
