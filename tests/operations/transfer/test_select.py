"""With examples a narrower target keeps what matters, and its layers make up for the rest."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings, strategies as st
from onnx import helper
from test_transfer import Net, attention, dense, dynamic, plain, resnet, transformer

from onnx_net2net import BadInputError, load, transfer, widen
from onnx_net2net.cli.main import main
from onnx_net2net.framework.statedict.match import constants_of
from onnx_net2net.operations.transfer.examples.moments import Moments
from onnx_net2net.operations.transfer.examples.refit import regression
from onnx_net2net.operations.transfer.examples.select import keep
from onnx_net2net.run.inputs import input_specs
from onnx_net2net.run.watch import in_batches, measure

MODELS = Path(__file__).parents[3] / "models"
IMAGES = (160, 3, 8, 8)


def drawn(*shape, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def answers(model, feeds):
    """What a model makes of examples, however many it takes at once."""
    loaded = load(model)
    with loaded.on_disk() as path:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, part)[0] for part in in_batches(feeds, input_specs(loaded.proto))])


def error(student, teacher, feeds):
    """How far a student is from its teacher, by the spread of the teacher's answers."""
    found, wanted = answers(student, feeds), answers(teacher, feeds)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean(0)))


def edited(proto, **attributes):
    """The model with other attributes of its convolutions, None for those that it is to be without."""
    for node in proto.graph.node:
        if node.op_type == "Conv" and max(node.attribute[0].ints, default=0) >= 0:
            kept = [one for one in node.attribute if one.name not in attributes]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)
    for value in proto.graph.value_info:
        value.Clear()
    return proto


# --- Which units ---------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_of_units_that_follow_from_others_none_is_kept(independent, more, seed):
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((independent, 3 * independent))
    units = np.concatenate([sources, rng.integers(-2, 3, (more, independent)) @ sources])[
        rng.permutation(independent + more)
    ]
    covariance = units @ units.T
    kept = keep([(covariance, np.eye(len(units)))], independent)
    assert len(set(kept)) == independent
    assert np.linalg.matrix_rank(units[kept], tol=1e-8) == independent


def test_units_are_kept_for_what_reads_them():
    covariance = np.diag([4.0, 3.0, 2.0, 1.0])
    assert set(keep([(covariance, np.eye(4))], 2)) == {0, 1}
    assert set(keep([(covariance, np.diag([1.0, 1.0, 9.0, 9.0]))], 2)) == {2, 3}
    one, other = np.diag([1.0, 0.0, 0.0, 0.2]), np.diag([0.0, 0.0, 1.0, 0.2])
    assert set(keep([(covariance, one), (covariance, other)], 2)) == {0, 2}  # both have a say


def test_units_that_nothing_reads_are_kept_only_where_there_is_room():
    assert sorted(keep([(np.eye(3), np.zeros((3, 3)))], 3)) == [0, 1, 2]


# --- The fit -------------------------------------------------------------------------------------------------


def moments(x, y):
    found = Moments()
    found.add(x, y)
    return found


def test_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 3)) + 5, rng.standard_normal((2, 50, 4)) - 7
    whole = Moments()
    for start in range(0, 50, 20):
        whole.add(x[:, start : start + 20], y[:, start : start + 20])
    for group in (0, 1):
        both = np.cov(np.concatenate([x[group], y[group]], 1).T, bias=True)
        spread, cross = whole.covariances()
        np.testing.assert_allclose(spread[group], both[:3, :3], atol=1e-12)
        np.testing.assert_allclose(cross[group], both[3:, :3], atol=1e-12)
        np.testing.assert_allclose(whole.power[group] / 50, np.diag(both)[3:], atol=1e-12)
    plain_moments, _ = whole.covariances(centred=False)
    np.testing.assert_allclose(plain_moments[0], x[0].T @ x[0] / 50, atol=1e-10)


