"""Operators that index, search and sample: the axes that they look along stay, the others grow exactly."""

import contextlib

import numpy as np
import pytest
from graphs import LAST_OPSET, analyse_open, build, conform, growable, loads_opset, needs
from onnx import TensorProto, defs, helper, numpy_helper, parser

from onnx_net2net import RefusedError, inspect, load, verify, widen

FLOAT = np.float32
RNG = np.random.default_rng(3)


def ints(*shape, below):
    return RNG.integers(0, below, shape)


def floats(*shape):
    return (RNG.random(shape) + 0.25).astype(FLOAT)


class Fed:
    """An operand that is no constant."""

    def __init__(self, array):
        self.array = np.asarray(array)


# --- One operator, anything may grow ------------------------------------------------------------------------------

ROWS = []


def row(kind, *operands, free, opset=20, outputs=1, **attrs):
    """A node; a shape stands for floats that are fed, an array for a constant. `free` are the sizes that may grow."""
    given = " ".join(str(o.array.shape if isinstance(o, Fed) else getattr(o, "shape", o)) for o in operands)
    extras = " ".join(f"{key}={value}" for key, value in attrs.items())
    ROWS.append(pytest.param(kind, operands, free, opset, outputs, attrs, id=f"{kind}-{opset} {given} {extras}"))


# Looking along an axis: the indices of the other axes are copied with their units.
row("GatherElements", (3, 5, 7), ints(3, 2, 7, below=5), free={2, 3, 7}, axis=1)
row("GatherElements", (3, 5, 7), Fed(ints(3, 2, 7, below=5)), free={2, 3, 7}, axis=-2)
row("GatherElements", (3, 5, 7), Fed(ints(3, 5, 4, below=7) - 7), free={3, 4, 5}, axis=2, opset=11)
row("GatherElements", (5, 7), ints(5, 7, below=5), free={5, 7})  # the result's axis is that of the indices
row("GatherElements", (5, 7), ints(2, 4, below=5), free={2})
row("GatherND", (5, 7, 3), ints(2, 1, below=5), free={2, 3, 7})
row("GatherND", (5, 7, 3), ints(2, 4, 2, below=5), free={2, 3, 4})
row("GatherND", (5, 7, 3), Fed(ints(2, 11, 3, below=3)), free={2, 11})
row("GatherND", (5, 7, 3), Fed(ints(5, 2, 1, below=7)), free={2, 3, 5}, batch_dims=1)
row("GatherND", (5, 7, 3), Fed(ints(5, 7, 1, below=3)), free={5, 7}, batch_dims=2)
row("GatherND", (5, 7, 3), Fed(ints(2, 4, 2, below=5)), free={2, 3, 4}, opset=11)
row("ScatterElements", (3, 5, 7), ints(3, 2, 7, below=5), (3, 2, 7), free={3, 7}, axis=1)
row("ScatterElements", (3, 5, 7), Fed(ints(3, 2, 7, below=5)), (3, 2, 7), free={3, 7}, axis=1, reduction="add")
row("ScatterElements", (3, 5), np.array([[1], [0], [4]]), (3, 1), free={3}, axis=-1, opset=11)
row("ScatterElements", (3, 5), np.array([[1, 3], [2, 0]]), (2, 2), free=set(), axis=1, reduction="max")
row("Scatter", (3, 5, 7), np.tile([[[0], [3]]], (3, 1, 7)), (3, 2, 7), free={3, 7}, axis=1, opset=9)
row("ScatterND", (5, 7, 3), np.array([[0], [4]]), (2, 7, 3), free={3, 7})
row("ScatterND", (5, 7, 3), np.array([[0], [0]]), (2, 7, 3), free={3, 7}, reduction="mul")
row("ScatterND", (5, 7, 3), np.array([[0, 1], [3, 2]]), (2, 3), free={3}, reduction="min", opset=18)
row("ScatterND", (5, 7), np.array([[0, 1], [3, 2]]), (2,), free=set(), opset=11)
row("ScatterND", (9, 7), np.array([[2], [3], [4], [5]]), (4, 7), free={2, 3, 4, 7})  # a range is a piece of the axis
row("ScatterND", (9,), np.array([[-4], [-3], [-2], [-1]]), (4,), free={4, 5}, reduction="add")
row("ScatterND", (8,), np.array([[3], [4], [5]]), np.zeros((3,), FLOAT), free={2, 3})
row("ScatterND", (9,), np.array([[3]]), (1,), free=set())


