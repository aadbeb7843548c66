"""Widened models compute what they did: trained networks, every option, and the traps that real exports set."""

import contextlib
import functools
import json
from pathlib import Path

import light
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net, weights
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_net2net import BadInputError, RefusedError, inspect, load, rules, verify, widen
from onnx_net2net.model.history import HISTORY, fingerprint, history

MODELS = Path(__file__).parents[3] / "models"
DIGITS = ("digits_mlp", "digits_resnet", "digits_inception_bn")
MLP = MODELS / "digits_mlp.onnx"
RESNET = MODELS / "digits_resnet.onnx"


def draw(*shape, dtype=np.float32, seed=0):
    """Weights of about unit gain."""
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * np.prod(shape) ** -0.25).astype(dtype)


def mlp(act="Relu", dtype=np.float32, kind="float", **options):
    text = f"({kind}[N, 8] x) => ({kind}[N, 4] y) {{ h = MatMul(x, up) r = {act}(h) y = MatMul(r, down) }}"
    return net(text, up=draw(8, 16, dtype=dtype), down=draw(16, 4, dtype=dtype), **options)


def widen_exactly(teacher, **options):
    """Widen, and assert that the student computes what the teacher does."""
    widening = widen(teacher, **options)
    assert widening.exact
    verify(teacher, widening.student).raise_if_different()
    return widening


def contents(model):
    """The model with the bytes of all its weights."""
    with load(model).on_disk() as path:
        return onnx.load(path)


def new_sizes(widening):
    return {change.name: change.new for change in widening.changes}


def run(model, feeds):
    with load(model).on_disk() as path:
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


# --- Trained models ------------------------------------------------------------------------------------------


@functools.cache
def test_set():
    with np.load(MODELS / "digits_test.npz") as arrays:
        return arrays["image"], arrays["label"]


test_set.__test__ = False


@functools.cache
def logits_of_teacher(name):
    return logits(MODELS / f"{name}.onnx")


def logits(model):
    return run(model, {"image": test_set()[0]})[0]


def accuracy(scores):
    return np.mean(scores.argmax(axis=1) == test_set()[1])


@pytest.mark.parametrize("factor", [1.37, 1.5, 2, 3])
@pytest.mark.parametrize("name", DIGITS)
def test_a_wider_classifier_has_the_accuracy_of_its_teacher(name, factor):
    widening = widen_exactly(MODELS / f"{name}.onnx", factor=factor)
    expected, actual = logits_of_teacher(name), logits(widening.student)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert accuracy(actual) == accuracy(expected) > 0.98
    assert all(change.new == round(change.old * factor) for change in widening.changes)
    assert widening.covered > 0.95
    assert widening.student.parameters > factor * widening.teacher.parameters


@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_exact_maps_keep_the_accuracy(map):
    widening = widen_exactly(RESNET, factor=1.5, map=map)
    assert {change.map for change in widening.changes} == {map}
    assert accuracy(logits(widening.student)) == accuracy(logits_of_teacher("digits_resnet"))


def test_a_widened_model_can_be_widened_again():
    once = widen_exactly(RESNET, factor=1.37).student
    twice = widen_exactly(once, factor=1.5, seed=1)
    verify(RESNET, twice.student).raise_if_different()
    assert accuracy(logits(twice.student)) == accuracy(logits_of_teacher("digits_resnet"))


def test_random_new_units_are_not_exact():
    widening = widen(RESNET, factor=1.5, map="random_pad")
    assert not widening.exact
    assert {change.map for change in widening.changes} == {"random_pad"}
    assert not verify(RESNET, widening.student).equivalent


def test_noise_is_not_exact():
    widening = widen(MLP, factor=1.5, noise=0.05)
    assert not widening.exact
    assert not verify(MLP, widening.student).equivalent
    assert accuracy(logits(widening.student)) > 0.9


# --- Which dims, and how wide --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sizes": {"fc1": 150}}, {"fc1": 150}),
        ({"sizes": {"fc1": "150"}}, {"fc1": 150}),
        ({"sizes": {"fc1": "1.5x"}}, {"fc1": 192}),
        ({"sizes": {"fc[12]": "2x"}}, {"fc1": 256, "fc2": 128}),
        ({"sizes": {"fc*": "2x"}}, {"fc1": 256, "fc2": 128}),
        ({"sizes": {"fc1": 128}, "factor": 2}, {"fc1": 128, "fc2": 128}),
        ({"sizes": {"fc1": 150}, "factor": 2}, {"fc1": 150, "fc2": 128}),
        ({"factor": 2, "only": ["fc2"]}, {"fc2": 128}),
        ({"factor": 2, "only": ["fc2", "*1"]}, {"fc1": 256, "fc2": 128}),
        ({"factor": 2, "only": ["fc2"], "sizes": {"fc1": "1.5x"}}, {"fc1": 192, "fc2": 128}),
        ({"factor": 1.37, "multiple_of": 8}, {"fc1": 176, "fc2": 88}),
        ({"factor": 1.37, "multiple_of": 100}, {"fc1": 200, "fc2": 100}),
        ({"sizes": {"fc1": 200}, "multiple_of": 100}, {"fc1": 200}),
    ],
    ids=str,
)
def test_sizes_that_are_asked_for(options, expected):
    widening = widen_exactly(MLP, **options)
    assert new_sizes(widening) == expected
    biases = {name.removesuffix(".bias"): len(w) for name, w in weights(widening.student).items() if "bias" in name}
    assert biases == {"fc1": 128, "fc2": 64, "fc3": 10} | expected


def test_all_sizes_are_multiples_of_what_was_asked_for():
    assert all(size % 8 == 0 for size in new_sizes(widen_exactly(RESNET, factor=1.37, multiple_of=8)).values())


