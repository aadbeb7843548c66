"""What a class is called with: token ids, pictures or sounds, as its config says, drawn at random or given."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from onnx_net2net.errors import BadInputError

BATCH, LENGTH = 2, 11
"""Samples that are drawn, and tokens of each."""

PICTURE = 224
"""Pixels along the side of a picture, where a config does not tell."""


def draw_inputs(model: nn.Module, config: Any, seed: int = 0, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Draw what a model of transformers is called with.

    Returns:
        By name: int64 [BATCH, length] token ids; or float32 [BATCH, channels, height, width] pictures, or float32
        [BATCH, bands, frames] spectra, or float32 [BATCH, samples] sounds.

    Raises:
        BadInputError: If it is called with something else.
    """
    generator = torch.Generator().manual_seed(seed)
    name = getattr(model, "main_input_name", "input_ids")
    if name == "input_ids":
        return {name: ids(config, generator, length)}
    if name == "pixel_values":
        size = getattr(config, "image_size", PICTURE)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        shape = (BATCH, getattr(config, "num_channels", 3), *sides)
    elif name == "input_features":
        shape = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)
    elif name == "input_values":
        shape = (BATCH, 400)
    else:
        raise BadInputError(f"{type(model).__name__} needs an input {name}, and nothing tells what to draw for it")
    drawn = {name: torch.randn(shape, generator=generator)}
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_decoder") and _has_decoder(model):
        drawn["decoder_input_ids"] = ids(config, generator, length)
    return drawn


def _has_decoder(model: Any) -> bool:
    try:
        return model.get_decoder() is not None and model.get_decoder() is not model
    except (AttributeError, NotImplementedError):
        return False


def ids(config: Any, generator: torch.Generator, length: int) -> torch.Tensor:
    """Draw token ids."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None) or length
    most = max(1, min(length, longest - 4))  # some count their positions from 2 on
    low = 3 if text.vocab_size > 8 else 0  # no padding
    return torch.randint(low, text.vocab_size, (BATCH, most), generator=generator)


def output_of(result: Any) -> torch.Tensor:
    """Return the first tensor of what a model returned: its logits, or the last hidden state."""
    if isinstance(result, torch.Tensor):
        return result
    values = list(result.values()) if isinstance(result, dict) else list(result)
    return next(value for value in values if isinstance(value, torch.Tensor))


@contextlib.contextmanager
def plainly_called(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let a model take tensors by place and return one tensor, as exporters like it."""

    def forward(self: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
        return call(self, type(self).forward, dict(zip(names, tensors, strict=True)))

    model.forward = types.MethodType(forward, model)
    try:
        yield
    finally:
        del model.forward


def call(model: Any, forward: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the first tensor that a function of a model makes of its inputs."""
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    return output_of(forward(model, **inputs, **options))
