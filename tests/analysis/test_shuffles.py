"""Runs of Reshape, Transpose, Reshape that permute one axis."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import net

from onnx_net2net.analysis.shuffles import Shuffle, find_shuffles
from onnx_net2net.graph import sizes
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.model import load

X = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)


def found(perm: str, outputs: str = "float[2,6,5] y", split: tuple[int, ...] = (2, 2, 3, 5)) -> list[Shuffle]:
    model = load(
        net(
            f"""(float[2,6,5] x) => ({outputs}) {{
                a = Reshape(x, split)
                b = Transpose<perm = {perm}>(a)
                y = Reshape(b, whole)
            }}""",
            split=np.array(split),
            whole=np.array([2, 6, 5]),
        )
    )
    graph, known = Graph(model), sizes.infer_sizes(model.proto)
    return list(find_shuffles(graph.nodes, graph.kept, known.shape))


def test_a_shuffle_is_found_with_its_order():
    (shuffle,) = found("[0, 2, 1, 3]")
    assert (shuffle.first, shuffle.last, shuffle.axis) == (0, 2, 1)
    np.testing.assert_array_equal(X.take(shuffle.order, 1), X.reshape(2, 2, 3, 5).swapaxes(1, 2).reshape(X.shape))


@pytest.mark.parametrize(
    ("perm", "outputs", "split"),
    [
        ("[1, 0, 2, 3]", "float[2,6,5] y", (2, 2, 3, 5)),
        ("[0, 2, 1, 3]", "float[2,6,5] y, float[2,2,3,5] a", (2, 2, 3, 5)),
        ("[0, 2, 1]", "float[2,6,5] y", (2, 5, 6)),
    ],
    ids=["two axes", "an output sees it", "no axis is split"],
)
def test_what_does_more_is_no_shuffle(perm, outputs, split):
    assert not found(perm, outputs, split)
