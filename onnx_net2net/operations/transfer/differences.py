"""What corresponding nodes of two networks do differently, besides the parameters of modules.

Masks, indices and other constants that are no floats belong to no module. Where a node of the target does what one of
the teacher's does, the target gets the teacher's. Other differences (attributes, places, operators in one network only)
may come from the exporters alone; they are named where a student turns out not to compute what its teacher does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_net2net.analysis.inference import constant_of
from onnx_net2net.graph.graph import Constant
from onnx_net2net.operations.transfer.convert import attributes
from onnx_net2net.operations.transfer.modules import Use
from onnx_net2net.operations.transfer.networks import Compute, Network, Networks, Obstacle
from onnx_net2net.operations.transfer.numbers import neighbours, number_of
from onnx_net2net.rules import traits

_DATA = dict.fromkeys((*traits.BROADCASTING, "Cast", "Not"), range(99)) | dict.fromkeys(
    ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"), range(2)
)
"""Inputs of operators that are data, be they integers, and no sizes or axes."""

_MOVES = traits.REFOLDS | {"Transpose", "Identity", "Cast", "Expand", "Shape", "Constant"}
"""Operators that exporters put in and leave out as they like."""


@dataclass(frozen=True)
class Table:
    """A constant that is no parameter of a module, and of which the target has other values.

    Attributes:
        use: The input of the target's node that it is.
        read: What reads the values that the teacher has, at the target's size.
        teacher: The teacher's tensor.
    """

    use: Use
    read: Compute
    teacher: str


def different_tables(networks: Networks, partner: Mapping[int, int]) -> Iterator[Table]:
    """Yield the masks, indices and other integers of the target that have to become the teacher's.

    Args:
        networks: The two networks, of which the teacher has been grown.
        partner: The teacher's nodes with those of the target that correspond to them.
    """
    for old, new in sorted(partner.items()):
        for index in range(min(len(networks.teacher.nodes[old].inputs), len(networks.target.nodes[new].inputs))):
            one, other = _table(networks.teacher, (old, index)), _table(networks.target, (new, index))
            if one is None or other is None or tuple(one.shape) != tuple(other.shape):
                continue
            types = networks.teacher.dtype(one), networks.target.dtype(other)
            read = networks.teacher.analysis.draft.reader(one)
            is_same = types[0] == types[1] and np.array_equal(read(), networks.target.analysis.draft.reader(other)())
            if types[0] == types[1] and not is_same:
                yield Table((new, index), read, str(networks.teacher.nodes[old].inputs[index].name))


def _table(network: Network, use: Use) -> Constant | None:
    """Return the constant that an input of a node is, if it is data and neither floats, nor sizes, nor a literal."""
    node = network.nodes[use[0]]
    constant = constant_of(node.inputs[use[1]])
    if constant is None or network.is_float(constant):
        return None
    is_literal = math.prod(constant.shape) == 1 and not isinstance(node.inputs[use[1]], Constant)
    known = [network.analysis.sizes.values.get(tensor.name) for tensor in node.outputs]
    is_size = any(values is not None and values.dtype.kind == "i" for values in known)
    return constant if use[1] in _DATA.get(node.op, ()) and not is_literal and not is_size else None


def differences(networks: Networks, partner: Mapping[int, int]) -> Iterator[Obstacle]:
    """Yield what corresponding nodes do differently, which may or may not make a difference.

    Args:
        networks: The two networks, the teacher grown and the target filled.
        partner: As in `different_tables`.
    """
    known = set(partner), set(partner.values())
    for old, new in sorted(partner.items(), key=lambda pair: pair[1]):
        one, other = networks.teacher.nodes[old], networks.target.nodes[new]
        place = str(one.outputs[0].name)  # as a comparison calls it
        for name, before, after in attributes(networks, one, other):
            yield Obstacle(place, f"{name} is {before} in the teacher and {after} in the target")
        for index in range(min(len(one.inputs), len(other.inputs)) if one.op not in _MOVES else 0):
            texts = _text(networks.teacher, (old, index)), _text(networks.target, (new, index))
            if None not in texts and texts[0] != texts[1]:
                yield Obstacle(place, f"input {index} is {texts[0]} in the teacher and {texts[1]} in the target")
        near = neighbours(networks.teacher, old), neighbours(networks.target, new)
        for key in sorted({*near[0], *near[1]}, key=str):
            left = [len(found.get(key, set()) - reached) for found, reached in zip(near, known, strict=True)]
            if left[0] != left[1] and key[2] not in _MOVES:
                where = "behind" if key[0] == "reader" else "in front of"
                yield Obstacle(place, f"{where} it the teacher has {left[0]} {key[2]} that nothing corresponds to, "
                                      f"the target {left[1]}")  # fmt: skip


def _text(network: Network, use: Use) -> str | None:
    """Return the text of a single number or of constant integers, None for anything else."""
    value = number_of(network, use)
    if value is not None:
        return f"{value:.6g}"
    constant = constant_of(network.nodes[use[0]].inputs[use[1]])
    if constant is None or network.is_float(constant):
        return None
    values = np.asarray(network.analysis.draft.reader(constant)())
    digest = zlib.crc32(np.ascontiguousarray(values).tobytes())
    return str(values.tolist()) if values.size < 9 else f"{values.dtype} {list(values.shape)} (checksum {digest:08x})"
