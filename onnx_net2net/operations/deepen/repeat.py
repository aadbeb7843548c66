"""Put copies of a residual block behind it, and tell which blocks compute the same but for their weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_net2net.analysis.blocks import LISTS, Block
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Constant, Node, Place, Tensor, Variable
from onnx_net2net.graph.walk import constant_of, source
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class CopiedConstant:
    """A weight of a copied block: the original's name, the copy's, the module of its reader, and if it became zero."""

    old: str
    new: str
    scope: str
    zeroed: bool


@dataclass(frozen=True)
class Copy:
    """A copy of a block.

    Attributes:
        block: The name of the block.
        behind: The name of the block that it was put behind.
        constants: Its weights, one for each use of a vector.
        alike: Whether blocks of its group that have weights of the same shapes compute the same but for their values,
            so that they can change places.
    """

    block: str
    behind: str
    constants: tuple[CopiedConstant, ...]
    alike: bool


def take_over(draft: Draft, tensor: Variable) -> Variable:
    """Let the producer of a tensor make another one, so that a node that is inserted can make this one."""
    inner = Variable(draft.graph.unique_name(f"{tensor.name}_before"), dtype=tensor.dtype)
    draft.sizes.types[inner.name] = draft.sizes.types[tensor.name]
    producer = tensor.inputs[0]
    producer.outputs[next(i for i, output in enumerate(producer.outputs) if output is tensor)] = inner
    return inner


def insert_copy(
    draft: Draft, proto: onnx.ModelProto, block: Block, behind: Variable, name: str, cancels: bool = False
) -> list[CopiedConstant]:
    """Put a copy of a block, whose branches end in zero, behind all that makes a tensor already.

    Args:
        draft: The graph.
        proto: The same, whose nodes tell modules.
        block: What to copy.
        behind: A tensor like the block's exit.
        name: The name of the copy, in the place of the block's.
        cancels: Put there the difference of two copies as they are instead.

    Returns:
        The weights that were copied, none of copies that cancel.
    """
    inner = take_over(draft, behind)
    if not cancels:
        return _copy(draft, proto, block, block.zeroed, inner, behind, name)
    copies = [Variable(draft.graph.unique_name(f"{name}.{part}_out")) for part in (0, 1)]
    for part, copy in enumerate(copies):
        _copy(draft, proto, block, frozenset(), inner, copy, f"{name}.{part}")
    op = Writer(draft.graph, f"{name}.")
    op.Add(inner, op.Sub(*copies), result=behind)
    return []


def _copy(
    draft: Draft, proto: onnx.ModelProto, block: Block, zeroed: Collection[Place], inner: Variable,
    behind: Variable, name: str,
) -> list[CopiedConstant]:  # fmt: skip
    """Write a copy of a block that reads one tensor and makes another.

    A matrix that several nodes read is one in the copy, too. Vectors are not: exporters merge those of equal values.
    """
    made: dict[int, Tensor] = {}
    copied: list[CopiedConstant] = []
    for number in block.nodes:
        node = draft.nodes[number]
        inputs = []
        for index, value in enumerate(node.inputs):
            constant = constant_of(value)
            if value.name == block.entry:
                inputs.append(inner)
            elif constant is None:
                inputs.append(made.get(id(value), value))
            elif (number, index) in zeroed or _is_weight(draft, constant):
                zero = (number, index) in zeroed
                copy = None if zero else made.get(id(constant))
                if copy is None:
                    copy = draft.graph.copied(constant, _renamed(value.name, block.name, name), zero)
                    scope = scope_of(proto.graph.node[number])
                    copied.append(CopiedConstant(name_of(value), copy.name, scope, zero))
                if not zero and sum(size > 1 for size in constant.shape) > 1:
                    made[id(constant)] = copy
                inputs.append(copy)
            else:
                inputs.append(value)
        outputs = [behind] if number == block.last else [
            Variable(draft.graph.unique_name(_renamed(value.name, block.name, name))) if value.name else value
            for value in node.outputs
        ]  # fmt: skip
        made.update(zip(map(id, node.outputs), outputs, strict=True))
        label = draft.graph.unique_name(_renamed(node.name, block.name, name)) if node.name else ""
        draft.nodes.append(Node(node.op, label, dict(node.attrs), inputs, outputs, domain=node.domain))
    return copied


def name_of(tensor: Tensor) -> str:
    """Return the name of a constant: of the initializer, or of what a Constant node makes."""
    return str(source(tensor, traits.RENAMES).name)


class WeightShape(tuple[int, ...]):
    """The shape of a weight that a node reads."""


NodeKey = tuple[str, str, tuple[tuple[str, str], ...], tuple[object, ...]]
"""A node: operator, domain, attributes, and of what it reads the shapes of weights, the values of other constants, the
places of what the block itself makes, and the names of what comes from outside."""


def value_numbers(analysis: Analysis) -> dict[str, int]:
    """Number what nodes make, so that tensors which are computed alike from the same have the same number.

    Exporters compute a mask anew for each layer. Weights count as the same only where they are one tensor.
    """
    numbers: dict[str, int] = {}
    known: dict[object, int] = {}
    for node in analysis.nodes:
        reads: list[object] = []
        for value in node.inputs:
            told = _told(analysis, value)
            reads.append(numbers.get(value.name, value.name) if told is None else told)
        attributes = tuple(sorted((key, str(value)) for key, value in node.attrs.items()))
        own = node.outputs[0].name if node.op in traits.RANDOM else ""
        for place, value in enumerate(node.outputs):
            key = (node.op, node.domain or "", attributes, tuple(reads), place, own)
            numbers[value.name] = known.setdefault(key, len(known))
    return numbers


def program(analysis: Analysis, block: Block, numbers: Mapping[str, int]) -> tuple[NodeKey, ...]:
    """Return all that a block computes, without the values of its weights; blocks with one program can change places.

    Args:
        analysis: The dims.
        block: The block.
        numbers: The `value_numbers` of the graph.
    """
    made: dict[str, object] = {block.entry: -1}
    found: list[NodeKey] = []
    for number in block.nodes:
        node = analysis.nodes[number]
        reads: list[object] = []
        for value in node.inputs:
            constant, told = constant_of(value), _told(analysis, value)
            if constant is not None and told is None:
                reads.append(WeightShape(constant.shape))
            elif value.name in made or told is None:
                reads.append(made.get(value.name, numbers.get(value.name, value.name)))
            else:
                reads.append(told)
        if node.op in traits.COPIES:
            made[node.outputs[0].name] = reads[0]
            continue
        made.update((value.name, (len(found), place)) for place, value in enumerate(node.outputs))
        attributes = sorted((key, str(value)) for key, value in node.attrs.items())
        found.append((node.op, node.domain or "", tuple(attributes), tuple(reads)))
    return tuple(found)


def _told(analysis: Analysis, value: Tensor) -> bytes | None:
    """Return the values of a constant that is no weight, and of sizes; None for all others."""
    constant, size = constant_of(value), analysis.sizes.values.get(value.name)
    if constant is not None:
        return None if _is_weight(analysis, constant) else bytes(analysis.graph.read(constant).tobytes())
    return None if size is None else np.asarray(size).tobytes()


def _is_weight(analysis: Analysis, constant: Constant) -> bool:
    """Tell whether a constant is no number, no list of sizes and no mask."""
    return int(np.prod(constant.shape)) > 1 and analysis.graph.type_of(constant) not in LISTS


def _renamed(text: str, old: str, new: str) -> str:
    """Return the name of a copy: that of the original with another module's name, or with an end of its own."""
    parts = old.split(".")
    for own in (old, old.replace(".", "/"), ".".join(parts[-2:]), parts[-1]):
        found = re.search(rf"(?<!\w){re.escape(own)}(?!\w)", text)
        if own and not own.isdigit() and found:
            return f"{text[: found.end()]}{new[len(old) :]}{text[found.end() :]}"
    return f"{text}{new[len(old) :]}"
