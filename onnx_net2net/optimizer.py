"""The state of an optimizer, grown with the weights: Adam, AdamW and SGD with momentum.

The law is growth-math.md, section 3.2. Of a weight W' = E W D the gradient is G' = D~^T G E^T, where D~ is what the
readers of its result weigh copies by: what a weight makes c copies of has its gradient divided by c, what it reads c
copies of has it copied. Means of gradients (`exp_avg`, `momentum_buffer`) follow the gradient, means of squares
(`exp_avg_sq`) its square. Adam then moves every copy by the whole step of the unit. Units that are no copies start
with no state, and uneven shares (`spread`) count as even ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_net2net import statedict
from onnx_net2net.checkpoint import Checkpoint
from onnx_net2net.derivation import Entry, Kind
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.staging import destination, stage, writing

KINDS: dict[str, Kind] = {
    "exp_avg": "gradient",
    "momentum_buffer": "gradient",
    "exp_avg_sq": "square",
    "max_exp_avg_sq": "square",
}
"""What the tensors of a parameter's state are; numbers like `step` are kept."""

WRAPPERS = ("optimizer", "optimizer_state_dict", "optimizer_state")
"""Where training scripts put the optimizer's state beside other things."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Entries of state dicts that no optimizer has, by the last part of their names."""


def grow_state(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Grow what an optimizer's `state_dict()` returned.

    Args:
        state: The teacher's, of torch tensors. Its parameters are those of the state dict, in order, as of
            `Adam(model.parameters())`; or they are found by their names (`Adam(model.named_parameters())`).
        checkpoint: How the state dict of the model grew.

    Returns:
        The same for an optimizer of the student, made in the same way.

    Raises:
        BadInputError: If it is no state of an optimizer, or of one with other parameters.
        RefusedError: If the student has new layers, or it is not known how the state of this optimizer grows.
    """
    inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(inner.get("state"), Mapping) or not isinstance(inner.get("param_groups"), list):
        raise BadInputError("this is no state dict of an optimizer: there is no 'state' or no 'param_groups'")
    new = [entry.name for entry in checkpoint.entries if entry.relation == "new"]
    if new:
        raise RefusedError(f"the student has new layers ({new[0]}), and where a class has them is not known")
    entries = _parameters(inner, checkpoint)
    grown = {key: _grow_parameter(values, entries[key]) for key, values in inner["state"].items()}
    return {**inner, "state": grown}


def _grow_parameter(values: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """Grow the state of one parameter."""
    tensors = statedict.from_torch(values) if any(hasattr(value, "layout") for value in values.values()) else {}
    result = dict(values)
    for name, stored in tensors.items():
        if name == "step" or (stored.shape == () and entry.old != ()):
            result[name] = values[name].clone()  # optimizers count in place
            continue
        if name not in KINDS:
            raise RefusedError(f"how {name!r} grows is not known; known are {', '.join(KINDS)} (Adam, AdamW, SGD)")
        result[name] = statedict.to_torch(entry.grow(stored.read(), KINDS[name]))
    return result


def _parameters(state: Mapping[str, Any], checkpoint: Checkpoint) -> dict[int, Entry]:
    """Return the entry of each parameter of an optimizer, by its number."""
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) == len(numbers):
        by_name = {entry.name: entry for entry in checkpoint.entries}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise BadInputError(f"the optimizer has the parameter {unknown[0]!r}, which the state dict has not")
        return dict(zip(numbers, (by_name[name] for name in names), strict=True))
    hint = "make it of named_parameters(), so that its state has their names"
    if len(groups) > 1:
        raise BadInputError(f"the optimizer has {len(groups)} groups of parameters and does not say which; {hint}")
    for entries in _candidates(checkpoint.entries):
        found = dict(zip(numbers, entries, strict=False))
        if len(entries) == len(numbers) and all(_fits(state["state"].get(k, {}), e) for k, e in found.items()):
            return found
    raise BadInputError(f"the optimizer's {len(numbers)} parameters are not those of the state dict, in order; {hint}")


def _candidates(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return what may be the parameters of a module, in order: all, or each that is tied to others once."""
    plain = [entry for entry in entries if entry.name.rpartition(".")[2] not in _BUFFERS]
    once: dict[object, Entry] = {}
    for entry in plain:
        is_matrix = sum(size > 1 for size in entry.old) > 1
        once.setdefault((entry.constants, entry.old) if entry.constants and is_matrix else entry.name, entry)
    return [plain, list(once.values())]


def _fits(values: Mapping[str, Any], entry: Entry) -> bool:
    """Tell whether the tensors of a parameter's state have the shape of an entry."""
    return all(tuple(value.shape) in ((), entry.old) for value in values.values() if hasattr(value, "layout"))


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read the state of an optimizer from a file of torch.

    Raises:
        BadInputError: If it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"cannot read {path}: there is no such file")
    loaded = statedict.load_torch(path)
    if not isinstance(loaded, Mapping):
        raise BadInputError(f"{path} is no state dict of an optimizer")
    return loaded


def write_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the state of an optimizer to a file of torch, which appears as a whole or not at all.

    Raises:
        BadInputError: If it cannot be written there.
    """
    path = Path(path)
    target = destination(path)
    with stage(target) as staged:
        with statedict.saving(path):
            statedict.save_torch(dict(state), staged.folder / target.name)
        with writing(path):
            staged.commit(lambda: ([target.name], []))


def output_beside(path: Path) -> Path:
    """Return where the state of an optimizer is written: beside the weights, as `student.optimizer.pt`."""
    return path.with_name(f"{path.stem}.optimizer.pt")
