"""The width report: sizes as constructors and configs take them, and what a class computes from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from classes import attention, draw
from graphs import net

from onnx_net2net import load, widen
from onnx_net2net.cli.main import main
from onnx_net2net.framework.widths import compare_widths

MODELS = Path(__file__).parents[2] / "models"


def report(teacher, **options):
    return compare_widths(load(teacher), widen(teacher, **options).student)


def test_the_modules_of_a_trained_network_have_their_new_sizes():
    found = report(MODELS / "digits_resnet.onnx", factor=1.5)
    assert found.modules["layer2.0.conv1"] == (
        "Conv2d", {"in_channels": (12, 18), "out_channels": (24, 36), "groups": (1, 1)}
    )  # fmt: skip
    assert found.modules["fc"] == ("Linear", {"in_features": (48, 72), "out_features": (10, 10)})
    assert len(found.modules) == 16
    assert not found.recomputed
    lines = list(found.lines())
    assert "layer3.1.conv2: in_channels 48 -> 72, out_channels 48 -> 72" in lines
    assert "fc: in_features 48 -> 72" in lines


def test_kept_batch_normalizations_are_modules():
    found = report(MODELS / "digits_inception_bn.onnx", factor=2)
    kinds = {kind for kind, _ in found.modules.values()}
    assert kinds == {"Conv2d", "BatchNorm2d", "Linear"}
    assert all(pair[1] == 2 * pair[0] for kind, sizes in found.modules.values() if kind == "BatchNorm2d"
               for pair in sizes.values())  # fmt: skip


def test_the_layers_of_an_attention_and_the_fields_of_its_config():
    found = report(attention(stream=12, heads=3), factor=2, framework="torch")
    assert found.modules["wq"] == ("Linear", {"in_features": (12, 24), "out_features": (12, 24)})
    assert found.modules["proj"] == ("Linear", {"in_features": (12, 24), "out_features": (12, 24)})
    assert found.modules["gain"] == ("LayerNorm", {"normalized_shape": ((12,), (24,))})
    assert found.config == {"hidden_size": (12, 24), "head_dim": (4, 4), "num_attention_heads": (3, 6)}
    assert found.products["wq"] == {"out_features": "24 = 6 x 4"}
    (scale,) = found.recomputed
    assert (scale.value, scale.formula, scale.holds) == (0.5, ("4 ** -0.5", "4 ** -0.5"), True)


def test_a_scale_that_the_class_would_have_otherwise_is_told():
    found = report(attention(), sizes={"wq[1]": 9})
    (scale,) = found.recomputed
    assert (scale.formula, scale.holds) == (("4 ** -0.5", "9 ** -0.5"), False)
    assert any("the class would have 9 ** -0.5, which DIFFERS" in line for line in found.lines())


def test_another_epsilon_is_told():
    text = """(float[N, 6] x) => (float[N, 3] y) {
        e = MatMul(x, embed) n = LayerNormalization <epsilon = 0.001> (e, gain, shift) y = MatMul(n, head) }"""
    teacher = net(text, embed=draw(6, 8), gain=draw(8), shift=draw(8), head=draw(8, 3))
    found = report(teacher, sizes={"embed": 12})
    ((name, (old, new)),) = found.epsilons.items()
    assert (name, round(old, 6)) == ("gain", 0.001)
    assert math.isclose(new, old * 8 / 12, rel_tol=1e-6)
    assert "to be given to the class: eps of gain 0.001 -> 0.000666667" in list(found.lines())
    assert not report(teacher, sizes={"embed": 16}).epsilons


@pytest.mark.parametrize(
    ("body", "given", "kind", "sizes"),
    [
        ("(float[N, 6, 5] x) => (float[N, 3, 5] y) { a = Conv <group = 2> (x, w1) r = Relu(a) y = Conv(r, w2) }",
         {"w1": draw(8, 3, 1), "w2": draw(3, 8, 1)}, "Conv1d",
         {"in_channels": (6, 6), "out_channels": (8, 16), "groups": (2, 2)}),
        ("(float[N, 6, 5] x) => (float[N, 3, 5] y) { a = ConvTranspose(x, w1) r = Relu(a) y = Conv(r, w2) }",
         {"w1": draw(6, 8, 1), "w2": draw(3, 8, 1)}, "ConvTranspose1d",
         {"in_channels": (6, 6), "out_channels": (8, 16), "groups": (1, 1)}),
        ("(int64[N, 4] x) => (float[N, 4, 3] y) { a = Gather(w1, x) r = Relu(a) y = MatMul(r, w2) }",
         {"w1": draw(20, 8), "w2": draw(8, 3)}, "Embedding", {"num_embeddings": (20, 20), "embedding_dim": (8, 16)}),
        ("(float[N, 6] x) => (float[N, 3] y) { a = Gemm <transB = 1> (x, w1) r = Relu(a) y = MatMul(r, w2) }",
         {"w1": draw(8, 6), "w2": draw(8, 3)}, "Linear", {"in_features": (6, 6), "out_features": (8, 16)}),
        ("(float[N, 6] x) => (float[N, 3] y) { t = Transpose <perm = [1, 0]> (w1) a = MatMul(x, t) r = Relu(a) "
         "y = MatMul(r, w2) }",
         {"w1": draw(8, 6), "w2": draw(8, 3)}, "Linear", {"in_features": (6, 6), "out_features": (8, 16)}),
        ("(float[5, N, 6] x) => (float[5, 1, N, 3] y) { a = LSTM <hidden_size = 8> (x, w1, r) y = MatMul(a, w2) }",
         {"w1": draw(1, 32, 6), "r": draw(1, 32, 8), "w2": draw(8, 3)}, "LSTM",
         {"input_size": (6, 6), "hidden_size": (8, 16)}),
        ("(float[N, 6, 5] x) => (float[N, 3, 5] y) { a = Conv(x, w) b = PRelu(a, w1) y = Conv(b, w2) }",
         {"w": draw(8, 6, 1), "w1": draw(8, 1), "w2": draw(3, 8, 1)}, "PReLU", {"num_parameters": (8, 16)}),
    ],
)  # fmt: skip
def test_every_kind_of_layer_has_the_sizes_of_its_constructor(body, given, kind, sizes):
    assert report(net(body, **given), factor=2).modules["w1"] == (kind, sizes)


def test_the_groups_of_a_convolution_and_of_a_norm_must_divide():
    text = """(float[N, 6, 5] x) => (float[N, 3, 5] y) {
        a = Conv(x, w) b = GroupNormalization <num_groups = 2> (a, gain, shift) c = Conv <group = 2> (b, w1)
        r = Relu(c) y = Conv(r, w2) }"""
    teacher = net(text, opset=21, ir=10, w=draw(8, 6, 1), gain=draw(8), shift=draw(8), w1=draw(8, 4, 1),
                  w2=draw(3, 8, 1))  # fmt: skip
    found = report(teacher, factor=2)
    assert found.modules["gain"][1]["num_channels"] == (8, 16)
    assert found.modules["gain"][1]["num_groups"][0] == 2
    groups = found.modules["w1"][1]["groups"][1]
    assert found.products["w1"]["out_channels"] in (f"16 = {groups} x {16 // groups}",
                                                    f"and in_channels are multiples of groups {groups}")  # fmt: skip


def test_groups_that_are_normalised_as_channels_are_those_of_a_group_norm():
    text = """(float[N, 6, 5] x) => (float[N, 3, 5] y) {
        a = Conv(x, w) r = Reshape(a, split) i = InstanceNormalization(r, one, zero) b = Reshape(i, merged)
        g = Mul(b, gain) s = Add(g, shift) y = Conv(s, w2) }"""
    teacher = net(text, w=draw(8, 6, 1), gain=draw(8, 1), shift=draw(8, 1), w2=draw(3, 8, 1), one=np.ones(2, "f"),
                  zero=np.zeros(2, "f"), split=np.array([0, 2, -1]), merged=np.array([0, 8, 5]))  # fmt: skip
    found = report(teacher, factor=1.5, framework="torch").modules["one"]
    assert found == ("GroupNorm", {"num_groups": (2, 3), "num_channels": (8, 12)})
    plain = net("(float[N, 6, 5] x) => (float[N, 3, 5] y) { a = Conv(x, w) b = InstanceNormalization(a, g, s) "
                "y = Conv(b, w2) }", w=draw(8, 6, 1), g=draw(8), s=draw(1, 8)[0], w2=draw(3, 8, 1))  # fmt: skip
    assert report(plain, factor=1.5).modules["g"] == ("InstanceNorm1d", {"num_features": (8, 12)})


def test_a_resnet_of_bottlenecks_has_a_width_per_group():
    text = """(float[N, 3, 5, 5] x) => (float[N, 4] y) {
        s = Conv(x, stem) a = Conv(s, l1a) b = Relu(a) c = Conv(b, l1b) d = Relu(c) e = Conv(d, l1c) f = Add(e, s)
        g = Conv(f, l2a) h = Relu(g) i = Conv(h, l2b) j = Relu(i) k = Conv(j, l2c) l = Conv(f, l2d) m = Add(k, l)
        p = GlobalAveragePool(m) q = Flatten(p) y = Gemm <transB = 1> (q, fc) }"""
    names = {"stem": "conv1", "l1a": "layer1.0.conv1", "l1b": "layer1.0.conv2", "l1c": "layer1.0.conv3",
             "l2a": "layer2.0.conv1", "l2b": "layer2.0.conv2", "l2c": "layer2.0.conv3",
             "l2d": "layer2.0.downsample.0", "fc": "fc"}  # fmt: skip
    shapes = {"stem": (8, 3), "l1a": (4, 8), "l1b": (4, 4), "l1c": (8, 4), "l2a": (8, 8), "l2b": (8, 8),
              "l2c": (16, 8), "l2d": (16, 8)}  # fmt: skip
    teacher = net(text, **{name: draw(*shape, 1, 1) for name, shape in shapes.items()}, fc=draw(4, 16))
    for tensor in teacher.graph.initializer:
        short, tensor.name = tensor.name, f"{names[tensor.name]}.weight"
        for node in teacher.graph.node:
            node.input[:] = [tensor.name if name == short else name for name in node.input]
    wider = {"layer1.0.conv[12]": "1.5x", "layer2.0.conv[12]": "1.5x"}
    assert report(teacher, sizes=wider).config == {"width_per_group": (4, 6)}
    assert report(teacher, sizes={"layer1.0.conv[12]": "2x"}).config == {}


def test_the_command_line_prints_the_report(tmp_path, capsys):
    options = ["widen", str(MODELS / "digits_mlp.onnx"), "-o", str(tmp_path / "student.onnx"), "--factor", "1.5"]
    assert main([*options, "--report", "text"]) == 0
    assert "fc2: in_features 128 -> 192, out_features 64 -> 96\n" in capsys.readouterr().out
    assert main([*options, "--report", "json"]) == 0
    record = json.loads(capsys.readouterr().out)["widths"]
    assert record["modules"][0] == {
        "module": "fc1", "kind": "Linear", "in_features": [64, 64], "out_features": [128, 192]
    }  # fmt: skip
    assert set(record) == {"modules", "config", "products", "recomputed", "epsilons"}


def test_numbers_are_compared_without_reading_weights():
    teacher = load(attention())
    student = widen(teacher, factor=2).student
    assert isinstance(compare_widths(teacher, student).to_dict()["modules"], list)
    assert np.isfinite(compare_widths(teacher, teacher).recomputed[0].value)
