"""DPIAT's method reproduces the values that its authors' code gives, and finds layers and blocks in graphs."""

import functools
import json
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net, weights
from hypothesis import given, settings, strategies as st
from nets import cifar_resnet, layer, linear
from onnx import numpy_helper

from onnx_net2net import BadInputError, RefusedError, load
from onnx_net2net.algebra.weights import into_middle, window
from onnx_net2net.cli.main import main
from onnx_net2net.model.history import history
from onnx_net2net.operations.transfer.dpiat.dpiat import (
    Matcher,
    best_scores,
    elements_of,
    network_similarity,
    transfer_dpiat,
)
from onnx_net2net.operations.transfer.dpiat.elements import Scored, ScoredLayer, layers_of, standardized, swapped
from onnx_net2net.operations.transfer.networks import Network


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# --- The method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "size", "expected"),
    [
        ([1, 2, 3], 5, [0, 1, 2, 3, 0]),
        ([1, 2, 3], 6, [0, 1, 2, 3, 0, 0]),
        ([1, 2, 3, 4, 5], 3, [2, 3, 4]),
        ([1, 2], 3, [1, 2, 0]),
    ],
)
def test_crop_and_pad_in_the_middle(source, size, expected):
    assert into_middle(np.array(source), np.zeros(size)).tolist() == expected


def test_a_head_of_fewer_classes_gets_the_middle_ones():
    assert window(1000, 100) == (slice(450, 550), slice(0, 100))


def test_each_axis_is_cropped_or_padded_alone_and_the_rest_keeps_its_values():
    source, target = np.ones((2, 7, 3)), np.zeros((4, 3, 5))
    result = into_middle(source, target)
    assert result[1:3, :, 1:4].all()
    assert result.sum() == 2 * 3 * 3
    assert not target.any()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([linear(4, 4)] * 2, math.sqrt(2)),
        ([linear(4, 4), None, linear(4, 4)], 2 / math.sqrt(3)),
        ([linear(8, 4)], 1 / 2),
        ([linear(8, 2)], 1 / 4),
        ([layer("Conv2d", 4, 4, 1, 1)], 0),
        ([[linear(4, 4)] * 2], 0),
    ],
)
def test_a_run_of_several_counts_less_a_layer(target, expected):
    assert Matcher().score([linear(4, 4)], target) == pytest.approx(expected)


def test_blocks_match_blocks_by_what_is_inside():
    block = [linear(4, 4), linear(8, 4)]
    assert Matcher().score([block], [block, linear(4, 4), block]) == pytest.approx(4 / math.sqrt(3))


def reference(similarities):
    """The recurrence of the note (section 3) as it stands there, with its traceback: value and (source, target)."""
    n, m = len(similarities), len(similarities[0]) if similarities else 0

    @functools.cache
    def best(i, j):
        if not i or not j:
            return 0.0, "skip target" if i else ""
        value, way = (best(i - 1, j)[0], "skip target") if best(i - 1, j)[0] > best(i, j - 1)[0] else (
            best(i, j - 1)[0], "skip source"
        )  # fmt: skip
        total = 0.0
        for k in range(i, 0, -1):
            total += similarities[k - 1][j - 1]
            run = best(k - 1, j - 1)[0] + total / math.sqrt(i - k + 1)
            if run > value + 1e-9:
                value, way = run, k
        return value, way

    i, j, pairs = n, m, []
    while i and j:
        way = best(i, j)[1]
        if isinstance(way, int):
            pairs += [(j - 1, t) for t in range(i - 1, way - 2, -1) if similarities[t][j - 1] > 0]
            i, j = way - 1, j - 1
        else:
            i, j = (i - 1, j) if way == "skip target" else (i, j - 1)
    return best(n, m)[0], pairs[::-1]


LAYERS = st.one_of(
    st.none(),
    st.builds(linear, st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 4])),
    st.builds(functools.partial(layer, "BatchNorm2d"), st.sampled_from([2, 3, 4])),
)
NETS = st.lists(st.one_of(LAYERS, st.lists(LAYERS, min_size=2, max_size=3)), max_size=7)


