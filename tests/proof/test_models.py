"""Verification: equal models agree, different ones are told apart, and the first difference is named."""

import json
import os
from functools import partial

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.operations.verify import verify
from onnx_net2net.operations.widen.widen import widen
from onnx_net2net.proof import cases
from onnx_net2net.proof.compare import Typical, compare
from onnx_net2net.run.session import Runner

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MLP = "g (float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w1) r = Relu(h) m = MatMul(r, w2) y = Add(m, b) }"


def model(text, **weights):
    proto = parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return proto


def weights(dtype=np.float32, **changes):
    rng = np.random.default_rng(3)
    made = {"w1": rng.standard_normal((8, 16)), "w2": rng.standard_normal((16, 4)), "b": rng.standard_normal(4)}
    return {name: value.astype(dtype) for name, value in {**made, **changes}.items()}


def mlp(**changes):
    return model(MLP, **weights(**changes))


def changed(name, by):
    value = weights()[name].astype(np.float64)
    value.flat[1] += by
    return mlp(**{name: value})


def test_a_model_equals_itself(monkeypatch):
    monkeypatch.setattr(cases, "QUICK_SECONDS", 0)
    result = verify(mlp(), mlp())
    assert result.equivalent
    assert result.diverges_at is None
    assert result.provider == "CPUExecutionProvider"
    assert result.runs == 3
    assert {binding["N"] for binding in result.bindings} == {1, 2, 3}
    (report,) = result.outputs
    assert report.name == "y"
    assert report.max_abs == report.different_fraction == 0
    assert 0 < report.noise < report.tolerance
    result.raise_if_different()
    assert str(result).startswith("equivalent in 3 runs on CPU")
    assert verify(mlp(), mlp(), samples=7).runs == 7


def test_hidden_units_in_another_order_are_within_the_noise():
    order = np.random.default_rng(0).permutation(16)
    made = weights()
    assert verify(mlp(), mlp(w1=made["w1"][:, order], w2=made["w2"][order])).equivalent


@pytest.mark.parametrize(("name", "first"), [("w1", "h"), ("w2", "m"), ("b", "y")])
def test_a_changed_weight_is_found_and_the_first_tensor_named(name, first):
    result = verify(mlp(), changed(name, 1e-3))
    assert not result.equivalent
    assert result.diverges_at == first
    (report,) = result.outputs
    assert 0 < report.different_fraction <= 1
    assert report.ratio > 20
    with pytest.raises(NotEquivalentError, match=f"first tensor to differ is '{first}'") as caught:
        result.raise_if_different()
    assert "\n" not in str(caught.value)


def test_the_smallest_changes_are_noise():
    assert verify(mlp(), changed("w1", 1e-7)).equivalent
    assert not verify(mlp(), changed("w1", 1e-4)).equivalent


def test_tolerances_given_by_the_user():
    student = changed("b", 1e-3)
    assert verify(mlp(), student, atol=2e-3).equivalent
    assert not verify(mlp(), student, atol=5e-4).equivalent
    assert verify(mlp(), mlp(b=weights()["b"] * 1.0001, w2=weights()["w2"] * 1.0001), rtol=1e-3).equivalent
    assert not verify(mlp(), student, rtol=0, atol=0).equivalent
    assert verify(mlp(), mlp(), rtol=0, atol=0).equivalent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rtol": float("nan")}, "rtol must be a number of at least 0, not nan"),
        ({"rtol": -1.0}, "rtol must be a number of at least 0, not -1.0"),
        ({"atol": float("nan")}, "atol must be"),
        ({"atol": -1e-9}, "atol must be"),
        ({"atol": float("inf")}, "atol must be"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"seed": -1}, "the seed must be at least 0, not -1"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(BadInputError, match=words):
        verify(mlp(), changed("b", 1), **options)


def test_more_samples_are_run_while_they_are_quick(monkeypatch):
    monkeypatch.setattr(cases, "QUICK_SECONDS", 1000)
    assert verify(mlp(), mlp()).runs == cases.MOST_SAMPLES
    assert verify(mlp(), mlp(), samples=30).runs == 30
    assert verify(mlp(), mlp(), data={"x": np.ones((5, 8), np.float32)}).runs == 1


