"""Where a network can become deeper: behind which layers, and what can be inserted there.

A new layer computes the identity. Let the layer in front have the activation phi.

* Where phi(phi(v)) = phi(v) (ReLU), an identity layer and phi are inserted (paper, section 2.4).
* Where phi(v) - phi(-v) is proportional to v (GELU, SiLU and HardSwish, which are v * s(v) with s(v) + s(-v) = 1), the
  new layer has two columns for each unit, which are subtracted behind phi.
* Elsewhere a residual branch that ends in zero can be inserted.

Properties of phi are found by running it on numbers, so that it does not matter how an exporter wrote it. On request a
new layer has an activation of its own that starts as the identity (PRelu of slope 1, or maxout of two equal pieces), or
two factors replace the layer itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_net2net.algebra.floats import Array, epsilon
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.analysis.names import module_of, told_apart
from onnx_net2net.graph.graph import Node, Tensor, Topology
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.graph.walk import constant_of, is_fixed_norm
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits
from onnx_net2net.run.session import LEVELS, Runner, provider_name

Way = Literal["identity", "pair", "residual", "prelu", "maxout", "factor"]
WAYS: tuple[Way, ...] = ("identity", "pair", "residual", "prelu", "maxout", "factor")
BEST: tuple[Way, ...] = ("identity", "pair")
"""What is inserted everywhere, if nothing is said: layers with the network's own activation."""

_LONGEST = 12
"""Nodes that the longest way to write an activation has, and some more."""

_GRID = np.concatenate([np.linspace(-5, 5, 81), [s * x for x in (0.01, 8, 20, 100, 1000) for s in (-1, 1)]])
"""Where activations are tried out: where they bend, and far out, where a limit would show."""

_ROUNDINGS = 16
"""By how many roundings phi(v) - phi(-v) may miss a multiple of v."""


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Site:
    """A layer, and what may be inserted behind it.

    Attributes:
        name: The module of the layer.
        layer: Its node.
        tensor: What new layers take: the layer's result behind its bias, normalisation and activation.
        operator: What the new layers are: Conv, Gemm or MatMul.
        kernel: Of the layer's convolution, () for others.
        group: Of the layer's convolution, 1 for others.
        channels: Number of units.
        norm: The BatchNormalization behind the layer, or None.
        activation: The nodes of the activation, in order; none where there is none.
        factor: What phi(v) - phi(-v) is in parts of v, or None.
        ways: What can be inserted, the best first; the others are refused.
        reason: Why nothing can, or why no identity.
    """

    name: str
    layer: int
    tensor: str
    operator: str = ""
    kernel: tuple[int, ...] = ()
    group: int = 1
    channels: int = 0
    norm: int | None = None
    activation: tuple[int, ...] = ()
    factor: float | None = None
    ways: tuple[Way, ...] = ()
    reason: str = ""


def find_sites(analysis: Analysis, proto: onnx.ModelProto) -> list[Site]:
    """List the layers of a model, in order, with what can be inserted behind each.

    Args:
        analysis: The dims of the flat model.
        proto: That model.
    """
    network = LayerGraph(analysis)
    finder = Finder(network, proto)
    sites = [finder.site(layer) for _, layer in sorted(network.layers.items())]
    names = told_apart(site.name for site in sites)  # a module that is called twice has one name
    return [replace(site, name=name) for site, name in zip(sites, names, strict=True)]


