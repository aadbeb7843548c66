"""What goes into and out of each module of a teacher and of its student, and where these stop to agree.

A unit of the student is a copy of one of the teacher's, perhaps multiplied. So along an axis that grew all that lies at
one place in the student has to lie at some place in the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from onnx_net2net.framework.live.example import Example, tensors_in

CLOSE = 1e-6
"""How far numbers may be apart that are the same in double precision, relative to the largest."""

MOST_COLUMNS = 256
"""How many numbers of a unit are compared."""


@dataclass(frozen=True)
class Event:
    """A module is called or returns; the caller is the path of the module whose code is running around it."""

    path: str
    caller: str
    returns: bool
    tensors: tuple[torch.Tensor, ...] = field(repr=False)

    @property
    def owner(self) -> str:
        """The module whose own code made these tensors."""
        return self.path if self.returns else self.caller


class _DiffersError(Exception):
    """Ends a run whose events are no longer the teacher's."""


@dataclass
class Trace:
    """How far a student ran as its teacher does."""

    reached: int  # the number of events that agree with the teacher's
    culprit: str | None = None  # the path of the module whose code made the first that does not, or failed
    error: Exception | None = None  # what it raised


@contextmanager
def _watched(module: nn.Module, add: Callable[[Event], None]) -> Iterator[list[str]]:
    """Tell of all that every module takes and returns."""
    stack = [""]

    handles = []
    for path, one in module.named_modules():
        if not path:
            continue

        def enter(_: nn.Module, args: object, kwargs: object, path: str = path) -> None:
            event = Event(path, stack[-1], False, tuple(tensors_in([args, kwargs])))
            add(event)
            stack.append(path)

        def leave(_: nn.Module, args: object, kwargs: object, result: object, path: str = path) -> None:
            stack.pop()
            add(Event(path, stack[-1], True, tuple(tensors_in(result))))

        handles.append(one.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(one.register_forward_hook(leave, with_kwargs=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def events_of(teacher: nn.Module, example: Example) -> list[Event]:
    """Return all that a teacher's modules take and return, as it was then: an activation may change it in place."""
    found: list[Event] = []

    def add(event: Event) -> None:
        found.append(replace(event, tensors=tuple(tensor.clone() for tensor in event.tensors)))

    with slow_attention(), _watched(teacher, add):
        example(teacher)
    return found


def trace_student(
    student: nn.Module, example: Example, teacher: Sequence[Event], ignored: set[int], start: int = 0
) -> Trace:
    """Run a student until it no longer agrees with its teacher.

    Args:
        student: The student.
        example: What both are called with.
        teacher: The teacher's events.
        ignored: The places of events that are not compared.
        start: The first place that is.
    """
    owners: list[str] = []

    def add(event: Event) -> None:
        place = len(owners)
        owners.append(event.owner)
        if place >= start and place not in ignored and not _same(teacher, place, event):
            raise _DiffersError

    with slow_attention(), _watched(student, add) as stack:
        try:
            example(student)
        except _DiffersError:
            return Trace(len(owners) - 1, owners[-1])
        except Exception as error:  # of the user's own code
            return Trace(len(owners), stack[-1], error)
    return Trace(len(owners))


@contextmanager
def slow_attention() -> Iterator[None]:
    """Let torch's attention call its modules, which its fast path for inference does not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same(teacher: Sequence[Event], place: int, event: Event) -> bool:
    if place >= len(teacher):
        return False
    other = teacher[place]
    is_same = (event.path, event.returns, len(event.tensors)) == (other.path, other.returns, len(other.tensors))
    return is_same and all(agrees(t, s) for t, s in zip(other.tensors, event.tensors, strict=True))


def agrees(teacher: torch.Tensor, student: torch.Tensor) -> bool:
    """Tell whether a tensor of the student may be the teacher's, with copies of units along axes that grew."""
    if teacher.ndim != student.ndim or any(s < t for t, s in zip(teacher.shape, student.shape, strict=True)):
        return False
    axes = [k for k in range(teacher.ndim) if teacher.shape[k] != student.shape[k]]
    if not teacher.is_floating_point():
        return bool(axes) or torch.equal(teacher, student)
    if not axes:
        scale = teacher.abs().amax() if teacher.numel() else teacher.new_zeros(())
        return bool(((teacher - student).abs() <= CLOSE * scale + 1e-300).all()) or _units_agree(
            teacher, student, -1, ()
        )
    return all(_units_agree(teacher, student, axis, axes) for axis in axes)


def _units_agree(teacher: torch.Tensor, student: torch.Tensor, axis: int, axes: Sequence[int]) -> bool:
    """Tell whether each unit of the student on an axis is one of the teacher's, up to a factor.

    Copies along other axes do not change what is largest and smallest there.
    """
    rows = []
    for tensor in (teacher, student):
        others = [k for k in axes if k != axis % tensor.ndim]
        ends = [tensor.amax(others, True), tensor.amin(others, True)] if others else [tensor]
        flat = torch.cat([end.movedim(axis, 0).reshape(tensor.shape[axis], -1) for end in ends], 1).double()
        rows.append(flat)
    if rows[0].shape[1] != rows[1].shape[1]:
        return False
    step = max(1, rows[0].shape[1] // MOST_COLUMNS)
    units, copies = (_direction(flat[:, ::step]) for flat in rows)
    alike = (copies @ units.T).abs().amax(1) > 1 - CLOSE**2
    return bool((alike | (copies == 0).all(1)).all())


def _direction(rows: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1; rows of zeros stay."""
    rows = torch.nan_to_num(rows)
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 1e-300, length, torch.ones_like(length))
