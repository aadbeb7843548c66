"""Residual blocks are found, repeated exactly and alive; those that cannot be are refused."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import assert_close, run, weights, weighty
from moe import DISPATCHES, ROUTERS, feeds, moe
from onnx import numpy_helper, parser

from onnx_net2net import BadInputError, RefusedError, deepen, load, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.operations.deepen.deepen import blocks
from onnx_net2net.operations.replay import replay, steps_of

MODELS = Path(__file__).parents[2] / "models"
RESNET = MODELS / "digits_resnet.onnx"


def draw(*shape):
    return (np.random.default_rng(shape).standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)


def net(text, opset=20, **weights):
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {text}')
    named = {name.replace("__", "."): np.asarray(array) for name, array in weights.items()}
    for node in proto.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in named.items())
    return proto


def repeat_exactly(teacher, **options):
    deepening = deepen(teacher, **options)
    verify(teacher, deepening.student).raise_if_different()
    return deepening


def layer(number):
    """A pre-norm layer of a transformer: two heads of four, GELU."""
    h = f"h__{number}__"
    text = f"""
        n{number} = LayerNormalization({h}ln1__weight, {h}ln1__weight, {h}ln1__bias)
        q{number} = MatMul(n{number}, {h}attn__q__weight) k{number} = MatMul(n{number}, {h}attn__k__weight)
        v{number} = MatMul(n{number}, {h}attn__v__weight)
        qh{number} = Reshape(q{number}, split) qt{number} = Transpose<perm=[0, 2, 1, 3]>(qh{number})
        kh{number} = Reshape(k{number}, split) kt{number} = Transpose<perm=[0, 2, 3, 1]>(kh{number})
        vh{number} = Reshape(v{number}, split) vt{number} = Transpose<perm=[0, 2, 1, 3]>(vh{number})
        s{number} = MatMul(qt{number}, kt{number}) m{number} = Add(s{number}, mask)
        p{number} = Softmax<axis=-1>(m{number}) c{number} = MatMul(p{number}, vt{number})
        ct{number} = Transpose<perm=[0, 2, 1, 3]>(c{number}) cm{number} = Reshape(ct{number}, merge)
        o{number} = MatMul(cm{number}, {h}attn__o__weight) a{number} = Add(o{number}, {h}attn__o__bias)
        r{number} = Add(x{number}, a{number})
        l{number} = LayerNormalization(r{number}, {h}ln2__weight, {h}ln2__bias)
        u{number} = MatMul(l{number}, {h}mlp__up__weight) b{number} = Add(u{number}, {h}mlp__up__bias)
        g{number} = Gelu(b{number}) d{number} = MatMul(g{number}, {h}mlp__down__weight)
        e{number} = Add(d{number}, {h}mlp__down__bias) x{number + 1} = Add(r{number}, e{number})"""
    own = {f"attn__{name}__weight": draw(8, 8) for name in "qkvo"} | {"attn__o__bias": draw(8)}
    own |= {"mlp__up__weight": draw(8, 16), "mlp__down__weight": draw(16, 8), "mlp__up__bias": draw(16)}
    own |= {"ln1__weight": 1 + draw(8), "ln1__bias": draw(8), "ln2__weight": 1 + draw(8), "ln2__bias": draw(8)}
    own["mlp__down__bias"] = draw(8)
    text = text.replace(f"LayerNormalization({h}ln1__weight,", f"LayerNormalization(x{number},")
    return text, {h + name: array for name, array in own.items()}


def transformer(layers=2):
    """Layers that share a mask which the model is given."""
    texts, parts = zip(*map(layer, range(layers)), strict=True)
    text = f"""(float[N, 5, 8] x, float[N, 1, 5, 5] mask) => (float[N, 5, 3] y) {{
        x0 = MatMul(x, embed__weight) {" ".join(texts)}
        f = LayerNormalization(x{layers}, norm__weight, norm__bias) y = MatMul(f, head__weight) }}"""
    lists = {"split": np.array([0, 5, 2, 4]), "merge": np.array([0, 5, 8])}
    ends = {"embed__weight": draw(8, 8), "head__weight": draw(8, 3), "norm__weight": 1 + draw(8), "norm__bias": draw(8)}
    return net(text, **lists, **ends, **{name: array for part in parts for name, array in part.items()})


@pytest.mark.parametrize(("own", "is_alike"), [("Neg(mask)", True), ("Mul(mask, slope{number})", False)])
def test_blocks_are_alike_where_each_has_a_mask_of_its_own(own, is_alike):
    texts, parts = zip(*map(layer, range(2)), strict=True)
    masks = [f"mask{number} = {own.format(number=number)}" for number in range(2)]
    texts = [text.replace(", mask)", f", mask{number})") for number, text in enumerate(texts)]
    text = f"""(float[N, 5, 8] x, float[N, 1, 5, 5] mask) => (float[N, 5, 3] y) {{
        x0 = MatMul(x, embed__weight) {" ".join((*masks, *texts))} y = MatMul(x2, head__weight) }}"""
    lists = {"split": np.array([0, 5, 2, 4]), "merge": np.array([0, 5, 8])}
    slopes = {f"slope{number}": np.float32(0.5 + number) for number in range(2)} if "slope" in own else {}
    ends = {"embed__weight": draw(8, 8), "head__weight": draw(8, 3)}
    teacher = net(text, **lists, **slopes, **ends, **{name: array for part in parts for name, array in part.items()})
    if is_alike:
        repeat_exactly(teacher, depth=2, framework="torch")
    else:
        with pytest.raises(RefusedError, match="the blocks of its group differ"):
            deepen(teacher, depth=2, framework="torch")


NORMED = """(float[N, 3, 5, 5] x) => (float[N, 6, 5, 5] y) {
    s = Conv(x, stem__weight) r0 = Relu(s)
    c1 = Conv<pads=[1, 1, 1, 1]>(r0, layer1__0__conv1__weight)
    n1 = BatchNormalization(c1, layer1__0__bn1__weight, layer1__0__bn1__bias, layer1__0__bn1__mean, layer1__0__bn1__var)
    a1 = Relu(n1) c2 = Conv<pads=[1, 1, 1, 1]>(a1, layer1__0__conv2__weight)
    n2 = BatchNormalization(c2, layer1__0__bn2__weight, layer1__0__bn2__bias, layer1__0__bn2__mean, layer1__0__bn2__var)
    t = Add(n2, r0) r1 = Relu(t) y = Conv(r1, head__weight) }"""


def normed():
    norms = {
        f"layer1__0__bn{n}__{what}": array
        for n in (1, 2)
        for what, array in {"weight": 1 + draw(6), "bias": draw(6), "mean": draw(6), "var": 0.5 + draw(6) ** 2}.items()
    }
    convs = {f"layer1__0__conv{n}__weight": draw(6, 6, 3, 3) for n in (1, 2)}
    return net(NORMED, stem__weight=draw(6, 3, 1, 1), head__weight=draw(6, 6, 1, 1), **norms, **convs)


INVERTED = """(float[N, 6, 5, 5] x) => (float[N, 6, 5, 5] y) {
    e = Conv(x, features__1__expand__weight) e6 = Clip(e, low, high)
    d = Conv<pads=[1, 1, 1, 1], group=GROUPS>(e6, features__1__depthwise__weight) d6 = Clip(d, low, high)
    p = Conv(d6, features__1__project__weight, features__1__project__bias) s = Add(x, p) y = Conv(s, head__weight) }"""


def inverted(groups):
    clip = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    own = {"expand__weight": draw(12, 6, 1, 1), "depthwise__weight": draw(12, 12 // groups, 3, 3)}
    own |= {"project__weight": draw(6, 12, 1, 1), "project__bias": draw(6)}
    named = {f"features__1__{name}": array for name, array in own.items()}
    return net(INVERTED.replace("GROUPS", str(groups)), **clip, **named, head__weight=draw(6, 6, 1, 1))


def branch(text, **more):
    """One branch behind a layer, from x to f."""
    text = f"(float[N, 6] i) => (float[N, 4] y) {{ x = MatMul(i, stem) {text} y = MatMul(s, head) }}"
    given = {"stem": draw(6, 6), "head": draw(6, 4), "b__0__up__weight": draw(6, 8), "b__0__down__weight": draw(8, 6)}
    return net(text, **given, **more)


BRANCH = "u = MatMul(x, b__0__up__weight) a = Relu(u) d = MatMul(a, b__0__down__weight)"


def test_a_trained_network():
    deepening = repeat_exactly(RESNET, repeat=["layer2=+2"])
    assert [(i.name, i.way, i.count) for i in deepening.insertions] == [("layer2.1", "block", 2)]
    before, after = weights(deepening.teacher), weights(deepening.student)
    for copy in ("layer2.1_new0", "layer2.1_new1"):
        np.testing.assert_array_equal(after[f"{copy}.conv1.weight"], before["layer2.1.conv1.weight"])
        assert not after[f"{copy}.conv2.weight"].any()
        assert not after[f"{copy}.conv2.weight_bias"].any()


@pytest.mark.parametrize("append", [False, True])
def test_every_group_twice_as_deep(append):
    deepening = repeat_exactly(RESNET, depth="2x", append=append)
    assert [(i.name, i.count) for i in deepening.insertions] == [
        *(("layer1.0", 1), ("layer1.1", 1), ("layer2.1", 2), ("layer3.1", 2)),
    ]
    assert sum(node.op_type == "Add" for node in deepening.student.proto.graph.node) == 6 + 6


def test_copies_are_appended_in_the_order_of_their_originals():
    for append, expected in ((False, ["0", "0_new0", "1", "1_new0"]), (True, ["0", "1", "0_new0", "1_new0"])):
        student = repeat_exactly(RESNET, repeat={"layer1": 2}, append=append).student
        found = [block.name for block in blocks(student) if block.group == "layer1"]
        assert found == [f"layer1.{name}" for name in expected]


def test_layers_of_a_transformer():
    teacher = transformer()
    assert [(block.name, block.parts, block.reason) for block in blocks(teacher)] == [("h.0", 2, ""), ("h.1", 2, "")]
    after = weights(repeat_exactly(teacher, depth=2).student)
    for name in ("h.0_new0", "h.1_new0"):
        assert not after[f"{name}.attn.o.weight"].any()
        assert not after[f"{name}.mlp.down.bias"].any()
        for live in ("attn.q", "attn.k", "attn.v", "mlp.up"):
            assert after[f"{name}.{live}.weight"].any()


def test_numbered_parts_that_are_all_different_are_one_block():
    """As in T5, where block.0.layer.0 is the attention and block.0.layer.1 the rest."""
    teacher = transformer()
    parts = {"attn": 0, "ln1": 0, "mlp": 1, "ln2": 1}

    def moved(name):
        return re.sub(r"^h\.(\d)\.(\w+)", lambda m: f"block.{m[1]}.layer.{parts[m[2]]}.{m[2]}", name)

    for node in teacher.graph.node:
        node.input[:] = map(moved, node.input)
    for tensor in teacher.graph.initializer:
        tensor.name = moved(tensor.name)
    assert [(block.name, block.parts) for block in blocks(teacher)] == [("block.0", 2), ("block.1", 2)]
    after = weights(repeat_exactly(teacher, repeat={"block": 1}).student)
    assert not after["block.1_new0.layer.1.mlp.down.weight"].any()


@pytest.mark.parametrize("teacher", [RESNET, transformer(), normed(), inverted(12)], ids=["resnet", "h", "bn", "dw"])
def test_copies_are_alive(teacher):
    """Each of the zeros matters as soon as it is none: its gradient is not zero."""
    with deepen(teacher, depth="2x").student.on_disk() as path:
        student = onnx.load(path)
    zeroed = [t for t in student.graph.initializer if "_new" in t.name and not numpy_helper.to_array(t).any()]
    assert len(zeroed) >= 2
    for tensor in zeroed:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(draw(*values.shape), tensor.name))
        assert not verify(teacher, student, samples=1).equivalent, tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_a_normalisation_that_ends_a_branch():
    student = repeat_exactly(normed(), repeat=["layer1.0=+1"]).student
    after = weights(student)
    assert not after["layer1.0_new0.bn2.weight"].any()
    assert not after["layer1.0_new0.bn2.bias"].any()
    assert after["layer1.0_new0.conv2.weight"].any()
    np.testing.assert_array_equal(after["layer1.0_new0.bn2.var"], after["layer1.0.bn2.var"])


@pytest.mark.parametrize("groups", [3, 12])
def test_inverted_residuals(groups):
    after = weights(repeat_exactly(inverted(groups), repeat=["features.*=+3"]).student)
    assert not after["features.1_new2.project.weight"].any()
    assert after["features.1_new2.depthwise.weight"].any()


ENDS = {
    "a scale of each unit": (f"{BRANCH} g = Mul(d, b__0__gamma) s = Add(x, g)", {"b__0__gamma": draw(6)}, "gamma"),
    "a gate": (f"{BRANCH} t = Sigmoid(d) g = Mul(d, t) s = Add(x, g)", {}, "down.weight"),
    "its own norm": (f"{BRANCH} n = LayerNormalization(d, b__0__n__weight, b__0__n__bias) s = Add(x, n)",
                     {"b__0__n__weight": 1 + draw(6), "b__0__n__bias": draw(6)}, "n.weight"),
    "a transposed weight": (f"{BRANCH[: BRANCH.index('d =')]} w = Transpose(b__0__last__weight) d = MatMul(a, w) "
                            "s = Add(x, d)", {"b__0__last__weight": draw(6, 8)}, "last.weight"),
    "two branches": (f"{BRANCH} k = MatMul(x, b__0__k__weight) m = Add(d, k) s = Add(m, x)",
                     {"b__0__k__weight": draw(6, 6)}, "k.weight"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_ends_of_branches(end):
    text, more, zero = ENDS[end]
    after = weights(repeat_exactly(branch(text, **more), repeat={"b": 2}).student)
    assert not after[f"b.0_new1.{zero}"].any()
    assert after["b.0_new1.up.weight"].any()


def test_what_is_only_measured_outside_is_not_read_there():
    """Exporters take sizes from any tensor that has them, a transposed one too."""
    text = f"{BRANCH} t = Transpose<perm=[1, 0]>(a) k = Shape(t) n = Gather(k, first) r = Add(x, d)"
    teacher = branch(f"{text} z = Cast<to=1>(n) s = Mul(r, z)", first=np.array([0]))
    repeat_exactly(teacher, repeat={"b": 1})


REFUSALS = {
    "post-norm": (
        f"{BRANCH} t = Add(x, d) s = LayerNormalization(t, gain, shift)",
        "post-norm",
    ),
    "read outside": (f"{BRANCH} t = Add(x, d) a2 = MatMul(a, b__0__down__weight) s = Mul(t, a2)", "is read outside"),
    "a ReLU at the end": (f"{BRANCH} r = Relu(d) s = Add(x, r)", "ends in Relu"),
    "a norm without a scale": (
        f"{BRANCH} m = ReduceMean(d, last) v = Sub(d, m) q = Mul(v, v) w = ReduceMean(q, last) "
        "z = Sqrt(w) n = Div(v, z) s = Add(x, n)",
        "without a scale",
    ),
}


@pytest.mark.parametrize("case", ["post-norm", "a ReLU at the end", "a norm without a scale"])
def test_two_copies_that_cancel_where_no_zero_can_be(case, tmp_path):
    teacher = branch(REFUSALS[case][0], gain=1 + draw(6), shift=draw(6), last=np.array([-1]))
    path = tmp_path / "student.onnx"
    with pytest.raises(RefusedError, match="two copies that cancel could be inserted"):
        deepen(teacher, repeat=["b.0=+1"])
    deepening = repeat_exactly(teacher, repeat=["b.0=+2"], way="cancel")
    assert [(one.way, one.count) for one in deepening.insertions] == [("cancel", 2)]
    after = weights(deepening.student)
    assert (after["b.0_new1.0.up.weight"] == after["b.0.up.weight"]).all()
    assert (after["b.0_new1.1.down.weight"] == after["b.0.down.weight"]).all()
    onnx.save(teacher, tmp_path / "teacher.onnx")
    deepening = deepen(tmp_path / "teacher.onnx", repeat=["b.0=+2"], way="cancel")
    deepening.student.save(path)
    replay(tmp_path / "teacher.onnx", steps_of(path), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_copies_that_cancel_get_gradients():
    """They differ in sign and are far from zero, so that the copies part at the first step."""
    torch = pytest.importorskip("torch")
    x, up, down = (torch.tensor(draw(*shape)) for shape in ((5, 6), (6, 8), (8, 6)))
    first, second = ([up.clone().requires_grad_(), down.clone().requires_grad_()] for _ in range(2))
    one, other = ((x @ a).relu() @ b for a, b in (first, second))
    ((x + (one - other)) ** 2).sum().backward()
    for a, b in zip(first, second, strict=True):
        assert a.grad.abs().max() > 1e-3
        torch.testing.assert_close(a.grad, -b.grad)


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_repeated(case):
    text, words = REFUSALS[case]
    teacher = branch(text, gain=1 + draw(6), shift=draw(6), last=np.array([-1]))
    with pytest.raises(RefusedError, match=words):
        deepen(teacher, repeat=["b.0=+1"])
    with pytest.raises(RefusedError, match=words):
        deepen(teacher, depth="2x")


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("digits_mlp", {"depth": "2x"}, RefusedError, "there are no residual blocks"),
        ("digits_resnet", {"repeat": ["layer9=+1"]}, BadInputError, "no block is named 'layer9'; similar names are"),
        ("digits_resnet", {"repeat": ["layer2.0=+1"]}, RefusedError, "'layer2.0' cannot be repeated"),
        ("digits_resnet", {"repeat": ["layer2"]}, BadInputError, "write PATTERN=\\+N"),
        ("digits_resnet", {"repeat": {"layer2": 0}}, BadInputError, "write PATTERN=\\+N"),
        ("digits_resnet", {"depth": "1x"}, BadInputError, "a multiplier above 1"),
        ("digits_resnet", {"depth": "deep"}, BadInputError, "a multiplier above 1"),
        ("digits_resnet", {"depth": 2, "all": True}, BadInputError, "repeat and depth copy blocks"),
        ("digits_resnet", {"append": True, "all": True}, BadInputError, "append and cancel are for blocks"),
        ("digits_resnet", {"depth": 1.01}, RefusedError, "less than one more"),
    ],
)
def test_requests_that_cannot_be_fulfilled(model, options, error, words):
    with pytest.raises(error, match=words):
        deepen(MODELS / f"{model}.onnx", **options)


def test_inside_a_body():
    text = """(float[N, 6] x) => (float[N, 4] y) {
        t = Constant<value = bool {1}>() m = Constant<value_int = 3>()
        f = Loop(m, t, x) <body = body (int64 i, bool c, float[N, 6] s1) => (bool co, float[N, 6] so) {
            co = Identity(c) v = MatMul(s1, up) r = Relu(v) d = MatMul(r, down) so = Add(s1, d) }>
        y = MatMul(f, head) }"""
    teacher = net(text, up=draw(6, 8), down=draw(8, 6), head=draw(6, 4))
    assert len(repeat_exactly(teacher, depth=2).insertions) == 1


def test_again_and_wider_and_from_the_record(tmp_path):
    folder = [tmp_path / f"{step}.onnx" for step in range(4)]
    deepen(RESNET, repeat=["layer1=+1"]).student.save(folder[0])
    deepen(load(folder[0]), depth=1.5, append=True, seed=3).student.save(folder[1])
    widen(load(folder[1]), factor=1.3).student.save(folder[2])
    verify(RESNET, folder[2]).raise_if_different()
    replay(RESNET, steps_of(folder[2]), folder[3])
    assert folder[3].read_bytes() == folder[2].read_bytes()


def test_the_command_line(tmp_path, capsys):
    student = tmp_path / "student.onnx"
    assert main(["deepen", str(RESNET), "--list"]) == 0
    assert "can it be repeated?" in capsys.readouterr().out
    assert main(["deepen", str(RESNET), "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["blocks"]
    assert [block["name"] for block in found if not block["reason"]] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert main(["deepen", str(RESNET), "-o", str(student), "--repeat", "layer3=+4", "--repeat", "layer1=+2"]) == 0
    assert "equivalent in" in capsys.readouterr().out
    assert main(["deepen", str(RESNET), "-o", str(student), "--depth", "2x", "--append"]) == 0


# --- Mixtures of experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_mixture_of_experts_is_repeated_with_last_layers_of_zeros(dispatch):
    proto = moe(ROUTERS["softmax, top-k, normed"], DISPATCHES[dispatch])
    (name,) = [block.name for block in blocks(proto)]
    student = deepen(proto, repeat={name: "+1"}).student
    assert_close(run(weighty(student), feeds())[0], run(proto, feeds())[0], dispatch, 0)
    zeros = {n: not w.any() for n, w in weights(student).items() if w.dtype == np.float32 and w.ndim > 1}
    assert sum(zeros.values()) == 2  # weights and biases of what experts make
