"""Operators of ai.onnx.ml in front of a network keep nothing behind them from growing."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_net2net import RefusedError, inspect, verify, widen


def behind(kind: str, dtype: str) -> onnx.ModelProto:
    """Two layers behind an operator that prepares three features."""
    teacher = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> g ({dtype}[N, 3] x) => (float[N, 2] y) {{
        f = ai.onnx.ml.{kind}(x) h = MatMul(f, w) r = Relu(h) y = MatMul(r, v) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (3, 5), "v": (5, 2)}.items():
        teacher.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return teacher


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Scaler<offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0]>", "float"),
        ("Scaler<offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0]>", "double"),
        ('Normalizer<norm="L2">', "float"),
        ("Imputer<imputed_value_floats=[0.5]>", "float"),
        ("Binarizer<threshold=0.5>", "float"),
    ],
)
def test_a_network_behind_prepared_features_grows(kind, dtype):
    teacher = behind(kind, dtype)
    widened = widen(teacher, factor=1.37)
    assert widened.covered == 1
    verify(teacher, widened.student).raise_if_different()


def test_prepared_features_grow_not_even_on_request():
    teacher = behind("Scaler<offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0]>", "float")
    (name,) = [group.name for group in inspect(teacher).groups if group.size == 3]
    with pytest.raises(RefusedError, match="prepares features one by one"):
        widen(teacher, sizes={name: 4})
