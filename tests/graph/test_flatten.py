"""Bodies of If, Loop and Scan and model-local functions: analysed and grown like the graph around them."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnx_net2net import inspect, load, verify, widen
from onnx_net2net.graph.decisions import DOMAIN
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.history import HISTORY
from onnx_net2net.model.protos import scopes

FACTORS = (1.37, 2)


def net(text, opset=18, ir=8, imports="", functions="", **weights):
    proto = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]> g {text} {functions}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def draw(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def contents(model):
    with load(model).on_disk() as path:
        return onnx.load(path)


def body_constants(proto, **weights):
    """Move weights into the body of the first node that has bodies, each as an initializer of the body it names."""
    for key, value in weights.items():
        attribute, name = key.split("__")
        node = next(node for node in proto.graph.node if any(a.HasField("g") for a in node.attribute))
        body = next(a.g for a in node.attribute if a.name == attribute)
        body.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return proto


def widen_exactly(teacher, **options):
    widening = widen(teacher, **options)
    assert widening.exact
    verify(teacher, widening.student).raise_if_different()
    student = contents(widening.student)
    onnx.checker.check_model(student, full_check=True)
    assert DOMAIN not in {entry.domain for entry in student.opset_import}
    assert DOMAIN not in {node.domain for scope in scopes(student) for node in scope.node}
    return widening


def reasons(model):
    return {group.name: group.reason for group in inspect(model).groups}


def grown(widening):
    return {change.name: (change.old, change.new) for change in widening.changes if change.new > change.old}


def structure(proto):
    """Operators, tensor names and constants' names of every graph and body, in order."""
    return [
        (
            [(node.op_type, node.name, list(node.input), list(node.output)) for node in scope.node],
            [value.name for value in (*scope.input, *scope.output)],
            sorted(tensor.name for tensor in scope.initializer),
        )
        for scope in scopes(proto)
    ]


# --- If ------------------------------------------------------------------------------------------------------


def branches():
    """Two branches with weights of their own, whose tensors have the same names."""
    return body_constants(
        net(
            """(float[N, 8] x, bool c) => (float[N, 4] y) {
            h = MatMul(x, a) r = Relu(h)
            q = If(c) <then_branch = t () => (float[N, 12] o) { m = MatMul(r, w) o = Relu(m) },
                       else_branch = e () => (float[N, 12] p) { m = MatMul(r, w) k = Tanh(m) p = Add(k, b) }>
            y = MatMul(q, d) }""",
            a=draw(8, 16),
            d=draw(12, 4),
        ),
        then_branch__w=draw(16, 12),
        else_branch__w=draw(16, 12, seed=1),
        else_branch__b=draw(12),
    )


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_both_branches_of_an_if_grow(factor, map):
    widening = widen_exactly(branches(), factor=factor, map=map)
    assert sorted(old for old, _ in grown(widening).values()) == [12, 16]
    assert widening.covered > 0.99


def test_nothing_but_shapes_changes():
    teacher = branches()
    student = contents(widen(teacher, factor=2).student)
    assert structure(student) == structure(teacher)
    (node,) = (node for node in student.graph.node if node.op_type == "If")
    assert {a.name: [list(t.dims) for t in a.g.initializer] for a in node.attribute} == {
        "then_branch": [[32, 24]],
        "else_branch": [[32, 24], [24]],
    }
    assert [a.g.output[0].type.tensor_type.shape.dim[1].dim_value for a in node.attribute] == [24, 24]


def test_a_model_that_is_opened_and_closed_is_the_same():
    teacher = branches()
    model = load(teacher)
    opened = open_bodies(model)
    assert not any(a.HasField("g") for node in opened.model.proto.graph.node for a in node.attribute)
    closed = opened.close(Graph(opened.model).finish())
    assert structure(closed.proto) == structure(model.proto)


