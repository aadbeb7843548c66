"""The layers that DPIAT scores and the blocks that they stand in, read from a graph or from a tree of modules.

DPIAT (Czyzewski, Nowak, Piechowiak 2022, arXiv 2212.13970) sees a network as a list whose elements are layers and
blocks of layers. It takes them from the tree of PyTorch modules. A graph has no such tree: blocks are its regions with
one entry and one exit, or what the exporter's names say, where teacher and target come from one exporter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.inference import DIVISIBLE, constant_of
from onnx_net2net.analysis.names import is_anonymous, module_of, scope_of
from onnx_net2net.graph import sizes
from onnx_net2net.graph.graph import Constant, Graph, Node
from onnx_net2net.model.model import Model

_NORM = "BatchNorm"
_GATES = ("Mul", "Div")
"""Two tensors meet in them where a gate or an activation ends, which is no end of a block."""
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Slice", "Split", "Gather",
          "Expand", "Tile", "Concat", "Dropout", "Pad")  # fmt: skip

Use: TypeAlias = tuple[int, int]
"""An input of a node: the number of the node, and which input."""


@dataclass(eq=False)
class Slot:
    """Where the values of a layer's weight or bias are.

    Attributes:
        node: What reads the constant.
        input: At which input.
        constant: The constant.
        shape: The shape of the values in PyTorch's order: (out, in / groups, *kernel), or (out,).
        groups: 0 where the constant has this order; else it is (in, out / groups, *kernel).
        scale: What the node multiplies the values by.
        uses: All (number of a node, input) of the layer that read it; several where a layer is run several times.
    """

    node: Node
    input: int
    constant: Constant
    shape: tuple[int, ...]
    groups: int = 0
    scale: float = 1.0
    uses: list[Use] = field(default_factory=list)

    def canonical(self, values: Array) -> Array:
        """Return values of the constant in PyTorch's order."""
        ordered: Array = swapped(values, self.groups) if self.groups else values.reshape(self.shape)
        return ordered if self.scale == 1 else ordered * np.asarray(self.scale, values.dtype)

    def stored(self, values: Array) -> Array:
        """Return what `canonical` makes such values of."""
        scaled = values if self.scale == 1 else values / np.asarray(self.scale, values.dtype)
        return swapped(scaled, self.groups) if self.groups else scaled.reshape(self.constant.shape)


@dataclass(frozen=True)
class Layer:
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
    weight: Slot | None = None
    bias: Slot | None = None

    @property
    def is_dimensional(self) -> bool:
        """Whether it is no normalisation."""
        return not self.kind.startswith(_NORM)


Element: TypeAlias = "Layer | list[Element] | None"
"""A layer, a module or operation without scored weights (None), or a block."""

Tree: TypeAlias = "Layer | Sequence[Tree]"
"""A layer or the children of a module; one without children is an activation and the like."""


def layers_of(elements: Sequence[Element]) -> list[Layer]:
    """Return all layers, in order."""
    found: list[Layer] = []
    for element in elements:
        found += layers_of(element) if isinstance(element, list) else [element] if element is not None else []
    return found


