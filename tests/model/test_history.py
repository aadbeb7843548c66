"""What a student says of how it was made, where viewers show it."""

import onnx
from commands import MODELS

from onnx_net2net import load, narrow, widen
from onnx_net2net.model.history import GROWN

RESNET = MODELS / "digits_resnet.onnx"


def marks(proto):
    return {
        part.name: entry.value
        for part in (*proto.graph.initializer, *proto.graph.node)
        for entry in part.metadata_props
        if entry.key == GROWN
    }


def test_tensors_and_nodes_say_how_they_grew(tmp_path):
    widen(RESNET, factor=1.5).student.save(tmp_path / "student.onnx")
    found = marks(onnx.load(tmp_path / "student.onnx"))
    assert found["conv1.weight"] == "12 x 1 x 3 x 3 -> 18 x 1 x 3 x 3, axis 0 replicate"
    assert "fc.bias" not in found
    (node,) = (text for text in found.values() if text.startswith("fc.weight "))
    assert node == "fc.weight 10 x 48 -> 10 x 72, axis 1 replicate"


def test_a_later_growth_says_its_own_and_narrow_takes_it_back():
    once = widen(RESNET, factor=1.5).student
    twice = widen(once, sizes={"conv1": 20}).student
    assert marks(twice.proto)["conv1.weight"] == "18 x 1 x 3 x 3 -> 20 x 1 x 3 x 3, axis 0 replicate"
    assert marks(twice.proto)["fc.weight"] == marks(once.proto)["fc.weight"]
    assert not marks(narrow(twice).student.proto)
    assert not marks(load(RESNET).proto)
