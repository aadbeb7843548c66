"""Parts of a target that the teacher does not have can do nothing, whatever they end in."""

import numpy as np
import pytest
from graphs import build
from test_transfer import Net, fill


def ending(net, outputs=1):
    """The model of what is written, with the last results as outputs."""
    names = [node.output[0] for node in net.nodes[-outputs:]]
    return build(net.nodes, {"x": net.input}, names, net.constants, opset=net.opset)


def beside(net, start, *layers):
    """What layers make of an earlier result."""
    net.last, kept = start, net.width
    for layer in layers:
        layer(net)
    made, net.width, net.last = net.last, kept, start
    return made


def wavenet(seed, width=5, skip=4, depth=1):
    """Blocks with a residual and a skip, and one gate for both."""
    net = Net(seed, (2, 3, 6, 6)).conv("stem", width, kernel=1)
    skips = []
    for block in range(depth):
        entry = net.last
        parts = [beside(net, entry, lambda n, k=kind, b=block: n.conv(f"{b}.{k}", width).node(k))
                 for kind in ("Tanh", "Sigmoid")]  # fmt: skip
        net.last = parts[0]
        gated = net.node("Mul", parts[1]).last
        skips.append(beside(net, gated, lambda n, b=block: n.conv(f"{b}.skip", skip, kernel=1)))
        net.last = beside(net, gated, lambda n, b=block: n.conv(f"{b}.res", width, kernel=1))
        net.add(entry)
    left, net.last, net.width = net.last, skips[0], skip
    for one in skips[1:]:
        net.add(one)
    head = net.node("Relu").conv("head", 3, kernel=1).last
    net.last, net.width = left, width
    net.conv("other", 3, kernel=1).add(head)
    return net.build("y")


def nbeats(seed, width=6, depth=2):
    """x - f(z) and y + g(z), where the last block has no x any more."""
    net = Net(seed, (3, 7))
    total = ""
    for block in range(depth):
        entry, net.width = net.last, 7
        hidden = net.linear(f"{block}.fc", width).node("Relu").last
        made = beside(net, hidden, lambda n, b=block: n.linear(f"{b}.forecast", 2))
        if total:
            net.last = total
            made = net.add(made).last
        total = made
        if block + 1 < depth:
            net.width = width
            back = beside(net, hidden, lambda n, b=block: n.linear(f"{b}.back", 7))
            net.last = entry
            net.node("Sub", back)
    net.last = total
    return net.node("Identity").build("y")


def gated(seed, width=5, depth=0, gate="Sigmoid"):
    """Squeeze and excitation in the chain itself."""
    net = Net(seed, (2, 3, 6, 6)).conv("a", width).node("Relu")
    for block in range(depth):
        entry = net.last
        net.node("GlobalAveragePool").conv(f"{block}.down", 2, kernel=1).node("Relu").conv(
            f"{block}.up", width, kernel=1
        )
        if gate == "1 + tanh":
            net.node("Tanh").node("Add", net.constant("one", np.array(1.0)))
        elif gate == "relu6":
            net.node("Add", net.constant("three", np.array(3.0)))
            net.node("Clip", net.constant("low", np.array(0.0)), net.constant("high", np.array(6.0)))
            net.node("Div", net.constant("six", np.array(6.0)))
        elif gate == "2 sigmoid":
            net.node("Sigmoid").node("Mul", net.constant("two", np.array(2.0)))
        else:
            net.node(gate)
        net.node("Mul", entry)
    return net.conv("b", width).node("Relu").conv("head", 3, kernel=1).build("y")


def highway(seed, width=5, depth=1):
    """g h(x) + (1 - g) x."""
    net = Net(seed, (3, 4)).linear("stem", width).node("Tanh")
    for block in range(depth):
        entry = net.last
        gate = beside(net, entry, lambda n, b=block: n.linear(f"{b}.gate", width).node("Sigmoid"))
        net.last = beside(net, entry, lambda n, b=block: n.linear(f"{b}.h", width).node("Relu"))
        new = net.node("Mul", gate).last
        net.last = net.constant("one", np.array(1.0))
        net.node("Sub", gate)
        net.node("Mul", entry).add(new)
    return net.linear("head", 2).build("y")


