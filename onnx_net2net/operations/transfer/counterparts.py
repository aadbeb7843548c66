"""Nodes of two networks that correspond, and the numbers, tables and attributes in which they differ.

Shapes say nothing of what belongs to no module: gains, masks, indices. So the nodes around matched modules are matched
too: those that read the same result, or make the same operand, by the same operator. Where a node of the target does
what one of the teacher's does, its numbers and tables become the teacher's. Other differences (attributes, literals,
operators on one side only) may come from the exporters alone; they are named where a student turns out not to compute
what its teacher does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_net2net.algebra.floats import Compute
from onnx_net2net.graph.graph import Constant, Place, dtype_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.convert import attributes
from onnx_net2net.operations.transfer.networks import Network, Networks, Obstacle
from onnx_net2net.rules import traits

_POWERS = (-0.5, -0.25, -1.0, 0.5)
_LARGEST = 20_000
"""Classes compute numbers of no larger sizes; each float is near a whole number in the range beyond."""

_DATA = dict.fromkeys((*traits.BROADCASTING, "Cast", "Not"), range(99)) | dict.fromkeys(
    traits.PICKS | traits.SCATTERS, range(2)
)
"""Inputs of operators that are data, be they integers, and no sizes or axes."""

_MOVES = traits.VIEWS | traits.RENAMES | traits.CONSTANTS | {"Cast", "Shape"}
"""Operators that exporters put in and leave out as they like."""


@dataclass(frozen=True)
class Table:
    """A constant that is no parameter of a module, and that has other values in the teacher.

    Attributes:
        use: The input of the target's node that it is.
        read: Reads the teacher's values, at the target's size.
        teacher: The teacher's tensor.
        is_number: Whether it is a single float.
        literal: Why the target's class may not hold the values, "" if it may: it stores them as it stores parameters.
    """

    use: Place
    read: Compute
    teacher: str
    is_number: bool = False
    literal: str = ""


class Counterparts:
    """The nodes of a teacher and a target that correspond, as far as modules tell.

    Args:
        networks: The two networks.
        found: Which of their modules correspond.

    Attributes:
        partner: The teacher's nodes, with those of the target.
    """

    def __init__(self, networks: Networks, found: Alignment) -> None:
        self._networks, self._found = networks, found
        self.partner: dict[int, int] = {}
        for old, new in found.pairs:
            self.partner.setdefault(old.node, new.node)
            for what in [what for what in old.parameters if what in new.parameters]:
                self.partner.setdefault(old.parameters[what].use[0], new.parameters[what].use[0])
        self._spread()

    def _spread(self) -> None:
        """Match the nodes around matched ones, where only one of either network is in such a place."""
        partner, taken = self.partner, set(self.partner.values())
        pending = list(partner.items())
        while pending:
            pair = pending.pop()
            near = [neighbours(network, number) for network, number in zip(self._networks, pair, strict=True)]
            for key in [key for key in near[0] if key in near[1]]:
                olds, news = {one for one in near[0][key] if one not in partner}, near[1][key] - taken
                if len(olds) == len(news) == 1:
                    (one,), (other,) = olds, news
                    partner[one] = other
                    taken.add(other)
                    pending.append((one, other))

    def _inputs(self) -> Iterator[tuple[Place, Place]]:
        """Yield the inputs of corresponding nodes."""
        for old, new in sorted(self.partner.items()):
            count = min(len(self._networks.teacher.nodes[old].inputs), len(self._networks.target.nodes[new].inputs))
            yield from (((old, index), (new, index)) for index in range(count))

    def numbers(self, weighed: Collection[int]) -> Iterator[Table]:
        """Yield the single floats that are not the same.

        Those that follow from sizes on both sides, like the scale of attention, are left out: growing sees to them.

        Args:
            weighed: Nodes of the teacher whose numbers the layers around them already compensate.
        """
        teacher, target = self._networks
        taken = [{use for module in modules for use in module.uses} for modules in zip(*self._found.pairs, strict=True)]
        for old, new in self._inputs():
            one, other = input_number(teacher, old), input_number(target, new)
            if one is None or other is None or old[0] in weighed or old in taken[0] or new in taken[1]:
                continue
            if not math.isclose(one, other, rel_tol=1e-6) and not are_sizes(one, other):
                node = target.nodes[new[0]]
                reason = f"a number of this {node.op} is {one:.6g} in the teacher and {other:.6g} in the target"
                literal = "" if isinstance(node.inputs[new[1]], Constant) else reason
                yield Table(new, partial(np.asarray, one), teacher.nodes[old[0]].inputs[old[1]].name, True, literal)

    def tables(self) -> Iterator[Table]:
        """Yield the masks, indices and other integers of the target that have to become the grown teacher's."""
        teacher, target = self._networks
        for old, new in self._inputs():
            one, other = _table(teacher, old), _table(target, new)
            if one is None or other is None or tuple(one.shape) != tuple(other.shape):
                continue
            read = teacher.analysis.graph.reader(one)
            if dtype_of(one) == dtype_of(other) and not np.array_equal(read(), target.analysis.graph.reader(other)()):
                yield Table(new, read, str(teacher.nodes[old[0]].inputs[old[1]].name))

    def differences(self) -> Iterator[Obstacle]:
        """Yield what nodes of the grown teacher and the filled target do differently, which may make no difference."""
        networks = self._networks
        teacher, target = networks
        known = set(self.partner), set(self.partner.values())
        for old, new in sorted(self.partner.items(), key=lambda pair: pair[1]):
            one, other = teacher.nodes[old], target.nodes[new]
            place = str(one.outputs[0].name)  # as a comparison calls it
            for name, before, after in attributes(networks, one, other):
                yield Obstacle(place, f"{name} is {before} in the teacher and {after} in the target")
            for index in range(min(len(one.inputs), len(other.inputs)) if one.op not in _MOVES else 0):
                texts = _text(teacher, (old, index)), _text(target, (new, index))
                if None not in texts and texts[0] != texts[1]:
                    yield Obstacle(place, f"input {index} is {texts[0]} in the teacher and {texts[1]} in the target")
            near = neighbours(teacher, old), neighbours(target, new)
            for key in sorted({*near[0], *near[1]}, key=str):
                left = [len(found.get(key, set()) - reached) for found, reached in zip(near, known, strict=True)]
                if left[0] != left[1] and key[2] not in _MOVES:
                    where = "behind" if key[0] == "reader" else "in front of"
                    yield Obstacle(place, f"{where} it the teacher has {left[0]} {key[2]} that nothing corresponds to, "
                                          f"the target {left[1]}")  # fmt: skip


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


