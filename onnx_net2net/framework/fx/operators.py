"""Operators for onnx2fx: those that it lacks, and those that it computes differently from onnxruntime.

They are put into its registry while a model is converted, and taken out again.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from onnx2fx.op_registry import register_op, registry_context
from onnx2fx.ops.control_flow import loop_op, scan_op
from onnx2fx.ops.convolution import conv
from onnx2fx.ops.tensor import scatter_nd
from onnx2fx.utils.attributes import get_attribute
from torch import Tensor, nn
from torch.nn import functional

from onnx_net2net.framework.fx import resampling

Handler = Callable[[Any, onnx.NodeProto], Any]
"""Makes the FX node of an ONNX node, with a builder of onnx2fx."""

_MICROSOFT = "com.microsoft"

_HANDLERS: dict[tuple[str, str, int], Handler] = {
    ("", "Pad", 1): resampling.pad_from,
    ("", "Pad", 11): resampling.pad_from,  # where onnx2fx has another one
    ("", "Resize", 1): resampling.resize_from,
    ("", "Upsample", 7): resampling.resize_from,
}


def _handles(kind: str, domain: str = "", since: int = 1) -> Callable[[Handler], Handler]:
    """Note a handler for an operator from an opset on."""

    def note(handler: Handler) -> Handler:
        _HANDLERS[domain, kind, since] = handler
        return handler

    return note


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Have the operators of this module in onnx2fx's registry."""
    with registry_context():
        for (domain, kind, since), handler in _HANDLERS.items():
            register_op(kind, handler, domain=domain, since_version=since)
        yield


class BatchNorm(nn.Module):  # type: ignore[misc]
    """A BatchNormalization whose weights and statistics are given to each call.

    Attributes:
        is_frozen: Whether training neither uses nor updates statistics of the batch.
    """

    def __init__(self, epsilon: float, momentum: float) -> None:
        super().__init__()
        self.epsilon, self.momentum, self.is_frozen = epsilon, momentum, True

    def forward(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor | None = None, variance: Tensor | None = None
    ) -> Tensor:
        """Normalise each channel by the statistics, or by those of the batch, which then move the others in place."""
        if mean is None or variance is None:
            return functional.batch_norm(x, None, None, scale, bias, True, 0.0, self.epsilon)
        by_batch = self.training and not self.is_frozen
        if not by_batch:
            mean, variance = mean.detach().to(scale.dtype), variance.detach().to(scale.dtype)
        return functional.batch_norm(x, mean, variance, scale, bias, by_batch, self.momentum, self.epsilon)


@_handles("BatchNormalization")
def _batch_normalization(builder: Any, node: onnx.NodeProto) -> Any:
    module = BatchNorm(get_attribute(node, "epsilon", 1e-5), 1 - get_attribute(node, "momentum", 0.9))
    name = builder.register_submodule(node.output[0], module)
    # In training mode, as weights are standardised by it, it does not read the statistics.
    count = 3 if get_attribute(node, "training_mode", 0) else 5
    return builder.call_module(name, [builder.get_value(name) for name in node.input[:count]])


def _returned(builder: Any, node: onnx.NodeProto, made: Any) -> Any:
    """Return what a tuple of results is to a node: the first of them if it has a single output."""
    return made if len(node.output) > 1 else builder.call_function(operator.getitem, (made, 0))


@_handles("Loop")
def _loop(builder: Any, node: onnx.NodeProto) -> Any:
    return _returned(builder, node, loop_op(builder, node))


@_handles("Scan", since=9)
def _scan(builder: Any, node: onnx.NodeProto) -> Any:
    return _returned(builder, node, scan_op(builder, node))


def _optional(builder: Any, node: onnx.NodeProto, count: int) -> list[Any]:
    """Return so many inputs of a node, None for those that it does not have."""
    names = [*node.input, *[""] * count][:count]
    return [builder.get_value(name) if name else None for name in names]


def _function(
    compute: Callable[..., Any], kind: str, count: int, several: bool = False, domain: str = _MICROSOFT, **defaults: Any
) -> None:
    """Let a function compute an operator.

    Args:
        compute: Takes inputs, and attributes by name.
        kind: The operator.
        count: How many inputs it has at most.
        several: Whether the function returns a tuple.
        domain: The operator's domain.
        defaults: What attributes are where they are left out.
    """

    def handler(builder: Any, node: onnx.NodeProto) -> Any:
        attributes = {name: get_attribute(node, name, default) for name, default in defaults.items()}
        made = builder.call_function(compute, _optional(builder, node, count), attributes)
        return _returned(builder, node, made) if several else made

    _HANDLERS[domain, kind, 1] = handler


