"""Widths that are no multiples in front of normalisers: arithmetic that weighs copies."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_net2net import RefusedError, inspect, verify, widen
from onnx_net2net.cli import main


def draw(*shape, dtype=np.float32):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(dtype)


def net(text, opset=18, imports="", **weights):
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


POST_NORM = """(FLOAT[N, S, 6] x) => (FLOAT[N, S, 4] y) {
    h = MatMul(x, up) n = NORM i = MatMul(n, mid) r = Relu(i) o = MatMul(r, out) a = Add(n, o) s = Sigmoid(a)
    m = NORM_AGAIN y = MatMul(m, down) }"""


def post_norm(norm, kind="float", dtype=np.float32, opset=18, imports="", **more):
    text = POST_NORM.replace("NORM_AGAIN", norm.replace("h", "s", 1)).replace("NORM", norm).replace("FLOAT", kind)
    shapes = {"up": (6, 8), "mid": (8, 12), "out": (12, 8), "down": (8, 4)}
    weights = {name: draw(*shape, dtype=dtype) for name, shape in shapes.items()}
    weights |= {"gain": 1 + draw(8, dtype=dtype), "shift": draw(8, dtype=dtype)}
    return net(text, opset, imports, **{n: w for n, w in {**weights, **more}.items() if n in text})


def ops(model):
    return [node.op_type for node in model.proto.graph.node]


def stream(model):
    """The dim of 8 units."""
    (group,) = [g for g in inspect(model).groups if g.size == 8 and g.reason is None]
    return group


NORMS = {
    "LayerNormalization": "LayerNormalization<epsilon=1e-3>(h, gain, shift)",
    "without a shift": "LayerNormalization(h, gain)",
    "RMSNormalization": "RMSNormalization<epsilon=1e-3>(h, gain)",
    "SimplifiedLayerNormalization": "SimplifiedLayerNormalization<epsilon=1e-3>(h, gain)",
    "SkipLayerNormalization": "com.microsoft.SkipLayerNormalization(h, skipped, gain, shift, bias)",
    "SkipSimplifiedLayerNormalization": "com.microsoft.SkipSimplifiedLayerNormalization(h, skipped, gain)",
}


@pytest.mark.parametrize("size", [11, 16, 19])
@pytest.mark.parametrize("norm", NORMS)
def test_any_width_behind_a_norm_is_exact(norm, size):
    text, opset, imports = NORMS[norm], 23 if norm == "RMSNormalization" else 18, ""
    more = {}
    if "microsoft" in text:
        imports, more = ', "com.microsoft" : 1', {"skipped": draw(1, 1, 8), "bias": draw(8)}
        text = text.replace("skipped", "k")
        more["k"] = np.broadcast_to(draw(5, 8), (1, 5, 8)).copy()
    teacher = post_norm(text, opset=opset, imports=imports, **more)
    if "microsoft" in text:  # the shape of the skip must be that of the input
        for value in (*teacher.graph.input, *teacher.graph.output):
            for axis, number in enumerate((1, 5)):
                value.type.tensor_type.shape.dim[axis].dim_value = number
    widening = widen(teacher, sizes={stream(teacher).name: size}, weigh_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert ("ReduceSum" in ops(widening.student)) == (size % 8 != 0), "whole factors keep the node"


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_other_float_types(kind, dtype):
    teacher = post_norm(NORMS["LayerNormalization"], kind, dtype)
    widening = widen(teacher, factor=1.37, weigh_norms=True)
    verify(teacher, widening.student).raise_if_different()
    assert ops(widening.student).count("Cast") == (4 if dtype == np.float16 else 0), "statistics in single precision"


def test_before_opset_13_axes_are_attributes():
    teacher = post_norm(NORMS["SimplifiedLayerNormalization"], opset=12)
    verify(teacher, widen(teacher, factor=1.37, weigh_norms=True).student).raise_if_different()


def test_a_norm_over_several_axes():
    text = """(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {
        h = Conv(x, up) r = Relu(h) n = LayerNormalization<axis=1>(r, gain, shift) y = Conv(n, down) }"""
    weights = {"up": draw(6, 3, 1, 1), "gain": 1 + draw(6, 4, 4), "shift": draw(6, 4, 4), "down": draw(5, 6, 1, 1)}
    teacher = net(text, **weights)
    assert all(group.is_whole for group in inspect(teacher).groups if group.size == 6 and group.reason is None)
    verify(teacher, widen(teacher, sizes={"up": 8}, weigh_norms=True).student).raise_if_different()


def test_a_norm_over_several_axes_that_all_grow():
    text = """(float[2, 6] x) => (float[2, 5] y) { h = MatMul(x, up) s = Reshape(h, split)
        n = LayerNormalization<axis=1>(s, gain) r = Reshape(n, whole) y = MatMul(r, down) }"""
    weights = {"up": draw(6, 12), "gain": 1 + draw(3, 4), "down": draw(12, 5)}
    teacher = net(text, split=np.array([2, 3, 4]), whole=np.array([2, 12]), **weights)
    widening = widen(teacher, sizes={"up[[]0]": 4, "up[[]1]": 7}, weigh_norms=True)
    assert [change.new for change in widening.changes] == [4, 7]
    verify(teacher, widening.student).raise_if_different()


def test_without_it_the_nearest_multiples_are_named():
    teacher = post_norm(NORMS["LayerNormalization"])
    with pytest.raises(RefusedError, match=r"possible are 8 and 16 \(any with weigh_norms\)"):
        widen(teacher, sizes={stream(teacher).name: 11})


def test_a_statistic_that_is_read_elsewhere_keeps_the_node():
    teacher = post_norm("LayerNormalization(h, gain, shift)")
    for node, name in zip([n for n in teacher.graph.node if n.op_type == "LayerNormalization"], "ab", strict=True):
        node.output.extend([f"mean_{name}"])
        teacher.graph.output.append(helper.make_tensor_value_info(f"mean_{name}", TensorProto.FLOAT, ["N", "S", 1]))
    with pytest.raises(RefusedError, match="possible are 8 and 16"):
        widen(teacher, sizes={stream(teacher).name: 11}, weigh_norms=True)


def test_no_rounded_weights_shift_a_mean():
    """1 / 7 is rounded, and seven of it are not 1: a mean far from 0 would be off by more than the units differ."""
    text = """(float[N, 6] x) => (float[N, 4] y) { h = MatMul(x, up) r = Relu(h) n = LayerNormalization(r, gain)
        y = MatMul(n, down) }"""
    teacher = net(text, up=draw(6, 7), gain=1 + draw(7), down=draw(7, 4))
    with widen(teacher, sizes={"up": 9}, weigh_norms=True).student.on_disk() as path:
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert values["n_count"] == values["n_weights"].sum() == 7


def test_the_sum_that_a_skip_normaliser_gives_out_is_still_there():
    text = """(float[1, 5, 6] x) => (float[1, 5, 4] y) { h = MatMul(x, up)
        n, , , t = com.microsoft.SkipLayerNormalization(h, k, gain, shift) r = Sigmoid(n) s = Add(r, t)
        m = LayerNormalization(s, gain, shift) y = MatMul(m, down) }"""
    weights = {"up": draw(6, 8), "k": draw(1, 5, 8), "gain": 1 + draw(8), "shift": draw(8), "down": draw(8, 4)}
    teacher = net(text, 17, ', "com.microsoft" : 1', **weights)
    widening = widen(teacher, sizes={stream(teacher).name: 11}, weigh_norms=True)
    verify(teacher, widening.student).raise_if_different()


def test_another_statistic_keeps_a_norm_from_being_weighed():
    text = """(float[N, 6] x) => (float[N, 4] y) { h = MatMul(x, up) n = LayerNormalization(h, gain)
        m = MeanVarianceNormalization<axes=[1]>(h) s = Add(n, m) y = MatMul(s, down) }"""
    teacher = net(text, up=draw(6, 8), gain=1 + draw(8), down=draw(8, 4))
    with pytest.raises(RefusedError, match="possible are 8 and 16"):
        widen(teacher, sizes={stream(teacher).name: 11}, weigh_norms=True)


def test_padding_is_preferred_because_it_keeps_the_node():
    text = "(float[N, 6] x) => (float[N, 4] y) { h = MatMul(x, up) n = LayerNormalization(h, g) y = MatMul(n, down) }"
    teacher = net(text, up=draw(6, 8), g=1 + draw(8), down=draw(8, 4))
    widening = widen(teacher, factor=1.37, weigh_norms=True)
    assert "LayerNormalization" in ops(widening.student)
    assert widening.changes[0].map == "mean_pad"


def test_the_command_line_hints_at_it_and_takes_it(tmp_path, capsys):
    path, student = tmp_path / "t.onnx", tmp_path / "s.onnx"
    onnx.save(post_norm(NORMS["LayerNormalization"]), path)
    assert main(["widen", str(path), "-o", str(student), "--factor", "1.37"]) == 0
    assert "--weigh-norms" in capsys.readouterr().out
    assert main(["widen", str(path), "-o", str(student), "--factor", "1.37", "--weigh-norms"]) == 0
    out = capsys.readouterr().out
    assert "equivalent in" in out
    assert "--weigh-norms" not in out