def test_costly_models_are_run_less_often_and_the_verdict_says_so(monkeypatch):
    runs = []
    run = Runner.__call__
    monkeypatch.setattr(Runner, "__call__", lambda *arguments: runs.append(1) or run(*arguments))
    monkeypatch.setattr(cases, "QUICK_SECONDS", 0)
    assert verify(mlp(), mlp()).seconds == 0
    usual = len(runs)
    runs.clear()
    monkeypatch.setattr(cases, "COSTLY_SECONDS", -1.0)
    result = verify(mlp(), mlp())
    assert (result.runs, len(result.bindings)) == (2, 2)
    assert result.seconds > 0
    assert str(result).startswith("equivalent in 2 runs on CPU (few, as each takes 0.0 s; --samples): at worst")
    assert len(runs) < usual / 2
    assert not verify(mlp(), changed("w1", 1e-4)).equivalent
    asked = verify(mlp(), mlp(), samples=4)
    assert (asked.runs, asked.seconds) == (4, 0)


@pytest.mark.parametrize("noise", ["RandomNormalLike(m)", "RandomUniformLike(m)"])
def test_a_random_teacher_is_none(noise):
    text = MLP.replace("y = Add(m, b)", f"a = Add(m, b) z = {noise} y = Add(a, z)")
    for data in (None, {"x": np.ones((5, 8), np.float32)}):
        with pytest.raises(BadInputError, match=r"^the teacher is random: two runs on the same inputs differ$"):
            verify(model(text, **weights()), mlp(), data=data)


def test_outputs_with_numbers_that_are_none_are_not_random(recwarn):
    teacher = model("g (float[4] x) => (float[4] s, float[4] y) { s = Sqrt(x) y = Div(s, zero) }", zero=np.float32(0))
    data = {"x": np.array([-1, 0, 1, 2], np.float32)}
    assert verify(teacher, teacher, data=data).equivalent
    assert not [warning for warning in recwarn if "atol" in str(warning.message)]


@pytest.mark.parametrize(("act", "value"), [("Sigmoid", -40), ("Tanh", 1e-20), ("Softmax", -1e30)])
def test_bounded_outputs_are_as_noisy_as_numbers_near_one_however_small_they_are(act, value):
    """Most elements are far below the float spacing at 1, and so may be the errors that they have inside."""
    head = f"g (float[2, 8] x) => (float[2, 7] y) {{ a = {act}(x) s = Slice(a, one, end, one) "
    x = np.full((2, 8), value, np.float32)
    x[:, 0] = 0

    def made(tail, by=0.0):
        return model(f"{head} {tail} }}", one=np.array([1]), end=np.array([8]), shift=np.full(7, by, np.float32))

    def agrees(teacher, by):
        return verify(teacher, made("y = Add(s, shift)", by), data={"x": x}).equivalent

    assert agrees(made("y = Identity(s)"), 1e-7)
    assert not agrees(made("y = Identity(s)"), 1e-4)
    assert not agrees(made("y = Add(s, shift)"), 1e-7)  # a sum is not bounded, and has no such floor


def test_tolerance_grows_with_the_teachers_noise():
    calm = "g (float[2, 64] x) => (float[2, 64] y) { y = Tanh(x) }"
    wild = "g (float[2, 64] x) => (float[2, 64] y) { p = Add(x, big) q = Sub(p, big) y = Tanh(q) }"
    quiet, loud = (verify(m, m).outputs[0] for m in (model(calm), model(wild, big=np.full(64, 1000, np.float32))))
    assert loud.noise > 50 * quiet.noise
    assert loud.tolerance > 50 * quiet.tolerance


def test_noise_never_excuses_everything():
    steps = "g (float[2, 64] x) => (float[2, 64] y) { p = Mul(x, big) y = Sin(p) }"
    teacher, student = model(steps, big=np.float32(1e6)), model(steps, big=np.float32(-1e6))
    result = verify(teacher, student)
    assert not result.equivalent
    assert result.outputs[0].tolerance <= 0.01


def test_whole_number_inputs_have_noise_too():
    text = "g (int64[N, S] ids) => (float[N, S, 8] y) { e = Gather(table, ids) p = Add(e, big) y = Sub(p, big) }"
    table = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    teacher = model(text, table=table, big=np.full(8, 1000, np.float32))
    (report,) = verify(teacher, teacher).outputs
    assert report.noise > 1e-5


