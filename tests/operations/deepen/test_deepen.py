"""Deepened models compute what they did: trained networks, every way to insert, and what refuses."""

import json
from pathlib import Path

import light
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net, weights
from onnx import TensorProto, helper

from onnx_net2net import BadInputError, RefusedError, load, narrow, verify, widen
from onnx_net2net.analysis.activations import WAYS
from onnx_net2net.cli import deepen as command
from onnx_net2net.cli.main import main
from onnx_net2net.model.history import history
from onnx_net2net.operations.deepen.deepen import deepen, sites
from onnx_net2net.operations.replay import replay, steps_of

MODELS = Path(__file__).parents[3] / "models"
DIGITS = ("digits_mlp", "digits_resnet", "digits_inception_bn")


def draw(*shape, dtype=np.float32):
    return (np.random.default_rng(shape).standard_normal(shape) * np.prod(shape) ** -0.25).astype(dtype)


def mlp(activation, kind="float", dtype=np.float32, **options):
    text = f"({kind}[N, 6] x) => ({kind}[N, 4] y) {{ v = MatMul(x, up) {activation} y = MatMul(a, down) }}"
    return net(text, up=draw(6, 8, dtype=dtype), down=draw(8, 4, dtype=dtype), **options)


def deepen_exactly(teacher, **options):
    deepening = deepen(teacher, **options)
    verify(teacher, deepening.student).raise_if_different()
    return deepening


