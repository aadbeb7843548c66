"""How a teacher may grow for a target: what is one tensor there, like embedding and head, has the same dims here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axis
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.ties import Ties, rescale_instead
from onnx_net2net.analysis.weighing import weighed_axes
from onnx_net2net.graph.graph import Place
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Parameter
from onnx_net2net.operations.transfer.networks import Network, Networks

Pair = tuple[Parameter, Parameter]
"""A parameter of the teacher and the one of the target that corresponds to it."""


def tie(networks: Networks, found: Alignment) -> tuple[Networks, dict[Place, Parameter], Ties]:
    """Let what is one tensor in the target have the same dims in the teacher, where it has the same values there.

    Units that one reader of a matrix makes and another one sums over would be copied for the one and shared for the
    other. The scale in front of the sum carries the division instead, as in `analysis.loadable`; where there is
    none they keep their size. Units that a mean without weights runs over are all copied equally often.

    Args:
        networks: The two networks.
        found: Which of their modules correspond.

    Returns:
        The two networks, where all that holds of the teacher's dims; for uses of tied constants of the target, whose
        values in the teacher they all get; and what else changes for them.
    """
    ties, tied = Ties(), [pairs for pairs in _tied(networks.target, found) if _are_equal(networks.teacher, pairs)]

    def hold(analysis: Analysis) -> None:
        weighed = weighed_axes(analysis)
        for pairs in tied:
            first, name = pairs[0][0], networks.target.original(pairs[0][1].use).name
            for old, _ in pairs[1:]:
                for axis, same in zip(first.axes(analysis), old.axes(analysis), strict=True):
                    dims.unify(axis, same, f"{name!r} is one tensor in the target")
            reason = f"is made and summed over by {name!r}"
            ties.rescaled |= _share_or_keep(analysis, [old for old, _ in pairs], weighed, reason)
            ties.tied |= {old.use: first.use for old, _ in pairs}
        for label, axis in averaged(analysis):
            dims.keep_uniform(axis, f"{label} takes a mean over it")

    shared = {new.use: pairs[0][0] for pairs in tied for _, new in pairs}
    return replace(networks, teacher=Network(networks.teacher.model, hold)), shared, ties


def averaged(analysis: Analysis) -> Iterator[tuple[str, Axis]]:
    """Yield the axes that a mean without weights runs over, each with the node that takes it."""
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            if contraction.law == "mean" and len(contraction.sides) == 1 and not analysis.is_derived(number, 0):
                yield f"{analysis.nodes[number].op} {analysis.nodes[number].name!r}", contraction.axis


def _are_equal(teacher: Network, pairs: Sequence[Pair]) -> bool:
    """Tell whether parameters have the same values; a network that ties nothing can be exact without its class."""
    reads = [teacher.reader(old) for old, _ in pairs]
    values = [read() for read in reads if read is not None]
    return len(values) == len(pairs) and all(np.array_equal(values[0], other) for other in values[1:])


def _share_or_keep(
    analysis: Analysis, parameters: Sequence[Parameter], weighed: dict[Place, dict[int, int]], reason: str
) -> dict[int, list[Place]]:
    """Let a scale carry the division of copies that some readers of tied values sum over, or keep their number."""
    rescaled: dict[int, list[Place]] = {}
    for place, axis in enumerate(parameters[0].axes(analysis)):
        found = [weighed.get(one.use, {}).get(one.order[place + one.repeats]) for one in parameters]
        sums = [number for number in found if number is not None]
        if 0 < len(sums) < len(parameters):
            scaled = rescale_instead(analysis, sums, axis, reason)
            rescaled |= scaled or {}
            if scaled is None:
                dims.freeze(axis, reason)
    return rescaled


def _tied(target: Network, found: Alignment) -> Iterator[list[Pair]]:
    """Yield the parameters that share a tensor of the target, or have the same values: folding parts what is tied."""
    by_constant: dict[int, list[Pair]] = {}
    for old, new in found.parameters:
        by_constant.setdefault(id(target.original(new.use)), []).append((old, new))
    alike: dict[object, list[list[Pair]]] = {}
    for pairs in by_constant.values():
        shape = target.shape(pairs[0][1])
        if sum(size > 1 for size in shape) > 1:
            alike.setdefault(shape, []).append(pairs)
        elif len(pairs) > 1:
            yield pairs
    for same_shape in alike.values():
        yield from _equal(target, same_shape)


def _equal(target: Network, candidates: Sequence[list[Pair]]) -> Iterator[list[Pair]]:
    """Yield groups of matrices with equal values, which are those of a random initialization."""
    groups: dict[bytes, list[Pair]] = {}
    for pairs in candidates:
        read = target.reader(pairs[0][1])
        assert read is not None  # nothing of the target has been changed
        groups.setdefault(read()[:1].tobytes(), []).extend(pairs)  # no two rows that are drawn are equal
    yield from (pairs for pairs in groups.values() if len(pairs) > 1)
