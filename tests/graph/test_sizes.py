"""Shapes of every tensor and values of the small ones, at sizes that are put in for dynamic axes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from graphs import net
from onnx import TensorProto, helper

from onnx_net2net.graph import sizes
from onnx_net2net.graph.sizes import bind_axes, infer_at, infer_sizes, opsets_of, reevaluate


def test_shapes_and_types_follow_from_schemas() -> None:
    text = """(float[2, 6] x) => (float[2, 3] y, int64[2] i) {
        h = MatMul(x, up) c = Cast<to = 10>(h) i = ArgMax<axis = 1, keepdims = 0>(c) y = MatMul(h, down) }"""
    found = infer_sizes(net(text, up=np.zeros((6, 8), np.float32), down=np.zeros((8, 3), np.float32)))
    assert found.shape("h") == (2, 8)
    assert found.dtype("c") == TensorProto.FLOAT16
    assert (found.shape("i"), found.dtype("i")) == ((2,), TensorProto.INT64)
    assert found.shape("nowhere") is None
    assert found.dtype("nowhere") == 0
    assert not found.failures


DYNAMIC = """(float[N, 4, S] x) => (float[N, A, B] y) {
    s = Shape(x) n = Gather<axis = 0>(s, zero) r = Concat<axis = 0>(n, rest) y = Reshape(x, r) }"""


def dynamic() -> onnx.ModelProto:
    return net(DYNAMIC, zero=np.array([0]), rest=np.array([2, -1]))


def test_dynamic_axes_get_different_sizes_and_values_follow_from_them() -> None:
    found = infer_sizes(dynamic())
    assert set(found.binding) == {"N", "S"}
    n, s = found.binding["N"], found.binding["S"]
    assert n != s
    assert found.values["s"].tolist() == [n, 4, s]
    assert found.values["r"].tolist() == [n, 2, -1]
    assert found.shape("y") == (n, 2, 2 * s)


def test_axes_of_one_name_share_a_size_and_nameless_ones_have_their_own() -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in "ab"]
    graph = helper.make_graph([], "g", inputs, [])
    assert bind_axes(graph, [5, 7]) == {"N": 5, "a:1": 7, "b:1": 9}, "an exhausted probe goes on in steps of two"


def test_a_value_is_known_in_the_type_of_a_tensor_that_is_not() -> None:
    """So exporters write the scale of an attention: 1 / sqrt(head_dim), in the type of the queries."""
    text = """(float[2, 16] x) => (float[2, 16] y) {
        s = Shape(x) d = Gather<axis = 0>(s, last) c = CastLike(d, x) r = Sqrt(c) y = Div(x, r) }"""
    found = infer_sizes(net(text, last=np.array(-1)))
    assert (found.values["r"], found.dtype("r"), "r" in found.constant) == (4.0, TensorProto.FLOAT, False)


def test_values_tell_whether_they_depend_on_dynamic_sizes() -> None:
    found = infer_sizes(dynamic())
    assert "rest" in found.constant
    assert not {"s", "n", "r"} & found.constant


def test_what_cannot_be_typed_has_a_reason_and_so_has_what_follows() -> None:
    text = """(float[2, 6] x) => (float[A, B] y, float[2, 6] z) {
        u = my.company.Odd(x) y = Relu(u) z = Relu(x) }"""
    found = infer_sizes(net(text, imports=', "my.company" : 1'))
    assert found.failures == {"u": "Odd has no schema", "y": "follows a tensor of unknown shape"}
    assert found.shape("z") == (2, 6)


def test_nodes_that_differ_in_names_and_weights_are_typed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = []
    inferred = sizes.shape_inference.infer_node_outputs
    monkeypatch.setattr(
        sizes.shape_inference,
        "infer_node_outputs",
        lambda schema, node, *rest, **more: typed.append(node.output[0]) or inferred(schema, node, *rest, **more),
    )
    text = """(float[2, 6] x) => (float[3, 4] r, float[3, 4] s, float[4, 6] y) {
        a = MatMul(x, one) b = MatMul(a, two) c = MatMul(b, one) d = Relu(c) e = Relu(d)
        f = Transpose(e) g = Transpose<perm = [1, 0]>(e) h = Transpose(d)
        r = Reshape(f, shape) s = Reshape(h, shape) y = Resize(e, , double) }"""
    weights = {"one": np.ones((6, 6), np.float32), "two": np.zeros((6, 6), np.float32)}
    found = infer_sizes(net(text, **weights, shape=np.array([3, 4]), double=np.array([2, 1], np.float32)))
    assert typed == [*"abdfgr", *"yy"], "scales are read where types and lists do not tell the shape"
    assert [found.shape(name) for name in "ceghrsy"] == [(2, 6), (2, 6), (6, 2), (6, 2), (3, 4), (3, 4), (4, 6)]
    assert not found.failures


def test_what_the_file_says_counts_for_operators_without_a_schema_only() -> None:
    text = "(float[2, 6] x) => (float[2, 6] y) { u = my.company.Odd(x) h = Relu(u) y = Relu(h) }"
    proto = net(text, imports=', "my.company" : 1')
    for name in ("u", "h"):
        proto.graph.value_info.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 6 if name == "u" else 9])
        )
    found = infer_sizes(proto)
    assert found.shape("u") == (2, 6)
    assert found.shape("h") == (2, 6), "what Relu says, not the file"


def test_results_that_depend_on_data_have_no_shape_whatever_the_file_says() -> None:
    proto = net("(float[3, 4] x, int64[2] sizes) => (float[K, L] y) { z = Reshape(x, sizes) y = Abs(z) }")
    proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 7]) for name in "zy")
    found = infer_sizes(proto)
    assert found.shape("z") is None
    assert found.shape("y") is None
    assert "depends on data" in found.failures["z"]


def test_lengths_that_data_decide_are_bound_each_to_a_size_of_its_own() -> None:
    text = """(float[3, 4] x, float[3, 4] z) => (int64[2, K] y) { a = NonZero(x) b = NonZero(x) c = NonZero(z)
        y = Add(a, b) }"""
    found = infer_sizes(net(text))
    shapes = [found.shape(name) for name in "abcy"]
    assert shapes == [(2, 47), (2, 47), (2, 53), (2, 47)]
    assert sorted(found.binding.values()) == [47, 53]


@pytest.mark.parametrize("opset", [11, 20])
def test_who_cuts_a_length_into_known_parts_knows_it(opset: int) -> None:
    cut = "a, b, c = Split(t, parts)" if opset > 12 else "a, b, c = Split<split=[1, 1, 1]>(t)"
    text = f"""(float[5] x) => (int64[1, 1] y) {{ found = NonZero(x) t = Transpose<perm=[1, 0]>(found) {cut}
        y = Identity(b) }}"""
    found = infer_sizes(net(text, opset, parts=np.array([1, 1, 1])) if opset > 12 else net(text, opset))
    assert [found.shape(name) for name in "abct"] == [(1, 1)] * 3 + [(47, 1)]


LARGE = np.int64(1 << 24)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = Expand(one, shape)", {"one": np.ones(1, np.float32), "shape": np.array([LARGE])}),
        ("y = ConstantOfShape(shape)", {"shape": np.array([LARGE])}),
        ("y = Tile(one, shape)", {"one": np.ones(1, np.float32), "shape": np.array([LARGE])}),
        ("y = Range(zero, end, step)", {"zero": np.int64(0), "end": LARGE, "step": np.int64(1)}),
        ("y = Max(one, row, column)", {
            "one": np.ones((4, 1, 1), int), "row": np.ones((2048, 1), int), "column": np.ones(2048, int)}),
    ],
)  # fmt: skip
def test_small_inputs_are_not_blown_up(body: str, inputs: dict[str, np.ndarray]) -> None:
    proto = net(f"(float[2] x) => (float[A] z, float[2] o) {{ {body} z = Relu(y) o = Relu(x) }}", **inputs)
    tracemalloc.start()
    try:
        found = infer_sizes(proto)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "y" not in found.values
    assert peak < 4e6


def test_larger_results_have_a_shape_and_no_value() -> None:
    size = sizes.SMALL_TENSOR
    found = infer_sizes(net("(float[2] x) => (float[2] o) { y = Concat<axis = 0>(a, a) o = Relu(x) }", a=np.ones(size)))
    assert "a" in found.values
    assert "y" not in found.values
    assert found.shape("y") == (2 * size,)


def test_random_values_are_none() -> None:
    text = "(float[2] x) => (float[2] y) { r = RandomNormalLike(c) s = Relu(c) y = Add(x, r) }"
    found = infer_sizes(net(text, c=np.ones(2, np.float32)))
    assert "s" in found.values
    assert "r" not in found.values
    assert found.shape("r") == (2,)


def test_values_are_computed_again_for_other_shapes() -> None:
    proto = dynamic()
    old = infer_at(proto, {"N": 5, "S": 6})
    types = {**old.types, "x": helper.make_tensor_type_proto(TensorProto.FLOAT, [5, 40, 6])}
    new = reevaluate(proto, old, types)
    assert new.values["s"].tolist() == [5, 40, 6]
    assert new.values["rest"].tolist() == [2, -1]
    assert old.values["s"].tolist() == [5, 4, 6]


def test_the_default_domain_has_two_names() -> None:
    imports = [helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("com.microsoft", 1)]
    assert opsets_of(onnx.ModelProto(opset_import=imports)) == {"ai.onnx": 17, "com.microsoft": 1, "": 17}
    assert opsets_of(onnx.ModelProto(opset_import=[helper.make_opsetid("", 20)]))[""] == 20
