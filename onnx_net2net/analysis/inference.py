"""The forward pass: finds the dims of every tensor, node by node, by the rule of each operator.

This is the "remapping inference algorithm that makes a forward pass through the graph, querying each operation"
that Net2Net (Chen, Goodfellow, Shlens 2016, section 2.3) asks for. Dims are found by propagation alone: equal
sizes never mean equal dims.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axes, Axis, Dim
from onnx_net2net.analysis.shuffles import Shuffle, find_shuffles
from onnx_net2net.analysis.singles import Position, Singles
from onnx_net2net.graph import sizes
from onnx_net2net.graph.graph import Constant, Graph, Node, Tensor, Topology
from onnx_net2net.graph.walk import constant_of, is_alias, label_of
from onnx_net2net.model.model import Model
from onnx_net2net.rules import lookup, traits
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.reasons import LISTED, UNREAD, UNTYPED
from onnx_net2net.rules.statements import Contraction, Statements

STRICT = False
"""Whether errors of rules are raised; else what a rule stumbles over is taken for a node that no operator has."""

DIVISIBLE = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
"""Element types whose values copies can share."""

SHAREABLE = tuple(getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (4, 8, 16, 32))
"""Element types of integers that copies can share in whole parts."""


@dataclass(eq=False)
class Use:
    """A constant read by one input of one node.

    Vectors have dims of their own at each use: exporters merge those of equal value (zero biases, unit scales),
    which must not tie layers together. The uses of a matrix share its dims: that is a real tie. So do the nodes that
    cut a vector up: they read the parts of one parameter.
    """

    node: int
    input: int
    constant: Constant
    axes: Axes


@dataclass
class Analysis:
    """The dims of a graph and what its nodes said about them.

    Attributes:
        graph: The graph that the node numbers below count in; only that of a `Draft` is edited.
        sizes: Teacher sizes at the probe binding.
        axes: Axes of each activation, by tensor name.
        uses: Each read of a constant, by (node, input).
        said: Statements of each node, by its number.
        shuffles: Node runs that are treated as one permutation, by the number of the last node.
        cut: Outputs that are hidden units too: what they have more in the student is cut off.
        places: For tensors that hold places that a node chose along an axis, that axis.
    """

    graph: Graph
    sizes: sizes.Sizes
    axes: dict[str, Axes] = field(default_factory=dict)
    uses: dict[tuple[int, int], Use] = field(default_factory=dict)
    said: dict[int, Statements] = field(default_factory=dict)
    shuffles: dict[int, Shuffle] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    places: dict[str, Axis] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the graph, in order."""
        return self.graph.nodes

    @cached_property
    def singles(self) -> Singles:
        """The axes of size 1 that are hidden channels, and do not broadcast."""
        return Singles(self.nodes, self.kept, self.sizes.shape, lambda tensor: constant_of(tensor) is not None)

    @property
    def numbers(self) -> dict[int, int]:
        """The number of each node, by its id."""
        return self.graph.numbers

    @property
    def kept(self) -> frozenset[str]:
        """The names of tensors that are read by more than nodes: outputs, and what bodies capture."""
        return self.graph.kept

    def input_axes(self, node: int, index: int) -> Axes | None:
        """Return the axes that a node sees at an input, or None where they are not known."""
        use = self.uses.get((node, index))
        return use.axes if use else self.axes.get(self.nodes[node].inputs[index].name)

    def is_derived(self, node: int, index: int) -> bool:
        """Tell whether what a node reads follows from constants alone."""
        return (node, index) in self.uses or self.nodes[node].inputs[index].name in self._derived

    def readings(self) -> list[list[Use]]:
        """Return the uses of each constant."""
        found: dict[int, list[Use]] = {}
        for use in self.uses.values():
            found.setdefault(id(use.constant), []).append(use)
        return list(found.values())

    @cached_property
    def _derived(self) -> set[str]:
        names = {""}
        for node in self.nodes:
            if all(tensor.name in names or constant_of(tensor) is not None for tensor in node.inputs):
                names.update(tensor.name for tensor in node.outputs)
        return names

    def weighings(self) -> Iterator[tuple[int, int, Contraction]]:
        """Yield each sum in which a weight, or what follows from weights alone, takes part: node, input and sum."""
        for number, said in self.said.items():
            for contraction in said.contractions:
                for index, _ in contraction.sides:
                    if self.is_derived(number, index):
                        yield number, index, contraction

    def dims(self) -> list[Dim]:
        """Return the dims that constants or activations have, in the order of their first use."""
        found: dict[int, Dim] = {}
        for axes in (*(use.axes for use in self.uses.values()), *self.axes.values()):
            for axis in axes:
                for dim in dims.leaves(axis):
                    found.setdefault(id(dim), dim)
        return list(found.values())


