"""Where a student leaves its teacher: the first of the matched layers that makes something else.

Names say nothing of this, as the two were exported apart. So the results of matched layers are compared, in order, by
the maps by which their axes have grown.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_net2net.algebra.dims import Axes
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Map, compose
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.graph import Node
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.fit import Fit
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Network, Networks, Obstacle
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import Feeds, accepted, draw, input_specs
from onnx_net2net.run.watch import Watch, watched

_NEAR = 1e-3
"""How far results that are the same may be apart, relative to the largest; those of other functions are further."""

_UNTOLD = traits.VIEWS | traits.COPIES | traits.CASTS | traits.SHAPES | traits.CONSTANTS
"""Operators that make no other numbers."""


@dataclass(frozen=True)
class MatchedLayers:
    """Two layers that correspond.

    Attributes:
        layers: The teacher's and the target's.
        tensors: What the two make: a tensor of the teacher, and one of the target.
        operators: What the teacher and the target have between the layers in front of it and it, with their numbers.
        nodes: The tensors that the teacher's nodes there make.
        axes: The axes of the teacher's tensor.
    """

    layers: tuple[Module, Module]
    tensors: tuple[str, str]
    operators: tuple[Counter[str], Counter[str]]
    nodes: frozenset[str]
    axes: Axes


def matched_layers(networks: Networks, found: Alignment) -> list[MatchedLayers]:
    """Return the layers that correspond, in the order of the teacher; called before the teacher grows."""
    pairs = sorted(
        (pair for pair in found.pairs if pair[0].is_layer and pair[1].is_layer), key=lambda pair: pair[0].end
    )
    ends = [{module.end for module in modules} for modules in zip(*pairs, strict=True)]
    matched = []
    for pair in pairs:
        sides = list(zip(networks, pair, ends, strict=True))
        tensors = [str(network.nodes[module.end].outputs[0].name) for network, module, _ in sides]
        between = [list(_between(network, module, stop)) for network, module, stop in sides]
        operators = [Counter(node.op for node in nodes if node.op not in _UNTOLD) for nodes in between]
        names = frozenset(str(node.outputs[0].name) for node in between[0])
        axes = networks.teacher.analysis.axes.get(tensors[0], ())
        matched.append(MatchedLayers(pair, (tensors[0], tensors[1]), (operators[0], operators[1]), names, axes))
    return matched


def _between(network: Network, module: Module, ends: Collection[int]) -> Iterator[Node]:
    """Yield the nodes from which a layer reads, back to other matched layers."""
    pending, seen = [network.nodes[module.node]], set()
    while pending:
        for tensor in pending.pop().inputs:
            for node in tensor.inputs:
                number = network.numbers[id(node)]
                if number not in seen and number not in ends:
                    seen.add(number)
                    yield node
                    pending.append(node)


@dataclass(frozen=True)
class Likeness:
    """What corresponds to a tensor of the teacher in the student, whose tensors have other names.

    Attributes:
        name: The student's tensor.
        places: For each axis the places of the teacher's units in it; None where nothing has grown.
    """

    name: str
    places: list[Array | None]


def likenesses(matched: Sequence[MatchedLayers], fit: Fit) -> dict[str, Likeness]:
    """Return what corresponds to the results of matched layers, by the names of the teacher's.

    Args:
        matched: The layers that correspond.
        fit: How the teacher has grown.
    """
    found = {}
    for match in _comparable(matched, fit):
        maps = [compose(axis, fit.growth) for axis in match.axes]
        places = [None if map.is_identity else _first_copies(map) for map in maps]
        if all(one is None or len(one) == map.old for one, map in zip(places, maps, strict=True)):
            found[match.tensors[0]] = Likeness(match.tensors[1], places)
    return found


def _first_copies(map: Map) -> Array:
    """Return where the first copy of each of the teacher's units is, as far as they are there."""
    copies = np.flatnonzero(map.kind == 0)
    return copies[np.unique(map.index[copies], return_index=True)[1]]


