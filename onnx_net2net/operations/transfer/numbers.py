"""Single numbers that belong to no layer, such as gains and temperatures: which of two networks correspond.

Shapes do not tell, so the nodes around matched modules are matched too: those that read the same result, or make the
same operand, by the same operator. A number that differs there was learnt, or a class computes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from onnx_net2net.analysis.inference import constant_of
from onnx_net2net.graph.graph import Constant
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Use
from onnx_net2net.operations.transfer.networks import Network, Networks

_POWERS = (-0.5, -0.25, -1.0, 0.5)
_LARGEST = 20_000
"""Classes compute numbers of no larger sizes; each float is near a whole number in the range beyond."""


@dataclass(frozen=True)
class Number:
    """A single number that the two networks do not have in common.

    Attributes:
        use: The input of the target's node that it is.
        old: The teacher's value.
        new: The target's.
        teacher: The teacher's tensor.
        is_stored: Whether the target stores it as it stores parameters, and has not written it into the graph.
    """

    use: Use
    old: float
    new: float
    teacher: str
    is_stored: bool


def different_numbers(
    networks: Networks, found: Alignment, partner: Mapping[int, int], weighed: Collection[int]
) -> Iterator[Number]:
    """Yield the inputs of corresponding nodes that are single numbers, and not the same.

    Those that follow from sizes on both sides, like the scale of attention, are left out: growing sees to them.

    Args:
        networks: The two networks, of which the teacher may have been grown.
        found: Which of their modules correspond.
        partner: Which of their nodes do; see `corresponding_nodes`.
        weighed: Nodes of the teacher whose numbers have been made up for.
    """
    taken = [{use for module in modules for use in module.uses} for modules in zip(*found.pairs, strict=True)]
    for old, new in sorted(partner.items()):
        if old in weighed:
            continue
        for index in range(min(len(networks.teacher.nodes[old].inputs), len(networks.target.nodes[new].inputs))):
            one, other = number_of(networks.teacher, (old, index)), number_of(networks.target, (new, index))
            if one is None or other is None or (old, index) in taken[0] or (new, index) in taken[1]:
                continue
            if not math.isclose(one, other, rel_tol=1e-6) and not are_sizes(one, other):
                name, tensor = networks.teacher.nodes[old].inputs[index].name, networks.target.nodes[new].inputs[index]
                yield Number((new, index), one, other, name, isinstance(tensor, Constant))


def corresponding_nodes(networks: Networks, found: Alignment) -> dict[int, int]:
    """Return the teacher's nodes that correspond to nodes of the target, as far as modules tell."""
    partner: dict[int, int] = {}
    for old, new in found.pairs:
        partner.setdefault(old.node, new.node)
        for what in [what for what in old.parameters if what in new.parameters]:
            partner.setdefault(old.parameters[what].use[0], new.parameters[what].use[0])
    taken, pending = set(partner.values()), list(partner.items())
    while pending:
        pair = pending.pop()
        near = [
            neighbours(network, number)
            for network, number in zip((networks.teacher, networks.target), pair, strict=True)
        ]
        for key in [key for key in near[0] if key in near[1]]:
            olds, news = {one for one in near[0][key] if one not in partner}, near[1][key] - taken
            if len(olds) == len(news) == 1:
                (one,), (other,) = olds, news
                partner[one] = other
                taken.add(other)
                pending.append((one, other))
    return partner


def neighbours(network: Network, number: int) -> dict[tuple[object, ...], set[int]]:
    """Return the nodes that read results of a node and that make its operands, by where and what they are."""
    numbers, node = network.numbers, network.nodes[number]
    found: dict[tuple[object, ...], set[int]] = {}
    for index, tensor in enumerate(node.outputs):
        for reader in tensor.outputs:
            if id(reader) in numbers:
                key = "reader", index, reader.op, [t is tensor for t in reader.inputs].index(True)
                found.setdefault(key, set()).add(numbers[id(reader)])
    for index, tensor in enumerate(node.inputs):
        for maker in tensor.inputs:
            if id(maker) in numbers:
                found.setdefault(("maker", index, maker.op), set()).add(numbers[id(maker)])
    return found


def number_of(network: Network, use: Use) -> float | None:
    """Return the one float that an input of a node is now, None if it is anything else."""
    constant = constant_of(network.nodes[use[0]].inputs[use[1]])
    if constant is None or math.prod(constant.shape) != 1 or not network.is_float(constant):
        return None
    return float(network.analysis.draft.reader(constant)().reshape(-1)[0])


def are_sizes(one: float, other: float) -> bool:
    """Tell whether two numbers are the same power of two whole numbers, as a class computes them of its sizes."""
    for power in _POWERS:
        if min(one, other) > 0:
            sizes = [value ** (1 / power) for value in (one, other)]
            if all(1.5 < size < _LARGEST and math.isclose(size, round(size), rel_tol=3e-7) for size in sizes):
                return True
    return False
