"""The modules of a network in a common form, whatever operators its exporter wrote.

A module is a layer of weights with its bias and its normalisation, or a scale, a shift or a table that stands alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx

from onnx_net2net.algebra.dims import Axis
from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.activations import Finder
from onnx_net2net.analysis.blocks import residual_depths
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.analysis.names import module_of
from onnx_net2net.graph.graph import Node, Place, Tensor
from onnx_net2net.graph.walk import is_fixed_norm, made_by, number_in
from onnx_net2net.rules import traits

_LEARNT = traits.NORMS | traits.BIASED | {"PRelu"}
"""Operators that learn each input but the first, even a single number."""

_QUANTIZED = re.compile("[Qq]uantize|QLinear|Integer|^QGemm$|NBits")
"""Operators that have parameters only for constants: integers, scales and zero points."""

_PLACES = traits.JOINS | traits.REPEATS | traits.RENAMES | {"Unsqueeze", "Reshape"}
"""Operators that put a constant somewhere, as a class token is put in front of a sequence."""

_VECTORS = ("scale", "shift", "mean", "variance")


@dataclass(frozen=True)
class Parameter:
    """A constant in the place of a parameter.

    Attributes:
        use: The input of the node that reads it.
        order: Permutes its axes to the common order: (out, in, *kernel) for a weight, the constant's own for the rest.
        flat: The number of axes in the common order: those of a kernel of one place are left out.
        channels: The number of axes that are no kernel.
        repeats: Whether the first axis only repeats the rest, as in a token that was expanded to the batch.
    """

    use: Place
    order: tuple[int, ...]
    flat: int
    channels: int = 9
    repeats: bool = False

    def axes(self, analysis: Analysis) -> list[Axis]:
        """Return the axes of the constant in the common order."""
        axes = analysis.uses[self.use].axes
        return [axes[position] for position in self.order][self.repeats : self.flat]

    def shape(self, own: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the constant in the common order."""
        return tuple(own[position] for position in self.order)[self.repeats : self.flat]

    def common(self, values: Array) -> Array:
        """Return values in the common order."""
        turned: Array = values.transpose(self.order)
        return np.reshape(turned[0] if self.repeats else turned, self.shape(values.shape))

    def own(self, values: Array, shape: Sequence[int]) -> Array:
        """Return values in the constant's own order and shape, from those in the common order."""
        turned_shape = [shape[position] for position in self.order]
        if self.repeats:
            values = np.broadcast_to(values[None], (turned_shape[0], *values.shape))
        own: Array = values.reshape(turned_shape).transpose(np.argsort(self.order))
        return own


@dataclass(frozen=True)
class Module:
    """A layer, or a parameter that stands alone.

    Attributes:
        node: The number of its first node.
        name: The module that it belongs to.
        kind: The operator in the common form; only modules of one kind match.
        shape: The shape of its weight in the common order.
        settings: Strides, dilations, and whether its results are multiplied by other activations, as in attention, or
            come from such a product. Modules that compute the same have equal ones.
        resolution: The sizes of a convolution's result along the axes of its kernel.
        parameters: Its parameters by their role: weight, bias, scale, shift, mean, variance, ...
        norm: The BatchNormalization behind a layer, or None.
        neutral: Whether it can compute the identity, so that the target may have it in excess.
        spare: Whether it is in a part that can do nothing.
        normalises: Whether it is a normalisation that changes no more than its epsilon when it is done twice.
        repeats: Whether the first axis of a constant may only repeat the rest.
        copies: Whether it is a stack of layers that all are to be copies of one.
        routes: Whether it only chooses among copies, so that it keeps its values.
        depth: The number of residual blocks around it, nested ones counted.
        place: Its place among all modules of the network.
    """

    node: int
    name: str
    kind: str
    shape: tuple[int, ...]
    settings: tuple[object, ...]
    resolution: tuple[int, ...]
    parameters: Mapping[str, Parameter] = field(compare=False)
    norm: int | None = None
    neutral: bool = False
    spare: bool = False
    normalises: bool = False
    repeats: bool = False
    copies: bool = False
    routes: bool = False
    depth: int = 0
    place: int = 0

    @property
    def is_layer(self) -> bool:
        """Whether it has a weight that activations are multiplied by."""
        return "weight" in self.parameters

    @property
    def end(self) -> int:
        """The last node of a layer with its bias and normalisation."""
        return max(self.node, *(parameter.use[0] for parameter in self.parameters.values()))

    @property
    def text(self) -> str:
        """What it is, for messages."""
        return f"{self.kind} of {' x '.join(map(str, self.shape))}"

    @property
    def uses(self) -> set[Place]:
        """The inputs of nodes that its parameters are."""
        return {parameter.use for parameter in self.parameters.values()}

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of a convolution's kernel, () where all are 1 or it is none."""
        return self.shape[self.parameters["weight"].channels :] if self.is_layer else ()

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """All that similarity depends on."""
        marks = self.neutral, self.repeats, self.depth, self.copies, self.routes
        return self.kind, self.shape, self.settings, self.resolution, tuple(sorted(self.parameters)), marks


