"""Experts get copies of which masks let a router choose one: the student is exact, and every copy is in use."""

import re

import numpy as np
import pytest
from graphs import assert_close, net, run, weights, weighty
from moe import ALL, BIASED, DISPATCHES, LINEAR, LOOKED_UP, ROUTERS, TOP_1, C, D, E, H, T, apart, constants, feeds, moe
from onnx import numpy_helper

from onnx_net2net import inspect, load, verify, widen
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.operations.replay import steps_of

FORMS = {f"{router}; {dispatch}": (ROUTERS[router], DISPATCHES[dispatch])
         for router in ROUTERS for dispatch in DISPATCHES
         if dispatch == "looked up" or router == "softmax, top-k, normed"}  # fmt: skip


def grown(proto, size, **options):
    return widen(proto, sizes={"experts": size}, **options)


@pytest.mark.parametrize("size", ["2x", "3x", "+1", 6])
@pytest.mark.parametrize("form", FORMS)
def test_every_router_and_dispatch_computes_the_same_with_copies(form, size):
    proto = moe(*FORMS[form])
    widening = grown(proto, size)
    (change,) = widening.changes
    before = E // 2 if "groups" in form else E  # of these each group has copies
    wanted = {"2x": 2 * before, "3x": 3 * before, "+1": before + 1, 6: 6}[size]
    assert (change.old, change.new, change.map) == (before, wanted, "split")
    assert widening.exact
    for seed in range(3):
        assert_close(run(weighty(widening.student), feeds(seed))[0], run(proto, feeds(seed))[0], form, 1e-5)


def test_one_of_one_expert_is_chosen_too():
    proto = moe(TOP_1, LOOKED_UP, 1)
    assert_close(run(weighty(grown(proto, "3x").student), feeds())[0], run(proto, feeds())[0], "top-1", 1e-5)


def test_the_fused_operator_gets_masks_in_front_of_it():
    pytest.importorskip("onnxruntime", "1.23")
    text = (
        f"(float[{T}, {D}] x) => (float[{T}, {C}] y) {{ l = Gemm<transB=1>(x, router, bias) "
        'm = com.microsoft.MoE<k=2, activation_type="relu", normalize_routing_weights=1>(x, l, fc1, fc1_bias, fc2) '
        "y = MatMul(m, head) }"
    )
    known, rng = constants(), np.random.default_rng(1)
    stacks = {"fc1": (E, H, D), "fc1_bias": (E, H), "fc2": (E, D, H)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in stacks.items()}
    proto = net(text, imports=', "com.microsoft" : 1', **weights, **{n: known[n] for n in ("router", "bias", "head")})
    given = {"x": rng.normal(size=(T, D)).astype(np.float32)}
    widening = widen(proto, sizes={"experts": "2x"}, factor=1.5)
    assert_close(run(weighty(widening.student), given)[0], run(proto, given)[0], "MoE", 1e-4)
    assert {(change.old, change.new) for change in widening.changes} == {(E, 2 * E), (H, 18)}


def test_experts_and_widths_grow_together():
    proto = moe(*FORMS["groups; looked up"])
    widening = widen(proto, factor=1.5, sizes={"experts": "2x"})
    assert_close(run(weighty(widening.student), feeds())[0], run(proto, feeds())[0], "all", 1e-4)
    assert len(widening.changes) > 2


def test_a_grown_router_grows_again():
    proto = moe(*FORMS["softmax, top-k, normed; scattered"])
    once = weighty(grown(proto, "2x").student)
    twice = weighty(grown(once, "2x").student)
    assert_close(run(twice, feeds())[0], run(proto, feeds())[0], "twice", 1e-5)


def test_the_record_makes_the_student_again(tmp_path):
    proto = moe(*FORMS["softmax, top-k; looked up"])
    grown(proto, "2x").student.save(tmp_path / "student.onnx")
    assert verify(proto, tmp_path / "student.onnx").equivalent


