"""The way back into training: a grown model's weights under the names and in the layouts of the framework.

The student's record says how it was grown. The steps are done again in memory, and what they do to each axis of each
constant is done to the entries of the teacher's state dict that the constants were exported from. An entry that is
in the graph, in whatever layout, gets the student's own values; one that the export folded away (the parts of a
BatchNormalization) grows by the same maps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net import statedict
from onnx_net2net.derivation import Derivation, Entry, Made, some
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.history import history
from onnx_net2net.matching import Constant, constants_of
from onnx_net2net.model import Model, load
from onnx_net2net.recovery import recover
from onnx_net2net.replay import redo
from onnx_net2net.rewrite import GrownConstant
from onnx_net2net.staging import work_folder
from onnx_net2net.statedict import StateDict
from onnx_net2net.tensors import Array


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a student under the framework's names; computed when they are asked for.

    Attributes:
        entries: The entries, in the order of the teacher's state dict, and the new ones.
        sources: The files that they are computed from.
        notes: What else there is to say, for people.
        versions: Of the modules' classes; see `onnx_net2net.statedict.Entries`.
    """

    entries: tuple[Entry, ...]
    sources: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Any = None

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def arrays(self) -> dict[str, Array]:
        """Return the values of all entries."""
        return {entry.name: entry.value() for entry in self.entries}

    def save(self, path: str | os.PathLike[str], beside: Mapping[Path, Callable[[Path], None]] | None = None) -> None:
        """Write a state dict: .safetensors, or a file of torch (.pt, .pth); see `onnx_net2net.statedict.write`."""
        values = {entry.name: entry.value for entry in self.entries}
        statedict.write(path, values, lambda name: values[name](), self.sources, self.versions, beside)


def checkpoint(
    teacher: str | os.PathLike[str] | Model,
    student: str | os.PathLike[str] | Model,
    state_dict: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    untie: bool = False,
) -> Checkpoint:
    """Carry the growth of a student over to the teacher's state dict.

    Args:
        teacher: The model that the student was grown from.
        student: The student, with its record.
        state_dict: The teacher's state dict: a file (.safetensors, .pt), or what `state_dict()` returns. If None,
            names are those of the graph (see `onnx_net2net.recovery`).
        untie: Whether entries that are tied may grow differently. The class must not tie them, then.

    Returns:
        The student's state dict, which the same class takes at the student's sizes.

    Raises:
        BadInputError: If the student was not grown from the teacher, or a file cannot be used.
        RefusedError: If it was narrowed, or an entry that must have grown cannot be derived.
    """
    model, grown = load(teacher), load(student)
    sources = [*model.sources, *grown.sources]
    constants = constants_of(model)
    recovered = None
    if state_dict is None:
        recovered = recover(constants)
        entries: StateDict = recovered.entries
    elif isinstance(state_dict, Mapping):
        entries = statedict.from_torch(state_dict)
    else:
        entries = statedict.read(state_dict)
        sources.append(Path(state_dict))
    steps = _steps(model, grown)
    redone = _redo(model, grown, steps)
    made = Made(redone, constants_of(grown))
    derivation = Derivation(entries, constants, made, recovered.matches if recovered else None)
    result = list(derivation.entries())
    untied = list(dict.fromkeys(derivation.untied(result)))
    if untied and not untie:
        raise RefusedError(
            f"tied weights grew differently: {some(untied)} (grow with --for torch, or give --untie and make the "
            "class without the tie)"
        )
    notes = [f"no longer tied; make the class without the tie: {some(untied)}"] if untied else []
    if any(step["operation"] == "widen" and not step.get("framework") for step in steps):
        notes.append("not grown with --for torch: a class that computes constants from its sizes may differ from it")
    if recovered and recovered.norms:
        notes.append(
            f"warning: {len(recovered.norms)} normalisations were folded and come back without statistics, under names "
            f"that are guesses: {some(recovered.norms)} (--state-dict has the real ones)"
        )
    return Checkpoint(
        (*_marked(result), *derivation.added()), tuple(sources), tuple(notes), getattr(entries, "versions", None)
    )


def _marked(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries; a matrix that is all of one that came before is called tied."""
    seen: set[tuple[str, ...]] = set()
    for entry in entries:
        whole = entry.relation in ("same", "transposed", "reshaped") and sum(size > 1 for size in entry.old) > 1
        yield replace(entry, relation="tied") if whole and entry.constants in seen else entry
        seen.update([entry.constants] if whole else [])


def _steps(teacher: Model, student: Model) -> list[dict[str, Any]]:
    """Return what was done to the teacher."""
    before, steps = history(teacher), history(student)
    if not steps or steps[: len(before)] != before:
        raise BadInputError("the student has no record of how it was grown from this teacher")
    steps = steps[len(before) :]
    if any(step["operation"] == "narrow" for step in steps):
        raise RefusedError("the student was narrowed, which is not carried over to a state dict")
    if any(step["operation"] == "transfer" for step in steps):
        raise RefusedError("the student was filled by transfer, whose --state-dict writes its weights")
    return steps


def _redo(teacher: Model, student: Model, steps: Sequence[dict[str, Any]]) -> list[dict[str, list[GrownConstant]]]:
    """Grow the teacher again, and return how each constant grew in each step, by the name that it had before it."""
    grown: list[dict[str, list[GrownConstant]]] = []
    with work_folder() as folder:
        for result in redo(teacher, steps, folder):
            if getattr(result, "inserted", ()):
                raise RefusedError(
                    f"the student has what a class has not: {some(result.inserted)} (grow with --for torch)"
                )
            by_name: dict[str, list[GrownConstant]] = {}
            weights = constants_of(result.teacher)
            for constant in getattr(result, "constants", ()):
                if constant.teacher not in weights:
                    raise RefusedError(
                        f"{constant.teacher} grew, which is no weight of a class: integers, or inside of a body "
                        "(grow with --for torch)"
                    )
                by_name.setdefault(constant.teacher, []).append(constant)
            grown.append(by_name)
        # What was calibrated on data, which the record does not have, is nowhere but in the student.
        on_data = any(step.get("calibrated on") == "data" for step in steps)
        _compare(result.student, student, constants_of(teacher) if on_data else None)
    return grown


def _compare(again: Model, student: Model, only: Mapping[str, Constant] | None) -> None:
    """Refuse a student that has other weights than its record makes; `only` limits that to some."""
    ours, theirs = constants_of(again), constants_of(student)
    for name, constant in ours.items():
        other = theirs.get(name)
        if only is not None and name not in only and other is not None:
            continue
        if other is None or other.shape != constant.shape or not np.array_equal(constant.read(), other.read()):
            raise BadInputError(f"the student is not what its record makes of the teacher: {name} differs")
