"""Sizes that are asked for, and why others cannot be had."""

import numpy as np
import pytest
from graphs import net, weights
from wide import MLP, RESNET, draw, new_sizes, normed, widen_exactly

from onnx_net2net import BadInputError, RefusedError, inspect, widen


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
        ({"factor": 2, "only": ["fc9"]}, "no dim is named 'fc9'; similar names are .*fc1"),
        ({"sizes": {"fcl": 200}}, "no dim is named 'fcl'; similar names are .*fc1"),
        ({"sizes": {"nothing like it": 200}}, "no dim is named .* similar names are fc1, fc2"),
        ({"sizes": {"fc1": "wide"}}, r"fc1=wide: not a size \(96\), more units \(\+4\) or a multiplier"),
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


def test_a_size_that_is_set_stays_beside_a_factor():
    teacher = net("(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) g = MatMul(r, mid) s = Relu(g) "
                  "y = MatMul(s, down) }", up=draw(8, 16), mid=draw(16, 12), down=draw(12, 4))  # fmt: skip
    widening = widen_exactly(teacher, factor=1.5, sizes={"up": 16})
    assert {change.name: change.new for change in widening.changes} == {"up": 16, "mid": 18}