def test_every_copy_gets_tokens():
    """Of the tokens of an expert each copy gets a good part, not only a few."""
    proto = moe(*FORMS["softmax, top-k; looked up"])
    student = weighty(grown(proto, "2x").student)
    del student.graph.output[:]
    student.graph.output.extend(net("() => (int64[24, 2] i) { i = Identity(k) }", k=np.zeros(1)).graph.output)
    places = np.concatenate([run(student, feeds(seed))[0] for seed in range(40)])
    counts = np.bincount(places.reshape(-1), minlength=2 * E).reshape(E, 2)
    assert (counts.min(1) > 0.15 * counts.sum(1)).all()


# --- Without masks -------------------------------------------------------------------------------------------

TOGETHER = {form: texts for form, texts in FORMS.items() if "sparse mixer" not in form}


@pytest.mark.parametrize("size", ["2x", "3x"])
@pytest.mark.parametrize("form", TOGETHER)
def test_copies_that_are_chosen_together_compute_the_same_without_a_node(form, size):
    proto = moe(*TOGETHER[form])
    widening = grown(proto, size, how="topk")
    assert not widening.inserted
    assert {node.op_type for node in weighty(widening.student).graph.node} == {n.op_type for n in proto.graph.node}
    assert_close(run(weighty(widening.student), feeds())[0], run(proto, feeds())[0], form, 1e-5)


def test_copies_that_are_chosen_together_differ():
    proto = moe(*FORMS["softmax, top-k; looked up"])
    down = weights(grown(proto, "2x", how="topk").student)["down"].reshape(E, 2, H, D)
    assert (np.abs(down[:, 0] - down[:, 1]) > 0).mean() > 0.99
    np.testing.assert_allclose(down.mean(1), constants()["down"], rtol=1e-5)
    same = weights(grown(proto, "2x", how="topk", spread=0.0).student)["down"].reshape(E, 2, H, D)
    np.testing.assert_array_equal(same[:, 0], same[:, 1])


def test_gates_that_nothing_divides_halve_what_experts_make():
    proto = moe(f"{LINEAR} p = Sigmoid(l) g, i = TopK<axis=-1>(p, k) ", LOOKED_UP)
    student = weighty(grown(proto, "2x", how="topk").student)
    assert_close(run(student, feeds())[0], run(proto, feeds())[0], "raw", 1e-5)


@pytest.mark.parametrize("size", ["2x", "3x", "+1"])
@pytest.mark.parametrize("router", ["top-k, softmax", "half precision", "sigmoid, bias", "groups", "biased sigmoid"])
def test_lifted_copies_are_never_chosen_until_their_bias_rises(router, size):
    biased = f"{BIASED} p = Sigmoid(l) g, i = TopK<axis=-1>(p, k) "
    proto = moe(ROUTERS.get(router, biased), LOOKED_UP)
    student = weighty(grown(proto, size, how="lift").student)
    assert_close(run(student, feeds())[0], run(proto, feeds())[0], router, 0)
    bias = next(t for t in student.graph.initializer if t.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 0, "bias"))
    assert np.abs(run(student, feeds())[0] - run(proto, feeds())[0]).max() > 1e-3


def test_a_router_without_a_bias_cannot_lift():
    with pytest.raises(RefusedError, match=r"has no bias that could keep copies from being chosen"):
        grown(moe(ROUTERS["softmax, top-k"], LOOKED_UP), "2x", how="lift")


def test_experts_that_are_chosen_together_need_as_many_copies_each():
    with pytest.raises(RefusedError, match="each expert needs equally many copies"):
        grown(moe(ROUTERS["softmax, top-k"], LOOKED_UP), "+1", how="topk")


@pytest.mark.parametrize(("router", "how"), [("softmax, top-k", "topk"), ("sigmoid, bias", "lift")])
def test_a_class_can_follow_both(router, how):
    proto = moe(ROUTERS[router], LOOKED_UP)
    widening = grown(proto, "2x", how=how, framework="torch")
    assert_close(run(weighty(widening.student), feeds())[0], run(proto, feeds())[0], how, 1e-5)


# --- Refusals ------------------------------------------------------------------------------------------------

CAPACITY = f"""iu = Unsqueeze(i, last) same = Equal(iu, counted) marks = Cast<to=1>(same)
    each = ReduceSum<keepdims=0>(marks, one) queue = CumSum(each, zero) late = Greater(queue, most)
    kept = Where(late, nothing, each) {ALL} m = Einsum<equation="ted,te->td">(f, kept) """


