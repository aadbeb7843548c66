"""onnxruntime, as all comparisons run it."""

import numpy as np
import onnxruntime as ort
import pytest
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


def test_a_model_on_which_the_pass_for_bytes_fails_opens_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gave two constants of a quantized ViT one name."""
    tried, opened = [], ort.InferenceSession

    def fails_with_it(source: object, options: ort.SessionOptions, *args: object, **named: object) -> object:
        tried.append(options.get_session_config_entry("session.x64quantprecision") if not tried else "")
        if len(tried) == 1:
            raise RuntimeError("Attempt to replace the existing tensor")
        return opened(source, options, *args, **named)

    monkeypatch.setattr(ort, "InferenceSession", fails_with_it)
    model = net("(float[2] x) => (float[2] y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    (found,) = Runner(model.SerializeToString())({"x": np.zeros(2, np.float32)}).values()
    assert (tried, found.tolist()) == (["1", ""], [1.0, 1.0])
