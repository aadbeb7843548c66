"""Growth inside a training loop: at given steps the module and its optimizer grow in place, and training goes on.

The objects stay the same, so that the loop, averages of the weights and learning rate schedulers need no change. The
learning rate warms up, stays, and decays at the end. A checkpoint holds the options of each growth, so that a run can
be resumed from before or after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onnx_net2net.errors import BadInputError, RefusedError, one_line
from onnx_net2net.framework.live.example import Example, Inputs
from onnx_net2net.framework.live.grow import find_growth, options_of
from onnx_net2net.framework.live.report import Report
from onnx_net2net.framework.recipe import DECAYS_TO

GrowOptions = Mapping[str, Any]
"""What `grow` takes: `factor`, `sizes`, `only`, `depth`, `seed`."""

_WRAPPED = {
    "DistributedDataParallel": "its buckets have the old shapes: give the schedule its `.module`, and wrap that again "
    "when `step()` returns a report (every process grows it in the same way)",
    "FullyShardedDataParallel": "its parameters are shards: gather the full state dict, grow on one process, and shard "
    "the grown module",
}


def checked(at: Mapping[int, GrowOptions]) -> dict[int, GrowOptions]:
    """Return the options of growths by step.

    Raises:
        BadInputError: There is no such option, or no such step.
    """
    for step, options in at.items():
        if step < 1:
            raise BadInputError("at: steps are counted from 1")
        try:
            options_of(**options)
        except TypeError as error:
            raise BadInputError(f"at: {one_line(error)}; options are factor, sizes, only, depth and seed") from error
    return dict(at)


def refuse_processes(count: int) -> None:
    """Refuse to grow a module that several processes hold.

    Raises:
        RefusedError: There are several.
    """
    if count > 1:
        raise RefusedError(
            "several processes hold buckets or shards of the old shapes: end the training at this step, grow the saved "
            "module with `grow`, and start again from it"
        )


@dataclass(frozen=True)
class Rates:
    """A learning rate that warms up, stays, and decays, as a fraction of its peak.

    Attributes:
        warmup: Steps in which it rises from 0, at the start and again after a growth that dropped the moments.
        total: All steps of the training.
        decay: The fraction of the steps in which it falls, at the end.
        floor: The fraction of the peak that it falls to.
    """

    warmup: int
    total: int
    decay: float = 0.2
    floor: float = DECAYS_TO

    def at(self, step: int, since: int | None = None) -> float:
        """Return the fraction of the peak at a step; `since` is the step at which a second warmup begins."""
        rise = min((step + 1 - start) / max(self.warmup, 1) for start in (0, *(() if since is None else (since,))))
        left = (self.total - step) / max(self.total * self.decay, 1e-12)
        fall = self.floor + (1 - self.floor) * max(left, 0.0)
        return float(min(1.0, rise, fall))


def grow_in_place(
    module: nn.Module,
    example_inputs: Inputs,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    averages: Sequence[nn.Module] = (),
    *,
    moments: bool = True,
    **options: Any,
) -> Report:
    """Grow a module, its optimizer and averages of its weights in place.

    Args:
        module: The module. If `torch.compile` compiled it, it is compiled again at its next call.
        example_inputs: Inputs for it, as in `grow`.
        optimizer: The optimizer of its parameters, or several. Other parameters of these stay as they are.
        averages: Copies of the module with averaged weights, or `torch.optim.swa_utils.AveragedModel` of it.
        moments: Whether the optimizer's state grows, too. If not, the state of grown parameters is dropped.
        options: Options of `grow`: `factor`, `sizes`, `only`, `depth`, `seed`.

    Returns:
        What grew, what did not and why, and how far the outputs differ.

    Raises:
        BadInputError: The module cannot be called with the inputs, or an option makes no sense.
        RefusedError: The module cannot be grown exactly, or it is sharded. Nothing has changed.
    """
    module, others = unwrapped(module), [unwrapped(average) for average in averages]
    growth, report = find_growth(module, Example(example_inputs), options_of(**options))
    if growth.values and others:
        raise RefusedError(
            "weight norms grew, whose gains follow from the weights themselves, so that averages of these cannot grow; "
            "make a new average of the grown module"
        )
    optimizers = () if optimizer is None else tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    growth.apply(module, optimizers, moments=moments)
    for other in others:
        growth.apply(other)
    torch.clear_autocast_cache()  # of casts of the old weights
    torch.compiler.reset()
    return report


def unwrapped(module: Any) -> nn.Module:
    """Return the user's module out of wrappers that compile or average it.

    Raises:
        RefusedError: Several processes hold it (DistributedDataParallel, FSDP).
    """
    while True:
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPED:
                raise RefusedError(f"{kind.__name__} cannot grow: {_WRAPPED[kind.__name__]}")
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, torch.optim.swa_utils.AveragedModel):
            module = module.module
        else:
            break
    if any(type(parameter).__name__ == "DTensor" for parameter in module.parameters()):
        raise RefusedError(f"a sharded module cannot grow: {_WRAPPED['FullyShardedDataParallel']}")
    own: nn.Module = module
    return own


class GrowthSchedule:
    """Grows a module and its optimizer in place at given steps of a loop, and sets the learning rate.

        schedule = GrowthSchedule(module, optimizer, x, at={2000: {"factor": 2}}, warmup=100, total=10_000)
        for x, y in batches:
            loss(module(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    Attributes:
        steps: How many steps were taken.
        reports: A report of each growth that this process did, by step.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        example_inputs: Inputs,
        *,
        at: Mapping[int, GrowOptions],
        warmup: int = 0,
        total: int | None = None,
        decay: float = 0.2,
        averages: Sequence[nn.Module] = (),
        moments: bool = True,
    ) -> None:
        """Make a schedule.

        Args:
            module: The module that is trained.
            optimizer: Its optimizer. The learning rates of its groups are the peaks.
            example_inputs: Inputs for the module, as in `grow`.
            at: Options of `grow`, by the step after which the module grows. `onnx_net2net.framework.planning.plan`
                finds a good step from logs; a first guess is after 20 to 35 % of the compute.
            warmup: Steps in which the learning rate rises.
            total: All steps of the training. If None, the learning rates are left alone.
            decay: The fraction of the steps in which the learning rate falls, at the end.
            averages: Averages of the module's weights; they grow with it.
            moments: Whether the optimizer's state grows, too. If not, it is dropped, and the rate warms up again.

        Raises:
            BadInputError: A number makes no sense.
            RefusedError: Several processes hold the module (DistributedDataParallel, FSDP).
        """
        unwrapped(module)
        if warmup < 0 or not 0 <= decay <= 1:
            raise BadInputError("warmup must be at least 0, and decay between 0 and 1")
        if total is not None and any(step >= total for step in at):
            raise BadInputError(f"at: all growths come before the last of {total} steps")
        self.steps = 0
        self.reports: dict[int, Report] = {}
        self._module, self._optimizer, self._inputs = module, optimizer, example_inputs
        self._at, self._averages, self._moments = checked(at), tuple(averages), moments
        self._rates = None if total is None else Rates(warmup, total, decay)
        self._grown: list[int] = []
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._set_rates()

    def step(self) -> Report | None:
        """Count a step of the optimizer, grow if a growth is due, and set the learning rate of the next step.

        Returns:
            The report of the growth, or None if there was none.
        """
        self.steps += 1
        report = self._grow(self.steps) if self.steps in self._at else None
        self._set_rates()
        return report

    def _grow(self, step: int) -> Report:
        report = grow_in_place(
            self._module, self._inputs, self._optimizer, self._averages, moments=self._moments, **self._at[step]
        )
        self._grown.append(step)
        self.reports[step] = report
        return report

    def _set_rates(self) -> None:
        if self._rates is None:
            return
        since = self._grown[-1] if self._grown and not self._moments else None
        rate = self._rates.at(self.steps, since)
        for group in self._optimizer.param_groups:
            new = group["initial_lr"] * rate
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(new)
            else:
                group["lr"] = new

    def state_dict(self) -> dict[str, Any]:
        """Return the steps and growths so far, as plain numbers; save it beside the state of the module."""
        return {"steps": self.steps, "grown": list(self._grown), "at": {k: dict(v) for k, v in self._at.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Call this before `load_state_dict` of the module and of the optimizer.

        The module, as its constructor makes it, is grown to the sizes of the checkpoint, so that the weights fit.

        Raises:
            BadInputError: The checkpoint was grown by another schedule.
        """
        at = {int(step): dict(options) for step, options in state["at"].items()}
        early = [step for step in state["grown"] if at.get(step) != dict(self._at.get(step, {}))]
        if early or self._grown != state["grown"][: len(self._grown)]:
            raise BadInputError("the checkpoint was grown by another schedule than this one")
        for step in state["grown"][len(self._grown) :]:
            self._grow(step)
        self.steps = int(state["steps"])
        self._set_rates()