def infer(
    model: Model,
    *,
    by_units: bool = True,
    heads: Callable[[Analysis], set[Position]] | None = None,
    hold: Callable[[Analysis], None] = lambda _: None,
) -> Analysis:
    """Infer the dims of every tensor of a model; no weight is read. Nothing that was inferred changes afterwards.

    A graph with channel shuffles is looked at in two ways, as products of axes and unit by unit, and the one
    that leaves more weights growable is returned.

    Args:
        model: The model.
        by_units: Whether the latter is allowed; a grown shuffle then becomes a Gather.
        heads: Finds axes of size 1 that are dims, like `analysis.heads`.
        hold: States more of the dims than the operators do: which keep their size, and which are the same.
    """
    known = sizes.infer_sizes(model.proto)
    analysis = _forward(model, known, unitwise=False, heads=heads)
    if by_units and any(True for _ in find_shuffles(analysis.nodes, analysis.kept, known.shape)):
        analysis = max(analysis, _forward(model, known, unitwise=True), key=_growable_elements)
    hold(analysis)
    return analysis


def _growable_elements(analysis: Analysis) -> int:
    total = 0
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        if any(not dim.frozen for axis in use.axes for dim in dims.leaves(axis)):
            total += int(np.prod([axis.size for axis in use.axes], initial=1))
    return total


def _forward(
    model: Model, known: sizes.Sizes, unitwise: bool, heads: Callable[[Analysis], set[Position]] | None = None
) -> Analysis:
    analysis = Analysis(Graph(model), known)
    if heads is not None:
        analysis.singles.tensors |= heads(analysis)
    graph = analysis.graph
    for tensor in graph.inputs:
        for axis in _variable_axes(analysis, tensor.name) or ():
            dims.pin(axis, f"is the model's input {tensor.name!r}")
    if unitwise:
        shuffles = find_shuffles(analysis.nodes, analysis.kept, known.shape)
        analysis.shuffles = {shuffle.last: shuffle for shuffle in shuffles}
    inside = {n for s in analysis.shuffles.values() for n in range(s.first, s.last)}
    versions = sizes.opsets_of(model.proto)
    matrices: dict[int, Axes] = {}
    for number, node in enumerate(graph.nodes):
        if number not in inside and not is_alias(node):
            _visit(analysis, number, node, versions, matrices)
    _freeze_positions(analysis)
    _close_outputs(analysis)
    return analysis


def _close_outputs(analysis: Analysis) -> None:
    """Keep the sizes of the model's outputs: hidden units are cut off where a weight reads them, others stay."""
    read = {
        dim
        for number, _, contraction in analysis.weighings()
        if not all(analysis.is_derived(number, index) for index, _ in contraction.sides)  # as a norm of weights is
        for dim in dims.leaves(contraction.axis)
    }
    for tensor in analysis.graph.outputs:
        is_weight = constant_of(tensor) is not None
        made = bool(tensor.inputs) and not is_weight
        for axis in _output_axes(analysis, tensor) or ():
            free = {dim for dim in dims.leaves(axis) if not dim.frozen}
            if made and free and free <= read:
                analysis.cut.add(tensor.name)
            elif is_weight:
                dims.freeze(axis, f"is on a weight that is the model's output {tensor.name!r}")
            else:
                dims.pin(axis, f"is the model's output {tensor.name!r}")


def _visit(analysis: Analysis, number: int, node: Node, versions: dict[str, int], matrices: dict[int, Axes]) -> None:
    """Ask the rule of one node what it says of its axes."""
    op = _operation(analysis, number, node, versions, matrices)
    has_body = bool(node.attrs) and any(isinstance(value, Topology) for value in node.attrs.values())
    captured = analysis.graph.captured(node)
    rule = lookup(node.domain or "", node.op, op.version)
    shuffle = analysis.shuffles.get(number)
    if has_body or captured:
        op.freeze_all("has a body, which is not looked into")
        for name in captured:
            _freeze(_named_axes(analysis, name), f"is read in the body of {op.kind} {op.label!r}")
    elif shuffle:
        source = analysis.input_axes(shuffle.first, 0)
        if source is not None and op.outputs[0] is not None:
            op.permute(shuffle.axis, source[shuffle.axis], op.outputs[0][shuffle.axis], shuffle.order)
            op.unify_all(_without(source, shuffle.axis), _without(op.outputs[0], shuffle.axis))
    elif rule is None:
        domain = f"{node.domain}::" if node.domain else ""
        op.freeze_all(f"has no growth rule ({domain}{node.op}, opset {op.version}; see onnx_net2net.rules.rule)")
    elif _is_partly_unknown(analysis, op, node):
        told = (analysis.sizes.failures[t.name] for t in node.outputs if t.name in analysis.sizes.refused)
        op.freeze_all(next(told, UNTYPED))
    else:
        try:
            rule(op)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            if STRICT:
                raise
            op.said = Statements()
            op.freeze_all("has inputs or attributes that its operator cannot have")
    for contraction in op.said.contractions:
        if not _is_divisible(analysis, node, op.said, contraction):
            op.freeze(contraction.axis, "sums integers, which cannot be divided among copies")
    _freeze_unspoken(analysis, number, op)
    analysis.said[number] = op.said
    _note_places(analysis, node, op)


