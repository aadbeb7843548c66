"""The modules of a network in rows that are matched together: those of a residual block, or a single one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from onnx_net2net.analysis.blocks import Block, find_blocks
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.settling import Settled
from onnx_net2net.operations.transfer.spares import Spare
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class Segment:
    """Modules in a row that are matched together: those of a residual block, or a single one.

    Attributes:
        modules: Its modules.
        block: The block.
        repeats: Whether it only has to pass on, or normalise again, what has been normalised.
        values: What its weights hold if the block does nothing.
    """

    modules: tuple[Module, ...]
    block: Block | None = None
    repeats: bool = False
    values: Settled = field(default_factory=dict, compare=False)

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


def grouped(
    modules: Sequence[Module], analysis: Analysis, proto: onnx.ModelProto, spares: Sequence[Spare]
) -> list[Segment]:
    """Return modules in order, those of a residual block, or of another part that can do nothing, as one segment."""
    idle = frozenset().union(*(spare.nodes for spare in spares if not spare.reason))
    modules = [replace(module, spare=module.node in idle) for module in modules]
    segment_of: dict[int, Segment] = {}
    for block, values in _parts(analysis, proto, spares):
        inside = tuple(module for module in modules if module.node in block.nodes and module.node not in segment_of)
        segment_of |= {module.node: Segment(inside, block, values=values) for module in inside}
    order = [segment_of.get(module.node, Segment((module,))) for module in modules]
    return list({id(segment.modules[0]): segment for segment in order}.values())


def _parts(analysis: Analysis, proto: onnx.ModelProto, spares: Sequence[Spare]) -> Iterator[tuple[Block, Settled]]:
    """Yield the blocks, the best first, with what their weights hold if they do nothing."""
    blocks = list(find_blocks(analysis, proto, join=False))  # which may share what makes their weights
    known = {node for block in blocks for node in block.nodes}
    blocks += [block for block in _features(analysis) if known.isdisjoint(block.nodes)]
    taken = {node for block in blocks if block.normalised or not block.reason for node in block.nodes}
    found = []
    for spare in sorted(spares, key=lambda spare: (spare.rank, -len(spare.exits))):  # they come smallest first
        if spare.rank < 2 and not spare.reason and taken.isdisjoint(spare.nodes):
            taken |= spare.nodes
            name = analysis.nodes[max(spare.nodes)].outputs[0].name
            found.append((Block(name, nodes=tuple(sorted(spare.nodes))), spare.values))
    for block in blocks:
        if block.normalised or not block.reason:
            yield block, dict.fromkeys(block.zeroed, 0.0)
    yield from found
    yield from ((block, {}) for block in blocks if block.reason and not block.normalised and
                not any(set(block.nodes) & set(spare.nodes) for spare, _ in found))  # fmt: skip


def put_together(added: Sequence[Segment], spares: Sequence[Spare]) -> tuple[Segment, ...]:
    """Return what a target has in excess, modules that can only do nothing together as one segment.

    Args:
        added: The excess.
        spares: The parts of the target that can do nothing, or why they cannot.
    """
    idle = [segment for segment in added if segment.neutral]
    left = {module.node: module for segment in added if not segment.neutral for module in segment.modules}
    whole = left.keys() | {module.node for segment in idle for module in segment.modules}
    for spare in sorted(spares, key=lambda spare: len(spare.nodes) if spare.reason else -len(spare.nodes)):
        inside = tuple(module for node, module in left.items() if node in spare.nodes)
        if inside and spare.holders <= whole:
            idle.append(Segment(inside, Block(inside[0].name, reason=spare.reason), values=spare.values))
            left = {node: module for node, module in left.items() if module not in inside}
    return (*idle, *(Segment((module,)) for module in left.values()))


def _features(analysis: Analysis) -> Iterator[Block]:
    """Yield what makes features that are laid beside others, as in a DenseNet: readers can leave them out."""
    network = LayerGraph(analysis)
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