def grid(*places):
    """Indices of every element of a window, as TorchScript writes y[:, :, 2:] = x."""
    return np.stack(np.meshgrid(*places, indexing="ij"), -1)


# Whole axes that a window covers in order pass; ranges are cut out, what skips places or goes backwards stays.
row("ScatterND", (2, 3, 9), grid([0, 1], [0, 1, 2], range(2, 9)), (2, 3, 7), free={2, 3, 7})
row("ScatterND", (2, 3, 9), grid([-2, -1], [-3, -2, -1], range(-9, -4)), (2, 3, 5), free={2, 3, 4, 5})
row("ScatterND", (1, 3, 9), grid([0], range(3), [1, 3, 5, 7]), (1, 3, 4), free={3}, reduction="add", opset=18)
row("ScatterND", (4, 3, 9), grid(range(4), [2, 1, 0], range(9)), (4, 3, 9), free={4, 9})
row("ScatterND", (5, 7, 3), grid(range(5), range(2, 4)), (5, 2, 3), free={2, 3, 5})
row("ScatterND", (6, 7), np.array([[k, k] for k in range(6)]), (6,), free=set())
row("ScatterND", (5, 7), np.array([[[a, (a + b) % 7] for b in range(3)] for a in range(5)]), (5, 3), free=set())
row("ScatterND", (2, 11, 70), grid(range(2), range(11), range(3, 70)), (2, 11, 67), free={2, 3, 11, 67})
row("ScatterND", (9,), Fed([[3], [4]]), (2,), free=set())
row("TensorScatter", (2, 11, 5), (2, 3, 5), Fed([4, 1]), free={2, 5}, opset=24)
row("TensorScatter", (2, 3, 11, 5), (2, 3, 1, 5), Fed([4, 12]), free={2, 3, 5}, opset=24, mode="circular")
row("TensorScatter", (2, 5, 11), (2, 5, 3), free={2, 5}, opset=24, axis=-1)
row("OneHot", Fed(ints(2, 3, below=7)), np.array(7), floats(2), free={2, 3})
row("OneHot", Fed(ints(2, 3, below=7)), np.array(7), floats(2), free={2, 3}, axis=1, opset=9)

# The order along an axis counts.
row("TopK", (2, 3, 7), np.array([4]), free={2, 3}, outputs=2)
row("TopK", (2, 7, 3), np.array([4]), free={2, 3}, outputs=2, axis=1, largest=0)
row("TopK", (2, 7, 3), free={2, 3}, outputs=2, axis=-2, k=4, opset=9)
row("CumSum", (2, 3, 5), np.array(1), free={2, 5})
row("CumSum", (2, 3, 5), np.array([-1]), free={2, 3}, exclusive=1, reverse=1, opset=11)
row("CumSum", (2, 3, 5), Fed(np.array(1)), free=set())
row("CumProd", (2, 3, 5), np.array(1), free={2, 5}, opset=26, exclusive=1)
row("ReverseSequence", (7, 3, 5), Fed(np.array([2, 7, 4])), free={3, 5})
row("ReverseSequence", (3, 7, 5), np.array([2, 7, 4]), free={5}, batch_axis=0, time_axis=1)
row("Trilu", (2, 3, 4, 4), free={2, 3})
row("Trilu", (2, 3, 4, 5), np.array(-1), free={2, 3}, upper=0)
row("CenterCropPad", (3, 5, 7), np.array([4]), free={3, 7}, axes=[1])
row("CenterCropPad", (3, 5, 7), np.array([9, 7]), free={3, 7}, axes=[1, -1])
row("CenterCropPad", (3, 5, 7), np.array([3, 2, 7]), free={3, 7})
row("Det", (5, 3, 3), free={5})
row("Det", (2, 5, 4, 4), free={2, 5}, opset=11)
row("DFT", (2, 5, 7, 1), free={2, 7}, opset=17)
row("DFT", (2, 5, 7, 2), free={2, 5}, opset=17, axis=2, inverse=1)
row("DFT", (2, 5, 7, 1), np.array(5), free={2, 7}, opset=17, onesided=1)
row("DFT", (2, 5, 7, 1), free={2, 5})
row("DFT", (2, 5, 7, 1), None, np.array(-3), free={2, 7})
row("STFT", (5, 32, 1), np.array(4), floats(8), np.array(8), free={5}, opset=17, onesided=0)
row("STFT", (5, 32, 1), np.array(4), floats(8), free={5}, opset=17)
row("STFT", (5, 32, 1), np.array(4), None, np.array(8), free={5})

