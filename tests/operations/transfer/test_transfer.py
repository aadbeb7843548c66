"""Filled networks compute what their teachers did, or say place by place why not."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from graphs import Array, build, net
from onnx import TensorProto, helper, numpy_helper

from onnx_net2net import BadInputError, RefusedError, load, transfer, verify
from onnx_net2net.cli.main import main
from onnx_net2net.framework.statedict.filled import fill_state_dict
from onnx_net2net.framework.statedict.match import constants_of
from onnx_net2net.operations.transfer.transfer import proof


class Net:
    """A network that is written layer by layer, with random weights."""

    def __init__(self, seed: int, shape: tuple[int, ...], opset: int = 18) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.input, self.last, self.opset = self.draw(*shape), "x", opset
        self.width = shape[1] if len(shape) > 2 else shape[-1]

    def draw(self, *shape: int) -> Array:
        return (self.rng.standard_normal(shape) * max(np.prod(shape[1:]), 1) ** -0.5).astype(np.float32)

    def constant(self, name: str, values: Array) -> str:
        values = np.asarray(values)
        self.constants[name] = values if values.dtype == np.int64 else values.astype(np.float32)
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> "Net":
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [name], name, **attributes))
        self.last = name
        return self

    def conv(self, name, width, kernel=3, bias=True, stride=1, group=1):
        weights = [self.constant(f"{name}.weight", self.draw(width, self.width // group, kernel, kernel))]
        weights += [self.constant(f"{name}.bias", self.draw(width))] if bias else []
        self.width = width
        return self.node("Conv", *weights, pads=[kernel // 2] * 4, strides=[stride] * 2, group=group)

    def bn(self, name, epsilon=1e-5):
        scale, shift, mean = (self.draw(self.width) for _ in range(3))
        parts = {"weight": 1 + scale / 3, "bias": shift, "running_mean": mean, "running_var": np.exp(shift)}
        names = [self.constant(f"{name}.{part}", values) for part, values in parts.items()]
        return self.node("BatchNormalization", *names, epsilon=epsilon)

    def linear(self, name, width, way="Gemm", bias=True):
        weight, width, self.width = self.draw(width, self.width), self.width, width
        shift = self.draw(self.width)
        if way == "Gemm":
            names = [self.constant(f"{name}.weight", weight)]
            return self.node("Gemm", *names, *([self.constant(f"{name}.bias", shift)] if bias else []), transB=1)
        self.node("MatMul", self.constant(f"{name}.weight", weight.T.copy()))
        return self.node("Add", self.constant(f"{name}.bias", shift)) if bias else self

    def norm(self, name, epsilon=1e-5):
        names = [self.constant(f"{name}.weight", 1 + self.draw(self.width)),
                 self.constant(f"{name}.bias", self.draw(self.width))]  # fmt: skip
        return self.node("LayerNormalization", *names, epsilon=epsilon)

    def rms(self, name, epsilon=1e-5):
        """An RMSNorm as it is exported where the opset has none."""
        entry = self.last
        self.node("Mul", entry)
        self.nodes.append(helper.make_node("ReduceMean", [self.last, "axes"], [f"{name}_mean"], f"{name}_mean"))
        self.constants["axes"] = np.array([-1], np.int64)
        self.last = f"{name}_mean"
        self.node("Add", self.constant("epsilon", np.array(epsilon))).node("Sqrt")
        root, self.last = self.last, entry
        self.node("Div", root)
        return self.node("Mul", self.constant(f"{name}.weight", 1 + self.draw(self.width)))

    def one_more(self, name, epsilon=1e-5):
        """An RMSNorm whose scale is its weight and one."""
        self.rms(name, epsilon)
        weight = self.nodes[-1].input[1]
        self.nodes.insert(-1, helper.make_node("Add", [weight, self.constant("one", np.array(1.0))], [f"{name}_scale"]))
        self.nodes[-1].input[1] = f"{name}_scale"
        return self

    def add(self, entry):
        return self.node("Add", entry)

    def build(self, output: str | None = None) -> onnx.ModelProto:
        """The model, with an output of its own name."""
        if output is not None:
            self.nodes[-1].output[0] = self.last = output
        return build(self.nodes, {"x": self.input}, [self.last], self.constants, opset=self.opset)


def resnet(seed, width=6, depth=1, kernel=3, classes=3, bn=True, **options):
    """Two stages of residual blocks."""
    net = Net(seed, (2, 3, 8, 8)).conv("stem", width, **options)
    net = (net.bn("stem.bn") if bn else net).node("Relu")
    for stage, stride in enumerate((1, 2)):
        if stage:
            net.conv("down", 2 * width, stride=stride).node("Relu")
        for block in range(depth):
            entry, name = net.last, f"layer{stage}.{block}"
            for part in (0, 1):
                net.conv(f"{name}.conv{part}", net.width, kernel, bias=not bn)
                net = net.bn(f"{name}.bn{part}") if bn else net
                net = net if part else net.node("Relu")
            net.add(entry).node("Relu")
    return net.node("GlobalAveragePool").node("Flatten").linear("fc", classes).build("logits")


def transformer(seed, width=8, hidden=12, depth=1, norm="norm", activation="Relu", epsilon=0.05, classes=3,
                post=False, token=""):  # fmt: skip
    """Residual blocks with a normalisation in front, whose epsilon matters, or behind."""
    net = Net(seed, (2, 5, 4), opset=20)
    net.width = 4
    embedded = net.linear("embed", width, "MatMul").last
    if token:
        values = net.draw(1, 1, width)
        net.last = net.constant("token", values if token == "expanded" else np.repeat(values, 2, 0))
        net = net.node("Expand", net.constant("batch", np.array([2, 1, 1]))) if token == "expanded" else net
        net.node("Concat", embedded, axis=1)
    net = getattr(net, norm)("embed.norm", epsilon) if post else net
    for block in range(depth):
        entry = net.last
        net = net if post else getattr(net, norm)(f"blocks.{block}.norm", epsilon)
        net.linear(f"blocks.{block}.fc1", hidden, "MatMul").node(activation)
        net.linear(f"blocks.{block}.fc2", width, "MatMul").add(entry)
        net = getattr(net, norm)(f"blocks.{block}.norm", epsilon) if post else net
    net = net if post else getattr(net, norm)("norm", epsilon)
    return net.linear("head", classes, "MatMul").build("logits")


def language(seed, width=8, depth=1, tied=True, scaled=False):
    """Tokens in, logits of tokens out, by the same matrix; embeddings may be scaled by the root of their width."""
    net = Net(seed, (2, 5, 4), opset=20)
    net.input = net.rng.integers(0, 7, (2, 5))
    net.last, net.width = net.constant("table", net.draw(7, width)), width
    net.node("Gather", "x")
    net = net.node("Mul", net.constant("root", np.array(width**0.5))) if scaled else net
    for block in range(depth):
        entry = net.last
        net.norm(f"blocks.{block}.norm", 0.05).linear(f"blocks.{block}.fc1", 12, "MatMul").node("Relu")
        net.linear(f"blocks.{block}.fc2", width, "MatMul").add(entry)
    hidden = net.norm("norm", 0.05).last
    net.last = "table" if tied else net.constant("head", net.draw(7, width))
    head = net.node("Transpose", perm=[1, 0]).last
    net.last = hidden
    return net.node("MatMul", head).build("logits")


def attend(net, heads, width, joint="Gather", softmax=True, name=""):
    """Attention whose scale follows the width of a head; queries, keys and values come from one projection."""
    net.linear(f"{name}qkv", 3 * heads * width, "MatMul")
    if joint == "Gather":
        whole = net.node("Reshape", net.constant("parts", np.array([2, 5, 3, heads, width]))).last
    else:
        net.node("Transpose", perm=[2, 0, 1])
        names = ["q", "k", "v"]
        net.nodes.append(helper.make_node("Split", [net.last], names, axis=0, num_outputs=3))
    operands = []
    for number, order in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
        if joint == "Gather":
            net.last = whole
            net.node("Gather", net.constant(f"part{number}", np.array(number)), axis=2)
        else:
            net.last = names[number]
            net.node("Transpose", perm=[1, 2, 0])
            net.node("Reshape", net.constant("heads", np.array([2, 5, heads, width])))
        operands.append(net.node("Transpose", perm=order).last)
    net.last = operands[0]
    net.node("Mul", net.constant("scale", np.array(width**-0.5))).node("MatMul", operands[1])
    net = net.node("Softmax", axis=-1) if softmax else net.node("Tanh")
    net.node("MatMul", operands[2]).node("Transpose", perm=[0, 2, 1, 3])
    net.node("Reshape", net.constant("flat", np.array([2, 5, heads * width])))
    net.width = heads * width
    return net


def attention(seed, heads=2, width=3, **options):
    """One layer of attention."""
    net = Net(seed, (2, 5, 4), opset=20)
    net.width = 4
    return attend(net, heads, width, **options).linear("out", 4, "MatMul").build("y")


def encoder(seed, heads=2, hidden=12, depth=1):
    """Layers of attention and of a feed-forward part, which have as many weights of the same rank."""
    net = Net(seed, (2, 5, 4), opset=20)
    net.width = 4
    net.linear("embed", 4 * heads, "MatMul")
    for layer in range(depth):
        entry = net.last
        attend(net.norm(f"{layer}.norm1"), heads, 4, name=f"{layer}.").linear(f"{layer}.out", 4 * heads, "MatMul").add(
            entry
        )
        entry = net.last
        net.norm(f"{layer}.norm2").linear(f"{layer}.fc1", hidden, "MatMul").node("Relu")
        net.linear(f"{layer}.fc2", 4 * heads, "MatMul").add(entry)
    return net.norm("norm").linear("head", 3, "MatMul").build("y")


def plain(seed, widths, activation="Relu", classes=3, kernels=(3, 3, 3, 3, 3), way="Gemm", bn=(), epsilon=1e-3,
          groups=(1, 1, 1, 1, 1)):  # fmt: skip
    """A chain of convolutions."""
    net = Net(seed, (2, 3, 8, 8))
    for place, (width, kernel, group) in enumerate(zip(widths, kernels, groups, strict=False)):
        net.conv(f"conv{place}", width, kernel, bias=place not in bn, group=group)
        (net.bn(f"bn{place}", epsilon) if place in bn else net).node(activation)
    return net.node("GlobalAveragePool").node("Flatten").linear("fc", classes, way).build("logits")


def strided(seed, width):
    """What torch.export makes of as_strided with folding off: a list of all places, which is no initializer."""
    net = Net(seed, (2, 3, 4, 4)).conv("conv", width).node("Relu").node("GlobalAveragePool")
    net.node("Reshape", net.constant("flat", np.array([-1])))
    places = numpy_helper.from_array(np.arange(2 * width).reshape(2, width), "places")
    net.nodes.append(helper.make_node("Constant", [], ["places"], value=places))
    return net.node("Gather", "places").linear("fc", 3).build("logits")


def dense(seed, layers, growth=4, width=6):
    """A dense block, as in DenseNet."""
    net = Net(seed, (2, 3, 8, 8)).conv("stem", width)
    features = [net.last]
    for layer in range(layers):
        if layer:
            net.last = features[0]
            net.node("Concat", *features[1:], axis=1)
        net.width = width + layer * growth
        net.bn(f"layer{layer}.norm").node("Relu").conv(f"layer{layer}.conv", growth, bias=False)
        features.append(net.last)
    net.last, net.width = features[0], width + layers * growth
    net.node("Concat", *features[1:], axis=1).bn("norm").node("Relu")
    return net.node("GlobalAveragePool").node("Flatten").linear("fc", 3).build("logits")


def fill(teacher, target, **options):
    result = transfer(teacher, target, **options)
    verification, obstacles = proof(result, samples=2)
    return result, verification, [str(obstacle) for obstacle in obstacles]


def transposed(seed, width, bn=True):
    """A transposed convolution, whose weights have the outputs second."""
    net = Net(seed, (2, 3, 4, 4)).conv("stem", width, kernel=1).node("Relu")
    shape = (net.width, width, 2, 2)
    names = [net.constant("up.weight", net.draw(*shape)), net.constant("up.bias", net.draw(width))]
    net.node("ConvTranspose", *names, strides=[2, 2])
    net = (net.bn("up.bn") if bn else net).node("Relu")
    return net.conv("head", 3, kernel=1).build("y")


def scaled(seed, width=6, extra=False):
    """A chain with a normalisation, a scale and a shift that another one lacks."""
    net = Net(seed, (2, 3, 6, 6)).conv("a", width).node("Relu")
    if extra:
        net.bn("norm").node("Mul", net.constant("scale", net.draw(width, 1, 1)))
        net.node("Relu").node("Add", net.constant("shift", net.draw(width, 1, 1)))
    return net.conv("b", 3).build("y")


EXACT = {
    "transposed convolutions": (transposed(0, 4), transposed(1, 6)),
    "transposed convolutions, folded": (transposed(0, 4), transposed(1, 5, bn=False)),
    "a scale, a shift and a normalisation in excess": (scaled(0), scaled(1, 8, extra=True)),
    "the same net": (resnet(0), resnet(1)),
    "wider": (resnet(0), resnet(1, width=10)),
    "deeper": (resnet(0), resnet(1, depth=3)),
    "wider and deeper": (resnet(0), resnet(1, width=9, depth=2)),
    "larger kernels": (resnet(0), resnet(1, kernel=5)),
    "normalisations folded": (resnet(0), resnet(1, width=8, bn=False)),
    "normalisations not folded": (resnet(0, bn=False), resnet(1, width=8)),
    "plain layers in excess": (plain(0, (5, 7)), plain(1, (6, 6, 9, 9))),
    "plain layers with normalisations in excess": (plain(0, (5, 7), bn=(0,)), plain(1, (6, 6, 9, 9), bn=(0, 1, 3))),
    "another epsilon": (plain(0, (5, 7), bn=(0, 1)), plain(1, (5, 9), bn=(0, 1), epsilon=0.2)),
    "kernels of one place, larger": (plain(0, (5, 7), kernels=(1, 3)), plain(1, (6, 7), kernels=(5, 3))),
    "fewer groups": (plain(0, (6, 12, 8), groups=(1, 6, 4)), plain(1, (6, 12, 8), groups=(1, 2, 1))),
    "fewer and larger groups": (plain(0, (6, 12, 8), groups=(1, 6, 2)), plain(1, (12, 24, 9), groups=(1, 3, 1))),
    "fewer groups of one place": (
        plain(0, (6, 9), kernels=(3, 1), groups=(1, 3)), plain(1, (6, 9), kernels=(3, 1), groups=(1, 1))),
    "another layout": (plain(0, (5, 7), way="MatMul"), plain(1, (8, 9))),
    "layer norm, whole multiple": (transformer(0), transformer(1, width=16, hidden=20)),
    "layer norm, padded": (transformer(0), transformer(1, width=13, hidden=20)),
    "layer norm, padded, with a token": (
        transformer(0, token="expanded"), transformer(1, width=13, token="expanded")),
    "a token that another exporter repeated": (
        transformer(0, token="expanded"), transformer(1, width=13, token="repeated")),
    "a token that is repeated no more": (transformer(0, token="repeated"), transformer(1, width=16, token="expanded")),
    "a feed-forward part that looks like attention": (encoder(0, hidden=16), encoder(1, 4, hidden=48, depth=3)),
    "layer norm, deeper": (transformer(0), transformer(1, width=11, depth=3)),
    "post-norm, deeper": (
        transformer(0, post=True, epsilon=1e-12), transformer(1, post=True, epsilon=1e-12, depth=3, hidden=16)),
    "post-norm, wider and deeper": (
        transformer(0, post=True, epsilon=1e-12, depth=2), transformer(1, 16, post=True, epsilon=1e-12, depth=3)),
    "decomposed RMSNorm, padded": (transformer(0, norm="rms"), transformer(1, norm="rms", width=13)),
    "decomposed RMSNorm whose scale is one more, padded": (
        transformer(0, norm="one_more"), transformer(1, 13, norm="one_more")),
    "decomposed RMSNorm, whole multiple": (transformer(0, norm="rms"), transformer(1, norm="rms", width=24)),
    "tied head": (language(0), language(1, 16, depth=2)),
    "tied head, padded": (language(0), language(1, 13, depth=2)),
    "a number that follows the width": (language(0, tied=False, scaled=True), language(1, 13, tied=False, scaled=True)),
    "a number that follows the width, tied": (language(0, scaled=True), language(1, 16, scaled=True)),
    "head that was tied": (language(0), language(1, 13, tied=False)),
    "wider heads": (attention(0), attention(1, width=7)),
    "wider heads, of which there are more": (attention(0), attention(1, heads=4, width=5)),
    "wider heads, split": (attention(0, joint="Split"), attention(1, width=5, joint="Split")),
    "a list of all places": (strided(0, 4), strided(1, 7)),
    "dense block, wider": (dense(0, 2), dense(1, 2, growth=5, width=9)),
    "dense block, deeper": (dense(0, 2), dense(1, 4)),
    "dense block, wider and deeper": (dense(0, 2), dense(1, 3, growth=6, width=7)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_a_target_that_contains_the_teacher_is_filled_exactly(name):
    teacher, target = EXACT[name]
    result, verification, obstacles = fill(teacher, target)
    assert obstacles == []
    assert verification.equivalent
    before, after = load(target).proto.graph, result.student.proto.graph
    assert [node.SerializeToString() for node in before.node] == [node.SerializeToString() for node in after.node]


IN_THE_WAY = {
    "no idempotent activation": (
        plain(0, (5, 7), "Sigmoid"), plain(1, (5, 7, 7), "Sigmoid"), "conv2: nothing in the teacher corresponds to it"),
    "a kernel that is smaller": (plain(0, (5, 7)), plain(1, (5, 7), kernels=(3, 1)), "conv1: "),
    "post-norm, deeper, with an epsilon that matters": (
        transformer(0, post=True), transformer(1, post=True, depth=2), "it normalises once more, which is not the"),
    "more groups": (plain(0, (6, 12)), plain(1, (6, 12), groups=(1, 3)), "conv1: "),
    "wider heads without a softmax": (
        attention(0, softmax=False), attention(1, width=5, softmax=False), "3 ** -0.5, which the target computes anew"),
    "another stride": (resnet(0), resnet(1, stride=2), "stem: strides is None in the teacher and [2, 2]"),
    "narrower": (resnet(0), resnet(1, width=4), "6 units do not fit into 4"),
    "shallower": (resnet(0, depth=2), resnet(1), "the target has nothing for this Conv of 6 x 6 x 3 x 3"),
    "fewer classes": (resnet(0), resnet(1, classes=2), "3 units do not fit into 2"),
    "padding in front of another activation": (
        transformer(0, norm="rms"), transformer(1, norm="rms", activation="Sigmoid"),
        "the teacher has Relu and the target has Sigmoid"),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_stands_in_the_way_is_said(name):
    teacher, target, reason = IN_THE_WAY[name]
    result, _, obstacles = fill(teacher, target)
    assert any(reason in obstacle for obstacle in obstacles), obstacles
    with result.student.on_disk() as path:
        onnx.checker.check_model(str(path), full_check=True)


def test_more_classes_come_behind_the_old_ones():
    _, verification, obstacles = fill(resnet(0), resnet(1, classes=5))
    assert obstacles == []
    assert verification.equivalent


def dynamic(proto):
    """The model for any number of examples."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


