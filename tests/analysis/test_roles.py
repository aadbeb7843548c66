"""Dims have the roles that people know, told from what the graph does with them and from no name or size."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnx_net2net import inspect, widen
from onnx_net2net.errors import BadInputError


def net(text, opset=18, **constants):
    """A model in ONNX's textual syntax; a tuple stands for float weights of that shape."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    for name, value in constants.items():
        array = np.zeros(value, np.float32) if isinstance(value, tuple) else np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def roles(proto):
    """The role of each dim that has one, by name."""
    return {group.name: group.role for group in inspect(proto).groups if group.role}


# --- Transformers --------------------------------------------------------------------------------------------

HEADS = """ar = Reshape(a, split) q = Transpose<perm=[0, 2, 1, 3]>(ar) br = Reshape(b, split)
    k = Transpose<perm=[0, 2, 3, 1]>(br) cr = Reshape(c, split) v = Transpose<perm=[0, 2, 1, 3]>(cr) """
ATTENTION = """s = MatMul(q, k) n = Mul(s, scale) p = Softmax<axis=-1>(n) u = MatMul(p, v)
    ut = Transpose<perm=[0, 2, 1, 3]>(u) m = Reshape(ut, merge) """
SHAPES = {"split": np.array([2, 6, 4, 5]), "merge": np.array([2, 6, 20]), "scale": np.float32(0.4)}


def block(ffn="g = MatMul(z, up) e = Gelu(g) f = MatMul(e, down) ", norm="LayerNormalization", **weights):
    """A transformer of one layer with tables of words and positions."""
    text = f"""(int64[2, 6] x) => (float[2, 6, 50] y) {{
        w = Gather(words, x) t = Gather(places, counted) h = Add(w, t) i = {norm}(h, gain)
        a = MatMul(i, query) b = MatMul(i, key) c = MatMul(i, value) {HEADS}{ATTENTION}
        o = MatMul(m, out) j = Add(h, o) z = {norm}(j, gain2) {ffn} l = Add(j, f) y = MatMul(l, head) }}"""
    shapes = {"words": (50, 8), "places": (30, 8), "gain": (8,), "gain2": (8,), "out": (20, 8), "head": (8, 50)}
    projections = dict.fromkeys(("query", "key", "value"), (8, 20))
    defaults = {"up": (8, 12), "down": (12, 8)}
    return net(text, 20, counted=np.arange(6), **SHAPES, **shapes, **projections, **(weights or defaults))


def test_a_transformer():
    assert roles(block()) == {
        "words": "residual stream",
        "query[0]": "heads",
        "query[1]": "query/key head_dim",
        "value": "value head_dim",
        "up": "ffn",
        "words#2": "vocabulary",
        "places": "positions",
        "head": "outputs",
    }


@pytest.mark.parametrize(
    ("ffn", "weights"),
    [
        ("g = MatMul(z, gate) r = Sigmoid(g) t1 = MatMul(z, up) e = Mul(r, t1) ", {"gate": (8, 12), "up": (8, 12)}),
        (
            "g = MatMul(z, up) r, t1 = Split<axis=-1, num_outputs=2>(g) q1 = Sigmoid(r) e = Mul(q1, t1) ",
            {"up": (8, 24)},
        ),
    ],
)
def test_a_gated_ffn_of_two_matrices_or_one(ffn, weights):
    found = roles(block(f"{ffn} f = MatMul(e, down) ", down=(12, 8), **weights))
    assert [role for role in found.values() if role == "ffn"] == ["ffn"]
    assert found[next(iter(weights))] == "ffn"


def test_an_output_that_is_only_a_gate_of_the_stream_is_no_ffn():
    """Squeeze and excitation: what comes back has one number for all positions."""
    gated = "d0 = ReduceMean(z, ones) g = MatMul(d0, up) e = Relu(g) k1 = MatMul(e, down) f = Mul(k1, z) "
    found = roles(block(gated, ones=np.array([1]), up=(8, 12), down=(12, 8)))
    assert found["words"] == "residual stream"
    assert "up" not in found


