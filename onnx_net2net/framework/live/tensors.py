"""The tensors that a module holds by name, and new values in their places."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.weights import Held
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.statedict.entries import Entry


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters, buffers (also those that a state dict leaves out), and tensors that are plain attributes."""
    found = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    for path, one in module.named_modules():
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                found[f"{path}.{name}" if path else name] = value
    plain = (torch.strided,)
    return {name: value for name, value in found.items() if value.layout in plain and not value.is_complex()
            and not value.is_quantized}  # fmt: skip


def grown(entry: Entry, tensor: torch.Tensor, held: Held = "weight") -> torch.Tensor:
    """Return what a tensor of the teacher becomes in the student, of the same type and on the same device."""
    wide = tensor.detach().cpu()
    wide = wide.double() if wide.is_floating_point() else wide
    return torch.from_numpy(entry.grow(wide.numpy(), held)).to(device=tensor.device, dtype=tensor.dtype)


def computed_values(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return the entries whose new values need more than maps: gains that correct the norms of weights."""
    found = {}
    for entry in checkpoint.entries:
        if entry.carried is not None and entry.growths:
            values = entry.value()
            if not np.allclose(values, entry.grow(entry.stored.read()), rtol=1e-12, atol=0):
                found[entry.name] = values
    return found


def put(tensor: torch.Tensor, values: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """Give a tensor other values of any shape, and a gradient; those who hold it (optimizers, averages) see them.

    The detour makes autograd forget the old shape, which it remembers while a graph of an earlier step is alive.
    """
    other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
    if tensor.is_floating_point():
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.grad = None
    tensor.data = values
    tensor.grad = gradient


def grow_tensors(module: nn.Module, checkpoint: Checkpoint, values: Mapping[str, Array]) -> None:
    """Grow all tensors of a module in place; what is tied stays tied.

    Args:
        module: The module.
        checkpoint: How each grows.
        values: What some become instead.
    """
    entries = {entry.name: entry for entry in checkpoint.entries}
    done: set[int] = set()
    for name, tensor in tensors_of(module).items():
        entry = entries.get(name)
        if entry is None or not entry.growths or id(tensor) in done:
            continue
        done.add(id(tensor))
        gradient = None if tensor.grad is None else grown(entry, tensor.grad, "gradient")  # a part of an accumulation
        if name in values:
            put(tensor, torch.from_numpy(values[name]).to(device=tensor.device, dtype=tensor.dtype), gradient)
        else:
            put(tensor, grown(entry, tensor), gradient)