def test_a_factor_of_one_changes_nothing():
    widening = widen_exactly(MLP, factor=1)
    before, after = weights(MLP), weights(widening.student)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give a factor or sizes"),
        ({"only": ["fc1"]}, "give a factor or sizes"),
        ({"factor": 0.9}, "at least 1, not 0.9"),
        ({"factor": float("nan")}, "at least 1, not nan"),
        ({"factor": float("inf")}, "at least 1, not inf"),
        ({"factor": 2, "multiple_of": 0}, "multiple_of must be at least 1"),
        ({"factor": 2, "map": "copy"}, "no map 'copy'.*replicate, zero_out"),
        ({"factor": 2, "spread": -0.1}, "spread must be"),
        ({"factor": 2, "noise": float("nan")}, "noise must be"),
        ({"factor": 2, "only": ["fc9"]}, "no dim is named 'fc9'; near it are .*fc1"),
        ({"sizes": {"fcl": 200}}, "no dim is named 'fcl'; near it are .*fc1"),
        ({"sizes": {"nothing like it": 200}}, "no dim is named .* near it are fc1, fc2"),
        ({"sizes": {"fc1": "wide"}}, r"fc1=wide: not a size \(96\) or a multiplier \(1.5x\)"),
        ({"sizes": {"fc1": "x"}}, "not a size"),
        ({"sizes": {"fc1": "nanx"}}, "not a size"),
        ({"sizes": {"fc1": "1e999x"}}, "not a size"),
        ({"sizes": {"fc1": 127}}, "has 128 units already"),
        ({"sizes": {"fc1": -1}}, "has 128 units already"),
        ({"sizes": {"fc1": "0.5x"}}, "has 128 units already"),
        ({"factor": 2, "seed": -1}, "the seed must be at least 0, not -1"),
        ({"factor": 1e300}, "'fc1' would have 1280000.* units; at most 134217728"),
        ({"sizes": {"fc1": 10**14}}, "'fc1' would have 100000000000000 units; at most 134217728"),
        ({"sizes": {"fc1": 2**27 + 1}}, "'fc1' would have 134217729 units"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(BadInputError, match=words) as caught:
        widen(MLP, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": {"fc3": 20, "fc1": 150}, "map": "zero_in"}, "'fc1' does not admit the map zero_in"),
        ({"sizes": {"fc1": 150}, "multiple_of": 8}, "'fc1' cannot have 150 units exactly.*possible are 144 and 152"),
        ({"sizes": {"fc1": 130}, "multiple_of": 100}, "possible are 128 and 200"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_had_are_refused(options, words):
    with pytest.raises(RefusedError, match=words) as caught:
        widen(MLP, **options)
    assert "\n" not in str(caught.value)


def test_a_dim_that_can_never_grow_is_refused_with_the_reason():
    with pytest.raises(RefusedError, match="'conv1#2' cannot grow: Conv 'node_Conv_222' works along this axis"):
        widen(RESNET, sizes={"conv1#2": 5})


def normed(between=""):
    """A LayerNormalization behind a linear layer, or behind what stands between the two."""
    act, source = (f"r = {between}(h)", "r") if between else ("", "h")
    text = f"""(float[N, 8] x) => (float[N, 4] y) {{
        h = MatMul(x, up) {act} l = LayerNormalization({source}, s, b) y = MatMul(l, down) }}"""
    return net(text, up=draw(8, 16), s=1 + draw(16), b=draw(16), down=draw(16, 4))


def test_a_dim_that_a_statistic_reads_grows_by_whole_factors():
    widening = widen_exactly(normed("Relu"), factor=2.2)
    (change,) = widening.changes
    assert (change.old, change.new, change.wanted) == (16, 32, pytest.approx(35.2))
    assert inspect(normed("Relu")).groups[0].is_uniform
    widen_exactly(normed("Relu"), sizes={"up": 48})
    widen_exactly(normed("Relu"), sizes={"up": "2x"})
    with pytest.raises(RefusedError, match=r"'up' cannot have 20 .*LayerNormalization .*possible are 16 and 32 "):
        widen(normed("Relu"), sizes={"up": 20})
    with pytest.raises(RefusedError, match="possible are 16 and 48"):
        widen(normed("Relu"), sizes={"up": 32}, multiple_of=24)


@pytest.mark.parametrize("size", [17, 20, 32, 43])
def test_units_that_hold_the_mean_change_no_layer_normalization(size):
    widening = widen_exactly(normed(), sizes={"up": size})
    assert new_sizes(widening) == {"up": size}


def group_norm(groups=4, opset=21):
    text = f"""(float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {{
        h = Conv(x, up) g = GroupNormalization<num_groups={groups}>(h, s, b) y = Conv(g, down) }}"""
    size = 16 if opset >= 21 else groups
    named = {"up": draw(16, 8, 1, 1), "s": 1 + draw(size), "b": draw(size), "down": draw(4, 16, 1, 1)}
    return net(text, opset=opset, ir=10, **named)


@pytest.mark.parametrize("opset", [18, 20, 21, 22])
def test_group_normalization_grows(opset):
    widening = widen_exactly(group_norm(opset=opset), factor=1.5)
    assert widening.covered == 1
    (group_attribute,) = [n.attribute[0].i for n in widening.student.proto.graph.node if n.op_type.startswith("Group")]
    assert group_attribute == 6


def exported_group_norm():
    """As PyTorch exports it: InstanceNormalization over groups, then scale and shift of channels."""
    text = """(float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) {
        h = Conv(x, up) f = Reshape(h, fold) i = InstanceNormalization(f, one, zero) u = Reshape(i, unfold)
        m = Mul(u, s) a = Add(m, b) r = Relu(a) y = Conv(r, down) }"""
    ends = {"up": draw(16, 8, 1, 1), "s": 1 + draw(16, 1, 1), "b": draw(16, 1, 1), "down": draw(4, 16, 1, 1)}
    shapes = {"fold": np.array([0, 4, -1]), "unfold": np.array([0, 16, 6, 6])}
    return net(text, **ends, **shapes, one=np.ones(4, np.float32), zero=np.zeros(4, np.float32))


def test_group_normalization_as_exported_gets_more_groups_or_more_channels_in_each():
    groups, members = inspect(exported_group_norm()).groups[:2]
    assert (groups.size, groups.is_uniform) == (4, False)
    assert (members.size, members.is_uniform) == (4, True)
    assert new_sizes(widen_exactly(exported_group_norm(), factor=1.5))[groups.name] == 6
    assert new_sizes(widen_exactly(exported_group_norm(), sizes={members.name: "2x"})) == {members.name: 8}
    with pytest.raises(RefusedError, match=r"whole factors.*possible are 4 and 8"):
        widen(exported_group_norm(), sizes={members.name: 6})


def test_the_names_that_inspect_shows_can_be_given_back():
    for group in inspect(exported_group_norm()).groups:
        if group.reason is None:
            for pattern in (group.name, group.name.replace("[", "[[]")):
                sizes = new_sizes(widen_exactly(exported_group_norm(), sizes={pattern: "2x"}))
                assert sizes == {group.name: 2 * group.size}


def test_a_factor_that_no_dim_can_have_is_refused():
    with pytest.raises(RefusedError, match=r"nothing grows: 'up' has 16 units, and that is the nearest size"):
        widen(normed("Relu"), factor=1.2, fill_norms=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 2, "only": ["fc3"]}, "nothing grows: 'fc3': .*'logits'"),
        ({"sizes": {"fc1": 128}}, "nothing grows: 'fc1' has 128 units, and that is the nearest size"),
        ({"factor": 1.001}, "nothing grows: 'fc1' has 128 units, and that is the nearest size"),
    ],
    ids=str,
)
def test_the_refusal_speaks_of_what_was_asked_for(options, words):
    with pytest.raises(RefusedError, match=words):
        widen(MLP, **options)