def test_steps_of_a_recurrence_are_no_ffn():
    steps = """g = MatMul(z, up) g1 = Slice(g, zero, three, one) g2 = Slice(g, three, six, one)
        g3 = Add(g1, g2) e = Concat<axis=1>(g1, g3) f = MatMul(e, down) """
    places = {"zero": np.array([0]), "three": np.array([3]), "six": np.array([6]), "one": np.array([1])}
    found = roles(block(steps, up=(8, 12), down=(12, 8), **places))
    assert found["words"] == "residual stream"
    assert "up" not in found


def test_head_dim_is_one_where_queries_keys_and_values_are_of_one_reshape():
    text = f"""(float[2, 6, 8] x) => (float[2, 6, 4] y) {{
        f = MatMul(x, qkv) r = Reshape(f, split) t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
        q = Gather<axis=0>(t, i0) kr = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2)
        k = Transpose<perm=[0, 1, 3, 2]>(kr) {ATTENTION} y = MatMul(m, out) }}"""
    places = {f"i{i}": np.int64(i) for i in range(3)}
    found = roles(net(text, qkv=(8, 60), out=(20, 4), **{**SHAPES, "split": np.array([2, 6, 3, 4, 5])}, **places))
    assert (found["qkv[0]"], found["qkv[1]"], found["out"]) == ("heads", "head_dim", "outputs")


GROUPED = """(float[2, 6, 8] x) => (float[2, 6, 4] y) {
    a = MatMul(x, query) ar = Reshape(a, split) q = Transpose<perm=[0, 2, 1, 3]>(ar)
    b = MatMul(x, key) br = Reshape(b, few) k1 = Transpose<perm=[0, 2, 1, 3]>(br)
    k2 = Unsqueeze(k1, two) k3 = Expand(k2, more) k4 = Reshape(k3, all) k = Transpose<perm=[0, 1, 3, 2]>(k4)
    c = MatMul(x, value) cr = Reshape(c, few) v1 = Transpose<perm=[0, 2, 1, 3]>(cr)
    v2 = Unsqueeze(v1, two) v3 = Expand(v2, more) v = Reshape(v3, all) """


def test_heads_that_share_keys_and_values():
    shapes = {"few": [2, 6, 2, 5], "more": [2, 2, 2, 6, 5], "all": [2, 4, 6, 5], "two": [2]}
    constants = {name: np.array(value) for name, value in shapes.items()}
    weights = {"query": (8, 20), "key": (8, 10), "value": (8, 10), "out": (20, 4)}
    found = roles(net(f"{GROUPED}{ATTENTION} y = MatMul(m, out) }}", **SHAPES, **constants, **weights))
    assert found["query[0]"] == "kv heads"
    assert found["query[1]"] == "heads per kv head"
    assert found["query[2]"] == "query/key head_dim"
    assert found["value"] == "value head_dim"


def test_heads_beside_whose_scores_a_sink_stands():
    sunk = ATTENTION.replace(
        "p = Softmax<axis=-1>(n)", "j = Concat<axis=3>(n, sink) o = Softmax<axis=-1>(j) p = Slice(o, start, end, three)"
    )
    shapes = {"few": [2, 6, 2, 5], "more": [2, 2, 2, 6, 5], "all": [2, 4, 6, 5], "two": [2]}
    constants = {name: np.array(value) for name, value in shapes.items()}
    constants |= {"start": np.array([0]), "end": np.array([-1]), "three": np.array([3])}
    weights = {"query": (8, 20), "key": (8, 10), "value": (8, 10), "out": (20, 4), "sink": (2, 4, 6, 1)}
    found = roles(net(f"{GROUPED}{sunk} y = MatMul(m, out) }}", **SHAPES, **constants, **weights))
    assert [found[f"query[{place}]"] for place in range(2)] == ["kv heads", "heads per kv head"]