def _note_places(analysis: Analysis, node: Node, op: Op) -> None:
    """Note which results hold places along an axis: those that the node chose, or moves."""
    listed = op.listed.get(0)
    if listed is not None and node.op in traits.MOVES | traits.JOINS and not node.domain:
        others = [op.listed.get(index) for index in range(1, len(node.inputs))] if node.op in traits.JOINS else []
        if all(other is not None and dims.resolve(other) is dims.resolve(listed) for other in others):
            analysis.places.update({tensor.name: listed for tensor in node.outputs})
    for index, axis in op.said.places.items():
        if index < len(node.outputs):
            analysis.places[node.outputs[index].name] = axis


def _freeze_positions(analysis: Analysis) -> None:
    """Fix what a Softmax normalises over where no weight reads it: positions that attention looks at, not units.

    Units that a layer makes, as a router makes experts, are no positions: they get others on request.
    """
    shared: dict[int, str] = {}
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for position in said.shares:
            reason = f"{label_of(node)} normalises over this axis"
            axis = (analysis.input_axes(number, 0) or ())[position]
            shared.update({id(dim): reason for dim in dims.leaves(axis)})
    if not shared:
        return
    made = _made_by_layers(analysis) | dims.leaf_set(*(axis for said in analysis.said.values() for axis in said.chosen))
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            if not any((number, index) in analysis.uses for index, _ in contraction.sides):
                for dim in dims.leaves(contraction.axis):
                    if id(dim) in shared:
                        (dims.pin if dim in made else dims.freeze)(dim, shared[id(dim)])


def _made_by_layers(analysis: Analysis) -> set[Dim]:
    """Return the dims that a constant matrix brings into the result of a sum."""
    found: set[Dim] = set()
    for number, index, contraction in analysis.weighings():
        use = analysis.uses.get((number, index))
        if use is not None and len(use.axes) > 1:
            found |= dims.leaf_set(*use.axes) - dims.leaf_set(contraction.axis)
    return found


def _is_divisible(analysis: Analysis, node: Node, said: Statements, contraction: Contraction) -> bool:
    """Tell whether what is summed is of a type that copies can share."""
    return any(
        analysis.sizes.dtype(node.inputs[index].name) in DIVISIBLE
        or (contraction.law == "sum" and _is_shareable(analysis, node, said, index))
        for index, _ in contraction.sides
    )


def _is_shareable(analysis: Analysis, node: Node, said: Statements, index: int) -> bool:
    """Tell whether an input holds constant integers, with a constant zero point, that copies can share in parts."""
    if index not in said.integers or analysis.sizes.dtype(node.inputs[index].name) not in SHAREABLE:
        return False
    zero_point = said.integers[index].zero_point
    needed = [node.inputs[i] for i in (index, zero_point) if i < len(node.inputs) and node.inputs[i].name]
    return all(constant_of(tensor) is not None for tensor in needed)


def _freeze_unspoken(analysis: Analysis, number: int, op: Op) -> None:
    """Fix the axes of operands that the rule did not speak of, like the scales of Resize."""
    made = {dims.resolve(axis) for axes in op.outputs for axis in axes or ()}
    inputs = [[dims.resolve(axis) for axis in axes or ()] for axes in op.inputs]
    alone: dict[Axis, int] = {}
    for index, axes in enumerate(inputs):
        if index not in op.said.ignored:
            for a in axes:
                if a not in made and type(a) is Dim and a.fixed is None and a.copies is None:
                    alone[a] = index
    if not alone:  # as nearly always: no axis is looked into
        return
    for index, axes in enumerate([*inputs, list(made)]):
        for axis in axes:
            for dim in dims.leaves(axis):
                if alone.get(dim, index) != index:
                    del alone[dim]
    if alone:
        chosen = [op.known(index)[position] for index, position in op.said.choices]
        spoken = [*(contraction.axis for contraction in op.said.contractions), *op.said.tables, *chosen]
        op.freeze(alone.keys() - dims.leaf_set(*spoken), UNREAD)