def modules_of(analysis: Analysis, proto: onnx.ModelProto) -> list[Module]:
    """Return the modules of a network, in an order that follows from the graph alone.

    Args:
        analysis: The dims of the flat model.
        proto: That model.
    """
    return _Finding(analysis, proto).find()


class _Finding:
    """Finds the modules of one graph."""

    def __init__(self, analysis: Analysis, proto: onnx.ModelProto) -> None:
        self._analysis, self._proto = analysis, proto
        self._nodes, self._uses = analysis.nodes, analysis.uses
        self._network = LayerGraph(analysis)
        self._finder = Finder(self._network, proto)
        self._taken: set[Place] = set()

    def find(self) -> list[Module]:
        """Return the modules, in an order that follows from the graph alone."""
        found = [self._layer(layer) for _, layer in sorted(self._network.layers.items())]
        modules = [module for module in found if module is not None]
        for number, node in enumerate(self._nodes):
            for index in range(len(node.inputs)):
                modules += [self._alone(number, node)] if self._is_parameter((number, index)) else []
        depths = residual_depths(self._network, self._proto)
        order = self._order({module.node for module in modules})
        joins = {module.node: self._join(module.node) for module in modules}
        modules.sort(key=lambda module: (order[joins[module.node]], order[module.node]))
        return [replace(module, depth=depths[joins[module.node]], place=place) for place, module in enumerate(modules)]

    def _join(self, number: int) -> int:
        """Return the node at which a constant, perhaps moved and expanded before, meets data."""
        node = self._nodes[number]
        while node.outputs[0].name not in self._network.told and node.outputs[0].outputs:
            node = node.outputs[0].outputs[0]
        return self._network.number(node)

    def _order(self, modules: Collection[int]) -> dict[int, int]:
        """Return a place for each node: its number when a walk back from the outputs leaves the nodes.

        Unlike the order of the file, it does not depend on how an exporter sorts parallel branches. Of terms and
        factors, which may stand in any order, those with the most modules on the way to them come first.
        """
        nodes, age = self._nodes, self._network.age
        lengths: list[int] = []
        for number, node in enumerate(nodes):
            before = (lengths[maker] for tensor in node.inputs if 0 <= (maker := age(tensor)) < number)
            lengths.append(max(before, default=0) + (number in modules))
        places: dict[int, int] = {}
        left = [age(tensor) for tensor in self._analysis.graph.outputs]
        pending = [(number, False) for number in (*range(len(nodes))[::-1], *left[::-1]) if number >= 0]
        while pending:
            number, is_done = pending.pop()
            if is_done:
                places.setdefault(number, len(places))
            elif number not in places:
                makers = [maker for tensor in nodes[number].inputs if (maker := age(tensor)) >= 0]
                if nodes[number].op in traits.COMMUTATIVE:
                    makers.sort(key=lambda maker: -lengths[maker])
                pending += [(number, True), *((maker, False) for maker in makers[::-1] if maker not in places)]
        return places

    def _is_parameter(self, use: Place, least: int = 2) -> bool:
        """Tell whether an input holds parameters that no module has yet; a single number must be a learnt one."""
        found, op = self._uses.get(use), self._nodes[use[0]].op
        if found is None or use in self._taken or op in traits.SHAPES:
            return False
        if _QUANTIZED.search(op):
            return True
        if math.prod(found.constant.shape) < (1 if op in _LEARNT and use[1] else least):
            return False
        return self._analysis.graph.type_of(found.constant) in DIVISIBLE

    def _layer(self, layer: Layer) -> Module | None:
        """Return a layer with its bias and normalisation."""
        node = self._nodes[layer.number]
        parameter = self._weight(layer)
        if parameter is None:
            return None
        self._taken.add(parameter.use)
        parameters = {"weight": parameter}
        if node.op in traits.BIASED and self._is_parameter((layer.number, 2)):
            parameters["bias"] = self._take((layer.number, 2))
        if _QUANTIZED.search(node.op):
            for use in [use for index in range(len(node.inputs)) if self._is_parameter(use := (layer.number, index))]:
                parameters[f"input {use[1]}"] = self._take(use)
        tensor, norm = node.outputs[0], None
        axis = 1 if layer.convolves else len(self._network.shape(tensor)) - 1
        while (reader := self._analysis.graph.only_reader(tensor)) is not None and norm is None:
            number = self._analysis.numbers[id(reader)]
            if is_fixed_norm(reader, tensor):
                parameters |= self._vectors(number)
                norm = number
            elif "bias" in parameters or (bias := self._bias(number, tensor, axis)) is None:
                break
            else:
                parameters["bias"] = self._take(bias)
            tensor = reader.outputs[0]
        shape = tuple(axis.size for axis in parameter.axes(self._analysis))
        pointwise = layer.convolves and parameter.flat == 2
        kind = "linear" if node.op in traits.MATRICES or pointwise else node.op
        steps = [tuple(node.attrs.get(key) or ()) for key in ("strides", "dilations")] if layer.convolves else [(), ()]
        settings = (*(values if any(n != 1 for n in values) else () for values in steps),
                    layer.number in self._factors, self._is_product(node.inputs[1 - layer.weights]))  # fmt: skip
        resolution = self._network.shape(node.outputs[0])[2:] if layer.convolves else ()
        name, neutral = self._name(layer.number, parameter), self._is_neutral(layer, node, parameter)
        return Module(layer.number, name, kind, shape, settings, tuple(resolution), parameters, norm, neutral)

    @cached_property
    def _factors(self) -> set[int]:
        """The layers whose results are multiplied by one another, with nothing but moves and scales between."""
        found: set[int] = set()
        for product in self._network.products:
            for tensor in self._nodes[product].inputs:
                found.update(self._makers(tensor))
        return found & self._network.layers.keys()

    def _is_product(self, tensor: Tensor) -> bool:
        return any(number in self._network.products for number in self._makers(tensor))

    def _makers(self, tensor: Tensor) -> set[int]:
        """Return the layers and products that a tensor comes from, by way of no other one and of no sum."""
        return self._network.sources(tensor, {*self._network.layers, *self._network.products}, sums=False)

    def _weight(self, layer: Layer) -> Parameter | None:
        """Return the constant that a layer's weights are, perhaps transposed or cast first; None if there is none."""
        number, index = layer.number, layer.weights
        swapped = False
        while (number, index) not in self._uses:
            tensor = self._nodes[number].inputs[index]
            producer = made_by(tensor, traits.REARRANGES - traits.REFOLDS)
            if producer is None:
                return None
            if producer.op in traits.TURNS:
                perm = list(producer.attrs.get("perm") or range(len(self._network.shape(tensor)))[::-1])
                if perm not in ([1, 0], [0, 1]):
                    return None
                swapped ^= perm == [1, 0]
            number, index = self._analysis.numbers[id(producer)], 0
        rank = len(self._uses[number, index].axes)
        node = self._nodes[layer.number]
        if rank == 2 and not layer.convolves:
            operands = {operand for c in self._analysis.said[layer.number].contractions for operand in c.sides}
            reads = next((position for index, position in operands if index == layer.weights), 1) ^ swapped
            return Parameter((number, index), (1 - reads, reads), 2)
        group = int(node.attrs.get("group", 1))
        shape = self._uses[number, index].constant.shape
        plain = node.op in traits.PLAIN_CONVOLUTIONS and group == 1 and all(size == 1 for size in shape[2:])
        return Parameter((number, index), tuple(range(rank)), 2 if plain else rank, 2 if layer.convolves else rank)

    def _bias(self, number: int, tensor: Tensor, axis: int) -> Place | None:
        """Return the constant input of an Add that adds one number to each unit of an axis; None for other nodes."""
        node = self._nodes[number]
        use = number, 1 if node.inputs[0] is tensor else 0
        if node.op != "Add" or use not in self._uses or not self._is_parameter(use, least=1):
            return None
        result = self._network.shape(tensor)
        shape = self._uses[use].constant.shape
        shape = [*(1 for _ in range(len(result) - len(shape))), *shape]
        is_along = 0 < len(shape) == len(result) and all(n == (m if p == axis else 1) for p, (n, m) in
                                                     enumerate(zip(shape, result, strict=True)))  # fmt: skip
        return use if is_along else None

    def _take(self, use: Place) -> Parameter:
        """Return a constant as a parameter; axes of one unit are left out of vectors."""
        self._taken.add(use)
        axes = self._uses[use].axes
        real = [position for position, axis in enumerate(axes) if axis.size > 1]
        if len(real) > 1:
            return Parameter(use, tuple(range(len(axes))), len(axes))
        rest = [position for position in range(len(axes)) if position not in real]
        return Parameter(use, (*real, *rest), min(len(axes), 1))

    def _vectors(self, number: int) -> dict[str, Parameter]:
        """Return the parameters of a normalisation."""
        inputs = range(1, len(self._nodes[number].inputs))
        return {what: self._take((number, index)) for what, index in zip(_VECTORS, inputs, strict=False)
                if (number, index) in self._uses and (number, index) not in self._taken}  # fmt: skip

    def _alone(self, number: int, node: Node) -> Module:
        """Return a module that is no layer: a normalisation, a scale, a shift, a table or another constant."""
        norm = number if node.op in traits.FIXED_NORMS else None
        if node.op in traits.NORMS:
            parameters, kind = self._vectors(number), "affine"
            if self._is_parameter((number, 0)):  # weights that are standardised
                parameters["normalised"] = self._take((number, 0))
        elif node.op in traits.TIMES:
            parameters, kind = {"scale": self._first(number)}, "affine"
            if (shift := self._shift(parameters["scale"].use)) is not None:
                parameters["shift"] = self._take(shift)
        else:
            uses = [(number, index) for index in range(len(node.inputs)) if self._is_parameter((number, index))]
            kind = "constant" if node.op in _PLACES else node.op
            parameters = {f"{kind} {place}": self._take(use) for place, use in enumerate(uses)}
        if not parameters:
            parameters = {node.op: self._first(number)}
        main = next(iter(parameters.values()))
        shape = tuple(axis.size for axis in main.axes(self._analysis) if axis.size > 1)
        again = node.op in traits.ROW_NORMS
        repeats = kind == "constant" and self._repeats(main)
        return Module(number, self._name(number, main), kind, shape, (), (), parameters, norm, normalises=again,
                    repeats=repeats)  # fmt: skip

    def _repeats(self, parameter: Parameter) -> bool:
        """Tell whether the first axis of a constant only repeats the rest."""
        constant = self._uses[parameter.use].constant
        if len(constant.shape) < 2 or constant.shape[0] < 2:
            return False
        values = self._analysis.graph.read(constant)
        return bool((values == values[:1]).all())

    def _shift(self, scale: Place) -> Place | None:
        """Return the constant that is added behind a scale, and along its axis; None if there is none."""
        result = self._nodes[scale[0]].outputs[0]
        while (reader := self._analysis.graph.only_reader(result)) is not None and self._does_nothing(reader, result):
            result = reader.outputs[0]
        if reader is None:
            return None
        constant = self._uses[scale].constant
        rank = len(self._network.shape(result))
        real = [rank - len(constant.shape) + position for position, size in enumerate(constant.shape) if size > 1]
        return self._bias(self._analysis.numbers[id(reader)], result, real[0]) if len(real) == 1 else None

    def _does_nothing(self, node: Node, tensor: Tensor) -> bool:
        """Tell whether a node multiplies by 1, as PyTorch's addcmul and addmm do, or renames its input."""
        if node.op not in traits.TIMES:
            return node.op in traits.RENAMES
        return number_in(self._analysis.graph, node.inputs[1 if node.inputs[0] is tensor else 0]) == 1

    def _first(self, number: int) -> Parameter:
        """Return the first parameter of a node."""
        indices = range(len(self._nodes[number].inputs))
        return self._take(next((number, i) for i in indices if self._is_parameter((number, i))))

    def _name(self, number: int, parameter: Parameter) -> str:
        node = self._nodes[parameter.use[0]]
        return module_of(self._nodes[number], self._proto.graph.node[number], node.inputs[parameter.use[1]].name)

    def _is_neutral(self, layer: Layer, node: Node, parameter: Parameter) -> bool:
        """Tell whether a layer can compute the identity: as many units in as out, no stride, an idempotent function."""
        source, result = (self._network.shape(t) for t in (node.inputs[1 - layer.weights], node.outputs[0]))
        is_float = self._analysis.graph.type_of(self._uses[parameter.use].constant) in DIVISIBLE
        if layer.weights != 1 or node.op not in traits.PLAIN_LAYERS or source != result or not is_float:
            return False
        kernel = parameter.axes(self._analysis)[2:]
        if any(axis.size % 2 == 0 for axis in kernel):
            return False
        return "identity" in self._finder.site(layer).ways
