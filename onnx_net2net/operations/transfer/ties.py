"""Weights that a target has tied: what is one tensor there, like the embedding and the head, grows as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra import dims
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.loadable import rescale_instead, weighed_axes
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Slot, Use
from onnx_net2net.operations.transfer.networks import Side, Sides


@dataclass(frozen=True)
class _Pair:
    """A parameter of the teacher and the one of the target that corresponds to it."""

    old: Slot
    new: Slot


def tie(sides: Sides, found: Alignment) -> dict[Use, Slot]:
    """Let what is one tensor in the target have the same dims in the teacher, where it has the same values there.

    Units that one reader of a matrix makes and another one sums over would be copied for the one and shared for the
    other. The scale in front of the sum carries the division instead, as in `analysis.loadable`; where there is
    none they keep their size.

    Args:
        sides: The two networks; the dims of the teacher are changed.
        found: Which of their units correspond.

    Returns:
        For uses of tied constants of the target, whose values in the teacher they all get.
    """
    analysis = sides.teacher.analysis
    weighed = weighed_axes(analysis)
    shared: dict[Use, Slot] = {}
    for pairs in _tied(sides.target, found):
        reads = [sides.teacher.reader(pair.old) for pair in pairs]
        values = [read() for read in reads if read is not None]
        if len(values) < len(pairs) or any(not np.array_equal(values[0], other) for other in values[1:]):
            continue  # a network that ties nothing can be exact, too; only its class cannot hold it
        first, name = pairs[0].old, _name(sides.target, pairs[0].new)
        for pair in pairs[1:]:
            for axis, same in zip(first.axes(analysis), pair.old.axes(analysis), strict=True):
                dims.unify(axis, same, f"{name!r} is one tensor in the target")
        _share_or_keep(analysis, [pair.old for pair in pairs], weighed, f"is made and summed over by {name!r}")
        shared |= {pair.new.use: first for pair in pairs}
        analysis.tied |= {pair.old.use: first.use for pair in pairs}
    return shared


def _share_or_keep(analysis: Analysis, slots: Sequence[Slot], weighed: dict[Use, dict[int, int]], reason: str) -> None:
    """Let a scale carry the division of copies that some readers of tied values sum over, or keep their number."""
    for place, axis in enumerate(slots[0].axes(analysis)):
        found = [weighed.get(slot.use, {}).get(slot.order[place + slot.repeats]) for slot in slots]
        sums = [number for number in found if number is not None]
        if 0 < len(sums) < len(slots) and not rescale_instead(analysis, sums, axis, reason):
            dims.freeze(axis, reason)


def _tied(target: Side, found: Alignment) -> Iterator[list[_Pair]]:
    """Yield the parameters that share a tensor of the target, or have the same values: folding parts what is tied."""
    by_constant: dict[int, list[_Pair]] = {}
    for old, new in found.pairs:
        for what, slot in new.slots.items():
            if what in old.slots:
                constant = target.analysis.uses[slot.use].constant
                by_constant.setdefault(id(constant), []).append(_Pair(old.slots[what], slot))
    alike: dict[object, list[list[_Pair]]] = {}
    for pairs in by_constant.values():
        shape = target.shape(pairs[0].new)
        if sum(size > 1 for size in shape) > 1:
            alike.setdefault(shape, []).append(pairs)
        elif len(pairs) > 1:
            yield pairs
    for same_shape in alike.values():
        yield from _equal(target, same_shape)


def _equal(target: Side, candidates: Sequence[list[_Pair]]) -> Iterator[list[_Pair]]:
    """Yield groups of matrices with equal values, which are those of a random initialization."""
    groups: dict[bytes, list[_Pair]] = {}
    for pairs in candidates:
        read = target.reader(pairs[0].new)
        assert read is not None  # nothing of the target has been changed
        groups.setdefault(read()[:1].tobytes(), []).extend(pairs)  # no two rows that are drawn are equal
    yield from (pairs for pairs in groups.values() if len(pairs) > 1)


def _name(side: Side, slot: Slot) -> str:
    return str(side.analysis.uses[slot.use].constant.name)
