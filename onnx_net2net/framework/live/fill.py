"""`fill`: a module of the user's own is filled from a smaller trained one, and computes what that computes.

It is `transfer` without files. Both modules are exported without folding, the target with weights that are all
different, so that its entries are found by their values. What the target is filled with is loaded strictly; at the end
it has computed in double precision what the teacher computes, or it is refused and stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework import files as statedict
from onnx_net2net.framework.filled import fill_state_dict
from onnx_net2net.framework.live.example import Example, Inputs
from onnx_net2net.framework.live.exported import duplicate, export, in_double, move_apart
from onnx_net2net.framework.live.growth import Difference, Yardstick, called
from onnx_net2net.operations.transfer.networks import Obstacle
from onnx_net2net.operations.transfer.transfer import Transfer, proof, transfer


@dataclass(frozen=True)
class Filled:
    """A module that was filled.

    Attributes:
        module: The target, with its new values.
        error: The largest difference from the teacher in double precision, relative to the largest output.
        filled: Share of the float elements of its state dict that have other values than before.
        transfer: Where the values of each of its tensors came from.
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
    """Fill a module from a smaller one, so that it computes what that computes.

    Args:
        target_module: The module to fill, with any weights, of any type and device. It gets its values in place, and
            only if it computes what the teacher does.
        teacher_module: The trained module; it is not changed.
        example_inputs: What both are called with: a tensor, a tuple of arguments, or a dict of arguments by name.
        spread: How unevenly copies share their outgoing weights, as in `onnx_net2net.widen`.
        seed: Seed of every random choice.

    Returns:
        The filled target. In eval mode its outputs are the teacher's, up to the rounding of its weights.

    Raises:
        BadInputError: One of them cannot be called with the inputs, or an option makes no sense.
        RefusedError: The target cannot compute what the teacher does; the text says which layer is in the way.
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
    entries, own = statedict.from_torch(exported.state_dict()), target.state_dict()
    found = {}
    for name, compute in fill_state_dict(result, entries).values.items():
        values: Array = compute()
        is_kept = np.array_equal(values, entries[name].read(), equal_nan=True)
        found[name] = own[name].detach().clone() if is_kept else statedict.to_torch(values)
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
