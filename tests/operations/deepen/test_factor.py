"""A layer becomes two factors with an activation between: exact at full rank, the nearest at a lower one."""

import numpy as np
import onnx
import pytest
from graphs import net, run, weights, weighty

from onnx_net2net import BadInputError, RefusedError, deepen, verify
from onnx_net2net.cli.main import main
from onnx_net2net.operations.deepen.deepen import sites
from onnx_net2net.operations.replay import replay, steps_of


def draw(*shape, dtype=np.float32):
    return (np.random.default_rng(shape).normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(dtype)


BEHIND = {
    "Relu": "a = Relu(v)", "Gelu": "a = Gelu(v)", "SiLU": "s = Sigmoid(v) a = Mul(v, s)",
    "LeakyRelu": "a = LeakyRelu<alpha=0.1>(v)", "HardSwish": "a = HardSwish(v)", "Tanh": "a = Tanh(v)",
    "Softplus": "a = Softplus(v)", "nothing": "a = Identity(v)",
}  # fmt: skip
LAYERS = {
    "MatMul": "p = MatMul(x, w) v = Add(p, b)",
    "Gemm": "v = Gemm<alpha=0.5, beta=2.0>(x, w, b)",
    "Gemm, transposed": "v = Gemm<transB=1>(x, wt, b)",
}


def linear(layer="MatMul", behind="Relu", dtype=np.float32, kind="float", units=14):
    text = f"({kind}[N, 10] x) => ({kind}[N, 4] y) {{ {LAYERS[layer]} {BEHIND[behind]} y = MatMul(a, head) }}"
    known = {"w": draw(10, units, dtype=dtype), "wt": draw(units, 10, dtype=dtype), "b": draw(units, dtype=dtype),
             "head": draw(units, 4, dtype=dtype)}  # fmt: skip
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return net(text, 20, ir=9, **{name: value for name, value in known.items() if name in words})


def factored(teacher, after=("w*",), **options):
    deepening = deepen(teacher, after=list(after), way="factor", **options)
    onnx.checker.check_model(weighty(deepening.student), full_check=True)
    return deepening


@pytest.mark.parametrize("units", [14, 10, 6])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("layer", LAYERS)
def test_two_factors_are_the_layer_whatever_follows(layer, behind, units):
    teacher = linear(layer, behind, units=units)
    deepening = factored(teacher)
    verify(teacher, deepening.student).raise_if_different()
    shapes = sorted(array.shape for array in weights(deepening.student).values() if array.ndim == 2)
    between = 2 * min(10, units)
    assert {(10, between), (between, 10)} & set(shapes)
    assert (deepening.exact, deepening.notes) == (True, ())


def test_in_double_precision_it_is_exact_to_its_last_places():
    teacher = linear("MatMul", "Relu", np.float64, "double")
    given = {"x": np.random.default_rng(0).normal(size=(50, 10))}
    one, other = run(teacher, given)[0], run(weighty(factored(teacher).student), given)[0]
    assert np.abs(one - other).max() <= 1e-13 * np.abs(one).max()


CONVOLUTIONS = {
    "3 x 3": ((7, 5, 3, 3), "pads=[1,1,1,1]"),
    "uneven": ((7, 5, 5, 3), "pads=[2,1,0,1], strides=[2,1], dilations=[1,2]"),
    "strides": ((7, 5, 3, 3), "strides=[2,3]"),
    "groups": ((6, 2, 3, 3), "group=3, pads=[1,1,1,1]"),
    "depthwise": ((6, 1, 3, 3), "group=6, pads=[1,1,1,1]"),
    "one place": ((7, 5, 1, 1), ""),
    "in a row": ((7, 5, 3), "pads=[1,1]"),
    "in space": ((4, 3, 3, 2, 3), "pads=[1,0,1,1,1,1]"),
    "padded by itself": ((7, 5, 3, 3), 'auto_pad="SAME_UPPER", strides=[2,1]'),
}


@pytest.mark.parametrize("behind", ["Relu", "Gelu"])
@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_a_kernel_is_one_along_its_first_axis_and_one_along_the_rest(form, behind):
    shape, attributes = CONVOLUTIONS[form]
    channels = {"groups": 6, "depthwise": 6}.get(form, shape[1])
    places_of = ", ".join(["9"] * (len(shape) - 2))
    outputs = ", ".join(f"d{axis}" for axis in range(len(shape) - 2))
    text = (
        f"(float[N, {channels}, {places_of}] x) => (float[N, {shape[0]}, {outputs}] a) "
        f"{{ v = Conv{f'<{attributes}>' if attributes else ''}(x, w, b) {BEHIND[behind]} }}"
    )
    teacher = net(text, 20, ir=9, w=draw(*shape), b=draw(shape[0]))
    student = factored(teacher).student
    verify(teacher, student).raise_if_different()
    kernels = [array.shape[2:] for array in weights(student).values() if array.ndim == len(shape)]
    assert sorted(kernels) == sorted(
        [(shape[2], *(1 for _ in shape[3:])), (1, *shape[3:])]
    )  # fmt: skip


def test_every_unit_between_learns_even_where_the_matrix_has_a_lower_rank():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx2fx")
    from onnx_net2net import to_torch

    teacher = linear()
    low = draw(10, 3) @ draw(3, 14)
    teacher.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(low, "w"))
    student = factored(teacher).student
    verify(teacher, student).raise_if_different()
    module = to_torch(weighty(student))
    made = module(torch.randn(64, 10))
    made = made[0] if isinstance(made, (tuple, list)) else made
    made.square().mean().backward()
    found = {name: value.grad for name, value in module.named_parameters() if "_new" in name and value.ndim == 2}
    (second,) = [grad for grad in found.values() if grad.shape == (20, 14)]
    assert (second.abs().amax(1) > 0).all()