# Channels are sampled one by one.
REGIONS = np.array([[0, 0, 5, 7], [1, 2, 8, 8], [2, 2, 4, 3]], FLOAT)
row("GridSample", (2, 3, 4, 5), (2, 6, 7, 2), free={2, 3}, opset=16)
row("GridSample", (2, 3, 4, 5), (2, 6, 7, 2), free={2, 3}, padding_mode="reflection", align_corners=1, mode="nearest")
row("GridSample", (2, 3, 4, 5, 6), (2, 3, 4, 5, 3), free={2, 3})
row("RoiAlign", (2, 5, 9, 9), REGIONS, np.array([0, 1, 1]), free={5}, output_height=2, output_width=2)
row("RoiAlign", (2, 5, 9, 9), REGIONS, np.array([0, 1, 1]), free={5}, opset=10, mode="max", sampling_ratio=2)
row("MaxRoiPool", (1, 5, 9, 9), np.array([[0, 1, 1, 6, 6]], FLOAT), free={5}, pooled_shape=[2, 2])
row("DeformConv", (2, 5, 5, 6), (7, 5, 2, 2), (2, 8, 4, 5), free={2, 5, 7}, kernel_shape=[2, 2])
row("DeformConv", (2, 5, 5, 6), (7, 5, 2, 2), (2, 8, 4, 5), (7,), (2, 4, 4, 5), free={2, 5, 7}, kernel_shape=[2, 2])
row("DeformConv", (2, 10, 5, 6), (14, 5, 1, 1), (2, 2, 5, 6), free={2, 5, 7}, group=2)
row("DeformConv", (2, 6, 5, 6), (7, 6, 1, 1), (2, 4, 5, 6), free={2, 3, 7}, offset_group=2)
row("DeformConv", (2, 6, 5, 6), (14, 3, 1, 1), (2, 4, 5, 6), free={2, 3, 7}, group=2, offset_group=2)
row("DeformConv", (3, 20, 4, 4), (28, 5, 1, 1), (3, 4, 4, 4), free={2, 3, 5, 7}, group=4, offset_group=2)
row("Col2Im", (2, 20, 9), np.array([4, 4]), np.array([2, 2]), free={2, 5})
row("Col2Im", (2, 12, 6), np.array([5, 6]), np.array([2, 2]), free={2, 3}, opset=18, strides=[2, 2], dilations=[2, 1])

# Units alone.
row("SwiGLU", (2, 3), (2, 3), free={2, 3}, opset=28, alpha=1.5)
row("BitCast", (2, 3), free={2, 3}, opset=26, to=TensorProto.INT32)
row("CausalConvWithState", (2, 5, 7), (5, 1, 3), (5,), (2, 5, 2), free={2, 5}, opset=27, outputs=2, activation="silu")
row("NegativeLogLikelihoodLoss", (2, 5, 3), Fed(ints(2, 3, below=5)), (5,), free={2, 3}, reduction="none")
row("NegativeLogLikelihoodLoss", (2, 5, 3), Fed(ints(2, 3, below=5)), free=set(), reduction="sum")
row("SoftmaxCrossEntropyLoss", (2, 5, 3, 7), Fed(ints(2, 3, 7, below=5)), free={2, 3, 7}, reduction="none", outputs=2)
row("SoftmaxCrossEntropyLoss", (2, 5), Fed(ints(2, below=5)), free=set())
row("Affine", (2, 3), free={2, 3}, opset=9, alpha=2.0, beta=1.0)
row("ParametricSoftplus", (2, 3), free={2, 3}, opset=9, alpha=2.0, beta=1.0)
row("Scale", (2, 3), free={2, 3}, opset=9, scale=3.0)
row("ScaledTanh", (2, 3), free={2, 3}, opset=9, alpha=2.0, beta=1.0)
row("ImageScaler", (2, 3, 4, 5), free={2, 4, 5}, opset=9, scale=2.0, bias=[1.0, 2.0, 3.0])
row("Crop", (2, 3, 6, 7), free={2, 3}, opset=9, border=[1, 2, 0, 1])
row("Crop", (2, 3, 6, 7), free={2, 3}, opset=9, border=[1, 2, 0, 0], scale=[4, 5])


