"""The tensors that a module holds by name, and new values in their places."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from onnx_net2net.framework import files as statedict
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.entries import Entry


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


def grown(entry: Entry, tensor: torch.Tensor) -> torch.Tensor:
    """Return what a tensor of the teacher becomes in the student, of the same type and on the same device."""
    wide = tensor.detach().cpu()
    wide = wide.double() if wide.is_floating_point() else wide
    values = entry.grow(wide.numpy())
    return torch.from_numpy(values).to(device=tensor.device, dtype=tensor.dtype)


def put(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor other values, of any shape; those who hold it (an optimizer, another module) see them.

    The detour makes autograd forget the old shape, which it remembers while a graph of an earlier step is alive.
    """
    other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
    if tensor.is_floating_point():
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = values


def grow_tensors(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Grow all tensors of a module in place; what is tied stays tied."""
    entries = {entry.name: entry for entry in checkpoint.entries}
    done: set[int] = set()
    for name, tensor in tensors_of(module).items():
        entry = entries.get(name)
        if entry is None or not entry.growths or id(tensor) in done:
            continue
        done.add(id(tensor))
        put(tensor, grown(entry, tensor))