def test_a_student_that_is_wrong_for_larger_batches_only():
    tail = "s = Shape(x) n = Gather(s, zero) o = Equal(n, one) w = Where(o, nought, eps) y = Add(x, w)"
    text = f"g (float[batch, 3] x) => (float[batch, 3] y) {{ {tail} }}"
    numbers = {"zero": np.int64(0), "one": np.int64(1), "nought": np.float32(0)}
    teacher, student = (model(text, eps=np.float32(eps), **numbers) for eps in (0, 0.1))
    assert not verify(teacher, student).equivalent
    assert verify(teacher, student, data={"x": np.ones((1, 3), np.float32)}).equivalent
    assert not verify(teacher, student, data={"x": np.ones((2, 3), np.float32)}).equivalent


def test_sizes_that_only_strided_networks_take():
    text = """g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) {
        d = AveragePool<kernel_shape=[8,8], strides=[8,8]>(x) u = Resize<mode="nearest">(d, , scales) y = Add(x, u) }"""
    unet = model(text, scales=np.array([1, 1, 8, 8], np.float32))
    result = verify(unet, unet)
    assert len(result.bindings) == 3
    assert all(size % 8 == 0 for binding in result.bindings for axis, size in binding.items() if axis != "N")


def test_integer_outputs():
    text = "g (float[8, 50] x) => (int64[8] y) { s = Mul(x, sign) y = ArgMax<axis=1, keepdims=0>(s) }"
    teacher, student = model(text, sign=np.float32(1)), model(text, sign=np.float32(-1))
    assert verify(teacher, teacher).equivalent
    result = verify(teacher, student)
    assert result.outputs[0].different_fraction > 0.5
    assert result.outputs[0].noise == 0
    assert result.diverges_at == "s"


def test_not_a_number_must_stay_in_place():
    text = "g (float[9, 9] x) => (float[9, 9] y) { s = Add(x, shift) a = Sqrt(s) y = Div(one, a) }"
    # Sqrt is behind an addition, so that negative numbers come through.
    teacher = model(text, shift=np.float32(0), one=np.float32(1))
    assert verify(teacher, teacher).equivalent
    result = verify(teacher, model(text, shift=np.float32(0.3), one=np.float32(1)), atol=1e9)
    assert not result.equivalent
    nothing = model("g (float[3] x) => (float[3] y) { m = Add(x, low) y = Log(m) }", low=np.float32(-1e6))
    with pytest.raises(BadInputError, match="nothing can be compared"):
        verify(nothing, nothing)


def test_infinities_are_named_where_nothing_else_differs():
    teacher, student = (model("g (float[3] x) => (float[3] y) { y = Add(x, c) }", c=np.float32(c))
                        for c in ([np.inf, 0, 1], [0, 0, 1]))  # fmt: skip
    assert "output 'y' is finite in one of the models only in 33.33% of its elements" in str(verify(teacher, student))


def test_half_precision_and_doubles():
    for onnx_type, dtype, least in (("float16", np.float16, 1e-4), ("double", np.float64, 0)):
        text = MLP.replace("float[", f"{onnx_type}[")
        teacher = model(text, **weights(dtype))
        result = verify(teacher, teacher)
        assert result.equivalent
        assert result.outputs[0].max_rel == 0
        assert result.outputs[0].noise > least
        made = weights(dtype)
        made["b"] = made["b"] + np.asarray(0.5, dtype)
        assert not verify(teacher, model(text, **made)).equivalent


def test_bfloat16():
    text = "g (bfloat16[N, 8] x) => (bfloat16[N, 8] y) { f = Cast<to=1>(x) t = Mul(f, k) y = Cast<to=16>(t) }"
    teacher = model(text, k=np.float32(2))
    assert verify(teacher, teacher).equivalent
    assert not verify(teacher, model(text, k=np.float32(2.2))).equivalent
    data = {"x": np.ones((2, 8), ml_dtypes.bfloat16)}
    assert verify(teacher, teacher, data=data).equivalent


