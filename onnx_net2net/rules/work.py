"""How often operators multiply and add: what most of the time of a network goes into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

Shape = Sequence[int]

Work = Callable[[Sequence[Shape], Shape, Mapping[str, Any]], int]
"""Counts the products that one run of a node sums.

It is given the shapes of its inputs (empty for one that is left out), that of its first output, and its attributes.
"""


def _matrices(first: int, second: int) -> Work:
    """Return the work of a product of matrices, which are the inputs of these numbers."""

    def count(inputs: Sequence[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
        one, other = inputs[first], inputs[second]
        if len(one) > 1 or len(other) < 2:
            return prod(output) * one[-2 if attributes.get("transA") else -1]
        return prod(output) * other[-2]

    return count


def _gemm(inputs: Sequence[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    return prod(inputs[0]) * output[-1]


def _convolution(kernel: int) -> Work:
    """Return the work of a convolution whose kernels are the input of this number."""
    return lambda inputs, output, _: prod(output) * prod(inputs[kernel][1:])


def _transposed(inputs: Sequence[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    return prod(inputs[0]) * prod(inputs[1][1:])


def _recurrent(inputs: Sequence[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    return prod(inputs[0][:2]) * (prod(inputs[1]) + prod(inputs[2]))


def _einsum(inputs: Sequence[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    """Count one product for each value that all letters take together; an ellipsis stands for axes of the output."""
    terms, _, result = attributes["equation"].decode().replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms.split(","), inputs, strict=True):
        head, _, tail = term.partition("...")
        sizes.update(zip(head, shape, strict=False))
        sizes.update(zip(reversed(tail), reversed(shape), strict=False))
    summed = set(sizes) - set(result) if result else {letter for letter in sizes if terms.count(letter) > 1}
    return prod(output) * prod(sizes[letter] for letter in summed) if len(inputs) > 1 else 0


def _attention(inputs: Sequence[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    """Count scores of queries and keys, and sums of values; keys are (..., tokens, features) in any layout."""
    if len(inputs[1]) == 2:  # the matrix that makes queries, keys and values (com.microsoft)
        return prod(inputs[0]) * inputs[1][-1] + 2 * prod(output) * output[-2]
    return (prod(inputs[0]) + prod(output)) * inputs[1][-2]


def _packed(inputs: Sequence[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    """Count for a matrix of packed numbers, whose size is in attributes."""
    return prod(output) * int(attributes["K"])


WORK: Mapping[str, Work] = {
    "MatMul": _matrices(0, 1),
    "MatMulInteger": _matrices(0, 1),
    "QLinearMatMul": _matrices(0, 3),
    "FusedMatMul": _matrices(0, 1),
    "FusedMatMulActivation": _matrices(0, 1),
    "DynamicQuantizeMatMul": _matrices(0, 1),
    "MatMulIntegerToFloat": _matrices(0, 1),
    "MatMulNBits": _packed,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "FusedConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
}
"""What the operators do that sum products; all others do next to nothing."""