def test_capacity_is_refused_as_copies_have_queues_of_their_own():
    proto = moe(ROUTERS["softmax, top-k"], CAPACITY, zero=np.array(0), most=np.float32(5), nothing=np.float32(0))
    with pytest.raises(RefusedError, match=r"CumSum 'queue' counts or sums along the tokens"):
        grown(proto, "2x")


def test_places_that_are_returned_are_refused():
    proto = moe(ROUTERS["softmax, top-k"], LOOKED_UP)
    proto.graph.output.extend(net("() => (int64[24, 2] i) { i = Identity(k) }", k=np.zeros(1)).graph.output)
    with pytest.raises(RefusedError, match="output 'i' tells them apart"):
        grown(proto, "2x")


def test_what_would_compute_with_places_is_refused():
    also = "s = Add(i, zero_row) t = Cast<to=1>(s) n = ReduceSum<keepdims=1>(t, last) m = Add(m0, n)"
    with pytest.raises(RefusedError, match="Add 's' computes with the places of experts"):
        grown(moe(ROUTERS["softmax, top-k"], f"{LOOKED_UP.replace('m = ', 'm0 = ')} {also}"), "2x")


def test_experts_that_no_router_is_known_of_never_get_dead_copies():
    router = f"{LINEAR} v, j = TopK<axis=-1>(l, k) i = Mod(j, five) g = Softmax<axis=-1>(v) "
    proto = moe(router, LOOKED_UP, five=np.array(5))
    with pytest.raises(RefusedError, match="no router that chooses among them"):
        grown(proto, "2x")


def test_scores_of_no_linear_layer_are_refused():
    router = "l = Slice(x, start, end, last) v, i = TopK<axis=-1>(l, k) g = Softmax<axis=-1>(v) "
    proto = moe(router, LOOKED_UP, start=np.array([0]), end=np.array([E]))
    with pytest.raises(RefusedError):
        widen(proto, sizes={next(g.name for g in inspect(proto).groups if g.size == E): "2x"})


def test_sums_over_all_experts_that_no_mask_reaches_are_refused():
    router = f"{BIASED} v, i = TopK<axis=-1>(l, k) all = ReduceSum<keepdims=1>(l, last) g = Div(v, all) "
    with pytest.raises(RefusedError, match="'all' sums over all experts, chosen or not"):
        grown(moe(router, LOOKED_UP), "2x")


def test_a_class_has_no_masks():
    with pytest.raises(RefusedError, match="class"):
        grown(moe(ROUTERS["softmax, top-k"], LOOKED_UP), "2x", framework="torch")


def test_fewer_experts_are_no_growth():
    with pytest.raises(BadInputError, match="has 4 units already"):
        grown(moe(ROUTERS["softmax, top-k"], LOOKED_UP), 3)


# --- Soft routers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", ["Softmax<axis=-1>(l)", "Sigmoid(l)", "Relu(l)"])
def test_soft_mixtures_get_copies_that_share(gates):
    proto = moe(f"{BIASED} g = {gates} ", f'{ALL} m = Einsum<equation="ted,te->td">(f, g) ')
    for size in ("2x", "+3"):
        student = weighty(grown(proto, size).student)
        assert_close(run(student, feeds())[0], run(proto, feeds())[0], gates, 1e-4)


def test_experts_that_choose_tokens_choose_the_same_with_copies():
    chosen = f"""{LINEAR} p = Softmax<axis=-1>(l) t = Transpose<perm=[1, 0]>(p) v, i = TopK<axis=-1>(t, k)
        taken = Gather<axis=0>(x, i) hidden = MatMul(taken, up) a = Tanh(hidden) e0 = MatMul(a, down)
        gu = Unsqueeze(v, last) w8 = Mul(e0, gu) rows = Reshape(w8, by) j0 = Reshape(i, last) j = Unsqueeze(j0, last)
        none = ConstantOfShape(whole) m = ScatterND<reduction="add">(none, j, rows) """
    proto = moe(chosen, "", 5, by=np.array([-1, D]), whole=np.array([T, D]))
    for size in ("2x", "+3"):
        student = weighty(grown(proto, size).student)
        assert_close(run(student, feeds())[0], run(proto, feeds())[0], "expert choice", 1e-4)


