"""`grow`: makes the user's own module wider or deeper, and it computes the same as before.

The module is exported without folding, and the graph is widened as its class can follow. The maps of this growth are
applied to the module's own tensors (`framework.checkpoint`) and to the moments of its optimizer. Sizes that torch's
layers keep are set. For numbers that the user's classes keep, values are searched (`search`). At the end both modules
run in double precision; where they differ, the growth is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.checkpoint import Checkpoint, checkpoint
from onnx_net2net.framework.configs import SMALL
from onnx_net2net.framework.formats.state_dicts import from_torch
from onnx_net2net.framework.live.attributes import SizeChanges, likely, slots_of
from onnx_net2net.framework.live.blame import refusal
from onnx_net2net.framework.live.configs import configured, fit_config
from onnx_net2net.framework.live.deeper import find_depth
from onnx_net2net.framework.live.example import Example, Inputs
from onnx_net2net.framework.live.exported import duplicate, duplicate_both, export, in_double, move_apart
from onnx_net2net.framework.live.growth import Difference, FoundGrowth, ModuleGrowth, Yardstick, renumbered
from onnx_net2net.framework.live.layers import resize_layer
from onnx_net2net.framework.live.report import Report, deeper_report, report_of
from onnx_net2net.framework.live.search import NumberSearch
from onnx_net2net.framework.live.tensors import computed_values, grow_tensors, tensors_of
from onnx_net2net.framework.live.trace import events_of
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.widths import compare_widths
from onnx_net2net.model.model import Model
from onnx_net2net.operations.widen.widen import widen

_ROUNDS = 4
"""How often sizes are made equal."""


@dataclass(frozen=True)
class Grown:
    """The result of `grow`.

    Attributes:
        module: The grown copy, of the same class, dtype, device and mode.
        optimizer: A grown copy of the optimizer, for the parameters of `module`; None if none was given.
        report: What grew, what did not and why, and how far the outputs differ.
        growth: The growth itself; it can be applied to other copies of the original module.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    report: Report
    growth: ModuleGrowth = field(repr=False)