def test_a_model_without_hidden_dims_is_refused():
    linear = net("(float[N, 8] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=draw(8, 4))
    with pytest.raises(RefusedError, match=r"nothing grows: 'w': .*'[xy]'"):
        widen(linear, factor=2)
    with pytest.raises(RefusedError, match="nothing grows: the model has no weights"):
        widen(net("(float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }"), factor=2)


# --- What new units are --------------------------------------------------------------------------------------


def copies_of(student, width=16):
    """The units that the new ones are copies of, found by their incoming weights."""
    incoming = weights(student)["up"]
    old, new = incoming[:, :width], incoming[:, width:]
    matches = (old[:, :, None] == new[:, None, :]).all(axis=0)
    assert (matches.sum(axis=0) == 1).all()
    return matches.argmax(axis=0)


def test_replicated_units_copy_random_old_ones_and_share_their_outgoing_weights():
    student = widen_exactly(mlp(), sizes={"up": 40}, spread=0).student
    index = np.concatenate([np.arange(16), copies_of(student)])
    counts = np.bincount(index)
    assert len(np.unique(counts)) > 1
    before, after = weights(mlp()), weights(student)
    np.testing.assert_array_equal(after["up"], before["up"][:, index])
    np.testing.assert_allclose(after["down"], before["down"][index] / counts[index, None], rtol=1e-6)


def test_copies_are_weighed_unevenly_but_sum_to_the_original():
    student = widen_exactly(mlp(), sizes={"up": 40}, spread=0.3).student
    index = np.concatenate([np.arange(16), copies_of(student)])
    before, after = weights(mlp())["down"], weights(student)["down"]
    for unit in range(16):
        own = after[index == unit]
        np.testing.assert_allclose(own.sum(axis=0), before[unit], atol=1e-6)
        assert len(own) == 1 or not np.isclose(own[0], own[1]).any()


def test_spread_says_how_uneven():
    def unevenness(spread):
        return np.std(weights(widen(mlp(), factor=3, spread=spread).student)["down"])

    assert unevenness(0) < unevenness(0.3) < unevenness(2)


def test_noise_moves_the_incoming_weights_of_copies_only():
    before, after = weights(mlp())["up"], weights(widen(mlp(), factor=2, noise=0.1).student)["up"]
    np.testing.assert_array_equal(after[:, :16], before)
    distance = np.abs(after[:, 16:, None] - before[:, None, :]).max(axis=0).min(axis=1)
    assert (distance > 0).all()
    assert (distance < 1).all()


def test_zero_out_units_are_read_with_zeros():
    widening = widen_exactly(mlp(), factor=1.5, map="zero_out")
    before, after = weights(mlp()), weights(widening.student)
    np.testing.assert_array_equal(after["down"], np.concatenate([before["down"], np.zeros((8, 4), np.float32)]))
    np.testing.assert_array_equal(after["up"][:, :16], before["up"])
    assert np.std(after["up"][:, 16:]) == pytest.approx(np.std(before["up"]), rel=0.3)


def test_units_that_a_number_divides_admit_zero_out():
    text = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, up) d = Div(h, root) e = Erf(d) o = Add(e, one) p = Mul(h, o) r = Mul(p, half)
        y = MatMul(r, down) }"""
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    widening = widen_exactly(net(text, up=draw(8, 16), down=draw(16, 4), **numbers), factor=1.5, map="zero_out")
    assert [change.map for change in widening.changes] == ["zero_out"]
    text = text.replace("Div(h, root)", "Div(h, h)")
    with pytest.raises(RefusedError, match="may make an infinity of random values"):
        widen(net(text, up=draw(8, 16), down=draw(16, 4), **numbers), factor=1.5, map="zero_out")


@pytest.mark.parametrize("act", ["Tanh", "Gelu", "HardSwish", "Elu", "Identity"])
def test_zero_in_units_compute_zero_and_are_read_at_random(act):
    widening = widen_exactly(mlp(act, opset=20, ir=9), factor=1.5, map="zero_in")
    assert [change.map for change in widening.changes] == ["zero_in"]
    before, after = weights(mlp()), weights(widening.student)
    np.testing.assert_array_equal(after["up"], np.concatenate([before["up"], np.zeros((8, 8), np.float32)], axis=1))
    np.testing.assert_array_equal(after["down"][:16], before["down"])
    assert np.std(after["down"][16:]) == pytest.approx(np.std(before["down"]), rel=0.3)


def test_zero_in_gets_zero_biases_and_plain_scales():
    text = """(float[N, 8, 4, 4] x) => (float[N, 4, 4, 4] y) {
        h = Conv(x, up, b) n = BatchNormalization(h, s, z, m, v) t = Tanh(n) y = Conv(t, down) }"""
    vectors = {"b": draw(16), "s": 1 + draw(16), "z": draw(16), "m": draw(16), "v": np.abs(draw(16)) + 0.5}
    teacher = net(text, up=draw(16, 8, 1, 1), down=draw(4, 16, 1, 1), **vectors)
    after = weights(widen_exactly(teacher, factor=1.5, map="zero_in").student)
    assert not after["b"][16:].any()
    assert not after["z"][16:].any()
    assert not after["m"][16:].any()
    assert (after["v"] > 0).all()
    assert after["s"][16:].all()


LOST = "MatMul 'y' reads its units after an operation that does not keep zeros"


@pytest.mark.parametrize(("act", "why"), [("Relu", "Relu 'r' .*gradient"), ("Sigmoid", LOST), ("Exp", LOST)])
def test_zero_in_is_refused_where_units_of_zeros_do_not_stay_or_never_learn(act, why):
    for wish in ({"factor": 1.5}, {"sizes": {"up": 24}}):
        with pytest.raises(RefusedError, match=f"zero_in: {why}"):
            widen(mlp(act), map="zero_in", **wish)


@pytest.mark.parametrize("map", ["zero_in", "zero_out"])
def test_units_that_are_no_copies_are_refused_where_a_statistic_reads_them(map):
    with pytest.raises(RefusedError, match=f"{map}.*LayerNormalization"):
        widen(normed(), factor=2, map=map)


def test_where_only_some_dims_admit_a_map_the_others_are_replicated():
    text = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Tanh(i) y = MatMul(t, c) }"""
    teacher = net(text, a=draw(8, 16), b=draw(16, 12), c=draw(12, 4))
    widening = widen_exactly(teacher, factor=1.5, map="zero_in")
    assert {change.name: change.map for change in widening.changes} == {"a": "replicate", "b": "zero_in"}


def gated(gate, reader="Mul(h, g)"):
    text = f"(float[N, 8] x) => (float[N, 4] y) {{ h = MatMul(x, up) {gate} r = {reader} y = MatMul(r, down) }}"
    return net(text, up=draw(8, 16), down=draw(16, 4))


@pytest.mark.parametrize("gate", ["g = Sigmoid(h)", "g = HardSigmoid(h)", "s = Softplus(h) g = Tanh(s)"])
def test_zero_in_behind_activations_that_keep_zeros_as_a_whole_only(gate):
    widening = widen_exactly(gated(gate), factor=1.5, map="zero_in")
    assert [change.map for change in widening.changes] == ["zero_in"]


@pytest.mark.parametrize("reader", ["Add(h, g)", "Identity(g)", "Mul(g, g)"])
def test_zero_in_is_refused_where_a_gate_lets_more_than_zeros_through(reader):
    with pytest.raises(RefusedError, match=LOST):
        widen(gated("g = Sigmoid(h)", reader), factor=1.5, map="zero_in")


def saved(widening, folder):
    widening.student.save(folder / "student.onnx")
    return (folder / "student.onnx").read_bytes()


@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"map": "zero_out"}, {"map": "random_pad"}], ids=str)
def test_the_same_seed_gives_the_same_file(options, tmp_path):
    first, second = (saved(widen(MLP, factor=1.5, seed=3, **options), tmp_path) for _ in range(2))
    assert first == second
    assert first != saved(widen(MLP, factor=1.5, seed=4, **options), tmp_path)


def test_a_student_is_the_same_however_often_it_is_computed(tmp_path):
    widening = widen(MLP, factor=1.5)
    assert saved(widening, tmp_path) == saved(widening, tmp_path)


# --- What is kept, and what is recorded ----------------------------------------------------------------------