@pytest.mark.parametrize(("kind", "operands", "free", "opset", "outputs", "attrs"), ROWS)
def test_a_grown_operator_computes_grown_outputs(kind, operands, free, opset, outputs, attrs, monkeypatch):
    if opset > defs.onnx_opset_version():
        pytest.skip("the installed onnx does not know the operator")
    if opset > LAST_OPSET:  # onnxruntime has no kernel; the reference operator runs instead
        monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
        monkeypatch.setattr("onnx_net2net.model.checks.OPSETS", range(7, opset + 1))
    rng = np.random.default_rng(5)
    names = ["" if operand is None else f"x{index}" for index, operand in enumerate(operands)]
    feeds, constants = {}, {}
    for name, operand in zip(names, operands, strict=True):
        if isinstance(operand, np.ndarray):
            constants[name] = operand
        elif operand is not None:
            feeds[name] = operand.array if isinstance(operand, Fed) else floats(*operand)
    node = helper.make_node(kind, names, [f"y{index}" for index in range(outputs)], **attrs)
    proto = build([node], feeds, node.output, constants, opset=opset)
    for _ in range(2):
        conform(proto, feeds, rng)
    assert {dim.size for dim in growable(analyse_open(load(proto)))} == free


# --- Whole networks -----------------------------------------------------------------------------------------------


