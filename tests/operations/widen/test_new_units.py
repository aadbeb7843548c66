"""What new units are: copies, units that nobody reads, units of zeros."""

import contextlib

import numpy as np
import pytest
from graphs import net, weights
from wide import draw, mlp, normed, widen_exactly

from onnx_net2net import RefusedError, inspect, verify, widen


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


# --- Norms that notice no zeros ------------------------------------------------------------------------------

NEXUS = """(float[9, 6] x) => (float[9, 5] y) {
    h = MatMul(x, m) n = ReduceL2<keepdims=1>(h, last) s = Add(n, small) d = Div(h, s) t = Tanh(d)
    i = MatMul(t, a) o = ReduceL2<keepdims=1>(i, last) p = Add(o, small) q = Div(i, p) u = Tanh(q) y = MatMul(u, e) }"""


def nexus():
    shapes = {"m": (6, 8), "a": (8, 12), "e": (12, 5)}
    numbers = {"last": np.array([-1]), "small": np.float32(1e-5)}
    return net(NEXUS, **{name: draw(*shape) for name, shape in shapes.items()}, **numbers)


@pytest.mark.parametrize("framework", [None, "torch"])
def test_zeros_leave_an_l2_norm_alone_so_that_no_node_is_needed(framework):
    teacher = nexus()
    widening = widen(teacher, factor=1.5, map="zero_in", framework=framework)
    assert [(change.old, change.new, change.map) for change in widening.changes] == [
        (8, 12, "zero_in"),
        (12, 18, "zero_in"),
    ]
    assert not widening.inserted
    assert verify(teacher, widening.student).equivalent
    found = weights(widening.student)
    assert not found["m"][:, 8:].any()
    assert not found["a"][:8, 12:].any()
    assert found["a"][8:, :12].all()
    assert found["e"][12:].all()


def test_copies_under_an_l2_norm_need_one():
    assert widen(nexus(), factor=1.5).inserted
    with pytest.raises(RefusedError):
        widen(nexus(), factor=1.5, framework="torch")