def test_fewer_units_are_the_nearest_layer_and_say_so(tmp_path, capsys):
    teacher = tmp_path / "teacher.onnx"
    onnx.save(linear(), teacher)
    deepening = factored(teacher, rank=4)
    matrix = weights(onnx.load(teacher))["w"]
    first, second = (weights(deepening.student)[f"w_new{n}.weight"] for n in (0, 1))
    left, values, right = np.linalg.svd(matrix)
    nearest = (left[:, :4] * values[:4]) @ right[:4]
    np.testing.assert_allclose(first[:, :4] @ second[:4], nearest, atol=1e-5)
    assert not deepening.exact
    assert f"rank 4 of 10 keeps {(values[:4] ** 2).sum() / (values**2).sum():.1%}" in deepening.notes[0]
    student = tmp_path / "student.onnx"
    assert main(["deepen", str(teacher), "-o", str(student), "--after", "w", "--with", "factor", "--rank", "4"]) == 0
    said = capsys.readouterr().out
    assert "not exact, as asked (--rank)" in said
    assert "tensor to differ is 'p'" in said
    again = tmp_path / "again" / "student.onnx"
    again.parent.mkdir()
    replay(teacher, steps_of(student), again)
    assert again.read_bytes() == student.read_bytes()


def test_what_has_no_factors_is_refused():
    half = linear(dtype=np.float16, kind="float16")
    assert not any("factor" in site.ways for site in sites(half))
    with pytest.raises(RefusedError, match="one matrix of single or double precision has factors"):
        deepen(half, after=["w"], way="factor")
    for options in ({"count": 2}, {"width": 20}):
        with pytest.raises(BadInputError, match="the way factor takes neither"):
            deepen(linear(), after=["w"], way="factor", **options)
    for options in ({"way": "residual", "rank": 4}, {"way": "factor", "rank": 0}):
        with pytest.raises(BadInputError, match="units between two factors"):
            deepen(linear(), after=["w"], **options)
