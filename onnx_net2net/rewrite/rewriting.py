"""A graph that is being brought to other sizes, and what it needs for that besides weights of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_net2net.algebra.dims import Axes, Axis, Dim, leaves
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Growth, new_size
from onnx_net2net.algebra.weights import Filler
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.modules import Modules
from onnx_net2net.analysis.routers import Mask
from onnx_net2net.analysis.ties import Ties
from onnx_net2net.graph.edit import Writer, drop_unread
from onnx_net2net.graph.graph import Graph, Node, Tensor, Variable
from onnx_net2net.graph.walk import constant_of


@dataclass(frozen=True)
class Inserted:
    """Something that a student needs beside weights of other sizes.

    Attributes:
        what: What it is.
        place: The node or the tensor that it is at.
        is_number: Whether it only keeps a number that is computed from a size which grows.
    """

    what: str
    place: str
    is_number: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.place!r}"


@dataclass(frozen=True)
class Copies:
    """How copies of experts are kept from counting twice.

    Attributes:
        masks: Where all copies of an expert but one are masked, for each token another one.
        lifts: The biases that rule copies out, with what they are filled by.
        parted: The weights in which copies that are chosen together differ.
        factors: What constants are multiplied by.
        modules: Experts that are modules of their own, which get copies.
        parts: For units inside of experts that are cut into parts: the dim of the experts.
    """

    masks: tuple[Mask, ...] = ()
    lifts: Mapping[tuple[int, int], Filler] = field(default_factory=dict)
    parted: frozenset[tuple[int, int]] = frozenset()
    factors: Mapping[tuple[int, int], float] = field(default_factory=dict)
    modules: tuple[Modules, ...] = ()
    parts: Mapping[Dim, Dim] = field(default_factory=dict)


class Rewriting:
    """A graph on its way to other sizes.

    Attributes:
        analysis: What the graph was: its dims, and the numbers of its nodes.
        graph: The graph of the draft, which becomes the student's.
        growth: Map of each dim that gets another size.
        ties: What else changes for tied weights.
        copies: How copies of experts are kept from counting twice.
        inserted: What was put in: nodes, and numbers that had to be kept.
        untied: Matrices that became several versions for their uses.
        axes: The teacher's axes of each tensor that is there by now.
    """

    def __init__(self, draft: Draft, growth: Growth, ties: Ties | None = None, copies: Copies | None = None) -> None:
        self.analysis, self.growth, self.ties = draft, growth, ties or Ties()
        self.copies = copies or Copies()
        self.graph: Graph = draft.graph
        self.nodes: list[Node] = list(draft.nodes)
        self.inserted: list[Inserted] = []
        self.untied: list[str] = []
        self.axes = dict(draft.axes)
        self._types: dict[str, onnx.TypeProto] = {}

    def grown(self, axis: Axis) -> set[Dim]:
        """Return the dims of an axis that grow."""
        return {dim for dim in leaves(axis) if dim in self.growth}

    def split_axes(self, axes: Axes) -> set[int]:
        """Return the positions of the axes that have copies which all count whole, as experts do."""
        return {
            position
            for position, axis in enumerate(axes)
            if any((self.growth[dim].weight == 1).all() for dim in self.grown(axis))
        }

    def size(self, axis: Axis) -> int:
        """Return the size of an axis in the student."""
        return new_size(axis, self.growth)

    def input_axes(self, number: int, index: int) -> Axes:
        """Return the teacher's axes of what a node reads by now, none where they are not known."""
        use = self.analysis.uses.get((number, index))
        return use.axes if use else self.axes.get(self.nodes[number].inputs[index].name, ())

    def note(self, what: str, node: Node, *, is_number: bool = False) -> None:
        """Note what a node needed."""
        self.inserted.append(Inserted(what, node.name or node.outputs[0].name, is_number))

    # -- nodes that weigh units --------------------------------------------------------------------------------

    def insert(self, number: int, index: int, position: int, **by: Array) -> None:
        """Multiply an operand of a node by one value for each unit of an axis (`times`), or add that to it (`plus`)."""
        node = self.nodes[number]
        tensor = node.inputs[index]
        weighed = self._like(tensor, f"{tensor.name}_weighed")
        self.axes[weighed.name] = self.input_axes(number, index)
        self._combine(node.name or tensor.name, tensor, position, weighed, **by)
        node.inputs[index] = weighed

    def append(self, number: int, position: int, **by: Array) -> None:
        """Multiply the result of a node by one value for each unit of an axis (`times`), or add that to it (`plus`)."""
        node = self.nodes[number]
        inner, result = self.intercept(node, 0)
        self._combine(node.name or result.name, inner, position, result, **by)

    def intercept(self, node: Node, output: int) -> tuple[Variable, Variable]:
        """Let a node make a new tensor instead of one; return the new one, and the old one, which nobody makes yet."""
        result = node.outputs[output]
        node.outputs[output] = inner = self._like(result, f"{result.name}_plain")
        return inner, result

    def _like(self, tensor: Tensor, name: str) -> Variable:
        like = Variable(self.graph.unique_name(name), dtype=tensor.dtype)
        self._types[like.name] = self._type(tensor)  # another axis may be weighed after this
        return like

    def type_of(self, tensor: Tensor) -> int:
        """Return the element type of a tensor (onnx.TensorProto.DataType)."""
        return int(self._type(tensor).tensor_type.elem_type)

    def _type(self, tensor: Tensor) -> onnx.TypeProto:
        return self._types.get(tensor.name) or self.analysis.sizes.types[tensor.name]

    def _combine(
        self, name: str, tensor: Tensor, position: int, result: Variable, times: Array | None = None,
        plus: Array | None = None,
    ) -> None:  # fmt: skip
        kind, values = ("Mul", times) if plus is None else ("Add", plus)
        assert values is not None
        known = self._type(tensor).tensor_type
        dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(known.elem_type))
        values = values.astype(dtype).reshape(-1, *(1,) * (len(known.shape.dim) - 1 - position))
        weights = self.graph.constant(f"{tensor.name}_weights", values)
        Writer(self.graph, name).add(kind, tensor, weights, name="_weigh", result=result)
        self.inserted.append(Inserted(f"{kind} at", name))

    # -- the end -----------------------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Bring the recorded shapes of activations up to date, and remove nodes that nobody reads any more."""
        for name, tensor in self.graph.graph.tensors().items():
            axes = self.axes.get(name)
            stated = tensor.shape if isinstance(tensor, Variable) else None
            constant = constant_of(tensor) if stated is not None else None
            if constant is not None:
                tensor.shape = list(constant.shape)
            elif axes is not None and stated is not None and len(axes) == len(stated):
                pairs = zip(axes, stated, strict=True)
                tensor.shape = [self.size(axis) if self.grown(axis) else size for axis, size in pairs]
        drop_unread(self.graph, self.analysis.kept)
