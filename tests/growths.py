"""Maps and axes that grow at random, with the matrices E and D that they stand for; shared by the tests of algebra/."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from onnx_net2net.algebra.dims import Axis, Concat, Dim, Product
from onnx_net2net.algebra.maps import Map, from_index, identity, padded, replicate, uniform

SEEDS = st.integers(0, 2**16)
SIZES = st.integers(1, 6)


def expansion(map: Map) -> np.ndarray:
    """E, which makes new units from old ones."""
    matrix = np.zeros((map.new, map.old))
    matrix[np.arange(map.new), map.index] = 1
    return matrix


def weighing(map: Map) -> np.ndarray:
    """D, which says what readers weigh the new units by."""
    return (expansion(map) * map.weight[:, None]).T


def block_diagonal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.block([[a, np.zeros((len(a), b.shape[1]))], [np.zeros((len(b), a.shape[1])), b]])


@st.composite
def maps(draw: st.DrawFn, old: int) -> Map:
    kind = draw(st.sampled_from(("identity", "replicate", "uniform", "zero_out", "index")))
    more, rng = draw(st.integers(0, 5)), np.random.default_rng(draw(SEEDS))
    if kind == "uniform":
        return uniform(old, old * draw(st.integers(1, 3)))
    if kind == "index" and more:
        return from_index(old, rng.permutation(np.concatenate([np.arange(old), rng.integers(0, old, more)])))
    if kind == "zero_out":
        return padded(old, old + more, "zero_out")
    return replicate(old, old + more, rng) if kind == "replicate" else identity(old)


@st.composite
def grown_axes(draw: st.DrawFn, depth: int = 2) -> tuple[Axis, dict[Dim, Map], np.ndarray, np.ndarray]:
    """An expression over dims that grow, with its E and D by explicit linear algebra."""
    kind = draw(st.sampled_from(("dim", "product", "concat"))) if depth else "dim"
    if kind == "dim":
        dim = Dim(draw(SIZES))
        map = identity(1) if dim.frozen else draw(maps(dim.size))
        return dim, {dim: map}, expansion(map), weighing(map)
    a, growth, e, d = draw(grown_axes(depth - 1))
    b, growth_b, e_b, d_b = draw(grown_axes(depth - 1))
    growth = growth | growth_b
    if kind == "product":
        return Product((a, b)), growth, np.kron(e, e_b), np.kron(d, d_b)
    return Concat((a, b)), growth, block_diagonal(e, e_b), block_diagonal(d, d_b)
