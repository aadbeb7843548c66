"""Which loops stay closed, and which Ifs become a branch, as the sizes of the opened graph say."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net.graph.decisions import DOMAIN, Decisions, key, reconsider


def opened(kind: str, inputs: list[str], **constants: np.ndarray):
    """An opened node of a kind behind two tensors of different shapes."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("x", [2, 3]), ("z", [2, 4]))]  # fmt: skip
    condition = helper.make_tensor_value_info("given", TensorProto.BOOL, [])
    node = helper.make_node(kind, inputs, ["y"], domain=DOMAIN)
    graph = helper.make_graph(
        [node], "g", [*values, condition], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)])


@pytest.mark.parametrize("value", [True, False])
def test_an_if_whose_condition_is_a_constant_becomes_a_branch(value):
    decisions = Decisions()
    assert reconsider(opened("If", ["always", "x", "z"], always=np.array(value)), decisions)
    assert decisions.taken == {"y": "then_branch" if value else "else_branch"}
    assert not decisions.closed


def test_an_if_whose_condition_is_given_stays():
    decisions = Decisions()
    assert not reconsider(opened("If", ["given", "x", "z"]), decisions)
    assert decisions == Decisions()


def test_a_node_is_known_by_its_first_output():
    assert key(helper.make_node("Split", ["x"], ["", "b", "c"])) == "b"
    assert not key(helper.make_node("Split", ["x"], [""]))
