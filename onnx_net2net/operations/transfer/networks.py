"""The two networks of a transfer, and what stands in the way of an exact one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_net2net.algebra.floats import Compute
from onnx_net2net.analysis import layers
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.heads import find_heads
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis, infer
from onnx_net2net.graph import sizes
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Constant, Place
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import constants_in
from onnx_net2net.operations.transfer.modules import Module, Parameter, modules_of
from onnx_net2net.operations.transfer.segments import Segment, grouped
from onnx_net2net.operations.transfer.spares import Spare, find_spares
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class Obstacle:
    """Why the student does not compute the teacher's function.

    Attributes:
        place: The layer or dim, as the target or the teacher calls it.
        reason: The reason.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Network:
    """One of the two networks."""

    def __init__(self, model: Model, hold: Callable[[Analysis], None] = lambda _: None) -> None:
        """Take the network, and what states more of its dims; see `analysis.inference.infer`."""
        self.model, self.opened = model, open_bodies(model)
        self.analysis = Draft.of(infer(self.opened.model, by_units=False, heads=find_heads, hold=hold))
        self.nodes = list(self.analysis.nodes)  # growing inserts others between them
        self.numbers = self.analysis.numbers

    @cached_property
    def modules(self) -> list[Module]:
        """Its modules, in order."""
        return modules_of(self.analysis, self.opened.model.proto)

    @cached_property
    def segments(self) -> list[Segment]:
        """Its modules, those of a block together."""
        return grouped(self.modules, self.analysis, self.opened.model.proto, self.spares)

    @cached_property
    def spares(self) -> list[Spare]:
        """The parts of it that can do nothing, and those that cannot."""
        return find_spares(layers.LayerGraph(self.analysis), {module.node for module in self.modules})

    def runnable(self, *, filled: bool = False) -> Model:
        """Return the network with its bodies, as it was given or, if `filled`, as it is by now."""
        return self.opened.close(self.analysis.graph.finish() if filled else self.opened.model)

    @cached_property
    def visible(self) -> frozenset[str]:
        """The tensors that can be looked at when it runs: all but those inside of bodies."""
        graph = self.runnable().proto.graph
        return frozenset(name for node in graph.node for name in node.output).union(v.name for v in graph.input)

    def constant(self, parameter: Parameter) -> Constant | None:
        """Return the constant that a parameter is now, None if growing put nodes in its place."""
        return constant_of(self.nodes[parameter.use[0]].inputs[parameter.use[1]])

    @cached_property
    def readings(self) -> dict[int, list[Place]]:
        """The inputs of nodes that each constant was, by its id; those that read only its shape are left out."""
        found = {}
        for uses in self.analysis.readings():
            read = [use for use in uses if self.nodes[use.node].op not in traits.SHAPES]
            found[id(uses[0].constant)] = [(use.node, use.input) for use in read or uses]
        return found

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """Return the shape that a parameter has now, in the common order."""
        constant = self.constant(parameter)
        shape = tuple(constant.shape) if constant is not None else ()
        return parameter.shape(shape) if shape else ()

    def original(self, use: Place) -> Constant:
        """Return the constant that an input of a node was before anything changed."""
        return self.analysis.uses[use].constant

    def is_float(self, constant: Constant) -> bool:
        """Tell whether a constant's elements are ordinary floats, and no integers that weights are packed in."""
        return self.analysis.graph.type_of(constant) in DIVISIBLE

    def reader(self, parameter: Parameter) -> Compute | None:
        """Return what reads a parameter as it is now, in the common order; None if nodes are in its place."""
        constant = self.constant(parameter)
        if constant is None:
            return None
        read = self.analysis.graph.reader(constant)
        return lambda: parameter.common(read())

    def readers(self, parameters: Mapping[str, Parameter]) -> dict[str, Compute]:
        """Return what reads each of some parameters, without those that nodes are in the place of."""
        reads = {what: self.reader(parameter) for what, parameter in parameters.items()}
        return {what: read for what, read in reads.items() if read is not None}

    @cached_property
    def identities(self) -> frozenset[Place]:
        """The identity matrices that sums add, which a class makes of its size; asked for before anything grows."""
        found = set()
        for place, use in self.analysis.uses.items():
            shape = [size for size in use.constant.shape if size > 1]
            is_square = len(shape) == 2 and shape[0] == shape[1] and self.nodes[place[0]].op in traits.SUMS
            if is_square and self.is_float(use.constant):
                values = np.asarray(self.analysis.graph.read(use.constant))
                found.update([place] if np.array_equal(values.reshape(shape), np.eye(shape[0])) else [])
        return frozenset(found)

    def epsilon(self, norm: int) -> float:
        """Return the epsilon of a normalisation."""
        return float(self.nodes[norm].attrs.get("epsilon", 1e-5))


