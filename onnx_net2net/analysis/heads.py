"""Single heads: axes of size 1 between a Reshape that makes one of units and the Reshape that lays them together again.

An attention with one head looks like one with several, with a 1 for their number. If no node between the two Reshapes
broadcasts this axis, and no tensor leaves them with it, it is a dim of one unit, and can grow like a number of heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.singles import Position
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits

_PASSES = traits.BROADCASTING | traits.ALONE | traits.COPIES | traits.CASTS | traits.REPEATS
"""Operators that align the axes of their operands with those of the result at the right."""


def find_heads(analysis: Analysis) -> set[Position]:
    """Return the axes of size 1 (tensor and position) that stand for one head."""
    found: set[Position] = set()
    for node in analysis.nodes:
        if node.op == "Reshape":
            for axis in _made(_shape(analysis, node.inputs[0]), _shape(analysis, node.outputs[0])):
                found |= _region(analysis, node.outputs[0], axis)
    return found


def _shape(analysis: Analysis, tensor: Tensor) -> tuple[int, ...]:
    return analysis.sizes.shape(tensor.name) or ()


def _made(source: Sequence[int], result: Sequence[int]) -> Iterator[int]:
    """Yield the axes of size 1 that a Reshape puts between units."""
    if 0 in source or len(result) < 3:
        return
    before = [math.prod(source[:axis]) for axis, size in enumerate(source) if size == 1]
    for axis in range(1, len(result) - 1):
        if result[axis] == 1 and math.prod(result[:axis]) not in before:
            yield axis


def _region(analysis: Analysis, start: Tensor, axis: int) -> set[Position]:
    """Return where an axis goes, nothing if it does not end in Reshapes alone."""
    found, pending, is_merged = {(start.name, axis)}, [(start, axis)], False
    while pending:
        tensor, axis = pending.pop()
        if tensor.name in analysis.kept or not tensor.outputs:
            return set()
        for node in tensor.outputs:
            if node.op in traits.SHAPES or (node.op in traits.CASTS and node.inputs[0] is not tensor):
                continue  # it reads the shape or the type
            places = _passed(analysis, node, tensor, axis)
            if places is None:
                return set()
            is_merged |= not places
            new = [(result, place) for result, place in places if (result.name, place) not in found]
            found.update((result.name, place) for result, place in new)
            pending += new
    return found if is_merged else set()


def _passed(analysis: Analysis, node: Node, tensor: Tensor, axis: int) -> list[tuple[Tensor, int]] | None:
    """Return where a node hands an axis on to, nowhere if it lays it together with units; None if it does more."""
    source, shape = _shape(analysis, tensor), _shape(analysis, node.outputs[0])
    if node.domain not in DEFAULT_DOMAIN or not shape:
        return None
    if node.op in traits.REFOLDS:
        before = math.prod(source[:axis])
        places = [place for place, size in enumerate(shape) if size == 1 and math.prod(shape[:place]) == before]
        ones = sum(size == 1 and math.prod(source[:place]) == before for place, size in enumerate(source[:axis]))
        return [(node.outputs[0], places[min(ones, len(places) - 1)])] if places else []
    if node.op in traits.ALONG:
        if node.op not in traits.CUTS and node.attrs.get("axis", -1) % len(source) == axis:
            return None
        return [(result, axis) for result in node.outputs] if shape[axis] == 1 else None
    place = _place(analysis, node, tensor, axis, len(source), len(shape))
    is_one = place is not None and 0 <= place < len(shape) and shape[place] == 1
    return [(node.outputs[0], place)] if place is not None and is_one else None


def _place(analysis: Analysis, node: Node, tensor: Tensor, axis: int, rank: int, made: int) -> int | None:
    """Return which of the axes that a node makes an axis of its input is, one of `rank`; None if it is none."""
    place = axis + made - rank
    if node.op in traits.TURNS:
        return list(node.attrs.get("perm", range(rank)[::-1])).index(axis)
    if node.op == "MatMul":
        return place if axis < rank - 2 else None
    if node.op in traits.ROWS and node.inputs[0] is tensor:
        along = node.attrs.get("axis", 0) % rank
        return None if axis == along else axis if axis < along else place
    if node.op.startswith("Reduce"):
        axes = node.attrs.get("axes") or _values(analysis, node)
        stays = made == rank and axes is not None and axis not in [one % rank for one in axes]
        return place if stays else None
    return place if node.op in _PASSES else None


def _values(analysis: Analysis, node: Node) -> list[int] | None:
    """Return the axes that a reduction lists in its second input."""
    known = analysis.sizes.values.get(node.inputs[1].name) if len(node.inputs) > 1 else None
    return None if known is None else [int(value) for value in known.reshape(-1)]