def one_input(kind=TensorProto.FLOAT, shape=(1, 4), outputs=1, op="Relu"):
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", *(f"y{n}" for n in range(outputs)))]
    nodes = [helper.make_node(op, ["x"], [f"y{n}"]) for n in range(outputs)]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), ir_version=8,
                             opset_imports=[helper.make_opsetid("", 18)])  # fmt: skip


def without_rank(proto):
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    return proto


REFUSED = {
    "the teacher has 1 outputs, the target 2": (one_input(), one_input(outputs=2)),
    "input 'x' is float in the teacher, 'x' double": (one_input(), one_input(TensorProto.DOUBLE)),
    "input 'x' has 2 axes in the teacher, 3 in the target": (one_input(), one_input(shape=(1, 2, 4))),
    "input 'x' has no fixed rank": (without_rank(one_input()), one_input()),
    "no layer in common: nothing in the teacher": (one_input(), one_input()),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_bad_pairs_are_refused(reason):
    with pytest.raises(RefusedError, match=reason.replace("(", r"\(")):
        transfer(*REFUSED[reason])


@pytest.mark.parametrize("options", [{"seed": -1}, {"spread": float("nan")}])
def test_bad_options(options):
    with pytest.raises(BadInputError):
        transfer(resnet(0), resnet(1), **options)


def test_excess_blocks_are_alive():
    """Only the last weights of a block are zero, so that all of it can learn."""
    result, _, _ = fill(resnet(0), resnet(1, depth=2))
    values = {name: constant.read() for name, constant in constants_of(result.student).items()}
    zero = [name for name, value in values.items() if not value.any()]
    assert sorted(zero) == [f"layer{stage}.1.bn1.{what}" for stage in (0, 1) for what in ("bias", "weight")]


def test_tensors_that_were_equal_in_the_target_are_parted():
    target = resnet(1, bn=False)
    zeros = numpy_helper.from_array(np.zeros(6, np.float32), "zeros")
    for node in target.graph.node:
        if node.op_type == "Conv" and node.input[2] in ("layer0.0.conv0.bias", "layer0.0.conv1.bias", "stem.bias"):
            node.input[2] = "zeros"
    target.graph.initializer.append(zeros)
    result, verification, obstacles = fill(resnet(0, bn=False), target)
    assert obstacles == []
    assert verification.equivalent
    parted = [source for source in result.sources if source.target == "zeros"]
    assert len(parted) == 3
    assert {source.teacher for source in parted} == {"layer0.0.conv0.bias", "layer0.0.conv1.bias", "stem.bias"}


def test_weights_whose_shape_is_read_too_keep_their_names():
    text = """(float[N, 2, 5, 5] x) => (float[N, {0}, 5, 5] y) {{
        c = Conv<pads=[1, 1, 1, 1]>(x, w_0) r = Relu(c) shape = Shape(w_1) start = Constant<value_ints=[0]>()
        end = Constant<value_ints=[1]>() n = Slice(shape, start, end) b = ConstantOfShape(n)
        y = Conv<pads=[1, 1, 1, 1]>(r, w_1, b)
    }}"""
    rng = np.random.default_rng(0)

    def make(width: int) -> onnx.ModelProto:
        shapes = {"w_0": (width, 2, 3, 3), "w_1": (3, width, 3, 3)}
        return net(text.format(3), **{k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()})

    result = transfer(make(4), make(6))
    assert proof(result)[1] == ()
    assert [source.name for source in result.sources] == ["w_0", "w_1"]


def test_outputs_may_have_other_names():
    target = resnet(1, width=8)
    target.graph.output[0].name = target.graph.node[-1].output[0] = "scores"
    target.graph.node[0].output[0] = target.graph.node[1].input[0] = "logits"
    result, verification, obstacles = fill(resnet(0), target)
    assert obstacles == []
    assert verification.equivalent
    assert [value.name for value in result.student.proto.graph.output] == ["scores"]


def with_a_still_output(teacher):
    """Let a network return the same whatever it is given."""
    (head,) = (tensor for tensor in teacher.graph.initializer if tensor.name == "fc.weight")
    head.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(head)), head.name))
    return teacher


