"""Grows the state of an optimizer with the weights: Adam, AdamW, SGD with momentum, Lion, Muon and Adafactor.

Let a channel have c copies. The gradient of its incoming weights is divided among the copies by their shares, and the
gradient of its outgoing weights is copied. Means of gradients (`exp_avg`, `momentum_buffer`) follow the gradient, and
means of squares (`exp_avg_sq`) its square. Adam then moves every copy by the whole step of the channel. Channels that
are no copies start without a state. The law is in growth-math.md, section 3.2.

This needs one share for each copy, in all weights that read it; otherwise its gradient does not follow from the
channel's. Students that were grown for a class have that (`algebra.maps.uneven`). The gradient is then exact, except
for the part that goes through the statistic of a normalisation or through a tied weight. That part is shared evenly,
and misses some hundredths of the largest gradient. Where shares differ between weights, half of the difference is lost;
`with_note` names these entries.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.weights import AxisGrowth, Held
from onnx_net2net.errors import BadInputError, RefusedError, some
from onnx_net2net.framework.checkpoint import Checkpoint
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.model.staging import whole

MOMENTS: dict[str, Held] = {
    "exp_avg": "gradient",  # Adam, AdamW, Lion
    "momentum_buffer": "gradient",  # SGD, Muon
    "exp_avg_sq": "square",
    "max_exp_avg_sq": "square",
    "variance": "square",  # torch's Adafactor, of vectors
}
"""What the tensors of a parameter's state are; numbers like `step` are kept."""

FACTORED = {"row_var": "col_var", "exp_avg_sq_row": "exp_avg_sq_col"}
"""Means of squares along rows and along columns, by Adafactor of torch (which keeps the axis) and of transformers."""

WRAPPERS = ("optimizer", "optimizer_state_dict", "optimizer_state")
"""Where training scripts put the optimizer's state beside other things."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Entries of state dicts that no optimizer has, by the last part of their names."""

_PARAMETERS = ("weight", "bias")
"""Entries that every optimizer of all parameters has, likewise."""


