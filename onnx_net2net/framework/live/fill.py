"""`fill`: fills a module of the user's from a smaller trained one, so that both compute the same.

It is `transfer` without files. Both modules are exported without folding. All weights of the exported target are
different, so that its entries are found by their values. The target loads its new values strictly. At the end both run
in double precision; where they differ, the target gets its old values back and the transfer is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.live.example import Example, Inputs
from onnx_net2net.framework.live.exported import duplicate, export, in_double, move_apart
from onnx_net2net.framework.live.growth import Difference, Yardstick, called
from onnx_net2net.framework.statedict.filled import fill_state_dict
from onnx_net2net.operations.transfer.networks import Obstacle
from onnx_net2net.operations.transfer.transfer import Transfer, proof, transfer


@dataclass(frozen=True)
class Filled:
    """The result of `fill`.

    Attributes:
        module: The target, with its new values.
        error: The largest difference of the outputs in double precision, relative to the largest output.
        filled: The fraction (0 to 1) of the float elements of the target's state dict that have new values.
        transfer: The transfer between the exported graphs: it lists the source of each tensor's values.
    """

    module: nn.Module
    error: float
    filled: float
    transfer: Transfer = field(repr=False)


def fill(
    target_module: nn.Module,
    teacher_module: nn.Module,
    example_inputs: Inputs,
    *,
    spread: float = 0.3,
    seed: int = 0,
) -> Filled:
    """Fill a module from a smaller trained one, so that both compute the same.

    Args:
        target_module: The module to fill, with any weights, of any dtype and device. It is filled in place, and only if
            it then computes the same as the teacher.
        teacher_module: The trained module; it is not changed.
        example_inputs: Inputs for both: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        spread: How unevenly copies share their outgoing weights (0: evenly), as in `onnx_net2net.widen`.
        seed: Seed of every random choice.

    Returns:
        The filled target. In eval mode its outputs are the teacher's, up to the rounding of its weights.

    Raises:
        BadInputError: A module cannot be called with the inputs, or an option makes no sense.
        RefusedError: The target cannot compute the same as the teacher; the text names the layer in the way.
    """
    example = Example(example_inputs)
    kinds = {one.dtype for module in (target_module, teacher_module) for one in module.parameters()}
    dtype = torch.float64 if torch.float64 in kinds else torch.float32
    examples = [example.double(), *example.double().variations()]
    rounding = max((torch.finfo(kind).eps for kind in kinds if kind.is_floating_point), default=0.0)
    twin = in_double(teacher_module)
    yardstick = Yardstick.of_user(twin, examples, "teacher", rounding)
    teacher, target = (in_double(module).to(dtype) for module in (teacher_module, target_module))
    move_apart(target)
    plain = example.on_cpu(dtype)
    models = [export(module, plain) for module in (teacher, target)]
    result = transfer(*models, spread=spread, seed=seed, prove=False)
    values = _values(result, target, target_module)
    student = duplicate(target_module)
    student.load_state_dict(values, strict=True)
    found = called(lambda: yardstick.difference(in_double(student)), "target")
    if not found.is_none:
        raise _refusal(result, found)
    filled = _share(target_module.state_dict(), student.state_dict())
    target_module.load_state_dict(student.state_dict(), strict=True)
    return Filled(target_module, found.error, filled, result)


def _values(result: Transfer, exported: nn.Module, target: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the filled target; what is not filled stays as the user has it."""
    entries, own = state_dicts.from_torch(exported.state_dict()), target.state_dict()
    found = {}
    for name, compute in fill_state_dict(result, entries).values.items():
        values: Array = compute()
        is_kept = np.array_equal(values, entries[name].read(), equal_nan=True)
        found[name] = own[name].detach().clone() if is_kept else state_dicts.torch_tensor(values)
    return found


def _refusal(result: Transfer, found: Difference) -> RefusedError:
    """Return why the target does not compute what the teacher does."""
    obstacles: Sequence[Obstacle] = result.obstacles or proof(result)[1]
    if not obstacles:
        return RefusedError(f"the filled target differs by {found.error:.1e} (relative) in double precision")
    more = f" (and {len(obstacles) - 1} more)" if len(obstacles) > 1 else ""
    return RefusedError(f"not exact, by {found.error:.1e} (relative): {obstacles[0]}{more}")


def _share(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Return the share of float elements in entries that changed."""
    floats = [(value.numel(), torch.equal(value, after[name])) for name, value in before.items()
              if value.is_floating_point()]  # fmt: skip
    total = sum(n for n, _ in floats)
    return float(sum(n for n, is_same in floats if not is_same) / max(total, 1))