def test_rotary_embeddings_turn_pairs():
    turned = """{0}1, {0}2 = Split<axis=3, num_outputs=2>({0}r) {0}3 = Neg({0}2) {0}4 = Concat<axis=3>({0}3, {0}1)
        {0}5 = Mul({0}r, cos) {0}6 = Mul({0}4, sin) {0}7 = Add({0}5, {0}6) """
    text = f"""(float[2, 6, 8] x) => (float[2, 6, 4] y) {{
        a = MatMul(x, query) b = MatMul(x, key) c = MatMul(x, value) ar = Reshape(a, split) br = Reshape(b, split)
        {turned.format("a")}{turned.format("b")} q = Transpose<perm=[0, 2, 1, 3]>(a7)
        k = Transpose<perm=[0, 2, 3, 1]>(b7) cr = Reshape(c, split) v = Transpose<perm=[0, 2, 1, 3]>(cr)
        {ATTENTION} y = MatMul(m, out) }}"""
    shapes = {"split": np.array([2, 6, 4, 6]), "merge": np.array([2, 6, 24]), "scale": np.float32(1)}
    tables = dict.fromkeys(("cos", "sin"), (1, 6, 1, 6))
    weights = {**dict.fromkeys(("query", "key", "value"), (8, 24)), "out": (24, 4)}
    found = roles(net(text, **shapes, **tables, **weights))
    assert {found[name] for name in ("query[0]", "query[1]", "value")} == {"heads", "rotary pairs", "value head_dim"}


def test_attention_as_one_operator():
    text = """(float[2, 6, 8] x) => (float[2, 6, 4] y) {
        a = MatMul(x, query) b = MatMul(x, key) c = MatMul(x, value)
        m = Attention<q_num_heads=4, kv_num_heads=2>(a, b, c) y = MatMul(m, out) }"""
    found = roles(net(text, 23, query=(8, 20), key=(8, 10), value=(8, 6), out=(12, 4)))
    assert found["query[0]"] == "kv heads"
    assert found["query[1]"] == "heads per kv head"
    assert found["query[2]"] == "query/key head_dim"
    assert found["value"] == "value head_dim"


def test_learnt_queries_are_heads_and_no_experts():
    text = f"""(float[2, 6, 8] x) => (float[2, 6, 4] y) {{
        a = MatMul(probe, query) b = MatMul(x, key) c = MatMul(x, value) {HEADS}{ATTENTION} y = MatMul(m, out) }}"""
    weights = {"probe": (2, 6, 8), **dict.fromkeys(("query", "key", "value"), (8, 20)), "out": (20, 4)}
    assert roles(net(text, **SHAPES, **weights))["query[0]"] == "heads"


def test_channels_that_attend_to_one_another():
    """Cross-covariance: the scores sum over positions."""
    text = f"""(float[2, 6, 8] x) => (float[2, 6, 4] y) {{
        a = MatMul(x, query) b = MatMul(x, key) c = MatMul(x, value)
        ar = Reshape(a, split) q = Transpose<perm=[0, 2, 3, 1]>(ar) br = Reshape(b, split)
        k = Transpose<perm=[0, 2, 1, 3]>(br) cr = Reshape(c, split) v = Transpose<perm=[0, 2, 3, 1]>(cr)
        {ATTENTION.replace("[0, 2, 1, 3]", "[0, 3, 1, 2]")} y = MatMul(m, out) }}"""
    weights = {**dict.fromkeys(("query", "key", "value"), (8, 20)), "out": (20, 4)}
    found = roles(net(text, **SHAPES, **weights))
    assert sorted(role for role in found.values() if "head" in role) == ["head_dim", "head_dim", "heads"]


# --- Experts, recurrences, tables ----------------------------------------------------------------------------


def test_experts_that_a_router_weighs():
    text = """(float[6, 8] x) => (float[6, 4] y) {
        g = MatMul(x, router) p = Softmax<axis=1>(g) u = Unsqueeze(p, one) h = MatMul(x, up) r = Relu(h)
        d = MatMul(r, down) t = Transpose<perm=[1, 0, 2]>(d) s = MatMul(u, t) y = Squeeze(s, one) }"""
    found = roles(net(text, router=(8, 3), up=(3, 8, 12), down=(3, 12, 4), one=np.array([1])))
    assert found["router"] == "experts"
    assert "up" not in found  # no residual stream, so no ffn


