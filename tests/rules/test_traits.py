"""Traits name operators that exist, and what they claim holds in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, defs, helper
from onnx.reference import ReferenceEvaluator

from onnx_net2net.rules import supported, traits

X = np.array([[[[-2.5, -1.0, 0.0, 0.5], [1.0, 2.0, -4.0, 8.0]]]], np.float32)
KNOWN = {schema.name for schema in defs.get_all_schemas()} | {kind for _, kind, _ in supported()}
SETS = {name: kinds for name, kinds in vars(traits).items() if isinstance(kinds, frozenset)}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AveragePool": {"kernel_shape": [1, 2]},
    "MaxPool": {"kernel_shape": [1, 2]},
    "Cast": {"to": TensorProto.DOUBLE},
    "SpaceToDepth": {"blocksize": 2},
    "Softmax": {"axis": -1},
}
OPERANDS: dict[str, list[np.ndarray]] = {
    "Reshape": [np.array([-1])],
    "Squeeze": [np.array([0])],
    "Unsqueeze": [np.array([0])],
    "Slice": [np.array([1]), np.array([3]), np.array([3])],
    "Gather": [np.array([0, 0])],
    "GatherND": [np.array([[0, 0]])],
    "GatherElements": [np.zeros((1, 1, 2, 4), np.int64)],
    "Expand": [np.array([3, 1, 2, 4])],
    "Tile": [np.array([2, 1, 1, 1])],
    "Pad": [np.array([0, 0, 0, 1, 0, 0, 0, 1])],
    "PRelu": [np.array([0.25], np.float32)],
    "CastLike": [np.array([0.0])],
}
UNTRIED = {"Split", "DepthToSpace", "DequantizeLinear", "Resize", "ScatterND", "Where", "Concat"}
"""Operators that take more to be run here than a tensor and a table entry."""


def run(kind: str, x: np.ndarray) -> np.ndarray:
    """Return what an operator makes of a tensor, of the same one at all operands if it adds or compares them."""
    operands = OPERANDS.get(kind, [x] if kind in traits.BROADCASTING else [])
    inputs = {"x": x, **{f"x{place}": value for place, value in enumerate(operands)}}
    node = helper.make_node(kind, list(inputs), ["y"], **ATTRIBUTES.get(kind, {}))
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    graph = helper.make_graph([node], kind, values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return np.asarray(ReferenceEvaluator(model).run(None, inputs)[0], np.float64)


@pytest.mark.parametrize("name", SETS)
def test_every_name_is_an_operator(name: str) -> None:
    assert {kind[0] if isinstance(kind, tuple) else kind for kind in SETS[name]} <= KNOWN


@pytest.mark.parametrize("kind", sorted(traits.MOVES - UNTRIED))
def test_what_moves_has_values_of_the_input_and_no_others(kind: str) -> None:
    assert set(run(kind, X).reshape(-1)) <= set(X.reshape(-1).tolist())


@pytest.mark.parametrize("kind", sorted(traits.LINEAR - UNTRIED))
def test_linear_operators_commute_with_any_factor(kind: str) -> None:
    for factor in (2.0, -3.0):
        np.testing.assert_allclose(run(kind, X * np.float32(factor)), factor * run(kind, X), rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(traits.POSITIVE))
def test_positive_operators_commute_with_positive_factors_only(kind: str) -> None:
    np.testing.assert_allclose(run(kind, X * np.float32(2)), 2 * run(kind, X), rtol=1e-6)
    if kind not in traits.EXTREMES:  # of one tensor with itself they are linear
        assert not np.allclose(run(kind, -X), -run(kind, X))


@pytest.mark.parametrize("kind", sorted(traits.HOMOGENEOUS - traits.LINEAR - traits.POSITIVE - UNTRIED))
def test_homogeneous_operators_commute_with_positive_factors(kind: str) -> None:
    np.testing.assert_allclose(run(kind, X * np.float32(2)), 2 * run(kind, X), rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(traits.BOUNDED))
def test_bounded_operators_stay_within_one(kind: str) -> None:
    assert np.abs(run(kind, X * np.float32(10))).max() <= 1 + 1e-6


def test_a_rearranged_weight_is_moved_or_dequantized() -> None:
    assert traits.REARRANGES - {"DequantizeLinear"} <= traits.MOVES


def test_what_acts_on_units_alone_has_one_kind() -> None:
    kinds = [kind for row in traits.UNARY.values() for kind in row]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("kind", sorted(traits.DEGREES))
def test_degrees_say_with_which_power_a_result_grows(kind: str) -> None:
    values = [np.array([[0.5, 2.0], [3.0, 4.0]]) + place for place in range(len(traits.DEGREES[kind]))]
    operator = ReferenceEvaluator(helper.make_node(kind, [f"x{place}" for place in range(len(values))], ["y"]))
    for place, degree in enumerate(traits.DEGREES[kind]):
        larger = [value * (3.0 if k == place else 1.0) for k, value in enumerate(values)]
        plain, made = (operator.run(None, {f"x{k}": v for k, v in enumerate(x)})[0] for x in (values, larger))
        np.testing.assert_allclose(made, 3.0**degree * plain)


@pytest.mark.parametrize("kind", sorted(traits.SQUARES))
def test_squares_are_summed_to_a_power(kind: str) -> None:
    node = helper.make_node(kind, ["x", "axes"], ["y"], keepdims=0)
    (made,) = ReferenceEvaluator(node).run(None, {"x": X.astype(np.float64), "axes": np.array([3])})
    np.testing.assert_allclose(made, np.square(X.astype(np.float64)).sum(3) ** traits.SQUARES[kind])


@pytest.mark.parametrize(
    ("kind", "attributes", "shape"),
    [("MatMul", {}, (3, 2)), ("Gemm", {}, (3, 2)), ("Gemm", {"transB": 1}, (2, 3)), ("Conv", {}, (2, 3, 1)),
     ("ConvTranspose", {}, (3, 2, 1))],
)  # fmt: skip
def test_weights_read_and_make_along_these_axes(kind: str, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    made, read = traits.weight_axes(kind, attributes)
    assert (shape[read], shape[made]) == (3, 2)
    x = np.ones((1, 3, 1) if len(shape) == 3 else (1, 3), np.float32)
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    (y,) = ReferenceEvaluator(node).run(None, {"x": x, "w": np.ones(shape, np.float32)})
    assert y.shape[1] == 2