def swapped(values: Array, groups: int) -> Array:
    """Turn (groups i, o, *kernel) into (groups o, i, *kernel)."""
    first, second, *kernel = values.shape
    parts: Array = values.reshape(groups, first // groups, second, *kernel).swapaxes(1, 2)
    return parts.reshape(groups * second, first // groups, *kernel)


# --- Trees of modules ----------------------------------------------------------------------------------------


def standardized(tree: Tree) -> list[Element]:
    """Return layers and blocks of layers of a tree of modules (the "blocks" standardization of DPIAT's code).

    A module that has more layers than blocks among its parts is a block; one with more blocks gives its parts to
    the module around it, and so does one with fewer than two layers besides normalisations.
    """
    _, _, elements = _standardized(tree, 0)
    return elements if isinstance(elements, list) else [elements]


def _standardized(tree: Tree, level: int) -> tuple[int, int, Element]:
    """Return the depth, the number of layers besides normalisations, and what a module becomes."""
    if isinstance(tree, Layer):
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
    """The scored layers of a graph.

    Attributes:
        draft: An editable copy of the model, which slots of the layers belong to.
    """

    def __init__(self, model: Model) -> None:
        self.draft: Graph = Graph(model)
        self._proto = model.proto
        self._nodes: list[Node] = list(self.draft.graph.nodes)
        self._numbers = {id(node): number for number, node in enumerate(self._nodes)}
        self._sizes = sizes.infer(model.proto)
        self._layers: dict[int, Layer] = {}
        self._biases: set[int] = set()  # the nodes that add biases
        self._owned: dict[tuple[int, int], list[Use]] = {}
        self._constants: dict[int, tuple[Constant, list[Use]]] = {}
        for number, node in enumerate(self._nodes):
            self._add(number, node)

    def _add(self, number: int, node: Node) -> None:
        """Note what a node is and reads; layers that share a matrix are one."""
        for index, constant in enumerate(map(constant_of, node.inputs)):
            if constant is not None and node.op not in ("Constant", "Identity"):
                self._constants.setdefault(id(constant), (constant, []))[1].append((number, index))
        layer = self._layer(number, node)
        if layer is None or layer.weight is None:
            return
        owner = id(layer.weight.constant if len(layer.shape) > 1 else node)  # exporters merge vectors of equal values
        if (owner, id(layer.weight.constant)) not in self._owned:
            self._layers[number] = layer
        for slot in (layer.weight, layer.bias):
            if slot is not None:
                slot.uses = self._owned.setdefault((owner, id(slot.constant)), [])
                slot.uses.append((self._numbers[id(slot.node)], slot.input))

    @property
    def constants(self) -> Iterator[tuple[Constant, list[Use]]]:
        """The constants of floats that have more than one element, each with its (node, input)."""
        for constant, uses in self._constants.values():
            if self.draft.type_of(constant) in DIVISIBLE and math.prod(constant.shape) > 1:
                yield constant, uses

    def scopes(self, uses: Sequence[Use]) -> tuple[str, ...]:
        """Return the modules of nodes, "" where the file does not tell."""
        return tuple(scope_of(self._proto.graph.node[number]) for number, _ in uses)

    @property
    def exporter(self) -> str:
        """What wrote the file."""
        return str(self._proto.producer_name)

    def write(self, slot: Slot, compute: Callable[[], Array]) -> str:
        """Give a layer a weight or bias of its own, in PyTorch's order; return the name of the constant.

        Others that read the constant are tied to it if it is a matrix. A vector that they share had equal values.
        """
        constant = slot.constant
        if len(slot.shape) > 1 or len(self._constants[id(constant)][1]) == len(slot.uses):
            self.draft.replace(constant, constant.shape, lambda: slot.stored(compute()))
            return str(constant.name)
        kind, shape = self.draft.type_of(constant), constant.shape
        own = self.draft.lazy_constant(constant.name, kind, shape, lambda: slot.stored(compute()), like=constant)
        for number, index in slot.uses:
            self._nodes[number].inputs[index] = own
        return str(own.name)

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order of the nodes."""
        return list(self._layers.values())

    def _layer(self, number: int, node: Node) -> Layer | None:
        """Return what a node is to DPIAT."""
        if node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 2:
            return None
        if node.op == "BatchNormalization":
            rank = len(self._sizes.shape(node.inputs[0].name) or (0, 0, 0, 0))
            scale, shift = self._slot(node, 1), self._slot(node, 2)
            return self._named(number, f"{_NORM}{max(rank - 2, 1)}d", scale, shift) if scale and shift else None
        if node.op in ("Conv", "ConvTranspose"):
            weight = self._slot(node, 1, int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 0)
            bias = self._slot(node, 2)
            return self._named(number, f"{node.op}{len(weight.shape) - 2}d", weight, bias) if weight else None
        if node.op in ("Gemm", "MatMul"):
            weight = self._slot(node, 1, 0 if node.attrs.get("transB", 0) else 1, float(node.attrs.get("alpha", 1)))
            if weight is None or len(weight.shape) != 2:
                return None
            bias = self._vector(self._slot(node, 2, scale=float(node.attrs.get("beta", 1))), weight.shape[0])
            return self._named(number, "Linear", weight, bias or self._added(node, weight.shape[0]))
        return None

    def _named(self, number: int, kind: str, weight: Slot, bias: Slot | None) -> Layer:
        proto, constant = self._proto.graph.node[number], weight.constant
        name = module_of(self._nodes[number], proto, constant.name)
        if self._is_merged(weight):
            name = scope_of(proto) or name
        return Layer(kind, weight.shape, name, weight, bias)

    def _is_merged(self, slot: Slot) -> bool:
        """Tell whether a vector stands for several of equal values, so that its name is that of another module."""
        return len(slot.shape) == 1 and len(slot.constant.outputs) > 1

    def _slot(self, node: Node, index: int, groups: int = 0, scale: float = 1.0) -> Slot | None:
        """Return where an input's values are, also behind a Transpose; None if it is no constant of floats."""
        tensor = node.inputs[index] if index < len(node.inputs) else None
        turns = 0
        while tensor is not None and tensor.inputs and tensor.inputs[0].op == "Transpose":
            node, index = tensor.inputs[0], 0
            tensor = node.inputs[0]
            turns += list(node.attrs.get("perm", (1, 0))) != [0, 1]
        constant = constant_of(tensor) if tensor is not None else None
        if constant is None or self.draft.type_of(constant) not in DIVISIBLE or not scale or 0 in constant.shape:
            return None
        first, *rest = constant.shape or (1,)
        if (turns and len(rest) != 1) or (groups and not rest):
            return None
        if turns % 2:
            groups = 1 - groups
        shape = (rest[0] * groups, first // groups, *rest[1:]) if groups else (first, *rest)
        return Slot(node, index, constant, shape, groups, scale)

    def _vector(self, slot: Slot | None, size: int) -> Slot | None:
        """Return a bias as one vector, None if it is none of so many numbers."""
        if slot is None or slot.groups or slot.shape[-1] != size or math.prod(slot.shape) != size:
            return None
        return replace(slot, shape=(size,))

    def _added(self, node: Node, size: int) -> Slot | None:
        """Return the constant vector that is added to the result of a MatMul, and to nothing else."""
        readers = node.outputs[0].outputs
        if node.op != "MatMul" or len(readers) != 1 or readers[0].op != "Add":
            return None
        (add,) = readers
        bias = self._vector(self._slot(add, int(add.inputs[0] is node.outputs[0])), size)
        if bias is not None:
            self._biases.add(self._numbers[id(add)])
        return bias

    # -- blocks ------------------------------------------------------------------------------------------------

    def elements(self) -> list[Element]:
        """Return layers and blocks by the structure of the graph.

        A block is what lies between two nodes that all paths through the layers pass, if paths part there to meet in
        more than a gate and there are two layers besides normalisations. What lies between layers and computes
        something is one element without weights, however many nodes an exporter wrote for it.
        """
        found: list[Element] = []
        region: list[Element] = []
        parted = False
        for number, node in enumerate(self._nodes):
            layer = self._layers.get(number)
            if layer is not None or (self._computes(number) and region[-1:] != [None]):
                region.append(layer)
            if number in self._cuts:
                is_block = parted and node.op not in _GATES and sum(e.is_dimensional for e in layers_of(region)) > 1
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
        is_other = number in self._layers or number in self._biases or self._nodes[number].op in _MOVES
        return not is_other and len(self._paths.get(number, ())) == 1

    @cached_property
    def _paths(self) -> dict[int, set[int]]:
        """The nodes on paths from the first layers to the outputs, each with those right in front of it.

        Only what depends on the values of inputs counts: sizes, masks and positions that no layer made would otherwise
        lead around all blocks.
        """
        told = {tensor.name for tensor in self.draft.graph.inputs}
        behind: dict[int, set[int]] = {}
        for number, node in enumerate(self._nodes):
            read = [tensor for tensor in node.inputs if tensor.name in told]
            if not read or node.op in ("Shape", "Size"):
                continue
            told.update(tensor.name for tensor in node.outputs)
            before = {self._numbers[id(tensor.inputs[0])] for tensor in read if tensor.inputs}
            before = {producer for producer in before if producer in behind}
            if before or number in self._layers:
                behind[number] = before
        ends = {tensor.name for tensor in self.draft.graph.outputs}
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

    def tree(self) -> Tree | None:
        """Return the tree of modules by the names of weights and nodes; None where these tell no tree.

        Modules without weights are those whose name is neither that of a module with parts nor inside of a layer.
        """
        paths = {number: _path(layer.name) for number, layer in self._layers.items()}
        containers = {path[:end] for path in paths.values() for end in range(len(path))}
        own = set(paths.values())
        made_up = {e.weight.constant.name for e in self.layers if e.weight and is_anonymous(e.weight.constant.name)}
        is_nameless = any(layer.name in made_up for layer in self.layers) or not any(path[:-1] for path in own)
        if is_nameless or len(own) < len(paths) or own & containers:
            return None
        names = [tensor.name for tensor in self._proto.graph.initializer]
        ranks = {} if made_up else {name: rank for rank, name in enumerate(names)}
        root: dict[str, Any] = {}
        for number in sorted(paths.keys() | self._paths.keys()):
            path, layer = paths.get(number) or _path(scope_of(self._proto.graph.node[number])), self._layers.get(number)
            if layer is not None and layer.weight is not None:
                rank = None if self._is_merged(layer.weight) else ranks.get(layer.weight.constant.name)
                _grow(root, path, (rank, layer))
            elif path not in containers and not any(path[:end] in own for end in range(len(path) + 1)):
                _grow(root, path, (None, ()))
        return _ordered(root)[1]


def _path(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"[./]", name)) if name else ()


def _grow(root: dict[str, Any], path: Sequence[str], leaf: tuple[int | None, Tree]) -> None:
    """Put a leaf into a tree of modules where nothing is in its place."""
    for step in path[:-1]:
        root = root.setdefault(step, {})
        if not isinstance(root, dict):
            return
    root.setdefault(path[-1], leaf)


def _ordered(root: dict[str, Any]) -> tuple[int | None, Tree]:
    """Return the rank of a module's first weight and its children in PyTorch's order, which is that of the weights.

    Those of a list are ordered by their numbers; those without weights, or with weights to which an exporter gave new
    names and places, stay behind what runs before them.
    """
    children: list[tuple[int, Tree]] = []
    first: int | None = None
    for name, child in root.items():
        rank, tree = _ordered(child) if isinstance(child, dict) else child
        if rank is not None:
            first = rank if first is None else min(first, rank)
        place = rank if rank is not None else children[-1][0] if children else -1
        children.append((int(name) if all(map(str.isdigit, root)) else place, tree))
    return first, [tree for _, tree in sorted(children, key=lambda child: child[0])]