def net(text, opset=20, **weights):
    """A model in ONNX's textual syntax, with initializers."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(FLOAT)


def sequence(middle, **more):
    """A net with 16 hidden units on the last axis: h is [2, 5, 16], and m [2, ?, 16] goes on."""
    opset = more.pop("opset", 20)
    text = f"(float[2, 5, 8] x) => (float y) {{ h = MatMul(x, up) {middle} y = MatMul(m, down) }}"
    weights = {"up": draw(8, 16), "side": draw(8, 16), "down": draw(16, 4)} | more
    proto = net(text, opset, **{name: value for name, value in weights.items() if name in text})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def image(middle, channels=16, **more):
    """A net with hidden channels: h is [2, 16, 9, 9], and m [?, channels, ?, ?] goes on."""
    opset = more.pop("opset", 20)
    text = f"(float[2, 3, 9, 9] x) => (float y) {{ h = Conv(x, up) {middle} y = Conv(m, down) }}"
    proto = net(text, opset, **({"up": draw(16, 3, 1, 1), "down": draw(4, channels, 1, 1)} | more))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


PLACES = np.array([[0, 3], [1, 1]])
NETS = {
    "GatherElements": sequence("m = GatherElements<axis = 1>(h, at)", at=ints(2, 3, 16, below=5)),
    "GatherElements of computed places": sequence(
        "s = MatMul(x, side) v, at = TopK<axis = 1>(s, k) m = GatherElements<axis = 1>(h, at)", k=np.array([3])
    ),
    "GatherElements of expanded places": sequence(
        "at = Expand(one, to) m = GatherElements<axis = 1>(h, at)",
        one=np.array([[[2], [0], [1]]]), to=np.array([2, 3, 16]),
    ),
    "GatherElements of places expanded to a shape": sequence(
        "to = Shape(h) at = Expand(one, to) m = GatherElements<axis = 1>(h, at)", one=np.array([[[2]], [[1]]]),
    ),
    "GatherND": sequence("m = GatherND(h, at)", at=PLACES),
    "GatherND in a batch": sequence("m = GatherND<batch_dims = 1>(h, at)", at=np.array([[[0], [2]], [[4], [4]]])),
    "ScatterElements": sequence(
        "s = MatMul(x, side) m = ScatterElements<axis = 1, reduction = \"add\">(h, at, s)", at=ints(2, 5, 16, below=5)
    ),
    "ScatterND": sequence("u = GatherND(h, of) m = ScatterND(h, at, u)", of=PLACES, at=np.array([[1, 2], [0, 4]])),
    "ScatterND into zeros": sequence(
        "u = GatherND(h, at) m = ScatterND(none, at, u)", at=PLACES, none=np.zeros((2, 5, 16), FLOAT)
    ),
    "ScatterND of a range": sequence(
        "c = Concat<axis = -1>(h, h, h) b = ScatterND(bias, at, none) s = Add(c, b) m, k, v = Split<axis = -1>(s, n)",
        bias=draw(48), at=np.arange(16, 32)[:, None], none=np.zeros(16, FLOAT), n=np.array([16, 16, 16]),
    ),
    "Scatter": sequence("m = Scatter<axis = 1>(h, at, h)", opset=10, at=np.tile(np.arange(5)[::-1, None], (2, 1, 16))),
    "Slice of every other unit, twice": sequence(
        "g = Slice(h, zero, far, last, two) v = Slice(h, one, far, last, two) s = Sigmoid(g) m = Mul(s, v)",
        zero=np.array([0]), one=np.array([1]), two=np.array([2]), last=np.array([-1]), far=np.array([2**63 - 1]),
        down=draw(8, 4),
    ),
    "TopK": sequence("m, at = TopK<axis = 1>(h, k)", k=np.array([2])),
    "Compress": sequence("m = Compress<axis = 1>(h, kept)", kept=np.array([True, False, True, True, False])),
    "NonZero": sequence(
        "s = ReduceMax<keepdims = 0>(x, last) b = Greater(s, zero) f = NonZero(b) p = Transpose(f) g = GatherND(h, p) "
        "m = Unsqueeze(g, first)", last=np.array([2]), zero=floats(1)[0] * 0, first=np.array([0]),
    ),
    "CumSum": sequence("m = CumSum(h, one)", one=np.array(1)),
    "CumProd": sequence("m = CumProd(h, one)", opset=26, one=np.array(-2)),
    "ReverseSequence": sequence("m = ReverseSequence<batch_axis = 0, time_axis = 1>(h, n)", n=np.array([3, 5])),
    "OneHot": sequence(
        "a = ArgMax<axis = 1, keepdims = 0>(h) m = OneHot<axis = 1>(a, n, values)", n=np.array(5), values=floats(2)
    ),
    "Trilu": sequence("t = Transpose<perm = [2, 0, 1]>(h) u = Trilu(t) m = Transpose<perm = [1, 2, 0]>(u)"),
    "CenterCropPad": sequence("m = CenterCropPad<axes = [1, 2]>(h, to)", to=np.array([8, 16])),
    "Det": sequence("d = Det(boxes) m = Add(h, d)", boxes=draw(16, 3, 3)),
    "DFT": sequence(
        "c = Unsqueeze(h, last) d = DFT(c, , axis) r = Gather<axis = -1>(d, one) m = Identity(r)",
        last=np.array([-1]), axis=np.array(1), one=np.array(1),
    ),
    "TensorScatter": sequence(
        "m = TensorScatter(cache, h, n)", opset=24, cache=draw(2, 11, 16), n=np.array([0, 4])
    ),
    "STFT": net(
        "(float[8, 32] x) => (float[4, 7, 5, 2] y) { h = MatMul(up, x) s = STFT(h, step, window) "
        "r = Reshape(s, flat) d = MatMul(down, r) y = Reshape(d, back) }",
        up=draw(16, 8), down=draw(4, 16), step=np.array(4), window=draw(8),
        flat=np.array([16, 70]), back=np.array([4, 7, 5, 2]),
    ),
    "GridSample": image("m = GridSample(h, grid)", grid=draw(2, 3, 5, 2)),
    "RoiAlign": image(
        "m = RoiAlign<output_height = 2, output_width = 2>(h, rois, of)",
        rois=REGIONS, of=np.array([0, 1, 1]),
    ),
    "MaxRoiPool": image(
        "m = MaxRoiPool<pooled_shape = [2, 3]>(h, rois)", rois=np.array([[0, 0, 0, 5, 7], [1, 1, 2, 8, 8]], FLOAT)
    ),
    "DeformConv": image(
        "o = Conv(x, offsets) m = DeformConv(h, w, o, b)",
        channels=6, offsets=draw(2, 3, 1, 1), w=draw(6, 16, 1, 1), b=draw(6),
    ),
    "DeformConv in groups": image(
        "o = Conv(x, offsets) m = DeformConv<group = 4, offset_group = 2>(h, w, o)",
        channels=12, offsets=draw(4, 3, 1, 1), w=draw(12, 4, 1, 1),
    ),
    "Col2Im": net(
        "(float[2, 3, 9] x) => (float[2, 4, 4, 4] y) "
        "{ h = MatMul(up, x) c = Col2Im(h, size, block) y = Conv(c, down) }",
        up=draw(20, 3), down=draw(4, 5, 1, 1), size=np.array([4, 4]), block=np.array([2, 2]),
    ),
    "NegativeLogLikelihoodLoss": sequence(
        "n = NegativeLogLikelihoodLoss<reduction = \"none\">(h, is) m = Unsqueeze(n, one)",
        one=np.array([1]), **{"is": ints(2, 16, below=5)},
    ),
    "Affine": image("a = Affine<alpha = 2.0, beta = 0.5>(h) m = Crop<border = [1, 1, 2, 0]>(a)", opset=9),
}  # fmt: skip


@pytest.mark.parametrize("map", ["replicate", "zero_in", "zero_out"])
@pytest.mark.parametrize("factor", [1.37, 2])
@pytest.mark.parametrize("kind", NETS)
def test_a_wider_net_computes_the_same(kind, factor, map):
    opset = NETS[kind].opset_import[0].version
    needs(loads_opset(opset), f"runtime of opset {opset}")
    with contextlib.suppress(RefusedError) if map != "replicate" else contextlib.nullcontext():
        widening = widen(NETS[kind], factor=factor, map=map)
        verify(NETS[kind], widening.student).raise_if_different()
        assert all(change.new == round(change.wanted) for change in widening.changes if change.new != change.old)
        assert widening.covered > 0.6


@pytest.mark.parametrize(
    ("middle", "weights", "message"),
    [
        ("m = GatherElements<axis = 2>(h, at)", {"at": ints(2, 5, 16, below=16)}, "looks entries up along this axis"),
        ("m = GatherElements<axis = 1>(h, at)", {"at": ints(2, 5, 8, below=5), "down": draw(8, 4)}, "part of this one"),
        ("m = GatherND(h, at)", {"at": ints(2, 16, 3, below=2)}, "looks entries up along this axis"),
        ("m = ScatterElements<axis = 2>(h, at, h)", {"at": np.tile(np.arange(16)[::-1], (2, 5, 1))}, "written twice"),
        ("m, at = TopK(h, k)", {"k": np.array([16])}, "ranks the entries along this axis"),
        ("m = CumSum(h, axis)", {"axis": np.array(2)}, "cumulates along this axis"),
        ("m = ReverseSequence<batch_axis = 0, time_axis = 2>(h, n)", {"n": np.array([3, 9])}, "reverses this axis"),
        ("m = Trilu(h)", {}, "works along this axis"),
        ("m = CenterCropPad<axes = [2]>(h, to)", {"to": np.array([15]), "down": draw(15, 4)}, "around its centre"),
        ("m = DFT(h, , axis)", {"axis": np.array(1), "down": draw(2, 4)}, "transforms along this axis"),
        ("r = RandomNormalLike(h) o = Mul(r, zero) m = Add(h, o)", {"zero": floats(1) * 0}, "draws random values"),
        ("f = Flatten<axis = 0>(h) m = Compress(f, c)", {"c": np.ones(160, bool), "down": draw(160, 4)}, ""),
    ],
)  # fmt: skip
def test_what_stays_fixed_says_at_which_node(middle, weights, message):
    model = sequence(middle, **weights)
    for node in model.graph.node:
        node.name = f"block/{node.output[0]}"
    reasons = [group.reason for group in inspect(model).groups if group.reason]
    kind, name = next((n.op_type, n.name) for n in model.graph.node if n.op_type not in ("MatMul", "Flatten"))
    assert any(reason.startswith(f"{kind} {name!r} ") and message in reason for reason in reasons), reasons
    with contextlib.suppress(RefusedError):
        verify(model, widen(model, factor=2).student).raise_if_different()
