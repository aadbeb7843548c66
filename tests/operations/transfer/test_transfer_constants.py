"""Constants between the layers of two networks: each is filled, the same, or named; none is passed over in silence."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import RefusedError, transfer, verify
from onnx_net2net.cli.main import main
from onnx_net2net.framework.statedict.filled import fill_state_dict

STEPS = 6


class Net:
    """Two layers with something between; constants are named in order, c0, c1, ..."""

    def __init__(self, between, width, seed, is_teacher):
        self.rng, self.width, self.seed, self.is_teacher = np.random.default_rng(seed), width, seed, is_teacher
        self.nodes, self.constants = [], {}
        last = self.layer("a", "x", 5, width)
        last = between(self, last)
        self.op("Identity", self.layer("z", last, width, 3), output="y")

    def const(self, values, name=None):
        values = np.asarray(values)
        name = name or f"c{len(self.constants)}"
        self.constants[name] = values.astype(np.float32) if values.dtype == np.float64 else values
        return name

    def op(self, kind, *inputs, output=None, **attributes):
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def layer(self, name, last, inputs, outputs):
        weight = self.const(self.rng.normal(size=(inputs, outputs)) / inputs**0.5, f"{name}.weight")
        product = self.op("MatMul", last, weight)
        return self.op("Add", product, self.const(self.rng.normal(size=outputs), f"{name}.bias"))

    def mask(self):
        return self.const(self.rng.random(self.width) > 0.5, "mask")

    def zero(self):
        return self.const(np.zeros(1))

    def model(self):
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, STEPS, size])
            for name, size in (("x", 5), ("y", 3))
        ]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "net", values[:1], values[1:], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pair(between, old=8, new=12):
    return Net(between, old, 0, True).model(), Net(between, new, 1, False).model()


def shifted(net, last):
    """Every step looks another one up; which one is a list of the file."""
    places = np.broadcast_to(net.rng.permutation(STEPS)[:, None], (2, STEPS, net.width))
    return net.op("GatherElements", last, net.const(places.astype(np.int64)), axis=1)


def attention(net, last, mask, divisor=None):
    query, key, value = (net.layer(name, last, net.width, net.width) for name in "qkv")
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    if divisor is not None:
        scores = net.op("Div", scores, net.const(np.array(divisor)))
    weights = net.op("Softmax", net.op("Where", net.const(mask), scores, net.const(np.full(1, -1e4))))
    return net.op("MatMul", weights, value)


def relative(net, last):
    places = np.arange(STEPS)[:, None] - np.arange(STEPS) + STEPS - 1
    table = net.const(net.rng.normal(size=2 * STEPS - 1))
    bias = net.op("Gather", table, net.const(places if net.is_teacher else places.T.copy()))
    return net.op("MatMul", net.op("Softmax", bias), last)


FILLED = {
    "mask of Where": lambda net, last: net.op("Where", net.mask(), last, net.zero()),
    "mask and table": lambda net, last: net.op("Where", net.mask(), last, net.const(net.rng.normal(size=net.width))),
    "mask and comparison": lambda net, last: net.op(
        "Where", net.op("And", net.op("Greater", last, net.zero()), net.mask()), last, net.zero()
    ),
    "mask that is converted": lambda net, last: net.op("Mul", last, net.op("Cast", net.mask(), to=1)),
    "table of integers": lambda net, last: net.op(
        "Add", last, net.op("Cast", net.const(net.rng.integers(-3, 3, (STEPS, net.width))), to=1)
    ),
    "mask of steps": lambda net, last: net.op("Where", net.const(net.rng.random((STEPS, 1)) > 0.5), last, net.zero()),
    "places along steps": shifted,
    "relative positions": relative,
    "table": lambda net, last: net.op("Add", last, net.const(net.rng.normal(size=(STEPS, net.width)))),
    "mask that multiplies": lambda net, last: net.op("Mul", last, net.const((net.rng.random(net.width) > 0.5) * 1.0)),
    "comparison with a table": lambda net, last: net.op(
        "Where", net.op("Greater", last, net.const(net.rng.normal(size=net.width))), last, net.zero()
    ),
    "identity matrix": lambda net, last: net.op("MatMul", last, net.const(np.eye(net.width))),
    "triangle": lambda net, last: net.op("MatMul", last, net.const(np.tri(net.width) / 4)),
}


def masked(net, last):
    return attention(net, last, np.tri(STEPS, dtype=bool) if net.is_teacher else np.tri(STEPS, dtype=bool).T)


@pytest.mark.parametrize("width", [8, 12, 16])
@pytest.mark.parametrize("kind", FILLED)
def test_what_the_target_stores_becomes_the_teachers(kind, width):
    teacher, target = pair(FILLED[kind], new=width)
    result = transfer(teacher, target)
    assert result.obstacles == ()
    assert verify(teacher, result.student).equivalent


def towers(net, last):
    """The sum runs over the results of two layers."""
    made = net.op("Mul", net.layer("p", last, net.width, net.width), net.layer("q", last, net.width, net.width))
    return net.op("Add", last, net.op("Tanh", net.op("ReduceSum", made, net.const(np.array([2])), keepdims=1)))


def graph_attention(net, last):
    score = net.op("Mul", last, net.const(net.rng.normal(size=net.width)))
    gate = net.op("Sigmoid", net.op("ReduceSum", score, net.const(np.array([2])), keepdims=1))
    return net.op("Mul", last, gate)


def recurrent_state(net, last):
    """A state space: each step adds an outer product, and a layer's result reads the sum of them."""
    step, write, read = (net.layer(name, last, net.width, net.width) for name in ("step", "write", "read"))
    outer = [net.op("Unsqueeze", tensor, net.const(np.array([axis]))) for tensor, axis in ((step, 3), (write, 2))]
    state = net.op("CumSum", net.op("Mul", *outer), net.const(np.array(1)))
    result = net.op("MatMul", state, net.op("Unsqueeze", read, net.const(np.array([3]))))
    return net.op("Squeeze", result, net.const(np.array([3])))


