"""Writing the layers that `deepen` inserts: their nodes, and weights whose function is the identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.activations import Site, Way
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Graph, Node, Tensor, Variable
from onnx_net2net.model.model import Model, Progress
from onnx_net2net.operations.deepen.repeat import take_over
from onnx_net2net.run.inputs import input_specs, read_npz
from onnx_net2net.run.session import implements
from onnx_net2net.run.watch import measure

NORMED = ("identity", "prelu")
"""What gets a BatchNormalization where the layer in front has one."""


class Inserter:
    """Writes new layers into a draft."""

    def __init__(self, draft: Draft, version: int, seed: int, measured: Mapping[str, tuple[Array, Array]]) -> None:
        """Take a draft of an operator set, a seed, and by tensor the mean and variance of what is normalised."""
        self._draft, self._graph, self._seed, self._measured = draft, draft.graph, seed, measured
        self._tensors = draft.graph.tensors()
        self._version = version
        self._known = {node.op for node in draft.nodes}

    def insert(self, site: Site, way: Way, number: int, kernels: Sequence[tuple[int, ...]]) -> None:
        """Insert one more layer (one for each kernel), or what stands for it, behind all that is there already.

        Raises:
            RefusedError: If that takes an operator that onnxruntime lacks for the type of the layer's units.
        """
        name = f"{site.name}_new{number}"
        source = self._tensors[site.tensor]
        inner = take_over(self._draft, source)
        if way in NORMED:
            self._layers(site, way, name, kernels, inner, source)
            return
        (kernel,) = kernels
        if way == "pair":
            self._pair(site, name, kernel, inner, source)
        elif way == "maxout":
            self._maxout(site, name, kernel, inner, source)
        else:
            self._residual(site, name, kernel, inner, source, seed=[self._seed, site.layer, number])

    def _layers(
        self, site: Site, way: Way, name: str, kernels: Sequence[tuple[int, ...]], inner: Variable,
        result: Variable,
    ) -> None:  # fmt: skip
        """Write layers in a row that compute the identity, with the activation of the site or one of their own."""
        identity = dirac(site.channels, site.group)
        activate = self.activate if way == "identity" else self._prelu
        made = inner
        for position, kernel in enumerate(kernels):
            own = f"{name}.{position}" if len(kernels) > 1 else name
            made = self._layer(site, own, kernel, made, identity, group=site.group, has_bias=site.norm is None)
            made = self._normalise(site, made, own) if site.norm is not None else made
            made = activate(site, made, result if position == len(kernels) - 1 else None)

    def _pair(self, site: Site, name: str, kernel: tuple[int, ...], inner: Variable, result: Variable) -> None:
        """Write two columns for each unit, v and -v, and take phi(v) - phi(-v)."""
        assert site.factor is not None
        units, group = site.channels, site.group
        there, back = _mirrored(units, group, 1.0), _mirrored(units, group, 1 / site.factor, across=True)
        made = self.activate(site, self._layer(site, f"{name}.0", kernel, inner, there, makes=2 * units, group=group))
        self._layer(site, f"{name}.1", kernel, made, back, reads=2 * units, group=group, output=result)

    def _maxout(self, site: Site, name: str, kernel: tuple[int, ...], inner: Variable, result: Variable) -> None:
        """Write two identities and take the larger."""
        identity = dirac(site.channels, site.group)
        pieces = [self._layer(site, f"{name}.{n}", kernel, inner, identity, group=site.group) for n in (0, 1)]
        self._writer(site, name).Max(*pieces, result=result)

    def _residual(
        self, site: Site, name: str, kernel: tuple[int, ...], inner: Variable, result: Variable,
        seed: list[int],
    ) -> None:  # fmt: skip
        """Write a branch whose first layer is random and whose last is zero."""
        drawn = int(np.random.default_rng(seed).integers(1 << 30))
        made = self._layer(site, f"{name}.0", kernel, inner, _random(drawn), group=site.group)
        made = self.activate(site, made)
        zero = self._layer(site, f"{name}.1", kernel, made, np.zeros, group=site.group)
        self._writer(site, name).Add(inner, zero, result=result)

    def _layer(
        self, site: Site, name: str, kernel: tuple[int, ...], source: Tensor, values: Callable[..., Array],
        reads: int = 0, makes: int = 0, group: int = 1, has_bias: bool = True, output: Variable | None = None,
    ) -> Variable:  # fmt: skip
        """Add a layer of the kind of a site, with a bias of zeros; in front of a normalisation a bias is nothing.

        It reads and makes as many units as the layer in front, if nothing else is said.
        """
        op, reads, makes = self._writer(site, name), reads or site.channels, makes or site.channels
        dtype = self._draft.sizes.dtype(site.tensor)
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        shape = (makes, reads // group, *kernel)
        bias = self._graph.constant(f"{name}.bias", np.zeros(makes, kind))
        if site.operator == "MatMul":  # the weight of a MatMul is the transpose of a Linear's
            weight = self._graph.lazy_constant(f"{name}.weight", dtype, shape[::-1], lambda: values(shape, kind).T)
            return op.Add(op.MatMul(source, weight), bias, result=output)
        weight = self._graph.lazy_constant(f"{name}.weight", dtype, shape, lambda: values(shape, kind))
        if site.operator == "Gemm":
            return op.Gemm(source, weight, bias, result=output, transB=1)
        inputs, pads = [source, weight, *([bias] if has_bias else [])], [size // 2 for size in kernel]
        return op.Conv(*inputs, result=output, kernel_shape=list(kernel), pads=pads * 2, group=group)

    def _normalise(self, site: Site, tensor: Tensor, name: str) -> Variable:
        """Add a BatchNormalization like that of the layer, whose scale and shift undo what it does."""
        node = self._draft.nodes[site.norm or 0]
        kind = helper.tensor_dtype_to_np_dtype(self._draft.sizes.dtype(node.inputs[1].name))
        zeros, ones = np.zeros(site.channels), np.ones(site.channels)
        mean, variance = (values.astype(kind) for values in self._measured.get(site.tensor, (zeros, ones)))
        epsilon = float(node.attrs.get("epsilon", 1e-5))
        scale = np.sqrt(variance.astype(np.float64) + epsilon).astype(kind)
        values = {"weight": scale, "bias": mean, "running_mean": mean, "running_var": variance}
        inputs = [self._graph.constant(f"{name}.bn.{what}", array) for what, array in values.items()]
        return self._writer(site, name).BatchNormalization(tensor, *inputs, **node.attrs)

    def activate(self, site: Site, tensor: Tensor, output: Variable | None = None) -> Variable:
        """Repeat the activation of a site; where it has none, max(x, 0)."""
        if not site.activation:
            return self._rectify(site, tensor, output)
        nodes = [self._draft.nodes[number] for number in site.activation]
        made = {name: tensor for node in nodes for name in self._outside(node, nodes)}
        op, result = self._writer(site, tensor.name), tensor
        for node in nodes:
            inputs = [made.get(value.name, value) for value in node.inputs]
            last = output if node is nodes[-1] else None
            result = op.add(node.op, *inputs, domain=node.domain, result=last, **node.attrs)
            made[self._name_of(node)] = result
        return result

    def between(self, site: Site, tensor: Tensor) -> Variable:
        """Apply the activation of a site for which phi(v) - phi(-v) = c v, elsewhere max(x, 0)."""
        return self.activate(site, tensor) if site.factor is not None else self._rectify(site, tensor)

    def _rectify(self, site: Site, tensor: Tensor, output: Variable | None = None) -> Variable:
        """Add max(x, 0)."""
        return self._writer(site, tensor.name).Relu(tensor, result=output)

    def _prelu(self, site: Site, tensor: Tensor, output: Variable | None = None) -> Variable:
        """Add a PRelu that starts as the identity: each unit has the slope 1."""
        kind = helper.tensor_dtype_to_np_dtype(self._draft.sizes.dtype(site.tensor))
        name = tensor.inputs[0].name.rpartition(".")[0]
        slopes = np.ones((site.channels, *(1 for _ in site.kernel)), kind)
        slope = self._graph.constant(f"{name}.prelu.weight", slopes)
        return self._writer(site, name).PRelu(tensor, slope, result=output)

    def _outside(self, node: Node, nodes: Sequence[Node]) -> list[str]:
        """Return the names of the tensors that an activation is applied to."""
        inside = {self._name_of(other) for other in nodes}
        return [v.name for v in node.inputs if v.name not in inside and isinstance(v, Variable) and v.name
                and v.name not in self._draft.sizes.constant]  # fmt: skip

    def _name_of(self, node: Node) -> str:
        return str(node.outputs[0].name)

    def _writer(self, site: Site, name: str) -> Writer:
        return _Checked(self._graph, f"{name}.", partial(self._require, site))

    def _require(self, site: Site, kind: str, name: str, inputs: int) -> None:
        """Refuse an operator that onnxruntime lacks for a type that it has the layer for."""
        dtype = self._draft.sizes.dtype(site.tensor)
        has = partial(implements, version=self._version, dtype=dtype)
        if kind not in self._known and has(site.operator, inputs=2) and not has(kind, inputs=inputs):
            shown = helper.tensor_dtype_to_np_dtype(dtype)
            raise RefusedError(f"{name!r} cannot be inserted: onnxruntime has no {kind} of {shown}")


class _Checked(Writer):
    """Writes the nodes that `require` lets pass."""

    def __init__(self, graph: Graph, prefix: str, require: Callable[[str, str, int], None]) -> None:
        super().__init__(graph, prefix)
        self._require = require

    def add(self, kind: str, *inputs: Tensor, **rest: Any) -> Variable:
        """Add a node of an operator if it may be there."""
        self._require(kind, f"{self._prefix}{kind}", len(inputs))
        return super().add(kind, *inputs, **rest)


def dirac(channels: int, group: int) -> Callable[..., Array]:
    """Return what computes the weights of an identity: 1 for the unit itself, at the middle of the kernel."""

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        weights = np.zeros(shape, dtype)
        units = np.arange(channels)
        _middle(weights)[units, units % (channels // group)] = 1
        return weights

    return compute


def _mirrored(channels: int, group: int, value: float, across: bool = False) -> Callable[..., Array]:
    """Return what computes twice the identity, with the value and its negative; below each other, or `across`.

    In a grouped convolution those of each group lie together.
    """

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        weights = np.zeros(shape, dtype)
        width = channels // group
        number, unit = np.divmod(np.arange(channels), width)
        for part, signed in enumerate((value, -value)):
            doubled = part * width + unit
            at = (number * width + unit, doubled) if across else (2 * number * width + doubled, unit)
            _middle(weights)[at] = signed
        return weights

    return compute


def _middle(weights: Array) -> Array:
    """Return a view of what weights have at the middle of the kernel."""
    for _ in weights.shape[2:]:
        weights = weights[:, :, weights.shape[2] // 2]
    return weights


def _random(seed: int) -> Callable[..., Array]:
    """Return what draws weights of unit gain."""

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        values: Array = np.random.default_rng(seed).standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        return values.astype(dtype)

    return compute


def calibrated(
    model: Model,
    chosen: Sequence[tuple[Site, Way]],
    data: str | os.PathLike[str] | Mapping[str, Array] | None,
    seed: int,
    progress: Progress | None,
) -> dict[str, tuple[Array, Array]]:
    """Return mean and variance of what inserted normalisations get; those inside of bodies are not measured."""
    feeds = read_npz(data, input_specs(model.proto)) if isinstance(data, str | os.PathLike) else data
    normed = dict.fromkeys(site.tensor for site, way in chosen if way in NORMED and site.norm is not None)
    shown = {name for node in model.proto.graph.node for name in node.output}
    tensors = [name for name in normed if name in shown]
    if not tensors:
        return {}
    return measure(model, tensors, feeds, seed=seed, progress=progress)
