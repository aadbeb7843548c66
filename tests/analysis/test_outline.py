"""The layers of a model in order, and which of them repeat."""

from commands import MODELS
from feedforwards import D, H, dense

from onnx_net2net import deepen, upcycle, widen
from onnx_net2net.analysis.outline import outline, sections

RESNET = MODELS / "digits_resnet.onnx"


def test_layers_stand_in_order_and_repeated_blocks_are_one():
    stages = outline(RESNET)
    assert [stage.name for stage in stages][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert (stages[0].reads, stages[0].makes, stages[0].shape) == (1, 12, (12, 1, 3, 3))
    folded = [(section.name, section.times, len(section.stages)) for section in sections(stages)]
    assert folded[:2] == [("", 1, 1), ("layer1.*", 2, 2)]


def test_layers_know_the_residual_stream():
    first, inner, outer = outline(RESNET)[:3]
    assert (first.makes_stream, inner.reads_stream, inner.makes_stream, outer.makes_stream) == (True, True, False, True)
    assert inner.names == ("conv1", "layer1.0.conv1")


def test_blocks_of_other_sizes_stay_apart():
    names = [section.stages[0].name for section in sections(outline(RESNET)) if section.name == "layer2.*"]
    assert names == ["layer2.0.downsample.0", "layer2.1.conv1"]


def test_students_have_the_names_of_their_teachers():
    student = deepen(RESNET, repeat={"layer1": 1}).student
    names = [stage.name for stage in outline(student)]
    assert {stage.name for stage in outline(RESNET)} < set(names)


def test_stacks_of_experts_have_the_sizes_of_one_expert():
    mixture = upcycle(dense("relu"), experts=4).student
    for model, experts in ((mixture, 4), (widen(mixture, sizes={"experts": "2x"}).student, 8)):
        stages = {stage.name: (stage.reads, stage.makes, stage.experts) for stage in outline(model)}
        assert stages["down.router"] == (D, experts, 0)
        assert {(D, H, experts), (H, D, experts)} <= set(stages.values())
