"""Transfers between networks as various exporters write them: each case stands for real files of some exporter."""

import numpy as np
import pytest
from graphs import build, net
from onnx import TensorProto, helper
from test_transfer import Net, fill, plain

from onnx_net2net import RefusedError, transfer
from onnx_net2net.framework.statedict.filled import fill_state_dict
from onnx_net2net.framework.statedict.match import constants_of
from onnx_net2net.model.model import load
from onnx_net2net.operations.transfer.align import align
from onnx_net2net.operations.transfer.networks import Network


def residual(net, name, inner=None, flip=False):
    """A residual branch of two convolutions, with something between them."""
    start, width = net.last, net.width
    net.conv(f"{name}.0", width).node("Relu")
    net = inner(net) if inner else net
    branch = net.conv(f"{name}.1", width).last
    net.last = branch if flip else start
    return net.node("Add", start if flip else branch)


def nested(seed, extra=False):
    """Residual blocks, in which there are others that a teacher lacks."""
    net = Net(seed, (2, 3, 6, 6)).conv("stem", 5)
    net = residual(net, "stem_more") if extra else net
    net.node("Relu")
    for block in range(2):
        inner = (lambda net, block=block: residual(net, f"inner{block}")) if extra else None
        net = residual(net, f"block{block}", inner).node("Relu")
    return net.conv("head", 3, kernel=1).build("y")


def shallow(seed, extra=False):
    """x + relu(conv(x)), where a target adds to the second term once more, and so makes one sum of three terms."""
    net = Net(seed, (2, 5, 6, 6))
    start = net.conv("stem", 5, kernel=1).last
    net.conv("branch", 5).node("Relu")
    net = residual(net, "more") if extra else net
    return net.node("Add", start).conv("head", 3, kernel=1).build("y")


def two_branches(seed, width=5, turned=False, depth=1):
    """A block with a shortcut of its own; exporters sort the two branches, and write the sum, as they like."""
    net = Net(seed, (2, 3, 6, 6)).conv("stem", 4)
    start = net.last

    def shortcut():
        net.last, net.width = start, 4
        return net.conv("shortcut", width).last

    def main():
        net.last, net.width = start, 4
        net.conv("main0", width).node("Relu")
        for extra in range(depth - 1):
            net.conv(f"more{extra}", width).node("Relu")
        return net.conv("main1", width).last

    first, second = (main(), shortcut()) if turned else (shortcut(), main())
    net.last = first
    return net.node("Add", second).node("Relu").conv("head", 3, kernel=1).build("y")


def recurrent(seed, width=4):
    """An LSTM, whose weights have three axes and no kernel."""
    rng = np.random.default_rng(seed)
    shapes = {"in": (3, width), "W": (1, 4 * width, width), "R": (1, 4 * width, width), "B": (1, 8 * width),
              "out": (width, 2)}  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = f"""(float[5, 2, 3] x) => (float[1, 5, 2, 2] y)
        {{ i = MatMul(x, in) a, h, c = LSTM<hidden_size={width}>(i, W, R, B) t = Transpose<perm=[1, 0, 2, 3]>(a)
        y = MatMul(t, out) }}"""
    return net(text, **weights)


def folded_norm(seed, width=6):
    """As tf2onnx writes a normalisation behind a depthwise convolution: a scale and a shift of four axes."""
    net = Net(seed, (2, 3, 6, 6)).conv("a", width).conv("dw", width, bias=False, group=width)
    net.node("Mul", net.constant("scale", net.draw(1, width, 1, 1)))
    net.node("Add", net.constant("shift", net.draw(1, width, 1, 1))).node("Relu")
    return net.conv("b", 3).build("y")


