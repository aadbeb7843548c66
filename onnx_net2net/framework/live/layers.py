"""The sizes that torch's own layers keep beside their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from onnx_net2net.framework.widths import WidthReport

_SIZES: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.Bilinear: {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.EmbeddingBag: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("weight", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.RNNBase: {"input_size": ("weight_ih_l0", 1)},
    nn.RNNCellBase: {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)},
    nn.MultiheadAttention: {"embed_dim": ("out_proj.weight", 0), "kdim": ("k_proj_weight", 1),
                            "vdim": ("v_proj_weight", 1)},
}  # fmt: skip
"""For each attribute that is a size: the parameter, and its axis of that size."""


def resize_layer(layer: nn.Module, path: str, report: WidthReport) -> None:
    """Set the sizes of one of torch's layers whose parameters grew; what no parameter shows is in the report."""
    sizes = {name: new for name, (_, new) in report.modules.get(path, ("", {}))[1].items()}
    for kind, attributes in _SIZES.items():
        for attribute, (name, axis) in attributes.items() if isinstance(layer, kind) else ():
            shape = _shape(layer, name)
            if shape is not None and isinstance(getattr(layer, attribute), int):
                setattr(layer, attribute, shape[axis])
    if isinstance(layer, nn.modules.conv._ConvNd):
        _resize_convolution(layer, sizes)
    elif isinstance(layer, nn.GroupNorm) and "num_groups" in sizes:
        layer.num_groups = sizes["num_groups"]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm) and _shape(layer, "weight"):
        layer.normalized_shape = _shape(layer, "weight")
    elif isinstance(layer, nn.RNNBase):
        state = layer.weight_hh_l0.shape[0] // {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
        layer.hidden_size = state
        layer.proj_size = layer.weight_hr_l0.shape[0] if layer.proj_size else 0
    elif isinstance(layer, nn.MultiheadAttention) and layer._qkv_same_embed_dim:
        layer.kdim = layer.vdim = layer.embed_dim


def _shape(layer: nn.Module, name: str) -> tuple[int, ...] | None:
    value: Any = layer
    for part in name.split("."):
        value = getattr(value, part, None)
    return tuple(value.shape) if hasattr(value, "shape") else None


def _resize_convolution(layer: Any, sizes: Mapping[str, int]) -> None:
    """Set the channels, and the number of groups: the report's, or else what fits the channels of a group."""
    shape = tuple(layer.weight.shape)
    makes, reads = (1, 0) if layer.transposed else (0, 1)
    if layer.groups > 1:
        old = layer.in_channels if layer.transposed else layer.out_channels
        inner = (layer.out_channels if layer.transposed else layer.in_channels) // layer.groups
        grew = shape[reads if layer.transposed else makes] // old if inner == shape[1] else 1
        layer.groups = sizes.get("groups", layer.groups * max(grew, 1))
    layer.out_channels, layer.in_channels = shape[makes], shape[reads]
    if layer.transposed:
        layer.out_channels *= layer.groups
    else:
        layer.in_channels *= layer.groups