def test_for_an_output_that_never_moves_the_layers_that_correspond_are_compared():
    _, verification, obstacles = fill(with_a_still_output(resnet(0)), resnet(1, width=8, depth=2))
    assert obstacles == []
    assert verification.equivalent
    assert verification.unmoved["logits"]  # the two use the same names for other tensors, and these are not compared


def test_behind_an_output_that_never_moves_an_error_is_found():
    result, _, _ = fill(with_a_still_output(resnet(0)), resnet(1, width=8, depth=2))
    spoilt = result.student.to_proto()
    (weight,) = (tensor for tensor in spoilt.graph.initializer if tensor.name == "stem.weight")
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    verification, _ = proof(dataclasses.replace(result, student=load(spoilt)))
    assert not verification.equivalent
    assert verification.diverges_at is not None


def test_the_target_keeps_what_the_alignment_did_not_reach():
    target = resnet(1, depth=2)
    result, _, _ = fill(resnet(0), target)
    kept = {source.name for source in result.sources if source.origin == "kept"}
    assert "layer0.1.conv0.weight" in kept
    before, after = constants_of(load(target)), constants_of(result.student)
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in kept)
    assert {source.name for source in result.sources} >= before.keys() & kept
    assert 0.5 < result.filled < 1


def test_students_are_trained_networks_too():
    """What was filled can be a teacher again."""
    first, _, _ = fill(resnet(0), resnet(1, width=8))
    second, verification, obstacles = fill(first.student, resnet(2, width=11, depth=2))
    assert obstacles == []
    verify(resnet(0), second.student).raise_if_different()
    assert verification.equivalent


