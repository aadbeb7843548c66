"""Operators of ai.onnx.ml in front of a network keep nothing behind them from growing."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnx_net2net import verify, widen


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
    teacher = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> g ({dtype}[N, 3] x) => (float[N, 2] y) {{
        f = ai.onnx.ml.{kind}(x) h = MatMul(f, w) r = Relu(h) y = MatMul(r, v) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (3, 5), "v": (5, 2)}.items():
        teacher.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    widened = widen(teacher, factor=1.37)
    assert widened.covered == 1
    verify(teacher, widened.student).raise_if_different()
