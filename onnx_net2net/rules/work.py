"""How often operators multiply and add: what most of the time of a network goes into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

Shape = Sequence[int]

Work = Callable[[Sequence[Shape], Shape], int]
"""Counts the products that one run of a node sums, from the shapes of its inputs and of its first output."""


def _matrices(first: int, second: int) -> Work:
    """Return the work of a product of matrices, which are the inputs of these numbers."""

    def count(inputs: Sequence[Shape], output: Shape) -> int:
        one, other = inputs[first], inputs[second]
        return prod(output) * (one[-1] if len(one) > 1 or len(other) < 2 else other[-2])

    return count


def _gemm(inputs: Sequence[Shape], output: Shape) -> int:
    return prod(inputs[0]) * output[-1]


def _convolution(kernel: int) -> Work:
    """Return the work of a convolution whose kernels are the input of this number."""
    return lambda inputs, output: prod(output) * prod(inputs[kernel][1:])


def _transposed(inputs: Sequence[Shape], output: Shape) -> int:
    return prod(inputs[0]) * prod(inputs[1][1:])


def _recurrent(inputs: Sequence[Shape], output: Shape) -> int:
    return prod(inputs[0][:2]) * (prod(inputs[1]) + prod(inputs[2]))


WORK: Mapping[str, Work] = {
    "MatMul": _matrices(0, 1),
    "MatMulInteger": _matrices(0, 1),
    "QLinearMatMul": _matrices(0, 3),
    "FusedMatMul": _matrices(0, 1),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "FusedConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
}
"""What the operators do that sum products; all others do next to nothing."""