def test_experts_that_a_router_chooses():
    text = """(float[6, 8] x) => (float[6, 4] y) {
        h = MatMul(x, stem) g = MatMul(h, router) p = Softmax<axis=1>(g) best, place = TopK<axis=1>(p, one)
        i = Squeeze(place, axis) w = Gather(up, i) v = Gather(down, i) u = Unsqueeze(h, axis) e = MatMul(u, w)
        r = Relu(e) d = MatMul(r, v) s = Squeeze(d, axis) f = Mul(s, best) o = Add(h, f) y = MatMul(o, head) }"""
    shapes = {"stem": (8, 10), "router": (10, 3), "up": (3, 10, 12), "down": (3, 12, 10), "head": (10, 4)}
    assert roles(net(text, **shapes, one=np.array([1]), axis=np.array([1]))) == {
        "stem": "residual stream",
        "up": "ffn",
        "router": "experts",
        "head": "outputs",
        "stem#2": "input features",
    }


def test_the_state_of_a_recurrent_layer():
    text = """(float[5, 2, 8] x) => (float[5, 2, 4] y) {
        h, a, b = LSTM<hidden_size=6>(x, w, r) s = Squeeze(h, one) y = MatMul(s, out) }"""
    found = roles(net(text, w=(1, 24, 8), r=(1, 24, 6), out=(6, 4), one=np.array([1])))
    assert list(found.values()).count("state") == 1


def test_the_state_of_an_unrolled_cell():
    step = """{1}a = MatMul({0}, w) {1}b = MatMul(h{0}, r) {1}g = Add({1}a, {1}b)
        {1}i, {1}f, {1}o, {1}z = Split<axis=1, num_outputs=4>({1}g) {1}s = Sigmoid({1}i) {1}t = Tanh({1}z)
        {1}u = Mul({1}s, {1}t) {1}v = Sigmoid({1}f) {1}k = Mul(c{0}, {1}v) c{1} = Add({1}u, {1}k)
        {1}n = Tanh(c{1}) {1}m = Sigmoid({1}o) h{1} = Mul({1}m, {1}n) {1} = Identity({0}) """
    text = f"""(float[2, 8] x) => (float[2, 4] y) {{
        hx = MatMul(x, first) cx = MatMul(x, second) {step.format("x", "p")}{step.format("p", "q")}
        y = MatMul(hq, out) }}"""
    weights = {"first": (8, 6), "second": (8, 6), "w": (8, 24), "r": (6, 24), "out": (6, 4)}
    assert [role for role in roles(net(text, **weights)).values() if role == "state"] == ["state"]


def test_rows_that_are_looked_up():
    """By what the model is given (words), by counting (positions), or by neither."""
    text = """(int64[2, 6] x) => (float[2, 6, 4] y) {
        n = Shape<start=1>(x) s = Squeeze(n) i = Range(zero, s, one) g = Gather(places, i)
        w = Gather(words, x) m = Mul(x, x) o = Gather(other, m) a = Add(w, g) b = Add(a, o) y = MatMul(b, head) }"""
    shapes = {"places": (30, 8), "words": (50, 8), "other": (20, 8), "head": (8, 4)}
    found = roles(net(text, zero=np.int64(0), one=np.int64(1), **shapes))
    assert sorted(found.values()) == ["outputs", "positions", "vocabulary"]


# --- Convolutional networks ----------------------------------------------------------------------------------


def test_a_residual_network():
    text = """(float[2, 3, 8, 8] x) => (float[2, 5] y) {
        h = Conv<pads=[1, 1, 1, 1]>(x, stem) a = Conv<pads=[1, 1, 1, 1]>(h, first) r = Relu(a)
        b = Conv<pads=[1, 1, 1, 1]>(r, second) s = Add(b, h) t = Relu(s) u = Conv(t, more) v = Relu(u)
        p = GlobalAveragePool(v) f = Flatten(p) y = Gemm(f, head) }"""
    shapes = {"stem": (16, 3, 3, 3), "first": (12, 16, 3, 3), "second": (16, 12, 3, 3), "more": (20, 16, 1, 1)}
    found = roles(net(text, **shapes, head=(20, 5)))
    assert {name: role for name, role in found.items() if role != "kernel"} == {
        "stem": "residual stream",
        "first": "channels",
        "more": "channels",
        "head": "outputs",
        "stem#4": "input channels",
    }
    assert list(found.values()).count("kernel") == 6


