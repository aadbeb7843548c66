"""A copy of a module has weights of its own, the teacher's number or a new one, and shares what is no weight."""

import numpy as np
from graphs import weights, weighty
from moe import ROUTERS, E, apart, moe
from onnx import numpy_helper

from onnx_net2net import widen


def test_numbers_follow_the_places_of_copies_and_weights_are_equal():
    proto = moe(ROUTERS["softmax, top-k, normed"], apart("masked"))
    student = widen(proto, sizes={"experts": "+2"}).student  # the first two have a copy, which stands beside them
    known, graph = weights(student), weighty(student).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    numbers = sorted(int(values[node.input[1]]) for node in graph.node if node.op_type == "Equal")
    assert numbers == list(range(E + 2))
    by_start = {node.output[0]: int(values[node.input[1]]) for node in graph.node if node.op_type == "Equal"}
    assert [by_start[f"same{e}"] for e in range(E)] == [0, 2, 4, 5]
    for expert, place in ((0, 1), (1, 3)):
        copy = f"up{expert}_copy{place}"
        assert np.array_equal(known[copy], known[f"up{expert}"])
        assert by_start[f"same{expert}_copy{place}"] == place
    assert sum(name.startswith("last") for name in known) == 1
