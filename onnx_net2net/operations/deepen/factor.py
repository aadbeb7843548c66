"""Two layers in the place of one: its matrix is the product of two, and an activation stands between them.

Net2Net (section 2.4) leaves this open for layers with an activation between. Where phi(v) - phi(-v) = c v the first
factor makes each unit twice, as v and as -v, and the second one reads their difference:
W x = [W2, -W2] phi([W1; -W1] x) / c, with W = W2 W1 by the singular values of W. A kernel is a product of one along its
first axis and one along the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.activations import Site
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Node, Variable
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.operations.deepen.insert import Inserter
from onnx_net2net.rules import traits

_LEAST = 0.1
"""Least size of what the first factor has of a singular vector, beside what it has of the first one."""


@dataclass(frozen=True)
class _Factors:
    """The two factors of a weight (out, in / group, *kernel).

    Attributes:
        read: Reads the weight in this order.
        shape: Its shape.
        group: How many groups a convolution has.
        rank: Units between the factors in each group, not counting the negatives.
        dtype: The type of the factors.
        scale: The second factor is divided by this.
        held: What is known of a decomposition and not asked for yet.
    """

    read: Callable[[], Array]
    shape: tuple[int, ...]
    group: int
    rank: int
    dtype: np.dtype[Any]
    scale: float
    held: dict[str, Array] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The kernels of both: the first works along the first axis, the second along the others."""
        kernel = self.shape[2:]
        return (*kernel[:1], *(1 for _ in kernel[1:])), (*(1 for _ in kernel[:1]), *kernel[1:])

    def _matrices(self) -> Array:
        """Return the matrix of each group that is to be a product: [group, out x rest, in x first]."""
        out, inside, *kernel = self.shape
        first, rest = math.prod(kernel[:1]), math.prod(kernel[1:])
        weight = self.read().astype(np.float64).reshape(self.group, out // self.group, inside, first, rest)
        turned: Array = weight.transpose(0, 1, 4, 2, 3).reshape(self.group, out // self.group * rest, inside * first)
        return turned

    def _decomposed(self) -> Mapping[str, Array]:
        """Return both factors, without negatives, and what part of the sum of the squared weights their product has.

        Each factor has the root of a singular value, but the first never nothing: a unit that neither has would never
        learn.
        """
        left, values, right = np.linalg.svd(self._matrices(), full_matrices=False)
        roots, squares = np.sqrt(values), values**2
        largest = roots.max(1, keepdims=True)
        own = np.maximum(roots, np.where(largest > 0, _LEAST * largest, 1))
        kept = squares[:, : self.rank].sum() / max(squares.sum(), np.finfo(np.float64).tiny)
        first = own[:, : self.rank, None] * right[:, : self.rank]
        second = left[:, :, : self.rank] * (values / own)[:, None, : self.rank] / self.scale
        return {"first": first.astype(self.dtype), "second": second.astype(self.dtype), "kept": kept}

    def _part(self, name: str) -> Array:
        """Return one of these; the others are held until they are asked for: large layers take minutes."""
        if name not in self.held:
            self.held.update(self._decomposed())
        return self.held.pop(name)

    def kept(self) -> float:
        """Return the part of the sum of the squared weights that a product of this rank has."""
        return float(self._part("kept"))

    def first(self, shape: Sequence[int]) -> Array:
        """Return the first factor (2 group rank, in / group, *kernel): each unit, and behind those its negative."""
        rows = self._part("first")
        return np.concatenate([rows, -rows], 1).reshape(tuple(shape))

    def second(self, shape: Sequence[int]) -> Array:
        """Return the second factor (out, 2 rank, *kernel)."""
        columns = self._part("second")
        out, _, *kernel = self.shape
        whole = np.concatenate([columns, -columns], 2).reshape(out, math.prod(kernel[1:]), 2 * self.rank)
        return np.ascontiguousarray(whole.transpose(0, 2, 1)).reshape(tuple(shape))


def factorise(draft: Draft, inserter: Inserter, site: Site, rank: int | None) -> str:
    """Put two layers in the place of one.

    Args:
        draft: The graph.
        inserter: Writes activations.
        site: The layer; its `ways` must have "factor".
        rank: Units between the two in each group, not counting the negatives; None for an exact product.

    Returns:
        What an approximation keeps, "" if it is exact.
    """
    node, graph = draft.nodes[site.layer], draft.graph
    constant = constant_of(node.inputs[1])
    assert constant is not None
    turned = traits.weight_axes(node.op, node.attrs) == (1, 0)
    read = graph.reader(constant)
    own = tuple(int(size) for size in constant.shape)
    shape = own[::-1] if turned else own
    group = int(node.attrs.get("group", 1))
    full = min(shape[0] // group * math.prod(shape[3:]), shape[1] * math.prod(shape[2:3]))
    kind = graph.type_of(constant)
    factors = _Factors(
        (lambda: read().T) if turned else read, shape, group, min(rank or full, full),
        helper.tensor_dtype_to_np_dtype(kind), site.factor or 1.0,
    )  # fmt: skip
    between = 2 * factors.rank
    first = (between * group, shape[1], *factors.kernels[0])
    second = (shape[0], between, *factors.kernels[1])
    weights = [
        graph.lazy_constant(f"{site.name}_new0.weight", kind, _order(first, turned),
                            lambda: _turn(factors.first(first), turned)),
        graph.lazy_constant(f"{site.name}_new1.weight", kind, _order(second, turned),
                            lambda: _turn(factors.second(second), turned)),
    ]  # fmt: skip
    _write(draft, inserter, site, node, weights, factors)
    kept = factors.kept() if factors.rank < full else 1.0
    return "" if factors.rank == full else (
        f"{site.name}: rank {factors.rank} of {full} keeps {kept:.1%} of its squared weights"
    )  # fmt: skip


def _order(shape: tuple[int, ...], turned: bool) -> tuple[int, ...]:
    return shape[::-1] if turned else shape


def _turn(values: Array, turned: bool) -> Array:
    return np.ascontiguousarray(values.T) if turned else values


def _write(draft: Draft, inserter: Inserter, site: Site, node: Node, weights: Sequence[Any], factors: _Factors) -> None:
    """Put the first factor and the activation in front of the layer, which becomes the second factor."""
    graph, attrs, inputs = draft.graph, dict[str, Any](), [node.inputs[0], weights[0]]
    if node.op in traits.CONVOLUTIONS:
        attrs, rest = _parted(dict(node.attrs), factors.kernels)
        node.attrs.update(rest)
    elif node.op == "Gemm":  # whose bias was no option at first
        attrs["transB"] = node.attrs.get("transB", 0)
        inputs.append(graph.constant(f"{site.name}_new0.bias", np.zeros(2 * factors.rank, factors.dtype)))
    made = Variable(graph.unique_name(f"{site.name}_new0_out"))
    Writer(graph, f"{site.name}_new0.").add(node.op, *inputs, result=made, **attrs)
    node.inputs[0], node.inputs[1] = inserter.between(site, made), weights[1]


def _parted(
    attrs: dict[str, Any], kernels: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[dict[str, object], dict[str, object]]:
    """Return the attributes of two convolutions: one along the first axis of a kernel, one along the rest."""
    rank = len(kernels[0])
    defaults = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * (2 * rank)}
    parts: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for number, part in enumerate(parts):
        part["kernel_shape"] = list(kernels[number])
        part["group"] = int(attrs.get("group", 1))
        for key, nothing in defaults.items():
            values = list(attrs.get(key) or nothing)
            kept = [(column % rank == 0) == (number == 0) for column in range(len(values))]
            part[key] = [v if keep else n for v, n, keep in zip(values, nothing, kept, strict=True)]
        if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
            part["auto_pad"] = attrs["auto_pad"]
            del part["pads"]
    return parts
