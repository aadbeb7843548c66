"""The way back into training: a grown model's weights under the names and in the layouts of the framework.

The student's record says how it was grown. These steps are repeated in memory. Each constant of the graph was exported
from entries of the teacher's state dict. Whatever the steps do to the axes of the constant is done to these entries.
An entry that is in the graph, in any layout, gets the student's values. An entry that the export folded into another
one (a part of a BatchNormalization) grows by the same maps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_net2net.algebra.floats import Array, are_equal
from onnx_net2net.errors import BadInputError, RefusedError, some
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.statedict.carry import Carrier, ConstantGrowths, descendants_of, match_all
from onnx_net2net.framework.statedict.deeper import Placed, deepened
from onnx_net2net.framework.statedict.derivation import added, derive, untied
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.match import Matches, StoredConstant, constants_of
from onnx_net2net.framework.statedict.recover import recover
from onnx_net2net.model.history import history
from onnx_net2net.model.model import Model, load
from onnx_net2net.model.staging import work_folder
from onnx_net2net.operations.deepen.repeat import Copy
from onnx_net2net.operations.replay import redo
from onnx_net2net.rewrite.constants import GrownConstant

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a student under the framework's names. Values are computed on demand.

    Attributes:
        entries: The student's state dict: the teacher's entries in their order, and then new ones.
        sources: The files that the values are computed from; they must stay until then.
        notes: Warnings for people.
        kept: What the file of the teacher's state dict holds besides tensors, to be written again; see
            `onnx_net2net.framework.formats.stored.Entries`.
    """

    entries: tuple[Entry, ...]
    sources: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    kept: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def arrays(self) -> dict[str, Array]:
        """Return all values as numpy arrays, by the names of the entries."""
        return {entry.name: entry.value() for entry in self.entries}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all values as tensors of torch, for `module.load_state_dict`."""
        return {name: state_dicts.torch_tensor(values) for name, values in self.arrays().items()}

    def save(self, path: str | os.PathLike[str], beside: Mapping[Path, Callable[[Path], None]] | None = None) -> None:
        """Write the state dict in the format of the path's suffix; see `framework.formats.state_dicts.write`.

        Args:
            path: The file, or a folder for Orbax.
            beside: Further files to write; each is given a path to write to. All files appear together, or none does.

        Raises:
            BadInputError: There is no such format, or the file cannot be written.
        """
        values = {entry.name: entry.value for entry in self.entries}
        state_dicts.write(path, values, lambda name: values[name](), self.sources, self.kept, beside)


def checkpoint(
    teacher: str | os.PathLike[str] | Model,
    student: str | os.PathLike[str] | Model,
    state_dict: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    untie: bool = False,
) -> Checkpoint:
    """Grow the teacher's state dict as the student was grown, so that it loads into the wider class.

    Args:
        teacher: The model that the student was grown from.
        student: The student, which has a record in its metadata.
        state_dict: The teacher's state dict: a file (see `framework.formats.state_dicts.read`), or the result of
            `module.state_dict()`. If None, the names and layouts of the graph are used (see
            `onnx_net2net.framework.statedict.recover`).
        untie: Whether tied entries may grow differently. If they do, the class must not tie them any more.

    Returns:
        The student's state dict. The teacher's class, made at the student's sizes, loads it strictly.

    Raises:
        BadInputError: The student was not grown from the teacher, or a file cannot be used.
        RefusedError: The student was narrowed, tied weights grew differently, or it is unknown how an entry grows.
    """
    model, grown = load(teacher), load(student)
    constants = constants_of(model)
    recovered = None
    if state_dict is None:
        recovered = recover(constants)
        entries: StateDict = recovered.entries
    else:
        entries = state_dicts.read(state_dict)
    steps = _steps(model, grown)
    with work_folder() as folder:
        runs = _redo(model, grown, steps, folder)
        matches = recovered.matches if recovered else match_all(entries, constants)
        result, torn = _grow(entries, constants, runs, matches)
    is_free = any(step["operation"] == "widen" and not step.get("framework") for step in steps)
    if torn and not untie:
        remedy = "grow with --for torch" if is_free else "export with folding off"
        raise RefusedError(
            f"tied weights grew differently: {some(torn)} ({remedy}, or give --untie and make the class without the "
            "tie)"
        )
    result = list(_called(result))
    numbers = list(dict.fromkeys(number for run in runs for number in run.numbers))
    notes = [*_notes(torn, is_free, numbers), *_unseen(result), *_invented(result), *getattr(entries, "notes", ())]
    if recovered and recovered.norms:
        notes.append(
            f"warning: {len(recovered.norms)} normalisations were folded and come back without statistics, under names "
            f"that are guesses: {some(recovered.norms)} (--state-dict has the real ones)"
        )
    files = [Path(state_dict)] if isinstance(state_dict, str | os.PathLike) else []
    sources = (*model.sources, *grown.sources, *files)
    return Checkpoint(tuple(_marked(result)), sources, tuple(notes), getattr(entries, "kept", None))


def _notes(torn: Sequence[str], is_free: bool, numbers: Sequence[str]) -> Iterator[str]:
    """Say what the class must have or must not do, so that it computes what the student does."""
    if torn:
        yield f"no longer tied; make the class without the tie: {some(torn)}"
    if is_free:
        yield "not grown with --for torch: a class that computes constants from its sizes may differ from it"
    if numbers:
        yield f"the class must not compute these numbers from its sizes: {some(numbers)}"


def _called(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries, and those of new layers by the name of the layer that they were put behind in the class."""
    layers = {constant: entry.name.rpartition(".")[0] for entry in entries for constant in entry.constants}
    for entry in entries:
        before, mark, rest = entry.name.rpartition("_new")
        is_behind = entry.relation == "new" and bool(layers.get(before))
        yield replace(entry, name=f"{layers[before]}{mark}{rest}") if is_behind else entry


