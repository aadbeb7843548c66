"""Models of Keras as people write them, each with its widths as arguments; `checkpoint_jax_table.py` grows them.

Each entry of `MODELS` has a function of widths, the shape of an input, whether that holds token ids, and where a width
is read off a state dict: the tensor and its axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

UNROLL = keras.backend.backend() == "jax"
"""Whether recurrent layers are unrolled: jax2onnx takes no backward scan, and weights in its loops do not grow."""


@dataclass(frozen=True)
class Example:
    """A model and how it is called."""

    make: Callable[..., Any]
    shape: tuple[int, ...]
    widths: dict[str, tuple[str, int]]
    tokens: int = 0


def cnn(first: int = 8, second: int = 16, hidden: int = 32) -> Any:
    """Convolutions with BatchNormalization, pooled and flattened."""
    x = inputs = keras.Input((12, 12, 3))
    for width in (first, second):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(hidden, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(5)(x))


def separable(first: int = 8, second: int = 16) -> Any:
    """Depthwise separable convolutions, one by two layers and one by one."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(first, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(second, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def lstm(embedding: int = 6, first: int = 6, second: int = 6) -> Any:
    """An embedding, an LSTM in both directions and one in one."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, embedding)(inputs)
    x = layers.Bidirectional(layers.LSTM(first, return_sequences=True, unroll=UNROLL))(x)
    return keras.Model(inputs, layers.Dense(5)(layers.LSTM(second, unroll=UNROLL)(x)))


def gru(first: int = 6, second: int = 6) -> Any:
    """A GRU as cuDNN has it, and one as in its paper."""
    inputs = keras.Input((7, 4))
    x = layers.GRU(first, return_sequences=True, unroll=UNROLL)(inputs)
    return keras.Model(inputs, layers.Dense(5)(layers.GRU(second, reset_after=False, unroll=UNROLL)(x)))


def transformer(width: int = 16, heads: int = 2, ffn: int = 24) -> Any:
    """Two blocks of an encoder, with the norms behind the sums."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, width)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization(epsilon=1e-6)(x + layers.MultiHeadAttention(heads, 8)(x, x))
        hidden = layers.Dense(ffn, activation="gelu")(x)
        x = layers.LayerNormalization(epsilon=1e-6)(x + layers.Dense(width)(hidden))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def autoencoder(first: int = 16, code: int = 4, last: int = 16) -> Any:
    """A perceptron with a narrow middle."""
    inputs = keras.Input((12,))
    x = layers.LayerNormalization()(layers.Dense(first, activation="relu")(inputs))
    x = layers.Dense(code, activation="tanh")(x)
    x = layers.LeakyReLU()(layers.Dense(last)(x))
    return keras.Model(inputs, layers.Dense(12, activation="sigmoid")(x))


MODELS = {
    "CNN with BatchNormalization": Example(cnn, (12, 12, 3), {
        "first": ("layers/conv2d/vars/0", 3), "second": ("layers/conv2d_1/vars/0", 3),
        "hidden": ("layers/dense/vars/0", 1),
    }),
    "depthwise separable CNN": Example(separable, (12, 12, 3), {
        "first": ("layers/conv2d/vars/0", 3), "second": ("layers/separable_conv2d/vars/1", 3),
    }),
    "LSTM, both directions": Example(lstm, (7,), {
        "embedding": ("layers/embedding/vars/0", 1), "second": ("layers/lstm/cell/vars/1", 0),
        "first": ("layers/bidirectional/forward_layer/cell/vars/1", 0),
    }, tokens=20),
    "GRU, both kinds": Example(gru, (7, 4), {
        "first": ("layers/gru/cell/vars/1", 0), "second": ("layers/gru_1/cell/vars/1", 0),
    }),
    "transformer encoder": Example(transformer, (7,), {
        "width": ("layers/embedding/vars/0", 1), "ffn": ("layers/dense/vars/0", 1),
        "heads": ("layers/multi_head_attention/query_dense/vars/0", 1),
    }, tokens=20),
    "autoencoder": Example(autoencoder, (12,), {
        "first": ("layers/dense/vars/0", 1), "code": ("layers/dense_1/vars/0", 1), "last": ("layers/dense_2/vars/0", 1),
    }),
}  # fmt: skip