def test_large_weights_in_constant_nodes_of_nested_branches_grow():
    teacher = net(
        """(float[N, 8] x, bool c, bool e) => (float[N, 4] y) {
        h = MatMul(x, a)
        q = If(c) <then_branch = t () => (float[N, 96] o) {
                       o = If(e) <then_branch = tt () => (float[N, 96] p) { p = MatMul(h, w) },
                                  else_branch = te () => (float[N, 96] p2) { k = Relu(h) p2 = MatMul(k, w) }> },
                   else_branch = e () => (float[N, 96] s) { s = MatMul(h, w) }>
        y = MatMul(q, d) }""",
        a=draw(8, 64),
        d=draw(96, 4),
        w=draw(64, 96),
    )
    (node,) = (node for node in teacher.graph.node if node.op_type == "If")
    outer = next(a.g for a in node.attribute if a.name == "else_branch")
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(draw(64, 96, seed=3), "v"))
    outer.node.insert(0, constant)
    outer.node[1].input[1] = "v"
    widening = widen_exactly(teacher, factor=1.37)
    assert sorted(grown(widening).values()) == [(64, 88), (96, 132)]


def test_an_if_that_picks_a_weight_grows_both():
    teacher = net(
        """(float[N, 8] x, bool c) => (float[N, 4] y) {
        h = MatMul(x, a) r = Relu(h)
        q = If(c) <then_branch = t () => (float[16, 6] o) { o = Identity(one) },
                   else_branch = e () => (float[16, 6] p) { p = Identity(two) }>
        i = MatMul(r, q) s = Relu(i) y = MatMul(s, d) }""",
        a=draw(8, 16),
        one=draw(16, 6),
        two=draw(16, 6, seed=1),
        d=draw(6, 4),
    )
    assert len(grown(widen_exactly(teacher, factor=1.37))) == 2


def test_sizes_and_inserted_nodes_find_their_place_inside():
    teacher = net(
        """(float[N, 8] x, bool c) => (float[N, 4] y) {
        h = MatMul(x, a) r = Relu(h) l = MatMul(x, a2)
        q = If(c) <then_branch = t () => (float[N, 1] o) {
                       m = Mul(r, l) axes = Constant<value_ints = [1]>() o = ReduceSum(m, axes) },
                   else_branch = e () => (float[N, 1] p) {
                       s = Constant<value_ints = [-1, 4, 4]>() z = Reshape(r, s)
                       both = Constant<value_ints = [1, 2]>() f = ReduceSum<keepdims = 0>(z, both)
                       i = Constant<value_ints = [1]>() p = Unsqueeze(f, i) }>
        y = MatMul(q, d) }""",
        a=draw(8, 16),
        a2=draw(8, 16, seed=2),
        d=draw(1, 4),
    )
    assert len(grown(widen_exactly(teacher, factor=2))) >= 1


@pytest.mark.parametrize("factor", FACTORS)
def test_an_axis_that_is_squeezed_if_its_dynamic_size_is_1_keeps_no_other_from_growing(factor):
    teacher = net(
        """(float[N, 6, T] x) => (float[N, 4] y) {
        h = Conv<kernel_shape = [5], strides = [9]>(x, a) s = Shape(h) i = Constant<value_int = 2>() n = Gather(s, i)
        u = Constant<value_int = 1>() c = Equal(n, u) m = Constant<value_ints = [-1]>()
        q = If(c) <then_branch = t () => (float[N, 16] o) { o = Squeeze(h, m) },
                   else_branch = e () => (float[N, 16, U] p) { p = Identity(h) }>
        r = Relu(q) y = Gemm(r, b) }""",
        a=draw(16, 6, 5),
        b=draw(16, 4),
    )
    for attribute in next(node for node in teacher.graph.node if node.op_type == "If").attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    assert widen_exactly(teacher, factor=factor).covered == 1


def test_branches_of_different_ranks_keep_what_they_give():
    teacher = net(
        """(float[N, 8] x, bool c) => (float y) {
        h = MatMul(x, a) r = Relu(h) i = MatMul(r, b)
        q = If(c) <then_branch = t () => (float o) { o = Relu(i) },
                   else_branch = e () => (float p) { n = Constant<value_ints = [0]>() p = Unsqueeze(i, n) }>
        y = Neg(q) }""",
        a=draw(8, 16),
        b=draw(16, 6),
    )
    del teacher.graph.output[0].type.tensor_type.shape.dim[:]
    teacher.graph.output[0].type.tensor_type.ClearField("shape")
    for attribute in teacher.graph.node[3].attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    found = reasons(teacher)
    assert found["a"] is None
    assert found["b"] == "If 'q' has branches that give other shapes"
    widening = widen(teacher, factor=2)
    verify(teacher, widening.student).raise_if_different()


