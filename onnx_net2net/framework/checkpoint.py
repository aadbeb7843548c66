"""The way back into training: a grown model's weights under the names and in the layouts of the framework.

The student's record says how it was grown. The steps are done again in memory, and what they do to each axis of each
constant is done to the entries of the teacher's state dict that the constants were exported from. An entry that is
in the graph, in whatever layout, gets the student's own values; one that the export folded away (the parts of a
BatchNormalization) grows by the same maps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.framework import files as statedict
from onnx_net2net.framework.deeper import deepened
from onnx_net2net.framework.derivation import Derivation, Entry, Made, new_match, some
from onnx_net2net.framework.files import StateDict, Stored
from onnx_net2net.framework.match import Constant, Matches, constants_of
from onnx_net2net.framework.recover import recover
from onnx_net2net.model.history import history
from onnx_net2net.model.model import Model, load
from onnx_net2net.model.staging import work_folder
from onnx_net2net.operations.deepen.repeat import Copy
from onnx_net2net.operations.replay import redo
from onnx_net2net.rewrite.constants import GrownConstant


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a student under the framework's names; computed when they are asked for.

    Attributes:
        entries: The student's state dict: the teacher's entries in their order, and then new ones.
        sources: The files from which the entries are computed.
        notes: Warnings for people.
        versions: The versions of the modules' classes that torch keeps in a state dict; see
        `onnx_net2net.framework.files.Entries`.
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
        """Write a state dict: .safetensors, or a file of torch (.pt, .pth); see `framework.files.write`."""
        values = {entry.name: entry.value for entry in self.entries}
        statedict.write(path, values, lambda name: values[name](), self.sources, self.versions, beside)


def checkpoint(
    teacher: str | os.PathLike[str] | Model,
    student: str | os.PathLike[str] | Model,
    state_dict: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    untie: bool = False,
) -> Checkpoint:
    """Grow the teacher's state dict as the student was grown: the result loads into the wider class.

    Args:
        teacher: The model that the student was grown from.
        student: The student, with its record.
        state_dict: The teacher's state dict: a file (.safetensors, .pt), or what `state_dict()` returns. If None,
            names are those of the graph (see `onnx_net2net.framework.recover`).
        untie: Whether entries that are tied may grow differently. If they do, the class must not tie them.

    Returns:
        The student's state dict, which the same class takes at the student's sizes.

    Raises:
        BadInputError: If the student was not grown from the teacher, or a file cannot be used.
        RefusedError: If the student was narrowed, or an entry must have grown and nothing tells how.
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
    with work_folder() as folder:
        runs = _redo(model, grown, steps, folder)
        result, untied = _grow(entries, constants, runs, recovered.matches if recovered else None)
    is_free = any(step["operation"] == "widen" and not step.get("framework") for step in steps)
    result = list(_called(result))
    if untied and not untie:
        remedy = "grow with --for torch" if is_free else "export with folding off"
        raise RefusedError(
            f"tied weights grew differently: {some(untied)} ({remedy}, or give --untie and make the class without the "
            "tie)"
        )
    notes = [f"no longer tied; make the class without the tie: {some(untied)}"] if untied else []
    if is_free:
        notes.append("not grown with --for torch: a class that computes constants from its sizes may differ from it")
    numbers = list(dict.fromkeys(number for run in runs for number in run.numbers))
    if numbers:
        notes.append(f"the class must not compute these numbers from its sizes: {some(numbers)}")
    notes += _unseen(result)
    notes += _invented([entry.name for entry in result if entry.relation == "new"])
    if recovered and recovered.norms:
        notes.append(
            f"warning: {len(recovered.norms)} normalisations were folded and come back without statistics, under names "
            f"that are guesses: {some(recovered.norms)} (--state-dict has the real ones)"
        )
    return Checkpoint(tuple(_marked(result)), tuple(sources), tuple(notes), getattr(entries, "versions", None))


