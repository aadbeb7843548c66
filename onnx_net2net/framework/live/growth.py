"""A growth of a module: how its tensors grow, and which of its numbers change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.live.attributes import Number, slots_of
from onnx_net2net.framework.live.deeper import Depth
from onnx_net2net.framework.live.example import Example
from onnx_net2net.framework.live.tensors import grow_tensors
from onnx_net2net.framework.optimizer import grow_optimizers
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.operations.widen.widen import Widening

T = TypeVar("T")

TOLERANCE = 1e-9
"""How far outputs may be apart in double precision, relative to the largest."""

NOISES = 100
"""How many times the teacher's own noise they may be apart, where that is larger (a class that computes in float32)."""


@dataclass(frozen=True)
class Renumbered:
    """A number that a module keeps, before and after."""

    path: str
    keys: tuple[object, ...]
    old: Number
    new: Number
    of_torch: bool = False  # whether the module is one of torch's own

    def __str__(self) -> str:
        return f"{'.'.join(map(str, (self.path, *self.keys) if self.path else self.keys))} {self.old} -> {self.new}"


@dataclass(frozen=True)
class ModuleGrowth:
    """A growth that can be applied to a module, and to copies of it (averages, a teacher of a distillation).

    Attributes:
        checkpoint: How each tensor grows.
        numbers: The numbers in attributes of modules that change.
        values: New values of tensors that do not follow from their old values by maps (gains of weight norm). They
            fit the module's own weights, and no copy with other weights.
        depth: The copies of blocks that are inserted after that.
    """

    checkpoint: Checkpoint = field(repr=False)
    numbers: tuple[Renumbered, ...]
    values: Mapping[str, Array] = field(default_factory=dict, repr=False)
    depth: Depth | None = None

    def apply(
        self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = (), *, moments: bool = True
    ) -> None:
        """Grow a module and its optimizers in place; parameters stay the same objects.

        Args:
            module: A module of the class and sizes that the growth was found for.
            optimizers: The optimizers of its parameters. Other parameters of these stay as they are.
            moments: Whether the states of the optimizers grow, too. If not, those of grown parameters are dropped.

        Raises:
            RefusedError: It is not known how an optimizer's state grows. Nothing has changed.
        """
        if moments:
            grow_optimizers(optimizers, {id(one): entry for one, entry in self._parameters(module)})
        else:
            self._forget(module, optimizers)
        grow_tensors(module, self.checkpoint, self.values)
        modules = dict(module.named_modules())
        for number in self.numbers:
            for slot in slots_of(modules[number.path], number.path, floats=True):
                if slot.keys == number.keys:
                    slot.set(number.new)
        if self.depth:
            self.depth.apply(module, optimizers)

    def _parameters(self, module: nn.Module) -> Iterator[tuple[nn.Parameter, Entry]]:
        entries = {entry.name: entry for entry in self.checkpoint.entries}
        for name, parameter in module.named_parameters():
            yield parameter, entries[name]

    def check(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer of other parameters.

        Raises:
            BadInputError: The optimizer has parameters that the module lacks.
        """
        own = {id(parameter) for parameter in module.parameters()}
        if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
            raise BadInputError("the optimizer has parameters that the module lacks; make it from module.parameters()")

    def _forget(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Drop the state of optimizers for the parameters that grow."""
        for parameter, entry in self._parameters(module):
            for optimizer in optimizers if entry.new != entry.old else ():
                optimizer.state.pop(parameter, None)


def renumbered(teacher: nn.Module, student: nn.Module) -> Iterator[Renumbered]:
    """Yield the numbers that differ between two modules of the same structure."""
    others = dict(student.named_modules())
    for path, module in teacher.named_modules():
        new = {slot.keys: slot.value for slot in slots_of(others[path], path, floats=True)}
        for slot in slots_of(module, path, floats=True):
            if slot.keys in new and new[slot.keys] != slot.value and not _are_nan(new[slot.keys], slot.value):
                of_torch = type(module).__module__.startswith("torch.nn")
                yield Renumbered(path, slot.keys, slot.value, new[slot.keys], of_torch)


def _are_nan(*values: Number) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two modules differ, relative to the largest output, and how far they may."""

    error: float
    tolerance: float

    @property
    def is_none(self) -> bool:
        """Whether they compute the same."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class FoundGrowth:
    """A growth that was found, and what is known of it."""

    growth: ModuleGrowth
    widening: Widening  # how the graph grew
    options: Mapping[str, Any]  # the options of `widen`
    difference: Difference  # how far the outputs are apart where all weights are different
    loads: bool | None  # whether the module's config makes the grown one, None if it has no config


class Yardstick:
    """The teacher's outputs for some examples, and how far they move by rounding."""

    def __init__(self, teacher: nn.Module, examples: Sequence[Example], rounding: float = 0.0) -> None:
        """Run a teacher; examples that it does not take are left out, but for the first.

        Args:
            teacher: The teacher.
            examples: What it is called with.
            rounding: By how much weights may be rounded, relative; at least in double precision.
        """
        self._runs: list[tuple[Example, list[torch.Tensor]]] = []
        for example in examples:
            try:
                self._runs.append((example, [tensor.clone() for tensor in example(teacher)]))
            except Exception:  # of the user's own code
                if not self._runs:
                    raise
        kept = {parameter: parameter.detach().clone() for parameter in teacher.parameters()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in kept:
                if parameter.is_floating_point():
                    sign = torch.randint(-1, 2, parameter.shape, generator=generator)
                    parameter.mul_(1 + sign * max(rounding, torch.finfo(parameter.dtype).eps))
        self._tolerances = [0.0] * len(self._runs[0][1])
        noise = self._errors(teacher)
        self._tolerances = [max(TOLERANCE, NOISES * one) if math.isfinite(one) else TOLERANCE for one in noise]
        with torch.no_grad():
            for parameter, values in kept.items():
                parameter.copy_(values)

    @classmethod
    def of_user(cls, module: nn.Module, examples: Sequence[Example], whose: str, rounding: float = 0.0) -> Yardstick:
        """Run a module of the user's, called `whose` in messages.

        Raises:
            BadInputError: It cannot be called, or returns no numbers, so that nothing could be compared.
        """
        made = called(lambda: cls(module, examples, rounding), whose)
        floats = [one for one in made._runs[0][1] if one.is_floating_point()]
        if floats and not any(bool(torch.isfinite(one).any()) for one in floats):
            raise BadInputError(f"the {whose} returns only infinite numbers and NaN for example_inputs; give others")
        return made

    @property
    def is_finite(self) -> bool:
        """Whether all that the teacher returns for the first example is a number."""
        return all(bool(torch.isfinite(one).all()) for one in self._runs[0][1] if one.is_floating_point())

    def difference(self, student: nn.Module) -> Difference:
        """Compare a student with the teacher; whatever it raises is raised."""
        found = zip(self._errors(student), self._tolerances, strict=True)
        return max((Difference(*pair) for pair in found), key=lambda one: one.error / one.tolerance)

    def _errors(self, student: nn.Module) -> list[float]:
        errors = [0.0] * len(self._tolerances)
        for example, wanted in self._runs:
            results = example(student)
            if len(results) != len(wanted):
                return [math.inf] * len(errors)
            for place, (one, other) in enumerate(zip(wanted, results, strict=True)):
                errors[place] = max(errors[place], _error(one, other))
        return errors


def called(run: Callable[[], T], whose: str) -> T:
    """Run what calls a module of the user's.

    Raises:
        BadInputError: Its code fails.
    """
    try:
        return run()
    except Exception as error:  # of the user's own code
        what = f"{type(error).__name__}: {one_line(error)}"
        raise BadInputError(f"the {whose} cannot be called with example_inputs: {what}") from error


def _error(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number wanted; what is not finite has to be so in both."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return math.inf
    if not wanted.is_floating_point() and not wanted.is_complex():
        return 0.0 if torch.equal(wanted, found) else math.inf
    numbers = torch.isfinite(wanted)
    if not torch.equal(numbers, torch.isfinite(found)):
        return math.inf
    if not numbers.any():
        return 0.0
    wanted, found = wanted[numbers].detach(), found[numbers].detach()
    largest = float(wanted.abs().max())
    return float((wanted - found).abs().max()) / (largest or 1.0)