class Finder:
    """Finds what follows a layer: its bias, its norm and its activation."""

    def __init__(self, network: LayerGraph, proto: onnx.ModelProto) -> None:
        self._network, self._analysis, self._proto = network, network.analysis, proto
        self._inside = {name for node in self._analysis.nodes for name in self._analysis.graph.captured(node)}
        self._tried: dict[tuple[bytes, ...], tuple[bool, float | None, bool]] = {}

    def site(self, layer: Layer) -> Site:
        """Return what can be inserted behind a layer."""
        node = self._analysis.nodes[layer.number]
        weights = node.inputs[layer.weights].name
        name = module_of(node, self._proto.graph.node[layer.number], weights)
        reason = self._obstacle(layer, node)
        if reason:
            return Site(name, layer.number, node.outputs[0].name, reason=reason)
        tensor, norm = self.behind_bias_and_norm(node.outputs[0], layer)
        activation, result = self.activation(tensor)
        idempotent, factor, straight = self.try_out(activation, tensor)
        if straight:  # a scale or an Identity is no activation; it may be in front of one
            tensor = result
            activation, result = self.activation(tensor)
            idempotent, factor, straight = self.try_out(activation, tensor)
        own: tuple[Way, ...] = ("identity",) if idempotent else ()
        own += ("pair",) if factor is not None and not straight else ()
        ways: tuple[Way, ...] = (*own, "residual", "prelu", "maxout")
        ways += ("factor",) if self._has_factors(layer, node) else ()
        last = self._analysis.nodes[activation[-1]].op if activation else ""
        why = "" if own else (
            f"{last} is not idempotent, and phi(v) - phi(-v) is not proportional to v" if activation and not straight
            else "no activation follows, so that an identity would be merged into the layer"
        )  # fmt: skip
        shape = self._network.shape(result)
        kernel = self._network.shape(node.inputs[layer.weights])[2:] if layer.convolves else ()
        group = int(node.attrs.get("group", 1)) if node.op in traits.PLAIN_LAYERS else 1
        channels = shape[1] if layer.convolves else shape[-1]
        matrix = node.op if node.op in traits.MATRICES and len(shape) == 2 else "MatMul"
        operator = "Conv" if node.op in traits.KERNELS else matrix
        return Site(name, layer.number, result.name, operator, tuple(kernel), group, channels, norm,
                     tuple(activation), factor, ways, why)  # fmt: skip

    def _has_factors(self, layer: Layer, node: Node) -> bool:
        """Tell whether two layers can take the place of one: it has one matrix, which is not rounded coarsely."""
        constant = constant_of(node.inputs[1]) if layer.weights == 1 and node.op in traits.PLAIN_LAYERS else None
        if constant is None or node.domain not in DEFAULT_DOMAIN or node.attrs.get("transA", 0):
            return False
        fine = self._analysis.graph.type_of(constant) in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
        return fine and len(constant.shape) > 1 and (layer.convolves or len(constant.shape) == 2)

    def _obstacle(self, layer: Layer, node: Node) -> str:
        """Return why nothing can be inserted behind a layer, "" if something can."""
        if node.op not in traits.LAYERS | traits.RECURRENT or node.domain not in (*DEFAULT_DOMAIN, "com.microsoft"):
            return f"behind {node.op} nothing can be inserted"
        output = node.outputs[0]
        if self._analysis.sizes.dtype(output.name) not in _FLOATS:
            return "its result is no ordinary float"
        shape = self._network.shape(output)
        if not shape:
            return "the shape of its result is not known"
        axis = 1 if layer.convolves else len(shape) - 1
        if layer.convolves and len(shape) < 3:
            return "its result has no axes to convolve along"
        if shape[axis] < 1 or output.name in self._inside:
            return "its result is read inside a body"
        return ""

    def behind_bias_and_norm(self, tensor: Tensor, layer: Layer) -> tuple[Tensor, int | None]:
        """Follow a tensor through scales, biases and a BatchNormalization that are its only readers, and other rows."""
        norm = None
        while (reader := self._analysis.graph.only_reader(tensor)) is not None:
            number = self._analysis.numbers[id(reader)]
            others = [index for index, value in enumerate(reader.inputs) if value is not tensor]
            is_bias = reader.op in traits.AFFINE and all(self._analysis.is_derived(number, i) for i in others)
            is_norm = is_fixed_norm(reader, tensor)
            before, after = self._network.shape(tensor), self._network.shape(reader.outputs[0])
            is_rows = reader.op == "Reshape" and not layer.convolves and bool(after) and after[-1] == before[-1]
            if not is_rows and not (before == after and (is_bias or is_norm)):
                break
            norm = number if is_norm else norm
            tensor = reader.outputs[0]
        return tensor, norm

    def activation(self, tensor: Tensor) -> tuple[list[int], Tensor]:
        """Return the nodes that apply one function to every element of a tensor, and their result."""
        region: list[int] = []
        inside = {tensor.name: tensor}
        while len(region) < _LONGEST:
            number = self._next(region, inside)
            if number is None:
                return [], tensor
            region.append(number)
            result = self._analysis.nodes[number].outputs[0]
            inside[result.name] = result
            rest = [value for name, value in inside.items() if name != result.name]
            read = {self._analysis.numbers[id(node)] for value in rest for node in value.outputs}
            whole = self._type(result) == self._type(tensor)  # a comparison is not all of an activation
            if whole and read <= set(region) and not any(value.name in self._analysis.kept for value in rest):
                return region, result
        return [], tensor

    def _next(self, region: Sequence[int], inside: dict[str, Tensor]) -> int | None:
        """Return the first node that computes on an activation's tensors, element by element, alone or with numbers."""
        readers = {self._analysis.numbers[id(node)] for value in inside.values() for node in value.outputs}
        for number in sorted(readers - set(region)):
            node, said = self._analysis.nodes[number], self._analysis.said.get(number)
            others = (value for value in node.inputs if value.name and value.name not in inside)
            plain = said is not None and said.pointwise is not None and not said.contractions and not said.statistics
            start = next(iter(inside.values()))
            (dtype, shape), (made, size) = self._type(start), self._type(node.outputs[0])
            same = len(node.outputs) == 1 and size == shape and made in (dtype, onnx.TensorProto.BOOL)
            numbers = all(self._network.elements(value) == 1 and self._is_constant(value) for value in others)
            is_move = node.op in traits.PLACED and node.op not in traits.COPIES
            has_body = any(isinstance(value, Topology) for value in node.attrs.values())
            if plain and same and numbers and not is_move and not has_body:
                return number
        return None

    def try_out(self, region: Sequence[int], tensor: Tensor) -> tuple[bool, float | None, bool]:
        """Return whether phi(phi(v)) = phi(v), what phi(v) - phi(-v) is in parts of v, and whether phi is linear."""
        if not region:
            return False, None, False
        key = self.key(region, tensor)
        if key not in self._tried:
            try:
                self._tried[key] = self._measure(region, tensor)
            except Exception:  # what onnxruntime does not run alone is not known
                self._tried[key] = False, None, True
        return self._tried[key]

    def key(self, region: Sequence[int], tensor: Tensor) -> tuple[bytes, ...]:
        """Return what two activations have in common that are the same function."""
        nodes = [self._proto.graph.node[number] for number in region]
        return tuple(_anonymous(nodes, tensor.name, self._constants(region)))

    def _measure(self, region: Sequence[int], tensor: Tensor) -> tuple[bool, float | None, bool]:
        def phi(values: Array) -> Array:
            return self._run(region, tensor, values)

        y, mirrored = phi(_GRID), phi(-_GRID)
        difference, size = y - mirrored, np.maximum(np.maximum(np.abs(y), np.abs(mirrored)), 1)
        factor = float(np.median(difference[_GRID != 0] / _GRID[_GRID != 0]))
        slack = _ROUNDINGS * (epsilon(self._dtype(tensor)) or 0.0)
        proportional = abs(factor) > slack and bool((np.abs(difference - factor * _GRID) <= slack * size).all())
        idempotent = bool((phi(y) == y).all())
        line = np.interp(_GRID[:81], _GRID[[0, 80]], y[[0, 80]])
        straight = bool((np.abs(y[:81] - line) <= slack * size[:81]).all())
        return idempotent and not straight, factor if proportional else None, straight

    def _constants(self, region: Sequence[int]) -> dict[str, Array]:
        """Return the numbers that nodes read, by the names that they have there."""
        found: dict[str, Array] = {}
        for value in (value for number in region for value in self._analysis.nodes[number].inputs):
            constant = constant_of(value)
            if constant is not None:
                found[value.name] = np.asarray(self._analysis.graph.read(constant))
            elif self._is_constant(value):
                found[value.name] = self._analysis.sizes.values[value.name]
        return found

    def _type(self, tensor: Tensor) -> tuple[int, tuple[int, ...]]:
        return self._analysis.sizes.dtype(tensor.name), self._network.shape(tensor)

    def _is_constant(self, tensor: Tensor) -> bool:
        return constant_of(tensor) is not None or tensor.name in self._analysis.sizes.constant

    def _dtype(self, tensor: Tensor) -> np.dtype[Any]:
        dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(self._analysis.sizes.dtype(tensor.name))
        return dtype

    def _run(self, region: Sequence[int], tensor: Tensor, values: Array) -> Array:
        """Apply an activation to numbers."""
        nodes = [self._proto.graph.node[number] for number in region]
        dtype = self._analysis.sizes.dtype(tensor.name)
        rank = len(self._network.shape(tensor))
        array = values.astype(self._dtype(tensor)).reshape(*(1,) * (rank - 1), -1)
        graph = helper.make_graph(
            nodes, "activation",
            [helper.make_tensor_value_info(tensor.name, dtype, array.shape)],
            [helper.make_tensor_value_info(nodes[-1].output[0], dtype, array.shape)],
            [numpy_helper.from_array(value, name) for name, value in self._constants(region).items()],
        )  # fmt: skip
        versions = opsets_of(self._proto)
        model = helper.make_model(
            graph, ir_version=self._proto.ir_version,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        )  # fmt: skip
        run = Runner(model.SerializeToString(), LEVELS[0], provider=provider_name("cpu"))
        (result,) = run({tensor.name: array}).values()
        return np.asarray(result, np.float64).reshape(-1)


def _anonymous(nodes: Sequence[onnx.NodeProto], start: str, constants: Mapping[str, Array]) -> Iterator[bytes]:
    """Yield what tells activations apart: the nodes, with tensors numbered as they come, and their constants."""
    count = itertools.count()
    numbers = {start: str(next(count))}
    for node in nodes:
        plain = onnx.NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
        for name in node.output:
            numbers[name] = str(next(count))
        plain.output[:] = [numbers[name] for name in node.output]
        plain.input[:] = [numbers.get(name, "") for name in node.input]
        yield plain.SerializeToString(deterministic=True)
        yield b"".join(constants[name].tobytes() for name in node.input if name in constants)
