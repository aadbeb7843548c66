"""The inverse of growing: removes identity layers, duplicate units, and units that no weight reads.

So `narrow(widen(m))` and `narrow(deepen(m))` have the size of m again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.groups import inspect_analysis, paused_gc
from onnx_net2net.analysis.inference import Analysis, infer
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.history import record, unmark_grown
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.operations.narrow.duplicates import Duplicates, axis_labels, class_count, find_duplicates
from onnx_net2net.operations.narrow.identities import remove_identities
from onnx_net2net.operations.narrow.merge import merge_units
from onnx_net2net.operations.narrow.padding import find_pads, shares_of
from onnx_net2net.rewrite.norms import correct_norms, unfill
from onnx_net2net.rewrite.outputs import OutputGather, cut_again, uncut


@dataclass(frozen=True)
class Reduction:
    """A dim that lost units: its name, and its sizes before (`old`) and after (`new`)."""

    name: str
    old: int
    new: int


@dataclass(frozen=True)
class Narrowing:
    """The result of `narrow`.

    Attributes:
        teacher: The model that was narrowed.
        student: The smaller model; its weights are computed when it is saved or run.
        removed: The names of the layers, activations and sums that were removed.
        changes: The dims that lost units.
    """

    teacher: Model
    student: Model
    removed: tuple[str, ...]
    changes: tuple[Reduction, ...]


def narrow(teacher: ModelLike) -> Narrowing:
    """Remove identity layers, exact duplicates of units, and units that no weight reads.

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.operations.verify`.

    Raises:
        BadInputError: If the model cannot be used.
        RefusedError: If there is nothing to remove.
    """
    model = load(teacher)
    with paused_gc():
        opened = open_bodies(model)
        state, removed, changes = _State(opened.model), list[str](), dict[str, Reduction]()
        while True:
            state, gone = _without_layers(state)
            state, unpadded = _without_pads(state)
            state, merged = _without_duplicates(state)
            removed += gone
            for step in (*unpadded, *merged):
                changes[step.name] = Reduction(step.name, changes.get(step.name, step).old, step.new)
            if not (gone or unpadded or merged):
                break
        if not removed and not changes:
            raise RefusedError("there is nothing to remove: no duplicate or unread units, and no identity layers")
        narrowed = Graph(state.model).finish(record(model, "narrow", {}, opened.notes()))
        unmark_grown(narrowed.proto)
        student = opened.close(narrowed)
    return Narrowing(model, student, tuple(removed), tuple(changes.values()))


class _State:
    """What is left of a model by now, and its dims, which are inferred when they are first asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def analysis(self) -> Analysis:
        return infer(self.model)

    def uncut(self) -> tuple[_State, list[OutputGather]]:
        """Return the state without cuts of outputs, and the cuts."""
        whole, cuts = uncut(self.model)
        return (_State(whole) if cuts else self), cuts


def _without_layers(state: _State) -> tuple[_State, list[str]]:
    """Remove identity layers; return what they were called."""
    draft = Draft.of(state.analysis)
    removed = remove_identities(draft, state.model.proto)
    return (_State(draft.graph.finish()) if removed else state), removed


def _without_pads(state: _State) -> tuple[_State, list[Reduction]]:
    """Remove units that only pad what normalisers read; return the dims that had some."""
    whole, cuts = state.uncut()
    analysis = whole.analysis
    pads = find_pads(analysis, {cut.node.input[0]: (cut.axis, cut.places) for cut in cuts})
    if not pads:
        return state, []
    shares = shares_of(analysis, pads)
    classes = {dim: np.where(units, -1, np.cumsum(~units) - 1) for dim, units in pads.items()}
    narrowed, changes = _reduced(whole, cuts, Duplicates(classes, {}))
    draft = Draft.of(narrowed.analysis)
    correct_norms(draft, shares)
    return _State(draft.graph.finish()), changes


def _without_duplicates(state: _State) -> tuple[_State, list[Reduction]]:
    """Remove duplicates of units and units that nobody reads; return the dims that had some.

    They are looked for without the cuts of outputs and the fills of normalisers first, then with them.
    """
    whole, cuts = state.uncut()
    draft = Draft.of(whole.analysis)
    fills = unfill(draft)
    attempts = [(_State(draft.graph.finish()), cuts, fills)] if fills else []
    attempts.append((whole, cuts, []))
    if cuts:
        attempts.append((state, [], []))
    for one, own_cuts, own_fills in attempts:
        found = find_duplicates(one.analysis, {cut.node.input[0]: cut.axis for cut in own_cuts}, own_fills)
        if found is not None and found.classes:
            return _reduced(one, own_cuts, found)
    return state, []


def _reduced(state: _State, cuts: list[OutputGather], found: Duplicates) -> tuple[_State, list[Reduction]]:
    """Remove units, put back the cuts, and tell which dims lost some."""
    changes, analysis = [], state.analysis
    for group in inspect_analysis(state.model, analysis).groups:
        new = sum(class_count(found.classes[dim]) if dim in found.classes else dim.size for dim in group.dims)
        if new != group.size:
            changes.append(Reduction(group.name, group.size, new))
    axes = [analysis.axes[cut.node.input[0]][cut.axis] for cut in cuts]
    labels = [axis_labels(axis, found.classes, leaf_set(axis)) for axis in axes]
    again = [replace(cut, places=own[cut.places]) for cut, own in zip(cuts, labels, strict=True)]
    return _State(cut_again(merge_units(state.model, analysis, found), again)), changes