# --- Ifs that always take one branch -------------------------------------------------------------------------


def squeezing(condition, dynamic="N"):
    """What torch exports for a Squeeze of an axis of unknown size."""
    return net(
        f"""(float[{dynamic}, 1, 8] x, float[{dynamic}] u) => (float[{dynamic}, 4] y) {{
        h = MatMul(x, a) {condition}
        q = If(c) <then_branch = t () => (float[{dynamic}, 16] o) {{ o = Squeeze(h, one) }},
                   else_branch = e () => (float[{dynamic}, 1, 16] p) {{ p = Identity(h) }}>
        y = MatMul(q, d) }}""",
        a=draw(8, 16),
        d=draw(16, 4),
        one=np.array([1]),
        place=np.array(1),
        unit=np.array(1),
    )


def test_an_if_on_a_size_that_is_static_is_folded():
    teacher = squeezing("s = Shape(h) n = Gather(s, place) c = Equal(n, unit)")
    widening = widen_exactly(teacher, factor=1.37)
    assert list(grown(widening).values()) == [(16, 22)]
    student = contents(widening.student)
    assert "If" not in {node.op_type for node in student.graph.node}
    (record,) = json.loads(next(e.value for e in student.metadata_props if e.key == HISTORY))
    assert record["folded Ifs"] == ["q"]


def test_an_if_on_a_size_that_may_change_is_kept():
    model = squeezing("s = Shape(h) z = Constant<value_int = 0>() n = Gather(s, z) c = Greater(n, unit)")
    opened = open_bodies(load(model))
    assert not opened.folded
    assert (DOMAIN, "If") in {(node.domain, node.op_type) for node in opened.model.proto.graph.node}
    assert widen_exactly(model, factor=2).covered == 1  # verified with a batch of 1, too, which takes the other branch


def test_an_if_on_a_constant_that_can_be_fed_is_kept():
    teacher = branches()
    teacher.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    assert not open_bodies(load(teacher)).folded
    student = contents(widen_exactly(teacher, factor=2).student)
    assert "If" in {node.op_type for node in student.graph.node}
    del teacher.graph.input[1]
    assert open_bodies(load(teacher)).folded == ("q",)
    widen_exactly(teacher, factor=2)


# --- Loop and Scan -------------------------------------------------------------------------------------------


def loop(norm="", count="3", **weights):
    """A residual Loop with a hidden dim inside; it also stacks what it computes."""
    n, state = ("LayerNormalization(s, g, b)", "n") if norm else ("Relu(s)", "n")
    return net(
        f"""(float[N, 8] x) => (float[N, 4] y, float[K, N, 4] z) {{
        start = MatMul(x, a) m = Constant<value_int = {count}>() t = Constant<value = bool {{1}}>()
        final, all = Loop(m, t, start) <body = body (int64 i, bool c, float[N, 16] s)
            => (bool co, float[N, 16] so, float[N, 16] st) {{
            co = Identity(c) n = {n} h = MatMul({state}, up) r = Relu(h) d = MatMul(r, down)
            so = Add(s, d) st = Tanh(so) }}>
        y = MatMul(final, out) z = MatMul(all, out) }}""",
        **{
            "a": draw(8, 16),
            "up": draw(16, 12) / 2,
            "down": draw(12, 16) / 2,
            "out": draw(16, 4),
            **({"g": 1 + draw(16) / 9, "b": draw(16, seed=4)} if norm else {}),
        },
    )


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("map", ["replicate", "zero_out"])
def test_the_state_of_a_loop_and_what_is_inside_grow(factor, map):
    widening = widen_exactly(loop(), factor=factor, map=map)
    assert sorted(old for old, _ in grown(widening).values()) == [12, 16]
    assert widening.covered > 0.99


def test_a_normalised_state_grows_to_any_width():
    assert sorted(grown(widen_exactly(loop(norm="layer"), factor=2)).values()) == [(12, 24), (16, 32)]
    assert sorted(grown(widen_exactly(loop(norm="layer"), factor=1.37)).values()) == [(12, 16), (16, 22)]
    kept = widen_exactly(loop(norm="layer"), factor=1.37, fill_norms=False)
    assert list(grown(kept).values()) == [(12, 16)]