@dataclass
class Networks:
    """Teacher and target.

    Attributes:
        teacher: The trained network; `fit` grows its draft.
        target: The network to be filled.
        obstacles: Why the transfer is not exact, as far as known.
    """

    teacher: Network
    target: Network
    obstacles: list[Obstacle] = field(default_factory=list)

    def __iter__(self) -> Iterator[Network]:
        return iter((self.teacher, self.target))

    def hinder(self, place: str, reason: str) -> None:
        """Note an obstacle once."""
        obstacle = Obstacle(place, reason)
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)


def reshaped(model: Model) -> Model:
    """Return a model in whose Reshapes more dims can be seen, so that they can grow.

    A Gather that only gives a tensor another shape is a Reshape: PyTorch's exporter writes `as_strided` so, and looks
    up 0, 1, 2, ... in a flat tensor. And the 1 of a single head is made where the units are that a head has.
    """
    tensors = constants_in(model.proto.graph)
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    shapes = sizes.infer_sizes(model.proto).shape
    nodes, shape_of = [], {}
    for node in model.proto.graph.node:
        new = [node]
        if node.op_type == "Gather" and not node.domain and node.input[1] in tensors and node.input[0] not in tensors:
            places = np.asarray(model.tensor(tensors[node.input[1]]).numpy())
            is_whole = places.size > 1 and np.array_equal(places.reshape(-1), np.arange(places.size))
            if is_whole and shapes(node.input[0]) == (places.size,):
                name = f"{node.output[0]}_shape"
                shape_of[name] = list(places.shape)
                new = [helper.make_node("Reshape", [node.input[0], name], list(node.output), node.name)]
        elif node.op_type == "Reshape" and (turned := makers.get(node.input[0])) and turned.op_type == "Transpose":
            order = _with_head(turned, shapes(node.input[0]) or (), shapes(node.output[0]) or ())
            before = makers.get(turned.input[0])
            merges = before is not None and before.op_type == "Reshape" and 1 in (shapes(before.input[0]) or ())[1:]
            if order and not merges:  # the 1 is that which was merged
                name = f"{node.output[0]}_head"
                shape_of[name] = [0] * (len(order) - 2) + [1, -1]
                apart = helper.make_node("Reshape", [turned.input[0], name], [f"{name}s"], name)
                new = [apart, helper.make_node("Transpose", [f"{name}s"], list(node.output), node.name, perm=order)]
        nodes += new
    if not shape_of:
        return model
    proto = copy.deepcopy(model.proto)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for name, values in shape_of.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return replace(model, proto=proto, path=None)


def _with_head(turned: onnx.NodeProto, source: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    """Return the order of axes if a 1 that a Reshape puts between turned axes is put in front of the last one before.

    Args:
        turned: The Transpose in front of the Reshape.
        source: The shape that it makes.
        shape: The shape that the Reshape makes.

    Returns:
        The order in which they have to be turned then, nothing if the Reshape does something else.
    """
    last = len(source) - 1
    for place in range(1, last) if (len(source), len(shape)) == (3, 4) else ():  # of more axes one is that of heads
        is_put_between = shape[place] == 1 and (*shape[:place], *shape[place + 1 :]) == source
        if is_put_between and 1 not in source[place - 1 : place + 1]:
            perm = next((list(a.ints) for a in turned.attribute if a.name == "perm"), list(range(last, -1, -1)))
            order = [axis + (axis == last) for axis in perm]
            return [*order[:place], last, *order[place:]]
    return []
