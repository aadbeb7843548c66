"""From the elements of a node's result that are multiplied to those of its input that can be multiplied instead."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.graph import Tensor
from onnx_net2net.rules import traits


@dataclass(frozen=True, eq=False)
class Multiplied:
    """Which elements of a tensor are multiplied, and which axis has the channels."""

    position: int  # the axis of the channels
    mask: np.ndarray  # bool, of the tensor's rank and broadcast to its shape: which elements are multiplied
    even: bool = False  # whether copies of a channel have to get equal shares


def whole_operand(analysis: Analysis, number: int, index: int) -> np.ndarray:
    """Return the mask of all elements of an operand."""
    return np.ones((1,) * len(analysis.input_axes(number, index) or ()), bool)


def multiplied_before(
    analysis: Analysis, dims: set[Dim], number: int, index: int, result: Tensor, part: Multiplied
) -> Multiplied | None:
    """Return what of an input is multiplied in place of a node's result; None where nothing can be.

    Args:
        analysis: The dims.
        dims: Those of the channels.
        number: The node.
        index: The input.
        result: The result.
        part: What of that is multiplied.
    """
    node = analysis.nodes[number]
    axes, shape = analysis.input_axes(number, index), analysis.sizes.shape(result.name)
    if axes is None or shape is None:
        return None
    own = tuple(axis.size for axis in axes)
    if node.op in traits.BROADCASTING:
        return _aligned(part, tuple(shape), own)
    if node.op in traits.TURNS:
        perm = list(node.attrs.get("perm") or range(len(own))[::-1])
        return replace(part, position=perm[part.position], mask=np.transpose(part.mask, np.argsort(perm)))
    picks = _picks(analysis, number)
    if picks is not None:
        before = _unpicked(picks[node.outputs.index(result)], own, part)
        is_alone = len(node.inputs[0].outputs) == 1 or (number, index) in analysis.uses  # each read has its own version
        nobody_reads_the_rest = part.mask.all() and len(picks) == 1 and is_alone
        return replace(before, mask=whole_operand(analysis, number, index)) if nobody_reads_the_rest else before
    if node.op in traits.JOINS:
        return _part(analysis, dims, number, index, part)
    if node.op in traits.IN_PLACE and own == tuple(shape):
        return part
    summed = {position for c in analysis.said[number].contractions for side, position in c.sides if side == index}
    holders = [p for p, axis in enumerate(axes) if dims & leaf_set(axis) and p not in summed]
    if (
        node.op in traits.REFOLDS
    ):  # of several axes with the dims those that are a part of the result's, or have it as one
        start, end = math.prod(shape[: part.position]), math.prod(shape[: part.position + 1])
        bounds = {p: (math.prod(own[:p]), math.prod(own[: p + 1])) for p in holders}
        holders = [p for p, (a, b) in bounds.items() if (start <= a and b <= end) or (a <= start and end <= b)]
    if len(holders) != 1:
        return None
    mask: np.ndarray | None = part.mask
    if node.op in traits.REFOLDS:
        mask = _reshaped(part.mask, tuple(shape), own)
    elif part.mask.size > part.mask.shape[part.position]:
        return None  # other elements on other axes
    else:
        mask = part.mask.reshape([-1 if p == holders[0] else 1 for p in range(len(own))])
    return None if mask is None else replace(part, position=holders[0], mask=mask)


def _aligned(part: Multiplied, shape: tuple[int, ...], own: tuple[int, ...]) -> Multiplied | None:
    """Return where an operand is multiplied that is broadcast to a shape."""
    shift = len(shape) - len(own)
    position = part.position - shift
    if position < 0 or own[position] != shape[part.position] or math.prod(part.mask.shape[:shift]) > 1:
        return None
    mask = part.mask.reshape(part.mask.shape[shift:])
    is_repeated = ((np.array(mask.shape) > 1) & (np.array(own) == 1)).any()
    return None if is_repeated else replace(part, position=position, mask=mask)


def _reshaped(mask: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...]) -> np.ndarray | None:
    """Return what a mask of a tensor is before a Reshape from another shape; None where it is none along axes."""
    masked = [position for position, size in enumerate(mask.shape) if size > 1]
    if not masked:
        return np.ones((1,) * len(own), bool)
    # The shortest run of axes, on both sides, that has the masked ones and as many elements.
    starts = np.cumprod((1, *shape)), np.cumprod((1, *own))
    before = [k for k in range(masked[0] + 1) if starts[0][k] in starts[1]][-1]
    after = next((k for k in range(masked[-1] + 1, len(shape) + 1) if starts[0][k] in starts[1]), None)
    if after is None:
        return None
    begin = int(np.flatnonzero(starts[1] == starts[0][before])[-1])
    end = int(np.flatnonzero(starts[1] == starts[0][after])[0])
    if end <= begin:
        return None
    part = np.broadcast_to(mask.reshape(mask.shape[before:after]), shape[before:after]).reshape(own[begin:end])
    for axis in range(part.ndim):
        first = part.take([0], axis=axis)
        part = first if (part == first).all() else part
    return part.reshape((1,) * begin + part.shape + (1,) * (len(own) - end))


_Pick = dict[int, np.ndarray]
"""For axes of a tensor: which places a node takes, an array of no axis where it takes one and drops the axis."""


def _picks(analysis: Analysis, number: int) -> list[_Pick] | None:
    """Return what each output of a Slice, Split or Gather takes of the input, None for other nodes."""
    node = analysis.nodes[number]
    shape = analysis.sizes.shape(node.inputs[0].name) if node.op in traits.CUTS | traits.ROWS else None
    if shape is None:
        return None
    if node.op in traits.SPLITS:
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        sizes = [(analysis.sizes.shape(tensor.name) or shape)[axis] for tensor in node.outputs]
        if sum(sizes) != shape[axis]:
            return None
        return [{axis: np.arange(stop - size, stop)} for stop, size in zip(np.cumsum(sizes), sizes, strict=True)]
    if node.op in traits.ROWS:
        places = analysis.sizes.values.get(node.inputs[1].name)
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        return None if places is None or places.ndim > 1 else [{axis: places % shape[axis]}]
    known = [_integers(analysis, number, name, index)
             for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)]  # fmt: skip
    starts, ends, axes, steps = known
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    bounds = zip(axes, starts, ends, steps, strict=True)
    return [{axis % len(shape): np.arange(shape[axis])[slice(start, end, step)] for axis, start, end, step in bounds}]


def _integers(analysis: Analysis, number: int, name: str, index: int) -> list[int] | None:
    node = analysis.nodes[number]
    if name in node.attrs:
        return [int(value) for value in node.attrs[name]]
    value = analysis.sizes.values.get(node.inputs[index].name) if index < len(node.inputs) else None
    return None if value is None else [int(entry) for entry in value.reshape(-1)]


def _unpicked(pick: _Pick, own: tuple[int, ...], part: Multiplied) -> Multiplied:
    """Return where a tensor is multiplied in place of what is taken of it."""
    position, mask = part.position, part.mask
    for axis, places in pick.items():
        if places.ndim == 0:
            position += axis <= position
            mask = np.expand_dims(mask, axis)
        elif np.array_equal(places, np.arange(own[axis])):
            continue
        inner = np.repeat(mask, places.size, axis=axis) if mask.shape[axis] == 1 else mask
        mask = np.zeros((*inner.shape[:axis], own[axis], *inner.shape[axis + 1 :]), bool)
        for k, target in enumerate(places.reshape(-1)):
            np.moveaxis(mask, axis, 0)[target] |= np.moveaxis(inner, axis, 0)[k]
    return replace(part, position=position, mask=mask)


def read_by(analysis: Analysis, number: int, index: int) -> np.ndarray:
    """Return the mask of the elements of an operand that a node reads."""
    picks, all_ = _picks(analysis, number) if index == 0 else None, whole_operand(analysis, number, index)
    if picks is None or len(picks) > 1:
        return all_
    own = tuple(analysis.sizes.shape(analysis.nodes[number].inputs[0].name) or ())
    dropped = sum(places.ndim == 0 for places in picks[0].values())
    return _unpicked(picks[0], own, Multiplied(0, np.ones((1,) * (len(own) - dropped), bool))).mask


def _part(analysis: Analysis, dims: set[Dim], number: int, index: int, part: Multiplied) -> Multiplied | None:
    """Return where one of the parts of a Concat is multiplied; nowhere where it has none of the channels."""
    node = analysis.nodes[number]
    sizes = [[axis.size for axis in analysis.input_axes(number, i) or ()] for i in range(len(node.inputs))]
    rank = len(sizes[index])
    along = int(node.attrs.get("axis", 1)) % rank
    if any(len(own) != rank for own in sizes):
        return None
    axes = analysis.input_axes(number, index) or ()
    if not dims & leaf_set(axes[part.position]):
        return replace(part, mask=np.zeros((1,) * rank, bool)) if along == part.position else None
    if part.mask.shape[along] == 1:
        return part
    start = sum(own[along] for own in sizes[:index])
    return replace(part, mask=part.mask.take(range(start, start + sizes[index][along]), axis=along))
