"""Layers whose function is the identity: what `deepen` inserts, found by their weights, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array, is_float, spacing
from onnx_net2net.analysis.activations import Finder, Site
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.graph.decisions import DOMAIN
from onnx_net2net.graph.edit import drop_unread
from onnx_net2net.graph.graph import Constant, Node, Tensor
from onnx_net2net.graph.walk import constant_of, is_fixed_norm, made_by
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits
from onnx_net2net.rules.inverses import NEUTRAL

_ROUNDINGS = 16
"""By how many roundings an identity may miss 1 and 0: its normalisation and merged copies are rounded."""


@dataclass(frozen=True)
class Identity:
    """Nodes that make of a tensor the same again.

    Attributes:
        name: What they are called.
        start: The node that reads the tensor, and at which input.
        nodes: All of them; the last makes the result.
    """

    name: str
    start: tuple[Node, int]
    nodes: tuple[Node, ...]


def remove_identities(draft: Draft, proto: onnx.ModelProto) -> list[str]:
    """Remove all layers whose function is the identity; return their names.

    Args:
        draft: The flat model.
        proto: The same.
    """
    search = _Search(draft, proto)
    removed = [found.name for found in list(search.find()) if _bypass(draft, found)]
    if removed:
        drop_unread(draft.graph, draft.kept)
    return removed


def _bypass(analysis: Analysis, found: Identity) -> bool:
    """Let what made the input of an identity make its result, which so keeps its name; return whether it could be."""
    if any(not node.outputs for node in found.nodes):
        return False  # part of another one that is gone
    node, index = found.start
    source, result = node.inputs[index], found.nodes[-1].outputs[0]
    producer = source.inputs[0] if source.inputs else None
    stays = producer is None or source.name in analysis.kept or producer.domain == DOMAIN  # what a body is given
    if stays and result.name in analysis.kept:
        return False
    for gone in found.nodes:
        gone.inputs.clear()
        gone.outputs.clear()
    old, new = (result, source) if stays else (source, result)
    for reader in list(old.outputs):
        for position, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[position] = new
    if not stays:
        assert producer is not None
        producer.outputs[next(i for i, tensor in enumerate(producer.outputs) if tensor is source)] = result
    return True


class _Search:
    """Looks for identities in a graph."""

    def __init__(self, analysis: Analysis, proto: onnx.ModelProto) -> None:
        self._analysis = analysis
        self._network = LayerGraph(analysis)
        self._finder = Finder(self._network, proto)

    def find(self) -> Iterator[Identity]:
        """Yield the identities; some that are behind others show only when these are gone."""
        for number, layer in sorted(self._network.layers.items()):
            node = self._analysis.nodes[number]
            if node.op not in traits.PLAIN_LAYERS or node.domain not in DEFAULT_DOMAIN:
                continue
            site = self._finder.site(layer)
            if layer.weights == 1 and constant_of(node.inputs[1]) is not None:
                reads, makes = self._units(node.inputs[0], node), self._units(node.outputs[0], node)
                yield from self._plain(layer, site) if makes == reads else ()
                yield from self._pair(layer, site) if makes == 2 * reads else ()
        for node in self._analysis.nodes:
            yield from self._repeated(node.outputs[0]) if node.outputs else ()
            yield from self._neutral(node)
            yield from self._same(node)
            yield from self._all(node)

    def _plain(self, layer: Layer, site: Site) -> Iterator[Identity]:
        """Yield a layer with its bias and normalisation that computes the identity."""
        node = self._analysis.nodes[layer.number]
        matrix = self._matrix(node)
        if matrix is None or not self._is_close(matrix, np.eye(*matrix.shape), node):
            return
        nodes = self._while_identity(node)
        if nodes:
            yield Identity(site.name, (node, 0), tuple(nodes))

    def _repeated(self, start: Tensor) -> Iterator[Identity]:
        """Yield the activation that repeats an idempotent one, which is applied to a tensor."""
        first, tensor = self._finder.activation(start) if self._analysis.graph.only_reader(start) else ([], start)
        if not first or not self._finder.try_out(first, start)[0]:
            return
        region, result = self._finder.activation(tensor)
        if region and self._finder.key(region, tensor) == self._finder.key(first, start):
            _, place = self._input_of(region)
            name = self._analysis.nodes[region[-1]].name or result.name
            yield Identity(name, place, tuple(self._analysis.nodes[number] for number in region))

    def _input_of(self, region: list[int]) -> tuple[Tensor, tuple[Node, int]]:
        """Return what an activation is applied to, and where it is read."""
        made = {tensor.name for number in region for tensor in self._analysis.nodes[number].outputs}
        node = self._analysis.nodes[region[0]]
        index = next(
            index for index, tensor in enumerate(node.inputs)
            if tensor.name not in made and tensor.name not in self._analysis.sizes.constant
            and constant_of(tensor) is None
        )  # fmt: skip
        return node.inputs[index], (node, index)

    def _pair(self, layer: Layer, site: Site) -> Iterator[Identity]:
        """Yield two layers that compute (phi(v) - phi(-v)) / c = v."""
        first = self._analysis.nodes[layer.number]
        up = self._matrix(first)
        if up is None or site.factor is None or not site.activation or up.shape[0] != 2 * up.shape[1]:
            return
        region = [self._analysis.nodes[number] for number in site.activation]
        second = self._analysis.graph.only_reader(region[-1].outputs[0])
        known = self._network.layers.get(self._analysis.numbers[id(second)]) if second is not None else None
        if second is None or known is None or known.weights != 1:
            return
        down, front = self._matrix(second), self._while_identity(first)
        if down is None or down.shape != up.T.shape or not front or front[-1].outputs[0] not in region[0].inputs:
            return
        if self._is_mirrored(up, first) and self._is_close(down * site.factor, up.T, second):
            back = self._while_identity(second)
            if back:
                yield Identity(site.name, (first, 0), (*front, *region, *back))

    def _is_mirrored(self, up: Array, node: Node) -> bool:
        """Tell whether a matrix makes each unit and its negative, in any order."""
        single = self._is_close(np.abs(up).sum(1), 1.0, node) and self._is_close(np.abs(up).max(1), 1.0, node)
        return single and self._is_close(up.sum(0), 0.0, node) and self._is_close(np.abs(up).sum(0), 2.0, node)

    def _neutral(self, node: Node) -> Iterator[Identity]:
        """Yield a node with an operand that changes nothing: ones for products and slopes, zeros for sums."""
        neutral, places = NEUTRAL.get(node.op, (0.0, ()))
        for index, other in ((0, 1), (1, 0)) if len(node.inputs) == 2 else ():
            source, operand = node.inputs[index], node.inputs[other]
            if other not in places or self._shape(source) != self._shape(node.outputs[0]):
                continue
            is_neutral = self._are_ones(operand) if neutral else self._is_zero(operand)
            if (is_neutral and constant_of(source) is None) or (not neutral and self._cancels(operand)):
                yield _single(node, index)
                return

    def _are_ones(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a constant of ones, which is left of shares when copies are gone."""
        constant = constant_of(tensor)
        return constant is not None and self._is(constant, 1)

    def _cancels(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is the difference of two computations that are the same."""
        node = made_by(tensor, {"Sub"})
        return node is not None and self._is_equal(*node.inputs)

    def _same(self, node: Node) -> Iterator[Identity]:
        """Yield a Max or Min of a tensor and itself, which is left of maxout."""
        if node.op in traits.EXTREMES and len({tensor.name for tensor in node.inputs}) == 1:
            yield _single(node, 0)

    def _is_equal(self, one: Tensor, other: Tensor) -> bool:
        """Tell whether two tensors are computed in the same way of the same tensors and equal constants."""
        pending, known = [(one, other)], set[tuple[str, str]]()
        while pending:
            one, other = pending.pop()
            if one is other or (one.name, other.name) in known:
                continue
            known.add((one.name, other.name))
            constants = [constant_of(one), constant_of(other)]
            if constants[0] is not None and constants[1] is not None:
                first, second = self._analysis.graph.read(constants[0]), self._analysis.graph.read(constants[1])
                if first.dtype != second.dtype or not np.array_equal(first, second):
                    return False
                continue
            makers = [tensor.inputs[0] if tensor.inputs else None for tensor in (one, other)]
            if makers[0] is None or makers[1] is None or not _is_alike(makers[0], makers[1]):
                return False
            if [t is one for t in makers[0].outputs] != [t is other for t in makers[1].outputs]:
                return False
            pending += zip(makers[0].inputs, makers[1].inputs, strict=True)
        return True

    def _all(self, node: Node) -> Iterator[Identity]:
        """Yield a Gather of all units in their order, which is left of an output that was cut."""
        places = constant_of(node.inputs[1]) if node.op in traits.ROWS and constant_of(node.inputs[0]) is None else None
        if places is None or self._shape(node.inputs[0]) != self._shape(node.outputs[0]) or len(places.shape) != 1:
            return
        if np.array_equal(self._analysis.graph.read(places), np.arange(places.shape[0])):
            yield _single(node, 0)

    # -- weights -----------------------------------------------------------------------------------------------

    def _is(self, constant: Constant, value: float) -> bool:
        values = self._analysis.graph.read(constant)
        return is_float(values.dtype) and bool((values == value).all())

    def _is_zero(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is the result of a layer whose weights and bias are zero."""
        while True:
            node = tensor.inputs[0] if tensor.inputs else None
            if node is None:
                return False
            constants = [constant for value in node.inputs if (constant := constant_of(value)) is not None]
            if node.op != "Add" or len(constants) != 1:
                break
            if not self._is(constants[0], 0):
                return False
            (tensor,) = (value for value in node.inputs if constant_of(value) is None)
        is_layer = self._analysis.numbers[id(node)] in self._network.layers and node.op in traits.PLAIN_LAYERS
        complete = len(constants) == sum(1 for value in node.inputs if value.name) - 1
        return is_layer and complete and all(self._is(constant, 0) for constant in constants)

    def _matrix(self, node: Node) -> Array | None:
        """Return what a layer does to the units at one place, None where it does more than that, or moves it."""
        weights = constant_of(node.inputs[1])
        values = self._analysis.graph.read(weights) if weights is not None else None
        if values is None or not is_float(values.dtype):
            return None
        if self._shape(node.inputs[0])[:1] != self._shape(node.outputs[0])[:1]:
            return None
        if node.op in traits.CONVOLUTIONS:
            return _at_middle(node, values)
        if values.ndim != 2 or node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0:
            return None
        return values.astype(np.float64) if node.attrs.get("transB", 0) else values.T.astype(np.float64)

    def _while_identity(self, node: Node) -> list[Node]:
        """Return a layer whose matrix is known and the longest run of biases and a normalisation that it undoes."""
        units = self._units(node.outputs[0], node)
        bias = self._vector(node.inputs[2], units) if len(node.inputs) > 2 else np.zeros(units)
        run, longest = [node], 0
        scale = np.ones(units)
        while True:
            if bias is None:
                break
            if self._is_close(scale, 1.0, node) and self._is_close(bias, 0.0, node):
                longest = len(run)
            reader = self._analysis.graph.only_reader(run[-1].outputs[0])
            if reader is None or self._shape(reader.outputs[0]) != self._shape(node.outputs[0]):
                break
            if reader.op == "Add" and any(constant_of(value) is not None for value in reader.inputs):
                added = self._added(reader, units, node)
                bias = None if added is None else bias + added
            elif is_fixed_norm(reader, run[-1].outputs[0]):
                gamma, beta, mean, variance = (self._vector(value, units) for value in reader.inputs[1:5])
                if gamma is None or beta is None or mean is None or variance is None:
                    break
                factor = gamma / np.sqrt(variance + float(reader.attrs.get("epsilon", 1e-5)))
                scale, bias = scale * factor, (bias - mean) * factor + beta
            else:
                break
            run.append(reader)
        return run[:longest]

    def _added(self, node: Node, units: int, layer: Node) -> Array | None:
        """Return a constant that is added to each unit, None where it is added to more than units."""
        constants = [constant for value in node.inputs if (constant := constant_of(value)) is not None]
        shape = tuple(constants[0].shape)
        convolves = layer.op in traits.CONVOLUTIONS
        places = len(self._shape(node.outputs[0])[2:]) if convolves else 0
        full = (1,) * (len(self._shape(node.outputs[0])) - len(shape)) + shape
        axis = 1 if convolves else len(full) - 1
        per_unit = full[axis] in (1, units) and all(size == 1 for p, size in enumerate(full) if p != axis)
        per_unit = per_unit and len(full) == places + 2 if convolves else per_unit
        if not per_unit:
            return None
        return np.broadcast_to(self._analysis.graph.read(constants[0]).astype(np.float64).reshape(-1), units)

    def _vector(self, tensor: Tensor, units: int) -> Array | None:
        """Return a constant with one value for each unit."""
        if not tensor.name:
            return np.zeros(units)
        constant = constant_of(tensor)
        if constant is None or int(np.prod(constant.shape)) not in (1, units):
            return None
        return np.broadcast_to(self._analysis.graph.read(constant).astype(np.float64).reshape(-1), units)

    def _units(self, tensor: Tensor, layer: Node) -> int:
        return self._shape(tensor)[1 if layer.op in traits.CONVOLUTIONS else -1]

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        return self._network.shape(tensor)

    def _is_close(self, values: Array, wanted: Array | float, node: Node) -> bool:
        constant = constant_of(node.inputs[1])
        assert constant is not None
        epsilon = spacing(self._analysis.graph.read(constant).dtype)
        return bool(np.allclose(values, wanted, rtol=0, atol=_ROUNDINGS * epsilon))


def _single(node: Node, index: int) -> Identity:
    return Identity(node.name or node.outputs[0].name, (node, index), (node,))


def _is_alike(one: Node, other: Node) -> bool:
    """Tell whether two nodes compute the same of the same inputs."""
    same = (one.op, one.domain, len(one.inputs)) == (other.op, other.domain, len(other.inputs))
    plain = all(isinstance(value, int | float | str | bytes | list) for value in one.attrs.values())
    may_differ = one.op in traits.RANDOM | {"Dropout"}
    return same and plain and not may_differ and one.attrs == other.attrs


def _at_middle(node: Node, values: Array) -> Array | None:
    """Return the matrix at the middle of a kernel; None where there are weights elsewhere or places are moved."""
    kernel = values.shape[2:]
    strides, dilations = (node.attrs.get(name) or [1] * len(kernel) for name in ("strides", "dilations"))
    pads = [size // 2 * step for size, step in zip(kernel, dilations, strict=True)] * 2
    same = node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    fits = same or list(node.attrs.get("pads") or [0] * len(pads)) == pads
    if not fits or any(step != 1 for step in strides) or any(size % 2 == 0 for size in kernel):
        return None
    rest = values.astype(np.float64)
    middle_place = (slice(None), slice(None), *(size // 2 for size in kernel))
    middle = rest[middle_place].copy()
    rest[middle_place] = 0
    if np.abs(rest).max(initial=0) > _ROUNDINGS * spacing(values.dtype):
        return None
    group = int(node.attrs.get("group", 1))
    makes, reads = middle.shape
    matrix = np.zeros((makes, reads * group))
    for number in range(group):
        rows = slice(number * (makes // group), (number + 1) * (makes // group))
        matrix[rows, number * reads : (number + 1) * reads] = middle[rows]
    return matrix
