"""The layers of a model in order, with their widths, for pictures of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.analysis.groups import analysing, inspect_analysis
from onnx_net2net.analysis.layers import LayerGraph, dims_of
from onnx_net2net.analysis.names import module_of
from onnx_net2net.analysis.roles import Role
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.model import ModelLike, load

_INDEX = re.compile(r"\d+")


@dataclass(frozen=True)
class LayerOutline:
    """A layer, as pictures show it.

    Attributes:
        name: The module that has it.
        kind: Its operator.
        weight: The name of the tensor with its weights, "" where it has none.
        shape: The shape of these.
        reads: How many units it reads.
        makes: How many it makes.
        names: The names of the dims that it reads and makes.
        experts: Of how many experts it is a stack; 0 where it is none.
        reads_stream: Whether it reads the residual stream.
        makes_stream: Whether it writes to that.
    """

    name: str
    kind: str
    weight: str
    shape: tuple[int, ...]
    reads: int
    makes: int
    names: tuple[str, ...] = ()
    experts: int = 0
    reads_stream: bool = False
    makes_stream: bool = False


@dataclass(frozen=True)
class Section:
    """Layers that follow one another and, as a whole, may repeat.

    Attributes:
        name: What their names begin with, with a star for the number of the repetition; "" for a layer alone.
        layers: The layers of the first repetition.
        times: How often they repeat.
    """

    name: str
    layers: tuple[LayerOutline, ...]
    times: int = 1


def outline(model: ModelLike) -> list[LayerOutline]:
    """Return the layers of a model, in the order in which they run.

    Raises:
        BadInputError: If the model cannot be used.
    """
    with analysing(load(model)) as (opened, analysis):
        flat = opened.model
        network, inspection = LayerGraph(analysis), inspect_analysis(flat, analysis)
    group_of = {dim: group for group in inspection.groups for dim in group.dims}
    found = []
    for number in sorted(network.layers):
        layer = network.layers[number]
        node, tensor = analysis.nodes[number], analysis.nodes[number].inputs[layer.weights]
        constant = constant_of(tensor)
        weight = constant.name if constant is not None else ""
        read, made = ([g for dim in dims if (g := group_of.get(dim))] for dims in (layer.reads, layer.makes))
        all_made = layer.makes | layer.shared
        stack = {dim for dim in all_made if dim in group_of and group_of[dim].role in (Role.EXPERTS, Role.COPIES)}
        if stack == all_made:  # the router
            stack = set()
        found.append(LayerOutline(
            module_of(node, flat.proto.graph.node[number], weight or tensor.name), layer.kind, weight,
            network.shape(tensor), layer.width, _made(network, number, stack),
            tuple(dict.fromkeys(group.name for group in (*read, *made))),
            math.prod(dim.size for dim in stack) if stack else 0,
            any(group.role == Role.RESIDUAL_STREAM for group in read),
            any(group.role == Role.RESIDUAL_STREAM for group in made),
        ))  # fmt: skip
    return found


def _made(network: LayerGraph, number: int, stack: set[Dim]) -> int:
    """Return how many units a layer makes: the sizes of the axes of its result that have a dim which it makes.

    Of a stack of experts, those of one expert.
    """
    made = (network.layers[number].makes | network.layers[number].shared) - stack
    size = 1
    for axis in network.axes(number):
        if made.intersection(dims_of(axis)):
            size *= axis.size // math.prod(dim.size for dim in stack & dims_of(axis))
    return size if made else network.layers[number].sizes[0] if network.layers[number].sizes else 1


def sections(layers: Sequence[LayerOutline]) -> list[Section]:
    """Fold repeated blocks: runs of layers whose names differ by one number, and whose sizes are the same."""
    runs: list[tuple[str, str, list[LayerOutline]]] = []  # the block without its number, the number, its layers
    for layer in layers:
        block, number = _block(layer.name)
        if runs and number and runs[-1][:2] == (block, number):
            runs[-1][2].append(layer)
        else:
            runs.append((block, number, [layer]))
    found: list[Section] = []
    for block, number, members in runs:
        last = found[-1] if found else None
        if last is not None and number and last.name == block and _alike(last.layers, members):
            found[-1] = replace(last, times=last.times + 1)
        else:
            found.append(Section(block if number else "", tuple(members)))
    return found


def _block(name: str) -> tuple[str, str]:
    """Return what a name has up to its first number that stands alone, with a star for that, and the number."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join([*parts[:place], "*"]), part
    return name, ""


def _alike(one: Sequence[LayerOutline], other: Sequence[LayerOutline]) -> bool:
    """Tell whether two repetitions of a block are the same but for numbers in names."""

    def looks(layer: LayerOutline) -> tuple[object, ...]:
        return _INDEX.sub("", layer.name), layer.kind, layer.shape, layer.reads, layer.makes

    return [*map(looks, one)] == [*map(looks, other)]