def test_each_layer_has_one_dim_of_experts():
    for form in FORMS:
        roles = [group.role for group in inspect(moe(*FORMS[form])).groups]
        assert roles.count("experts") == 1, form


@pytest.mark.parametrize("size", ["2x", "3x", "+1", 6])
@pytest.mark.parametrize("kind", ["masked", "picked rows"])
@pytest.mark.parametrize("router", ["softmax, top-k, normed", "sigmoid, bias", "softmax, top-k"])
def test_experts_that_are_modules_get_copies_of_their_modules(router, kind, size):
    proto = moe(ROUTERS[router], apart(kind))
    widening = grown(proto, size)
    assert widening.exact
    student = weighty(widening.student)
    new = widening.changes[0].new
    assert sum(node.op_type == "Equal" for node in student.graph.node) == new
    assert sum(name.startswith("up") for name in weights(widening.student)) == new
    for seed in range(3):
        assert_close(run(student, feeds(seed))[0], run(proto, feeds(seed))[0], kind, 1e-5)


@pytest.mark.parametrize("kind", ["masked", "picked rows"])
def test_modules_get_copies_while_widths_grow_and_are_verified(kind):
    proto = moe(ROUTERS["softmax, top-k, normed"], apart(kind))
    widening = widen(proto, factor=1.5, sizes={"experts": "2x"})
    assert {(change.old, change.new) for change in widening.changes} >= {(E, 2 * E), (H, 18), (D, 15)}
    verify(proto, widening.student).raise_if_different()
    again = widen(weighty(widening.student), sizes={"experts": "+3"})
    verify(proto, again.student).raise_if_different()


def test_modules_are_ruled_out_by_a_bias_too():
    proto = moe(ROUTERS["sigmoid, bias"], apart("masked"))
    widening = grown(proto, "2x", how="lift")
    verify(proto, widening.student).raise_if_different()


@pytest.mark.parametrize("options", [{"how": "topk"}, {"how": "lift", "framework": "torch"}])
def test_modules_are_copied_in_the_graph_alone(options):
    with pytest.raises(RefusedError, match="separate modules get copies only without --for"):
        grown(moe(ROUTERS["sigmoid, bias"], apart("masked")), "2x", **options)


PARTED = [form for form in FORMS if not form.startswith("sparse mixer")]