def test_what_was_done_is_recorded():
    once = widen(MLP, sizes={"fc1": "2x"}, seed=7, spread=0.1).student
    (record,) = history(once)
    assert record["operation"] == "widen"
    assert record["sizes"] == {"fc1": "2x"}
    assert (record["seed"], record["spread"], record["map"]) == (7, 0.1, "replicate")
    assert record["teacher"] == fingerprint(load(MLP))
    twice = widen(once, factor=1.5).student
    assert history(twice)[0] == record
    assert [step["factor"] for step in history(twice)] == [None, 1.5]
    (entry,) = [entry for entry in twice.proto.metadata_props if entry.key == HISTORY]
    assert json.loads(entry.value) == history(twice)


def test_the_hash_of_a_teacher_in_memory_is_that_of_its_content():
    teacher = net("(float[N, 8] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=draw(8, 64))
    other = net("(float[N, 8] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=draw(8, 64, seed=1))
    assert fingerprint(load(teacher)) == fingerprint(load(teacher)) != fingerprint(load(other))


def test_a_growth_can_be_repeated_from_its_record(tmp_path):
    widening = widen(MLP, factor=1.5, only=["fc1"], seed=7, multiple_of=4)
    (record,) = history(widening.student)
    names = ("factor", "sizes", "only", "multiple_of", "map", "spread", "noise", "seed")
    assert saved(widen(MLP, **{name: record[name] for name in names}), tmp_path) == saved(widening, tmp_path)


def test_a_foreign_history_is_no_obstacle():
    for text in ("no json", '{"a": 1}'):
        teacher = mlp()
        teacher.metadata_props.add(key=HISTORY, value=text)
        assert len(history(widen(teacher, factor=2).student)) == 1


def test_the_teacher_is_not_changed():
    proto, before = mlp(), mlp()
    model = load(proto)
    proto_before = model.proto.SerializeToString()
    widen_exactly(proto, factor=1.5)
    widen_exactly(model, factor=1.5)
    assert proto == before
    assert model.proto.SerializeToString() == proto_before
    content = MLP.read_bytes()
    widen_exactly(MLP, factor=1.5)
    assert MLP.read_bytes() == content


def test_paths_protos_and_models_give_the_same_student():
    sources = (MLP, str(MLP), onnx.load(MLP), load(MLP))
    first, *others = (weights(widen(source, factor=1.5).student) for source in sources)
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)


def test_everything_else_is_kept():
    for path in (MLP, RESNET):
        teacher, student = onnx.load(path), contents(widen(path, factor=1.5).student)
        assert student.ir_version == teacher.ir_version
        assert student.opset_import == teacher.opset_import
        assert student.producer_name == teacher.producer_name
        assert student.graph.input == teacher.graph.input
        assert student.graph.output == teacher.graph.output
        assert [n.name for n in student.graph.node] == [n.name for n in teacher.graph.node]
        assert [n.metadata_props for n in student.graph.node] == [n.metadata_props for n in teacher.graph.node]
        assert _float_names(student) == _float_names(teacher)
        onnx.checker.check_model(student, full_check=True)


def _float_names(proto):
    return [tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT]


def test_recorded_shapes_of_hidden_tensors_are_brought_up_to_date():
    teacher = mlp()
    teacher.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 16]))
    student = widen_exactly(teacher, factor=1.5).student.proto
    assert student.graph.value_info == [helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 24])]
    onnx.checker.check_model(contents(widen(RESNET, factor=1.37).student), full_check=True)


def test_objects_are_readable():
    widening = widen(MLP, factor=1.5)
    assert repr(inspect(MLP)).splitlines()[0] == "fc1 (128, 3 tensors, growable)"
    assert "fc3 (10, 2 tensors, fixed: is the model's output 'logits')" in repr(inspect(MLP))
    assert "whole factors" in repr(inspect(normed("Relu")))
    for text in ("Widening(", "digits_mlp.onnx", "name='fc1', old=128, new=192", "exact=True", "seed=0"):
        assert text in repr(widening)
    assert "0x" not in repr(widening)
    assert len(repr(widening)) < 1000


def test_external_data_stays_external(tmp_path):
    path = tmp_path / "teacher.onnx"
    onnx.save(onnx.load(RESNET), path, save_as_external_data=True, location="teacher.weights", size_threshold=100)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    widening = widen_exactly(path, factor=1.5)
    widening.student.save(tmp_path / "student.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {*before, "student.onnx", "student.onnx.data"}
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    verify(path, tmp_path / "student.onnx").raise_if_different()
    inline, external = weights(widen(RESNET, factor=1.5).student), weights(tmp_path / "student.onnx")
    assert all(np.array_equal(inline[name], external[name]) for name in inline)


# --- Weights that several nodes read -------------------------------------------------------------------------


def test_vectors_that_were_merged_because_they_are_equal_grow_apart():
    text = """(float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) {
        h = Conv(x, a, zeros) i = BatchNormalization(h, ones, zeros, zeros, ones) j = Relu(i)
        k = Conv(j, b, zeros) l = BatchNormalization(k, ones, zeros, zeros, ones) m = Relu(l) y = Conv(m, c) }"""
    matrices = {"a": draw(16, 8, 1, 1), "b": draw(16, 16, 1, 1), "c": draw(4, 16, 1, 1)}
    teacher = net(text, **matrices, zeros=np.zeros(16, np.float32), ones=np.ones(16, np.float32))
    after = weights(widen_exactly(teacher, sizes={"a": 20, "b": 40}).student)
    assert sorted(len(w) for w in after.values() if w.ndim == 1) == [20, 20, 40, 40]
    assert after["b"].shape == (40, 20, 1, 1)


def test_vectors_that_grow_alike_stay_one():
    text = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) i = Mul(h, v) r = Relu(i) j = Mul(r, v) y = MatMul(j, b) }"""
    after = weights(widen_exactly(net(text, a=draw(8, 16), v=draw(16), b=draw(16, 4)), factor=1.5).student)
    assert {name: w.shape for name, w in after.items()} == {"a": (8, 24), "v": (24,), "b": (24, 4)}


def test_a_siamese_network_stays_siamese():
    text = """(float[N, 8] p, float[N, 8] q) => (float[N, 4] y) {
        ph = MatMul(p, w) pr = Relu(ph) qh = MatMul(q, w) qr = Relu(qh) d = Sub(pr, qr) y = MatMul(d, v) }"""
    after = weights(widen_exactly(net(text, w=draw(8, 16), v=draw(16, 4)), factor=1.5).student)
    assert {name: w.shape for name, w in after.items()} == {"w": (8, 24), "v": (24, 4)}


def test_a_matrix_that_is_read_both_ways_is_copied_or_kept():
    text = "(float[N, 8] x) => (float[N, 8] y) { h = MatMul(x, w) r = Relu(h) y = Gemm<transB=1>(r, w) }"
    student = widen_exactly(net(text, w=draw(8, 16)), factor=1.5).student
    assert {w.shape for w in weights(student).values()} == {(8, 24)}
    repeated = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) r = Relu(h) i = MatMul(r, w) s = Relu(i) j = MatMul(s, w) t = Relu(j) y = MatMul(t, b) }"""
    after = weights(widen_exactly(net(repeated, a=draw(8, 16), w=draw(16, 16), b=draw(16, 4)), factor=1.5).student)
    assert {name: w.shape for name, w in after.items()} == {"a": (8, 24), "w": (24, 24), "b": (24, 4)}


