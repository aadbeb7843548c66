"""Networks of random blocks: what public exporters write, put together by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from graphs import build
from onnx import helper

Block = Callable[["Net", str], str]
IMAGE: dict[str, Block] = {}
VECTOR: dict[str, Block] = {}


@dataclass
class Net:
    """A network that is being written down."""

    rng: np.random.Generator
    opset: int
    dtype: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    side: dict[str, int] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)

    def node(self, kind: str, *inputs: str, outputs: int = 1, like: str = "", **attrs: Any) -> Any:
        """Add a node; its results have the channels and the side of `like` (the first input) unless stated."""
        stem = f"{kind.lower()}{len(self.nodes)}"
        names = [f"{stem}_{k}" for k in range(outputs)] if outputs > 1 else [stem]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attrs))
        for name in names:
            for table in (self.channels, self.side):
                table[name] = table.get(like or inputs[0], 1)
        if kind == "Shape" or self.lists.issuperset(inputs):
            self.lists.update(names)
        return names if outputs > 1 else names[0]

    def weight(self, *shape: int, kind: str = "w", low: float | None = None) -> str:
        name = f"{kind}{len(self.constants)}"
        values = self.rng.standard_normal(shape) if low is None else self.rng.random(shape) + low
        scale = 1.0 if low is not None or len(shape) < 2 else np.prod(shape[1:]) ** -0.5
        self.constants[name] = (values * scale).astype(self.dtype)
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.constants)}"
        self.constants[name] = np.array(values, np.int64)
        self.lists.add(name)
        return name

    def scalar(self, value: float) -> str:
        name = f"s{len(self.constants)}"
        self.constants[name] = np.array(value, self.dtype)
        return name

    def zeros(self, size: int) -> str:
        """A zero bias, one initializer for all of a size, as exporters merge them."""
        self.constants.setdefault(f"zeros{size}", np.zeros(size, self.dtype))
        return f"zeros{size}"

    def act(self, x: str) -> str:
        kind = self.pick("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "silu", "gelu")
        if kind == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if kind == "gelu":
            scaled = self.node("Erf", self.node("Div", x, self.scalar(2**0.5)))
            return self.node("Mul", self.node("Mul", x, self.node("Add", scaled, self.scalar(1))), self.scalar(0.5))
        return self.node(kind, x)

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def conv(self, x: str, out: int, kernel: int = 1, group: int = 1) -> str:
        weight = self.weight(out, self.channels[x] // group, kernel, kernel)
        bias = self.pick(list, lambda: [self.weight(out)], lambda: [self.zeros(out)])()
        pads = [kernel // 2] * 4
        y = self.node("Conv", x, weight, *bias, kernel_shape=[kernel, kernel], pads=pads, group=group)
        self.channels[y] = out
        return y

    def linear(self, x: str, out: int) -> str:
        width = self.channels[x]
        form = self.pick("gemm", "transposed", "matmul")
        if form == "matmul":
            bias = self.weight(out) if self.pick(0, 1) else self.zeros(out)
            y = self.node("Add", self.node("MatMul", x, self.weight(width, out)), bias)
        elif form == "gemm":
            y = self.node("Gemm", x, self.weight(width, out), self.weight(out))
        else:
            y = self.node("Gemm", x, self.weight(out, width), self.zeros(out), transB=1, alpha=0.5)
        self.channels[y] = out
        return y

    def slice(self, x: str, start: int, end: int, axis: int = 1) -> str:
        if self.opset < 10:
            return self.node("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.node("Slice", x, self.ints(start), self.ints(end), self.ints(axis))

    def reduce(self, x: str, axes: list[int], keepdims: int) -> str:
        if self.opset < 18:
            return self.node("ReduceMean", x, axes=axes, keepdims=keepdims)
        return self.node("ReduceMean", x, self.ints(*axes), keepdims=keepdims)

    def batch_size(self, x: str) -> str:
        """The batch size as a tensor of one element, as traced from x.size(0)."""
        return self.node("Gather", self.node("Shape", x), self.ints(0), axis=0)


def image(function: Block) -> Block:
    IMAGE[function.__name__] = function
    return function


def vector(function: Block) -> Block:
    VECTOR[function.__name__] = function
    return function


@image
def conv(net: Net, x: str) -> str:
    return net.act(net.conv(x, net.pick(4, 6, 10), net.pick(1, 3)))


@image
def conv_bn(net: Net, x: str) -> str:
    c = net.pick(4, 6, 8)
    params = [net.weight(c, low=0.5), net.weight(c), net.weight(c), net.weight(c, low=0.5)]
    return net.act(net.node("BatchNormalization", net.conv(x, c, 3), *params))


@image
def grouped(net: Net, x: str) -> str:
    x = net.conv(x, 6)
    return net.act(net.conv(x, net.pick(6, 12), 3, group=net.pick(2, 3)))


@image
def depthwise(net: Net, x: str) -> str:
    c = net.channels[x]
    x = net.act(net.conv(x, c * net.pick(1, 2), 3, group=c))
    return net.conv(x, net.pick(4, 6))


@image
def residual(net: Net, x: str) -> str:
    c = net.channels[x]
    return net.act(net.node("Add", x, net.conv(net.act(net.conv(x, net.pick(3, 5))), c, 3)))


@image
def squeeze_excite(net: Net, x: str) -> str:
    c = net.channels[x]
    gate = net.node("GlobalAveragePool", x) if net.pick(0, 1) else net.reduce(x, [2, 3], 1)
    gate = net.node("Sigmoid", net.conv(net.node("Relu", net.conv(gate, net.pick(2, 3))), c))
    return net.node("Mul", x, gate, like=x)


@image
def dense(net: Net, x: str) -> str:
    grown = net.conv(net.act(x), 3, 3)
    y = net.node("Concat", x, grown, axis=1)
    net.channels[y] = net.channels[x] + 3
    return y


@image
def split_and_gate(net: Net, x: str) -> str:
    c = net.pick(3, 4)
    x = net.conv(x, 2 * c)
    if net.opset >= 13:
        a, b = net.node("Split", x, net.ints(c, c), outputs=2, axis=1)
    else:
        a, b = net.node("Split", x, outputs=2, axis=1, split=[c, c])
    y = net.node("Mul", a, net.node("Sigmoid", b))
    net.channels[y] = c
    return y


@image
def sliced(net: Net, x: str) -> str:
    x = net.conv(x, 7)
    a, b = net.slice(x, 0, 3), net.slice(x, net.pick(3, -4), 2**31 - 1)
    net.channels[a], net.channels[b] = 3, 4
    y = net.node("Concat", net.conv(a, 2), net.act(b), axis=-3)
    net.channels[y] = 6
    return y


@image
def shuffle(net: Net, x: str) -> str:
    x, g = net.conv(x, 6), net.pick(2, 3)
    h = net.side[x]
    x = net.node("Reshape", x, net.ints(-1, g, 6 // g, h, h))
    x = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(-1, 6, h, h))
    return net.conv(x, 6, 1, group=net.pick(1, 2, 3))


@image
def pool(net: Net, x: str) -> str:
    if net.side[x] < 4:
        return net.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    y = net.node(net.pick("MaxPool", "AveragePool"), x, kernel_shape=[2, 2], strides=[2, 2])
    net.side[y] = net.side[x] // 2
    return y


@image
def upsample(net: Net, x: str) -> str:
    if net.side[x] > 4 or net.opset < 13:
        return net.node("Identity", x)
    h = net.side[x]
    scales = f"scales{len(net.constants)}"
    net.constants[scales] = np.array([1, 1, 2, 2], np.float32)
    y = net.node("Resize", x, "", scales, mode="nearest")
    net.side[y] = 2 * h
    return y


@image
def pixel_shuffle(net: Net, x: str) -> str:
    if net.side[x] > 4:
        return net.node("Identity", x)
    mode = {"mode": net.pick("DCR", "CRD")} if net.opset > 10 else {}
    y = net.node("DepthToSpace", net.conv(x, 12), blocksize=2, **mode)
    net.channels[y], net.side[y] = 3, 2 * net.side[x]
    return y


@image
def instance_norm(net: Net, x: str) -> str:
    c = net.channels[x]
    return net.node("InstanceNormalization", x, net.weight(c), net.weight(c))


@image
def group_norm(net: Net, x: str) -> str:
    """As PyTorch exports it below opset 18: an InstanceNormalization of the groups."""
    x, h, ones, zeros = net.conv(x, 6), net.side[x], f"ones{len(net.constants)}", net.zeros(3)
    net.constants[ones] = np.ones(3, net.dtype)
    y = net.node("InstanceNormalization", net.node("Reshape", x, net.ints(0, 3, -1)), ones, zeros)
    y = net.node("Reshape", y, net.node("Shape", x) if net.pick(0, 1) else net.ints(-1, 6, h, h), like=x)
    return net.node("Add", net.node("Mul", y, net.weight(6, 1, 1)), net.weight(6, 1, 1))


@image
def prelu(net: Net, x: str) -> str:
    return net.node("PRelu", x, net.weight(net.channels[x], 1, 1))


@image
def standardised(net: Net, x: str) -> str:
    return net.node("Conv", x, net.node("Identity", net.weight(net.channels[x], net.channels[x], 1, 1)), like=x)


@image
def mixer(net: Net, x: str) -> str:
    """Layers over the positions, whose hidden units stand beside the channels."""
    c, s, hidden = net.channels[x], net.side[x], net.pick(5, 8)
    y = net.node("Reshape", x, net.ints(0, 0, -1))
    y = net.act(net.node("MatMul", y, net.weight(s * s, hidden)))
    if net.pick(0, 1):
        y = net.act(net.node("Transpose", y, perm=[0, 2, 1]))
        y = net.node("MatMul", net.weight(c, c), net.node("Transpose", y, perm=[0, 2, 1]))
    y = net.node("Reshape", net.node("MatMul", y, net.weight(hidden, s * s)), net.ints(0, c, s, s))
    return net.node("Add", x, y)


@image
def attention(net: Net, x: str) -> str:
    """Positions look at positions, or channels at channels."""
    c, s, d = net.channels[x], net.side[x], net.pick(4, 6)
    tokens = net.node("Transpose", net.node("Reshape", x, net.ints(0, 0, -1)), perm=[0, 2, 1])
    query, key, value = (net.node("MatMul", tokens, net.weight(c, d)) for _ in range(3))
    if net.pick(0, 1):
        key = net.node("Transpose", net.node("Mul", key, net.scalar(d**-0.5)), perm=[0, 2, 1])
        y = net.node("MatMul", net.node("Softmax", net.node("MatMul", query, key), axis=2), value)
    else:
        query = net.node("Transpose", net.node("Mul", query, net.scalar(s**-2.0)), perm=[0, 2, 1])
        y = net.node("MatMul", value, net.node("Softmax", net.node("MatMul", query, key), axis=2))
    y = net.node("Transpose", net.node("MatMul", y, net.weight(d, c)), perm=[0, 2, 1])
    return net.node("Add", x, net.node("Reshape", y, net.ints(0, c, s, s)))


@image
def memory(net: Net, x: str) -> str:
    """Positions look at weights: the units under the Softmax are hidden."""
    c, s = net.channels[x], net.side[x]
    tokens = net.node("Transpose", net.node("Reshape", x, net.ints(0, 0, -1)), perm=[0, 2, 1])
    shares = net.node("Softmax", net.node("MatMul", tokens, net.weight(c, 7)), axis=2)
    y = net.node("Transpose", net.node("MatMul", shares, net.weight(7, c)), perm=[0, 2, 1])
    return net.node("Reshape", y, net.ints(-1, c, s, s), like=x)


@vector
def linear(net: Net, x: str) -> str:
    return net.act(net.linear(x, net.pick(5, 8)))


@vector
def bottleneck(net: Net, x: str) -> str:
    return net.node("Add", x, net.linear(net.act(net.linear(x, net.pick(6, 9))), net.channels[x]))


@vector
def tied(net: Net, x: str) -> str:
    """A matrix and its transpose, like an embedding and its head."""
    c, matrix = net.channels[x], net.weight(net.channels[x], 7)
    hidden = net.act(net.node("MatMul", x, matrix))
    y = net.node("MatMul", hidden, net.node("Transpose", matrix, perm=[1, 0]))
    net.channels[y] = c
    return y


@vector
def siamese(net: Net, x: str) -> str:
    """One matrix, through an alias too, on two inputs."""
    matrix = net.weight(net.channels[x], 6)
    alias = net.node("Identity", matrix)
    a, b = net.node("MatMul", x, matrix), net.node("MatMul", net.node("Tanh", x), alias)
    y = net.node("Sub", net.act(a), net.act(b))
    net.channels[y] = 6
    return y


@vector
def layer_norm(net: Net, x: str) -> str:
    """As PyTorch exports it below opset 17: of elementary operators."""
    x, c = net.linear(x, 4), 4
    centred = net.node("Sub", x, net.reduce(x, [-1], 1))
    variance = net.reduce(net.node("Pow", centred, net.scalar(2)), [-1], 1)
    scaled = net.node("Div", centred, net.node("Sqrt", net.node("Add", variance, net.scalar(1e-5))))
    y = net.node("Add", net.node("Mul", scaled, net.weight(c)), net.weight(c))
    net.channels[y] = c
    return y


@vector
def layer_norm_node(net: Net, x: str) -> str:
    """A block of a transformer with the norm behind it, or in front."""
    if net.opset < 17 or net.dtype is not np.float32:
        return layer_norm(net, x)
    x, after = net.linear(x, net.pick(4, 6)), net.pick(0, 1)
    c = net.channels[x]
    norm = net.pick("LayerNormalization", "SimplifiedLayerNormalization")
    shift = [net.weight(c)] if norm == "LayerNormalization" and net.pick(0, 1) else []

    def normed(x: str) -> str:
        return net.node(norm, x, net.weight(c, low=0.5), *shift, axis=-1, epsilon=1e-3)

    inner = net.linear(net.act(net.linear(x if after else normed(x), 7)), c)
    y = net.act(net.node("Add", x, inner))
    return normed(y) if after else y


@vector
def shared_out(net: Net, x: str) -> str:
    """A Softmax of hidden units, which a weight reads, and one of a weight."""
    y = net.node("Softmax", net.linear(x, net.pick(5, 7)), axis=net.pick(1, -1))
    y = net.node("MatMul", net.node("Mul", y, y) if net.pick(0, 1) else y, net.weight(net.channels[y], 6))
    net.channels[y] = 6
    return net.node("Mul", y, net.node("Softmax", net.weight(1, 6))) if net.pick(0, 1) else y


@vector
def experts(net: Net, x: str) -> str:
    """The units of some experts, each times the share of its expert."""
    gate = net.node("Softmax", net.linear(x, 3), axis=-1)
    gate = net.node("Reshape", gate, net.ints(0, 3, 1))
    units = net.node("Reshape", net.act(net.linear(x, 15)), net.ints(0, 3, 5))
    y = net.node("Reshape", net.node("Mul", units, gate), net.ints(0, -1))
    net.channels[y] = 15
    return y


@vector
def heads(net: Net, x: str) -> str:
    """Split into heads, mixed per head, merged; the batch size is computed where it is dynamic."""
    x, h = net.linear(x, 6), net.pick(2, 3)
    d = 6 // h
    if net.pick(0, 1):
        shape = net.node("Concat", net.batch_size(x), net.ints(h), net.ints(d), axis=0)
    else:
        shape = net.ints(-1, h, d)
    y = net.node("Reshape", x, shape)
    y = net.node("MatMul", y, net.weight(d, 4))
    y = net.node("Tanh", y)
    back = net.ints(0, -1) if net.pick(0, 1) else net.node("Concat", net.batch_size(x), net.ints(h * 4), axis=0)
    y = net.node("Reshape", y, back)
    net.channels[y] = 4 * h
    return y


@vector
def unsqueezed(net: Net, x: str) -> str:
    c = net.channels[x]
    if net.opset >= 13:
        y = net.node("Squeeze", net.node("Relu", net.node("Unsqueeze", x, net.ints(1))), net.ints(1))
    else:
        y = net.node("Squeeze", net.node("Relu", net.node("Unsqueeze", x, axes=[1])), axes=[1])
    net.channels[y] = c
    return y


def network(
    seed: int,
    dtype: type = np.float32,
    images: Sequence[str] | None = None,
    vectors: Sequence[str] | None = None,
    opsets: Sequence[int] = (9, 11, 13, 17, 20),
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Blocks on images, flattened or pooled, then blocks on vectors; some hidden tensors are outputs too."""
    rng = np.random.default_rng(seed)
    net = Net(rng, opset=int(rng.choice(opsets)), dtype=dtype)
    feeds = {"x": rng.standard_normal((2, 3, 6, 6)).astype(dtype)}
    net.channels["x"], net.side["x"] = 3, 6
    x = net.conv(mixer(net, "x") if net.pick(0, 0, 1) else "x", net.pick(4, 6), 3)
    for name in rng.choice(list(IMAGE), 4) if images is None else images:
        x = IMAGE[name](net, x)
    if net.pick(0, 1):
        x = net.reduce(x, [2, 3], 0)
    else:
        size = net.channels[x] * net.side[x] ** 2
        form = net.pick("flatten", "reshape", "computed")
        if form == "flatten":
            x = net.node("Flatten", x)
        else:
            computed = form == "computed" and net.node("Concat", net.batch_size(x), net.ints(-1), axis=0)
            x = net.node("Reshape", x, computed or net.ints(0, -1))
        net.channels[x] = size
    for name in rng.choice(list(VECTOR), 2) if vectors is None else vectors:
        x = VECTOR[name](net, x)
    hidden = [name for node in net.nodes for name in node.output if name not in net.lists]
    shown = rng.permutation(hidden)[: net.pick(0, 0, 1, 3)]
    y = net.linear(x, 3)
    outputs = [net.node(net.pick("Softmax", "Sigmoid"), y) if rng.random() < 0.2 else y, *map(str, shown)]
    dynamic = {0} if rng.random() < 0.5 else set()
    return build(net.nodes, feeds, outputs, net.constants, opset=net.opset, dynamic=dynamic), feeds
