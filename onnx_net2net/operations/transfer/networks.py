"""The two networks of a transfer, and what stands in the way of an exact one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis, infer
from onnx_net2net.graph import sizes
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Constant, Place, dtype_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.modules import Module, Parameter, modules_of
from onnx_net2net.operations.transfer.segments import Segment, grouped
from onnx_net2net.rules import traits

Compute = Callable[[], Array]
"""Computes the values of a tensor when they are needed."""


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

    def __init__(self, model: Model) -> None:
        self.opened = open_bodies(model)
        self.analysis: Analysis = infer(self.opened.model, by_units=False)
        self.nodes = list(self.analysis.nodes)  # growing inserts others between them
        self.numbers = self.analysis.numbers

    @cached_property
    def modules(self) -> list[Module]:
        """Its modules, in order."""
        return modules_of(self.analysis, self.opened.model.proto)

    @cached_property
    def segments(self) -> list[Segment]:
        """Its modules, those of a block together."""
        return grouped(self.modules, self.analysis, self.opened.model.proto)

    def runnable(self, *, filled: bool = False) -> Model:
        """Return the network with its bodies, as it was given or, if `filled`, as it is by now."""
        return self.opened.close(self.analysis.draft.finish() if filled else self.opened.model)

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

    def dtype(self, constant: Constant) -> np.dtype[Any]:
        """Return the type of a constant's elements."""
        return dtype_of(constant)

    def original(self, use: Place) -> Constant:
        """Return the constant that an input of a node was before anything changed."""
        return self.analysis.uses[use].constant

    def is_float(self, constant: Constant) -> bool:
        """Tell whether a constant's elements are ordinary floats, and no integers that weights are packed in."""
        return self.analysis.draft.type_of(constant) in DIVISIBLE

    def reader(self, parameter: Parameter) -> Compute | None:
        """Return what reads a parameter as it is now, in the common order; None if nodes are in its place."""
        constant = self.constant(parameter)
        if constant is None:
            return None
        read = self.analysis.draft.reader(constant)
        return lambda: parameter.common(read())

    def readers(self, parameters: Mapping[str, Parameter]) -> dict[str, Compute]:
        """Return what reads each of some parameters, without those that nodes are in the place of."""
        reads = {what: self.reader(parameter) for what, parameter in parameters.items()}
        return {what: read for what, read in reads.items() if read is not None}

    def epsilon(self, norm: int) -> float:
        """Return the epsilon of a normalisation."""
        return float(self.nodes[norm].attrs.get("epsilon", 1e-5))


@dataclass
class Networks:
    """Teacher and target.

    Attributes:
        teacher: The trained network; it is grown in place.
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
    """Return a model in which a Gather that only gives a tensor another shape is a Reshape, which lets dims grow.

    PyTorch's exporter writes `as_strided` so: it looks up 0, 1, 2, ... in a flat tensor.
    """
    tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    constants = (node for node in model.proto.graph.node if node.op_type == "Constant" and not node.domain)
    tensors |= {node.output[0]: a.t for node in constants for a in node.attribute if a.name == "value"}
    found = {}
    for number, node in enumerate(model.proto.graph.node):
        if node.op_type == "Gather" and not node.domain and node.input[1] in tensors and node.input[0] not in tensors:
            places = np.asarray(model.tensor(tensors[node.input[1]]).numpy())
            if places.size > 1 and np.array_equal(places.reshape(-1), np.arange(places.size)):
                found[number] = places
    if not found:
        return model
    shapes = sizes.infer(model.proto).shape
    proto = copy.deepcopy(model.proto)
    for number, places in found.items():
        node = proto.graph.node[number]
        if shapes(node.input[0]) == (places.size,):
            name = f"{node.output[0]}_shape"
            proto.graph.initializer.append(numpy_helper.from_array(np.array(places.shape, np.int64), name))
            node.CopyFrom(helper.make_node("Reshape", [node.input[0], name], list(node.output), node.name))
    return replace(model, proto=proto, path=None)