def test_a_tied_embedding_and_head():
    text = """(int64[N, S] ids) => (float[N, S, 20] y) {
        e = Gather(table, ids) h = MatMul(e, w) r = Relu(h) z = MatMul(r, v) s = Add(e, z)
        t = Transpose<perm=[1, 0]>(table) y = MatMul(s, t) }"""
    teacher = net(text, table=draw(20, 12), w=draw(12, 16), v=draw(16, 12))
    widening = widen_exactly(teacher, factor=1.5)
    assert sorted(new_sizes(widening).values()) == [18, 24]
    assert widening.covered == 1
    assert widening.notes == ("untied, as their uses grow differently: table",)


def test_weights_in_constant_nodes_and_behind_identities():
    text = """(float[N, 2] x) => (float[N, 2] y) {
        c = Constant<value = float[2, 3] {1.0, 2.0, -1.0, 0.5, -0.5, 0.25}>()
        h = MatMul(x, c) r = Relu(h) i = Identity(w) j = Identity(i) y = MatMul(r, j) }"""
    widening = widen_exactly(net(text, w=draw(3, 2)), factor=2)
    assert widening.covered == 1
    (constant,) = [n for n in widening.student.proto.graph.node if n.op_type == "Constant"]
    assert list(constant.attribute[0].t.dims) == [2, 6]


def test_every_dim_has_a_name():
    text = """(float[N, 2] x) => (float[N, 2] y) {
        c = Constant<value = float[2, 3] {1.0, 2.0, -1.0, 0.5, -0.5, 0.25}>()
        h = MatMul(x, c) r = Relu(h) y = MatMul(r, w) }"""
    groups = inspect(net(text, w=draw(3, 2))).groups
    assert len(groups) == len({group.name for group in groups}) == 3
    assert all(group.name.strip("#[]0123456789") for group in groups)


def test_weights_behind_transpose_reshape_and_cast():
    text = """(float[N, 8] x) => (float[N, 4] y) {
        a = Transpose<perm=[1, 0]>(up) h = MatMul(x, a) r = Relu(h) b = Cast<to=1>(half)
        i = MatMul(r, b) s = Relu(i) c = Reshape(flat, shape) y = MatMul(s, c) }"""
    half = draw(16, 12).astype(np.float16)
    teacher = net(text, up=draw(16, 8), half=half, flat=draw(48), shape=np.array([12, 4]))
    sizes = new_sizes(widen_exactly(teacher, factor=1.5))
    assert sizes["up"] == 24


# --- Sizes that are written down -----------------------------------------------------------------------------


