"""The dims of small graphs are those that one would write down by hand.

Axes are written as in einops: a name is a dim that can grow (`%` by whole factors only), a number an axis that
keeps its size, `(a b)` a product, `[a + b]` a concatenation.
"""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from zeros import grouped, net

from onnx_net2net import inspect, load
from onnx_net2net.algebra.dims import Dim, Product, resolve
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.names import name_dims


def structure(proto):
    """The axes of every activation and every constant, as text."""
    model = load(proto)
    analysis = infer(model)
    names = name_dims(analysis, model.proto)

    def text(axis):
        axis = resolve(axis)
        if isinstance(axis, Dim):
            return str(axis.size) if axis.frozen else names.get(axis, "?") + "%" * bool(axis.ratio)
        inner = (" " if isinstance(axis, Product) else " + ").join(map(text, axis.parts))
        return f"({inner})" if isinstance(axis, Product) else f"[{inner}]"

    axes = analysis.axes | {use.constant.name: use.axes for use in analysis.uses.values()}
    return {name: " ".join(map(text, found)) for name, found in axes.items()}


def assert_structure(proto, **expected):
    actual = structure(proto)
    assert {name: actual[name] for name in expected} == expected


def reasons(proto):
    return {group.name: group.reason for group in inspect(proto).groups}


def test_a_convolution_and_all_that_follows_its_channels():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 6, 6] y) {
        h = Conv(x, up, bias) n = BatchNormalization(h, s, z, m, v) r = Relu(n) y = Conv(r, down) }"""
    vectors = dict.fromkeys(("bias", "s", "z", "m", "v"), (16,))
    proto = net(text, up=(16, 3, 3, 3), down=(4, 16, 1, 1), **vectors)
    assert_structure(proto, h="2 up 6 6", n="2 up 6 6", r="2 up 6 6", y="2 4 6 6")
    assert_structure(proto, up="up 3 3 3", down="4 up 1 1", **dict.fromkeys(vectors, "up"))
    assert inspect(proto).groups[0].tensors == 7


def test_equal_numbers_are_not_equal_dims():
    text = "(float[8, 8] x) => (float[8, 8] y) { h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) y = MatMul(i, c) }"
    assert_structure(net(text, a=(8, 8), b=(8, 8), c=(8, 8)), a="8 a", b="a b", c="b 8", h="8 a", i="8 b")


def test_additions_tie_a_residual_stream():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4] y) {
        h = Conv(x, stem) a = Conv(h, one) r = Relu(a) b = Conv(r, two) s = Add(h, b) t = Relu(s)
        c = Conv(t, three) d = Conv(c, four) u = Add(t, d)
        p = GlobalAveragePool(u) f = Flatten(p) y = Gemm(f, head) }"""
    shapes = {"one": (16, 16, 1, 1), "two": (16, 16, 1, 1), "three": (12, 16, 1, 1), "four": (16, 12, 1, 1)}
    proto = net(text, stem=(16, 3, 1, 1), head=(16, 4), **shapes)
    assert_structure(proto, one="one stem 1 1", two="stem one 1 1", three="three stem 1 1", four="stem three 1 1")
    assert_structure(proto, s="2 stem 8 8", u="2 stem 8 8", p="2 stem 1 1", f="2 stem", head="stem 4")


def test_a_concatenation_is_read_by_a_concatenation():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        a = Conv(x, left) b = Conv(x, right) c = Concat<axis=1>(a, b, a) y = Conv(c, down) }"""
    proto = net(text, left=(6, 3, 1, 1), right=(10, 3, 1, 1), down=(4, 22, 1, 1))
    assert_structure(proto, left="left 3 1 1", right="right 3 1 1", down="4 [left + right + left] 1 1")


def test_two_concatenations_that_are_added_are_cut_at_the_boundaries_of_both():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        a = MatMul(x, wa) b = MatMul(x, wb) c = MatMul(x, wc) d = MatMul(x, wd)
        e = Concat<axis=1>(a, b) f = Concat<axis=1>(c, d) g = Add(e, f) y = MatMul(g, down) }"""
    proto = net(text, wa=(8, 6), wb=(8, 10), wc=(8, 9), wd=(8, 7), down=(16, 4))
    assert_structure(proto, wa="8 wa", wc="8 [wa + wb[0]]", wb="8 [wb[0] + wb[1]]", wd="8 wb[1]")


