"""Nodes that are cut out of a model compute alone what they compute in it."""

import numpy as np
import pytest
from graphs import net
from onnx import TensorProto

from onnx_net2net.run.region import run_region

TEXT = "(float[N, 3] x) => (float[N, 2] y) { a = Relu(x) b = Mul(a, s) c = Add(b, t) y = MatMul(c, w) }"


def test_a_region_reads_its_start_and_the_constants_that_it_is_given():
    s, t = np.float32([2, 3, 4]), np.float32([1, 0, -1])
    proto = net(TEXT, s=s, t=t, w=np.ones((3, 2), np.float32))
    inputs = [np.full((4, 3), value, np.float32) for value in (-1, 5)]
    found = run_region(proto, [1, 2], ("a", TensorProto.FLOAT), ("c", TensorProto.FLOAT), {"s": s, "t": t}, inputs)
    for values, result in zip(inputs, found, strict=True):
        np.testing.assert_array_equal(result, values * s + t)


def test_what_onnxruntime_cannot_run_raises():
    proto = net(TEXT, s=np.ones(3, np.float32), t=np.ones(3, np.float32), w=np.ones((3, 2), np.float32))
    with pytest.raises(Exception, match="'s'"):
        run_region(proto, [1], ("a", TensorProto.FLOAT), ("b", TensorProto.FLOAT), {}, [np.ones((1, 3), np.float32)])
