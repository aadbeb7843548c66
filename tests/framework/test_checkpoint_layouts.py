"""Layouts of Keras and Flax are further views of the same constants: kernels, gates, rows of biases, folded norms."""

import numpy as np
import pytest
from carried import check, f32, node
from graphs import build

from onnx_net2net import RefusedError
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.statedict.match import constants_of, match
from onnx_net2net.model.model import load

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2)}  # where ONNX's gates are among Keras' (ifco, zrh)


def recurrent(kind):
    """As tf2onnx writes a layer of Keras: kernels transposed, gates in ONNX's order."""

    def class_(state):
        order = GATES[kind]
        size = state["cell/vars/1"].shape[0]

        def gates(array):
            return np.concatenate([np.split(array, len(order), axis=-1)[k] for k in order], axis=-1)

        bias = state["cell/vars/2"]
        rows = [gates(row) for row in (bias if kind == "GRU" else (bias, np.zeros_like(bias)))]
        weights = {"W": gates(state["cell/vars/0"]).T[None], "R": gates(state["cell/vars/1"]).T[None],
                   "B": np.concatenate(rows)[None], "out": state["dense/vars/0"], "one": np.array([1])}  # fmt: skip
        more = {"linear_before_reset": 1} if kind == "GRU" else {}
        nodes = [
            node(kind, ["x", "W", "R", "B"], "h", hidden_size=size, **more),
            node("Squeeze", ["h", "one"], "s"),
            node("MatMul", ["s", "out"], "y"),
        ]
        return build(nodes, {"x": f32(4, 2, 5)}, ["y"], weights)

    return class_


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gates_of_keras(tmp_path, kind):
    gates = len(GATES[kind]) * 6
    bias = f32(2, gates) if kind == "GRU" else f32(gates)
    state = {"cell/vars/0": f32(5, gates), "cell/vars/1": f32(6, gates), "cell/vars/2": bias, "dense/vars/0": f32(6, 3)}
    relations, result = check(recurrent(kind), state, tmp_path)
    assert set(relations.values()) == {"LSTM": {"gate order", "same"}, "GRU": {"transposed", "reshaped", "same"}}[kind]
    assert result["cell/vars/1"].new == (9, gates // 2 * 3)


def convolutional(state):
    """A kernel HWIO, a depthwise one with two channels of each, a norm whose scale and variance are one factor."""
    kernel = np.transpose(state["conv"], (3, 2, 0, 1))
    depth = np.transpose(state["depth"], (2, 3, 0, 1)).reshape(-1, 1, 3, 3)
    factor = state["gamma"] / np.sqrt(state["variance"] + np.float32(1e-3))
    weights = {"k": kernel, "d": depth, "factor": factor.reshape(1, -1, 1, 1), "head": state["head"].T.copy()}
    weights |= {name: state[name].reshape(1, -1, 1, 1) for name in ("mean", "beta")}
    nodes = [
        node("Conv", ["x", "k"], "c"), node("Sub", ["c", "mean"], "m"), node("Mul", ["m", "factor"], "n"),
        node("Add", ["n", "beta"], "b"), node("Relu", ["b"], "r"),
        node("Conv", ["r", "d"], "e", group=state["depth"].shape[2]), node("Relu", ["e"], "s"),
        node("GlobalAveragePool", ["s"], "p"), node("Flatten", ["p"], "f"), node("Gemm", ["f", "head"], "y", transB=1),
    ]  # fmt: skip
    return build(nodes, {"x": f32(2, 3, 8, 8)}, ["y"], weights)


def test_kernels_and_a_norm_of_keras(tmp_path):
    state = {
        "conv": f32(3, 3, 3, 8), "gamma": f32(8), "beta": f32(8), "mean": f32(8), "variance": np.abs(f32(8)) + 0.1,
        "depth": f32(3, 3, 8, 2), "head": f32(16, 5),
    }  # fmt: skip
    relations, result = check(convolutional, state, tmp_path)
    assert relations == {
        "conv": "transposed", "gamma": "folded", "beta": "reshaped", "mean": "reshaped", "variance": "folded",
        "depth": "transposed", "head": "transposed",
    }  # fmt: skip
    assert result["depth"].new == (3, 3, 12, 2)


def test_a_variance_alone_is_found(tmp_path):
    def class_(state):
        factor = 1 / np.sqrt(state["variance"] + np.float32(1e-3))
        nodes = [node("MatMul", ["x", "w"], "h"), node("Mul", ["h", "factor"], "m"), node("Relu", ["m"], "r"),
                 node("MatMul", ["r", "v"], "y")]  # fmt: skip
        return build(nodes, {"x": f32(2, 5)}, ["y"], {"w": state["w"], "factor": factor, "v": state["v"]})

    state = {"w": f32(5, 8), "variance": np.abs(f32(8)) + 0.1, "v": f32(8, 3)}
    relations, _ = check(class_, state, tmp_path)
    assert relations["variance"] == "folded"


def test_rows_that_an_export_took_apart(tmp_path):
    """A bias of two rows is two constants; the first is there once more, with the batch, as a folded state has it."""

    def class_(state):
        first, second = state["bias"]
        nodes = [
            node("MatMul", ["x", "w"], "h"), node("Add", ["h", "first"], "a"), node("Relu", ["a"], "r"),
            node("Add", ["r", "again"], "b"), node("Add", ["b", "second"], "c"), node("Tanh", ["c"], "t"),
            node("MatMul", ["t", "v"], "y"),
        ]  # fmt: skip
        weights = {"w": state["w"], "first": first, "second": second, "again": np.stack([first] * 2), "v": state["v"]}
        return build(nodes, {"x": f32(2, 5)}, ["y"], weights)

    relations, result = check(class_, {"w": f32(5, 8), "bias": f32(2, 8), "v": f32(8, 3)}, tmp_path)
    assert relations["bias"] == "concatenated"
    assert result["bias"].new == (2, 12)


def test_a_norm_whose_factor_is_divided_is_refused(tmp_path):
    """The variance cannot be divided so that its square root is."""

    def class_(state):
        factor = state["gamma"] / np.sqrt(state["variance"] + np.float32(1e-3))
        nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("Mul", ["r", "factor"], "m"),
                 node("ReduceSum", ["m", "axes"], "y", keepdims=1)]  # fmt: skip
        return build(nodes, {"x": f32(2, 5)}, ["y"], {"w": state["w"], "factor": factor, "axes": np.array([1])})

    state = {"w": f32(5, 8), "gamma": f32(8), "variance": np.abs(f32(8)) + 0.1}
    with pytest.raises(RefusedError, match="divided"):
        check(class_, state, tmp_path)


def test_products_of_axes_are_found_behind_a_transposition():
    """(3, 3, channels, multiplier) is (channels x multiplier, 1, 3, 3) in the graph."""
    values = f32(3, 3, 4, 2)
    stored = np.transpose(values, (2, 3, 0, 1)).reshape(8, 1, 3, 3)
    model = build([node("Conv", ["x", "k"], "y", group=4)], {"x": f32(1, 4, 5, 5)}, ["y"], {"k": stored})
    constants = constants_of(load(model))
    (found,) = match({"depth": Stored.of(values)}, constants)["depth"]
    assert found.relation == "transposed"
    np.testing.assert_array_equal(found.read(constants), values)


def test_what_is_no_number_is_the_same_behind_a_growth(tmp_path):
    """As JAX guards a variance: where a count is positive, else NaN."""

    def class_(state):
        nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "v"], "m"),
                 node("Where", ["yes", "m", "nan"], "y")]  # fmt: skip
        guard = {"yes": np.array(True), "nan": np.array(np.nan, np.float32)}
        return build(nodes, {"x": f32(2, 5)}, ["y"], {**state, **guard})

    _, result = check(class_, {"w": f32(5, 8), "v": f32(8, 3)}, tmp_path)
    assert result["w"].new == (5, 12)
