"""The inverse of growing: remove what a network has more than once, or for nothing.

Identity layers go, exact duplicates of units become one, and units that nobody reads are dropped, so that
`narrow(widen(m))` and `narrow(deepen(m))` have the size of m again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import onnx

from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.analysis.groups import inspect_analysis, paused_gc
from onnx_net2net.analysis.inference import Analysis, infer
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.model.history import HISTORY, fingerprint, history
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.narrow.duplicates import Duplicates, axis_labels, find_duplicates, merge
from onnx_net2net.operations.narrow.identities import remove_identities
from onnx_net2net.operations.narrow.padding import find_pads, shares_of
from onnx_net2net.rewrite.norms import Fill, correct_norms, unfill
from onnx_net2net.rewrite.outputs import Cut, cut_again, uncut


@dataclass(frozen=True)
class Reduction:
    """What became of one dim."""

    name: str
    old: int
    new: int


@dataclass(frozen=True)
class Narrowing:
    """A model without what it had more than once.

    Attributes:
        teacher: The model that was narrowed.
        student: The result; its weights are computed when it is saved or run.
        removed: The layers, activations and sums that were removed.
        changes: The dims that lost units.
    """

    teacher: Model
    student: Model
    removed: tuple[str, ...]
    changes: tuple[Reduction, ...]


def narrow(teacher: str | os.PathLike[str] | onnx.ModelProto | Model) -> Narrowing:
    """Remove identity layers, exact duplicates of units and units that nobody reads.

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
        flat, removed, changes = opened.model, list[str](), dict[str, Reduction]()
        while True:
            without, gone = _without_layers(flat)
            plain, unpadded = _without_pads(without)
            flat, merged = _without_duplicates(plain)
            removed += gone
            for step in (*unpadded, *merged):
                changes[step.name] = Reduction(step.name, changes.get(step.name, step).old, step.new)
            if not gone and not unpadded and not merged:
                break
        if not removed and not changes:
            raise RefusedError("there is nothing to remove: no duplicate or unread units, and no identity layers")
        record = {
            "operation": "narrow", "version": version("onnx-net2net"), "teacher": fingerprint(model), **opened.notes(),
        }  # fmt: skip
        metadata = {HISTORY: json.dumps([*history(model), record])}
        student = opened.close(infer(flat).draft.finish(metadata))
    return Narrowing(model, student, tuple(removed), tuple(changes.values()))


def _without_layers(model: Model) -> tuple[Model, list[str]]:
    """Remove identity layers; return what they were called."""
    analysis = infer(model)
    removed = remove_identities(analysis, model.proto)
    return (analysis.draft.finish() if removed else model), removed


def _without_pads(model: Model) -> tuple[Model, list[Reduction]]:
    """Remove units that only pad what normalisers read; return the dims that had some."""
    whole, cuts = uncut(model)
    analysis = infer(whole)
    pads = find_pads(analysis, {cut.node.input[0]: (cut.axis, cut.places) for cut in cuts})
    if not pads:
        return model, []
    shares = shares_of(analysis, pads)
    classes = {dim: np.where(units, -1, np.cumsum(~units) - 1) for dim, units in pads.items()}
    narrowed, changes = _reduced(whole, analysis, cuts, Duplicates(classes, {}))
    analysis = infer(narrowed)
    correct_norms(analysis, shares)
    return analysis.draft.finish(), changes


def _without_duplicates(model: Model) -> tuple[Model, list[Reduction]]:
    """Remove duplicates of units and units that nobody reads; return the dims that had some.

    They are looked for without the cuts of outputs and the fills of normalisers first, then with them.
    """
    whole, cuts = uncut(model)
    plain, fills = _without_fills(whole)
    attempts = [(plain, cuts, fills)] * bool(fills) + [(whole, cuts, [])] * bool(cuts) + [(model, [], [])]
    for attempt in attempts:
        narrowed, changes = _merged(*attempt)
        if changes:
            return narrowed, changes
    return model, []


def _without_fills(model: Model) -> tuple[Model, list[Fill]]:
    """Take off what normalisers were filled up with; return what that was."""
    analysis = infer(model)
    fills = unfill(analysis)
    return (analysis.draft.finish() if fills else model), fills


def _merged(model: Model, cuts: list[Cut], fills: list[Fill]) -> tuple[Model, list[Reduction]]:
    """Remove duplicates from a model whose cuts and fills were taken off, and put the cuts back."""
    analysis = infer(model)
    found = find_duplicates(analysis, {cut.node.input[0]: cut.axis for cut in cuts}, fills)
    if found is None or not found.classes:
        return model, []
    return _reduced(model, analysis, cuts, found)


def _reduced(model: Model, analysis: Analysis, cuts: list[Cut], found: Duplicates) -> tuple[Model, list[Reduction]]:
    """Remove units, put back the cuts, and tell which dims lost some."""
    changes = []
    for group in inspect_analysis(model, analysis).groups:
        new = sum(int(found.classes[dim].max()) + 1 if dim in found.classes else dim.size for dim in group.dims)
        if new != group.size:
            changes.append(Reduction(group.name, group.size, new))
    axes = [analysis.axes[cut.node.input[0]][cut.axis] for cut in cuts]
    labels = [axis_labels(axis, found.classes, leaf_set(axis)) for axis in axes]
    again = [replace(cut, places=own[cut.places]) for cut, own in zip(cuts, labels, strict=True)]
    return cut_again(merge(model, analysis, found), again), changes
