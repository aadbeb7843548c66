"""Which features of a student are those of its teacher: pairs of modules, and the map between their units.

A loss that compares features (Romero et al., FitNets, ICLR 2015) needs a map from the student's units to the
teacher's. A random one makes the loss start at its worst. Here the map is read off both networks: on the same inputs
each unit of the teacher is found among those of the student, up to a scale. So the loss starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.dims import leaf_set
from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.groups import analysing
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.statedict.carry import match_all, one_each
from onnx_net2net.framework.statedict.match import constants_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.model import Model, load
from onnx_net2net.run.inputs import accepted, draw, input_specs
from onnx_net2net.run.watch import watched
from onnx_net2net.search.folders import write_json
from onnx_net2net.search.growing import SavedNetwork

_CLOSE = 1e-4
"""Two units are the same where their values differ by less than this part of their length."""

_ROWS = 512
"""Values of each unit that are compared, at most."""

_DRAWS = 4


@dataclass(frozen=True)
class Feature:
    """The result of a layer.

    Attributes:
        module: What the state dict calls the layer.
        tensor: The result in the file.
        axis: The axis of its units.
    """

    module: str
    tensor: str
    axis: int


@dataclass(frozen=True)
class Pair:
    """A feature of the teacher, and the same of the student.

    Attributes:
        teacher: Of the teacher.
        student: Of the student.
        index: For each unit of the teacher the unit of the student, int64 [n].
        scale: What that is multiplied by, float64 [n].
    """

    teacher: Feature
    student: Feature
    index: Array
    scale: Array


def write_features(
    teacher: SavedNetwork, student: SavedNetwork, path: Path, patterns: Sequence[str], more: Mapping[str, Any]
) -> None:
    """Write which features of two networks are the same, and where the teacher's state dict is, as JSON.

    Args:
        teacher: The network that the student was made of.
        student: The student, before its training.
        path: The file.
        patterns: Names of the teacher's modules or tensors, with * for anything.
        more: What else the file says, for the training.
    """
    pairs = [
        {
            "teacher": vars(pair.teacher), "student": vars(pair.student),
            "index": pair.index.tolist(), "scale": pair.scale.tolist(),
        }
        for pair in features(teacher, student, patterns)
    ]  # fmt: skip
    write_json(path, {**more, "state_dict": str(teacher.state.absolute()), "pairs": pairs})


def features(teacher: SavedNetwork, student: SavedNetwork, patterns: Sequence[str] = ("*",)) -> list[Pair]:
    """Return the features of two networks that are the same up to scales, in the teacher's order; see `write_features`.

    Raises:
        BadInputError: If one of them does not run.
    """
    old, new = load(teacher.model), load(student.model)
    wanted = [one for one in _features(old, teacher.state) if _is_named(one, patterns)]
    candidates = list(_features(new, student.state))
    before, after = _values(old, new, wanted, candidates)
    found = []
    taken: set[str] = set()
    for feature in wanted:
        # What has the same name comes first, and what is no feature of the teacher's yet.
        order = sorted(candidates, key=lambda c: (c.tensor != feature.tensor, c.tensor in taken))
        pairs = (_pair(feature, other, before[feature.tensor], after[other.tensor]) for other in order)
        pair = next((pair for pair in pairs if pair), None)
        if pair is not None:
            found.append(pair)
            taken.add(pair.student.tensor)
    return found


def _is_named(feature: Feature, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in (feature.module, feature.tensor) for pattern in patterns)


def _features(model: Model, state: Path) -> Iterator[Feature]:
    """Yield the results of the layers of a network, behind their biases."""
    with analysing(model) as (_, analysis):
        layers = LayerGraph(analysis)
    names = _modules(model, state)
    inner = {name for node in model.proto.graph.node for name in node.output}
    for layer in layers.layers.values():
        node = analysis.nodes[layer.number]
        constant = constant_of(node.inputs[layer.weights])
        tensor = _behind_bias(layers, layer)
        axes = analysis.axes.get(tensor, ())
        axis = next((k for k, axis in enumerate(axes) if leaf_set(axis) & layer.makes), None)
        if axis is not None and tensor in inner:
            module = names.get(constant.name, "") if constant is not None else ""
            yield Feature(module or node.name, tensor, axis)


def _modules(model: Model, state: Path) -> dict[str, str]:
    """Return what the state dict calls the module of each constant."""
    constants = constants_of(model)
    matches = one_each(match_all(state_dicts.read(state), constants), constants)
    return {found[0].pieces[0].constant: entry.rpartition(".")[0] for entry, found in matches.items()}


def _behind_bias(layers: LayerGraph, layer: Layer) -> str:
    """Return the tensor that a layer makes, behind its bias where that is added by a node of its own."""
    analysis = layers.analysis
    tensor = analysis.nodes[layer.number].outputs[0]
    reader = analysis.graph.only_reader(tensor)
    if reader is None or reader.op != "Add":
        return str(tensor.name)
    number = layers.number(reader)
    is_bias = any(analysis.is_derived(number, index) for index in range(len(reader.inputs)))
    return str(reader.outputs[0].name if is_bias else tensor.name)


def _values(
    old: Model, new: Model, wanted: Sequence[Feature], candidates: Sequence[Feature]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what the units of the features of both networks are on the same inputs, float64 [values, units]."""
    specs, rng = input_specs(old.proto), np.random.default_rng(0)
    first, second = [f.tensor for f in wanted], [f.tensor for f in candidates]
    inputs = [value.name for value in new.proto.graph.input]
    with watched(old, first, "teacher") as watch, watched(new, second, "student") as other:
        (binding,) = accepted(specs, lambda feeds: watch(feeds, first), rng, wanted=1)
        feeds = [draw(specs, binding, rng) for _ in range(_DRAWS)]
        names = dict(zip([spec.name for spec in specs], inputs, strict=False))
        before = [watch(feed, first) for feed in feeds]
        after = [other({names[name]: value for name, value in feed.items()}, second) for feed in feeds]
    return _rows(wanted, before), _rows(candidates, after)


def _rows(features: Sequence[Feature], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    found = {}
    for feature in features:
        parts = [np.moveaxis(np.asarray(run[feature.tensor], np.float64), feature.axis, -1) for run in runs]
        found[feature.tensor] = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])[:_ROWS]
    return found


def _pair(feature: Feature, other: Feature, before: Array, after: Array) -> Pair | None:
    """Return the pair of two features; None if a unit of the first is none of the second."""
    if len(before) != len(after) or before.shape[1] > after.shape[1]:
        return None
    lengths = [np.linalg.norm(values, axis=0) for values in (before, after)]
    safe = [np.where(length > 0, length, 1.0) for length in lengths]
    alike = (before / safe[0]).T @ (after / safe[1])
    # Copies are equal; the first of them is the unit that was there before.
    index = np.argmax(np.round(np.abs(alike), 6), axis=1)
    rows = np.arange(len(index))
    scale = np.where(lengths[1][index] > 0, alike[rows, index] * lengths[0] / safe[1][index], 1.0)
    off = np.linalg.norm(after[:, index] * scale - before, axis=0)
    if np.any(off > _CLOSE * safe[0]):
        return None
    near = np.abs(scale - 1) < _CLOSE
    return Pair(feature, other, index, np.where(near, 1.0, scale))