def test_regression_finds_the_weights_and_leaves_what_cannot_be_learnt():
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal((1, 2, 4)), rng.standard_normal((1, 200, 4)) + 1
    made = x @ weights.swapaxes(1, 2)
    own = weights + 0.3 * rng.standard_normal(weights.shape)
    halves = [moments(x[:, part], made[:, part] + 3) for part in (slice(100), slice(100, None))]
    np.testing.assert_allclose(own + regression(own, halves, centred=True), weights, atol=1e-6)
    noise = [moments(x[:, part], made[:, part] + 9 * rng.standard_normal((1, 6, 2)))
             for part in (slice(6), slice(100, 106))]  # fmt: skip
    assert np.abs(regression(weights, noise, centred=True)).max() < 3


# --- Duplicates are found and can be done without ------------------------------------------------------------

TEACHERS = {
    "residual stream, normalised": (lambda: resnet(3), IMAGES),
    "chain of convolutions": (lambda: plain(0, (5, 7, 6), "Sigmoid", bn=(1,)), IMAGES),
    "groups": (lambda: plain(0, (6, 8, 8), "Sigmoid", groups=(1, 2, 4)), IMAGES),
    "depthwise": (lambda: plain(0, (6, 6, 8), "Sigmoid", groups=(1, 6, 1), bn=(1,)), IMAGES),
    "features laid side by side": (lambda: dense(0, 2), IMAGES),
    "layer norm": (lambda: transformer(0, hidden=12, depth=2, activation="Tanh"), (100, 5, 4)),
    "RMSNorm": (lambda: transformer(0, hidden=12, norm="rms"), (100, 5, 4)),
    "strides, dilations": (
        lambda: edited(plain(0, (5, 7), "Tanh"), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1]), IMAGES),
    "same padding": (
        lambda: edited(plain(0, (5, 7), "Tanh"), strides=[2, 2], pads=None, auto_pad="SAME_UPPER"), IMAGES),
    "same padding, lower": (
        lambda: edited(plain(0, (5, 7), "Tanh"), strides=[2, 1], pads=None, auto_pad="SAME_LOWER"), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_a_target_of_the_size_from_which_the_teacher_was_widened_is_filled_exactly(name):
    make, shape = TEACHERS[name]
    original = dynamic(make())
    wide = widen(original, factor=2).student
    data, test = drawn(*shape), drawn(*shape, seed=1)
    assert error(transfer(wide, original, data=data).student, original, test) < 5e-3  # where units are dead
    assert error(transfer(wide, original).student, original, test) > 0.05


def test_heads_that_are_copies_of_others_are_left_out():
    original = attention(0, heads=3, width=4)
    wide = widen(original, factor=2).student
    result = transfer(wide, original, data=drawn(80, 5, 4))
    assert error(result.student, original, drawn(20, 5, 4, seed=1)) < 1e-4


# --- Networks that lose something ----------------------------------------------------------------------------


def narrower(path, share):
    """A model with a share of the hidden units of a perceptron, and other weights."""
    proto = onnx.load(path)
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    net = Net(1, (1, 64))
    for number, name in enumerate(name for name in shapes if name.endswith("weight")):
        width = shapes[name][0]
        net = net.node("Relu") if number else net.node("Flatten")
        net.linear(name.removesuffix(".weight"), width if width == 10 else int(share * width))
    net.input = np.zeros((1, 1, 8, 8), np.float32)
    built = dynamic(net.build("logits"))
    built.graph.input[0].name = built.graph.node[0].input[0] = "image"
    return built


def digits():
    with np.load(MODELS / "digits_test.npz") as arrays:
        return arrays["image"], arrays["label"]


def test_a_perceptron_of_a_quarter_of_the_units_still_reads_digits():
    images, labels = digits()
    teacher = MODELS / "digits_mlp.onnx"
    target = narrower(teacher, 0.25)
    results = [transfer(teacher, target, data=data) for data in ({"image": images[:250]}, None)]
    right = [(answers(one.student, {"image": images[250:]}).argmax(1) == labels[250:]).mean() for one in results]
    assert right[0] > 0.9
    assert right[1] < 0.8
    origins = {source.name: source.origin for source in results[0].sources}
    assert origins["fc1.weight"] == "teacher"
    assert origins["fc2.weight"] == origins["fc2.bias"] == origins["fc3.weight"] == "reconstructed"
    assert {source.origin for source in results[1].sources} == {"teacher"}


def test_normalisations_make_what_the_teachers_make():
    data = drawn(64, 3, 8, 8)
    teacher, target = dynamic(resnet(0)), dynamic(resnet(1, width=4))
    result = transfer(teacher, target, data=data)
    measured = {source.name for source in result.sources if source.origin == "measured"}
    assert len(measured) > 5
    old, new = ([node.output[0] for node in model.proto.graph.node if node.op_type == "BatchNormalization"]
                for model in (result.teacher, result.student))  # fmt: skip
    moments = measure(result.teacher, old, data), measure(result.student, new, data)
    for one, other in zip(old, new, strict=True):
        units = {(round(float(m), 3), round(float(v), 3)) for m, v in zip(*moments[0][one], strict=True)}
        if not any(node.input[0] == other and node.op_type == "Add" for node in result.student.proto.graph.node):
            for mean, variance in zip(*moments[1][other], strict=True):
                nearest = min(abs(mean - m) + abs(variance - v) for m, v in units)
                assert nearest < 0.02 + 0.02 * variance


def test_normalisations_that_the_teacher_lacks_are_measured():
    data = drawn(64, 3, 8, 8)
    teacher = dynamic(plain(0, (6, 8), "Sigmoid"))
    target = dynamic(plain(1, (5, 5, 8), "Sigmoid", kernels=(3, 1, 3), bn=(1,)))
    result = transfer(teacher, target, data=data)
    node = next(node for node in result.student.proto.graph.node if node.op_type == "BatchNormalization")
    origins = {source.name: source.origin for source in result.sources}
    assert [origins[name] for name in node.input[3:]] == ["measured", "measured"]
    mean, variance = measure(result.student, [node.input[0]], data)[node.input[0]]
    values = {name: constant.read() for name, constant in constants_of(result.student).items()}
    np.testing.assert_allclose(values[node.input[3]], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[node.input[4]], variance, rtol=1e-4, atol=1e-5)


def test_an_exact_transfer_is_the_same_with_examples():
    teacher, target = dynamic(resnet(0)), dynamic(resnet(1, width=8, depth=2))
    plainly, fitted = transfer(teacher, target), transfer(teacher, target, data=drawn(32, 3, 8, 8))
    assert plainly.sources == fitted.sources
    assert plainly.obstacles == fitted.obstacles == ()
    for name, constant in constants_of(plainly.student).items():
        np.testing.assert_array_equal(constant.read(), constants_of(fitted.student)[name].read())


def test_a_model_for_one_number_of_examples_takes_more_in_turn():
    original = plain(0, (5, 7), "Sigmoid")  # two at once
    wide = widen(original, factor=2).student
    result = transfer(wide, original, data=drawn(160, 3, 8, 8))
    assert error(result.student, original, drawn(20, 3, 8, 8, seed=1)) < 2e-3


def test_the_record_says_that_there_were_examples():
    teacher, target = dynamic(plain(0, (8,))), dynamic(plain(1, (6,)))
    for data, noted in ((drawn(32, 3, 8, 8), "data"), (None, None)):
        (entry,) = transfer(teacher, target, data=data).student.proto.metadata_props
        assert json.loads(entry.value)[-1].get("calibrated on") == noted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"y": np.zeros((4, 3, 8, 8), np.float32)}, r"has arrays \['y'\], the model takes \['x'\]"),
        ({"x": np.zeros((4, 3, 8, 8))}, "input 'x' is float64, the model takes float32"),
        ({"x": np.zeros((3, 3, 8, 8), np.float32)}, "input 'x' has shape"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, message):
    with pytest.raises(BadInputError, match=message):
        transfer(plain(0, (5,)), plain(1, (4,)), data=data)


def test_on_the_command_line(tmp_path, capsys):
    images, _ = digits()
    np.savez(tmp_path / "data.npz", image=images[:128])
    onnx.save(narrower(MODELS / "digits_mlp.onnx", 0.5), tmp_path / "target.onnx")
    files = str(MODELS / "digits_mlp.onnx"), str(tmp_path / "target.onnx")
    arguments = ["transfer", *files, "-o", str(tmp_path / "student.onnx"), "--data", str(tmp_path / "data.npz")]
    assert main(arguments) == 0
    assert "fitted to the teacher's" in capsys.readouterr().out
    assert (tmp_path / "student.onnx").exists()
