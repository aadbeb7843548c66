"""The state of an optimizer, grown with a checkpoint: a file of torch, or a checkpoint of torch.distributed.

The law is that of `framework.optimizer`. Copies of layers begin without a state in a file; a distributed checkpoint has
to have one for each parameter, which is that of an optimizer before its first step: zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.huggingface import distributed
from onnx_net2net.framework.huggingface.distributed import Distributed, Key
from onnx_net2net.framework.huggingface.student import Student
from onnx_net2net.framework.optimizer import MOMENTS, grow_state, read_state
from onnx_net2net.framework.statedict.entries import Entry

_DEEPSPEED = ("*zero_pp_rank_*", "*_optim_states.pt", "global_step*", "zero_to_fp32.py")
"""Files that DeepSpeed writes."""


def optimizer_of(student: Student, source: Path) -> Callable[[Path], None]:
    """Return what writes the grown state of an optimizer into a folder: `optimizer.pt`, or the folder `optimizer`.

    Args:
        student: The student.
        source: What `torch.save(optimizer.state_dict(), ...)` wrote; or the folder of a distributed checkpoint with
            what `get_optimizer_state_dict` returned, anywhere in it. The weights in it are left out.

    Raises:
        BadInputError: If it is no such state, or of an optimizer of other parameters.
        RefusedError: If it is of DeepSpeed, or it is not known how a tensor of it grows.
    """
    if not source.is_dir():
        state = grow_state(read_state(source), Checkpoint(tuple(_entries(student))))
        return lambda folder: state_dicts.save_torch(dict(state), folder / "optimizer.pt")
    if any(any(source.glob(pattern)) for pattern in _DEEPSPEED):
        raise RefusedError(
            f"{source} is a state of DeepSpeed, whose ranks hold pieces of one flat vector: load it there, and save it "
            "by torch.distributed.checkpoint (get_optimizer_state_dict)"
        )
    return _distributed(student, distributed.read_checkpoint(source))


def _entries(student: Student) -> Iterator[Entry]:
    """Yield the student's parameters in the order of its class, those that are others left out."""
    for name in student.skeleton.shapes:
        if name not in student.skeleton.tied:
            yield _entry(student, name)


def _entry(student: Student, name: str) -> Entry:
    own, (source, is_copy) = student.parameters[name], student.sources[name]
    stored = student.teacher.parameters[source]
    return Entry(name, "copied" if is_copy else "same", (source,), stored, (own.growth,) if own.growth else ())


def _distributed(student: Student, state: Distributed) -> Callable[[Path], None]:
    """Return what writes the grown state of a distributed checkpoint, a tensor at a time."""
    names: dict[str, list[str]] = {}
    for name, (source, _) in student.sources.items():
        names.setdefault(source, []).append(name)
    others: dict[Key, Any] = {}
    tensors: dict[Key, tuple[tuple[int, ...], torch.dtype]] = {}
    made: dict[Key, tuple[str, Entry]] = {}
    for name, key in state.keys.items():
        if key[:1] == ("model",):
            continue
        if len(key) < 3 or key[-3] != "state":
            value = state.value(name)
            others[key] = _renamed(value, names) if key[-1] == "params" else value
            continue
        *path, parameter, kind = key
        if parameter not in names:
            raise BadInputError(
                f"{state.path} has the state of {parameter!r}, which the class lacks (get_optimizer_state_dict has "
                "names)"
            )
        for own in names[str(parameter)]:
            entry, place = _entry(student, own), (*path, own, kind)
            shape = _checked(state, name, str(kind), entry)
            made[place] = name, entry
            tensors[place] = shape, state.table.state_dict_metadata[name].properties.dtype
    if not made:
        raise BadInputError(f"{state.path} has no state of an optimizer")

    def value_of(key: Key) -> torch.Tensor:
        name, entry = made[key]
        shape, dtype = tensors[key]
        if entry.relation == "copied":
            return torch.zeros(shape, dtype=dtype)
        value: torch.Tensor = state.value(name)
        if not value.ndim:
            return value
        old = state_dicts.from_torch({"": value})[""].read()
        grown: torch.Tensor = state_dicts.torch_tensor(entry.grow(old, MOMENTS[str(key[-1])]))
        return grown

    return lambda folder: distributed.write_checkpoint(folder / "optimizer", others, tensors, value_of)


def _renamed(value: Any, names: dict[str, list[str]]) -> Any:
    """Return the parameters of a group, with the copies of each behind it."""
    return [own for name in value for own in names.get(name, [name])] if isinstance(value, list) else value


def _checked(state: Distributed, name: str, kind: str, entry: Entry) -> tuple[int, ...]:
    """Return the shape that a tensor of the state gets."""
    shape = state.shape(name)
    if shape == ():
        return ()
    if kind not in MOMENTS:
        raise RefusedError(
            f"how {kind!r} grows in a distributed checkpoint is not known; known are {', '.join(MOMENTS)}"
        )
    if shape != entry.old:
        raise BadInputError(f"{name} of {state.path} is {list(shape or ())}, and the parameter {list(entry.old)}")
    return entry.new