def input_number(network: Network, use: Place) -> float | None:
    """Return the one float that an input of a node is now, None if it is anything else."""
    constant = constant_of(network.nodes[use[0]].inputs[use[1]])
    if constant is None or math.prod(constant.shape) != 1 or not network.is_float(constant):
        return None
    return float(network.analysis.graph.read(constant).reshape(-1)[0])


def are_sizes(one: float, other: float) -> bool:
    """Tell whether two numbers are the same power of two whole numbers, as a class computes them of its sizes."""
    for power in _POWERS:
        if min(one, other) > 0:
            sizes = [value ** (1 / power) for value in (one, other)]
            if all(1.5 < size < _LARGEST and math.isclose(size, round(size), rel_tol=3e-7) for size in sizes):
                return True
    return False


def _table(network: Network, use: Place) -> Constant | None:
    """Return the constant that an input of a node is, if it is data and neither floats, nor sizes, nor a literal."""
    node = network.nodes[use[0]]
    constant = constant_of(node.inputs[use[1]])
    if constant is None or network.is_float(constant):
        return None
    is_literal = math.prod(constant.shape) == 1 and not isinstance(node.inputs[use[1]], Constant)
    known = [network.analysis.sizes.values.get(tensor.name) for tensor in node.outputs]
    is_size = any(values is not None and values.dtype.kind == "i" for values in known)
    return constant if use[1] in _DATA.get(node.op, ()) and not is_literal and not is_size else None


def _text(network: Network, use: Place) -> str | None:
    """Return the text of a single number or of constant integers, None for anything else."""
    value = input_number(network, use)
    if value is not None:
        return f"{value:.6g}"
    constant = constant_of(network.nodes[use[0]].inputs[use[1]])
    if constant is None or network.is_float(constant):
        return None
    values = np.asarray(network.analysis.graph.read(constant))
    digest = zlib.crc32(np.ascontiguousarray(values).tobytes())
    return str(values.tolist()) if values.size < 9 else f"{values.dtype} {list(values.shape)} (checksum {digest:08x})"
