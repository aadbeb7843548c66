"""Pad, Resize and Upsample in a module: `to_torch` compares each with onnxruntime."""

import numpy as np
import pytest
from graphs import net

from onnx_net2net import to_torch

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2fx")

X = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
SCALES = np.float32([1, 1, 1.6, 2])
SIZES = np.array([2, 3, 9, 4])
CORNERS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def check(text, opset=18, **constants):
    weight = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)
    text = f"(float[2, 3, 6, 6] x) => (float[n, c, h, w] y) {{ a = Conv(x, weight) {text} }}"
    proto = net(text, opset=opset, weight=weight, **constants)
    module = to_torch(proto)  # compares
    module(torch.from_numpy(X)).square().sum().backward()
    assert module.weight.grad.abs().min() > 0


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads(mode):
    opset = 19 if mode == "wrap" else 18
    check(f'y = Pad<mode = "{mode}">(a, pads)', opset, pads=np.array([0, 0, 1, 2, 0, 0, 3, 0]))
    check(f'y = Pad<mode = "{mode}">(a, pads, , axes)', opset, pads=np.array([1, 2]), axes=np.array([-1]))


def test_a_pad_cuts_and_fills():
    check("y = Pad(a, pads, value)", pads=np.array([0, 0, -1, 2, 0, 0, 3, -2]), value=np.float32(0.5))
    check('y = Pad<mode = "constant", pads = [0, 0, 1, 2, 0, 0, 3, 0], value = 0.5>(a)', 9)


@pytest.mark.parametrize("corners", CORNERS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizes(mode, corners):
    how = f'mode = "{mode}", coordinate_transformation_mode = "{corners}"'
    check(f"y = Resize<{how}>(a, , scales)", scales=SCALES)
    check(f"y = Resize<{how}>(a, , , sizes)", sizes=SIZES)
    check(f"y = Resize<{how}, axes = [3]>(a, , , sizes)", sizes=SIZES[3:])


@pytest.mark.parametrize("how", ['mode = "linear", antialias = 1', 'mode = "nearest", nearest_mode = "ceil"'])
def test_resizes_in_other_ways(how):
    check(f"y = Resize<{how}>(a, , scales)", scales=np.float32([1, 1, 0.5, 0.7]))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_older_opsets(mode):
    scales = np.float32([1, 1, 2, 3])
    check(f'y = Resize<mode = "{mode}">(a, scales)', 10, scales=scales)
    check(f'y = Upsample<mode = "{mode}">(a, scales)', 9, scales=scales)
    check(f'y = Upsample<mode = "{mode}", scales = [1.0, 1.0, 2.0, 3.0]>(a)', 7)


def test_a_long_axis_takes_no_matrix():
    text = """(float[1, 1, 60000] x) => (float[1, 1, n] y) {
        a = Conv(x, w)
        y = Resize<coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(a, , scales)
    }"""
    module = to_torch(net(text, w=np.float32([[[2.0]]]), scales=np.float32([1, 1, 2])))
    x = torch.arange(60_000.0)[None, None]
    assert torch.equal(module(x), 2 * x.repeat_interleave(2, -1))
