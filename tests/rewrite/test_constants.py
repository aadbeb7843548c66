"""One constant with several readers: shared, untied, behind other nodes, or a size."""

import numpy as np
import onnx
import pytest
from graphs import net, weights
from wide import draw, new_sizes, widen_exactly

from onnx_net2net import inspect, verify, widen


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


def test_weights_behind_transpose_reshape_and_cast():
    text = """(float[N, 8] x) => (float[N, 4] y) {
        a = Transpose<perm=[1, 0]>(up) h = MatMul(x, a) r = Relu(h) b = Cast<to=1>(half)
        i = MatMul(r, b) s = Relu(i) c = Reshape(flat, shape) y = MatMul(s, c) }"""
    half = draw(16, 12).astype(np.float16)
    teacher = net(text, up=draw(16, 8), half=half, flat=draw(48), shape=np.array([12, 4]))
    sizes = new_sizes(widen_exactly(teacher, factor=1.5))
    assert sizes["up"] == 24


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