def test_a_reshape_constant_that_two_nodes_share_gets_a_value_for_each():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        a = MatMul(x, wa) ar = Reshape(a, shape) ap = MatMul(ar, va) b = MatMul(x, wb) br = Reshape(b, shape)
        bp = MatMul(br, vb) d = Add(ap, bp) f = Flatten(d) y = MatMul(f, w) }"""
    ends = {"wa": draw(8, 12), "va": draw(4, 5), "wb": draw(8, 12, seed=1), "vb": draw(4, 5, seed=1), "w": draw(15, 4)}
    teacher = net(text, **ends, shape=np.array([2, 3, 4]))
    names = [group.name for group in inspect(teacher).groups if group.reason is None and group.size == 4]
    assert len(names) == 2
    student = widen_exactly(teacher, sizes=dict(zip(names, (6, 8), strict=True))).student
    shapes = sorted(tuple(w) for w in weights(student).values() if w.dtype == np.int64)
    assert shapes == [(2, 3, 6), (2, 3, 8)]


@pytest.mark.parametrize("batch", ["N", "2"])
def test_a_size_that_is_used_as_data_keeps_its_value(batch):
    text = f"""(float[{batch}, 8] x) => (float[{batch}, 4] y) {{
        h = MatMul(x, up) s = Shape(h) n = Gather(s, one) f = Cast<to=1>(n) q = Sqrt(f) d = Div(h, q)
        y = MatMul(d, down) }}"""
    teacher = net(text, up=draw(8, 12), down=draw(12, 4), one=np.int64(1))
    assert new_sizes(widen_exactly(teacher, factor=1.5)) == {"up": 18}


def test_sizes_computed_from_a_dynamic_batch():
    text = """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
        h = Conv<kernel_shape=[3, 3]>(x, up) r = Relu(h) s = Shape(r) n = Gather(s, zero) u = Unsqueeze(n, axes)
        t = Concat<axis=0>(u, rest) f = Reshape(r, t) y = MatMul(f, down) }"""
    constants = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([10 * 36])}
    teacher = net(text, up=draw(10, 3, 3, 3), down=draw(360, 4), **constants)
    student = widen_exactly(teacher, factor=1.5).student
    assert weights(student)["down"].shape == (540, 4)


def test_a_flattened_image_brings_its_positions_along():
    text = """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
        h = Conv<kernel_shape=[3, 3], strides=[2, 2]>(x, up) r = Relu(h) f = Flatten(r)
        y = Gemm<transB=1>(f, down) }"""
    student = widen_exactly(net(text, up=draw(10, 3, 3, 3), down=draw(4, 90)), factor=1.37).student
    assert {w.shape for w in weights(student).values()} == {(14, 3, 3, 3), (4, 126)}


def test_grouped_and_depthwise_convolutions():
    text = """(float[N, 6, 8, 8] x) => (float[N, 4, 8, 8] y) {
        h = Conv(x, up) r = Relu(h) g = Conv<group=4>(r, grouped) s = Relu(g) i = Conv(s, mix) t = Relu(i)
        d = Conv<group=10>(t, deep) y = Conv(d, down) }"""
    ends = {"up": draw(8, 6, 1, 1), "grouped": draw(12, 2, 1, 1), "mix": draw(10, 12, 1, 1)}
    teacher = net(text, **ends, deep=draw(10, 1, 1, 1), down=draw(4, 10, 1, 1))
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.covered == 1
    groups = [a.i for n in widening.student.proto.graph.node for a in n.attribute if a.name == "group"]
    assert groups[-1] == 15


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 17, 20])
def test_operator_sets(opset):
    split = "a, b = Split<axis=1>(n)" if opset < 18 else "a, b = Split<axis=1, num_outputs=2>(n)"
    squeeze = "Squeeze<axes=[2, 3]>(p)" if opset < 13 else "Squeeze(p, ends)"
    text = f"""(float[2, 3, 9, 9] x) => (float[2, 5] y) {{
        h = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, up, bias) n = BatchNormalization(h, s, z, m, v) {split}
        c = Add(a, b) r = Relu(c) q = MaxPool<kernel_shape=[2, 2]>(r) i = Conv<kernel_shape=[1, 1]>(q, side)
        l = Sigmoid(i) j = Concat<axis=1>(l, q) p = GlobalAveragePool(j) f = {squeeze} d = Dropout(f)
        y = Gemm<transB=1>(d, down, out) }}"""
    vectors = {"bias": draw(12), "s": 1 + draw(12), "z": draw(12), "m": draw(12), "v": 1 + np.abs(draw(12))}
    matrices = {"up": draw(12, 3, 3, 3), "side": draw(4, 6, 1, 1), "down": draw(5, 10), "out": draw(5)}
    ends = {"ends": np.array([2, 3])} if opset >= 13 else {}
    teacher = net(text, opset=opset, **matrices, **vectors, **ends)
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.student.proto.opset_import == teacher.opset_import
    assert widening.covered > 0.98  # all but the bias of the output
    assert sorted(new_sizes(widening).values()) == [6, 9]


def test_ir_3_lists_its_initializers_as_inputs():
    text = "(float[N, 8] x, float[8, 16] up, float[16, 4] down) => (float[N, 4] y) {"
    text += " h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"
    teacher = net(text, opset=8, ir=3, up=draw(8, 16), down=draw(16, 4))
    student = contents(widen_exactly(teacher, factor=1.5).student)
    assert student.ir_version == 3
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][1:] for i in student.graph.input}
    assert shapes == {"x": [8], "up": [24], "down": [4]}
    onnx.checker.check_model(student, full_check=True)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
@pytest.mark.parametrize("factor", [1.5, 2])
def test_other_float_types(kind, dtype, factor):
    teacher = mlp(dtype=dtype, kind=kind)
    assert {w.dtype for w in weights(widen_exactly(teacher, factor=factor).student).values()} == {np.dtype(dtype)}


def test_doubles_agree_to_their_last_digits():
    text = """(double[2, 3, 6, 6] x) => (double[2, 4] y) {
        h = Conv(x, up) r = Relu(h) i = Conv(r, mid) s = Add(i, r) p = GlobalAveragePool(s) f = Flatten(p)
        y = Gemm(f, down) }"""
    named = {"up": draw(8, 3, 3, 3, dtype=float), "mid": draw(8, 8, 1, 1, dtype=float), "down": draw(8, 4, dtype=float)}
    teacher = net(text, **named)
    student = contents(widen(teacher, factor=1.37).student)
    image = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6))}
    expected, actual = (ReferenceEvaluator(proto).run(None, image)[0] for proto in (teacher, student))
    assert student.graph.initializer[0].dims[0] == 11
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


# --- What stays as it is -------------------------------------------------------------------------------------


HIDDEN_OUTPUT = """(float[N, 8] x) => (float[N, 4] y, float[N, 12] a) {
    a = MatMul(x, up) r = Relu(a) i = MatMul(r, mid) s = Relu(i) y = MatMul(s, down) }"""


@pytest.mark.parametrize("kind", ["replicate", "zero_out"])
def test_a_hidden_tensor_that_is_also_an_output_grows_and_is_cut_to_the_teachers_units(kind):
    teacher = net(HIDDEN_OUTPUT, up=draw(8, 12), mid=draw(12, 6), down=draw(6, 4))
    widening = widen_exactly(teacher, factor=1.5, map=kind)
    assert new_sizes(widening) == {"up": 18, "mid": 9}
    graph = contents(widening.student).graph
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in graph.output] == [4, 12]
    assert [node.op_type for node in graph.node].count("Gather") == 1
    assert widening.notes == ("outputs cut to the teacher's units (a Gather): a",)


def test_an_output_of_several_hidden_axes_is_cut_along_each():
    text = """(float[2, 8] x) => (float[2, 4] y, float[2, 3, 5] a, float[2, 15] h) {
        h = MatMul(x, up) a = Reshape(h, heads) t = Transpose<perm=[0, 2, 1]>(a) f = Reshape(t, flat)
        y = MatMul(f, down) }"""
    shapes = {"heads": np.array([2, 3, 5]), "flat": np.array([2, 15])}
    teacher = net(text, up=draw(8, 15), down=draw(15, 4), **shapes)
    widening = widen_exactly(teacher, sizes={"up[0]": 4, "up[1]": "2x"})
    assert weights(widening.student)["up"].shape == (8, 40)


def shown_shuffle(shown):
    """A channel shuffle, of which a tensor in the middle is an output as well."""
    text = f"""(float[2, 3, 4, 4] x) => (float[2, 5, 4, 4] y, float[] {shown}) {{
        h = Conv(x, up) a = Reshape(h, split) b = Transpose<perm=[0, 2, 1, 3, 4]>(a) c = Reshape(b, merged)
        s = Add(c, h) y = Conv(s, down) }}"""
    shapes = {"a": (2, 2, 3, 4, 4), "b": (2, 3, 2, 4, 4), "c": (2, 6, 4, 4)}
    weights = {"up": draw(6, 3, 1, 1), "down": draw(5, 6, 1, 1)}
    teacher = net(text, split=np.array(shapes["a"]), merged=np.array(shapes["c"]), **weights)
    teacher.graph.output[1].CopyFrom(helper.make_tensor_value_info(shown, TensorProto.FLOAT, shapes[shown]))
    return teacher


def test_a_channel_shuffle_with_an_output_inside_is_not_replaced_by_a_gather():
    widen_exactly(shown_shuffle("c"), factor=1.5)
    for shown in "ab":
        with pytest.raises(RefusedError):
            widen(shown_shuffle(shown), factor=1.5)


def test_a_rearranged_weight_that_is_also_an_output_keeps_its_values():
    """What divides the weight among copies must stand behind the output."""
    text = """(float[N, 8] x) => (float[N, 4] y, float[12, 4] t) {
        h = MatMul(x, up) t = Transpose<perm=[1, 0]>(down) y = MatMul(h, t) }"""
    teacher = net(text, up=draw(8, 12), down=draw(4, 12))
    widening = widen_exactly(teacher, factor=1.5)
    assert widening.notes == ("outputs cut to the teacher's units (a Gather): t",)


def test_a_constant_that_is_an_output_keeps_its_size():
    text = "(float[N, 8] x) => (float[N, 4] y, float[12, 4] c) { h = MatMul(x, up) y = MatMul(h, w) c = Identity(w) }"
    with pytest.raises(RefusedError, match="is the model's output 'c'"):
        widen(net(text, up=draw(8, 12), w=draw(12, 4)), factor=1.5)


def test_a_rearranged_weight_is_not_divided_for_those_who_look_units_up_in_it():
    text = """(int64[N] ids) => (float[N, 20] y) {
        t = Transpose<perm=[1, 0]>(table) u = Gather<axis=1>(t, ids) e = Transpose<perm=[1, 0]>(u) r = Relu(e)
        y = MatMul(r, t) }"""
    assert new_sizes(widen_exactly(net(text, table=draw(20, 12)), factor=1.5)) == {"table": 18}


def test_an_output_that_no_weight_reads_keeps_its_size():
    text = """(float[N, 8] x) => (float[N, 4] y, float[N, 12] a) {
        h = MatMul(x, up) a = MatMul(x, side) y = MatMul(h, down) s = ReduceSum<keepdims=1>(a, one) }"""
    teacher = net(text, up=draw(8, 6), side=draw(8, 12), down=draw(6, 4), one=np.array([1]))
    widening = widen_exactly(teacher, factor=1.5)
    assert new_sizes(widening) == {"up": 9}
    assert "is the model's output 'a'" in {group.reason for group in widening.fixed}


@pytest.fixture
def registry():
    """Rules registered within a test are forgotten after it."""
    before = {key: list(versions) for key, versions in rules._registry.items()}
    yield
    rules._registry.clear()
    rules._registry.update(before)


def custom(shapes=True):
    """Two layers of a user's own operator around its own activation."""
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = my.company.MyLinear(x, up) r = my.company.MyNorm(h, gain) y = my.company.MyLinear(r, down) }"""
    named = {"up": draw(16, 8), "gain": 1 + draw(16), "down": draw(4, 16)}
    proto = net(text, imports=', "my.company" : 1', **named)
    if shapes:
        proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 16]) for name in "hr")
    return proto


class MyLinear(OpRun):
    op_domain = "my.company"

    def _run(self, x, w):
        return (x @ w.T,)


class MyNorm(OpRun):
    op_domain = "my.company"

    def _run(self, x, gain):
        return (x / x.std(axis=-1, keepdims=True) * gain,)


def test_an_unknown_operator_keeps_its_dims_and_the_message_says_how_to_add_a_rule():
    reasons = {group.reason for group in inspect(custom()).groups}
    assert reasons == {
        f"{kind} {name!r} has no growth rule (my.company::{kind}, opset 1; see onnx_net2net.rules.rule)"
        for kind, name in (("MyLinear", "h"), ("MyNorm", "r"), ("MyLinear", "y"))
    }
    with pytest.raises(RefusedError, match="nothing grows: 'up': MyLinear 'h' has no growth rule"):
        widen(custom(), factor=2)


def test_a_users_own_operators_grow_by_the_users_own_rules(registry):
    rules.signature("MyLinear", "*b k, n k -> *b n", domain="my.company")

    @rules.rule("MyNorm", domain="my.company")
    def my_norm(op):
        op.apply("*b c, c -> *b c", uniform="c")
        op.scales(1)

    widening = widen(custom(), factor=2)
    assert new_sizes(widening) == {"up": 32}
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    expected, actual = (
        ReferenceEvaluator(proto, new_ops=[MyLinear, MyNorm]).run(None, feeds)[0]
        for proto in (custom(), contents(widening.student))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_an_operator_of_onnxruntime_grows_by_a_rule_from_outside(registry):
    del rules._registry["", "Relu"]
    assert (
        inspect(mlp()).groups[0].reason == "Relu 'r' has no growth rule (Relu, opset 18; see onnx_net2net.rules.rule)"
    )
    rules.signature("Relu", "*x -> *x", pointwise="relu")
    assert new_sizes(widen_exactly(mlp(), factor=1.5)) == {"up": 24}


# --- The light models of onnx.backend.test -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        pytest.param(name, factor, marks=[pytest.mark.slow] * (name in light.LARGE))
        for name in light.NAMES
        for factor in (1.37, 2)
    ],
)
def test_light_models_widen_exactly_and_nearly_all_of_their_weights_grow(name, factor):
    widening = widen(light.model(name), factor=factor)
    assert widening.covered >= 0.9 or factor != 2
    for expected, actual in zip(light.answer(name), light.run(widening.student, light.image(name)), strict=True):
        largest = np.abs(expected).max()
        assert 0 < largest < np.inf
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * largest)


def test_a_shape_of_a_constant_that_another_node_reads_too_has_its_new_size():
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((8, 16)),
        "bias": rng.standard_normal((1, 16)),
        "one": np.ones((1, 1)),
        "down": rng.standard_normal((16, 4)),
    }
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, up) a = Add(h, bias) s = Shape(bias) e = Expand(one, s) m = Mul(a, e) y = MatMul(m, down)
    }"""
    teacher = onnx.parser.parse_model(text)
    for name, values in weights.items():
        teacher.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    result = widen(teacher, factor=1.5)
    assert result.covered > 0.9
    assert verify(teacher, result.student).equivalent