def _comparable(matched: Sequence[MatchedLayers], fit: Fit) -> list[MatchedLayers]:
    """Return the layers that make the same numbers in both networks."""
    changed = fit.scaled, fit.factors.keys() | fit.offsets.keys()
    return [match for match in matched if match.axes and not any(
        one.uses & uses for one, uses in zip(match.layers, changed, strict=True))]  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """Where and why a student leaves its teacher.

    Attributes:
        obstacle: The place, and the reason as far as the operators there tell.
        around: What the teacher's nodes around that place make.
        is_told: Whether the operators there differ, so that they are the reason.
    """

    obstacle: Obstacle
    around: frozenset[str] = frozenset()
    is_told: bool = False


def explained(teacher: Model, student: Model, matched: Sequence[MatchedLayers], fit: Fit) -> Explanation:
    """Return where and why a student leaves its teacher.

    Args:
        teacher: The teacher.
        student: The filled target.
        matched: The layers that correspond.
        fit: How the teacher has grown.
    """
    seen, last = _comparable(matched, fit), ""
    with contextlib.suppress(BadInputError):
        for match, before, after in zip(seen, *_results(teacher, student, seen), strict=True):
            if not _is_same(before, after, [compose(axis, fit.growth) for axis in match.axes]):
                return Explanation(_obstacle(match, last), match.nodes, match.operators[0] != match.operators[1])
            last = match.layers[1].name
    where = f"behind {last}, up to which all matched layers agree," if last else "somewhere"
    return Explanation(Obstacle("the outputs", f"{where} the student computes something else"))


def _obstacle(match: MatchedLayers, last: str) -> Obstacle:
    more = [one - other for one, other in (match.operators, match.operators[::-1])]
    told = [f"the {whose} has {', '.join(sorted(own.elements()))}"
            for whose, own in zip(("teacher", "target"), more, strict=True) if own]  # fmt: skip
    why = " and ".join(told) if told else "sizes or numbers there are not the same"
    where = f"behind {last}, where both agree," if last else "from the inputs on"
    return Obstacle(match.layers[1].name, f"{where} it gets something else than in the teacher: {why}")


def _results(teacher: Model, student: Model, matched: Sequence[MatchedLayers]) -> Iterator[list[Array]]:
    """Yield what the layers of a teacher and of a student make of the same inputs.

    Raises:
        BadInputError: If one of the two does not run.
    """
    given: list[Array] = []
    for model, side in ((teacher, 0), (student, 1)):
        names = [match.tensors[side] for match in matched]
        specs, outputs = input_specs(model.proto), [value.name for value in model.proto.graph.output]
        with watched(model, names, ("teacher", "student")[side]) as watch:
            if not given:
                rng = np.random.default_rng(0)
                (binding,) = accepted(specs, partial(_run, watch, outputs), rng, wanted=1)
                given = list(draw(specs, binding, rng).values())
            found = watch(dict(zip([spec.name for spec in specs], given, strict=True)), names)
        yield [found[name] for name in names]


def _run(watch: Watch, names: Sequence[str], feeds: Feeds) -> object:
    return watch(feeds, names)


def _is_same(one: Array, other: Array, maps: Sequence[Map]) -> bool:
    """Tell whether a tensor of the student holds what the teacher's does; units that are no copies do not count."""
    wanted, found = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if not wanted.ndim == found.ndim == len(maps):
        return True  # laid out in another way, which says nothing
    for axis, map in enumerate(maps):
        if (map.old, map.new) == (wanted.shape[axis], found.shape[axis]):
            copies = np.flatnonzero(map.kind == 0)
            wanted, found = np.take(wanted, map.index[copies], axis), np.take(found, copies, axis)
    if wanted.shape != found.shape:
        return True
    return bool(np.abs(wanted - found).max(initial=0) <= _NEAR * np.abs(wanted).max(initial=0))
