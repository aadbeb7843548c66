"""Experts that are modules of their own are found by the numbers that they are compared with."""

import numpy as np
import pytest
from moe import LOOKED_UP, ROUTERS, E, apart, moe

from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.modules import find_modules
from onnx_net2net.analysis.routers import chosen_dims
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load

NORMED = ROUTERS["softmax, top-k, normed"]


def found(dispatch, **changed):
    analysis = infer(load(moe(NORMED, dispatch, **changed)))
    return analysis, find_modules(analysis, chosen_dims(analysis))


@pytest.mark.parametrize("kind", ["masked", "picked rows"])
def test_each_expert_has_its_number(kind):
    analysis, (modules,) = found(apart(kind))
    assert modules.axis.size == E
    names = [analysis.nodes[number].inputs[index].name for number, index in modules.numbers]
    assert names == [f"n{expert}" for expert in range(E)]


def test_stacks_are_no_modules():
    assert found(LOOKED_UP)[1] == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (apart("masked").replace("Equal(i, n3)", "Equal(i, n2)"), "expert 2 is asked for twice"),
        (apart("masked").replace("Equal(i, n3)", "Equal(i, n9)"), "some have a module of their own, others have none"),
        (apart("masked").replace("sum2 = Add(sum1, term2)", "sum2 = Max(sum1, term2)"),
         "Max 'sum2' combines the results of experts otherwise than by a sum"),
        (apart("masked").replace("sum3 = Add(sum2, term3)", "again = Add(term1, term3) sum3 = Add(sum2, again)"),
         "belongs to one expert, and more than the sum reads its result"),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_refused(text, reason):
    with pytest.raises(RefusedError, match="experts cannot get copies") as refused:
        found(text, n9=np.array(9))
    assert reason in str(refused.value)
