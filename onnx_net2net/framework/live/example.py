"""What a module is called with, and what it returns for that."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as trees

from onnx_net2net.errors import BadInputError

Inputs = Any
"""A tensor, a tuple of positional arguments, or a dict of keyword arguments."""

VARIATIONS = 2
"""How many more inputs are made of an example."""


class Example:
    """The arguments of a call."""

    def __init__(self, inputs: Inputs) -> None:
        """Take a tensor, a tuple or list of arguments, or a dict of arguments by name.

        Raises:
            BadInputError: There is no tensor in them.
        """
        if isinstance(inputs, Mapping):
            call: Any = ((), dict(inputs))
        elif isinstance(inputs, torch.Tensor):
            call = ((inputs,), {})
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
            call = (tuple(inputs), {})
        else:
            raise BadInputError(f"example_inputs: a tensor, a tuple or a dict of tensors, not {type(inputs).__name__}")
        self._leaves, self._tree = trees.tree_flatten(call)
        if not self.tensors:
            raise BadInputError("example_inputs: there is no tensor in them")

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors among the arguments, in order."""
        return tuple(leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor))

    def filled(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with other tensors in their places."""
        args, kwargs = trees.tree_unflatten(self.with_tensors(tensors)._leaves, self._tree)
        return args, kwargs

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Example:
        """Return the same call with other tensors."""
        rest, other = iter(tensors), copy.copy(self)
        other._leaves = [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        return other

    def double(self) -> Example:
        """Return the call on the CPU, with floats in double precision."""
        return self.on_cpu(torch.float64)

    def on_cpu(self, dtype: torch.dtype) -> Example:
        """Return the call on the CPU, with floats of a type."""
        moved = [tensor.detach().cpu() for tensor in self.tensors]
        return self.with_tensors([tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in moved])

    def variations(self) -> Iterator[Example]:
        """Yield calls with other values: floats of the same mean and spread, integers in another order."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(VARIATIONS):
            yield self.with_tensors([_varied(tensor, generator) for tensor in self.tensors])

    def __call__(self, module: nn.Module) -> list[torch.Tensor]:
        """Call a module and return the tensors of its result, in order; random numbers are the same at each call."""
        args, kwargs = self.filled([tensor.clone() for tensor in self.tensors])
        with torch.no_grad(), torch.random.fork_rng(devices=[]), double_by_default(), AllDouble():
            torch.manual_seed(0)
            return tensors_in(module(*args, **kwargs))


@contextmanager
def double_by_default() -> Iterator[None]:
    """Let tensors that a class makes without a type be in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = {torch.Tensor.float: torch.Tensor.double, torch.Tensor.half: torch.Tensor.double,
          torch.Tensor.bfloat16: torch.Tensor.double}  # fmt: skip
_FACTORIES = frozenset({torch.ones, torch.zeros, torch.empty, torch.rand, torch.randn, torch.eye, torch.linspace})


class AllDouble(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
    """Keeps a class from casting to narrower types, as norms and rotary embeddings do: rounding is no difference.

    New tensors without a type get one, since the exporter takes them for float32 whatever the default is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = [torch.float64 if _is_narrow(arg) else arg for arg in args]
        named = {name: torch.float64 if _is_narrow(arg) else arg for name, arg in (kwargs or {}).items()}
        if func in _FACTORIES:
            named.setdefault("dtype", torch.get_default_dtype())
        return _CASTS.get(func, func)(*wide, **named)


def _is_narrow(arg: Any) -> bool:
    return isinstance(arg, torch.dtype) and arg in _NARROW


def _varied(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.is_floating_point():
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        spread = tensor.std() if tensor.numel() > 1 else tensor.abs().max()
        return drawn * spread + tensor.mean()
    if tensor.dtype == torch.bool or tensor.numel() < 2:
        return tensor
    return tensor.reshape(-1)[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a result, in order: of tuples, lists, dicts, and objects such as dataclasses and caches."""
    found: list[torch.Tensor] = []
    pending, seen = [value], set()
    while pending:
        one = pending.pop(0)
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif id(one) in seen or isinstance(one, nn.Module | str | bytes | type):
            continue
        elif isinstance(one, Mapping):
            pending = [*one.values(), *pending]
        elif isinstance(one, list | tuple):
            pending = [*one, *pending]
        elif hasattr(one, "__dict__"):
            pending = [*vars(one).values(), *pending]
        seen.add(id(one))
    return found
