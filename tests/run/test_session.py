"""onnxruntime, as all comparisons run it."""

import numpy as np
from graphs import net

from onnx_net2net import widen
from onnx_net2net.model.model import load
from onnx_net2net.run.session import LEVELS, Runner


def test_sums_of_bytes_do_not_overflow():
    """Pairs of products of 255 and 127 are beyond 16 bits, in which some processors add them."""
    weights = np.full((64, 32), 127, np.int8)
    model = load(net("(uint8[B, 64] x) => (int32[B, 32] y) { y = MatMulInteger (x, w) }", w=weights))
    inputs = np.full((4, 64), 255, np.uint8)
    with model.on_disk() as path:
        (found,) = Runner(path, LEVELS[-1])({"x": inputs}).values()
    np.testing.assert_array_equal(found, inputs.astype(np.int32) @ weights.astype(np.int32))


def test_a_student_opens_before_it_is_saved():
    student = widen(net("(float[B, 4] x) => (float[B, 2] y) { h = MatMul (x, v) y = MatMul (h, w) }",
                        v=np.ones((4, 6), np.float32), w=np.ones((6, 2), np.float32)), factor=2).student  # fmt: skip
    (found,) = student.session().run(None, {"x": np.ones((3, 4), np.float32)})
    np.testing.assert_allclose(found, np.full((3, 2), 24.0), rtol=1e-6)
