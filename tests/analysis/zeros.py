"""Networks in ONNX's textual syntax whose weights are zeros: only shapes matter."""

import numpy as np
from onnx import numpy_helper, parser


def net(text, opset=18, **constants):
    """A model in ONNX's textual syntax; a tuple stands for float weights of that shape."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    for name, value in constants.items():
        array = np.zeros(value, np.float32) if isinstance(value, tuple) else np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def grouped(group, up, mid):
    text = f"""(float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) {{
        h = Conv(x, up) g = Conv<group={group}>(h, mid) y = Conv(g, down) }}"""
    return net(text, up=(up, 3, 1, 1), mid=mid, down=(4, mid[0], 1, 1))