@given(st.lists(LAYERS, max_size=8), st.lists(LAYERS, min_size=1, max_size=8))
@settings(deadline=None)
def test_the_vectorised_recurrence_is_the_one_of_the_paper(target, source):
    similarities = Matcher()._similarities(source, target)
    value, expected = reference(similarities.tolist())
    assert best_scores(similarities)[-1, -1] == pytest.approx(value, abs=1e-9)
    named = [
        [e and ScoredLayer(e.kind, e.shape, str(i)) for i, e in enumerate(elements)] for elements in (source, target)
    ]
    assert [(int(one.name), int(other.name)) for one, other in Matcher().pairs(*named)] == expected


@given(NETS, NETS)
@settings(deadline=None)
def test_similarity_is_symmetric_between_0_and_1_and_bounded_by_the_numbers_of_layers(one, other):
    value = network_similarity(one, other)
    counts = len(layers_of(one)), len(layers_of(other))
    assert value == network_similarity(other, one)
    assert 0 <= value <= (min(counts) / max(counts)) ** 0.25 + 1e-9 if all(counts) else value == 0


@given(NETS)
@settings(deadline=None)
def test_a_network_is_as_similar_to_itself_as_can_be(net):
    count = len(layers_of(net))
    assert Matcher().score(net, net) == pytest.approx(count)
    assert network_similarity(net, net) == (pytest.approx(1) if count else 0)
    assert len(Matcher().pairs(net, net)) == count


# --- Modules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "length"), [(2, 14), (3, 17), (4, 20), (5, 23)])
def test_standardized_residual_networks(blocks, length):
    elements = standardized(cifar_resnet(blocks, 16))
    assert len(elements) == length
    assert len(layers_of(elements)) == 5 + 12 * blocks
    assert sum(isinstance(element, list) for element in elements) == 3 * blocks


@pytest.mark.parametrize(
    ("blocks", "channels", "expected"), [(2, 16, 1), (2, 24, 0.5594), (2, 10, 0.5142), (3, 16, 0.9102), (5, 16, 0.7999)]
)
def test_similarities_of_residual_networks(blocks, channels, expected):
    one, other = standardized(cifar_resnet(2, 16)), standardized(cifar_resnet(blocks, channels))
    assert network_similarity(one, other) == pytest.approx(expected, abs=5e-5)
    assert network_similarity(other, one) == pytest.approx(expected, abs=5e-5)


def test_standardization_dissolves_stages_and_absorbs_what_is_inside_of_blocks():
    conv, norm = layer("Conv2d", 8, 8, 1, 1), layer("BatchNorm2d", 8)
    gate = [(), conv, (), conv, ()]
    inverted = [conv, norm, (), gate, conv, norm]
    stage = [inverted, inverted]
    elements = standardized([conv, norm, (), [stage, stage], (), linear(10, 8)])
    block = [conv, norm, None, None, conv, None, conv, None, conv, norm]
    assert elements == [conv, norm, None, block, block, block, block, None, linear(10, 8)]


def test_a_wrapper_of_one_layer_is_no_block_and_a_lone_layer_is_a_network():
    conv, norm = layer("Conv2d", 8, 8, 1, 1), layer("BatchNorm2d", 8)
    assert standardized([[conv, norm, ()], [conv, norm, ()]]) == [conv, norm, None] * 2
    assert standardized(conv) == [conv]
    assert standardized([[[conv]]]) == [conv]
    assert standardized([]) == [None]


# --- Graphs --------------------------------------------------------------------------------------------------

RESIDUAL = """(float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv<pads=[1, 1, 1, 1]>(x, w_0, b_0) n = BatchNormalization(c, s_0, t_0, m_0, v_0) a = Relu(n)
    c_1 = Conv<pads=[1, 1, 1, 1]>(a, w_1) n_1 = BatchNormalization(c_1, s_1, t_1, m_1, v_1)
    g = Sigmoid(n_1) a_1 = Mul(n_1, g)
    c_2 = Conv<pads=[1, 1, 1, 1]>(a_1, w_2) n_2 = BatchNormalization(c_2, s_2, t_2, m_2, v_2)
    sum = Add(n_2, a) r = Relu(sum)
    p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, w_3, b_3)
}"""


