"""The layers of a model in order, and which of them repeat."""

from commands import MODELS
from feedforwards import D, H, dense

from onnx_net2net import deepen, upcycle, widen
from onnx_net2net.analysis.outline import outline, sections

RESNET = MODELS / "digits_resnet.onnx"


def test_layers_stand_in_order_and_repeated_blocks_are_one():
    layers = outline(RESNET)
    assert [layer.name for layer in layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert (layers[0].reads, layers[0].makes, layers[0].shape) == (1, 12, (12, 1, 3, 3))
    folded = [(section.name, section.times, len(section.layers)) for section in sections(layers)]
    assert folded[:2] == [("", 1, 1), ("layer1.*", 2, 2)]


def test_layers_know_the_residual_stream():
    first, inner, outer = outline(RESNET)[:3]
    assert (first.makes_stream, inner.reads_stream, inner.makes_stream, outer.makes_stream) == (True, True, False, True)
    assert inner.names == ("conv1", "layer1.0.conv1")


def test_blocks_of_other_sizes_stay_apart():
    names = [section.layers[0].name for section in sections(outline(RESNET)) if section.name == "layer2.*"]
    assert names == ["layer2.0.downsample.0", "layer2.1.conv1"]


def test_students_have_the_names_of_their_teachers():
    student = deepen(RESNET, repeat={"layer1": 1}).student
    names = [layer.name for layer in outline(student)]
    assert {layer.name for layer in outline(RESNET)} < set(names)


def test_stacks_of_experts_have_the_sizes_of_one_expert():
    mixture = upcycle(dense("relu"), experts=4).student
    for model, experts in ((mixture, 4), (widen(mixture, sizes={"experts": "2x"}).student, 8)):
        layers = {layer.name: (layer.reads, layer.makes, layer.experts) for layer in outline(model)}
        assert layers["down.router"] == (D, experts, 0)
        assert {(D, H, experts), (H, D, experts)} <= set(layers.values())