def test_grouped_convolutions():
    proto = grouped(4, 8, (12, 2, 1, 1))
    assert_structure(proto, up="(up[0] up[1]) 3 1 1", mid="(up[0] mid) up[1] 1 1", down="4 (up[0] mid) 1 1")
    sizes = {group.name: group.size for group in inspect(proto).groups if group.reason is None}
    assert sizes == {"up[0]": 4, "up[1]": 2, "mid": 3}


def test_depthwise_convolutions():
    assert_structure(grouped(8, 8, (8, 1, 1, 1)), up="up 3 1 1", mid="up 1 1 1", down="4 up 1 1")
    multiplied = grouped(8, 8, (16, 1, 1, 1))
    assert_structure(multiplied, up="up 3 1 1", mid="(up mid) 1 1 1", down="4 (up mid) 1 1")


def test_squeeze_and_excitation():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        h = Conv(x, up) p = GlobalAveragePool(h) a = Conv(p, squeeze) r = Relu(a) b = Conv(r, excite) g = Sigmoid(b)
        s = Mul(h, g) y = Conv(s, down) }"""
    shapes = {"squeeze": (4, 16, 1, 1), "excite": (16, 4, 1, 1), "down": (4, 16, 1, 1)}
    proto = net(text, up=(16, 3, 1, 1), **shapes)
    assert_structure(proto, squeeze="squeeze up 1 1", excite="up squeeze 1 1", s="2 up 8 8", down="4 up 1 1")


@pytest.mark.parametrize("batch", ["2", "N"])
@pytest.mark.parametrize("reshape", ["Flatten(h)", "Reshape(h, shape)"])
def test_flattened_channels_stay_apart_from_positions(reshape, batch):
    text = f"""(float[{batch}, 3, 8, 8] x) => (float[{batch}, 4] y) {{
        h = Conv(x, up) f = {reshape} y = Gemm<transB=1>(f, down) }}"""
    constants = {"shape": np.array([0, -1])} if "shape" in reshape else {}
    assert_structure(net(text, up=(5, 3, 3, 3), down=(4, 180), **constants), up="up 3 3 3", down="4 (up 6 6)")


ATTENTION = """s = MatMul(q, k) p = Softmax<axis=-1>(s) o = MatMul(p, v) ot = Transpose<perm=[0, 2, 1, 3]>(o)
    m = Reshape(ot, merge) y = MatMul(m, out) }"""


def test_fused_projections_are_three_times_heads_times_their_width():
    text = """(float[2, 6, 8] x) => (float[2, 6, 4] y) {
        f = MatMul(x, qkv) r = Reshape(f, split) t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
        q = Gather<axis=0>(t, i0) kr = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2)
        k = Transpose<perm=[0, 1, 3, 2]>(kr) """
    places = {f"i{i}": np.int64(i) for i in range(3)}
    shapes = {"split": np.array([2, 6, 3, 4, 5]), "merge": np.array([2, 6, 20])}
    proto = net(text + ATTENTION, qkv=(8, 60), out=(20, 4), **shapes, **places)
    assert_structure(proto, qkv="8 (3 qkv[0] qkv[1])", q="2 qkv[0] 6 qkv[1]", out="(qkv[0] qkv[1]) 4", s="2 qkv[0] 6 6")


def test_split_projections_share_the_heads_and_values_have_a_width_of_their_own():
    text = """(float[2, 6, 8] x) => (float[2, 6, 4] y) {
        f = MatMul(x, qkv) a, b, c = Split<axis=-1, num_outputs=3>(f)
        ar = Reshape(a, heads) q = Transpose<perm=[0, 2, 1, 3]>(ar) br = Reshape(b, heads)
        k = Transpose<perm=[0, 2, 3, 1]>(br) cr = Reshape(c, heads) v = Transpose<perm=[0, 2, 1, 3]>(cr) """
    shapes = {"heads": np.array([2, 6, 4, 5]), "merge": np.array([2, 6, 20])}
    proto = net(text + ATTENTION, qkv=(8, 60), out=(20, 4), **shapes)
    key, value = "(qkv[0] qkv[1])", "(qkv[0] qkv[2])"
    assert_structure(proto, qkv=f"8 [{key} + {key} + {value}]", out=f"{value} 4")


def test_slices_cut_an_axis():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, up) a = Slice(h, zero, six, one) b = Slice(h, six, end, one)
        c = MatMul(a, left) d = MatMul(b, right) y = Add(c, d) }"""
    places = {"zero": np.array([0]), "six": np.array([6]), "end": np.array([2**62]), "one": np.array([1])}
    proto = net(text, up=(8, 16), left=(6, 4), right=(10, 4), **places)
    assert_structure(proto, up="8 [up[0] + up[1]]", left="up[0] 4", right="up[1] 4")


def test_a_part_that_nobody_reads_is_still_a_part():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, up) a = Slice(h, two, six, one) y = MatMul(a, down) }"""
    proto = net(text, up=(8, 16), down=(4, 4), two=np.array([2]), six=np.array([6]), one=np.array([1]))
    assert_structure(proto, up="8 [up[0] + up[1] + up[2]]", down="up[1] 4")


def test_split_and_concat_in_another_order():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, up) a, b = Split<axis=1>(h, parts) r = Relu(a) c = Concat<axis=1>(b, r) y = MatMul(c, down) }"""
    proto = net(text, up=(8, 16), down=(16, 4), parts=np.array([6, 10]))
    assert_structure(proto, up="8 [up[0] + up[1]]", down="[up[1] + up[0]] 4")