def inverted(kernel, *, depthwise):
    """A block that widens, maybe convolves each channel alone, and narrows."""
    between = "e = Conv<group=24, pads=[1, 1, 1, 1]>(r, deep)" if depthwise else "e = Relu(r)"
    text = f"""(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {{
        h = Conv(x, stem) a = Conv<auto_pad="SAME_UPPER">(h, up) r = Relu(a) {between} b = Conv(e, down)
        s = Add(h, b) y = Conv(s, head) }}"""
    shapes = {"stem": (16, 3, 1, 1), "up": (24, 16, kernel, kernel), "down": (16, 24, 1, 1), "head": (4, 16, 1, 1)}
    return net(text, **shapes, **({"deep": (24, 1, 3, 3)} if depthwise else {}))


@pytest.mark.parametrize(
    ("kernel", "depthwise", "role"), [(1, False, "ffn"), (3, False, "channels"), (1, True, "channels")]
)
def test_convolutions_of_single_positions_are_an_ffn(kernel, depthwise, role):
    assert roles(inverted(kernel, depthwise=depthwise))["up"] == role


def test_groups_hold_channels():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        h = Conv(x, up) g = Conv<group=4>(h, mid) y = Conv(g, down) }"""
    found = roles(net(text, up=(8, 3, 1, 1), mid=(12, 2, 1, 1), down=(4, 12, 1, 1)))
    assert found["up[0]"] == "groups"
    assert found["up[1]"] == found["mid"] == "channels per group"


def test_normalised_groups():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        h = Conv(x, up) r = Reshape(h, split) n = InstanceNormalization(r, one, zero) s = Shape(h)
        m = Reshape(n, s) y = Conv(m, down) }"""
    vectors = {"one": (4,), "zero": (4,)}
    found = roles(net(text, up=(12, 3, 1, 1), down=(4, 12, 1, 1), split=np.array([0, 4, -1]), **vectors))
    assert (found["up[0]"], found["up[1]"]) == ("groups", "channels per group")


# --- Ends ----------------------------------------------------------------------------------------------------


def test_what_softmax_runs_over_are_classes():
    text = "(float[2, 8] x) => (float[2, 4] y) { h = MatMul(x, up) r = Relu(h) z = MatMul(r, out) y = Softmax(z) }"
    assert roles(net(text, up=(8, 16), out=(16, 4))) == {"out": "classes", "up#2": "input features"}


# --- Roles as patterns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", ["ffn", "f?n"])
def test_only_dims_of_a_role(only):
    grown = widen(block(), factor=2, only=[only]).changes
    assert [(change.name, change.new) for change in grown] == [("up", 24)]


def test_sizes_of_a_role():
    assert [change.new for change in widen(block(), sizes={"value head_dim": 7}).changes] == [7]


def test_a_name_wins_over_a_role():
    text = """(float[2, 8] x) => (float[2, 8] y) {
        h = MatMul(x, stem) a = MatMul(h, up) r = Relu(a) b = MatMul(r, down) s = Add(h, b)
        c = MatMul(s, ffn) t = Relu(c) y = MatMul(t, head) }"""
    proto = net(text, stem=(8, 10), up=(10, 12), down=(12, 10), ffn=(10, 14), head=(14, 8))
    assert roles(proto)["up"] == "ffn"
    assert [change.name for change in widen(proto, factor=2, only=["ffn"]).changes] == ["ffn"]


def test_a_role_that_no_dim_has():
    with pytest.raises(BadInputError, match="no dim is named 'experts'"):
        widen(block(), factor=2, only=["experts"])
