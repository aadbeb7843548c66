"""Models as modules of PyTorch: what is a parameter, under which name, and that it computes what onnxruntime does."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net
from ml_dtypes import bfloat16

from onnx_net2net import BadInputError, NotEquivalentError, load, to_torch, widen
from onnx_net2net.framework.fx.parameters import _TAKEN, parameter_names, trained_of

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2fx")

MLP = """(float[n, 6] x) => (float[n, 5] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    y = MatMul(c, w2)
}"""


def array(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mlp(**more):
    return net(MLP, **{"w1": array(6, 8), "b1": array(8, seed=1), "w2": array(8, 5, seed=2), **more})


def names(module):
    return [name for name, _ in module.named_parameters()]


def test_a_trained_network_is_a_module_with_its_own_names():
    module = to_torch("models/digits_resnet.onnx")
    assert {"conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"} <= set(names(module))
    assert set(module.state_dict()) == set(names(module)) == set(module.meta["onnx"])
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


def test_a_student_in_memory_is_a_module_too():
    student = widen("models/digits_mlp.onnx", factor=1.5).student
    assert dict(to_torch(student).named_parameters())["fc1.weight"].shape == (192, 64)


def test_batch_statistics_are_buffers_that_training_mode_moves():
    module = to_torch("models/digits_inception_bn.onnx")
    x = torch.from_numpy(np.load("models/digits_test.npz")["image"][:16])
    mean = module.state_dict()["conv1.bn.running_mean"]
    before = mean.clone()
    module(x)
    assert torch.equal(mean, before)
    module.train()(x).sum().backward()
    assert not torch.equal(mean, before)
    assert "conv1.bn.running_mean" not in names(module)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_batch_statistics_move_as_in_the_class_that_was_exported():
    text = """(float[n, 3, 4, 4] x) => (float[n, 3, 4, 4] y) {
        y = BatchNormalization<epsilon = 0.001, momentum = 0.8>(x, scale, bias, mean, var)
    }"""
    values = {"scale": array(3), "bias": array(3, seed=1), "mean": array(3, seed=2), "var": 1 + array(3, seed=3) ** 2}
    own = torch.nn.BatchNorm2d(3, 1e-3, 0.2)
    own.load_state_dict(dict(zip(own.state_dict(), map(torch.from_numpy, values.values()), strict=False)), strict=False)
    x = torch.from_numpy(array(5, 3, 4, 4, seed=4))
    module = to_torch(net(text, **values)).train()
    assert torch.allclose(module(x), own.train()(x), atol=1e-6)
    assert torch.allclose(module.state_dict()["mean"], own.running_mean)
    assert torch.allclose(module.state_dict()["var"], own.running_var)


def test_statistics_that_two_norms_share_stay():
    text = """(float[n, 3, 4] x) => (float[n, 3, 4] y) {
        a = BatchNormalization(x, scale, bias, mean, var)
        b = Relu(a)
        y = BatchNormalization(b, scale, bias, mean, var)
    }"""
    values = {"scale": array(3), "bias": array(3, seed=1), "mean": array(3, seed=2), "var": 1 + array(3, seed=3) ** 2}
    module, x = to_torch(net(text, **values)), torch.from_numpy(array(5, 3, 4))
    expected = module(x)
    assert torch.equal(module.train()(x), expected)
    assert sorted(names(module)) == ["bias", "scale"]


def test_masks_sizes_and_limits_are_no_parameters():
    text = """(float[n, 5, 6] x) => (float[n, 5, 4] y) {
        a = MatMul(x, w)
        b = Mul(a, scale)
        at = Transpose<perm = [0, 2, 1]>(b)
        s = MatMul(b, at)
        m = Add(s, mask)
        p = Softmax<axis = -1>(m)
        v = MatMul(p, b)
        c = Clip(v, low, high)
        y = Pow(c, two)
    }"""
    mask = np.triu(np.full((5, 5), -1e4, np.float32), 1)
    numbers = {"scale": 0.5, "low": -9.0, "high": 9.0, "two": 1.0}
    values = {name: np.float32(number) for name, number in numbers.items()}
    assert names(to_torch(net(text, w=array(6, 4), mask=mask, **values))) == ["w"]


def test_a_single_slope_is_a_parameter():
    module = to_torch(net("(float[n, 6] x) => (float[n, 6] y) { y = PRelu(x, slope) }", slope=array(1)))
    assert names(module) == ["slope"]


def test_what_is_read_twice_is_one_parameter():
    text = """(float[n, 6] x) => (float[n, 6] y) {
        a = MatMul(x, w)
        b = Tanh(a)
        again = Identity(w)
        y = MatMul(b, again)
    }"""
    module = to_torch(net(text, w=array(6, 6)))
    assert names(module) == ["w"]


def test_weights_of_bodies_and_functions_are_parameters():
    text = """
    <ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    g (float[2, 6] x) => (float[2, 6] y) <int64 count = {3}> {
        yes = Constant<value = bool {1}>()
        a = own.layer(x)
        b = own.layer(a)
        y = Loop(count, yes, b)<body = step (int64 i, bool go, float[2, 6] old) => (bool on, float[2, 6] new)
            <float[6, 6] v = {WEIGHTS}> {
                on = Identity(go)
                p = MatMul(old, v)
                new = Tanh(p)
            }>
    }
    <opset_import: ["" : 18], domain: "own"> layer (x) => (y) {
        w = Constant<value = float[6, 6] {WEIGHTS}>()
        a = MatMul(x, w)
        y = Tanh(a)
    }""".replace("WEIGHTS", ", ".join(f"{value:.4f}" for value in array(36)))
    module = to_torch(onnx.parser.parse_model(text))
    assert len(names(module)) == 2
    module(torch.from_numpy(array(2, 6))).sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in module.parameters())


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64), ("bfloat16", bfloat16)])
def test_precision_stays(kind, dtype):
    cast = "x = Identity(given)" if kind != "bfloat16" else "x = Cast<to = 16>(given)"
    text = MLP.replace("[n, 6] x", "[n, 6] given").replace("a = MatMul", f"{cast}\n a = MatMul")
    if kind == "bfloat16":  # onnxruntime multiplies none on the CPU
        text = """(float[n, 6] given) => (float[n, 8] y) {
            w = Cast<to = 1>(w1)
            b = Cast<to = 1>(b1)
            a = MatMul(given, w)
            y = Add(a, b)
        }"""
    else:
        text = text.replace("float[", f"{kind}[")
    weights = {"w1": array(6, 8), "b1": array(8), "w2": array(8, 5)}
    found = {name: value.astype(dtype) for name, value in weights.items() if name in text}
    module = to_torch(net(text, **found))
    assert {parameter.dtype for parameter in module.parameters()} == {getattr(torch, kind)}
    assert len(names(module)) == len(found)


def test_an_operator_that_there_is_none_of_is_named_with_its_node():
    text = """(float[n, 6] x) => (float[n, 5] y) {
        a = MatMul(x, w)
        y = com.example.Unheard(a)
    }"""
    proto = net(text, imports=', "com.example" : 1', w=array(6, 5))
    proto.graph.node[1].name = "odd one"
    with pytest.raises(BadInputError, match=r"com.example::Unheard \(node 'odd one'\)"):
        to_torch(proto)


def test_a_module_that_computes_something_else_is_refused_with_the_numbers(monkeypatch):
    from onnx_net2net.framework.fx import operators

    def wrong(builder, node):
        return builder.call_function(torch.abs, (builder.get_value(node.input[0]),))

    monkeypatch.setitem(operators._HANDLERS, ("", "Relu", 1), wrong)
    with pytest.raises(NotEquivalentError, match=r"does not compute what onnxruntime does: .* off by"):
        to_torch(mlp())


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx_net2net.framework.fx.conversion", None)
    with pytest.raises(BadInputError, match=r"pip install 'onnx-net2net\[torch\]'"):
        to_torch(mlp())


def test_names_are_the_constants_own_as_far_as_a_module_can_have_them():
    given = [
        "a.weight",
        "a",
        "a.weight",
        "b",
        "b.c.d",
        "train",
        "x..y",
        'q"uote',
        "1.2",
        "onnx::MatMul_3",
        "_w",
        "a/b:0",
    ]
    found = parameter_names(given)
    assert found[0] == "a.weight"
    assert found[9] == "onnx::MatMul_3"
    assert found[11] == "a/b:0"
    assert len(set(found)) == len(found)
    paths = {".".join(name.split(".")[:stop]) for name in found for stop in range(1, len(name.split(".")))}
    assert paths.isdisjoint(found)
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    for name in found:
        *path, last = name.split(".")
        inner = module
        for step in path:
            if step not in inner._modules:
                inner.add_module(step, torch.nn.Module())
            inner = inner._modules[step]
        inner.register_parameter(last, torch.nn.Parameter(torch.zeros(1)))
    assert list(dict(module.named_parameters())) != []
    assert {name for name, _ in module.named_parameters()} == set(found)


def test_no_attribute_of_a_module_is_a_name():
    """In a process of its own: libraries of trainers add attributes to torch's class."""
    code = "import torch; m = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph()); print(*dir(m), *vars(m))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    own = {name for name in printed.split() if not name.startswith("_")}
    assert "forward" in own
    assert own <= _TAKEN | {"meta", "shape_env"}


def test_names_that_differ_only_in_signs_are_told_apart():
    text = """(float[n, 6] x) => (float[n, 5] y) { "a" = MatMul(x, "w.1") \n y = MatMul("a", "w_1") }""".replace(
        '"', ""
    )
    proto = net(text.replace("w.1", "w1"), w1=array(6, 8), w_1=array(8, 5))
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "w.1"
    module = to_torch(proto)
    assert sorted(names(module)) == ["w.1", "w_1"]
    x = array(3, 6)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": x})[0], module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_no_weight_is_read_to_find_the_parameters():
    plain = trained_of(load("models/digits_mlp.onnx"))
    assert [one.shape for one in plain.trained][:2] == [(128, 64), (128,)]