def _gather(data: Tensor, places: Tensor, axis: int) -> Tensor:
    """Look entries up along an axis, negative places from its end."""
    axis %= data.dim()
    size = data.shape[axis]
    places = places.long()
    found = data.index_select(axis, torch.where(places < 0, places + size, places).reshape(-1))
    return found.reshape((*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]))


def _gather_nd(data: Tensor, places: Tensor, batch_dims: int) -> Tensor:
    """Look entries up by coordinates, all at once; there may be none."""
    lead = places.shape[:-1]
    batch = [
        torch.arange(size, device=places.device).reshape(-1, *(1 for _ in lead[axis + 1 :])).expand(lead)
        for axis, size in enumerate(lead[:batch_dims])
    ]
    coordinates = (*batch, *places.long().unbind(-1))
    return data[coordinates]


def _scatter_nd(data: Tensor, places: Tensor, updates: Tensor, adds: bool) -> Tensor:
    """Write or add entries by coordinates, all at once; there may be none."""
    return data.index_put(places.long().unbind(-1), updates, accumulate=adds)


_function(_gather, "Gather", 2, domain="", axis=0)
_function(_gather_nd, "GatherND", 2, domain="", batch_dims=0)


@_handles("ScatterND")
def _scatter_nd_from(builder: Any, node: onnx.NodeProto) -> Any:
    reduction = next((a.s.decode() for a in node.attribute if a.name == "reduction"), "none")
    if reduction not in ("none", "add"):
        return scatter_nd(builder, node)
    return builder.call_function(_scatter_nd, _optional(builder, node, 3), {"adds": reduction == "add"})


# --- Operators of onnxruntime's own (com.microsoft) ----------------------------------------------------------


def _gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias)


def _fast_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _quick_gelu(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _fused_matmul(a: Tensor, b: Tensor, alpha: float, **turned: int) -> Tensor:
    a, b = (x.movedim(0, -2) if turned[f"transBatch{name}"] else x for x, name in ((a, "A"), (b, "B")))
    a, b = (x.transpose(-1, -2) if turned[f"trans{name}"] and x.dim() > 1 else x for x, name in ((a, "A"), (b, "B")))
    return alpha * torch.matmul(a, b)


def _skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Any, ...]:
    total = x + skip if bias is None else x + skip + bias
    return functional.layer_norm(total, total.shape[-1:], scale, shift, epsilon), None, None, total


def _skip_rms_norm(x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None, epsilon: float) -> tuple[Any, ...]:
    total = x + skip if bias is None else x + skip + bias
    return functional.rms_norm(total, total.shape[-1:], scale, epsilon), None, None, total


