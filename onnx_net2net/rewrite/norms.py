"""Normalisers at widths that are no multiples: padding that they do not notice, or whole multiples for them alone.

A statistic over some units copied more often than others is another statistic. Where padding units stand beside whole
copies, the scale and the epsilon of the node make up for their share. Where copies stand beside single units, the node
gets all that it reads filled up to the next whole multiple, and its result is cut again: in its statistic a unit
without a copy counts as often as one with its copy.
"""

from __future__ import annotations

import numpy as np

from onnx_net2net.algebra.dims import Axis, Concat, Dim, Product, leaves, resolve
from onnx_net2net.algebra.maps import Filler, Growth, new_size
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.graph import Node, Tensor, Variable

Corrections = dict[tuple[int, int], tuple[float, Filler]]
"""For the scale and shift of normalisers and other scales (node, input): a factor, and what padding units have."""

Times = dict[Dim, int]
"""How often each unit of a dim counts in a statistic."""


def adapt_normalisers(analysis: Analysis, growth: Growth, *, keep_epsilon: bool = False) -> Corrections:
    """Make normalisers not notice padding: a mean square over more units is smaller by their share.

    With share s of units that are copies, epsilon and the square of the scale shrink by s (growth-math section 2).

    Args:
        analysis: The dims.
        growth: How they grow.
        keep_epsilon: Whether what is normalised is scaled instead (see `onnx_net2net.rewrite.scaling`).

    Returns:
        What becomes of the scale and shift.
    """
    corrections: Corrections = {}
    for number, said in analysis.said.items():
        for statistic in said.statistics:
            padded = [
                growth[d] for axis in statistic.axes for d in leaves(axis) if d in growth and growth[d].kind.any()
            ]
            if not padded or statistic.law is None:
                continue
            (map,) = padded
            share = float((map.kind == 0).mean())
            node = analysis.nodes[number]
            if not keep_epsilon:
                node.attrs["epsilon"] = float(node.attrs.get("epsilon", statistic.epsilon)) * share
                analysis.note(f"epsilon in {node.op}", node)
            if statistic.scale is not None:
                corrections[number, statistic.scale] = share**0.5, "copy"
            if statistic.shift is not None:
                corrections[number, statistic.shift] = 1.0, "zero"
    return corrections


# --- Whole multiples for the node alone ----------------------------------------------------------------------


def fill_up(analysis: Analysis, growth: Growth, opset: int) -> None:
    """Fill up what normalisers of unequally many copies read, to the next whole multiple, and cut what they make."""
    for number, said in analysis.said.items():
        times: Times = {}
        for axis in (axis for statistic in said.statistics for axis in statistic.axes):
            times.update(_times(axis, growth))
        odd = {dim for dim, often in times.items() if new_size(dim, growth) != often * dim.size}
        if odd:
            _surround(analysis, number, times, odd, growth, opset)


def _times(axis: Axis, growth: Growth) -> Times:
    """Return how often the units of a normalised axis are to count: parts that are laid end to end equally often."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        return {dim: often for part in axis.parts for dim, often in _times(part, growth).items()}
    dims = list(leaves(axis))
    if any(dim in growth and growth[dim].kind.any() for dim in dims):
        return {}  # padding, which the node does not notice
    return dict.fromkeys(dims, max(-(-new_size(dim, growth) // dim.size) for dim in dims))


def _surround(analysis: Analysis, number: int, times: Times, odd: set[Dim], growth: Growth, opset: int) -> None:
    """Give a node whole multiples: fill up its inputs, and cut its outputs."""
    node, draft = analysis.nodes[number], analysis.draft
    analysis.note(f"nodes around {node.op}", node)

    def emit(kind: str, inputs: list[Tensor], output: Variable | None, **attrs: object) -> Variable:
        name = draft.unique_name(f"{node.name or node.outputs[0].name}_{kind}")
        result = Variable(draft.unique_name(f"{name}_out")) if output is None else output
        draft.graph.nodes.append(Node(kind, name, dict(attrs), inputs, [result]))
        return result

    def take(source: Tensor, places: np.ndarray, axis: int, output: Variable | None = None) -> Variable:
        """Take places along an axis; a run of them is a Slice, which is faster than a Gather."""
        start, stop = int(places[0]), int(places[-1]) + 1
        if not np.array_equal(places, np.arange(start, stop)):
            return emit("Gather", [source, draft.constant("places", places)], output, axis=axis)
        if opset < 10:
            return emit("Slice", [source], output, starts=[start], ends=[stop], axes=[axis])
        bounds = [draft.constant(name, np.array([value])) for name, value in
                  (("start", start), ("stop", stop), ("axis", axis))]  # fmt: skip
        return emit("Slice", [source, *bounds], output)

    for index, tensor in enumerate(node.inputs):
        for position, axis in enumerate(analysis.input_axes(number, index) or ()):
            if odd & set(leaves(axis)):
                places = _filled(axis, times, growth)
                size = new_size(axis, growth)
                if np.array_equal(places[:size], np.arange(size)):
                    node.inputs[index] = emit(
                        "Concat", [tensor, take(tensor, places[size:], position)], None, axis=position
                    )
                else:
                    node.inputs[index] = take(tensor, places, position)
                tensor = node.inputs[index]
    for index, tensor in enumerate(node.outputs):
        for position, axis in reversed(list(enumerate(analysis.axes.get(tensor.name, ())))):
            if odd & set(leaves(axis)):
                whole = Variable(draft.unique_name(f"{tensor.name}_whole"), dtype=tensor.dtype)
                take(whole, _own(axis, times, growth), position, tensor)
                node.outputs[index] = tensor = whole


def _filled(axis: Axis, times: Times, growth: Growth) -> np.ndarray:
    """Return where the units of an axis that is filled up are in the student's; copies lie one round after another."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        size = new_size(axis, growth)
        places = np.arange(times[axis] * axis.size if axis in times else size)
        return np.where(places < size, places, places % axis.size)
    parts = [_filled(part, times, growth) for part in axis.parts]
    return _composed(axis, parts, [new_size(part, growth) for part in axis.parts])


def _own(axis: Axis, times: Times, growth: Growth) -> np.ndarray:
    """Return where the student's units of an axis are in the one that is filled up."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return np.arange(new_size(axis, growth))
    parts = [_own(part, times, growth) for part in axis.parts]
    return _composed(axis, parts, [len(_filled(part, times, growth)) for part in axis.parts])


def _composed(axis: Product | Concat, parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Return places on an axis from those on its parts, which have so many units."""
    if isinstance(axis, Concat):
        offsets = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([part + offset for part, offset in zip(parts, offsets, strict=True)])
    places = parts[0]
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        places = (places[:, None] * size + part).reshape(-1)
    return places