def _operation(analysis: Analysis, number: int, node: Node, versions: dict[str, int], matrices: dict[int, Axes]) -> Op:
    singles = analysis.singles
    inputs: list[Axes | None] = []
    values: list[np.ndarray | None] = []
    constants: list[bool] = []
    places = analysis.places
    listed = {index: places[t.name] for index, t in enumerate(node.inputs) if t.name in places} if places else {}
    for index, tensor in enumerate(node.inputs):
        constant = constant_of(tensor)
        axes = _use(analysis, number, index, constant, matrices) if constant is not None else None
        if axes is None:
            axes = analysis.axes.get(tensor.name)
        if axes is None and tensor.name in analysis.sizes.constant:  # numbers in an attribute of a Constant node
            axes = _variable_axes(analysis, tensor.name)
            _freeze(axes, LISTED)
        value = analysis.sizes.values.get(tensor.name)
        is_long = value is None and constant is not None and (node.op, index) in traits.LONG_LISTS
        if is_long:
            value = analysis.graph.read(constant)
        is_list = value is not None and _is_list(node, value) and not (node.op == "Equal" and listed)
        for position, axis in enumerate(axes or ()):
            if axis.size == 1:
                key = (number, index, position) if constant is not None else (tensor.name, position)
                if key not in (singles.reads if constant is not None else singles.tensors):
                    dims.freeze(axis, "an axis of size 1 broadcasts")
            elif is_list:
                dims.freeze(axis, LISTED)
        inputs.append(axes)
        values.append(value)
        constants.append(is_long or tensor.name in analysis.sizes.constant)
    outputs = [_variable_axes(analysis, tensor.name) if tensor.name else None for tensor in node.outputs]
    label = node.name or (node.outputs[0].name if node.outputs else "")
    version = versions.get(node.domain or "", 1)
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    return Op(
        node.op, label, inputs, outputs, domain=domain, version=version, attrs=node.attrs, values=values,
        constant=constants, listed=listed,
    )  # fmt: skip


def _is_list(node: Node, value: np.ndarray) -> bool:
    """Tell whether known integers are sizes or places; those of one byte and the biases of integer sums are not."""
    is_wide = value.dtype.kind == "i" and value.dtype.itemsize > 1
    return is_wide and value.ndim <= 1 and node.op not in traits.WHOLE_BIASES


def _use(analysis: Analysis, number: int, index: int, constant: Constant, matrices: dict[int, Axes]) -> Axes | None:
    shape = constant.shape
    if shape is None:
        return None
    reads = analysis.singles.reads
    shared = len(shape) > 1 and sum([size > 1 for size in shape]) > 1
    if shared or (analysis.nodes[number].op in traits.CUTS and index == 0):
        axes = matrices.get(id(constant)) or matrices.setdefault(id(constant), _fresh(shape, reads, number, index))
    else:
        axes = _fresh(shape, reads, number, index)
    analysis.uses[number, index] = Use(number, index, constant, axes)
    return axes


def _variable_axes(analysis: Analysis, name: str) -> Axes | None:
    """Return the axes of an activation, made fresh at its first mention; None when its shape is not known."""
    if name not in analysis.axes:
        shape = analysis.sizes.shape(name)
        if shape is None:
            return None
        analysis.axes[name] = _fresh(shape, analysis.singles.tensors, name)
    return analysis.axes[name]


def _fresh(shape: Iterable[int], units: Container[Any], *key: Any) -> Axes:
    """Return dims for a shape; one of size 1 broadcasts, unless its key and position are among those of units."""
    return tuple([
        Dim.single() if size == 1 and (*key, position) in units else Dim(size) for position, size in enumerate(shape)
    ])  # fmt: skip


def _named_axes(analysis: Analysis, name: str) -> Iterator[Axis]:
    yield from analysis.axes.get(name, ())
    for use in analysis.uses.values():
        if use.constant.name == name:
            yield from use.axes


def _output_axes(analysis: Analysis, tensor: Tensor) -> Iterable[Axis] | None:
    constant = constant_of(tensor)
    return _named_axes(analysis, constant.name) if constant is not None else analysis.axes.get(tensor.name)


def _freeze(axes: Iterable[Axis] | None, reason: str) -> None:
    for axis in axes or ():
        dims.freeze(axis, reason)


def _is_partly_unknown(analysis: Analysis, op: Op, node: Node) -> bool:
    """Tell whether an operand that is a tensor has no known shape; its rule could then miss a tie."""
    if None not in op.inputs and None not in op.outputs:
        return False
    outputs = zip(op.outputs, node.outputs, strict=True)
    results = [(axes, t) for axes, t in outputs if t.outputs or t.name in analysis.kept]
    return any(axes is None and t.name for axes, t in (*zip(op.inputs, node.inputs, strict=True), *results))


def _without(axes: Axes, position: int) -> Axes:
    return axes[:position] + axes[position + 1 :]
