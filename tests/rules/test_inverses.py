"""Each inverse gives its operator's number back, as ONNX's reference computes it."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_net2net.rules.inverses import INVERSES, NEUTRAL, RECTIFIERS, before

VALUES = {"Sigmoid": (0.0, 0.3, 1.0), "Tanh": (-1.0, 0.5, 1.0), "Neg": (-2.0, 2.0), "Log": (-1.0, 2.0)}


def computed(op, *arrays, **attrs):
    names = [f"x{n}" for n in range(len(arrays))]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*names, "y")]
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attrs)], "g", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize(("op", "value"), [(op, value) for op in INVERSES for value in VALUES.get(op, (0.5, 1.0, 2.0))])
def test_an_inverse_is_undone(op, value):
    assert computed(op, np.float32([INVERSES[op](value)])) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("op", sorted(RECTIFIERS))
def test_positive_numbers_stay(op):
    assert (computed(op, np.float32([0.5, 3.0])) == np.float32([0.5, 3.0])).all()


@pytest.mark.parametrize(("op", "place"), [(op, place) for op in sorted(NEUTRAL) for place in (0, 1)])
def test_the_other_operand_stays(op, place):
    (neutral, places), x = NEUTRAL[op], np.float32([-1.5, 0.0, 2.0])
    operands = [x, x]
    operands[place] = np.full(3, neutral, np.float32)
    with np.errstate(divide="ignore"):
        assert (computed(op, *operands) == x).all() == (place in places)


@pytest.mark.parametrize(("op", "attrs"), [("HardSigmoid", {}), ("HardSigmoid", {"alpha": 0.5}), ("LeakyRelu", {})])
def test_attributes_count(op, attrs):
    assert computed(op, np.float32([before(op, attrs, 0.75)]), **attrs) == pytest.approx(0.75)


def test_an_operator_of_which_nothing_is_known_has_no_inverse():
    with pytest.raises(KeyError):
        before("Sin", {}, 0.5)