IDEMPOTENT = {
    "Relu": "a = Relu(v)",
    "Clip": "low = Constant<value_float=0.0>() high = Constant<value_float=6.0>() a = Clip(v, low, high)",
    "Abs": "a = Abs(v)",
    "behind an Identity": "i = Identity(v) a = Relu(i)",
    "v where v > 0": "zero = Constant<value_float=0.0>() g = Greater(v, zero) a = Where(g, v, zero)",
    "max(v, 0)": "zero = Constant<value_float=0.0>() a = Max(v, zero)",
    "HardTanh": "low = Constant<value_float=-1.0>() high = Constant<value_float=1.0>() a = Clip(v, low, high)",
}
PAIRED = {
    "Gelu": "a = Gelu(v)",
    "Gelu by Erf": """two = Constant<value_float=1.4142135>() one = Constant<value_float=1.0>()
        half = Constant<value_float=0.5>() d = Div(v, two) e = Erf(d) p = Add(e, one) m = Mul(v, p) a = Mul(m, half)""",
    "SiLU": "s = Sigmoid(v) a = Mul(v, s)",
    "HardSwish": "a = HardSwish(v)",
    "Softplus": "a = Softplus(v)",
    "LeakyRelu": "a = LeakyRelu<alpha=0.2>(v)",
    "Softplus with a threshold": """top = Constant<value_float=20.0>() s = Softplus(v) g = Greater(v, top)
        a = Where(g, v, s)""",
    "LeakyRelu by a comparison": """zero = Constant<value_float=0.0>() c = Constant<value_float=0.2>() m = Mul(v, c)
        g = Less(v, zero) n = Not(g) a = Where(n, v, m)""",
}
LIMITED = {
    "SiLU up to 7": "top = Constant<value_float=7.0>() m = Min(v, top) s = Sigmoid(v) a = Mul(m, s)",
    "nearly x": "c = Constant<value_float=0.0005>() t = Tanh(v) r = Mul(c, t) e = Softplus(v) a = Add(e, r)",
}
OTHERS = {"Tanh": "a = Tanh(v)", "Sigmoid": "a = Sigmoid(v)", "Elu": "a = Elu(v)"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", DIGITS)
def test_trained_networks_everywhere(name, count):
    deepening = deepen_exactly(MODELS / f"{name}.onnx", all=True, count=count)
    assert deepening.student.parameters > deepening.teacher.parameters
    assert {insertion.way for insertion in deepening.insertions} == {"identity"}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_trained_networks_place_by_place_and_way_by_way(name):
    for site in sites(MODELS / f"{name}.onnx"):
        for way in site.ways:
            deepen_exactly(MODELS / f"{name}.onnx", after=[site.name], way=way)


@pytest.mark.parametrize("activation", IDEMPOTENT)
def test_idempotent_activations_are_found_however_they_are_written(activation):
    deepening = deepen_exactly(mlp(IDEMPOTENT[activation]), all=True)
    assert [insertion.way for insertion in deepening.insertions] == ["identity"]
    np.testing.assert_array_equal(weights(deepening.student)["up_new0.weight"], np.eye(8))


@pytest.mark.parametrize("activation", PAIRED)
def test_activations_whose_difference_is_the_identity(activation):
    deepening = deepen_exactly(mlp(PAIRED[activation], opset=20), all=True, count=2)
    assert [insertion.way for insertion in deepening.insertions] == ["pair"]


@pytest.mark.parametrize("activation", LIMITED)
def test_what_nearly_holds_or_holds_in_the_middle_only_does_not(activation):
    (site, _) = sites(mlp(LIMITED[activation]))
    assert site.ways[0] == "residual"


@pytest.mark.parametrize("activation", OTHERS)
def test_other_activations_refuse_and_a_residual_branch_is_offered(activation):
    teacher = mlp(OTHERS[activation])
    with pytest.raises(RefusedError, match=r"is not idempotent.*residual"):
        deepen(teacher, all=True)
    deepening = deepen_exactly(teacher, after=["up"], way="residual")
    inserted = weights(deepening.student)
    assert not inserted["up_new0.1.weight"].any()
    assert inserted["up_new0.0.weight"].std() > 0.1, "a branch of zeros would never learn"


@pytest.mark.parametrize("way", ["prelu", "maxout"])
@pytest.mark.parametrize("activation", OTHERS)
def test_new_layers_with_an_activation_of_their_own(activation, way):
    deepening = deepen_exactly(mlp(OTHERS[activation]), after=["up", "down"], way=way)
    inserted = weights(deepening.student)
    if way == "prelu":
        np.testing.assert_array_equal(inserted["up_new0.prelu.weight"], np.ones(8, np.float32))
    else:
        np.testing.assert_array_equal(inserted["up_new0.0.weight"], inserted["up_new0.1.weight"])


def test_prelu_behind_a_normalisation_has_one_too():
    student = deepen_exactly(MODELS / "digits_inception_bn.onnx", after=["inception3a.*"], way="prelu").student
    shapes = {values.shape[1:] for name, values in weights(student).items() if name.endswith("prelu.weight")}
    assert shapes == {(1, 1)}
    assert any(name.endswith("bn.running_var") and "_new0" in name for name in weights(student))


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_other_float_types(kind, dtype):
    for activation in (IDEMPOTENT["Relu"], PAIRED["SiLU"]):
        deepen_exactly(mlp(activation, kind, dtype), all=True)
    for way in ("prelu", "maxout"):
        deepen_exactly(mlp(OTHERS["Tanh"], kind, dtype), after=["up"], way=way)


def test_what_onnxruntime_lacks_for_a_type_is_refused(tmp_path, capsys):
    teacher = mlp(OTHERS["Tanh"], "double", np.float64, opset=15)  # where PRelu has no form in other operators
    onnx.save(teacher, tmp_path / "t.onnx")
    code = main(
        ["deepen", str(tmp_path / "t.onnx"), "-o", str(tmp_path / "s.onnx"), "--after", "up", "--with", "prelu"]
    )
    assert code == 3
    assert "onnxruntime has no PRelu of float64" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t.onnx"]
    deepen_exactly(mlp(OTHERS["Tanh"], opset=15), after=["up"], way="prelu")


CONVOLUTION = """(float[N, 3, KERNEL] x) => (float[N, 5, KERNEL] y) {
    v = Conv<pads=PADS, group=1>(x, up) r = Relu(v) w = Conv<pads=PADS, group=3>(r, mid) a = Relu(w)
    y = Conv<pads=PADS>(a, down) }"""


@pytest.mark.parametrize("kernel", [(3,), (1, 3), (5, 5), (3, 1, 3), (9, 9)])
def test_convolutions_of_any_rank_and_group(kernel):
    sizes = [size + 1 for size in kernel]
    text = CONVOLUTION.replace("KERNEL", ", ".join(map(str, sizes)))
    teacher = net(text.replace("PADS", str([k // 2 for k in kernel] * 2)), up=draw(6, 3, *kernel),
                  mid=draw(9, 2, *kernel), down=draw(5, 9, *kernel))  # fmt: skip
    deepening = deepen_exactly(teacher, all=True)
    inserted = weights(deepening.student)
    assert inserted["mid_new0.weight"].shape == (9, 3, *(min(k, 7) for k in kernel))


def test_even_kernels_get_a_middle():
    text = "(float[N, 3, 6, 6] x) => (float[N, 4, 5, 5] y) { v = Conv(x, up) a = Relu(v) y = Conv(a, down) }"
    teacher = net(text, up=draw(6, 3, 2, 2), down=draw(4, 6, 1, 1))
    assert weights(deepen_exactly(teacher, all=True).student)["up_new0.weight"].shape == (6, 6, 1, 1)


NORMED = """(float[N, 3, 5, 5] x) => (float[N, 4, 5, 5] y) {
    v = Conv(x, up) n = BatchNormalization<epsilon=1e-3>(v, gain, shift, mean, var) a = Relu(n) y = Conv(a, down) }"""


def normed():
    vectors = {"gain": 1 + draw(6), "shift": draw(6), "mean": draw(6), "var": 0.5 + draw(6) ** 2}
    return net(NORMED, up=draw(6, 3, 1, 1), down=draw(4, 6, 1, 1), **vectors)


def test_a_normalisation_is_calibrated_to_the_data():
    teacher, data = normed(), {"x": 2 + draw(300, 3, 5, 5)}
    deepening = deepen_exactly(teacher, all=True, calibrate=data)
    inserted = weights(deepening.student)
    session = ort.InferenceSession(with_output(teacher, "a"), providers=["CPUExecutionProvider"])
    (seen,) = session.run(["a"], data)
    np.testing.assert_allclose(inserted["up_new0.bn.running_mean"], seen.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(inserted["up_new0.bn.running_var"], seen.var((0, 2, 3)), rtol=1e-4)
    assert not deepening.notes


def with_output(proto, name):
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.ValueInfoProto(name=name))
    return shown.SerializeToString()


def test_a_calibrated_normalisation_changes_little_in_training_too():
    teacher, data = normed(), {"x": 2 + draw(300, 3, 5, 5)}
    with deepen(teacher, all=True, calibrate=data).student.on_disk() as path:
        student = onnx.load(path)
    nodes = [node for node in student.graph.node if node.op_type == "BatchNormalization" and "new0" in node.name]
    for node in nodes:
        node.attribute.append(helper.make_attribute("training_mode", 1))
        node.output.extend([f"{node.name}_mean", f"{node.name}_var"])
    (expected,), (actual,) = (
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, data)
        for proto in (teacher, student)
    )
    assert len(nodes) == 1
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_without_data_inputs_are_generated_and_it_is_said():
    deepening = deepen_exactly(normed(), all=True)
    assert "generated inputs" in deepening.notes[0]


@pytest.mark.parametrize("pairs", [2, 4])
def test_the_papers_setting_pairs_of_rectangular_kernels_at_every_pair(pairs):
    teacher = MODELS / "digits_inception_bn.onnx"
    deepening = deepen_exactly(teacher, after=["inception*.branch7x7*"], pairs=pairs)
    assert {insertion.count for insertion in deepening.insertions} == {2 * pairs}
    shapes = {w.shape[2:] for name, w in weights(deepening.student).items() if "_new" in name and w.ndim == 4}
    assert shapes <= {(1, 7), (7, 1), (1, 5), (5, 1), (1, 3), (3, 1)}


def test_pairs_need_images():
    with pytest.raises(RefusedError, match="only kernels with two axes can be pairs"):
        deepen(MODELS / "digits_mlp.onnx", all=True, pairs=1)


def test_a_hidden_tensor_that_is_an_output_keeps_its_name():
    teacher = mlp("a = Relu(v)")
    teacher.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 8]))
    deepen_exactly(teacher, all=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", light.NAMES)
def test_light_models_everywhere_and_layer_by_layer(name):
    """Behind some layers only, and by one kind of insertion for each; `tools/run_corpus.py --deepen-each` does more."""
    teacher, wanted = light.model(name), light.answer(name)
    found = [site for site in sites(teacher) if site.ways]
    assert len(found) >= 8
    chosen = found[:: max(1, len(found) // 5)]
    ways = [[way for way in site.ways if way != "factor"] for site in chosen]  # singular values of these take minutes
    options = [
        {"after": [site.name], "way": own[i % len(own)]} for i, (site, own) in enumerate(zip(chosen, ways, strict=True))
    ]
    for each in ({"all": True}, *options):
        answer = light.run(deepen(teacher, **each).student, light.image(name))
        for expected, actual in zip(wanted, answer, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=str(each))


def test_inside_a_body():
    text = """(float[N, 6] x) => (float[N, 4] y) {
        t = Constant<value = bool {1}>() m = Constant<value_int = 3>()
        f = Loop(m, t, x) <body = body (int64 i, bool c, float[N, 6] s1) => (bool co, float[N, 6] so) {
            co = Identity(c) v = MatMul(s1, inner) so = Relu(v) }>
        y = MatMul(f, down) }"""
    teacher = net(text, inner=draw(6, 6), down=draw(6, 4))
    deepening = deepen_exactly(teacher, after=["inner"])
    assert [insertion.way for insertion in deepening.insertions] == ["identity"]
    assert "MatMul" in [node.op_type for node in deepening.student.proto.graph.node]


def test_what_is_quantized_is_no_activation():
    text = """(float[N, 6] x) => (float[N, 4] y) { v = MatMul(x, up) q = QuantizeLinear(v, step, zero)
        a = DequantizeLinear(q, step, zero) y = MatMul(a, down) }"""
    step = {"step": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    teacher = net(text, up=draw(6, 8), down=draw(8, 4), **step)
    deepen_exactly(teacher, all=True, way="residual")


@pytest.mark.parametrize("way", ["pair", "residual", "maxout", "prelu"])
@pytest.mark.parametrize("groups", [2, 6])
def test_behind_a_grouped_convolution_new_layers_have_groups_too(way, groups):
    text = f"""(float[N, 3, 5, 5] x) => (float[N, 5, 5, 5] y) {{
        r = Conv(x, up) v = Conv<pads=[1, 1, 1, 1], group={groups}>(r, mid) a = HardSwish(v) y = Conv(a, down) }}"""
    teacher = net(text, up=draw(6, 3, 1, 1), mid=draw(6, 6 // groups, 3, 3), down=draw(5, 6, 1, 1))
    student = deepen_exactly(teacher, after=["mid"], way=way).student
    shapes = {
        values.shape[1:] for name, values in weights(student).items() if name.endswith("weight") and "_new" in name
    }
    assert shapes <= {(6 // groups, 3, 3), (12 // groups, 3, 3), (1, 1)}
    if way == "pair":
        assert narrow(student).student.parameters == load(teacher).parameters


def test_behind_a_recurrent_layer():
    text = """(float[S, N, 6] x) => (float[S, N, 4] y) {
        h = LSTM<hidden_size = 8>(x, w, r) s = Squeeze(h, one) y = MatMul(s, down) }"""
    teacher = net(text, w=draw(1, 32, 6), r=draw(1, 32, 8), down=draw(8, 4), one=np.array([1]))
    deepening = deepen_exactly(teacher, after=["*"])
    assert {insertion.way for insertion in deepening.insertions} == {"residual"}


def test_wider_after_deeper():
    deeper = deepen_exactly(MODELS / "digits_mlp.onnx", all=True).student
    wider = widen(deeper, sizes={"fc1_new0": "2x"}).student
    verify(MODELS / "digits_mlp.onnx", wider).raise_if_different()
    assert [step["operation"] for step in history(wider)] == ["deepen", "widen"]


@pytest.mark.parametrize(
    ("name", "options", "units"),
    [
        ("digits_mlp", {"after": ["fc1"], "width": 200}, {"fc1_new0": 200}),
        ("digits_mlp", {"after": ["fc1"], "width": "1.5x", "count": 2}, {"fc1_new0": 192, "fc1_new1": 192}),
        ("digits_mlp", {"after": ["fc1"], "width": 300, "way": "pair"}, {"fc1_new0.0": 300}),
        ("digits_resnet", {"after": ["layer1.0.conv1"], "width": 33, "way": "residual"}, {"layer1.0.conv1_new0.0": 33}),
        ("digits_inception_bn", {"after": ["inception3a.*"], "width": "1.25x"}, {}),
    ],
)
def test_the_width_of_new_layers(name, options, units, tmp_path):
    teacher, path = MODELS / f"{name}.onnx", tmp_path / "student.onnx"
    student = deepen_exactly(teacher, **options).student
    found = weights(student)
    assert {layer: len(found[f"{layer}.bias"]) for layer in units} == units
    student.save(path)
    replay(teacher, steps_of(path), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_a_width_needs_units_of_its_own():
    text = """(float[N, 6] x) => (float[N, 6] y) { v = MatMul(x, up) a = Relu(v) y = Add(x, a) }"""
    with pytest.raises(RefusedError, match="cannot have another width here"):
        deepen(net(text, up=draw(6, 6)), after=["up"], width=9)


def test_names_never_collide():
    once = deepen_exactly(MODELS / "digits_mlp.onnx", after=["fc1"]).student
    twice = deepen(once, after=["fc1"]).student
    verify(MODELS / "digits_mlp.onnx", twice).raise_if_different()
    names = [name for name in weights(twice) if name.startswith("fc1_new0.weight")]
    assert len(names) == 2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, BadInputError, "say where to insert layers"),
        ({"after": ["fc1"], "all": True}, BadInputError, "say where to insert layers"),
        ({"after": ["fc9"]}, BadInputError, "no layer is named 'fc9'; similar names are fc3"),
        ({"all": True, "count": 0}, BadInputError, "count must be at least 1"),
        ({"all": True, "way": "magic"}, BadInputError, "there is no way 'magic'"),
        ({"all": True, "way": "cancel"}, BadInputError, "cancel are for blocks"),
        ({"after": ["fc1"], "width": 7}, BadInputError, "7 would be narrower"),
        ({"after": ["fc3"], "way": "identity"}, RefusedError, "behind 'fc3': no activation follows"),
    ],
)
def test_requests_that_cannot_be_fulfilled(options, error, words):
    with pytest.raises(error, match=words):
        deepen(MODELS / "digits_mlp.onnx", **options)


def test_the_command_line(tmp_path, capsys):
    teacher, student = MODELS / "digits_inception_bn.onnx", tmp_path / "student.onnx"
    assert main(["deepen", str(teacher), "--list"]) == 0
    assert "inception3a.branch1x1.conv" in capsys.readouterr().out
    assert main(["deepen", str(teacher), "-o", str(student), "--after", "inception3a.*"]) == 0
    assert "equivalent in" in capsys.readouterr().out
    assert main(["verify", str(teacher), str(student)]) == 0
    capsys.readouterr()
    assert main(["deepen", str(teacher), "-o", str(student), "--all", "--json", "--count", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verification"]["equivalent"]
    assert record["parameters"]["after"] > record["parameters"]["before"]
    assert main(["deepen", str(teacher), "--all"]) == 2
    assert main(["deepen", str(teacher), "-o", str(student), "--after", "inception3a.*", "--width", "2x"]) == 0
    assert set(command._ALL_WAYS) == {*WAYS, "cancel"}