def grow(
    module: nn.Module,
    example_inputs: Inputs,
    *,
    factor: float | None = None,
    sizes: Mapping[str, int | str] | None = None,
    only: Sequence[str] = (),
    depth: float | str | Mapping[str, int | str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> Grown:
    """Grow a copy of a module without changing what it computes (Net2Net: wider, deeper, or both).

    Args:
        module: The module, of any class, dtype and device; it is not changed.
        example_inputs: Inputs for it: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        factor: Width multiplier (>= 1), as in `onnx_net2net.widen`.
        sizes: New sizes by the name, pattern or role of a dim, as in `onnx_net2net.widen`.
        only: Names, patterns or roles of the dims that `factor` is for.
        depth: How many times as deep every group of residual blocks becomes (2 or "1.5x"). Or the number of copies to
            insert, by the name or pattern of blocks or groups ({"layers": 2}). The branches of a copy end in zeros, so
            that it changes nothing at first, and learns. The class must hold the blocks in an `nn.ModuleList` or
            `nn.Sequential`, and run all that these hold.
        optimizer: An optimizer of the module's parameters. The result has a copy of it with the grown state. Parameters
            of copied blocks join the groups of the originals, and start without a state.
        seed: Seed of every random choice.

    Returns:
        The grown module, its optimizer and a report. In double precision its outputs are those of `module`.

    Raises:
        BadInputError: The module cannot be called with the inputs, or an option makes no sense.
        RefusedError: The module cannot be grown exactly; the text names the attribute or line in the way.
    """
    options = options_of(factor=factor, sizes=sizes, only=only, depth=depth, seed=seed)
    growth, report = find_growth(module, Example(example_inputs), options)
    if optimizer is not None:
        growth.check(module, optimizer)
    grown, its_optimizer = duplicate_both(module, optimizer)
    growth.apply(grown, () if its_optimizer is None else (its_optimizer,))
    return Grown(grown, its_optimizer, report, growth)


def options_of(
    *, factor: float | None = None, sizes: Mapping[str, int | str] | None = None, only: Sequence[str] = (),
    depth: float | str | Mapping[str, int | str] | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return the options of `grow`: those of `widen`, and `depth` where it is given."""
    deeper = {} if depth is None else {"depth": depth}
    return {"factor": factor, "sizes": dict(sizes or {}), "only": tuple(only), "seed": seed, **deeper}


def find_growth(module: nn.Module, example: Example, options: Mapping[str, Any]) -> tuple[ModuleGrowth, Report]:
    """Find out how a module grows, and prove it; the module is not changed."""
    with torch.autocast("cpu", enabled=False):
        return _find_growth(in_double(module), example.double(), options)


def _find_growth(own: nn.Module, example: Example, options: Mapping[str, Any]) -> tuple[ModuleGrowth, Report]:
    widths = {name: value for name, value in options.items() if name != "depth"}
    if "depth" not in options:
        return _find_wider(own, example, widths)
    if widths["factor"] is None and not widths["sizes"]:
        entries = (Entry(name, "same", (), stored) for name, stored in from_torch(tensors_of(own)).items())
        growth, report = ModuleGrowth(Checkpoint(tuple(entries)), ()), None
    else:
        growth, report = _find_wider(own, example, widths)
    wider = duplicate(own)
    growth.apply(wider)
    yardstick = Yardstick.of_user(own, [example, *example.variations()], "module")
    depth = find_depth(wider, example, options["depth"], options["seed"], lambda one: yardstick.difference(one).is_none)
    growth = replace(growth, depth=depth)
    student = duplicate(own)
    growth.apply(student)
    return growth, deeper_report(own, student, report, depth, yardstick.difference(student))


def _find_wider(own: nn.Module, example: Example, options: Mapping[str, Any]) -> tuple[ModuleGrowth, Report]:
    examples = [example, *example.variations()]
    real = Yardstick.of_user(own, examples, "module")
    teacher = duplicate(own)
    move_apart(teacher)
    moved = Yardstick(teacher, examples)
    if not moved.is_finite:
        teacher, moved = duplicate(own), real
    model = export(teacher, example)
    attempt = _Attempt(teacher, moved, example, model, options)
    refusal_: RefusedError | None = None
    for keep_numbers in (False,) if any(True for _ in configured(own)) else (True, False):
        try:
            found = attempt.run(keep_numbers)
            break
        except RefusedError as error:
            refusal_ = refusal_ or error
    else:
        raise refusal_ or RefusedError("nothing grows")
    growth = found.growth
    if growth.values:
        values = _values_of(own, example, found.options)
        growth = replace(growth, values={name: values[name] for name in growth.values})
    student = duplicate(own)
    growth.apply(student)
    again = real.difference(student)
    if not again.is_none:
        raise RefusedError(f"the grown module differs by {again.error:.1e} (relative) with its own weights")
    return growth, report_of(own, student, found, again)


def _values_of(module: nn.Module, example: Example, options: Mapping[str, Any]) -> Mapping[str, Array]:
    """Return the tensors of a module, grown by options of `widen`."""
    model = export(module, example)
    return checkpoint(model, widen(model, **options).student, tensors_of(module)).arrays()


class _Attempt:
    """Grows a teacher whose weights are all different."""

    def __init__(
        self, teacher: nn.Module, yardstick: Yardstick, example: Example, model: Model, options: Mapping[str, Any]
    ) -> None:
        self._teacher, self._yardstick, self._example = teacher, yardstick, example
        self._model, self._options = model, options
        self._originals = {(path, slot.keys): slot.value for path, module in teacher.named_modules()
                           for slot in slots_of(module, path)}  # fmt: skip

    def run(self, keep_numbers: bool) -> FoundGrowth:
        """Grow it once.

        Raises:
            RefusedError: It cannot be grown so.
        """
        options = {**self._options, "framework": "torch", "keep_numbers": keep_numbers}
        found = self._grown(options)
        if found.loads is False:
            with contextlib.suppress(RefusedError):
                alike = self._grown(self._uniform(options))
                found = alike if alike.loads else found
        return found

    def _uniform(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return options by which all dims of one size get one size, as a field of a config gives it to all of them."""
        sizes: dict[str, int | str] = dict(options["sizes"])
        for _ in range(_ROUNDS):
            widening = widen(self._model, **{**options, "sizes": sizes})
            became: dict[int, set[int]] = {group.size: {group.size} for group in widening.fixed if group.size > SMALL}
            for change in widening.changes:
                became.setdefault(change.old, set()).add(change.new)
            differing = [c for c in widening.changes if c.new != min(became[c.old]) and c.old > SMALL]
            if not differing:
                break
            sizes.update({change.name: min(became[change.old]) for change in differing})
        return {**options, "sizes": sizes}

    def _grown(self, options: Mapping[str, Any]) -> FoundGrowth:
        """Grow the teacher by options of `widen`."""
        teacher = self._teacher
        widening = widen(self._model, **options)
        entries = checkpoint(self._model, widening.student, tensors_of(teacher))
        student = duplicate(teacher)
        values = computed_values(entries)
        grow_tensors(student, entries, values)
        widths = compare_widths(self._model, widening.student)
        for path, module in student.named_modules():
            resize_layer(module, path, widths)
        old, new = ({name: tuple(one.shape) for name, one in tensors_of(m).items()} for m in (teacher, student))
        sizes = SizeChanges(old, new, [(change.name, change.old, change.new) for change in widening.changes])
        _guess(student, sizes)
        loads = [fit_config(module, widths.config, sizes.pairs, partial(self._is_exact, student, path))
                 for path, module in list(configured(student))]  # fmt: skip
        difference = self._settle(student, sizes)
        growth = ModuleGrowth(entries, tuple(renumbered(teacher, student)), values)
        return FoundGrowth(growth, widening, options, difference, all(loads) if loads else None)

    def _settle(self, student: nn.Module, sizes: SizeChanges) -> Difference:
        """Search the numbers that are still wrong."""
        found = self._difference(student)
        if found is not None and found.is_none:
            return found
        events = events_of(self._teacher, self._example)
        search = NumberSearch(student, self._originals, sizes, self._example, events)
        search.settle()
        found = self._difference(student)
        if found is None or not found.is_none:
            raise refusal(self._teacher, student, self._example, search.blamed, found)
        return found

    def _is_exact(self, student: nn.Module, path: str, instead: nn.Module) -> bool:
        """Tell whether a student with another module in one place is exact."""
        if not path:
            found = self._difference(instead)
        else:
            own = student.get_submodule(path)
            student.set_submodule(path, instead)
            found = self._difference(student)
            student.set_submodule(path, own)
        return found is not None and found.is_none

    def _difference(self, student: nn.Module) -> Difference | None:
        try:
            return self._yardstick.difference(student)
        except Exception:  # of the user's own code, which keeps numbers that are no longer right
            return None


def _guess(student: nn.Module, sizes: SizeChanges) -> None:
    """Set the numbers of the user's own modules that are widths by their names."""
    for path, module in student.named_modules():
        if type(module).__module__.startswith("torch.nn"):
            continue
        near = sizes.near(path, 2)
        for slot in slots_of(module, path):
            value = likely(slot, near) if len(slot.keys) == 1 else None
            if value is not None:
                slot.set(value)