@pytest.mark.parametrize("size", ["2x", "3x"])
@pytest.mark.parametrize("form", PARTED)
def test_experts_are_cut_into_parts_that_are_chosen_together(form, size):
    proto = moe(*FORMS[form])
    widening = grown(proto, size, how="granular")
    times = int(size[0])
    before = E // 2 if "groups" in form else E
    changes = {(change.old, change.new) for change in widening.changes}
    assert {(before, times * before), (H, H // times)} <= changes
    known, old = weights(widening.student), weights(weighty(load(proto)))
    assert known["up"].size == old["up"].size
    assert known["down"].size == old["down"].size
    for seed in range(3):
        assert_close(run(weighty(widening.student), feeds(seed))[0], run(proto, feeds(seed))[0], form, 1e-5)


def test_parts_grow_on_and_are_made_again_from_the_record(tmp_path):
    proto = moe(*FORMS["groups; looked up"])
    first = grown(proto, "2x", how="granular").student
    wider = widen(first, factor=1.5)
    verify(proto, wider.student).raise_if_different()
    masked = widen(first, sizes={"experts": "2x"})
    verify(proto, masked.student).raise_if_different()
    path = tmp_path / "student.onnx"
    first.save(path)
    assert verify(proto, path).equivalent
    assert steps_of(path)[0]["how"] == "granular"


@pytest.mark.parametrize(
    ("form", "size", "options", "reason"),
    [
        ("softmax, top-k, normed; looked up", "+1", {}, "each expert needs equally many copies"),
        ("softmax, top-k, normed; looked up", 20, {}, "12 is no multiple of 5"),
        ("softmax, top-k, normed; looked up", "2x", {"factor": 1.5}, "cannot grow while experts are cut into parts"),
        ("sparse mixer; looked up", "2x", {}, "chooses one expert, where copies tie"),
        ("groups; looked up", "2x", {"framework": "torch"}, "chooses groups of experts by a fixed number"),
    ],
)
def test_experts_that_cannot_be_cut_are_refused(form, size, options, reason):
    with pytest.raises(RefusedError, match=reason):
        grown(moe(*FORMS[form]), size, how="granular", **options)


def test_a_norm_over_the_units_of_an_expert_is_in_the_way():
    dispatch = LOOKED_UP.replace("a = Tanh(h)", "n = LayerNormalization<axis=-1>(h, gain) a = Tanh(n)")
    proto = moe(ROUTERS["softmax, top-k, normed"], dispatch, gain=np.ones(H, np.float32))
    with pytest.raises(RefusedError, match="cannot be cut into parts"):
        grown(proto, "2x", how="granular")


def interleaved(router):
    """Gate and value of each hidden unit lie beside one another, as GPT-OSS has them."""
    gated = "a0 = Slice(h, zero, far, last, two_) a1 = Slice(h, one, far, last, two_) s = Sigmoid(a0) a = Mul(a1, s)"
    dispatch = LOOKED_UP.replace("a = Tanh(h)", gated)
    up = np.random.default_rng(1).normal(size=(E, D, 2 * H)).astype(np.float32) / 3
    more = {"zero": np.array([0]), "two_": np.array([2]), "far": np.array([2**63 - 1])}
    return moe(ROUTERS[router], dispatch, up=up, **more)


@pytest.mark.parametrize("options", [{"how": "granular"}, {"how": "topk", "factor": 1.5}, {"factor": 2}])
def test_experts_whose_gate_and_value_are_interleaved(options):
    proto = interleaved("top-k, softmax")
    widening = grown(proto, "2x", **options)
    assert {change.new for change in widening.changes if change.old == H} == {
        H // 2 if options.get("how") == "granular" else H * options["factor"]
    }
    verify(proto, widening.student).raise_if_different()


def test_layers_that_share_one_dim_of_experts_are_cut_into_parts_together():
    """The gates of both are scattered into one constant."""
    none = "none = ConstantOfShape(flat_shape)"
    layer = ROUTERS["softmax, top-k, normed"] + DISPATCHES["scattered"].replace(none, "")
    other = re.sub(r"\b(l|p|v|i|total|g|scattered|hidden|a|e0|f|m|up|down|shift|router)\b", r"\1_", layer)
    named = {f"{name}_": constants()[name][::-1].copy() for name in ("up", "down", "shift", "router")}
    both = f"{none} {layer.replace('m = ', 'm1 = ')} {other} m = Add(m1, m_)"
    proto = moe(both, "", **named)
    assert [group.role for group in inspect(proto).groups].count("experts") == 1
    widening = grown(proto, "2x", how="granular")
    assert [change.new for change in widening.changes if change.old == H] == [H // 2] * 2
    verify(proto, widening.student).raise_if_different()


@pytest.mark.parametrize(("kind", "dtype"), [("double", np.float64), ("float16", np.float16)])
def test_masks_are_of_the_type_of_the_scores(kind, dtype):
    text = (
        f"({kind}[{T}, {D}] x) => ({kind}[{T}, {C}] y) {{ l = MatMul(x, router) p = Softmax<axis=-1>(l) "
        f"best = ReduceMax<keepdims=1>(p, last) i = ArgMax<axis=-1, keepdims=1>(p) g = Identity(best) {LOOKED_UP} "
        "y = MatMul(m, head) }"
    ).replace("m = ReduceSum<keepdims=0>(w8, one)", "m = Squeeze(w8, one)")
    known = constants() | {"router": constants()["router"].T}
    words = set(re.findall(r"\w+", text))
    floats = {n: v.astype(dtype) if v.dtype == np.float32 else v for n, v in known.items() if n in words}
    proto = net(text, **floats)
    verify(proto, grown(proto, "2x").student).raise_if_different()