def test_sequences_and_several_outputs():
    text = "g (float[4, 6] x) => (seq(float[2, 6]) y, float[4, 6] z) { z = Mul(x, k) y = SplitToSequence(z, n) }"
    teacher, student = (model(text, k=np.float32(k), n=np.int64(2)) for k in (1, 2))
    result = verify(teacher, teacher)
    assert [report.name for report in result.outputs] == ["y[0]", "y[1]", "z"]
    assert not verify(teacher, student).equivalent


def test_outputs_of_another_size():
    text = "g (float[4] x) => (float[n] y) { y = Concat<axis=0>(x, tail) }"
    teacher, student = (model(text, tail=np.ones(n, np.float32)) for n in (2, 3))
    result = verify(teacher, student)
    assert not result.equivalent
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["outputs"][0]["max_abs"] is None


def test_the_record_is_json():
    record = verify(mlp(), changed("w1", 0.1)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["equivalent"] is False
    assert record["diverges_at"] == "h"
    assert set(record) == {
        *("equivalent", "provider", "runs", "bindings", "outputs", "diverges_at", "unmoved", "departure", "seconds")
    }


def test_the_same_seed_gives_the_same_numbers():
    student = changed("w1", 1e-3)
    assert verify(mlp(), student, seed=5) == verify(mlp(), student, seed=5)
    assert verify(mlp(), student, seed=5) != verify(mlp(), student, seed=6)


CHOOSING = """g (int64[N, 20] ids) => (float[N, 20, 6] y) {
    e = Gather(table, ids)
    s = MatMul(e, gate)
    row = Squeeze(s, last)
    moved = Mul(row, ramp)
    best, places = TopK <axis = 1> (moved, two)
    zeros = Mul(row, nothing)
    ones = Exp(zeros)
    few = Slice(ones, from, two, dim)
    mask = ScatterElements <axis = 1> (zeros, places, few)
    open = Unsqueeze(mask, last)
    chosen = Mul(e, open)
    y = Add(e, chosen)
}"""


def choosing(ramp, error=0.0, gate=1):
    """Of 20 tokens two get more; there are 12 kinds of tokens, so that some are equal."""
    rng = np.random.default_rng(3)
    table, gate = rng.standard_normal((12, 6)).astype(np.float32), gate * rng.standard_normal((6, 1)).astype(np.float32)
    lists = {"last": [-1], "two": [2], "from": [0], "dim": [1]}
    ints = {name: np.array(value, np.int64) for name, value in lists.items()}
    scale = (1 + ramp * np.arange(20)).astype(np.float32)
    return model(CHOOSING, table=table + error, gate=gate, ramp=scale, nothing=np.float32(0), **ints)


def test_which_of_equal_scores_is_chosen_is_no_error():
    for seed in range(4):
        assert verify(choosing(0), choosing(3e-7), seed=seed).equivalent


def test_inputs_on_which_scores_tie_are_left_out_unless_all_do():
    some, every = verify(choosing(0), choosing(0)), verify(choosing(0, gate=0), choosing(0, gate=0))
    assert some.equivalent
    assert every.equivalent
    assert some.runs < every.runs == 24
    assert not verify(choosing(0, gate=0), choosing(0, np.float32(1e-2), gate=0)).equivalent


def test_an_error_beside_choices_is_one():
    assert not verify(choosing(0), choosing(0, np.float32(1e-3))).equivalent
    assert not verify(choosing(0), choosing(-0.5)).equivalent  # others are chosen


def test_grown_tensors_are_compared_where_the_teachers_units_are():
    made = weights()
    wide = {"w1": made["w1"][:, [*range(16), 3]], "w2": np.concatenate([made["w2"], made["w2"][3:4]]), "b": made["b"]}
    wide["w2"][3] /= 2
    wide["w2"][16] /= 2
    places = {"h": [None, np.arange(16)], "r": [None, np.arange(16)], "m": [None, None], "y": [None, None]}
    assert verify(mlp(), model(MLP, **wide), embed=places.get).equivalent
    wide["w1"] = wide["w1"].copy()
    wide["w1"][0, 2] += 1
    assert verify(mlp(), model(MLP, **wide)).diverges_at == "h"
    assert verify(mlp(), model(MLP, **wide), embed=places.get).diverges_at == "h"
    places["h"] = None
    assert verify(mlp(), model(MLP, **wide), embed=places.get).diverges_at == "r"


def test_a_deep_model_is_searched_in_parts():
    steps = " ".join(f"x{i + 1} = Mul(x{i}, k{i})" for i in range(300))
    text = f"g (float[4] x0) => (float[4] x300) {{ {steps} }}"
    factors = {f"k{i}": np.float32(1) for i in range(300)}
    student = model(text, **{**factors, "k200": np.float32(1.5), "k250": np.float32(2)})
    assert verify(model(text, **factors), student).diverges_at == "x201"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MLP.replace("x", "z"), "inputs are"),
        (MLP.replace("y", "z"), "outputs are"),
        (MLP.replace("[N, 8]", "[N, 9]"), "input x"),
        (MLP.replace("[N, 8]", "[N, 8, 1]"), "input x"),
        (MLP.replace("float[N, 4]", "double[N, 4]"), "output y"),
    ],
)
def test_other_inputs_or_outputs(text, words):
    with pytest.raises(NotEquivalentError, match=words) as caught:
        verify(mlp(), model(text, **weights()))
    assert "\n" not in str(caught.value)


