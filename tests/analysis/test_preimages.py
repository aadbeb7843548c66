"""Where in an input stands what is multiplied in a result: wherever the node itself takes its elements from."""

import numpy as np
import pytest
from graphs import net, run

from onnx_net2net import load
from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.preimages import Multiplied, multiplied_before, read_by

MOVES = {
    "Transpose": ("y = Transpose <perm = [2, 0, 1]> (x)", {}, 3),
    "Reshape that joins": ("y = Reshape(x, shape)", {"shape": np.array([2, 36])}, 2),
    "Reshape that splits": ("y = Reshape(x, shape)", {"shape": np.array([2, 2, 2, 9])}, 4),
    "Slice": ("y = Slice(x, starts, ends, axes)",
              {"starts": np.array([1]), "ends": np.array([3]), "axes": np.array([1])}, 3),
    "Gather of one": ("y = Gather <axis = 1> (x, place)", {"place": np.array(2)}, 2),
    "Gather of several": ("y = Gather <axis = 1> (x, places)", {"places": np.array([3, 0])}, 3),
    "sum": ("y = Add(x, x)", {}, 3),
    "activation": ("y = Relu(x)", {}, 3),
}  # fmt: skip


def analysed(text, **given):
    model = net(text, **given)
    analysis = infer(load(model))
    number = next(number for number, node in enumerate(analysis.nodes) if node.outputs[0].name == "y")
    return model, analysis, number


@pytest.mark.parametrize("name", MOVES)
def test_elements_come_from_where_the_node_takes_them(name):
    body, given, rank = MOVES[name]
    letters = ", ".join("ABCD"[:rank])
    model, analysis, number = analysed(f"(float[2, 4, 9] x) => (float[{letters}] y) {{ {body} }}", **given)
    followed = 0
    for position, axis in enumerate(analysis.axes["y"]):
        mask = np.arange(axis.size).reshape([-1 if p == position else 1 for p in range(rank)]) % 3 == 1
        result = analysis.nodes[number].outputs[0]
        before = multiplied_before(analysis, leaf_set(axis), number, 0, result, Multiplied(position, mask))
        if before is not None:
            (marked,) = run(model, {"x": np.broadcast_to(before.mask, (2, 4, 9)).astype(np.float32)})
            assert np.array_equal(marked > 0, np.broadcast_to(mask, marked.shape))
            followed += 1
    assert followed


def test_a_part_of_a_concatenation_gets_its_part_of_the_mask():
    text = "(float[2, 4] x, float[2, 3] z) => (float[2, K] y) { y = Concat <axis = 1> (x, z) }"
    _, analysis, number = analysed(text)
    axis, result = analysis.axes["y"][1], analysis.nodes[number].outputs[0]
    part = Multiplied(1, np.arange(7).reshape(1, 7) > 4)
    masks = [multiplied_before(analysis, leaf_set(axis), number, index, result, part).mask for index in (0, 1)]
    assert [mask.tolist() for mask in masks] == [[[False] * 4], [[False, True, True]]]


def test_a_node_reads_the_elements_that_it_picks():
    text = "(float[2, 4] x) => (float[2, K] y) { y = Gather <axis = 1> (x, places) }"
    _, analysis, number = analysed(text, places=np.array([0, 2]))
    assert read_by(analysis, number, 0).tolist() == [[True, False, True, False]]
