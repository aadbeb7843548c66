"""Teacher and student compute the same: both classes are run on the same inputs, with one block's weights in memory.

What is compared is what `from_pretrained` would make of the two folders: the classes themselves, at their own configs,
with the weights of their files. A block (`layers.7`) has its weights only while it runs. Hidden states behind each
block are compared through the map of the residual stream, and the output as it is.

The tolerance follows from the rounding of weights: from how far the teacher's output moves when each of its weights
moves by half a unit in the last place.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from onnx_net2net.algebra.maps import Map
from onnx_net2net.errors import NotEquivalentError
from onnx_net2net.framework import files
from onnx_net2net.framework.huggingface.inputs import call, output_of
from onnx_net2net.framework.huggingface.parameters import Parameter
from onnx_net2net.framework.huggingface.skeleton import Skeleton
from onnx_net2net.framework.huggingface.student import Student
from onnx_net2net.framework.huggingface.teacher import Teacher
from onnx_net2net.framework.stored import Stored

PATIENCE = 5.0
"""How many times the teacher's movement by rounding a student may be away."""

_LENGTH = 24
"""Tokens of the sentences that are drawn."""

_FLOOR = 1e3
"""Roundings of the computation itself that are always allowed."""


@dataclass(frozen=True)
class BlockError:
    """How far a block's hidden states are apart: the name of the block, the error relative to the largest value."""

    block: str
    error: float


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Attributes:
        error: The largest difference of outputs.
        largest: The largest value of the teacher's output.
        tolerance: The largest difference that is allowed.
        blocks: The errors behind the blocks whose hidden states could be compared.
        precision: What it was computed in.
    """

    error: float
    largest: float
    tolerance: float
    blocks: tuple[BlockError, ...]
    precision: str

    @property
    def is_equivalent(self) -> bool:
        """Whether the student computes what the teacher does."""
        return self.error <= self.tolerance

    def lines(self) -> Iterator[str]:
        """Yield what was found, for people."""
        word = "equivalent" if self.is_equivalent else "NOT equivalent"
        yield (
            f"{word} in {self.precision}: outputs differ by {self.error:.2g} at most (relative "
            f"{self.error / (self.largest or 1):.2g}, tolerance {self.tolerance:.2g})"
        )
        if self.blocks:
            worst = max(self.blocks, key=lambda block: block.error)
            count = len(self.blocks)
            yield f"hidden states behind {count} blocks differ by {worst.error:.2g} at most, behind {worst.block}"

    def raise_if_different(self) -> None:
        """Refuse a student that differs.

        Raises:
            NotEquivalentError: With the first block behind which the hidden states differ.
        """
        if self.is_equivalent:
            return
        limit = self.tolerance / (self.largest or 1)
        first = next((block for block in self.blocks if not block.error <= limit), None)
        where = f"; the first to differ is {first.block}, by {first.error:.2g}" if first else ""
        raise NotEquivalentError(f"{next(self.lines())}{where}")


class Yardstick:
    """A teacher that was run, to compare students with it."""

    def __init__(self, teacher: Teacher, inputs: Mapping[str, torch.Tensor] | None = None) -> None:
        """Run a teacher, as it is and with its weights rounded.

        Args:
            teacher: The teacher.
            inputs: What it is called with; drawn by default.
        """
        self._inputs = inputs or teacher.skeleton.draw(_LENGTH)
        kinds = {stored.dtype.itemsize for stored in teacher.parameters.values() if stored.dtype.kind not in "iub"}
        self._dtype = torch.float64 if max(kinds, default=4) >= 4 else torch.float32
        self._before = _run(teacher.skeleton, teacher.parameters, self._inputs, self._dtype)
        moved = _run(
            teacher.skeleton, teacher.parameters, self._inputs, self._dtype, moved=np.random.default_rng(0)
        )  # fmt: skip
        self._noise = float((moved.output - self._before.output).abs().max())

    def compare(self, student: Student, weights: Mapping[str, Stored]) -> Proof:
        """Compare a student with the teacher.

        Args:
            student: The student.
            weights: Its parameters by their names in the class.
        """
        before, after = self._before, _run(student.skeleton, weights, self._inputs, self._dtype)
        old, new = student.vocabulary
        if old != new and after.output.shape[-1] == new:
            after.output = after.output[..., :old]
        largest, error = float(before.output.abs().max()), np.inf
        if after.output.shape == before.output.shape:
            error = float((after.output - before.output).abs().max())
        error = error if np.isfinite(error) else np.inf
        tolerance = max(PATIENCE * self._noise, _FLOOR * torch.finfo(self._dtype).eps * largest)
        blocks = tuple(_compared(student, before.blocks, after.blocks))
        return Proof(error, largest, tolerance, blocks, str(self._dtype).removeprefix("torch."))

    def is_exact(self, student: Student) -> bool:
        """Tell whether a student computes what the teacher does, with weights that are computed when they are run."""
        weights = {name: one.tensor() for name, one in student.parameters.items()}
        try:
            return self.compare(student, weights).is_equivalent
        except Exception:  # of a class whose numbers do not fit its sizes
            return False


# --- Running --------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What a run made: its output, and what each block made."""

    output: torch.Tensor
    blocks: dict[str, torch.Tensor]


