"""A module as a model: exported without folding, from a copy whose weights are all different.

The copy is in double precision, so that growth can be told from rounding. Its parameters are moved a little: what an
initialization left equal or zero would be taken for one tensor, for a constant, or would hide what lies behind it (the
branch of a block that starts at zero). How entries grow does not depend on their values, so that the module's own
grow by the same maps.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onnx_net2net.errors import RefusedError, one_line
from onnx_net2net.framework.live.example import AllDouble, Example, double_by_default, tensors_in
from onnx_net2net.model.model import Model, load

MOVED = 0.1
"""How far parameters that were equal are moved; of others, how far relative to their spread."""


def duplicate(module: nn.Module) -> nn.Module:
    """Copy a module."""
    return duplicate_both(module, None)[0]


def duplicate_both(
    module: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """Copy a module and the optimizer of its parameters; weights that are computed before each call have no history."""
    computed = [(vars(one), name, value) for one in module.modules() for name, value in vars(one).items()
                if isinstance(value, torch.Tensor) and not value.is_leaf]  # fmt: skip
    try:
        for held, name, value in computed:
            held[name] = value.detach()
        return copy.deepcopy((module, optimizer))
    finally:
        for held, name, value in computed:
            held[name] = value


def in_double(module: nn.Module) -> nn.Module:
    """Return a copy in double precision and eval mode on the CPU; all tensors of it, registered or not."""
    twin = duplicate(module).cpu().double().eval()
    for one in twin.modules():
        if hasattr(getattr(one, "config", None), "use_cache"):  # a cache is as wide as the heads, and no result
            one.config.use_cache = False
        if "_original_forward" in vars(one):  # accelerate computes in another type around it
            vars(one).pop("forward", None)
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                vars(one)[name] = value.cpu().double() if value.is_floating_point() else value.cpu()
    return twin


def move_apart(module: nn.Module) -> None:
    """Move the parameters of a module, and the statistics of its normalisations, so that none is equal to another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.numel():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter += MOVED * drawn * (spread if spread > 1e-3 else 1.0)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")) and buffer is not None:
                drawn = torch.rand(buffer.shape, generator=generator, dtype=torch.float64).to(buffer.dtype)
                buffer.mul_(0.75 + drawn / 2) if name.endswith("var") else buffer.add_(drawn / 5)


def export(module: nn.Module, example: Example) -> Model:
    """Export a module, first by torch.export, then by TorchScript.

    Args:
        module: The module, in eval mode.
        example: What it is called with; the tensors are the model's inputs, and those of the result its outputs.

    Raises:
        RefusedError: Neither way exports it.
    """
    reasons = []
    for options in ({"dynamo": True, "optimize": False}, {"dynamo": False, "do_constant_folding": False}):
        try:
            with quiet(), double_by_default(), sdpa_kernel(SDPBackend.MATH):  # the others' strides mislead the exporter
                return _exported(module, example, options)
        except Exception as error:  # whatever the exporter or the user's code raises
            reasons.append(f"{type(error).__name__}: {one_line(_cause(error), 200)}")
    raise RefusedError(f"torch.onnx.export cannot export the module: {reasons[0]}; with TorchScript: {reasons[1]}")


def _cause(error: BaseException) -> BaseException:
    """Return the error that others were raised from, which says what is the matter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _exported(module: nn.Module, example: Example, options: dict[str, Any]) -> Model:
    twin = duplicate(module)
    own = twin.forward

    def forward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = example.filled(tensors)
        with AllDouble():
            return tuple(tensors_in(own(*args, **kwargs)))

    twin.forward = forward
    if options["dynamo"]:
        program = torch.onnx.export(twin, example.tensors, **options)
        return load(program.model_proto)
    buffer = io.BytesIO()
    torch.onnx.export(twin, example.tensors, buffer, **options)
    import onnx

    return load(onnx.load_model_from_string(buffer.getvalue()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter from writing to the terminal."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
