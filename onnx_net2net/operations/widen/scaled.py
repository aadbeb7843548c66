"""Growth that a class follows because weights are scaled for it: padded streams, and numbers that it computes anew.

A class keeps its epsilons. So a stream that its norms read can be padded where all that makes the stream can be scaled
instead (see `onnx_net2net.rewrite.scaling`). And a class computes numbers like `sqrt(hidden)` from its new sizes. Where
weights alone make what such a number scales, they are scaled by the ratio of the old number to the new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.algebra.maps import Growth, new_size, pad
from onnx_net2net.analysis.groups import Group, Inspection
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.multipliers import frozen_constants
from onnx_net2net.analysis.padding import State, paddable, pads_of
from onnx_net2net.analysis.ties import Ties
from onnx_net2net.analysis.weighing import scalable, weighed_axes
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Place
from onnx_net2net.rewrite.scaling import Scaling, rescale
from onnx_net2net.rules import traits


def allow_padding(analysis: Analysis, inspection: Inspection, ties: Ties) -> None:
    """Let groups have any size that padding gives them, if scaling the rest makes that exact."""
    ties.tied.update(_tied(analysis))
    known = paddable(analysis)
    for group in inspection.groups:
        if group.reason is None and group.is_uniform and len(group.dims) == 1:
            group.padding = _padding(analysis, group, known, ties)


def _tied(analysis: Analysis) -> Iterator[tuple[Place, Place]]:
    """Yield the reads of weights that a table is, too, with that of the table; all have to keep equal values."""
    tables = {id(use.constant): place for place, use in analysis.uses.items()
              if (analysis.nodes[place[0]].op, place[1]) in traits.TABLES}  # fmt: skip
    for place, use in analysis.uses.items():
        if id(use.constant) in tables:
            yield place, tables[id(use.constant)]


def _padding(analysis: Analysis, group: Group, known: dict[Dim, State], ties: Ties) -> State | None:
    (dim,) = group.dims
    ways: tuple[State, ...] = (known[dim],) if dim in known else ("zero", "mean")
    for held in ways:
        with contextlib.suppress(RefusedError):
            rescale(analysis, {dim: pad(dim.size, dim.size + 1, held)}, {dim: held}, ties)
            return held
    return None


def scaling_for(analysis: Analysis, growth: Growth, ties: Ties) -> Scaling | None:
    """Return the factors of weights; None if nothing is padded and no number of the class changes.

    Raises:
        RefusedError: A node between two normalisations cannot be scaled.
    """
    pads = pads_of(growth)
    scaling = rescale(analysis, growth, pads, ties)
    for place, factor in _compensations(analysis, growth, ties):
        scaling.factors[place] = scaling.factors.get(place, 1.0) * factor
    return scaling if pads or scaling.factors else None


def _compensations(analysis: Analysis, growth: Growth, ties: Ties) -> Iterator[tuple[Place, float]]:
    """Yield the weights in front of numbers that a class computes from sizes which grow, and the factor of each."""
    for constant in frozen_constants(analysis):
        number, operand = constant.operand
        size = new_size(constant.axis, growth)
        if size == constant.axis.size or operand < 0:
            continue
        factor = (constant.axis.size / size) ** constant.power
        for place in scalable(analysis, number, operand, constant.axis) or ():
            yield from _with_tied(analysis, place, factor, ties)


def _with_tied(analysis: Analysis, place: Place, factor: float, ties: Ties) -> Iterator[tuple[Place, float]]:
    """Yield a weight in all places where it is read; in front of a tied head the factor is undone."""
    sums = weighed_axes(analysis)
    for other, use in analysis.uses.items():
        if use.constant is not analysis.uses[place].constant:
            continue
        yield other, factor
        for number in set(sums.get(other, {}).values()) if other != place else ():
            for scale in ties.rescaled.get(number, ()):
                yield scale, 1 / factor