def standardised(seed, width=6):
    """Weights that a BatchNormalization standardises, as in an NFNet."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (1, width, 27), "gain": (width,), "zeros": (width,), "b": (width,), "v": (3, width, 1, 1)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["zeros"][:] = 0
    text = f"""(float[2, 3, 6, 6] x) => (float[2, 3, 6, 6] y) {{
        ones = Constant<value = float[{width}] {{{", ".join(["1"] * width)}}}>()
        s = BatchNormalization(w, gain, zeros, zeros, ones)
        shape = Constant<value_ints = [{width}, 3, 3, 3]>() k = Reshape(s, shape)
        c = Conv<pads = [1, 1, 1, 1]>(x, k, b) r = Relu(c) y = Conv(r, v) }}"""
    return net(text, opset=17, **weights)


def one_output(seed, width=6):
    """A regression: its bias is a single number, as is the slope of its activation."""
    net = Net(seed, (4, 5)).linear("a", width).node("PRelu", "slope").linear("b", 1)
    net.constant("slope", net.rng.uniform(0.1, 0.4, 1))
    return net.build("y")


def gained(seed, width=6, gain=None):
    """A gain and a temperature that are learnt, single numbers."""
    net = (
        Net(seed, (4, 5)).linear("a", width).node("Mul", "gain").node("Tanh").linear("b", 3).node("Div", "temperature")
    )
    net.constant("gain", net.rng.uniform(0.2, 0.9, ()) if gain is None else np.array(gain))
    net.constant("temperature", net.rng.uniform(0.2, 0.9, 1))
    return net.build("y")


def empty(seed):
    """A convolution over as many steps as there are: none in the probe that finds the sizes."""
    rng = np.random.default_rng(seed)
    weights = {"w": (4, 1, 8), "v": (3, 4, 1)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    text = """(float[1, 1, N] x) => (float[1, 3, M] y)
        { a = Conv<strides=[4]>(x, w) b = Relu(a) y = Conv(b, v) }"""
    return net(text, **drawn)


def quantized(seed, width=4):
    """Quantize, multiply integers, dequantize; with a layer whose weights are dequantized first."""
    rng = np.random.default_rng(seed)

    def scale(*shape):
        return rng.uniform(0.01, 0.03, shape).astype(np.float32)

    def codes(*shape):
        return rng.integers(-99, 99, shape).astype(np.int8)

    constants = {
        "xs": scale(), "xz": np.array(3, np.uint8), "w": codes(width, 3, 3, 3), "ws": scale(width),
        "wz": np.zeros(width, np.int8), "ys": scale() * np.float32(20), "yz": np.array(120, np.uint8),
        "b": rng.integers(-999, 999, width).astype(np.int32),
        "v": codes(2, width, 1, 1), "vs": scale(), "vz": np.array(0, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("QLinearConv", ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["yq"], pads=[1] * 4),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("DequantizeLinear", ["v", "vs", "vz"], ["vf"]),
        helper.make_node("Conv", ["r", "vf"], ["y"]),
    ]
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    return build(nodes, {"x": x}, ["y"], constants, opset=13)


EXACT = {
    "blocks inside blocks": (nested(0), nested(1, extra=True)),
    "a block at the end of a branch": (shallow(0), shallow(1, extra=True)),
    "branches in another order": (two_branches(0), two_branches(1, turned=True)),
    "branches in another order, wider and deeper": (two_branches(0), two_branches(1, 7, turned=True, depth=3)),
    "a recurrence, wider": (recurrent(0), recurrent(1, 6)),
    "a scale and a shift of four axes, as wide as the image": (folded_norm(0), folded_norm(1, 9)),
    "a scale and a shift of four axes, where an image becomes as wide": (folded_norm(0, 5), folded_norm(1, 6)),
    "standardised weights": (standardised(0), standardised(1)),
    "single numbers of layers": (one_output(0), one_output(1, 9)),
    "single numbers of no layer": (gained(0), gained(1)),
    "single numbers of no layer, wider": (gained(0), gained(1, 9)),
    "no steps": (empty(0), empty(1)),
    "quantized": (quantized(0), quantized(1)),
    "quantized, wider": (quantized(0), quantized(1, 8)),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_exporters_write_is_filled_exactly(name):
    _, verification, obstacles = fill(*EXACT[name])
    assert obstacles == []
    assert verification.equivalent


def sides(*protos):
    """The segments of networks."""
    return [Network(load(proto)).segments for proto in protos]


def test_units_stand_in_one_order_however_branches_are_sorted():
    orders = [[module.name for segment in segments for module in segment.modules]
              for segments in sides(two_branches(0), two_branches(0, turned=True))]  # fmt: skip
    assert orders[0] == orders[1] == ["stem", "main0", "main1", "shortcut", "head"]


def test_excess_blocks_are_left_out_as_a_whole_though_their_layers_fit():
    """Names do not help here, and each layer of the excess blocks is like those of the others."""
    target = nested(1, extra=True)
    for node in target.graph.node:
        node.name = ""
    found = align(*sides(nested(0), target))
    assert sorted(segment.name.split(".")[0] for segment in found.added if segment.block is not None) != []
    pairs = {old.name: new.name for old, new in found.pairs}
    assert pairs == {name: name for name in ("stem", "block0.0", "block0.1", "block1.0", "block1.1", "head")}


def test_a_scale_and_a_shift_may_have_a_one_between_them():
    """As PyTorch's older exporter writes addcmul."""

    def gated(seed, one):
        net = Net(seed, (2, 3, 6, 6)).conv("a", 4).node("Tanh")
        net.node("Mul", net.constant("scale", net.draw(4, 1, 1)))
        net = net.node("Mul", net.constant("one", np.array(1.0))) if one else net
        return net.node("Add", net.constant("shift", net.draw(4, 1, 1))).conv("b", 3).build("y")

    for teacher, target in ((gated(0, True), gated(1, False)), (gated(0, False), gated(1, True))):
        _, verification, obstacles = fill(teacher, target)
        assert obstacles == []
        assert verification.equivalent