def _attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, past: Tensor | None, more: Tensor | None,
    num_heads: int, unidirectional: int, scale: float | None, mask_filter_value: float,
    qkv_hidden_sizes: list[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    made = x @ weight if bias is None else x @ weight + bias
    sizes = qkv_hidden_sizes or [made.shape[-1] // 3] * 3
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in made.split(list(sizes), -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    present = torch.stack([k, v]) if k.shape == v.shape else k
    scores = (q @ k.transpose(-1, -2)) * (scale or q.shape[-1] ** -0.5)
    here, there = scores.shape[-2:]
    if unidirectional:
        later = torch.ones(here, there, dtype=torch.bool, device=x.device).triu(there - here + 1)
        scores = scores.masked_fill(later, mask_filter_value)
    if mask is not None:
        scores = scores + _added(mask, here, there).to(scores.dtype) * mask_filter_value
    if more is not None:
        scores = scores + more
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), present


def _added(mask: Tensor, here: int, there: int) -> Tensor:
    """Return 1 where a mask hides a place, laid out as the scores."""
    if mask.dim() == 1:  # lengths
        return (torch.arange(there, device=mask.device) >= mask[:, None])[:, None, None]
    hidden = 1 - mask
    if mask.dim() == 4:
        return hidden[:, :, :here, :there]
    return hidden[:, None] if mask.dim() == 3 else hidden[:, None, None]


_function(_gelu, "Gelu", 1)
_function(_gelu, "BiasGelu", 2)
_function(_fast_gelu, "FastGelu", 2)
_function(_quick_gelu, "QuickGelu", 1, alpha=1.702)
_function(_fused_matmul, "FusedMatMul", 2, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0)
_function(_skip_layer_norm, "SkipLayerNormalization", 5, True, epsilon=1e-12)
_function(_skip_rms_norm, "SkipSimplifiedLayerNormalization", 4, True, epsilon=1e-12)
_function(_attention, "Attention", 6, True, num_heads=1, unidirectional=0, scale=None, mask_filter_value=-10000.0,
          qkv_hidden_sizes=None)  # fmt: skip


_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": functional.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "LeakyRelu": functional.leaky_relu,
    "Clip": torch.clamp,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
}


@_handles("FusedConv", _MICROSOFT)
def _fused_conv(builder: Any, node: onnx.NodeProto) -> Any:
    made = conv(builder, node)
    if len(node.input) > 3 and node.input[3]:
        made = builder.call_function(torch.add, (made, builder.get_value(node.input[3])))
    kind = get_attribute(node, "activation", "")
    if not kind:
        return made
    return builder.call_function(_ACTIVATIONS[kind], (made, *get_attribute(node, "activation_params", [])))


def _experts(
    x: Tensor, router: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None,
    k: int, activation_type: str, normalize_routing_weights: int, swiglu_fusion: int, activation_alpha: float,
    activation_beta: float, swiglu_limit: float | None,
) -> Tensor:  # fmt: skip
    tokens = x.reshape(-1, x.shape[-1])
    chosen, places = router.softmax(-1).topk(k, -1)
    if normalize_routing_weights:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    share = torch.zeros_like(router).scatter(-1, places, chosen)
    inner = torch.einsum("th,eih->tei", tokens, first)
    inner = inner if first_bias is None else inner + first_bias
    if activation_type == "swiglu":
        gate, up = (inner[..., ::2], inner[..., 1::2]) if swiglu_fusion == 1 else inner.chunk(2, -1)
        if swiglu_limit is not None:
            gate, up = gate.clamp(max=swiglu_limit), up.clamp(-swiglu_limit, swiglu_limit)
        inner = gate * torch.sigmoid(activation_alpha * gate) * (up + activation_beta)
    else:
        inner = _EXPERT_ACTIVATIONS[activation_type](inner)
    made = torch.einsum("tei,ehi->teh", inner, second)
    made = made if second_bias is None else made + second_bias
    return torch.einsum("te,teh->th", share, made).reshape(x.shape)


_EXPERT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "identity": lambda x: x,
}  # fmt: skip

_function(_experts, "MoE", 6, k=1, activation_type="relu", normalize_routing_weights=0, swiglu_fusion=0,
          activation_alpha=1.0, activation_beta=0.0, swiglu_limit=None)  # fmt: skip


# --- Quantized numbers ---------------------------------------------------------------------------------------


def _dequantized(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int) -> Tensor:
    """Return what integers stand for, with one scale for all, for each entry of an axis or for each block on it."""
    scale, zero_point = (_spread(value, x, axis, block_size) for value in (scale, zero_point))
    assert scale is not None
    shifted = x if zero_point is None else x.to(scale.dtype) - zero_point.to(scale.dtype)
    return shifted.to(scale.dtype) * scale


def _spread(value: Tensor | None, x: Tensor, axis: int, block_size: int) -> Tensor | None:
    """Lay a scale or zero point out beside the integers."""
    if value is None or value.numel() == 1:
        return None if value is None else value.reshape(())
    if block_size:
        return value.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape(-1, *(1,) * (x.dim() - 1 - axis % x.dim()))


def _quantized(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int) -> Tensor:
    """Return the integers that stand for numbers; see `_dequantized`."""
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    scale, zero_point = (_spread(value, x, axis, block_size) for value in (scale, zero_point))
    shifted = (x / scale).round() + (0 if zero_point is None else zero_point.to(x.dtype))
    bounds = torch.iinfo(kind)
    return shifted.clamp(bounds.min, bounds.max).to(kind)


def _dynamically_quantized(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point.to(torch.uint8)


_function(_dequantized, "DequantizeLinear", 3, domain="", axis=1, block_size=0)
_function(_quantized, "QuantizeLinear", 3, domain="", axis=1, block_size=0)
_function(_dynamically_quantized, "DynamicQuantizeLinear", 1, True, domain="")
