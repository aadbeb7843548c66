"""Modules of Flax NNX as people write them, each with its widths as arguments; `checkpoint_jax_table.py` grows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class Example:
    """A module and how it is called; widths are read off an axis of a tensor."""

    make: Callable[..., Any]
    shape: tuple[int, ...]
    widths: dict[str, tuple[str, int]]
    tokens: int = 0


class CNN(nnx.Module):
    """Convolutions with BatchNorm, pooled and flattened."""

    def __init__(self, first: int = 8, second: int = 16, hidden: int = 32, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, first, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(first, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(second, rngs=rngs)
        self.hidden = nnx.Linear(second * 9, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), window_shape=(2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class Separable(nnx.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, first: int = 8, second: int = 16, *, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, first, (3, 3), strides=2, rngs=rngs)
        self.depth = nnx.Conv(first, first, (3, 3), feature_group_count=first, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(first, rngs=rngs)
        self.point = nnx.Conv(first, second, (1, 1), rngs=rngs)
        self.head = nnx.Linear(second, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.depth(nnx.relu(self.stem(x)))))
        return self.head(nnx.relu(self.point(x)).mean((1, 2)))


class Recurrent(nnx.Module):
    """Two cells, called for each step: jax2onnx takes no `nnx.RNN`."""

    def __init__(self, cell: Any, first: int = 6, second: int = 6, *, rngs: nnx.Rngs) -> None:
        self.first, self.second = cell(4, first, rngs=rngs), cell(first, second, rngs=rngs)
        self.head = nnx.Linear(second, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        states = []
        for cell in (self.first, self.second):
            zero = jnp.zeros((x.shape[0], cell.hidden_features), x.dtype)
            states.append(zero if isinstance(cell, nnx.GRUCell) else (zero, zero))
        for step in range(x.shape[1]):
            states[0], y = self.first(states[0], x[:, step])
            states[1], y = self.second(states[1], y)
        return self.head(y)


class Block(nnx.Module):
    """A block of an encoder, with the norms in front."""

    def __init__(self, width: int, heads: int, ffn: int, *, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, qkv_features=heads * 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, ffn, rngs=rngs), nnx.Linear(ffn, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Two blocks of an encoder."""

    def __init__(self, width: int = 16, heads: int = 2, ffn: int = 24, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(20, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, ffn, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Autoencoder(nnx.Module):
    """A perceptron with a narrow middle."""

    def __init__(self, first: int = 16, code: int = 4, last: int = 16, *, rngs: nnx.Rngs) -> None:
        self.encode1, self.norm = nnx.Linear(12, first, rngs=rngs), nnx.LayerNorm(first, rngs=rngs)
        self.encode2 = nnx.Linear(first, code, rngs=rngs)
        self.decode1, self.decode2 = nnx.Linear(code, last, rngs=rngs), nnx.Linear(last, 12, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jnp.tanh(self.encode2(self.norm(nnx.relu(self.encode1(x)))))
        return nnx.sigmoid(self.decode2(nnx.leaky_relu(self.decode1(x))))


def lstm(**sizes: Any) -> Recurrent:
    """Make a network of LSTM cells."""
    return Recurrent(nnx.OptimizedLSTMCell, **sizes)


def gru(**sizes: Any) -> Recurrent:
    """Make a network of GRU cells."""
    return Recurrent(nnx.GRUCell, **sizes)


MODELS = {
    "CNN with BatchNorm": Example(CNN, (12, 12, 3), {
        "first": ("conv1/kernel", 3), "second": ("conv2/kernel", 3), "hidden": ("hidden/kernel", 1),
    }),
    "depthwise separable CNN": Example(Separable, (12, 12, 3), {
        "first": ("stem/kernel", 3), "second": ("point/kernel", 3),
    }),
    "LSTM": Example(lstm, (7, 4), {"first": ("first/dense_h/kernel", 0), "second": ("second/dense_h/kernel", 0)}),
    "GRU": Example(gru, (7, 4), {"first": ("first/dense_h/kernel", 0), "second": ("second/dense_h/kernel", 0)}),
    "transformer encoder": Example(Transformer, (7,), {
        "width": ("embed/embedding", 1), "heads": ("blocks/0/attention/query/kernel", 1),
        "ffn": ("blocks/0/up/kernel", 1),
    }, tokens=20),
    "autoencoder": Example(Autoencoder, (12,), {
        "first": ("encode1/kernel", 1), "code": ("encode2/kernel", 1), "last": ("decode1/kernel", 1),
    }),
}  # fmt: skip