def film(seed, width=5, depth=1):
    """x (1 + a) + b, with a and b of one layer of something else."""
    net = Net(seed, (3, 4))
    other = net.linear("other", 3).last
    net.last, net.width = "x", 4
    net.linear("stem", width).node("Tanh")
    for block in range(depth):
        entry, net.width = net.last, 3
        net.last = other
        net.linear(f"{block}.film", 2 * width)
        net.nodes.append(net_split(net.last, block))
        net.last = f"{block}.scale"
        scale = net.node("Add", net.constant("one", np.array(1.0))).last
        net.last, net.width = entry, width
        net.node("Mul", scale).node("Add", f"{block}.shift")
    return net.linear("head", 2).build("y")


def net_split(tensor, block):
    from onnx import helper

    return helper.make_node("Split", [tensor], [f"{block}.scale", f"{block}.shift"], axis=1, num_outputs=2)


def pooled(seed, width=6, depth=0, scaled=True):
    """x + scale (pool(norm(x)) - norm(x)): nothing but a norm and a scale has weights."""
    net = Net(seed, (2, 3, 6, 6)).conv("stem", width, kernel=1)
    for block in range(depth):
        entry, normed = net.last, net.bn(f"{block}.norm").last
        net.node("AveragePool", kernel_shape=[3, 3], pads=[1] * 4).node("Sub", normed)
        net = net.node("Mul", net.constant(f"{block}.scale", net.draw(width, 1, 1))) if scaled else net
        net.add(entry)
    return net.node("Tanh").conv("head", 3, kernel=1).build("y")


def rectified(seed, width=5, depth=1, activation="Relu"):
    """X + relu(conv(x)): behind the zero nothing learns, but it is exact."""
    net = Net(seed, (2, 3, 6, 6)).conv("stem", width, kernel=1)
    for block in range(depth):
        entry = net.last
        net.conv(f"{block}", width).node(activation).add(entry)
    return net.node("Tanh").conv("head", 3, kernel=1).build("y")


FAMILIES = {
    "two exits, deeper": (wavenet(0), wavenet(1, depth=3)),
    "two exits, wider and deeper": (wavenet(0, depth=2), wavenet(1, width=7, skip=6, depth=3)),
    "differences, deeper": (nbeats(0), nbeats(1, depth=4)),
    "differences, wider and deeper": (nbeats(0), nbeats(1, width=9, depth=3)),
    "a gate: sigmoid": (gated(0), gated(1, width=7, depth=1)),
    "a gate: hard sigmoid": (gated(0), gated(1, depth=2, gate="HardSigmoid")),
    "a gate: 1 + tanh": (gated(0), gated(1, depth=1, gate="1 + tanh")),
    "a gate: relu6": (gated(0), gated(1, depth=1, gate="relu6")),
    "a gate: 2 sigmoid": (gated(0), gated(1, depth=1, gate="2 sigmoid")),
    "a highway": (highway(0), highway(1, width=8, depth=3)),
    "scale and shift of one layer": (film(0), film(1, depth=3)),
    "a norm alone": (pooled(0), pooled(1, depth=2, scaled=False)),
    "a norm and a scale": (pooled(0, depth=1), pooled(1, width=9, depth=3)),
    "an end in ReLU": (rectified(0), rectified(1, width=7, depth=2)),
    "an end in HardSwish": (rectified(0, activation="HardSwish"), rectified(1, depth=3, activation="HardSwish")),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_target_has_in_excess_does_nothing(name):
    _, verification, obstacles = fill(*FAMILIES[name])
    assert obstacles == []
    assert verification.equivalent


def test_what_cannot_do_nothing_is_named_with_the_reason():
    _, _, obstacles = fill(gated(0), gated(1, depth=1, gate="Softplus"))
    assert obstacles == []  # log(1 + e^x) is 1 for one x
    _, _, obstacles = fill(rectified(0, activation="Cos"), rectified(1, depth=2, activation="Cos"))
    assert ["it ends in Cos, and nothing could make its result 0" in text for text in obstacles] == [True]
    net = Net(1, (2, 3, 6, 6)).conv("a", 5).node("Relu")
    entry = net.last
    net.node("GlobalAveragePool").conv("up", 5, kernel=1, bias=False).node("Sigmoid").node("Mul", entry)
    target = net.conv("b", 5).node("Relu").conv("head", 3, kernel=1).build("y")
    _, _, obstacles = fill(gated(0), target)
    assert ["Conv has no bias, so that it could only be 0" in text for text in obstacles] == [True]
