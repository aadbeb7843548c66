"""Constants that a class computes are told by the exporter's notes, or by a formula."""

import numpy as np
import pytest
from classes import draw, sizes_of, widen_for_class
from graphs import net
from onnx import TensorProto, helper

from onnx_net2net import RefusedError, widen
from onnx_net2net.analysis.computed import follows_a_formula


@pytest.mark.parametrize(
    ("kind", "persistent", "others", "holds"),
    [
        ("PARAMETER", "None", "PARAMETER", False),
        ("BUFFER", "True", "PARAMETER", False),
        ("BUFFER", "False", "PARAMETER", True),
        ("CONSTANT_TENSOR", "None", "PARAMETER", True),
        ("CONSTANT_TENSOR", "None", "CONSTANT_TENSOR", False),  # as of Keras, where all are such
    ],
)
def test_what_the_exporter_says_is_in_no_state_dict_is_held(kind, persistent, others, holds):
    text = "(float[N, 6] x) => (float[N, 3] y) { e = MatMul(x, embed) m = Mul(e, scale) y = MatMul(m, head) }"
    teacher = net(text, embed=draw(6, 8), scale=draw(8), head=draw(8, 3))
    for name, shape, what in (("scale", [8], kind), ("head", [8, 3], others)):
        value = teacher.graph.value_info.add()
        value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        for key, text in (("kind", what), ("persistent", persistent if name == "scale" else "None")):
            entry = value.metadata_props.add()
            entry.key, entry.value = f"pkg.torch.export.graph_signature.InputSpec.{key}", text
    if holds:
        with pytest.raises(RefusedError, match="a class computes it from its sizes"):
            widen(teacher, framework="torch", sizes={"embed": 12})
    else:
        assert sizes_of(widen_for_class(teacher, sizes={"embed": 12})) == {"embed": 12}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(5), True), (2.0 ** -np.arange(4), True), (np.hanning(9), True), (np.eye(4), True),
        (np.sin(np.arange(12)[:, None] * 10.0 ** -np.arange(3)), True), (draw(4), False), (draw(7, 9), False),
        (np.repeat(draw(1, 9), 8, axis=0), False),
    ],
)  # fmt: skip
def test_values_of_a_formula_are_told_from_weights(values, expected):
    assert follows_a_formula(values.astype(np.float32)) == expected