@pytest.fixture
def files(tmp_path):
    onnx.save(resnet(0), tmp_path / "teacher.onnx")
    onnx.save(resnet(1, width=8, depth=2), tmp_path / "target.onnx")
    onnx.save(resnet(1, width=4), tmp_path / "small.onnx")
    return tmp_path


def test_command(files, capsys):
    arguments = [str(files / name) for name in ("teacher.onnx", "target.onnx")]
    assert main(["transfer", *arguments, "-o", str(files / "student.onnx")]) == 0
    out = capsys.readouterr().out
    assert "exact: the student computes what the teacher computes" in out
    assert "not exact" not in out
    verify(files / "teacher.onnx", files / "student.onnx").raise_if_different()
    assert main(["transfer", *arguments, "-o", str(files / "student.onnx"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["exact"] is True
    assert record["obstacles"] == []
    origins = {tensor["name"]: tensor["origin"] for tensor in record["tensors"]}
    assert origins["layer0.0.conv0.weight"] == "teacher"
    assert origins["layer0.1.bn1.weight"] == "zero"


def test_command_marks_what_is_not_exact(files, capsys):
    arguments = ["transfer", str(files / "teacher.onnx"), str(files / "small.onnx"), "-o", str(files / "student.onnx")]
    assert main([*arguments, "--exact"]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("onnx-net2net: not exact: ")
    assert len(captured.err.splitlines()) == 1
    assert not (files / "student.onnx").exists()
    assert main(arguments) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("onnx-net2net: not exact: stem: 6 units do not fit into 4 (and 3 more)")
    assert "--partial" in captured.err
    assert "not exact: down: 12 units do not fit into 8" in captured.out
    assert not (files / "student.onnx").exists()
    assert main([*arguments, "--partial"]) == 0
    assert "not exact: stem: 6 units do not fit into 4" in capsys.readouterr().out
    assert (files / "student.onnx").exists()


def test_command_does_not_write_over_its_inputs(files, capsys):
    for name in ("teacher.onnx", "target.onnx"):
        code = main(["transfer", str(files / "teacher.onnx"), str(files / "target.onnx"), "-o", str(files / name)])
        assert code == 2


def test_state_dict(files, capsys):
    """Entries in another layout, in another precision, and one that is nowhere in the file."""
    safetensors = pytest.importorskip("safetensors.numpy")
    values = {name: constant.read() for name, constant in constants_of(load(files / "target.onnx")).items()}
    entries = {f"net.{name}": value for name, value in values.items()} | {"steps": np.array(3)}
    safetensors.save_file(entries, files / "target.safetensors")
    arguments = ["transfer", str(files / "teacher.onnx"), str(files / "target.onnx")]
    assert main([*arguments, "-o", str(files / "student.onnx")]) == 0
    more = ["--state-dict", str(files / "target.safetensors"), "-o", str(files / "student.safetensors")]
    assert main([*arguments, *more]) == 0
    made = safetensors.load_file(files / "student.safetensors")
    student = constants_of(load(files / "student.onnx"))
    assert made.keys() == entries.keys()
    assert made["steps"] == 3
    assert all(np.array_equal(made[f"net.{name}"], student[name].read()) for name in values)


def test_two_tensors_of_the_teacher_do_not_become_one_entry(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    target = language(1, 16)
    result, verification, obstacles = fill(language(0, tied=False), target)
    assert verification.equivalent
    assert obstacles == []
    values = {name: constant.read() for name, constant in constants_of(load(target)).items()}
    safetensors.save_file(values | {"head": values["table"]}, tmp_path / "target.safetensors")
    with pytest.raises(RefusedError, match="is one tensor in the class has to be one in the teacher"):
        fill_state_dict(result, tmp_path / "target.safetensors")
    tied, *_ = fill(language(0), target)
    filled = fill_state_dict(tied, tmp_path / "target.safetensors").values
    np.testing.assert_array_equal(filled["head"](), filled["table"]())


def test_state_dict_of_another_network_is_refused(files, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"weight": np.ones((3, 3), np.float32)}, files / "other.safetensors")
    arguments = ["transfer", str(files / "teacher.onnx"), str(files / "target.onnx")]
    more = ["--state-dict", str(files / "other.safetensors"), "-o", str(files / "student.safetensors")]
    assert main([*arguments, *more]) == 3
    assert "no entry of the state dict has its values" in capsys.readouterr().err
    assert not (files / "student.safetensors").exists()
