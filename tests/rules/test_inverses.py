"""Each inverse gives its operator's number back, as ONNX's reference computes it."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_net2net.rules.inverses import INVERSES, NEUTRAL, RECTIFIERS

VALUES = {"Sigmoid": (0.0, 0.3, 1.0), "Tanh": (-1.0, 0.5, 1.0), "Neg": (-2.0, 2.0), "Log": (-1.0, 2.0)}


def computed(op, *arrays):
    names = [f"x{n}" for n in range(len(arrays))]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*names, "y")]
    graph = helper.make_graph([helper.make_node(op, names, ["y"])], "g", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize(("op", "value"), [(op, value) for op in INVERSES for value in VALUES.get(op, (0.5, 1.0, 2.0))])
def test_an_inverse_is_undone(op, value):
    assert computed(op, np.float32([INVERSES[op](value)])) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("op", sorted(RECTIFIERS))
def test_positive_numbers_stay(op):
    assert (computed(op, np.float32([0.5, 3.0])) == np.float32([0.5, 3.0])).all()


@pytest.mark.parametrize("op", sorted(NEUTRAL))
def test_the_other_operand_stays(op):
    x = np.float32([-1.5, 0.0, 2.0])
    assert (computed(op, x, np.full(3, NEUTRAL[op], np.float32)) == x).all()