def _invented(entries: Sequence[Entry]) -> Iterator[str]:
    """Say which entries are of new layers, whose names are none of the class's as yet.

    Raises:
        RefusedError: If no class could have them.
    """
    names = [entry.name for entry in entries if entry.relation == "new"]
    nameless = [name for name in names if not all(s.isidentifier() or s.isdigit() for s in name.split("."))]
    if nameless:
        raise RefusedError(f"no class is known to have these layers: {some(nameless)}; fill a deeper class by transfer")
    if names:
        yield (
            f"warning: {len(names)} entries are of new layers, which a class has to have under these names (or fill a "
            f"deeper class by transfer): {some(names)}"
        )


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
        whole = entry.relation in ("same", "transposed", "reshaped") and entry.is_matrix
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
    if any(step["operation"] == "unmask" for step in steps):
        raise RefusedError("masks were removed from the student, which is not carried over to a state dict")
    if any(step["operation"] == "upcycle" for step in steps):
        raise RefusedError("names of experts in a class are unknown: fill it by transfer from the dense teacher")
    if any(step["operation"] == "transfer" for step in steps):
        raise RefusedError("the student was filled by transfer: `transfer --state-dict` writes its weights")
    return steps


@dataclass(frozen=True)
class _Run:
    """Steps in a row, and the copies of blocks that were put in behind them."""

    steps: list[ConstantGrowths]  # how each constant grew in each step, by the name that it had before it
    final: Mapping[str, StoredConstant]  # the constants behind the last step
    copies: tuple[Copy, ...] = ()  # the copies
    deeper: Mapping[str, StoredConstant] = field(default_factory=dict)  # the constants of the graph with these
    numbers: tuple[str, ...] = ()  # numbers beside what grew in them


def _redo(teacher: Model, student: Model, steps: Sequence[dict[str, Any]], folder: Path) -> list[_Run]:
    """Grow the teacher again, and return how each constant grew, up to each repetition of blocks and behind it."""
    runs: list[_Run] = []
    grown: list[ConstantGrowths] = []
    numbers: tuple[str, ...] = ()
    for result in redo(teacher, steps, folder):
        numbers += getattr(result, "numbers", ())
        if getattr(result, "inserted", ()):
            raise RefusedError(f"the student needs what a class lacks: {some(result.inserted)} (grow with --for torch)")
        if any(insertion.way == "cancel" for insertion in getattr(result, "insertions", ())):
            raise RefusedError("the student has copies of blocks that cancel, which no class has; fill one by transfer")
        weights = constants_of(result.teacher)
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


_UNCLEAR = (
    "other modules use it too, it grew in several ways, and the file does not say which is whose (export with the "
    "names of modules, or folding off)"
)


def _grow(
    entries: StateDict, constants: Mapping[str, StoredConstant], runs: Sequence[_Run], matches: Matches
) -> tuple[list[Entry], list[str]]:
    """Return the entries of the student's state dict, and which are no longer tied."""
    deeper: dict[str, Placed] = {}
    called: dict[str, str] = {}
    torn: list[str] = []
    for run in runs:
        descendants = {name: descendants_of(constant, run.steps) for name, constant in constants.items()}
        carrier = Carrier(entries, constants, run.final, descendants, matches, _UNCLEAR, called)
        found = derive(carrier)
        torn += untied(carrier, found)
        result = [_chained(entry, deeper[entry.name]) if entry.name in deeper else entry for entry in found]
        new = list(added(carrier))
        if run.copies:
            placed = [Placed(whole, entry.tensor(), carrier.later(entry.name))
                      for whole, entry in zip(result, found, strict=True)]  # fmt: skip
            placed += [Placed(entry, entry.tensor(), [match]) for entry, match in new]
            deeper = deepened(placed, run.copies, run.final)
            called = {name: called.get(one.entry.name, one.entry.name) for name, one in deeper.items()}
            entries = {name: one.tensor for name, one in deeper.items()}
            matches = {name: one.matches for name, one in deeper.items() if one.matches}
            constants = run.deeper
        result += [entry for entry, _ in new]
    return result, list(dict.fromkeys(torn))


def _chained(entry: Entry, placed: Placed) -> Entry:
    """Return an entry as it grew from what an earlier one had been."""
    before = placed.entry
    relation = "copied" if placed.is_copy else before.relation
    growths = (*before.growths, *entry.growths)
    return Entry(entry.name, relation, before.constants, before.stored, growths, entry.note or before.note, entry.value)


def _compare(again: Model, student: Model, only: Mapping[str, StoredConstant] | None) -> None:
    """Refuse a student that has other weights than its record makes; `only` limits that to some."""
    ours, theirs = constants_of(again), constants_of(student)
    for name, constant in ours.items():
        other = theirs.get(name)
        if only is not None and name not in only and other is not None:
            continue
        if other is None or other.shape != constant.shape or not are_equal(constant.read(), other.read()):
            raise BadInputError(f"the student is not what its record makes of the teacher: {name} differs")
