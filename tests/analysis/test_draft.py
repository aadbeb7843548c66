"""A draft is edited, and the graph that it was taken of stays."""

import numpy as np
from classes import draw
from graphs import net

from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.inference import infer
from onnx_net2net.graph.edit import Writer, drop_unread
from onnx_net2net.model.model import load


def test_a_draft_is_edited_alone():
    weights = {"up": draw(4, 6), "down": draw(6, 3)}
    teacher = load(
        net("(float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }", **weights)
    )
    analysis = infer(teacher)
    draft = Draft.of(analysis)
    assert [draft.numbers[id(node)] for node in draft.nodes] == [0, 1, 2]
    assert draft.uses[0, 1].axes is analysis.uses[0, 1].axes
    draft.graph.replace(draft.uses[0, 1].constant, (4, 6), lambda: np.zeros((4, 6), np.float32))
    result = draft.nodes[1].outputs[0]
    draft.nodes[1].outputs.clear()
    Writer(draft.graph, "").Tanh(draft.nodes[0].outputs[0], result=result)
    drop_unread(draft.graph, draft.kept)
    assert [node.op_type for node in draft.graph.finish().proto.graph.node] == ["MatMul", "Tanh", "MatMul"]
    assert [node.op for node in analysis.nodes] == ["MatMul", "Relu", "MatMul"]
    np.testing.assert_array_equal(analysis.graph.read(analysis.uses[0, 1].constant), weights["up"])
    assert analysis.graph.finish().proto == teacher.proto
