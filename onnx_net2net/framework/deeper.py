"""The state dict of a class made with more layers: copies of blocks get the class's numbers, and what follows moves on.

A class keeps repeated blocks under numbers (`layers.0`, `layer3.4`, `encoder_layer_1`), in the order in which they run.
A copy behind a block gets the next number, and all that come after it get later ones, also what is no block: in a
Sequential one more module moves all behind it. All entries of a block are copied, those that are not in the graph as
they are; what ends the branches of the copy is zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.derivation import Entry, nearness
from onnx_net2net.framework.files import Stored
from onnx_net2net.framework.match import Constant, Match, Matches
from onnx_net2net.operations.deepen.repeat import CopiedConstant, Copy

_ADVICE = "fill a deeper class by transfer"


@dataclass
class Deeper:
    """A state dict after blocks were repeated.

    Attributes:
        entries: What it holds, under the names of the deeper class, in its order.
        matches: The constants of the deeper graph that these are.
        origins: The entry that each was or is a copy of, and whether it is a copy.
    """

    entries: dict[str, Stored] = field(default_factory=dict)
    matches: Matches = field(default_factory=dict)
    origins: dict[str, tuple[Entry, bool]] = field(default_factory=dict)

    def add(self, name: str, entry: Entry, stored: Stored, matches: list[Match], is_copy: bool = False) -> None:
        """Add an entry, which is one of the shallower class under its new name, or a copy of it."""
        self.entries[name] = stored
        self.origins[name] = entry, is_copy
        if matches:
            self.matches[name] = matches


def deepened(
    entries: Sequence[Entry], stored: Mapping[str, Stored], matches: Matches, copies: Sequence[Copy],
    constants: Mapping[str, Constant],
) -> Deeper:  # fmt: skip
    """Repeat blocks in a state dict as they were repeated in a graph.

    Args:
        entries: The state dict.
        stored: The same as tensors, by name.
        matches: The constants of the graph that each entry may be, the best first.
        copies: The copies of blocks, in the order in which they were put in.
        constants: The constants of the graph in front of the step.

    Raises:
        RefusedError: If a copy has no number in a class, or what is copied is no whole module.
    """
    homes = {copy.block: _home(copy.block, copy.constants, matches, constants) for copy in copies}
    lists = _Lists(entry.name for entry in entries)
    behind: dict[str, list[Copy]] = {}
    for copy in copies:
        own = _NUMBERED.match(copy.behind)
        if own is None or "#" in copy.behind:
            raise RefusedError(f"{copy.behind} has no number in the class, so that none follows it; {_ADVICE}")
        home = f"{_parted(homes[copy.block])[0]}{own[2]}"
        behind.setdefault(home, []).append(copy)
        lists.insert(home, copy)
    ends = {home: max(k for k, e in enumerate(entries) if e.name.startswith(f"{home}.")) for home in behind}
    deeper = Deeper()
    for place, entry in enumerate(entries):
        deeper.add(lists.renamed(entry.name), entry, stored[entry.name], matches.get(entry.name, [])[:1])
        for home in (home for home, end in ends.items() if end == place):
            for number, copy in enumerate(behind[home], 1):
                original, module = f"{homes[copy.block]}.", f"{lists.renamed(home, number)}."
                own_entries = [entry for entry in entries if entry.name.startswith(original)]
                copied = _copied(copy, own_entries, stored, matches, constants)
                for (tensor, found), old in zip(copied, own_entries, strict=True):
                    deeper.add(module + old.name[len(original) :], old, tensor, found, is_copy=True)
    return deeper


# --- Numbers -------------------------------------------------------------------------------------------------


_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def _parted(home: str) -> tuple[str, int]:
    """Return what is in front of the number that the path of a module ends in, and the number."""
    found = _NUMBERED.match(home)
    assert found is not None
    return found[1], int(found[2])


class _Lists:
    """The numbered modules of a state dict, by what is in front of their numbers, and the copies behind each."""

    def __init__(self, names: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        self._copies: dict[str, dict[int, int]] = {}
        for name in names:
            path = name.split(".")
            for depth, step in enumerate(path[:-1], 1):
                if step[-1:].isdigit():
                    before, number = _parted(".".join(path[:depth]))
                    self._last[before] = max(number, self._last.get(before, 0))

    def insert(self, home: str, copy: Copy) -> None:
        """Put a copy behind a numbered module and its earlier copies."""
        before, number = _parted(home)
        if before not in self._last:
            raise RefusedError(f"{copy.behind} has no number in the state dict; {_ADVICE}")
        if number < self._last[before] and not copy.alike:
            raise RefusedError(
                f"blocks of {before.rstrip('.') or 'the model'} differ in what they compute, and a class may tell them "
                f"apart by their numbers, which a copy of {copy.block} changes (deepen with --append)"
            )
        own = self._copies.setdefault(before, {})
        own[number] = own.get(number, 0) + 1

    def renamed(self, name: str, copy: int = 0) -> str:
        """Return what an entry or a module is called in the deeper class, or which copy of a module behind it."""
        path = name.split(".")
        new = list(path)
        for depth, step in enumerate(path, 1):
            if step[-1:].isdigit():
                before, number = _parted(".".join(path[:depth]))
                more = sum(count for place, count in self._copies.get(before, {}).items() if place < number)
                more += copy if depth == len(path) else 0
                new[depth - 1] = f"{_parted(step)[0]}{number + more}" if more else step
        return ".".join(new)


def _home(block: str, copied: Sequence[CopiedConstant], matches: Matches, constants: Mapping[str, Constant]) -> str:
    """Return the numbered module of the state dict that a block of the graph is."""
    olds = {constant.old for constant in copied}
    paths = [
        name.split(".")[:-1]
        for name, found in matches.items()
        if any(p.constant in olds and _is_matrix(constants[p.constant]) for p in found[0].pieces)
    ]
    common = paths[0] if paths else []
    for path in paths:
        same = [own == other for own, other in zip(common, path, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    homes = [".".join(common[:end]) for end in range(len(common), 0, -1) if common[end - 1][-1:].isdigit()]
    named = [home for home in homes if f".{block}".endswith(f".{home}") or f".{home}".endswith(f".{block}")]
    if not homes:
        raise RefusedError(f"copies of {block} have no number in a class, which has one such block; {_ADVICE}")
    return (named or homes)[0]


def _is_matrix(constant: Constant) -> bool:
    return sum(size > 1 for size in constant.shape) > 1


# --- Copies --------------------------------------------------------------------------------------------------


def _copied(
    copy: Copy, entries: Sequence[Entry], stored: Mapping[str, Stored], matches: Matches,
    constants: Mapping[str, Constant],
) -> list[tuple[Stored, list[Match]]]:  # fmt: skip
    """Return the copies of a block's entries, as tensors and with the constants that they are.

    Raises:
        RefusedError: If the block is not all of them, or ends in weights that no entry is.
    """
    zeroed = {constant.new for constant in copy.constants if constant.zeroed}
    left = set(zeroed)
    result: list[tuple[Stored, list[Match]]] = []
    for entry in entries:
        options = matches.get(entry.name, [])
        found = next((one for match in options if (one := _of_copy(entry.name, match, copy, constants))), None)
        if options and found is None:
            raise RefusedError(f"{copy.block} was copied without {entry.name}, which a class has in it; {_ADVICE}")
        tensor = replace(stored[entry.name], shared=None)
        if found is not None and found.axes is not None and found.pieces[0].constant in zeroed:
            if found.scales and not entry.name.endswith("running_var"):
                left -= {piece.constant for piece in found.pieces}
            if len(entry.new) == 1 and not entry.name.endswith(("running_mean", "running_var")):
                tensor = replace(tensor, read=_zeros(tensor))
        elif found is not None:
            left -= {piece.constant for piece in found.pieces}
        result.append((tensor, [found] if found else []))
    if left:
        raise RefusedError(f"{copy.block} ends in {sorted(left)[0]}, which no entry of the state dict is; {_ADVICE}")
    return result


def _zeros(tensor: Stored) -> Callable[[], Array]:
    return lambda: np.zeros(tensor.shape, tensor.dtype)


def _of_copy(entry: str, match: Match, copy: Copy, constants: Mapping[str, Constant]) -> Match | None:
    """Return what an entry's copy is in the graph; None where the block does not have all that the entry is."""
    pieces = []
    for piece in match.pieces:
        own = [constant for constant in copy.constants if constant.old == piece.constant]
        if own:
            best = max(own, key=lambda constant: nearness(entry, constant.scope))
            pieces.append(replace(piece, constant=best.new))
        elif np.prod(constants[piece.constant].shape) > 1:
            return None
        else:  # one number, which the copy shares
            pieces.append(piece)
    return replace(match, pieces=tuple(pieces))