def test_models_that_do_not_run():
    broken = mlp(w2=np.ones((15, 4)))
    with pytest.raises(NotEquivalentError, match=r"^the student does not run: ") as caught:
        verify(mlp(), broken)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350
    with pytest.raises(BadInputError, match=r"^the teacher does not run: "):
        verify(broken, mlp())
    picky = model("g (float[N, 8] x) => (float[N, 8] y) { y = Reshape(x, s) }", s=np.array([77, 8]))
    with pytest.raises(BadInputError, match="--data"):
        verify(picky, picky)


def test_data(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.ones((5, 8), np.float32))
    result = verify(mlp(), mlp(), data=path)
    assert (result.runs, result.bindings) == (1, ({},))
    np.savez(path, x=np.ones((5, 8)))
    with pytest.raises(BadInputError, match="float64"):
        verify(mlp(), mlp(), data=path)
    with pytest.raises(BadInputError, match="takes"):
        verify(mlp(), mlp(), data={"z": np.ones((5, 8), np.float32)})


def test_files_with_external_data(tmp_path):
    for name, proto in (("t", mlp()), ("s", changed("w2", 0.1))):
        os.mkdir(tmp_path / name)
        path, sizes = tmp_path / name / "model.onnx", {"size_threshold": 0}
        onnx.save(proto, path, save_as_external_data=True, location="weights", **sizes)
    teacher, student = tmp_path / "t" / "model.onnx", str(tmp_path / "s" / "model.onnx")
    assert verify(teacher, teacher).equivalent
    assert verify(teacher, student).diverges_at == "m"
    assert sorted(os.listdir(tmp_path / "t")) == ["model.onnx", "weights"]