def test_a_tied_matrix_that_reads_padding_as_zeros_in_one_place_and_as_means_in_another_is_untied():
    """Units that pad a LayerNormalization hold a mean in front of it and zero behind it; only zeros are read freely."""
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((4, 6)),
        "gain": 1 + rng.random(6),
        "shift": rng.standard_normal(6),
        "down": rng.standard_normal((6, 3)),
    }
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[5, 4] x) => (float[5, 3] y) {
        h = MatMul(x, up) n = LayerNormalization(h, gain, shift)
        a = MatMul(n, down) b = MatMul(h, down) y = Add(a, b)
    }"""
    teacher = onnx.parser.parse_model(text)
    for name, values in weights.items():
        teacher.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    result = widen(teacher, sizes={"up": 9})
    assert [change.map for change in result.changes] == ["mean_pad"]
    assert result.notes == ("untied, as their uses grow differently: down",)
    assert verify(teacher, result.student).equivalent


def residual_layer(branch, **extra):
    """x + branch(LayerNormalization(x)), read by a LayerNormalization and a matrix."""
    text = f"""(float[5, 4] x) => (float[5, 3] y) {{
        h = MatMul(x, up) n = LayerNormalization(h, gain, shift) {branch}
        s = Add(h, f) m = LayerNormalization(s, gain, shift) y = MatMul(m, down)
    }}"""
    own = {"up": draw(4, 6), "gain": 1 + draw(6), "shift": draw(6), "down": draw(6, 3)}
    return net(text, **own, **extra)


@pytest.mark.parametrize("scale", [draw(6), np.zeros(6, np.float32), np.array([1, -1, 1, -1, 0, 0], np.float32)])
@pytest.mark.parametrize("factor", [1.37, 2.5])
def test_padding_goes_through_a_scale_of_each_unit(scale, factor):
    """What makes the units puts the mean of the scaled units into the padding, over the padding's own scale."""
    branch = "a = MatMul(n, into) g = Gelu(a) b = MatMul(g, out) c = Add(b, bias) f = Mul(scale, c)"
    teacher = residual_layer(branch, into=draw(6, 8), out=draw(8, 6), bias=draw(6, seed=1), scale=scale, opset=20)
    result = widen_exactly(teacher, factor=factor)
    assert {change.map for change in result.changes} == {"mean_pad", "replicate"}
    assert result.covered == 1


@pytest.mark.parametrize(
    ("branch", "columns"),
    [
        ("b = MatMul(n, out) c = Mul(b, scale) f = Add(b, c)", 6),  # scaled and read as it is
        ("b = MatMul(n, out) c, d = Split<axis = 1, num_outputs = 2>(b) f = Sub(c, d)", 12),  # a mean of each half
    ],
)
def test_padding_is_refused_where_one_row_cannot_hold_two_means(branch, columns):
    teacher = residual_layer(branch, out=draw(6, columns), scale=draw(6))
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


def test_padding_goes_through_a_number_before_another_scale():
    branch = "b = MatMul(n, out) c = Mul(b, half) f = Mul(c, scale)"
    teacher = residual_layer(branch, out=draw(6, 6), scale=draw(6), half=np.array(0.5, np.float32))
    assert new_sizes(widen_exactly(teacher, sizes={"up": 9})) == {"up": 9}


@pytest.mark.parametrize(
    "branch",
    [
        pytest.param("f = Mul(b, c)", id="product of means"),
        pytest.param("d = Sigmoid(c) f = Div(half, d)", id="quotient of sigmoids"),
        pytest.param("f = Div(half, b)", id="quotient of means"),
        pytest.param("f = Max(b, c)", id="extremes of means"),
    ],
)
def test_padding_is_refused_behind_what_keeps_no_means(branch):
    teacher = residual_layer(
        f"b = MatMul(n, one) c = MatMul(n, two) {branch}",
        one=draw(6, 6), two=draw(6, 6, seed=1), half=np.array(0.5, np.float32),
    )  # fmt: skip
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})


