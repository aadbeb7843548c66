"""The entries of the student's state dict, derived from what became of the constants of the graph that they are in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.errors import RefusedError, some
from onnx_net2net.framework.statedict.carry import Carrier
from onnx_net2net.framework.statedict.entries import Entry, is_matrix
from onnx_net2net.framework.statedict.match import Match, Piece, as_parameter, shown_again
from onnx_net2net.framework.statedict.unseen import Unseen


def derive(carrier: Carrier) -> list[Entry]:
    """Return the entries that the teacher's state dict has, in its order, as they are in the student.

    Raises:
        RefusedError: If one that must have grown cannot be derived.
    """
    _refuse_unexplained(carrier)
    derived = {name: _derived(carrier, name) for name in carrier.entries if name in carrier.matches}
    unknown = carrier.old.keys() - carrier.explained()
    unseen = Unseen(list(derived.values()), any(is_matrix(carrier.old[name].shape) for name in unknown))
    return [derived.get(name) or unseen.entry(name, stored) for name, stored in carrier.entries.items()]


def _derived(carrier: Carrier, name: str) -> Entry:
    """Return an entry that is in the graph."""
    stored, match = carrier.entries[name], carrier.best(name)
    constants = [piece.constant for piece in match.pieces]
    try:
        later, growths = carrier.carried(name, match)
    except RefusedError as error:
        raise RefusedError(f"{name} cannot be derived from {constants[0]}: {error}") from error
    entry = Entry(name, match.relation, tuple(constants), stored, growths)
    if match.axes is not None:
        return entry

    def value() -> Array:
        whole = later.read(carrier.new)
        if whole.shape != entry.new:
            raise RefusedError(f"{name} would have the shape {list(whole.shape)}, where {list(entry.new)} was derived")
        return whole.astype(stored.dtype, copy=False)

    return replace(entry, carried=value)


def added(carrier: Carrier) -> Iterator[tuple[Entry, Match]]:
    """Yield the weights of layers that the teacher does not have, as the class of a layer has them."""
    old = {descendant.final for descendants in carrier.descendants.values() for descendant in descendants}
    for name, constant in carrier.new.items():
        if name not in old and constant.shape:
            stored, match = as_parameter(constant, constant.is_turned)
            yield Entry(name, "new", (), stored), match


def _refuse_unexplained(carrier: Carrier) -> None:
    """Refuse if constants grew that no entry is, and there are entries that are no constant."""
    known = carrier.explained()
    open_ = [name for name in carrier.old if name not in known]
    grown = [name for name in open_ if not (_is_computed_anew(carrier, name) or _is_part_again(carrier, name))]
    lost = [n for n, e in carrier.entries.items() if n not in carrier.matches and is_float(e.dtype) and e.shape]
    if grown:
        advice = f"; these may have to grow, and are not in the graph: {some(lost)}" if lost else ""
        raise RefusedError(
            f"these grew, and no entry of the state dict explains them: {some(grown)}{advice} (export with folding "
            "off: dynamo=True, optimize=False; grow with --for torch)"
        )


def _is_part_again(carrier: Carrier, name: str) -> bool:
    """Tell whether a constant has the values of a part of a cut entry once more, before and after."""
    for entry, found in carrier.matches.items():
        for match in found:
            for k, piece in enumerate(match.pieces if len(match.pieces) > 1 else ()):
                view = shown_again(carrier.old[name], Match("same", (piece,)).read(carrier.old))
                if view is not None:
                    part = Match("same", (carrier.carried(entry, match)[0].pieces[k],)).read(carrier.new)
                    mine = [
                        carrier.follow(Piece(name, view), descendant)[0] for descendant in carrier.descendants[name]
                    ]
                    return all(np.array_equal(Match("same", (one,)).read(carrier.new), part) for one in mine)
    return False


def _is_computed_anew(carrier: Carrier, name: str) -> bool:
    """Tell whether a class that makes a constant itself makes the student's: the same all along what grew.

    States that start at zeros are such, and masks of ones.
    """
    old = carrier.old[name]
    for descendant in carrier.descendants[name]:
        new = carrier.new[descendant.final]
        if not any(descendant.chain):
            continue
        if len(new.shape) != len(old.shape):
            return False
        one, other = _shrunk(new.read(), old.shape), _shrunk(old.read(), new.shape)
        if one is None or other is None or not np.array_equal(one, other):
            return False
    return True


def _shrunk(values: Array, other: tuple[int, ...]) -> Array | None:
    """Return what an array has along axes where another shape differs, None where it varies there."""
    for axis, size in enumerate(other):
        if values.shape[axis] != size:
            first = values.take([0], axis)
            if not np.array_equal(values, np.broadcast_to(first, values.shape)):
                return None
            values = first
    return values


# --- Ties ----------------------------------------------------------------------------------------------------


def untied(carrier: Carrier, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what entries that are tied, or that the graph uses several times, became different tensors."""
    first: dict[object, Entry] = {}
    for entry in entries:
        stored = carrier.entries[entry.name]
        key = (stored.shared, stored.shape) if stored.shared is not None else entry.is_matrix and entry.constants
        if not key:
            continue
        other = first.setdefault(key, entry)
        was_tied = other is not entry and np.array_equal(carrier.entries[other.name].read(), stored.read())
        if was_tied and not np.array_equal(other.value(), entry.value()):
            yield f"{other.name} and {entry.name}"
        for match in carrier.matches.get(entry.name, ()) if entry.is_matrix else ():
            if match.axes is None and len(match.pieces) == 1:
                yield from _unused(carrier, entry, match.pieces[0])


def _unused(carrier: Carrier, entry: Entry, piece: Piece) -> Iterator[str]:
    """Yield the descendants of an entry's constant that are no entry and differ from it."""
    for descendant in carrier.descendants[piece.constant]:
        if descendant.scopes and descendant.final not in carrier.used:
            later = Match("same", (carrier.follow(piece, descendant)[0],))
            if not np.array_equal(later.read(carrier.new), entry.value()):
                yield f"{entry.name} in {' and '.join(filter(None, descendant.scopes)) or descendant.final}"