def test_a_target_may_take_one_size_where_the_teacher_takes_any():
    teacher, target = plain(0, (5, 7)), plain(1, (5, 9))
    for value in (*teacher.graph.input, *teacher.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    _, verification, obstacles = fill(teacher, target)
    assert obstacles == []
    assert verification.equivalent


def test_outputs_need_no_rank():
    teacher, target = plain(0, (5, 7)), plain(1, (5, 9))
    for proto in (teacher, target):
        proto.graph.output[0].type.tensor_type.ClearField("shape")
    _, verification, obstacles = fill(teacher, target)
    assert obstacles == []
    assert verification.equivalent


def test_networks_without_layers_are_filled_too():
    def normalisation(seed):
        return Net(seed, (2, 3, 4, 4)).bn("norm").build("y")

    result, verification, _ = fill(normalisation(0), normalisation(1))
    assert verification.equivalent
    assert result.filled == 1
    layer = Net(0, (2, 6, 4, 4)).conv("a", 6).build("y")
    with pytest.raises(RefusedError, match="no layer in common: Conv in the teacher, affine in the target"):
        transfer(layer, Net(0, (2, 6, 4, 4)).bn("norm").build("y"))


def test_what_is_quantized_on_one_side_only_is_named():
    floats = Net(0, (2, 3, 6, 6)).conv("a", 4).node("Relu").conv("b", 2, kernel=1, bias=False).build("y")
    _, _, obstacles = fill(floats, quantized(1))
    assert any("quantized in one of the two networks only" in text for text in obstacles), obstacles


def test_numbers_in_the_graph_itself_are_named():
    def scaled(seed, number):
        net = Net(seed, (4, 5)).linear("a", 6)
        value = helper.make_tensor("value", TensorProto.FLOAT, (), [number])
        net.nodes.append(helper.make_node("Constant", [], ["number"], value=value))
        return net.node("Mul", "number").linear("b", 3).build("y")

    _, _, obstacles = fill(scaled(0, 0.3), scaled(1, 0.7))
    assert ["a number of this Mul is 0.3 in the teacher and 0.7 in the target" in text for text in obstacles] == [True]


def test_numbers_that_a_class_computes_are_no_gains():
    """The scale of attention follows from the sizes on both sides, and is the target's own."""
    result = transfer(gained(0, 6, gain=6**-0.5), gained(1, 6, gain=9**-0.5))
    assert float(constants_of(result.student)["gain"].read()) == pytest.approx(9**-0.5)


def test_a_number_that_no_state_dict_has_is_not_lost(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    target = gained(1)
    values = {name: constant.read() for name, constant in constants_of(load(target)).items()}
    safetensors.save_file({k: v for k, v in values.items() if k != "gain"}, tmp_path / "target.safetensors")
    result = transfer(gained(0), target)
    with pytest.raises(RefusedError, match="gain was filled and no entry"):
        fill_state_dict(result, tmp_path / "target.safetensors")


def test_defaults_of_attributes_may_be_written_out():
    teacher, target = plain(0, (5, 7)), plain(1, (5, 9))
    for node in target.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(helper.make_attribute("auto_pad", "NOTSET"))
            node.attribute.append(helper.make_attribute("dilations", [1, 1]))
    assert fill(teacher, target)[2] == []


def test_equal_tensors_that_got_different_values_are_told_apart_by_names_or_refused(tmp_path):
    """Biases of a fresh class are all zero: only their names say which is which."""
    safetensors = pytest.importorskip("safetensors.numpy")
    biases = ("a.bias", "b.bias")
    teacher, fresh = Net(0, (4, 5)).linear("a", 5).linear("b", 5), Net(1, (4, 5)).linear("a", 5).linear("b", 5)
    fresh.constants |= dict.fromkeys(biases, np.zeros(5, np.float32))
    target = fresh.build("y")
    values = {name: constant.read() for name, constant in constants_of(load(target)).items()}
    result = transfer(teacher.build("y"), target)
    safetensors.save_file(values, tmp_path / "named.safetensors")
    filled, student = fill_state_dict(result, tmp_path / "named.safetensors").values, constants_of(result.student)
    for name in biases:
        np.testing.assert_array_equal(filled[name](), student[name].read())
    other = {f"entry{number}": value for number, value in enumerate(values.values())}
    safetensors.save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(RefusedError, match="got different values"):
        fill_state_dict(result, tmp_path / "other.safetensors")