def grow_state(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Grow the result of an optimizer's `state_dict()`.

    Args:
        state: The state of the teacher's optimizer, with torch tensors. Parameters are found by their names
            (`Adam(model.named_parameters())`), or else by their order in the model's state dict
            (`Adam(model.parameters())`).
        checkpoint: How the state dict of the model grew.

    Returns:
        The state for an optimizer of the student that is made in the same way.

    Raises:
        BadInputError: It is no state of an optimizer, or its parameters are not those of the model.
        RefusedError: The student has new layers, or it is not known how the state of this optimizer grows.
    """
    inner = _bare(state)
    by_relation = {entry.relation: entry.name for entry in reversed(checkpoint.entries)}
    if new := by_relation.get("new"):
        raise RefusedError(f"the student has new layers ({new}), and it is unknown where a class has them")
    if copied := by_relation.get("copied"):
        return _with_copies(inner, checkpoint, copied)
    entries = _parameters(inner, checkpoint)
    grown = {key: _grow_parameter(values, entries[key]) for key, values in inner["state"].items()}
    return {**inner, "state": grown}


def squares_of(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Array]:
    """Return the means of squared gradients that the state of an optimizer has, by the names of parameters.

    Raises:
        BadInputError: If it is no state of an optimizer, or of one with other parameters.
    """
    inner = _bare(state)
    entries = _parameters(inner, checkpoint)
    return {entries[key].name: _read(values["exp_avg_sq"]) for key, values in inner["state"].items()
            if "exp_avg_sq" in values}  # fmt: skip


def _bare(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of an optimizer out of what stands around it."""
    inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(inner.get("state"), Mapping) or not isinstance(inner.get("param_groups"), list):
        raise BadInputError("this is no state dict of an optimizer: there is no 'state' or no 'param_groups'")
    return inner


def grow_optimizers(optimizers: Iterable[Any], entries: Mapping[int, Entry]) -> None:
    """Grow the state of optimizers in memory.

    Args:
        optimizers: The optimizers, of torch.
        entries: How their parameters grow, by the `id` of each; others stay as they are.

    Raises:
        RefusedError: It is not known how the state of one grows; all are as they were.
    """
    grown = [
        (own, _grow_parameter(own, entries[id(parameter)]))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in entries and (own := optimizer.state.get(parameter))
    ]
    for own, values in grown:
        own.update({name: value.to(own[name].device) if hasattr(value, "layout") else value
                    for name, value in values.items()})  # fmt: skip


def bare_optimizer(optimizer: Any) -> Any:
    """Return an optimizer of torch out of what libraries wrap around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _with_copies(state: Mapping[str, Any], checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Grow the state where blocks were repeated: copies have none, and optimizers begin theirs at their first step.

    Raises:
        RefusedError: If it is not clear which parameters the copies are among.
    """
    groups = state["param_groups"]
    parameters = [entry for entry in checkpoint.entries if entry.name.rpartition(".")[2] not in _BUFFERS]
    places = [place for place, entry in enumerate(parameters) if entry.relation != "copied"]
    numbers = groups[0]["params"]
    values = [state["state"].get(number, {}) for number in numbers]
    fits = len(groups) == 1 and len(numbers) == len(places)
    if not fits or not all(_fits(value, parameters[place]) for value, place in zip(values, places, strict=True)):
        raise RefusedError(f"blocks were repeated ({name}), and it is unclear which parameters are copies")
    names = {"param_names": [entry.name for entry in parameters]} if "param_names" in groups[0] else {}
    group = {**groups[0], "params": list(range(len(parameters))), **names}
    grown = {place: _grow_parameter(value, parameters[place]) for place, value in zip(places, values, strict=True)
             if value}  # fmt: skip
    return {**state, "state": grown, "param_groups": [group]}


def with_note(checkpoint: Checkpoint) -> Checkpoint:
    """Note which entries weigh copies by other shares for each of their readers.

    The gradients of what makes such copies do not follow from the teacher's; they are carried as if shares were even.
    """

    def is_spread(axis: AxisGrowth) -> bool:
        map = axis.map
        return axis.reads and axis.spread and not map.is_identity and map.is_even and bool(map.weight.min() < 1)

    names = [
        entry.name
        for entry in checkpoint.entries
        if len(entry.old) > 1 and any(g.style.spread and any(map(is_spread, g.axes)) for g in entry.growths)
    ]
    if not names:
        return checkpoint
    note = "means of gradients are estimates in front of weights that give a copy other shares for each reader"
    how = "widen --for torch gives it one share, where no tied weight reads it"
    return replace(checkpoint, notes=(*checkpoint.notes, f"{note}: {some(names)} ({how})"))


def _grow_parameter(values: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """Grow the state of one parameter."""
    result = dict(values)
    for name, value in values.items():
        if not hasattr(value, "layout"):
            continue
        if name == "step" or (value.shape == () and entry.old != ()):
            result[name] = value.clone()  # optimizers count in place
        elif name in FACTORED:
            other = FACTORED[name]
            result[name], result[other] = _factored(_read(value), _read(values[other]), entry)
        elif name in MOMENTS:
            result[name] = state_dicts.torch_tensor(entry.grow(_read(value), MOMENTS[name]))
        elif name not in FACTORED.values():
            raise RefusedError(
                f"how {name!r} grows is not known; known are {', '.join((*MOMENTS, *FACTORED))} (Adam, AdamW, SGD, "
                "Lion, Muon, Adafactor)"
            )
    return result


def _read(tensor: Any) -> Array:
    return state_dicts.from_torch({"": tensor.cpu()})[""].read()


def _factored(rows: Array, columns: Array, entry: Entry) -> tuple[Any, Any]:
    """Grow the means of squares along the last two axes: those of the matrix that they are the factors of."""
    is_flat = rows.ndim < len(entry.old)
    r, c = (rows[..., None], columns[..., None, :]) if is_flat else (rows, columns)
    mean = r.mean(axis=-2, keepdims=True)
    squares = entry.grow(r * c / np.where(mean > 0, mean, 1).astype(r.dtype), "square")
    found = squares.mean(axis=-1, keepdims=not is_flat), squares.mean(axis=-2, keepdims=not is_flat)
    return state_dicts.torch_tensor(found[0]), state_dicts.torch_tensor(found[1])


def _parameters(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[int, Entry]:
    """Return the entry of each parameter of an optimizer, by its number."""
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) == len(numbers):
        by_name = {entry.name: entry for entry in checkpoint.entries}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise BadInputError(f"the optimizer has the parameter {unknown[0]!r}, which the state dict lacks")
        return dict(zip(numbers, (by_name[name] for name in names), strict=True))
    hint = "make it of named_parameters(), so that its state has their names"
    if len(groups) > 1:
        raise BadInputError(f"the optimizer has {len(groups)} groups of parameters without names; {hint}")
    values = [state["state"].get(number, {}) for number in numbers]
    for entries in _candidates(checkpoint.entries):
        if len(entries) == len(values) and all(map(_fits, values, entries)):
            return dict(zip(numbers, entries, strict=True))
    for entries in _candidates(checkpoint.entries)[::-1]:
        first, last = (_aligned(values, entries, is_last) for is_last in (False, True))
        unlike = [(one.name, other.name) for one, other in zip(first, last, strict=True) if one is not other]
        if unlike:
            other, buffer = unlike[0]
            raise BadInputError(f"shapes do not tell which of {other!r} and {buffer!r} is a parameter; {hint}")
        if first:
            return dict(zip(numbers, first, strict=True))
    raise BadInputError(f"the optimizer's {len(numbers)} parameters are not those of the state dict, in order; {hint}")


def _aligned(values: Sequence[Mapping[str, Any]], entries: Sequence[Entry], is_last: bool) -> list[Entry]:
    """Find the parameters among entries, where some are buffers, by shapes and order; none if they do not fit.

    A module lists its parameters in front of its buffers, so that none comes behind a buffer of the same module.

    Args:
        values: The state of each parameter.
        entries: All entries.
        is_last: Whether, where there are several ways, buffers come as early as they can instead of as late.
    """
    spare = len(entries) - len(values)
    modules = [entry.name.rpartition(".")[0] for entry in entries]

    def choices(at: int, skipped: int, behind: bool) -> Iterator[bool]:
        """Yield what an entry may be, a parameter (True) or a buffer, with `skipped` buffers in front of it."""
        is_behind = behind and modules[at] == modules[at - 1]
        if not is_behind and 0 <= at - skipped < len(values) and _fits(values[at - skipped], entries[at]):
            yield True
        if skipped < spare and entries[at].name.rpartition(".")[2] not in _PARAMETERS:
            yield False

    states = [(skipped, behind) for skipped in range(spare + 1) for behind in (False, True)]
    fitting = {(len(entries), spare, behind) for behind in (False, True)}  # from where on all fits
    for at in range(len(entries) - 1, -1, -1):
        for skipped, behind in states:
            if any((at + 1, skipped + (not kind), not kind) in fitting for kind in choices(at, skipped, behind)):
                fitting.add((at, skipped, behind))
    found: list[Entry] = []
    skipped, behind = 0, False
    for at in range(len(entries)) if (0, 0, False) in fitting else ():
        kinds = [k for k in choices(at, skipped, behind) if (at + 1, skipped + (not k), not k) in fitting]
        behind = not kinds[-1 if is_last else 0]
        skipped += behind
        found += [] if behind else [entries[at]]
    return found


def _candidates(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return what may be the parameters of a module, in order: all, or each that is tied to others once."""
    plain = [entry for entry in entries if entry.name.rpartition(".")[2] not in _BUFFERS]
    once: dict[object, Entry] = {}
    for entry in plain:
        key = entry.stored.shared or (entry.constants if entry.is_matrix else ())
        once.setdefault((key, entry.old) if key else entry.name, entry)
    return [plain, list(once.values())]


def _fits(values: Mapping[str, Any], entry: Entry) -> bool:
    """Tell whether the tensors of a parameter's state have the shape of an entry, or are the means along its axes."""
    old = entry.old
    rows, columns = ((*old[:-1], 1), old[:-1]), ((*old[:-2], 1, *old[-1:]), (*old[:-2], *old[-1:]))
    shapes = {**dict.fromkeys(FACTORED, rows), **dict.fromkeys(FACTORED.values(), columns)}
    return all(tuple(value.shape) in shapes.get(name, ((), old))
               for name, value in values.items() if hasattr(value, "layout"))  # fmt: skip


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read the state of an optimizer from a file of torch.

    Raises:
        BadInputError: If it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"cannot read {path}: there is no such file")
    loaded = state_dicts.load_torch(path)
    if not isinstance(loaded, Mapping):
        raise BadInputError(f"{path} is no state dict of an optimizer")
    return loaded


def write_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the state of an optimizer to a file of torch, which appears as a whole or not at all.

    Raises:
        BadInputError: If it cannot be written there.
    """
    with whole(Path(path)) as place, state_dicts.saving(Path(path)):
        state_dicts.save_torch(dict(state), place)


def output_beside(path: Path) -> Path:
    """Return where the state of an optimizer is written: beside the weights, as `student.optimizer.pt`."""
    return path.with_name(f"{path.stem}.optimizer.pt")