def test_padded_channels_are_no_units():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        h = Conv(x, up) p = Pad(h, pads) s = Conv(x, side) a = Add(p, s) y = Conv(a, down) }"""
    pads = np.array([0, 1, 0, 0, 0, 3, 0, 0])
    proto = net(text, up=(8, 3, 1, 1), side=(12, 3, 1, 1), down=(4, 12, 1, 1), pads=pads)
    assert_structure(proto, up="up 3 1 1", side="[1 + up + 3] 3 1 1", down="4 [1 + up + 3] 1 1")


def test_axes_of_size_one_broadcast_and_tie_nothing():
    text = """(float[2, 8] x) => (float[2, 4] y) {
        h = MatMul(x, up) a = Mul(h, vector) b = Add(a, row) c = Mul(b, one) d = Add(c, scalar)
        g = MatMul(x, gate) e = Mul(d, g) y = MatMul(e, down) }"""
    small = {"vector": (16,), "row": (1, 16), "one": (1, 1), "scalar": (), "gate": (8, 1)}
    proto = net(text, up=(8, 16), down=(16, 4), **small)
    assert_structure(proto, vector="up", row="1 up", one="1 1", scalar="", gate="8 1", down="up 4")


def test_channels_last_and_tokens():
    text = """(float[2, 5, 5, 3] x) => (float[2, 5, 5, 4] y) {
        h = MatMul(x, up) t = Transpose<perm=[0, 3, 1, 2]>(h) c = Conv<group=16, pads=[1, 1, 1, 1]>(t, deep)
        u = Transpose<perm=[0, 2, 3, 1]>(c) l = LayerNormalization(u, gain) y = MatMul(l, down) }"""
    proto = net(text, up=(3, 16), deep=(16, 1, 3, 3), gain=(16,), down=(16, 4))
    assert_structure(proto, t="2 up% 5 5", u="2 5 5 up%", deep="up% 1 3 3", gain="up%", down="up% 4")


def test_a_channel_shuffle_ties_the_channels_that_it_exchanges():
    text = """(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {
        h = Conv(x, up) a = Reshape(h, split) b = Transpose<perm=[0, 2, 1, 3, 4]>(a) c = Reshape(b, merge)
        s = Add(c, h) y = Conv(s, down) }"""
    shapes = {"split": np.array([2, 3, 4, 8, 8]), "merge": np.array([2, 12, 8, 8])}
    proto = net(text, up=(12, 3, 1, 1), down=(4, 12, 1, 1), **shapes)
    (growable,) = [group for group in inspect(proto).groups if group.reason is None]
    assert (growable.name, growable.tensors) == ("up", 2)
    assert structure(proto)["h"].count("up") == 12
    assert structure(proto)["h"] == structure(proto)["c"] == structure(proto)["s"]


def test_vectors_of_equal_value_do_not_tie_layers_but_matrices_do():
    text = """(float[2, 8] x) => (float[2, 8] y) {
        h = MatMul(x, a) i = Add(h, zero) j = MatMul(i, b) k = Add(j, zero) y = MatMul(k, c) }"""
    proto = net(text, a=(8, 16), b=(16, 16), c=(16, 8), zero=(16,))
    assert_structure(proto, i="2 a", k="2 b", b="a b", c="b 8")
    text = "(float[2, 8] x) => (float[2, 8] y) { h = MatMul(x, a) j = MatMul(h, b) k = MatMul(j, b) y = MatMul(k, c) }"
    proto = net(text, a=(8, 16), b=(16, 16), c=(16, 8))
    assert_structure(proto, h="2 a", j="2 a", b="a a", c="a 8")


def test_a_dynamic_batch_changes_nothing():
    text = """(float[{0}, 3, {1}, {1}] x) => (float[{0}, 4] y) {{
        h = Conv(x, up) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, down) }}"""
    static, dynamic = (net(text.format(*sizes), up=(16, 3, 3, 3), down=(16, 4)) for sizes in ((2, 9), ("N", "S")))
    assert reasons(static) == reasons(dynamic)
    assert {structure(proto)["down"] for proto in (static, dynamic)} == {"up 4"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = MatMul(x, up)", "is the model's output 'y'"),
        ("h = MatMul(x, up) y = LogSoftmax(h)", "LogSoftmax 'y' normalises over this axis"),
        ("h = MatMul(x, up) a = ArgMax<axis=1>(h) y = Cast<to=1>(a)", "ArgMax 'a' returns positions along this axis"),
        ("h = MatMul(x, up) s = ReduceProd(h, one) y = Relu(s)", "ReduceProd 's' reduces this axis in a way"),
        ("h = MatMul(x, up) c = CumSum(h, one) s = ReduceSum(c) y = Relu(s)", "CumSum 'c' "),
        ("h = MatMul(x, up) i, v = TopK<axis=1>(h, two) y = Relu(i)", "TopK 'i' "),
        ("h = MatMul(x, up) l = LpNormalization(h) s = ReduceSum(l) y = Relu(s)", "divides by a norm along this axis"),
    ],
)
def test_the_reason_names_the_node(body, reason):
    proto = net(f"(float[2, 8] x) => (float[2, K] y) {{ {body} }}", up=(8, 16))
    for name, value in (("one", 1), ("two", 2)):
        if name in body:
            proto.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    assert reason in reasons(proto)["up"]


def test_a_named_node_is_called_by_its_name():
    proto = net("(float[2, 8] x) => (float[2, 16] y) { h = MatMul(x, up) y = LogSoftmax(h) }", up=(8, 16))
    proto.graph.node[1].name = "/head/LogSoftmax"
    assert reasons(proto)["up"] == "LogSoftmax '/head/LogSoftmax' normalises over this axis"


def test_inputs_outputs_and_kernels_are_fixed():
    proto = net("(float[2, 3, 8, 8] x) => (float[2, 4, 6, 6] y) { y = Conv(x, w) }", w=(4, 3, 3, 3))
    expected = {"is the model's output 'y'", "is the model's input 'x'", "Conv 'y' works along this axis"}
    assert set(reasons(proto).values()) == expected


def test_what_has_no_known_shape_is_fixed_with_all_that_meets_it():
    text = """(float[2, 8] x, int64[2] sizes) => (float[K, 4] y) {
        c = Reshape(x, sizes) h = MatMul(c, up) y = MatMul(h, down) }"""
    found = reasons(net(text, up=(8, 16), down=(16, 4)))
    assert found["up"] == "MatMul 'h' has an operand whose shape could not be inferred"
    assert all(found.values())


def test_unknown_shapes_fix_no_more_than_what_they_meet():
    text = """(float[2, 8] x, int64[2] sizes) => (float[K, 4] y) {
        h = MatMul(x, up) r = Relu(h) i = MatMul(r, mid) c = Reshape(i, sizes) y = MatMul(c, down) }"""
    found = reasons(net(text, up=(8, 16), mid=(16, 6), down=(6, 4)))
    assert found["up"] is None
    assert "Reshape 'c'" in found["mid"]


@pytest.mark.parametrize("node", ["z = Compress<axis=0>(c, mask)", "z, rest = Split<axis=0>(c, sizes)"])
def test_a_length_that_data_decide_fixes_no_other_axis(node):
    text = f"""(float[6, 8] x, bool[6] mask, int64[2] sizes) => (float[K, 4] y) {{
        h = MatMul(x, up) r = Relu(h) c = MatMul(r, mid) {node} y = MatMul(z, down) }}"""
    found = reasons(net(text, up=(8, 16), mid=(16, 6), down=(6, 4)))
    assert found["up"] is None
    assert found["mid"] is None


def test_an_operator_without_a_rule_says_how_to_add_one():
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18, "my.company" : 3]>
        g (float[2, 8] x) => (float[2, 4] y) { h = MatMul(x, up) r = my.company.Act(h) y = MatMul(r, down) }"""
    )
    arrays = {"up": np.zeros((8, 16), np.float32), "down": np.zeros((16, 4), np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    assert reasons(proto)["up"] == (
        "Act 'r' has no growth rule (my.company::Act, opset 3; see onnx_net2net.rules.rule)"
    )


def test_integer_weights_cannot_be_shared_out():
    text = "(int32[2, 8] x) => (int32[2, 4] y) { h = MatMul(x, up) y = MatMul(h, down) }"
    proto = net(text, up=np.ones((8, 16), np.int32), down=np.ones((16, 4), np.int32))
    assert reasons(proto)["up"] == "MatMul 'y' sums integers, which cannot be divided among copies"


def test_no_weights_are_read(tmp_path):
    """A model with 4 GiB of weights, in a file that has no blocks on disk."""
    wide, deep = 1 << 17, 1 << 12
    tensors = []
    for place, (name, shape) in enumerate({"up": (deep, wide), "down": (wide, deep)}.items()):
        size = 4 * wide * deep
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", place * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    proto = net(f"(float[N, {deep}] x) => (float[N, {deep}] y) {{ h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }}")
    proto.graph.initializer.extend(tensors)
    onnx.save(proto, tmp_path / "m.onnx")
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(8 * wide * deep)
    tracemalloc.start()
    try:
        before, started = _resident_bytes(), time.perf_counter()
        inspection = inspect(tmp_path / "m.onnx")
        assert time.perf_counter() - started < 5
        assert _resident_bytes() - before < 100e6
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert inspection.elements == 1 << 30
    assert (inspection.groups[0].name, inspection.groups[0].size) == ("up", wide)


def _resident_bytes():
    """Memory of this process that is in use, pages of mapped files included; 0 where that cannot be told."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def test_long_chains_are_no_problem():
    """Neither recursion nor a cost that grows faster than the graph."""

    def seconds(length):
        nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
        proto = net("(float[2, 8] x) => (float[2, 4] y) { t0 = MatMul(x, up) y = MatMul(last, down) }")
        first, last = proto.graph.node
        last.input[0] = f"t{length}"
        proto.graph.ClearField("node")
        proto.graph.node.extend([first, *nodes, last])
        proto.graph.initializer.extend(
            numpy_helper.from_array(np.zeros(shape, np.float32), name)
            for name, shape in {"up": (8, 16), "down": (16, 4)}.items()
        )
        started = time.perf_counter()
        assert inspect(proto).groups[0].tensors == 2
        return time.perf_counter() - started

    assert seconds(4000) < 40 * max(seconds(400), 0.02)