def _run(
    skeleton: Skeleton, weights: Mapping[str, Stored], inputs: Mapping[str, torch.Tensor], dtype: torch.dtype,
    moved: np.random.Generator | None = None,
) -> _Run:  # fmt: skip
    """Run a model whose blocks have their weights only while they run."""
    model = skeleton.model.to(dtype)
    source = _Source(weights, dtype, moved)
    blocks = dict(_blocks(model))
    found: dict[str, torch.Tensor] = {}
    inside = tuple(f"{name}." for name in blocks)
    with contextlib.ExitStack() as stack:
        for name, block in blocks.items():
            stack.callback(source.watch(block, name, found))
        for name, module in model.named_modules():
            if not f"{name}.".startswith(inside):
                stack.callback(source.load(module, name, recurse=False))
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        with torch.no_grad():
            return _Run(call(model, type(model).forward, cast).detach(), found)


def _blocks(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules in lists."""
    for name, child in model.named_children():
        where = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield from ((f"{where}.{key}", inner) for key, inner in child.named_children())
        else:
            yield from _blocks(child, where)


class _Source:
    """Gives modules their weights."""

    def __init__(self, weights: Mapping[str, Stored], dtype: torch.dtype, moved: np.random.Generator | None) -> None:
        self._weights, self._dtype, self._moved = weights, dtype, moved
        counts = Counter(map(id, weights.values()))
        self._tied = {key for key, count in counts.items() if count > 1}
        self._shared: dict[int, torch.Tensor] = {}

    def load(self, module: nn.Module, path: str, recurse: bool = True) -> Callable[[], None]:
        """Load the weights of a module, with those of the modules in it or without; returns what takes them away."""
        loaded: list[tuple[dict[str, Any], str, Any, Stored]] = []
        for inner_path, inner in module.named_modules() if recurse else [("", module)]:
            where = ".".join(filter(None, (path, inner_path)))
            tables: tuple[dict[str, Any], ...] = (inner._parameters, inner._buffers)
            for table in tables:
                for leaf, old in table.items():
                    name = f"{where}.{leaf}" if where else leaf
                    if old is not None and name in self._weights:
                        loaded.append((table, leaf, old, self._weights[name]))
        for table, leaf, old, stored in loaded:
            table[leaf] = self._value(stored, old)

        def unload() -> None:
            for table, leaf, old, _ in loaded:
                table[leaf] = old

        return unload

    def watch(self, block: nn.Module, name: str, found: dict[str, torch.Tensor]) -> Callable[[], None]:
        """Let a block have its weights only while it runs, and note what it makes; returns what ends that."""
        unload: list[Callable[[], None]] = []

        def before(module: nn.Module, _: Any) -> None:
            unload.append(self.load(module, name))

        def after(_: nn.Module, __: Any, result: Any) -> None:
            unload.pop()()
            found[name] = output_of(result).detach()

        hooks = [block.register_forward_pre_hook(before), block.register_forward_hook(after)]

        def end() -> None:
            for hook in hooks:
                hook.remove()
            while unload:
                unload.pop()()

        return end

    def _value(self, stored: Stored, old: torch.Tensor) -> torch.Tensor:
        value = self._shared.get(id(stored))
        if value is None:
            value = files.to_torch(stored.read())
            if value.is_floating_point():
                value = value.to(self._dtype)
                if self._moved is not None:
                    step = float(ml_dtypes.finfo(stored.dtype).eps) / 2
                    signs = torch.from_numpy(self._moved.integers(0, 2, stored.shape, dtype=np.int8))
                    value *= 1 + step * (2 * signs - 1).to(self._dtype)
            if id(stored) in self._tied:
                self._shared[id(stored)] = value
        return nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value


# --- Hidden states ----------------------------------------------------------------------------------------------------


def _compared(
    student: Student, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> Iterator[BlockError]:
    """Yield the errors behind the blocks, with the copies behind each."""
    for name, old in before.items():
        group, _, number = name.rpartition(".")
        is_deeper = group in student.layers.counts
        last = _last(student.layers.order(group), int(number)) if is_deeper else None
        new = after.get(name if last is None else f"{group}.{last}")
        if new is not None:
            maps = list(_maps(student.parameters, name, old, new)) or [None]
            errors = [error for map in maps if (error := _difference(old, new, map)) is not None]
            yield from (BlockError(name, min(errors)),) if errors else ()


def _last(order: Sequence[tuple[int, bool]], layer: int) -> int:
    """Return the last of a layer and the copies behind it."""
    place = order.index((layer, False))
    while place + 1 < len(order) and order[place + 1][1]:
        place += 1
    return place


def _maps(
    parameters: Mapping[str, Parameter], block: str, old: torch.Tensor, new: torch.Tensor
) -> Iterator[Map | None]:
    """Yield the maps of a block's vectors that the residual stream may have: those of its norms are among them."""
    seen = set()
    for name, parameter in parameters.items():
        growth = parameter.growth
        if name.startswith(f"{block}.") and growth and len(growth.axes) == 1:
            map = growth.axes[0].map
            key = map.index.tobytes() + map.kind.tobytes()
            if (map.old, map.new) == (old.shape[-1], new.shape[-1]) and key not in seen:
                seen.add(key)
                yield map


def _difference(old: torch.Tensor, new: torch.Tensor, map: Map | None) -> float | None:
    """Return the largest difference of hidden states, relative to the largest value; None if their sizes differ."""
    if map is not None:
        kept = np.flatnonzero(map.kind == 0)
        old, new = old[..., torch.from_numpy(map.index[kept])], new[..., torch.from_numpy(kept)]
    if old.shape != new.shape:
        return None
    scale = float((old * new).sum() / (old * old).sum().clamp_min(1e-300))  # padding scales the stream
    largest = float(old.abs().max()) * abs(scale) or 1.0
    return float((new - scale * old).abs().max()) / largest
