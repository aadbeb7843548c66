"""Run a model whose weights stay on the disk: each is read for the operation that needs it, in parts where it is large.

The class runs as it is, with parameters that have no values. A mode of torch sees every operation before it is done. A
product with a matrix is done some rows of the matrix at a time; tables are read where they are looked up, stacks of
experts where one is chosen. Any other operation gets the whole of the weights that it is called with.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from onnx_net2net.algebra.floats import Array
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface.inputs import call, output_of
from onnx_net2net.framework.huggingface.skeleton import Skeleton

MEMORY = 512_000_000
"""Bytes that a part of a weight takes while it is read, at most."""

_AT_WORK = 4
"""How many times its bytes in the precision of the run a part takes while it is read and computed with."""


@dataclass
class BlockOutputs:
    """The outputs of a run: of the model, and of each block."""

    output: torch.Tensor
    blocks: dict[str, torch.Tensor] = field(default_factory=dict)


def run_blocks(
    skeleton: Skeleton, weights: Mapping[str, Stored], inputs: Mapping[str, torch.Tensor], dtype: torch.dtype,
    moved: Mapping[str, float] = MappingProxyType({}), memory: int = MEMORY,
) -> BlockOutputs:  # fmt: skip
    """Run a model.

    Args:
        skeleton: The model without weights.
        weights: Its parameters by name.
        inputs: What it is called with, by name.
        dtype: What it computes in.
        moved: By how much the numbers of parameters are moved, up or down, relative to each number.
        memory: Bytes that a weight, or a part of it, takes at most, as far as operations can be done in parts.
    """
    model = skeleton.model.to(dtype)
    found: dict[str, torch.Tensor] = {}

    def note(name: str, result: Any) -> None:
        found[name] = output_of(result).detach()

    with contextlib.ExitStack() as stack:
        for name, block in blocks_of(model):
            hook = block.register_forward_hook(lambda _, __, result, name=name: note(name, result))
            stack.callback(hook.remove)
        stack.enter_context(_one_expert_at_a_time(model))
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        with torch.no_grad(), _FromDisk(model, weights, dtype, moved, memory):
            return BlockOutputs(call(model, type(model).forward, cast).detach(), found)


def blocks_of(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules in lists."""
    for name, child in model.named_children():
        where = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield from ((f"{where}.{key}", inner) for key, inner in child.named_children())
        else:
            yield from blocks_of(child, where)


@contextlib.contextmanager
def _one_expert_at_a_time(model: Any) -> Iterator[None]:
    """Let a class of transformers compute experts one by one, as far as it can; exporters need them all together."""
    if not hasattr(model, "get_experts_implementation"):
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


class _FromDisk(TorchFunctionMode):  # type: ignore[misc]
    """Gives operations the weights that they are called with."""

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Stored],
        dtype: torch.dtype,
        moved: Mapping[str, float],
        memory: int,
    ) -> None:
        super().__init__()
        self._dtype, self._moved, self._most = dtype, moved, memory // _AT_WORK
        state = model.state_dict(keep_vars=True)
        self._known = {id(tensor): (name, weights[name]) for name, tensor in state.items() if name in weights}
        self._state = state  # so that no other tensor gets one's id

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        own = self._name(args[0]) if args else None
        if own is not None and getattr(func, "__name__", "") == "__get__":
            return self._property(func, args[0])
        if func is nn.functional.linear and len(args) >= 2 and self._name(args[1]):
            return self._linear(*args, **options)
        if func is nn.functional.embedding and len(args) >= 2 and self._name(args[1]) and self._is_plain(options, args):
            return self._looked_up(args[1], args[0])
        if func is torch.Tensor.__getitem__ and own is not None and _is_place(args[1]):
            return self._part(args[0], int(args[1]), int(args[1]) + 1)[0]
        return func(*tree_map(self._filled, tuple(args)), **tree_map(self._filled, options))

    def _name(self, tensor: Any) -> str | None:
        """Return the name of a parameter; None for any other tensor."""
        return self._known[id(tensor)][0] if id(tensor) in self._known else None

    def _filled(self, value: Any) -> Any:
        """Return a parameter with its values; anything else as it is."""
        if self._name(value) is None:
            return value
        return self._part(value, 0, value.shape[0]) if value.ndim else self._values(value, None)

    def _property(self, func: Any, tensor: torch.Tensor) -> Any:
        """Return a property of a parameter, which is on the CPU."""
        if func == torch.Tensor.device.__get__:
            return torch.device("cpu")
        found = func(tensor)
        return func(self._filled(tensor)) if isinstance(found, torch.Tensor) else found

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply by a matrix, some of its rows at a time."""
        if weight.ndim < 2:
            return nn.functional.linear(x, self._filled(weight), self._filled(bias))
        row = math.prod(weight.shape[1:]) * torch.finfo(self._dtype).bits // 8
        step = max(1, self._most // row)
        bias = self._filled(bias)
        parts = [
            nn.functional.linear(
                x, self._part(weight, start, min(start + step, weight.shape[0])),
                None if bias is None else bias[start : start + step],
            )
            for start in range(0, weight.shape[0], step)
        ]  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @staticmethod
    def _is_plain(options: Mapping[str, Any], args: Sequence[Any]) -> bool:
        """Tell whether a table is looked up without a norm of what is found."""
        return (options.get("max_norm") if len(args) < 4 else args[3]) is None

    def _looked_up(self, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Look rows of a table up."""
        different, inverse = torch.unique(places, return_inverse=True)
        rows = [self._part(table, int(place), int(place) + 1) for place in different]
        return torch.cat(rows)[inverse] if rows else self._part(table, 0, 0)[places]

    def _part(self, tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return some rows of a parameter."""
        return self._values(tensor, (start, stop))

    def _values(self, tensor: torch.Tensor, rows: tuple[int, int] | None) -> torch.Tensor:
        name, stored = self._known[id(tensor)]
        value: torch.Tensor = state_dicts.torch_tensor(stored.part(*rows) if rows else stored.read())
        if not value.is_floating_point():
            return value
        value = value.to(self._dtype)
        if name in self._moved:
            signs = torch.from_numpy(_signs(name, rows, tuple(value.shape)))
            value = value * (1 + self._moved[name] * signs.to(self._dtype))
        return value


def _is_place(index: Any) -> bool:
    """Tell whether an index is one place of the first axis."""
    return type(index) is int or (isinstance(index, torch.Tensor) and index.ndim == 0 and index.dtype == torch.int64)


def _signs(name: str, rows: tuple[int, int] | None, shape: tuple[int, ...]) -> Array:
    """Draw -1 or 1 for each of some numbers: int8."""
    rng = np.random.Generator(np.random.SFC64([zlib.crc32(name.encode()), *(rows or ())]))
    return 2 * rng.integers(0, 2, shape, dtype=np.int8) - 1
