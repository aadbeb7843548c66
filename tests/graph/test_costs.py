"""Products of known networks, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import net

from onnx_net2net.graph.costs import Costs, costs_of
from onnx_net2net.model.model import load


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "made", "products"),
    [
        ("(float[N, 5, 8] x) => (float[N, 5, 6] y) { y = MatMul(x, w) }", {"w": zeros(8, 6)}, 5 * 8 * 6),
        ("(float[8] x) => (float[6] y) { y = MatMul(x, w) }", {"w": zeros(8, 6)}, 8 * 6),
        ("(float[3, 8] x) => (float[3, 6] y) { y = Gemm<transB = 1>(x, w) }", {"w": zeros(6, 8)}, 3 * 8 * 6),
        ("(float[N, 4, 9, 9] x) => (float[N, 6, 7, 7] y) { y = Conv(x, w) }", {"w": zeros(6, 4, 3, 3)},
         6 * 49 * 4 * 9),
        ("(float[N, 4, 9, 9] x) => (float[N, 4, 7, 7] y) { y = Conv<group = 4>(x, w) }", {"w": zeros(4, 1, 3, 3)},
         4 * 49 * 9),
        ("(float[N, 4, 5, 5] x) => (float[N, 6, 7, 7] y) { y = ConvTranspose(x, w) }", {"w": zeros(4, 6, 3, 3)},
         4 * 25 * 6 * 9),
        ("(float[T, N, 4] x) => (float[T, 1, N, 5] y) { y = GRU<hidden_size = 5>(x, w, r) }",
         {"w": zeros(1, 15, 4), "r": zeros(1, 15, 5)}, 15 * 9),
        ("(float[2, 3, 4] x, float[2, 4, 5] z) => (float[2, 3, 5] y) { y = Einsum<equation = \"bij,bjk->bik\">(x, z) }",
         {}, 2 * 3 * 5 * 4),
        ("(float[2, 3, 4] x, float[4, 5] z) => (float[2, 3, 5] y) { y = Einsum<equation = \"...j,jk\">(x, z) }", {},
         2 * 3 * 5 * 4),
        ("(float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }", {}, 0),
    ],
)  # fmt: skip
def test_products(text: str, made: dict[str, np.ndarray], products: int) -> None:
    assert costs_of(load(net(text, **made))).multiplications == products


def test_dynamic_axes_have_the_sizes_that_are_asked_for() -> None:
    model = load(net("(float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }", w=zeros(8, 6)))
    assert costs_of(model, {"N": 7}) == Costs(7 * 8 * 6, 7 * 6 * 4, {"N": 7})


def test_images_of_one_pixel_are_not_what_is_counted() -> None:
    text = "(float[N, 4, H, W] x) => (float[N, 6, I, J] y) { y = Conv(x, w) }"
    found = costs_of(load(net(text, w=zeros(6, 4, 3, 3))))
    height, width = found.binding["H"] - 2, found.binding["W"] - 2
    assert height > 0
    assert found.multiplications == found.binding["N"] * 6 * height * width * 4 * 9


def test_activations_are_what_nodes_compute() -> None:
    model = load(net("(float[N, 8] x) => (float[N, 8] y) { z = Relu(x) y = Add(z, b) }", b=zeros(8)))
    assert costs_of(model).activations == 2 * 8 * 4
