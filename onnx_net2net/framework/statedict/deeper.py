"""The state dict of a class made with more layers: copies of blocks get the class's numbers, and what follows moves on.

A class keeps repeated blocks under numbers (`layers.0`, `layer3.4`, `encoder_layer_1`), in the order in which they run.
A copy behind a block gets the next number, and all that come after it get later ones, also what is no block: in a
Sequential one more module moves all behind it. All entries of a block are copied, those that are not in the graph as
they are; what ends the branches of the copy is zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import numpy as np

from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.statedict.carry import nearness
from onnx_net2net.framework.statedict.entries import Entry, is_matrix
from onnx_net2net.framework.statedict.match import Match, StoredConstant
from onnx_net2net.operations.deepen.repeat import Copy

_ADVICE = "fill a deeper class by transfer"


@dataclass(frozen=True)
class Placed:
    """An entry in its place in a state dict."""

    entry: Entry  # the entry, or that which it is a copy of
    tensor: Stored  # its values
    matches: list[Match]  # the constants of the graph that it may be, the best first
    is_copy: bool = False  # whether it is a copy


def deepened(
    entries: Sequence[Placed], copies: Sequence[Copy], constants: Mapping[str, StoredConstant]
) -> dict[str, Placed]:
    """Repeat blocks in a state dict as they were repeated in a graph.

    Args:
        entries: The state dict.
        copies: The copies of blocks, in the order in which they were put in.
        constants: The constants of the graph in front of the step.

    Returns:
        The entries under the names of the deeper class, in its order, with the constants of the deeper graph.

    Raises:
        RefusedError: If a copy has no number in a class, or what is copied is no whole module.
    """
    homes = {copy.block: _home(copy, entries, constants) for copy in copies}
    lists = _Lists(placed.entry.name for placed in entries)
    behind: dict[str, list[Copy]] = {}
    for copy in copies:
        own = _NUMBERED.match(copy.behind)
        if own is None or "#" in copy.behind:
            raise RefusedError(f"{copy.behind} has no number in the class, so that no copy can follow it; {_ADVICE}")
        home = f"{parted(homes[copy.block])[0]}{own[2]}"
        behind.setdefault(home, []).append(copy)
        lists.insert(home, copy)
    ends = {home: max(k for k, p in enumerate(entries) if p.entry.name.startswith(f"{home}.")) for home in behind}
    deeper: dict[str, Placed] = {}
    for place, placed in enumerate(entries):
        deeper[lists.renamed(placed.entry.name)] = replace(placed, matches=placed.matches[:1])
        for home in (home for home, end in ends.items() if end == place):
            for number, copy in enumerate(behind[home], 1):
                original, module = f"{homes[copy.block]}.", f"{lists.renamed(home, number)}."
                own_entries = [placed for placed in entries if placed.entry.name.startswith(original)]
                for copied in _copied(copy, own_entries, constants):
                    deeper[module + copied.entry.name[len(original) :]] = copied
    return deeper


# --- Numbers -------------------------------------------------------------------------------------------------


_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def parted(home: str) -> tuple[str, int]:
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
                    before, number = parted(".".join(path[:depth]))
                    self._last[before] = max(number, self._last.get(before, 0))

    def insert(self, home: str, copy: Copy) -> None:
        """Put a copy behind a numbered module and its earlier copies."""
        before, number = parted(home)
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
                before, number = parted(".".join(path[:depth]))
                more = sum(count for place, count in self._copies.get(before, {}).items() if place < number)
                more += copy if depth == len(path) else 0
                new[depth - 1] = f"{parted(step)[0]}{number + more}" if more else step
        return ".".join(new)


def _home(copy: Copy, entries: Sequence[Placed], constants: Mapping[str, StoredConstant]) -> str:
    """Return the numbered module of the state dict that the original of a copy is."""
    block, olds = copy.block, {constant.old for constant in copy.constants}
    paths = [
        placed.entry.name.split(".")[:-1]
        for placed in entries
        for piece in (placed.matches[0].pieces if placed.matches else ())
        if piece.constant in olds and is_matrix(constants[piece.constant].shape)
    ]
    common = [steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))]
    homes = [".".join(common[:end]) for end in range(len(common), 0, -1) if common[end - 1][-1:].isdigit()]
    named = [home for home in homes if f".{block}".endswith(f".{home}") or f".{home}".endswith(f".{block}")]
    if not homes:
        raise RefusedError(f"a class has one block {block} without a number, and no place for copies; {_ADVICE}")
    return (named or homes)[0]


# --- Copies --------------------------------------------------------------------------------------------------


def _copied(copy: Copy, entries: Sequence[Placed], constants: Mapping[str, StoredConstant]) -> list[Placed]:
    """Return the copies of a block's entries, with the constants that they are.

    Raises:
        RefusedError: If the block is not all of them, or ends in weights that no entry is.
    """
    zeroed = {constant.new for constant in copy.constants if constant.zeroed}
    left = set(zeroed)
    result: list[Placed] = []
    for placed in entries:
        name, tensor = placed.entry.name, replace(placed.tensor, shared=None)
        found = next((one for match in placed.matches if (one := _of_copy(name, match, copy, constants))), None)
        if placed.matches and found is None:
            raise RefusedError(f"a class has {name} in each block, and the copy of {copy.block} lacks it; {_ADVICE}")
        if found is not None and found.axes is not None and found.pieces[0].constant in zeroed:
            if found.scales and not name.endswith("running_var"):
                left -= {piece.constant for piece in found.pieces}
            if len(tensor.shape) == 1 and not name.endswith(("running_mean", "running_var")):
                tensor = replace(tensor, read=partial(np.zeros, tensor.shape, tensor.dtype), elements=None)
        elif found is not None:
            left -= {piece.constant for piece in found.pieces}
        result.append(Placed(placed.entry, tensor, [found] if found else [], is_copy=True))
    if left:
        raise RefusedError(f"{copy.block} ends in {sorted(left)[0]}, which is no entry of the state dict; {_ADVICE}")
    return result


def _of_copy(entry: str, match: Match, copy: Copy, constants: Mapping[str, StoredConstant]) -> Match | None:
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
