"""The layers that DPIAT scores and the blocks that they stand in, read from a graph or from a tree of modules.

DPIAT (Czyzewski, Nowak, Piechowiak 2022, arXiv 2212.13970) sees a network as a list whose elements are layers and
blocks of layers. It takes them from the tree of PyTorch modules. A graph has no such tree: blocks are its regions with
one entry and one exit, or what the exporter's names say, where teacher and target come from one exporter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis import layers
from onnx_net2net.analysis.names import is_anonymous, module_of, scope_of
from onnx_net2net.graph.graph import Constant, Place
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Network
from onnx_net2net.rules import traits

_NORM = "BatchNorm"
_MOVES = traits.PLACED - traits.PIXEL_SHUFFLES
"""Operators that are no modules of PyTorch."""


@dataclass(frozen=True)
class ScoredWeight:
    """A weight or bias of a layer.

    Attributes:
        parameter: Where it is in the graph.
        name: The constant.
        shape: Its shape in PyTorch's order: (out, in / groups, *kernel), or (out,).
        groups: Those of a transposed convolution, whose constant is (in, out / groups, *kernel); else 0.
        factor: The layer multiplies it by that.
        uses: The inputs of nodes that it is; several where a layer is run several times.
    """

    parameter: Parameter
    name: str
    shape: tuple[int, ...]
    groups: int = 0
    factor: float = 1.0
    uses: Sequence[Place] = ()

    def turned(self, values: Array) -> Array:
        """Return values in PyTorch's order, from those in a parameter's common order."""
        return swapped(values, self.groups) if self.groups else values.reshape(self.shape)


@dataclass(frozen=True)
class ScoredLayer:
    """A layer that DPIAT scores.

    Attributes:
        kind: Its class as PyTorch calls it: Conv2d, ConvTranspose1d, BatchNorm2d, Linear ...
        shape: The shape of its weight, outputs first.
        name: Its module, if it is one of a graph.
        weight: Where the weight is, if it is one of a graph.
        bias: Where the bias is, if it has one.
    """

    kind: str
    shape: tuple[int, ...]
    name: str = ""
    weight: ScoredWeight | None = None
    bias: ScoredWeight | None = None

    @property
    def is_dimensional(self) -> bool:
        """Whether it is no normalisation."""
        return not self.kind.startswith(_NORM)


Element: TypeAlias = "ScoredLayer | list[Element] | None"
"""A layer, a module or operation without scored weights (None), or a block."""

LayerTree: TypeAlias = "ScoredLayer | Sequence[LayerTree]"
"""A layer or the children of a module; one without children is an activation and the like."""


def layers_of(elements: Sequence[Element]) -> list[ScoredLayer]:
    """Return all layers, in order."""
    found: list[ScoredLayer] = []
    for element in elements:
        found += layers_of(element) if isinstance(element, list) else [element] if element is not None else []
    return found


def swapped(values: Array, groups: int) -> Array:
    """Turn (groups i, o, *kernel) into (groups o, i, *kernel)."""
    first, second, *kernel = values.shape
    parts: Array = values.reshape(groups, first // groups, second, *kernel).swapaxes(1, 2)
    return parts.reshape(groups * second, first // groups, *kernel)


# --- Trees of modules ----------------------------------------------------------------------------------------


def standardized(tree: LayerTree) -> list[Element]:
    """Return layers and blocks of layers of a tree of modules (the "blocks" standardization of DPIAT's code).

    A module that has more layers than blocks among its parts is a block; one with more blocks gives its parts to
    the module around it, and so does one with fewer than two layers besides normalisations.
    """
    _, _, elements = _standardized(tree, 0)
    return elements if isinstance(elements, list) else [elements]


def _standardized(tree: LayerTree, level: int) -> tuple[int, int, Element]:
    """Return the depth, the number of layers besides normalisations, and what a module becomes."""
    if isinstance(tree, ScoredLayer):
        return 0, int(tree.is_dimensional), tree
    if not tree:
        return 0, 0, None
    blocks = singles = dimensional = 0
    elements: list[Element] = []
    for child in tree:
        depth, inside, part = _standardized(child, level if len(tree) == 1 else level + 1)
        dimensional += inside
        added = part if isinstance(part, list) and (depth > 1 or inside < 2) else [part]
        elements += added
        lists = sum(isinstance(element, list) for element in added)
        blocks, singles = blocks + lists, singles + len(added) - lists
    depth = 2
    if singles > blocks and level > 0:
        elements, depth = _flat(elements), 1
    if len(elements) == 1:
        return 1, dimensional, elements[0]
    return depth, dimensional, elements


def _flat(elements: Sequence[Element]) -> list[Element]:
    return list(itertools.chain.from_iterable(e if isinstance(e, list) else [e] for e in elements))


# --- Graphs --------------------------------------------------------------------------------------------------


class Scored:
    """The layers and blocks of a graph."""

    def __init__(self, network: Network) -> None:
        self._network, self._nodes = network, network.nodes
        self._proto = network.opened.model.proto
        self._shared: dict[tuple[object, int], list[Place]] = {}
        firsts: dict[object, tuple[int, ScoredLayer]] = {}
        for number, owner, layer in sorted(self._found(), key=lambda found: found[0]):
            firsts.setdefault(owner, (number, layer))  # a layer that is run several times is one
        self._layers = dict(firsts.values())

    @property
    def exporter(self) -> str:
        """The program that wrote the file."""
        return str(self._proto.producer_name)

    def _found(self) -> Iterator[tuple[int, object, ScoredLayer]]:
        """Yield a layer for each node that DPIAT scores, with its number and its matrix, or else its number."""
        for module in self._network.modules:
            parts, node = module.parameters, self._nodes[module.node]
            alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
            if module.is_layer and alpha and (kind := self._kind(module)):
                owner = "matrix", id(self._constant(parts["weight"]))
                group = int(node.attrs.get("group", 1)) if node.op in traits.TRANSPOSED else 0
                weight, bias = self._weight(owner, parts["weight"], group, alpha), None
                if "bias" in parts:
                    factor = beta if parts["bias"].use[0] == module.node else 1.0
                    bias = self._weight(owner, parts["bias"], 0, factor)
                if bias is not None and (not bias.factor or bias.shape != weight.shape[:1]):
                    bias = None
                yield module.node, owner, ScoredLayer(kind, weight.shape, module.name, weight, bias)
            if module.norm is not None and {"scale", "shift"} <= parts.keys():
                yield self._normalisation(module.norm, parts["scale"], parts["shift"])

    def _normalisation(self, number: int, scale: Parameter, shift: Parameter) -> tuple[int, object, ScoredLayer]:
        """Return a BatchNormalization as a layer; exporters merge vectors of equal values, so it owns no constant."""
        node, proto, owner = self._nodes[number], self._proto.graph.node[number], ("normalisation", number)
        weight, bias = self._weight(owner, scale), self._weight(owner, shift)
        rank = len(self._network.analysis.sizes.shape(node.inputs[0].name) or (0, 0, 0, 0))
        name = module_of(node, proto, weight.name)
        if self._is_merged(weight):
            name = scope_of(proto) or name
        return number, owner, ScoredLayer(f"{_NORM}{max(rank - 2, 1)}d", weight.shape, name, weight, bias)

    def _kind(self, module: Module) -> str:
        """Return the class of a layer as PyTorch calls it, "" if DPIAT does not score it."""
        op, constant = self._nodes[module.node].op, self._constant(module.parameters["weight"])
        rank, is_float = len(constant.shape), self._network.is_float(constant)
        if op in traits.MATRICES:
            return "Linear" if rank == 2 and is_float else ""
        return f"{op}{rank - 2}d" if op in traits.KERNELS and is_float else ""

    def _weight(self, owner: object, parameter: Parameter, groups: int = 0, factor: float = 1.0) -> ScoredWeight:
        constant = self._constant(parameter)
        first, *rest = own = tuple(constant.shape)
        shape = own if len(own) > 2 else parameter.shape(own)
        if groups:
            shape = (rest[0] * groups, first // groups, *rest[1:])
        uses = self._shared.setdefault((owner, id(constant)), [])
        uses += self._network.readings[id(constant)] if len(shape) > 1 else [parameter.use]
        return ScoredWeight(parameter, str(constant.name), shape, groups, factor, uses)

    def _constant(self, parameter: Parameter) -> Constant:
        return self._network.original(parameter.use)

    def _is_merged(self, weight: ScoredWeight) -> bool:
        """Tell whether a vector stands for several of equal values, so that its name is that of another module."""
        return len(weight.shape) == 1 and len(self._network.readings[id(self._constant(weight.parameter))]) > 1

    # -- blocks ------------------------------------------------------------------------------------------------

    def elements(self) -> list[Element]:
        """Return layers and blocks by the structure of the graph.

        A block is what lies between two nodes that all paths through the layers pass, if paths part there to meet in
        more than a product (a gate or an activation) and there are two layers besides normalisations. What lies
        between layers and computes something is one element without weights, however many nodes it has.
        """
        found: list[Element] = []
        region: list[Element] = []
        parted = False
        for number, node in enumerate(self._nodes):
            layer = self._layers.get(number)
            if layer is not None or (self._computes(number) and region[-1:] != [None]):
                region.append(layer)
            if number in self._cuts:
                count = sum(layer.is_dimensional for layer in layers_of(region))
                is_block = parted and node.op not in traits.FACTORS and count > 1
                found += [region] if is_block else region
                region, parted = [], False
            elif number in self._paths:
                parted = True
        found += region
        return [
            element for place, element in enumerate(found) if element is not None or found[place - 1 : place] != [None]
        ]

    def _computes(self, number: int) -> bool:
        """Tell whether a node on a path is an activation, a pooling and the like."""
        is_other = number in self._own or self._nodes[number].op in _MOVES
        return not is_other and len(self._paths.get(number, ())) == 1

    @cached_property
    def _own(self) -> set[int]:
        """The nodes of layers, and those that add their biases."""
        biases = (layer.bias.uses for layer in self._layers.values() if layer.bias is not None)
        return {*self._layers, *(number for uses in biases for number, _ in uses)}

    @cached_property
    def _paths(self) -> dict[int, set[int]]:
        """The nodes on paths from the first layers to the outputs, each with those right in front of it.

        Only what depends on the values of inputs counts: sizes, masks and positions that no layer made would otherwise
        lead around all blocks.
        """
        graph = layers.LayerGraph(self._network.analysis)
        behind: dict[int, set[int]] = {}
        for number, node in enumerate(self._nodes):
            read = [tensor for tensor in node.inputs if tensor.name in graph.told]
            before = {graph.age(tensor) for tensor in read} & behind.keys()
            if read and node.op not in traits.SHAPES and (before or number in self._layers):
                behind[number] = before
        ends = {tensor.name for tensor in self._network.analysis.graph.outputs}
        alive: set[int] = set()
        for number in reversed(behind):
            if number in alive or any(tensor.name in ends for tensor in self._nodes[number].outputs):
                alive.update((number, *behind[number]))
        return {number: before for number, before in behind.items() if number in alive}

    @cached_property
    def _cuts(self) -> set[int]:
        """The nodes that all paths pass: in the order of the nodes, no path leads past them."""
        past = np.zeros(len(self._nodes) + 1, int)
        for number, before in self._paths.items():
            past[min(before, default=-1) + 1] += 1
            past[number] -= 1
        led_past = np.cumsum(past)
        return {number for number in self._paths if not led_past[number]}

    def tree(self) -> LayerTree | None:
        """Return the tree of modules by the names of weights and nodes; None where these tell no tree.

        Modules without weights are those whose name is neither that of a module with parts nor inside of a layer.
        """
        paths = {number: _path(layer.name) for number, layer in self._layers.items()}
        containers = {path[:end] for path in paths.values() for end in range(len(path))}
        own = set(paths.values())
        weights = {number: layer.weight for number, layer in self._layers.items() if layer.weight is not None}
        made_up = {weight.name for weight in weights.values() if is_anonymous(weight.name)}
        is_nameless = any(layer.name in made_up for layer in self._layers.values()) or not any(p[:-1] for p in own)
        if is_nameless or len(own) < len(paths) or own & containers:
            return None
        names = [tensor.name for tensor in self._proto.graph.initializer]
        ranks = {} if made_up else {name: rank for rank, name in enumerate(names)}
        root: dict[str, Any] = {}
        for number in sorted(paths.keys() | self._paths.keys()):
            path = paths.get(number) or _path(scope_of(self._proto.graph.node[number]))
            if number in weights:
                rank = None if self._is_merged(weights[number]) else ranks.get(weights[number].name)
                _grow(root, path, (rank, self._layers[number]))
            elif path not in containers and not any(path[:end] in own for end in range(len(path) + 1)):
                _grow(root, path, (None, ()))
        return _ordered(root)[1]


def _path(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"[./]", name)) if name else ()


def _grow(root: dict[str, Any], path: Sequence[str], leaf: tuple[int | None, LayerTree]) -> None:
    """Put a leaf into a tree of modules where nothing is in its place."""
    for step in path[:-1]:
        root = root.setdefault(step, {})
        if not isinstance(root, dict):
            return
    root.setdefault(path[-1], leaf)


def _ordered(root: dict[str, Any]) -> tuple[int | None, LayerTree]:
    """Return the rank of a module's first weight and its children in PyTorch's order, which is that of the weights.

    Those of a list are ordered by their numbers; those without weights, or with weights to which an exporter gave new
    names and places, stay behind what runs before them.
    """
    children: list[tuple[int, LayerTree]] = []
    first: int | None = None
    for name, child in root.items():
        rank, tree = _ordered(child) if isinstance(child, dict) else child
        if rank is not None:
            first = rank if first is None else min(first, rank)
        place = rank if rank is not None else children[-1][0] if children else -1
        children.append((int(name) if all(map(str.isdigit, root)) else place, tree))
    return first, [tree for _, tree in sorted(children, key=lambda child: child[0])]