def test_how_often_a_loop_runs_may_depend_on_data_and_never_on_a_width():
    teacher = net(
        """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) s = Shape(h) m = Gather(s, place) t = Constant<value = bool {1}>()
        f = Loop(m, t, h) <body = body (int64 i, bool c, float[N, 6] s1) => (bool co, float[N, 6] so) {
            lim = Constant<value_int = 4>() co = Less(i, lim) e = MatMul(s1, w) so = Tanh(e) }>
        y = MatMul(f, out) }""",
        a=draw(8, 6),
        w=draw(6, 6) * 2,
        out=draw(6, 4),
        place=np.array(1),
    )
    assert list(grown(widen_exactly(teacher, factor=2)).values()) == [(6, 12)]


def test_a_loop_whose_state_changes_its_shape_is_not_looked_into():
    teacher = net(
        """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) m = Constant<value_int = 3>() t = Constant<value = bool {1}>() e = Slice(h, no, no, no1)
        f = Loop(m, t, e) <body = body (int64 i, bool c, float[K, 6] s) => (bool co, float[L, 6] so) {
            co = Identity(c) so = Concat<axis = 0>(s, h) }>
        k = ReduceSum<keepdims = 1>(f, no) r = Add(k, h) p = MatMul(x, b) q = Relu(p) z = MatMul(q, b2)
        y1 = MatMul(r, out) y = Add(y1, z) }""",
        a=draw(8, 6),
        b=draw(8, 10),
        b2=draw(10, 4),
        out=draw(6, 4),
        no=np.array([0]),
        no1=np.array([0]),
    )
    assert reasons(teacher)["a"] == "Loop 'f' has a body, which is not looked into"
    widening = widen(teacher, factor=2)
    verify(teacher, widening.student).raise_if_different()
    assert grown(widening) == {"b": (10, 20)}


@pytest.mark.parametrize("factor", FACTORS)
def test_a_scan_grows(factor):
    teacher = net(
        """(float[N, T, 8] x) => (float[N, 4] y, float[N, T, 4] z) {
        q = MatMul(x, a) r = Relu(q) zero = ConstantOfShape<value = float[1] {0.0}>(shape)
        n = Shape<start = 0, end = 1>(x) full = Concat<axis = 0>(n, width) start = Expand(init, full)
        final, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = body (float[N, 6] s, float[N, 16] e) => (float[N, 6] so, float[N, 6] st) {
            h = MatMul(s, w) i = MatMul(e, v) j = Add(h, i) so = Tanh(j) st = Identity(so) }> (start, r)
        y = MatMul(final, out) z = MatMul(all, out) }""",
        a=draw(8, 16),
        w=draw(6, 6),
        v=draw(16, 6),
        out=draw(6, 4),
        init=draw(1, 6),
        width=np.array([6]),
        shape=np.array([1]),
    )
    assert sorted(old for old, _ in grown(widen_exactly(teacher, factor=factor)).values()) == [6, 16]


# --- Functions -----------------------------------------------------------------------------------------------


def test_functions_are_inlined_and_the_history_says_so():
    teacher = net(
        """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) r = corpus.fn.Swish(h) y = MatMul(r, d) }""",
        imports=', "corpus.fn" : 1',
        functions="""<domain: "corpus.fn", opset_import: ["" : 18]>
            Swish (v) => (w) { s = Sigmoid(v) w = Mul(v, s) }""",
        a=draw(8, 16),
        d=draw(16, 4),
    )
    student = contents(widen_exactly(teacher, factor=1.37).student)
    assert not student.functions
    (record,) = json.loads(next(e.value for e in student.metadata_props if e.key == HISTORY))
    assert record["inlined functions"] == ["corpus.fn::Swish"]


@pytest.mark.parametrize("factor", FACTORS)
def test_what_a_softmax_in_a_branch_needs_stands_in_the_branch(factor):
    teacher = net(
        """(float[N, 8] x, bool c) => (float[N, 4] y) {
        h = MatMul(x, a)
        q = If(c) <then_branch = t () => (float[N, 16] o) { m = Neg(h) o = Softmax(m) },
                   else_branch = e () => (float[N, 16] p) { p = Relu(h) }>
        y = MatMul(q, d) }""",
        a=draw(8, 16),
        d=draw(16, 4),
    )
    assert widen_exactly(teacher, factor=factor).covered == 1