def residual(width, seed, kernel=3, classes=5, ones=False):
    values = {"w_0": (width, 3, kernel, kernel), "b_0": (width,), "w_3": (classes, width), "b_3": (classes,)}
    for i in range(3):
        values |= {f"w_{i}": (width, width if i else 3, kernel, kernel)}
        values |= {f"{name}_{i}": (width,) for name in "stmv"}
    tensors = {name: draw(*shape, seed=seed) for name, shape in values.items()}
    tensors |= {name: np.abs(tensor) + 1 for name, tensor in tensors.items() if name[0] == "v"}
    pads = str([kernel // 2] * 4)
    return net(RESIDUAL.replace("[N, 5]", f"[N, {classes}]").replace("[1, 1, 1, 1]", pads), **tensors)


def kinds(elements):
    return [kinds(e) if isinstance(e, list) else e and e.kind for e in elements]


def test_blocks_of_a_graph_are_what_residual_sums_close_and_gates_are_none():
    elements = Scored(Network(load(residual(8, 0)))).elements()
    block = ["Conv2d", "BatchNorm2d", None, "Conv2d", "BatchNorm2d"]
    assert kinds(elements) == ["Conv2d", "BatchNorm2d", None, block, None, "Linear"]


def test_masks_and_sizes_lead_around_no_block():
    text = """(float[N, 4] x, float[N, 4] mask) => (float[N, 4] y) {
        a = MatMul(x, one) h = Relu(a) b = MatMul(h, two) m = Mul(b, mask) u = Add(m, a) shape = Shape(x)
        r = Reshape(u, shape) c = MatMul(r, one_1) d = Relu(c) e = MatMul(d, two_1) n = Mul(e, mask) y = Add(n, r)
    }"""
    names = ("one", "two", "one_1", "two_1")
    elements = Scored(Network(load(net(text, **{name: draw(4, 4, seed=i) for i, name in enumerate(names)})))).elements()
    assert kinds(elements) == ["Linear", None, "Linear", None, ["Linear", None, "Linear", None]]


def test_names_of_modules_tell_the_tree():
    text = """(float[N, 4] x) => (float[N, 4] y) {
        a = MatMul(x, stage_0_one_weight) h = Relu(a) b = MatMul(h, stage_0_two_weight)
        c = MatMul(b, stage_1_one_weight) i = Relu(c) d = MatMul(i, stage_1_two_weight) y = MatMul(d, head_weight)
    }"""
    names = (*(f"stage_{stage}_{layer}_weight" for stage in (0, 1) for layer in ("one", "two")), "head_weight")
    proto = net(text, **{name: draw(4, 4) for name in names})
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("_", ".")
    for node in proto.graph.node:
        node.input[:] = [name.replace("_", ".") for name in node.input]
        if node.op_type == "Relu":
            node.name = f"/stage/stage.{int(node.input[0] == 'c')}/act/Relu"
    scored = Scored(Network(load(proto)))
    block = ["Linear", None, "Linear"]
    assert kinds(standardized(scored.tree())) == [block, block, "Linear"]
    assert kinds(scored.elements()) == ["Linear", None, "Linear", "Linear", None, "Linear", "Linear"]


def test_transfer_to_the_same_network_keeps_the_statistics_of_the_target():
    teacher, target = residual(8, 0), residual(8, 1)
    result = transfer_dpiat(teacher, target)
    old, new, before = weights(teacher), weights(result.student), weights(target)
    assert result.similarity == 1
    assert len(result.pairs) == 7
    for name in new:
        np.testing.assert_array_equal(new[name], (before if name[0] in "mv" else old)[name], name)
    x = draw(2, 3, 6, 6)
    answers = [run(proto, x) for proto in (teacher, saved(result.student))]
    assert np.abs(answers[0] - answers[1]).max() > 0.1 * np.abs(answers[0]).max()  # what DPIAT forgets matters


def test_transfer_to_a_wider_network_with_larger_kernels_and_more_classes():
    teacher, target = residual(8, 0), residual(12, 1, kernel=5, classes=7)
    result = transfer_dpiat(teacher, target)
    old, new, before = weights(teacher), weights(result.student), weights(target)
    np.testing.assert_array_equal(new["w_1"][2:10, 2:10, 1:4, 1:4], old["w_1"])
    np.testing.assert_array_equal(new["w_1"][:2], before["w_1"][:2])
    np.testing.assert_array_equal(new["w_3"][1:6, 2:10], old["w_3"])
    np.testing.assert_array_equal(new["t_2"][2:10], old["t_2"])
    (copy,) = (copy for copy in result.copies if copy.name == "w_1")
    assert (copy.source.shape, copy.target.shape, copy.filled) == ((8, 8, 3, 3), (12, 12, 5, 5), 8 * 8 * 9)
    origins = {source.name: source.origin for source in result.sources}
    assert origins.keys() == new.keys()
    assert {name for name, origin in origins.items() if origin == "kept"} == {
        f"{v}_{i}" for v in "mv" for i in range(3)
    }
    assert result.filled == sum(copy.filled for copy in result.copies) / sum(values.size for values in new.values())


def saved(model):
    with model.on_disk() as path:
        return path.read_bytes()


def run(model, x):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content).run(None, {"x": x})[0]


def test_linear_layers_match_however_they_were_exported():
    plain = "(float[N, 3] x) => (float[N, 4] y) { m = MatMul(x, w) y = Add(b, m) }"
    moved = "(float[N, 3] x) => (float[N, 4] y) { t = Transpose(w) m = MatMul(x, t) y = Add(m, b) }"
    gemm = "(float[N, 3] x) => (float[N, 4] y) { y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b) }"
    w, b, x = draw(3, 4), draw(4), draw(2, 3)
    nets = [net(plain, w=w, b=b[None]), net(moved, w=w.T.copy(), b=b), net(gemm, w=2 * w.T, b=b / 2)]
    for teacher in nets:
        for target in nets:
            student = transfer_dpiat(teacher, negated(target)).student
            np.testing.assert_allclose(run(saved(student), x), x @ w + b, rtol=1e-5)


def negated(proto):
    result = type(proto)()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return result


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_cropped_along_the_right_axes(groups):
    text = "(float[N, {0}, 5] x) => (float[N, {1}, 7] y) {{ y = ConvTranspose<group={2}>(x, w) }}"

    def make(inputs, outputs, values):
        return net(text.format(inputs, outputs, groups), w=values)

    old, new = draw(4, 6 // groups, 3), draw(8, 10 // groups, 3, seed=1)
    result = transfer_dpiat(make(4, 6, old), make(8, 10, new))
    values = swapped(weights(result.student)["w"], groups)
    assert values.shape == (10, 8 // groups, 3)
    inside = slice((8 - 4) // groups // 2, (8 + 4) // groups // 2)
    np.testing.assert_array_equal(values[2:8, inside], swapped(old, groups))
    np.testing.assert_array_equal(swapped(swapped(old, groups), groups), old)


def test_vectors_that_an_exporter_merged_are_parted_and_tied_matrices_stay_tied():
    text = "(float[N, 4] x) => (float[N, 4] y) { a = Gemm(x, w_0, b_0) r = Relu(a) y = Gemm(r, w_1, b_1) }"
    teacher = net(text, w_0=draw(4, 4), b_0=draw(4), w_1=draw(4, 4, seed=1), b_1=draw(4, seed=1))
    merged = text.replace("b_1", "b_0")
    result = transfer_dpiat(teacher, net(merged, w_0=draw(4, 4), b_0=np.zeros(4, "f"), w_1=draw(4, 4)))
    x = draw(2, 4)
    np.testing.assert_array_equal(run(saved(result.student), x), run(teacher, x))
    assert [source.target for source in result.sources] == ["w_0", "b_0", "b_0", "w_1"]
    assert weights(result.student).keys() == {source.name for source in result.sources}
    tied = text.replace("w_1", "w_0").replace("b_1", "b_0")
    result = transfer_dpiat(teacher, net(tied, w_0=draw(4, 4), b_0=np.zeros(4, "f")))
    assert len(result.copies) == 2
    assert list(weights(result.student)) == ["w_0", "b_0"]
    assert [(source.name, source.origin) for source in result.sources] == [("w_0", "teacher"), ("b_0", "teacher")]
    np.testing.assert_array_equal(weights(result.student)["b_0"], draw(4))


def test_the_student_says_what_was_done_and_the_models_stay_as_they_are(tmp_path):
    teacher, target = load(residual(8, 0)), load(residual(12, 1))
    before = target.proto.SerializeToString()
    student = transfer_dpiat(teacher, target).student
    student.save(tmp_path / "student.onnx")
    (record,) = history(load(tmp_path / "student.onnx"))
    assert (record["operation"], record["method"]) == ("transfer", "dpiat")
    assert target.proto.SerializeToString() == before


def test_command_says_that_nothing_is_exact(tmp_path, capsys):
    for name, proto in (("teacher", residual(8, 0)), ("target", residual(12, 1))):
        onnx.save(proto, tmp_path / f"{name}.onnx")
    files = [str(tmp_path / f"{name}.onnx") for name in ("teacher", "target")]
    call = ["transfer", *files, "--method", "dpiat", "-o", str(tmp_path / "student.onnx")]
    assert main([*call, "--exact"]) == 3
    assert not (tmp_path / "student.onnx").exists()
    capsys.readouterr()
    assert main([*call, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    result = transfer_dpiat(*files)
    assert (answer["exact"], answer["filled"]) == (False, result.filled)
    written, expected = weights(load(tmp_path / "student.onnx")), weights(result.student)
    assert all(np.array_equal(values, written[name]) for name, values in expected.items())


def test_networks_without_a_common_layer_are_refused():
    conv = net("(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv(x, w) }", w=draw(2, 2, 1, 1))
    plain = net("(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Relu(x) }")
    with pytest.raises(RefusedError, match="the teacher has Conv2d, the target none"):
        transfer_dpiat(conv, plain)
    with pytest.raises(RefusedError, match="4 axes in the teacher, 2 in the target"):
        transfer_dpiat(conv, net("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"))
    with pytest.raises(BadInputError):
        transfer_dpiat("nowhere.onnx", conv)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_values_of_exported_residual_networks(tmp_path, dynamo):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width, halves):
            super().__init__()
            outputs = width * (2 if halves else 1)
            self.shortcut = nn.Conv2d(width, outputs, 3, 2, 1) if halves else None
            first = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
            second = nn.Conv2d(width, outputs, 3, 1 + halves, 1), nn.BatchNorm2d(outputs), nn.ReLU()
            self.block = nn.Sequential(*first, *second)

        def forward(self, x):
            return self.block(x) + (self.shortcut(x) if self.shortcut is not None else x)

    def exported(blocks, width):
        stem = nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
        stages = [Block(width << s, b == blocks - 1 and s < 2) for s in range(3) for b in range(blocks)]
        network = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)).eval()
        options = (
            {"optimize": False}
            if dynamo
            else {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
        )
        torch.onnx.export(network, (torch.randn(1, 3, 16, 16),), tmp_path / "model.onnx", dynamo=dynamo, **options)
        return Scored(Network(load(tmp_path / "model.onnx")))

    one = exported(2, 16)
    assert len(standardized(one.tree())) == 14
    for size, expected in (((2, 24), 0.5594), ((2, 10), 0.5142), ((3, 16), 0.9102), ((5, 16), 0.7999)):
        assert network_similarity(*elements_of(one, exported(*size))) == pytest.approx(expected, abs=5e-5)
