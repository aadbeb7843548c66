"""Networks as trees of modules."""

from onnx_net2net.operations.transfer.dpiat.elements import LayerTree, ScoredLayer


def layer(kind: str, *shape: int) -> ScoredLayer:
    """A layer without values."""
    return ScoredLayer(kind, shape)


def linear(outputs: int, inputs: int) -> ScoredLayer:
    """A linear layer without values."""
    return layer("Linear", outputs, inputs)


def cifar_resnet(blocks: int, channels: int, classes: int = 10) -> LayerTree:
    """The ResNet for CIFAR-10 of DPIAT's authors: three stages, the last block of the first two halves the image.

    A block that does has a shortcut of its own, which comes first in the order of its modules.
    """

    def conv(outputs: int, inputs: int) -> ScoredLayer:
        return layer("Conv2d", outputs, inputs, 3, 3)

    def norm(units: int) -> ScoredLayer:
        return layer("BatchNorm2d", units)

    modules: list[LayerTree] = [conv(channels, 3), norm(channels), ()]
    for stage in range(3):
        width = channels << stage
        for block in range(blocks):
            halves = block == blocks - 1 and stage < 2
            outputs = 2 * width if halves else width
            path = [conv(width, width), norm(width), (), conv(outputs, width), norm(outputs), ()]
            modules.append([conv(outputs, width), path] if halves else [path])
    return [[*modules, (), (), linear(classes, 4 * channels)]]