def test_progress_is_told():
    told = []
    verify(mlp(), mlp(), progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {"teacher", "student"}
    assert all(0 <= done < total for _, done, total in told)


def test_nothing_is_printed(capfd):
    verify(mlp(), changed("w1", 1))
    with pytest.raises(BadInputError):
        verify(mlp(w2=np.ones((15, 4))), mlp())
    assert capfd.readouterr() == ("", "")


def test_providers():
    assert verify(mlp(), mlp(), provider="CPUExecutionProvider").equivalent
    with pytest.raises(BadInputError, match="no provider 'abacus'"):
        verify(mlp(), mlp(), provider="abacus")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime has CUDA")
def test_a_missing_provider_is_no_silent_fallback():
    with pytest.raises(BadInputError, match=r"onnx-net2net\[gpu\]"):
        verify(mlp(), mlp(), provider="cuda")


def test_a_provider_that_does_not_load_is_no_silent_fallback(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    if (
        "CUDAExecutionProvider"
        in ort.InferenceSession(mlp().SerializeToString(), providers=["CUDAExecutionProvider"]).get_providers()
    ):
        pytest.skip("CUDA loads here")
    with pytest.raises(BadInputError, match="CUDAExecutionProvider cannot be loaded"):
        verify(mlp(), mlp(), provider="cuda")


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="onnxruntime has no CUDA")
def test_cuda():
    assert verify(mlp(), mlp(), provider="cuda").provider == "CUDAExecutionProvider"
    assert not verify(mlp(), changed("w1", 1e-2), provider="cuda").equivalent


def test_a_teacher_that_needs_optimizations_is_verified_with_them():
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    graph = helper.make_graph([node], "g", info[:1], info[1:], [numpy_helper.from_array(np.eye(8, dtype="f"), "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    fused = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert verify(fused, fused).equivalent


def test_a_scalar_float_input_is_fed():
    text = (
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x, float s) => (float[2, 3] y) { y = Mul(x, s) }"""
    )
    model = onnx.parser.parse_model(text)
    assert verify(model, model).equivalent


# --- Outputs with few elements -------------------------------------------------------------------------------------

BODY = "h = MatMul(x, w1) r = Relu(h) c = MatMul(r, w2)"


def scored(tail, outputs="float[N, 4] y", inputs="float[N, 8] x", **numbers):
    constants = {name: np.float32(value) for name, value in numbers.items()}
    return model(f"g ({inputs}) => ({outputs}) {{ {BODY} {tail} }}", **weights(), **constants)


def permuted(teacher, seed):
    """The same function, its sums in another order."""
    student, order = onnx.ModelProto(), np.random.default_rng(seed).permutation(16)
    student.CopyFrom(teacher)
    for tensor in student.graph.initializer:
        if tensor.name in ("w1", "w2"):
            values = numpy_helper.to_array(tensor)
            values = values[:, order] if tensor.name == "w1" else values[order]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return student


FEW = {
    "difference": model(
        """g (float[1, 8] x, float[1, 8] z) => (float[1, 1] y) { h = MatMul(x, w1) r = Relu(h) p = MatMul(r, w2)
        k = MatMul(z, w1) l = Relu(k) q = MatMul(l, w2) y = Sub(p, q) }""",
        w1=weights()["w1"],
        w2=np.abs(weights()["w2"][:, :1]) * 9,
    ),
    "lost digits": scored("p = Add(c, big) q = Sub(p, big) y = Mul(q, small)", big=100, small=1e-6),
    "sum": scored("y = ReduceSum<keepdims = 0>(c)", "float y", "float[1, 8] x"),
    "largest": scored("y = ArgMax<axis = 1, keepdims = 0>(c)", "int64[N] y"),
    "sign": scored("y = Greater(c, nought)", "bool[N, 4] y", nought=0),
}


@pytest.mark.parametrize("what", FEW)
def test_exact_students_are_not_turned_down_by_chance(what):
    """One draw of the noise of one number is 0 in half of all cases."""
    for seed in range(6):
        verify(FEW[what], permuted(FEW[what], seed), seed=seed).raise_if_different()


def test_of_equal_scores_any_may_be_the_largest():
    judge = partial(compare, "y", np.array([7, 1]), [np.array([3, 1])], rtol=None, atol=None)
    assert judge([np.array([3, 1])]).different_fraction == 0.5
    assert judge([np.array([3, 1]), np.array([7, 2])]).different_fraction == 0


def test_one_run_is_judged_by_the_noise_of_most():
    answer, close = np.array([1e-6], np.float32), np.array([1.2e-6], np.float32)
    judge = partial(compare, "y", close, [answer], [answer], rtol=None, atol=None)
    assert judge().different_fraction == 1
    assert judge(typical=Typical(noise=1e-7)).different_fraction == 1  # no noise excuses a fifth of the value
    assert judge(typical=Typical(noise=1e-7, size=1.0)).different_fraction == 0  # but here the value cancels by chance


def test_levels_that_are_two_functions_are_not_both_compared():
    """A folded normalisation makes whole sums fall to either side of Sign, in the teacher too."""
    text = """g (float[1, 3, 8, 8] x) => (float[1, 6, 8, 8] y) { s = Sign(x) c = Conv<pads = [1, 1, 1, 1]>(s, w)
        n = BatchNormalization(c, g, o, o, g) y = Sign(n) }"""
    w = np.sign(np.random.default_rng(0).standard_normal((6, 3, 3, 3))).astype(np.float32)
    norm = {"g": np.ones(6, np.float32), "o": np.zeros(6, np.float32)}
    teacher = model(text, w=w, **norm)
    flipped = text.replace("s = Sign(x)", "m = Neg(x) k = Sign(m) s = Neg(k)")
    verify(teacher, model(flipped, w=w, **norm)).raise_if_different()
    assert not verify(teacher, model(text, w=-w, **norm)).equivalent


# --- Outputs that do not move --------------------------------------------------------------------------------------

STILL = {
    "threshold": scored("e = Greater(c, far) y = Cast<to = 1>(e)", far=1e30),
    "clipped": scored("a = Abs(c) s = Add(a, one) y = Clip(s, nought, one)", one=1, nought=0),
    "saturated": scored("a = Abs(c) s = Add(a, far) y = Sigmoid(s)", far=500),
    "dead": scored("t = Tanh(c) s = Sub(t, two) y = Relu(s)", two=2),
    "sizes behind": model(
        f"""g (float[N, 8] x) => (float[N, 4] y) {{ {BODY} t = Tanh(c) s = Sub(t, b) d = Relu(s) u = MatMul(d, w3)
            k = Reshape(u, split) l = Transpose<perm = [0, 2, 1]>(k) m = Reshape(l, merge) y = MatMul(m, w4) }}""",
        **weights(b=np.full(4, 2.0)),
        w3=np.ones((4, 16), np.float32),
        w4=np.ones((16, 4), np.float32),
        split=np.array([-1, 4, 4]),
        merge=np.array([-1, 16]),
    ),
    "one class": model(
        f"g (float[N, 8] x) => (int64[N, 1] y) {{ {BODY} a = Abs(c) k = Mul(a, b) y = ArgMax<axis = 1>(k) }}",
        **weights(b=np.array([0, 1, 0, 0])),
    ),
}


def emptied(teacher):
    """The same network with weights of zero."""
    student = onnx.ModelProto()
    student.CopyFrom(teacher)
    for tensor in student.graph.initializer:
        if tensor.name in ("w1", "w2"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    return student


@pytest.mark.parametrize("what", STILL)
def test_an_output_that_never_moves_proves_nothing(what):
    teacher = STILL[what]
    for student in (teacher, permuted(teacher, 0), widen(teacher, factor=1.5).student):
        result = verify(teacher, student)
        assert result.equivalent
        assert list(result.unmoved) == ["y"]
        assert "output 'y' was the same in all of them: " in str(result)
    result = verify(teacher, emptied(teacher))
    assert not result.equivalent
    assert result.diverges_at
    assert "but 'c' inside differs" in str(result) or result.diverges_at != "c"


def test_inputs_are_looked_for_that_move_an_output():
    teacher = scored("e = Greater(c, far) y = Cast<to = 1>(e)", far=1e3)
    result = verify(teacher, teacher)
    assert result.equivalent
    assert not result.unmoved
    assert verify(teacher, emptied(teacher)).outputs[0].different_fraction > 0


def test_what_cannot_be_shown_is_no_proof():
    """Neither the outputs move, nor is there anything inside to compare."""
    teacher = STILL["threshold"]
    answer = verify(teacher, lambda feeds: {"y": np.zeros((len(feeds["x"]), 4), np.float32)})
    assert not answer.equivalent
    assert "which proves nothing; --data can give inputs" in str(answer)
    data = {"x": np.ones((3, 8), np.float32)}
    assert verify(teacher, teacher, data=data).equivalent
    assert not verify(teacher, emptied(teacher), data=data).equivalent


def test_outputs_that_hang_on_no_value_may_be_the_same():
    tail = "s = Shape(x) t = Identity(table) z = Mul(x, nought) m = Cast<to = 9>(attention_mask) y = Identity(c)"
    values = "float[N, 4] y, int64[2] s, float[4] t, float[N, 8] z, bool[N, 3] m"
    teacher = scored(tail.replace("table", "b"), values, "float[N, 8] x, int64[N, 3] attention_mask", nought=0)
    for student in (teacher, permuted(teacher, 1), widen(teacher, factor=2).student):
        result = verify(teacher, student)
        assert result.equivalent
        assert set(result.unmoved) <= {"z"}
    other = onnx.ModelProto()
    other.CopyFrom(teacher)
    numbers = next(tensor for tensor in other.graph.initializer if tensor.name == "nought")
    numbers.CopyFrom(numpy_helper.from_array(np.float32(1e-40), "nought"))
    assert not verify(teacher, other).equivalent