def equalized(net, last, scale):
    weight = net.op("Mul", net.const(net.rng.normal(size=(net.width, net.width))), net.const(np.array(scale)))
    return net.op("Relu", net.op("MatMul", last, weight))


def normed(net, last):
    """torch's weight norm."""
    direction = net.const(net.rng.normal(size=(net.width, net.width)))
    length = net.op("ReduceL2", direction, net.const(np.array([1])), keepdims=1)
    gain = net.const(np.abs(net.rng.normal(size=(net.width, 1))) + 0.5)
    weight = net.op("Mul", gain, net.op("Div", direction, length))
    return net.op("Relu", net.op("MatMul", last, net.op("Transpose", weight, perm=[1, 0])))


def spectral(net, last):
    weight = net.const(net.rng.normal(size=(net.width, net.width)))
    left, right = (net.const(net.rng.normal(size=net.width)) for _ in range(2))
    made = net.op("Mul", left, net.op("MatMul", weight, right))
    norm = net.op("ReduceSum", made, net.const(np.array([0])), keepdims=1)
    return net.op("Relu", net.op("MatMul", last, net.op("Transpose", net.op("Div", weight, norm), perm=[1, 0])))


def joint_attention(net, last, masked):
    """Queries, keys and values of two heads by one layer; their scale follows the width of a head."""
    width = net.width // 2
    made = net.layer("qkv", last, net.width, 3 * net.width)
    made = net.op("Reshape", made, net.const(np.array([2, STEPS, 3, 2, width])))
    made = net.op("Transpose", made, perm=[2, 0, 3, 1, 4])
    query, key, value = (net.op("Gather", made, net.const(np.array(place)), axis=0) for place in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", masked(net, net.op("Div", scores, net.const(np.array(width**0.5)))))
    result = net.op("Transpose", net.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    return net.op("Reshape", result, net.const(np.array([2, STEPS, net.width])))


def replaced(value):
    return lambda net, scores: net.op(
        "Where", net.const(np.tri(STEPS, dtype=bool)), scores, net.const(np.full(1, value))
    )


def added(value):
    return lambda net, scores: net.op("Add", scores, net.const(np.where(np.tri(STEPS, dtype=bool), 0.0, value)))


LINEAR = {
    "joint attention, scores replaced": lambda net, last: joint_attention(net, last, replaced(-1e4)),
    "joint attention, scores infinite": lambda net, last: joint_attention(net, last, replaced(-np.inf)),
    "joint attention, mask added": lambda net, last: joint_attention(net, last, added(-1e4)),
    "joint attention, infinite mask added": lambda net, last: joint_attention(net, last, added(-np.inf)),
    "two towers": towers,
    "a parameter that scores": graph_attention,
    "the readout of a state": recurrent_state,
    "a weight times a number": lambda net, last: equalized(net, last, 0.37),
    "a weight times a number of the size": lambda net, last: equalized(net, last, net.width**-0.5),
    "a weight times another number of the size": lambda net, last: equalized(net, last, (2 / net.width) ** 0.5),
    "a weight and its length": normed,
    "a weight and its spectral norm": spectral,
    "another number of the size": lambda net, last: net.op("Mul", last, net.const(np.array(1 / (net.width - 1)))),
    "attention under a mask": lambda net, last: attention(net, last, np.tri(STEPS, dtype=bool)),
    "scaled attention under a mask": lambda net, last: attention(net, last, np.tri(STEPS, dtype=bool), net.width**0.5),
}


@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("kind", LINEAR)
def test_whichever_weight_is_linear_carries_the_division(kind, width):
    teacher, target = pair(LINEAR[kind], new=width)
    result = transfer(teacher, target)
    assert result.obstacles == ()
    assert verify(teacher, result.student).equivalent


@pytest.mark.parametrize("width", [8, 12])
def test_attention_gets_the_teachers_mask(width):
    teacher, target = pair(masked, new=width)
    result = transfer(teacher, target)
    assert result.obstacles == ()
    assert verify(teacher, result.student).equivalent


TOLD = {
    "an attribute": (
        lambda net, last: net.op("LeakyRelu", last, alpha=0.1 + net.seed / 4),
        r"alpha is 0\.1\d* in the teacher and 0\.34\d* in the target",
    ),
    "an operator": (
        lambda net, last: net.op("Relu" if net.is_teacher else "Sigmoid", last),
        "the teacher has Relu and the target has Sigmoid",
    ),
    "an operator more": (
        lambda net, last: last if net.is_teacher else net.op("Neg", last),
        "the target has Neg",
    ),
    "a mask less": (
        lambda net, last: net.op("Where", net.mask(), last, net.zero()) if net.is_teacher else last,
        "the teacher has Where",
    ),
    "an axis": (lambda net, last: net.op("Softmax", last, axis=1 if net.is_teacher else 2), "axis is 1"),
    "pads": (
        lambda net, last: net.op(
            "Slice",
            net.op("Pad", last, net.const(np.array([0, 1, 0, 0, 0, 0] if net.is_teacher else [0, 0, 0, 0, 1, 0]))),
            *(net.const(np.array([value])) for value in (1 - net.is_teacher, STEPS + 1 - net.is_teacher, 1)),
        ),
        r"input 1 is \[0, 1, 0, 0, 0, 0\] in the teacher",
    ),
    "numbers that are made": (
        lambda net, last: net.op(
            "Add", last, net.op("Cast", net.op("Range", *(net.const(np.array(n)) for n in (0, net.width, 1))), to=1)
        ),
        "makes this axis",
    ),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_stays_different_is_told(kind):
    between, reason = TOLD[kind]
    result = transfer(*pair(between))
    assert any(re.search(reason, str(obstacle)) for obstacle in result.obstacles), result.obstacles
    assert not verify(result.teacher, result.student).equivalent


def test_places_along_units_may_be_others_if_new_units_are_at_the_end():
    result = transfer(*pair(lambda net, last: net.op(
        "GatherElements", last,
        net.const(np.broadcast_to(net.rng.permutation(net.width), (2, STEPS, net.width)).astype(np.int64)), axis=2,
    )))  # fmt: skip
    assert result.obstacles == ()
    verify(result.teacher, result.student).raise_if_different()


def test_without_a_proof_only_what_is_known_beforehand_is_told():
    result = transfer(*pair(TOLD["an operator"][0]), prove=False)
    assert result.obstacles == ()
    assert result.doubts


def test_an_inexact_transfer_is_refused_unless_it_is_asked_for(tmp_path, capsys):
    for name, model in zip(("teacher", "target"), pair(TOLD["an attribute"][0]), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
    student = tmp_path / "student.onnx"
    arguments = ["transfer", *(str(tmp_path / f"{name}.onnx") for name in ("teacher", "target")), "-o", str(student)]
    assert main(arguments) == 3
    assert "alpha is 0.1" in capsys.readouterr().err
    assert not student.exists()
    assert main([*arguments, "--partial", "--exact"]) == 3
    assert not student.exists()
    assert main([*arguments, "--partial"]) == 0
    assert "not exact: LeakyRelu_2: alpha is 0.1" in capsys.readouterr().out
    assert student.exists()


def test_a_mask_that_is_filled_is_an_entry_of_the_state_dict(tmp_path):
    """A buffer gets the teacher's values; one that the class makes itself cannot be filled."""
    safetensors = pytest.importorskip("safetensors.numpy")
    teacher, target = pair(FILLED["mask of Where"])
    result = transfer(teacher, target)
    entries = {tensor.name: numpy_helper.to_array(tensor) for tensor in target.graph.initializer}
    safetensors.save_file(entries, tmp_path / "target.safetensors")
    made = fill_state_dict(result, tmp_path / "target.safetensors").values["mask"]()
    student = {tensor.name: result.student.tensor(tensor).numpy() for tensor in result.student.proto.graph.initializer}
    np.testing.assert_array_equal(made, student["mask"])
    assert made.dtype == bool
    assert not np.array_equal(made, entries.pop("mask"))
    safetensors.save_file(entries, tmp_path / "target.safetensors")
    with pytest.raises(RefusedError, match="mask was filled and no entry of the state dict has its values"):
        fill_state_dict(result, tmp_path / "target.safetensors")
