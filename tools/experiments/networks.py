"""The networks of the experiments.

Widths and depths are arguments, so that a grown network can be built and given the grown weights. Modules that
``onnx-net2net deepen`` inserts carry the names that it gives to their parameters, so that these load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional
from train_models import Branches, ConvBn, Inception, InceptionBn

from experiments import data

# --- Inception-BN -------------------------------------------------------------------------------------

PAIR_END = "branch7x7_3"  # the second convolution of the pair of a horizontal and a vertical one in each module
KERNEL = 7

# Stem and modules of a network of standard width, by setting.
INCEPTIONS: Mapping[str, tuple[tuple[int, int], Mapping[str, Branches]]] = {
    "small": (
        (8, 16),
        {
            "inception3a": Branches(12, (12, 16), (8, 12, 12), 8),
            "inception4a": Branches(16, (16, 24), (12, 16, 16), 12),
        },
    ),
    "large": (
        (32, 64),
        {
            "inception3a": Branches(32, (32, 48), (24, 32, 32), 24),
            "inception3b": Branches(32, (32, 48), (24, 32, 32), 24),
            "inception4a": Branches(48, (48, 72), (32, 48, 48), 36),
            "inception4b": Branches(48, (48, 72), (32, 48, 48), 36),
            "inception4c": Branches(48, (48, 72), (32, 48, 48), 36),
        },
    ),
}


class Inserted(nn.Conv2d):
    """A convolution that keeps channels and image size, batch normalisation and ReLU."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__(channels, channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers."""
        return functional.relu(self.bn(super().forward(x)))


class DeeperConvBn(ConvBn):
    """A vertical convolution of an Inception module with `pairs` of a horizontal and a vertical one behind it."""

    def __init__(self, channels_in: int, channels: int, pairs: int) -> None:
        super().__init__(channels_in, channels, (KERNEL, 1))
        for number in range(pairs):
            pair = nn.Sequential(Inserted(channels, (1, KERNEL)), Inserted(channels, (KERNEL, 1)))
            self.add_module(f"conv_new{number}", pair)
        self.inserted = [f"conv_new{number}" for number in range(pairs)]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution and the pairs."""
        x = super().forward(x)
        for name in self.inserted:
            x = self.get_submodule(name)(x)
        return x


def glyph_inception(setting: str, width: float = 1.0, pairs: int = 0) -> InceptionBn:
    """Build an Inception-BN for glyphs.

    Args:
        setting: A key of `INCEPTIONS`.
        width: Times the standard number of channels in the modules; the stem stays, as in section 3.2 of the paper.
        pairs: More pairs of convolutions behind the pair in each module, as in section 3.3.
    """
    stem, modules = INCEPTIONS[setting]
    scaled = {name: widths.scaled(width) for name, widths in modules.items()}
    model = InceptionBn(stem, scaled, classes=len(data.GLYPHS), stride=2)
    for module in model.children():
        if pairs and isinstance(module, Inception):
            conv = module.get_submodule(PAIR_END).conv
            module.add_module(PAIR_END, DeeperConvBn(conv.in_channels, conv.out_channels, pairs))
    return model


# --- VGG ----------------------------------------------------------------------------------------------


class Vgg(nn.Module):
    """Convolutions with batch normalisation; every stage after the first halves the image.

    Args:
        stages: Channels of each stage.
        depth: Convolutions of each stage.
        classes: Number of classes.
        stride: Of the first convolution, for larger images.
    """

    def __init__(self, stages: Sequence[int], depth: int, classes: int, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, channels in enumerate(stages):
            layers += [nn.MaxPool2d(2)] if number else []
            for _ in range(depth):
                conv = nn.Conv2d(before, channels, 3, 1 if layers else stride, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, height, width]``."""
        return self.fc(self.pool(self.features(image)).flatten(1))


# --- transformer --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention whose number of heads does not depend on the width of the residual stream."""

    def __init__(self, stream: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query, self.key, self.value = (nn.Linear(stream, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, stream)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: ``[n, length, stream]`` to the same."""
        heads = [
            layer(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        return self.out(functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block with LayerNorm in front of attention and perceptron."""

    def __init__(self, stream: int, heads: int, head_dim: int, ffn: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(stream), nn.LayerNorm(stream)
        self.attention = Attention(stream, heads, head_dim)
        self.up, self.down = nn.Linear(stream, ffn), nn.Linear(ffn, stream)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: ``[n, length, stream]`` to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A byte-level language model.

    Args:
        stream: Width of the residual stream.
        heads: Heads of each attention.
        head_dim: Width of each head.
        ffn: Hidden units of each perceptron.
        blocks: Number of blocks.
        context: Bytes it sees, at most.
    """

    def __init__(self, stream: int, heads: int, head_dim: int, ffn: int, blocks: int, context: int) -> None:
        super().__init__()
        self.token = nn.Embedding(data.BYTES, stream)
        self.position = nn.Embedding(context, stream)
        self.blocks = nn.ModuleList(Block(stream, heads, head_dim, ffn) for _ in range(blocks))
        self.norm = nn.LayerNorm(stream)
        self.head = nn.Linear(stream, data.BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Predict: bytes ``[n, length]`` to logits of the next ones ``[n, length, 256]``."""
        x = self.token(text) + self.position.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def transformer(stream: int, blocks: int, context: int, head_dim: int) -> Transformer:
    """Build one whose heads together are as wide as the stream, with four times the hidden units."""
    return Transformer(stream, stream // head_dim, head_dim, 4 * stream, blocks, context)
