"""Who weighs the channels of sums, and which constants scale an operand."""

from classes import draw
from graphs import net

from onnx_net2net import load
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.weighing import find_ways, scalable, weighed_axes

MLP = """(float[N, 6] x) => (float[N, 3] y) {
    e = MatMul(x, up) n = LayerNormalization(e, gain, shift) r = Relu(e) s = Add(n, r) y = MatMul(s, down) }"""


def analysed(text=MLP):
    return infer(load(net(text, up=draw(6, 8), gain=draw(8), shift=draw(8), down=draw(8, 3))))


def number_of(analysis, op, which=0):
    return [number for number, node in enumerate(analysis.nodes) if node.op == op][which]


def test_the_weight_that_is_summed_over_weighs():
    analysis = analysed()
    last = number_of(analysis, "MatMul", 1)
    assert weighed_axes(analysis)[last, 1] == {0: last}
    assert all(way is None or way.axes for way in find_ways(analysis).values())


def test_a_norm_is_scaled_by_its_gain_and_shift_and_an_activation_by_nothing():
    analysis = analysed()
    norm, total, last = (number_of(analysis, *what) for what in (("LayerNormalization",), ("Add",), ("MatMul", 1)))
    axis = analysis.input_axes(last, 0)[1]
    assert scalable(analysis, total, 0, axis) == [(norm, 1), (norm, 2)]
    assert scalable(analysis, last, 0, axis) is None
