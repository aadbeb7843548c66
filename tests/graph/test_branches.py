"""Branches of a graph: what depends on one start alone, and where all are summed."""

import numpy as np
import pytest
from graphs import net
from moe import ROUTERS, E, apart, moe

from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.branches import find_branches, in_order
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.model import load


def opened(proto):
    graph = Graph(load(proto))
    return graph, {node.outputs[0].name: node for node in graph.nodes}


def test_nodes_come_behind_what_they_read():
    graph, _ = opened(moe(ROUTERS["softmax, top-k, normed"], apart("masked")))
    shuffled = graph.nodes[::-1]
    seen = set()
    for node in in_order(shuffled):
        assert all(id(maker) in seen for tensor in node.inputs for maker in tensor.inputs)
        seen.add(id(node))
    assert len(seen) == len(shuffled)


@pytest.mark.parametrize("kind", ["masked", "picked rows"])
def test_a_branch_has_the_module_of_its_expert_and_what_only_that_reads(kind):
    graph, made = opened(moe(ROUTERS["softmax, top-k, normed"], apart(kind)))
    starts = [made[f"same{e}"] for e in range(E)]
    total, branches = find_branches(in_order(graph.nodes), starts, graph.kept)
    assert total is made[f"sum{E - 1}"]
    assert [branch.join for branch in branches] == [made["sum1"], *(made[f"sum{e}"] for e in range(1, E))]
    inside = {node.outputs[0].name for node in branches[2].nodes}
    assert inside >= {"same2", "h2", "a2", "d2", "out2", "gate2", "term2"}
    assert all(name.endswith("2") for name in inside)


def test_sizes_alone_tie_no_branches_together():
    text = """(float[n, 4] x) => (float[n, 4] y) {
        a = Abs(x) s = Slice(a, zero, one, one) size = Shape(s) b0 = Exp(x) b = Expand(b0, size) y = Add(a, b) }"""
    graph, made = opened(net(text, zero=np.array([0]), one=np.array([1])))
    total, branches = find_branches(in_order(graph.nodes), [made["a"], made["b0"]], graph.kept)
    assert total is made["y"]
    assert {node.op for node in branches[1].nodes} == {"Exp", "Expand", "Slice", "Shape"}


def test_what_ends_in_no_sum_is_refused():
    graph, made = opened(net("(float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = Abs(x) z = Exp(x) }"))
    with pytest.raises(RefusedError, match="not combined by one node"):
        find_branches(in_order(graph.nodes), [made["y"], made["z"]], graph.kept)
