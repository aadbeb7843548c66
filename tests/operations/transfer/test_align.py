"""Layers find their counterparts: by operator, shape, place and structure, in seconds for large graphs."""

import time

import numpy as np
import pytest
from graphs import net
from test_transfer import Net, dense, plain, resnet, transformer

from onnx_net2net import load
from onnx_net2net.operations.transfer.align import align, alikeness
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Network
from onnx_net2net.operations.transfer.segments import Segment


def module(name="", kind="linear", shape=(4, 4), node=0, neutral=False, **changes):
    return Module(
        node, name, kind, shape, ((), ()), (), {"weight": Parameter((node, 1), (0, 1), 2)}, None, neutral, **changes
    )


def loose(*modules):
    return [Segment((one,)) for one in modules]


def segments(proto):
    return Network(load(proto)).segments


def pairs(teacher, target):
    found = align(segments(teacher), segments(target))
    return [(one.name, other.name) for one, other in found.pairs], found


def test_identical_graphs_match_unit_by_unit():
    for proto in (resnet(0), transformer(0), plain(0, (5, 7)), dense(0, 3)):
        matched, found = pairs(proto, proto)
        assert all(one == other for one, other in matched)
        assert found.lost == found.added == ()


def test_a_layer_has_its_bias_and_normalisation():
    modules = [one for segment in segments(resnet(0)) for one in segment.modules]
    by_name = {one.name: one for one in modules}
    assert set(by_name["stem"].parameters) == {"weight", "bias", "scale", "shift", "mean", "variance"}
    assert set(by_name["layer0.0.conv0"].parameters) == {"weight", "scale", "shift", "mean", "variance"}
    assert set(by_name["fc"].parameters) == {"weight", "bias"}


def test_the_form_of_a_linear_layer_does_not_matter():
    text = "(float[N, 6] x) => (float[N, 4] y) { "
    weight, bias = np.ones((6, 4), np.float32), np.ones(4, np.float32)
    forms = [
        net(text + "v = MatMul(x, w) y = Add(v, b) }", w=weight, b=bias),
        net(text + "v = MatMul(x, w) y = Add(b, v) }", w=weight, b=bias),
        net(text + "y = Gemm(x, w, b) }", w=weight, b=bias),
        net(text + "y = Gemm<transB = 1>(x, w, b) }", w=weight.T.copy(), b=bias),
        net(text + "t = Transpose<perm = [1, 0]>(w) v = MatMul(x, t) y = Add(v, b) }", w=weight.T.copy(), b=bias),
    ]
    found = [segments(form)[0].modules[0] for form in forms]
    assert {one.shape for one in found} == {(4, 6)}
    assert {(one.kind, *sorted(one.parameters)) for one in found} == {("linear", "bias", "weight")}


def test_a_convolution_of_one_place_is_linear():
    proto = Net(0, (1, 3, 5, 5)).conv("a", 4, kernel=1).conv("b", 4, kernel=1, group=2).build("y")
    assert [(one.kind, one.shape) for segment in segments(proto) for one in segment.modules] == [
        ("linear", (4, 3)),
        ("Conv", (4, 2, 1, 1)),
    ]


def test_blocks_are_items():
    found = segments(resnet(0, depth=2))
    assert [len(segment.modules) for segment in found if segment.block is not None] == [2, 2, 2, 2]
    assert all(segment.neutral for segment in found if segment.block is not None)


def test_layers_of_a_dense_block_are_items():
    assert [len(segment.modules) for segment in segments(dense(0, 3)) if segment.block is not None] == [2, 2, 2]


def test_deeper_stages_keep_their_first_blocks():
    matched, found = pairs(resnet(0), resnet(1, depth=3))
    assert ("layer1.0.conv1", "layer1.0.conv1") in matched
    assert [segment.name for segment in found.added] == ["layer0.1", "layer0.2", "layer1.1", "layer1.2"]


def test_what_changes_the_width_is_not_left_out():
    matched, _ = pairs(plain(0, (5, 9)), plain(1, (8, 8, 12, 12)))
    assert matched == [("conv0", "conv0"), ("conv1", "conv2"), ("fc", "fc")]


def test_order_is_preserved_and_the_earliest_match_is_taken():
    teacher, target = loose(module("a"), module("b")), loose(*(module(name, neutral=True) for name in "uvwx"))
    found = align(teacher, target)
    assert [(one.name, other.name) for one, other in found.pairs] == [("a", "u"), ("b", "v")]


def test_names_break_ties_and_no_more():
    teacher = loose(module("a"))
    target = loose(module("x", neutral=True), module("a", neutral=True))
    assert [other.name for _, other in align(teacher, target).pairs] == ["a"]
    target = loose(module("x", neutral=True), module("a", shape=(4, 9), neutral=True))
    assert [other.name for _, other in align(teacher, target).pairs] == ["x"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (module(), module(kind="Gather")),
        (module(kind="Conv", shape=(4, 4, 3, 3)), module(kind="ConvTranspose", shape=(4, 4, 3, 3))),
        (module(kind="Conv", shape=(4, 4, 3, 3)), module(kind="Conv", shape=(4, 4, 3))),
    ],
)
def test_other_operators_are_not_alike(one, other):
    assert alikeness(one, other) == 0


def test_similarity():
    assert alikeness(module(), module()) == 1
    assert alikeness(module(), module(shape=(4, 8))) > alikeness(module(), module(shape=(4, 16)))
    wider = module(shape=(4, 8))
    assert alikeness(module(), wider) > alikeness(wider, module())  # which has not all of it
    one = module(kind="Conv", shape=(4, 4, 3, 3))
    strided = Module(0, "", "Conv", (4, 4, 3, 3), ((2, 2), ()), (), one.parameters)
    assert alikeness(one, strided) < alikeness(one, one)


def test_graphs_of_a_thousand_nodes_take_seconds():
    teacher, target = segments(resnet(0, depth=70)), segments(resnet(1, depth=75))
    assert sum(len(segment.modules) for segment in target) > 300
    started = time.perf_counter()
    found = align(teacher, target)
    assert time.perf_counter() - started < 10
    assert not found.lost
