"""How well trained networks can fill a target: tells which of several to transfer from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.groups import paused_gc
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.errors import BadInputError, Net2NetError, RefusedError
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.transfer.align import Alignment, align
from onnx_net2net.operations.transfer.dpiat import dpiat
from onnx_net2net.operations.transfer.dpiat.elements import Scored
from onnx_net2net.operations.transfer.networks import Network
from onnx_net2net.operations.transfer.transfer import transfer
from onnx_net2net.run.inputs import accepted, draw, input_specs
from onnx_net2net.run.session import LEVELS, Runner

Measure: TypeAlias = Literal["kept", "filled", "dpiat", "agreement"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

SAMPLES = 8
"""Generated inputs on which answers are compared."""


@dataclass(frozen=True)
class Similarity:
    """How well one source can fill the target. All measures go from 0 to 1.

    Attributes:
        name: The name of the source's file, or of its graph.
        kept: The fraction of the source's parameters that have a place in the target. It is 1 if all have one.
        filled: The fraction of the target's parameters that the source fills.
        dpiat: DPIAT's similarity, which is symmetric; see `network_similarity`. None if there are too many layers.
        agreement: How much the filled target answers like the source; see `agreement`. None if another measure was
            asked for, or the two have different inputs or outputs.
    """

    name: str
    kept: float
    filled: float
    dpiat: float | None
    agreement: float | None = None


def similarity(
    target: str | os.PathLike[str] | onnx.ModelProto | Model,
    sources: Iterable[str | os.PathLike[str] | onnx.ModelProto | Model],
    *,
    measure: Measure = "agreement",
) -> list[Similarity]:
    """Rank trained networks by how well they can fill a target.

    Args:
        target: The network to fill: a path, a model in memory or a loaded model. Its weights do not matter.
        sources: The trained networks, likewise.
        measure: The attribute of `Similarity` to rank by; ties are ranked by `filled`. "agreement" predicts best what a
            target gains by the transfer (tools/experiments/transfer.py); for it each transfer is done and run. The
            others only look at the graphs; "dpiat" predicts best among these.

    Returns:
        One `Similarity` for each source, the best first.

    Raises:
        BadInputError: A model cannot be used, or there is no such measure.
        RefusedError: There are too many layers for "dpiat".
    """
    if measure not in MEASURES:
        raise BadInputError(f"there is no measure {measure!r}; there are {', '.join(MEASURES)}")
    sink = load(target)
    found = []
    with paused_gc():
        wanted = Network(sink)
        for source in map(load, sources):
            given = Network(source)
            alike = None
            common = overlap(given.analysis, wanted.analysis, align(given.segments, wanted.segments))
            kept, filled = (min(1.0, common / max(_elements(network), 1)) for network in (given, wanted))
            with nullcontext() if measure == "dpiat" else suppress(RefusedError):  # too many layers
                alike = dpiat.network_similarity(*dpiat.elements_of(Scored(given), Scored(wanted)))
            measured = agreement(source, sink) if measure == "agreement" else None
            name = source.path.name if source.path is not None else source.proto.graph.name
            found.append(Similarity(name, kept, filled, alike, measured))
    return sorted(found, key=lambda one: (getattr(one, measure) or 0.0, one.filled), reverse=True)


def _elements(network: Network) -> int:
    """Return the number of the parameters, all constants of floats that are more than single numbers."""
    constants = [network.original(uses[0]) for uses in network.readings.values()]
    return sum(math.prod(one.shape) for one in constants if network.is_float(one) and math.prod(one.shape) > 1)


def overlap(source: Analysis, target: Analysis, alignment: Alignment) -> int:
    """Return how many elements of the source have a place in the target.

    For two corresponding tensors it is the product of the smaller sizes along each axis.

    Args:
        source: The dims of the source.
        target: The dims of the target.
        alignment: Which parameters correspond.
    """
    common: dict[int, int] = {}
    for old, new in alignment.parameters:
        constant = id(target.uses[new.use].constant)  # those that are tied count once
        shapes = [[axis.size for axis in axes] for axes in (old.axes(source), new.axes(target))]
        common[constant] = max(common.get(constant, 0), _common(*shapes))
    return sum(common.values())


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many elements two shapes have in common."""
    if len(one) != len(other):
        one, other = ([size for size in shape if size > 1] for shape in (one, other))
    return math.prod(map(min, one, other)) if len(one) == len(other) else 0


def agreement(source: Model, target: Model) -> float | None:
    """Fill a target from a source, and return how much it answers like the source, from 0 to 1.

    Both get the same generated inputs. For each output the mean over the inputs is subtracted, and the cosine of the
    two results is taken. The agreement is the average of these cosines, or 0 if that is negative.

    Returns:
        The agreement, or None where the target cannot be filled, or takes or returns other shapes.
    """
    try:
        student = transfer(source, target, prove=False).comparable
    except Net2NetError:
        return None
    specs, rng = input_specs(source.proto), np.random.default_rng(0)
    with source.on_disk() as one, student.on_disk() as other:
        try:
            runners = [Runner(path, LEVELS[-1]) for path in (one, other)]
            binding = accepted(specs, runners[0], rng, wanted=1)[0]
            inputs = [draw(specs, binding, rng) for _ in range(SAMPLES)]
            old, new = ([runner(feeds) for feeds in inputs] for runner in runners)
        except Exception:  # onnxruntime's errors have no base of their own; sizes that only one of the two takes
            return None
    cosines = []
    for name in old[0]:
        answers = [np.stack([answer[name] for answer in network]).astype(np.float64) for network in (old, new)]
        if answers[0].shape != answers[1].shape:
            return None
        cosines.append(_cosine(*answers))
    return max(0.0, float(np.mean(cosines)))


def _cosine(one: Array, other: Array) -> float:
    """Return the cosine of two arrays of (inputs, ...) around their means over the inputs."""
    one, other = one - one.mean(0), other - other.mean(0)
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum() / length) if length > 0 and math.isfinite(length) else 0.0
