"""The modules of a network in rows that are matched together: those of a residual block, or a single one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnx_net2net.analysis.blocks import Block, find_blocks
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Network
from onnx_net2net.operations.transfer.modules import Module, modules_of
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class Segment:
    """Modules in a row that are matched together: those of a residual block, or a single one.

    Attributes:
        modules: Its modules.
        block: The block.
        repeats: Whether it only has to pass on, or normalise again, what has been normalised.
    """

    modules: tuple[Module, ...]
    block: Block | None = None
    repeats: bool = False

    @property
    def name(self) -> str:
        """The block's name, or the module's."""
        return self.block.name if self.block is not None else self.modules[0].name

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """What similarity depends on, but for the names."""
        return self.block is not None, *(module.signature for module in self.modules)

    @property
    def neutral(self) -> bool:
        """Whether it can compute the identity; that a sum is normalised is for what normalises it."""
        if self.block is None:
            return self.repeats or self.modules[0].neutral
        return self.block.normalised or not self.block.reason


def segments_of(analysis: Analysis, proto: onnx.ModelProto) -> list[Segment]:
    """Return the modules of a network in order, those of a residual block as one segment; see `modules_of`."""
    return grouped(modules_of(analysis, proto), analysis, proto)


def grouped(modules: Sequence[Module], analysis: Analysis, proto: onnx.ModelProto) -> list[Segment]:
    """Return modules in order, those of a residual block as one segment."""
    block_of: dict[int, Block] = {}
    for block in find_blocks(analysis, proto, join=False):  # which may share what makes their weights
        block_of = dict.fromkeys(block.nodes, block) | block_of
    for block in _features(analysis):
        if block_of.keys().isdisjoint(block.nodes):
            block_of.update(dict.fromkeys(block.nodes, block))
    blocks: dict[str, list[Module]] = {}
    order: list[Module | Block] = []
    for module in modules:
        found = block_of.get(module.node)
        if found is None:
            order.append(module)
            continue
        if found.name not in blocks:
            order.append(found)
        blocks.setdefault(found.name, []).append(module)
    return [Segment((x,)) if isinstance(x, Module) else Segment(tuple(blocks[x.name]), x) for x in order]


def _features(analysis: Analysis) -> Iterator[Block]:
    """Yield what makes features that are laid beside others, as in a DenseNet: readers can leave them out."""
    network = Network(analysis)
    for number in network.layers:
        made = analysis.nodes[number].outputs[0]
        while len(made.outputs) == 1 and made.outputs[0].op not in traits.JOINS | traits.UNIT_NORMS and (
            (said := analysis.said.get(network.number(made.outputs[0]))) is not None and said.pointwise
        ):  # fmt: skip
            made = made.outputs[0].outputs[0]
        if not made.outputs or made.name in analysis.kept or {node.op for node in made.outputs} != traits.JOINS:
            continue
        region: set[int] = set()
        pending = [-network.age(made)]
        while pending:  # the newest first, so that all readers of a node have been seen
            number = -heapq.heappop(pending)
            node = analysis.nodes[number]
            alone = all(network.number(reader) in region for tensor in node.outputs for reader in tensor.outputs)
            kept = any(tensor.name in analysis.kept for tensor in node.outputs)
            if number not in region and not kept and (alone or node.outputs[0] is made):
                region.add(number)
                for tensor in node.inputs:
                    if (age := network.age(tensor)) >= 0:
                        heapq.heappush(pending, -age)
        yield Block(made.name, exit=made.name, nodes=tuple(sorted(region)), last=network.age(made))
