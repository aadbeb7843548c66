"""Feed-forward blocks: one or two layers that read one tensor, what lies between, and a layer that reads the result.

Between them every node treats each position alone and each hidden unit alone: activations, gates, biases, and cuts of a
joint gate and value. So a block is a function of one position, and can become an expert of a mixture.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.analysis.names import module_of, told_apart
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import constant_of, makers
from onnx_net2net.rules import traits

_LONGEST = 40
"""Nodes that the longest block has, with an activation that is written out, and some more."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward block.

    Attributes:
        name: The module around it, or the best name that there is.
        entry: The tensor that its first layers read, perhaps as rows.
        exit: The tensor that it makes, behind the bias of its last layer.
        nodes: Its nodes, in order.
        layers: Those of them that are layers; the last one reads the hidden units.
        reads: The units that it reads.
        hidden: The units that its last layer reads.
        makes: The units that it makes.
        reason: Why it cannot become an expert, "" if it can.
    """

    name: str
    entry: str
    exit: str
    nodes: tuple[int, ...]
    layers: tuple[int, ...]
    reads: int
    hidden: int
    makes: int
    reason: str = ""

    @property
    def widens(self) -> bool:
        """Whether it is of the kind that transformers have: it makes what it reads, and is not narrower inside."""
        return self.makes == self.reads <= self.hidden


def find_feedforwards(analysis: Analysis, proto: onnx.ModelProto) -> list[FeedForward]:
    """List the feed-forward blocks of a model, in order; in a row of layers they overlap.

    Args:
        analysis: The dims of the flat model.
        proto: That model.
    """
    network = LayerGraph(analysis)
    found = [block for _, layer in sorted(network.layers.items()) if (block := _block(network, proto, layer))]
    names = told_apart(block.name for block in found)
    return [replace(block, name=name) for block, name in zip(found, names, strict=True)]


def module_names(network: LayerGraph, proto: onnx.ModelProto, numbers: Collection[int]) -> dict[int, str]:
    """Return the modules of layers, by number."""
    return {
        number: module_of(
            network.analysis.nodes[number], proto.graph.node[number],
            network.analysis.nodes[number].inputs[network.layers[number].weights].name,
        )
        for number in numbers
    }  # fmt: skip


def _block(network: LayerGraph, proto: onnx.ModelProto, last: Layer) -> FeedForward | None:
    """Return the block that ends in a layer, if one does."""
    analysis = network.analysis
    if not _is_linear(network, last.number):
        return None
    region = _region(network, analysis.nodes[last.number].inputs[0])
    if region is None:
        return None
    firsts = sorted(number for number in region if number in network.layers)
    entries = {_whole(network, analysis.nodes[number].inputs[0]).name: number for number in firsts}
    entry = _whole(network, analysis.nodes[firsts[0]].inputs[0])
    if entry.name not in network.told or not any(_bends(analysis.nodes[number]) for number in region):
        return None
    bias, exit = bias_of(network, analysis.nodes[last.number].outputs[0])
    nodes = sorted({*region, last.number, *bias})
    layers = (*firsts, last.number)
    modules = module_names(network, proto, layers)
    name = ".".join(_common([re.split(r"[./]", modules[number]) for number in layers])) or modules[last.number]
    reason = "its first layers read different tensors" if len(entries) > 1 else _obstacle(network, nodes, entry, exit)
    return FeedForward(name, entry.name, exit.name, tuple(nodes), layers, network.shape(entry)[-1], last.width,
                       network.shape(exit)[-1], reason)  # fmt: skip


def _whole(network: LayerGraph, tensor: Tensor) -> Tensor:
    """Return the tensor whose positions are the rows of another one, or that itself."""
    for node in makers(tensor, traits.REFOLDS):
        if network.shape(node.inputs[0])[-1:] != network.shape(tensor)[-1:]:
            break
        tensor = node.inputs[0]
    return tensor


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the path that modules have in common."""
    same = itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))
    return [steps[0] for steps in same]


def _is_linear(network: LayerGraph, number: int) -> bool:
    """Tell whether a node multiplies the last axis of its first input by a constant matrix."""
    node = network.analysis.nodes[number]
    plain = node.op in traits.MATRICES and not node.attrs.get("transA", 0)
    weights = constant_of(node.inputs[1]) if plain and not node.domain else None
    return weights is not None and len(weights.shape) == 2 and len(network.shape(node.outputs[0])) > 1


