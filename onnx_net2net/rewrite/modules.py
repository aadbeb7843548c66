"""Copies of experts that are modules of their own: their nodes, each with weights of its own, added to the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_net2net.algebra.maps import compose
from onnx_net2net.analysis.inference import DIVISIBLE
from onnx_net2net.analysis.modules import Modules
from onnx_net2net.graph.branches import Branch, find_branches, in_order
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Node, Place, Tensor, Variable
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rules import traits


def copy_modules(rewriting: Rewriting, found: Sequence[Modules]) -> None:
    """Give each copy of an expert a module of its own.

    Args:
        rewriting: The graph, whose constants have grown.
        found: The experts that are modules.
    """
    for modules in found:
        index = compose(modules.axis, rewriting.growth).index
        nodes = in_order(rewriting.graph.nodes)
        starts = [rewriting.nodes[number] for number, _ in modules.numbers]
        total, branches = find_branches(nodes, starts, rewriting.analysis.kept)
        copies = [(int(expert), place) for place, expert in enumerate(index)]
        firsts = dict(reversed(copies))
        more = [(expert, place) for expert, place in copies if firsts[expert] != place]
        if not more:
            continue
        rewriting.note(f"{len(more)} modules of experts behind", total)
        so_far, result = rewriting.intercept(total, 0)
        for turn, (expert, place) in enumerate(more):
            last = result if turn == len(more) - 1 else None
            so_far = _Copy(rewriting, branches[expert], modules.numbers[expert], place).write(so_far, last)
        for expert, (number, input) in enumerate(modules.numbers):
            node = rewriting.nodes[number]
            node.inputs[input] = _number(rewriting, node.inputs[input], firsts[expert])


def _number(rewriting: Rewriting, tensor: Tensor, place: int) -> Tensor:
    """Return a constant like that of an expert's number, with another one."""
    constant = constant_of(tensor)
    assert constant is not None
    values = rewriting.graph.read(constant)
    return rewriting.graph.constant(f"{constant.name}_{place}", np.full(values.shape, place, values.dtype))


class _Copy:
    """A copy of one expert's branch."""

    def __init__(self, rewriting: Rewriting, branch: Branch, number: Place, place: int) -> None:
        self._rewriting, self._graph = rewriting, rewriting.graph
        self._branch, self._place = branch, place
        self._start, self._input = rewriting.nodes[number[0]], number[1]
        self._made: dict[int, Tensor] = {}

    def write(self, so_far: Tensor, result: Variable | None) -> Variable:
        """Write it, and return its sum with what there is so far."""
        for node in self._branch.nodes:
            self._write(node)
        join = self._branch.join
        parts = [self._made[id(join.inputs[index])] for index in self._branch.reads]
        op = Writer(self._graph, self._name(join.name or join.op))
        if join.op in traits.SUMS or self._branch.reads == (0,):  # the first of a row of scatters holds all of it
            return op.Add(so_far, parts[0], name="", result=result)
        inputs = [so_far, *(self._made.get(id(tensor), tensor) for tensor in join.inputs[1:])]
        return op.add(join.op, *inputs, name="", result=result, **join.attrs)

    def _write(self, node: Node) -> None:
        inputs = [self._read(tensor) for tensor in node.inputs]
        if node is self._start:
            inputs[self._input] = _number(self._rewriting, node.inputs[self._input], self._place)
        outputs = []
        for tensor in node.outputs:
            copy = Variable(self._graph.unique_name(self._name(tensor.name)), dtype=tensor.dtype)
            self._made[id(tensor)] = copy
            outputs.append(copy)
        label = self._graph.unique_name(self._name(node.name or node.op))
        self._graph.graph.nodes.append(Node(node.op, label, dict(node.attrs), inputs, outputs, domain=node.domain))

    def _read(self, tensor: Tensor) -> Tensor:
        """Return what a copy reads: what it made, a weight of its own, or what all read."""
        constant = constant_of(tensor)
        if constant is None:
            return self._made.get(id(tensor), tensor)
        is_weight = math.prod(constant.shape) > 1 and self._graph.type_of(constant) in DIVISIBLE
        if not is_weight:
            return tensor
        return self._made.setdefault(id(constant), self._graph.copied(constant, self._name(constant.name)))

    def _name(self, name: str) -> str:
        return f"{name}_copy{self._place}"