def _called(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries, and those of new layers by the name of the layer that they were put behind in the class."""
    layers = {constant: entry.name.rpartition(".")[0] for entry in entries for constant in entry.constants}
    for entry in entries:
        before, mark, rest = entry.name.rpartition("_new")
        is_behind = entry.relation == "new" and bool(layers.get(before))
        yield replace(entry, name=f"{layers[before]}{mark}{rest}") if is_behind else entry


def _invented(names: Sequence[str]) -> Iterator[str]:
    """Say which entries are of new layers, whose names are none of the class's as yet.

    Raises:
        RefusedError: If no class could have them.
    """
    nameless = [name for name in names if not all(map(_is_attribute, name.split(".")))]
    if nameless:
        raise RefusedError(f"no class has layers of these names: {some(nameless)}; fill a deeper class by transfer")
    if names:
        yield (
            f"warning: {len(names)} entries are of new layers, which a class has to have under these names (or fill a "
            f"deeper class by transfer): {some(names)}"
        )


def _is_attribute(step: str) -> bool:
    """Tell whether a step of a path may be a module or parameter of a class."""
    return step.isidentifier() or step.isdigit()


def _unseen(entries: Sequence[Entry]) -> Iterator[str]:
    """Say which entries are not in the graph, so that only a load into the class can tell whether their shapes fit."""
    grown = [f"{entry.name} {list(entry.old)} -> {list(entry.new)}" for entry in entries if entry.new != entry.old
             and entry.relation == "not in the graph"]  # fmt: skip
    kept = [f"{entry.name} {list(entry.old)}" for entry in entries if entry.relation == "passed through" and entry.note]
    if grown:
        yield f"warning: {len(grown)} entries are not in the graph, and grew like others of their kind: {some(grown)}"
    if kept:
        yield (
            f"warning: {len(kept)} entries are not in the graph, and keep their shape, as others of their sizes grew "
            f"differently; the class may have them wider: {some(kept)}"
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


@dataclass(frozen=True)
class _Run:
    """Steps in a row, and the copies of blocks that were put in behind them.

    Attributes:
        steps: How each constant grew in each step, by the name that it had before it.
        final: The constants behind the last step.
        copies: The copies.
        deeper: The constants of the graph with these.
        numbers: Numbers beside what grew in them.
    """

    steps: list[dict[str, list[GrownConstant]]]
    final: Mapping[str, Constant]
    copies: tuple[Copy, ...] = ()
    deeper: Mapping[str, Constant] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()


def _redo(teacher: Model, student: Model, steps: Sequence[dict[str, Any]], folder: Path) -> list[_Run]:
    """Grow the teacher again, and return how each constant grew, up to each repetition of blocks and behind it."""
    runs: list[_Run] = []
    grown: list[dict[str, list[GrownConstant]]] = []
    numbers: tuple[str, ...] = ()
    for result in redo(teacher, steps, folder):
        numbers += getattr(result, "numbers", ())
        if getattr(result, "inserted", ()):
            raise RefusedError(f"the student has what a class has not: {some(result.inserted)} (grow with --for torch)")
        weights = constants_of(result.teacher)
        _refuse_invented(result)
        if getattr(result, "copies", ()):
            runs.append(_Run(grown, weights, result.copies, constants_of(result.student)))
            grown = []
            continue
        by_name: dict[str, list[GrownConstant]] = {}
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
    return [*runs, _Run(grown, constants_of(student), numbers=numbers)]


def _refuse_invented(result: Any) -> None:
    """Refuse what a step of `deepen` put in that no class has."""
    if any(insertion.way == "cancel" for insertion in getattr(result, "insertions", ())):
        raise RefusedError("the student has copies of blocks that cancel, which no class has; fill one by transfer")


def _grow(
    entries: StateDict, constants: Mapping[str, Constant], runs: Sequence[_Run], matches: Matches | None
) -> tuple[list[Entry], list[str]]:
    """Return the entries of the student's state dict, and which are no longer tied."""
    state = entries
    origins: dict[str, tuple[Entry, bool]] = {}
    called: dict[str, str] = {}
    untied: list[str] = []
    for run in runs:
        derivation = Derivation(state, constants, Made(run.steps, run.final), matches, called)
        found = list(derivation.entries())
        untied += derivation.untied(found)
        found += derivation.added()
        result = [_chained(entry, *origins[entry.name]) if entry.name in origins else entry for entry in found]
        if not run.copies:
            break
        tensors = {entry.name: _stored(entry, state.get(entry.name)) for entry in found}
        later = {entry.name: derivation.later(entry.name) or new_match(entry, run.final) for entry in found}
        deeper = deepened(found, tensors, {name: one for name, one in later.items() if one}, run.copies, run.final)
        whole = {entry.name: entry for entry in result}
        origins = {name: (whole[entry.name], is_copy) for name, (entry, is_copy) in deeper.origins.items()}
        called = {name: called.get(entry.name, entry.name) for name, (entry, _) in deeper.origins.items()}
        state, matches, constants = deeper.entries, deeper.matches, run.deeper
    return result, list(dict.fromkeys(untied))


def _chained(entry: Entry, before: Entry, is_copy: bool) -> Entry:
    """Return an entry as it grew from what an earlier one had been."""
    relation = "copied" if is_copy else before.relation
    note = entry.note or before.note
    return replace(entry, relation=relation, constants=before.constants, old=before.old, note=note,
                   growths=(*before.growths, *entry.growths))  # fmt: skip


def _stored(entry: Entry, before: Stored | None) -> Stored:
    """Return an entry as a tensor of the state dict that later steps grow."""
    if before is None:
        return Stored(entry.new, entry.value().dtype, entry.value)
    return replace(before, shape=entry.new, read=entry.value)


def _compare(again: Model, student: Model, only: Mapping[str, Constant] | None) -> None:
    """Refuse a student that has other weights than its record makes; `only` limits that to some."""
    ours, theirs = constants_of(again), constants_of(student)
    for name, constant in ours.items():
        other = theirs.get(name)
        if only is not None and name not in only and other is not None:
            continue
        if other is None or other.shape != constant.shape or not np.array_equal(constant.read(), other.read()):
            raise BadInputError(f"the student is not what its record makes of the teacher: {name} differs")