def _region(network: LayerGraph, tensor: Tensor) -> set[int] | None:
    """Return the nodes back to the layers that hidden units come from; None where something else lies between."""
    pending, region = [tensor], set[int]()
    while pending and len(region) < _LONGEST:
        number = network.age(pending.pop())
        if number < 0:
            return None
        node = network.analysis.nodes[number]
        if number in region:
            continue
        region.add(number)
        if _is_linear(network, number) and number in network.layers:
            continue
        live = [value for value in node.inputs if value.name in network.live]
        if not live or not _is_single(network, number, live):
            return None
        pending += live
    return region if region and not pending else None


def _is_single(network: LayerGraph, number: int, live: Sequence[Tensor]) -> bool:
    """Tell whether a node treats each position and each hidden unit alone, or cuts units into parts."""
    node = network.analysis.nodes[number]
    before, after = network.shape(live[0]), network.shape(node.outputs[0])
    if node.domain or not before:
        return False
    if node.op in traits.CUTS:
        return cut_axis(network, number) == len(before) - 1
    if node.op in traits.REFOLDS:
        return after[-1:] == before[-1:]
    single = node.op in traits.ALONE | traits.BROADCASTING | traits.COPIES | traits.CASTS and len(node.outputs) == 1
    return single and all(network.shape(value) == after for value in live)


def cut_axis(network: LayerGraph, number: int) -> int | None:
    """Return the axis along which a Split or a Slice cuts; None where it is not one, or not known."""
    node = network.analysis.nodes[number]
    rank = len(network.shape(node.inputs[0]))
    if node.op in traits.SPLITS:
        return int(node.attrs.get("axis", 0)) % rank
    values = network.analysis.sizes.values.get(node.inputs[3].name) if len(node.inputs) > 3 else None
    axes = [] if values is None else values.reshape(-1).tolist()
    return int(axes[0]) % rank if len(axes) == 1 else None


def _bends(node: Node) -> bool:
    """Tell whether a node is no linear function of what it reads."""
    return (
        node.op in traits.BENDS
        or (node.op in traits.TIMES and all(value.inputs for value in node.inputs))
    )  # fmt: skip


def bias_of(network: LayerGraph, tensor: Tensor) -> tuple[list[int], Tensor]:
    """Return the node that adds the bias of a layer, if one does, and its result."""
    reader = network.analysis.graph.only_reader(tensor)
    if reader is None or reader.op != "Add" or network.shape(reader.outputs[0]) != network.shape(tensor):
        return [], tensor
    constant = next((known for value in reader.inputs if (known := constant_of(value)) is not None), None)
    if constant is None or tuple(constant.shape) != network.shape(tensor)[-1:]:
        return [], tensor
    return [network.number(reader)], reader.outputs[0]


def _obstacle(network: LayerGraph, nodes: Sequence[int], entry: Tensor, exit: Tensor) -> str:
    """Return why a block cannot become an expert, "" if it can."""
    analysis = network.analysis
    if len(network.shape(exit)) != 2 and network.shape(entry)[:-1] != network.shape(exit)[:-1]:
        return "its result has other positions than what it reads"
    for number in nodes:
        node = analysis.nodes[number]
        for value in node.outputs:
            outside = {network.number(reader) for reader in value.outputs} - set(nodes)
            if value is not exit and (outside or value.name in analysis.kept):
                return f"{value.name} inside it is read outside"
        for value in _constants(network, number):
            size = network.shape(value)[-1] if network.shape(value) else 1
            if network.elements(value) not in (1, size):
                return f"{value.name}, which {node.op} reads, is no vector of units"
            if network.elements(value) > 1 and constant_of(value) is None:
                return f"{value.name}, which {node.op} reads, is computed of constants"
    return ""


def _constants(network: LayerGraph, number: int) -> Iterator[Tensor]:
    """Yield what a node reads that is neither computed of the block's input, nor a matrix, nor a list of sizes."""
    node = network.analysis.nodes[number]
    if node.op in traits.CUTS | traits.REFOLDS:
        return
    for index, value in enumerate(node.inputs):
        matrix = number in network.layers and index < 2 and _is_linear(network, number)
        if value.name and not matrix and value.name not in network.live:
            yield value