@pytest.mark.parametrize("made", ["a = MatMul(x, up) h = Add(a, half)", "h = Gemm(x, up, half)"])
def test_padding_of_zeros_is_refused_where_a_number_is_added(made):
    text = f"(float[5, 4] x) => (float[5, 3] y) {{ {made} n = RMSNormalization(h, gain) y = MatMul(n, down) }}"
    weights = {"up": draw(4, 6), "half": np.array([0.5], np.float32), "gain": 1 + draw(6), "down": draw(6, 3)}
    teacher = net(text, opset=23, **weights)
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("p = Softmax(h) f = MatMul(p, square)", id="softmax and a normaliser"),
        pytest.param("f = ReduceMax<keepdims = 1>(h, last)", id="extreme and a normaliser"),
        pytest.param("i = Cast<to = 1>(bytes) f = MatMul(x, i)", id="integers and a normaliser"),
    ],
)
def test_padding_is_refused_where_something_else_would_notice(other):
    text = f"""(float[5, 4] x) => (float[5, 3] y) {{ h = MatMul(x, up) {other} s = Add(h, f)
        n = LayerNormalization(s, gain) y = MatMul(n, down) }}"""
    weights = {"square": draw(6, 6), "last": np.array([-1]), "bytes": np.arange(24, dtype=np.int8).reshape(4, 6)}
    used = {name: value for name, value in weights.items() if name in other}
    teacher = net(text, up=draw(4, 6), gain=1 + draw(6), down=draw(6, 3), **used)
    with pytest.raises(RefusedError, match="cannot have 9 units exactly"):
        widen(teacher, sizes={"up": 9})
    widen_exactly(teacher, sizes={"up": 12})


def test_units_that_are_normalised_beside_fixed_ones_stay():
    text = """(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) c = Concat<axis=1>(h, x)
        n = LayerNormalization(c, gain) y = MatMul(n, down) }"""
    teacher = net(text, up=draw(8, 12), gain=1 + draw(20), down=draw(20, 4))
    with pytest.raises(RefusedError, match="is the model's input 'x'"):
        widen(teacher, sizes={"up": "2x"})


def test_of_the_factors_of_an_axis_that_grows_which_lets_most_weights_grow():
    """A table of 6 x 6 biases for each of 6 heads grows with the heads alone; queries would with both factors."""
    text = """(float[6, 8] x) => (float[6, 3] y) {
        q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
        q1 = Reshape(q0, split) k1 = Reshape(k0, split) v1 = Reshape(v0, split)
        q = Transpose<perm = [1, 0, 2]>(q1) k = Transpose<perm = [1, 2, 0]>(k1) v = Transpose<perm = [1, 0, 2]>(v1)
        s = MatMul(q, k) b = Add(s, bias) p = Softmax(b) a = MatMul(p, v)
        m = Transpose<perm = [1, 0, 2]>(a) r = Reshape(m, merge) y = MatMul(r, out)
    }"""
    split, merge = np.array([6, 6, 8]), np.array([6, 48])
    matrices = {name: draw(8, 48, seed=seed) for seed, name in enumerate(("wq", "wk", "wv"))}
    teacher = net(text, **matrices, bias=draw(6, 6, 6), out=draw(48, 3), split=split, merge=merge)
    result = widen_exactly(teacher, factor=1.37)  # 11 of 8 columns would come nearer than 8 of 6 heads
    assert result.covered == 1
    assert [change.new for change in result.changes if change.old == 6] == [8]
    assert not any(change.new > change.old == 8 for change in result.changes)


@pytest.mark.parametrize("units", [40, 800])
def test_a_list_of_all_units_of_a_dim_moves_them(units):
    """What torch.export makes of as_strided; the list is not taken for a table's indices, however wide the dim is."""
    text = """(float[2, 4] x) => (float[2, 3] y) {
        a = MatMul(x, up) g = Gather<axis = 1>(a, order) r = Reshape(g, flat) y = MatMul(r, down)
    }"""
    order = np.random.default_rng(0).permutation(units).reshape(units, 1)
    teacher = net(text, up=draw(4, units), down=draw(units, 3), order=order, flat=np.array([2, units]))
    result = widen_exactly(teacher, factor=1.5)
    assert result.covered == 1


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("factor", [1.37, 2])
def test_a_softmax_over_hidden_units_gives_copies_shares_of_what_the_unit_had(factor, opset):
    text = "(float[5, 8] x) => (float[5, 4] y) { h = MatMul(x, up) p = Softmax<axis = 1>(h) y = MatMul(p, down) }"
    teacher = net(text, opset=opset, up=draw(8, 16), down=draw(16, 4))
    widened = widen(teacher, factor=factor)
    assert widened.covered == 1
    verify(teacher, widened.student).raise_if_different()


@pytest.mark.parametrize("map", ["zero_out", "zero_in"])
def test_a_softmax_over_hidden_units_admits_nothing_but_copies(map):
    text = "(float[5, 8] x) => (float[5, 4] y) { h = MatMul(x, up) p = Softmax(h) y = MatMul(p, down) }"
    with pytest.raises(RefusedError, match="no dim admits the map"):
        widen(net(text, up=draw(8, 16), down=draw(16, 4)), factor=2, map=map)


def test_what_attention_normalises_over_stays():
    text = """(float[2, 5, 8] x) => (float[2, 5, 4] y) { k = MatMul(slots, wk) t = Transpose<perm = [1, 0]>(k)
        v = MatMul(slots, wv) q = MatMul(x, wq) s = MatMul(q, t) p = Softmax(s) a = MatMul(p, v)
        y = MatMul(a, wo) }"""
    names = {"wk": draw(6, 12), "wv": draw(6, 10), "wq": draw(8, 12), "wo": draw(10, 4)}
    teacher = net(text, slots=draw(7, 6), **names)
    assert {group.size: group.reason for group in inspect(teacher).groups}[7] == "Softmax 'p' normalises over this axis"
    verify(teacher, widen(teacher, factor=2).student).raise_if_different()


def test_a_size_that_is_set_stays_beside_a_factor():
    teacher = net("(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) g = MatMul(r, mid) s = Relu(g) "
                  "y = MatMul(s, down) }", up=draw(8, 16), mid=draw(16, 12), down=draw(12, 4))  # fmt: skip
    widening = widen_exactly(teacher, factor=1.5, sizes={"up": 16})
    assert {change.name: change.new for change in widening.changes} == {"up": 16, "mid": 18}


@pytest.mark.parametrize("map", ["replicate", "zero_in", "zero_out"])
@pytest.mark.parametrize("reader", ["MatMul(f, down)", "ReduceSum<keepdims = 1>(f, last)"])
def test_the_mask_of_a_dropout_is_true_for_units_of_zeros_too(map, reader):
    rng = np.random.default_rng(0)
    text = f"""(float[2, 4] x) => (float[2, 3] y) {{
        h = MatMul(x, up) d, mask = Dropout(h) f = Cast<to = 1>(mask) o = MatMul(d, down)
        p = {reader} y = Add(o, p) }}"""
    drawn = {"up": rng.standard_normal((4, 6)), "down": rng.standard_normal((6, 3))}
    extra = {"last": np.array([-1])} if "last" in reader else {}
    teacher = net(text, **{name: w.astype(np.float32) for name, w in drawn.items()}, **extra)
    with contextlib.suppress(RefusedError):
        verify(teacher, widen(teacher, factor=1.5, map=map).student).raise_if_different()
