"""Normalisers (LayerNormalization and its kin) at widths that are no multiples of the old one.

If some units were copied more often than others, the statistic would change. There are two ways out. *Padding*: beside
whole copies of all units there are padding units that the statistic does not notice. The scale and the epsilon of the
node are corrected for their share (`adapt_norms`; `correct_norms` undoes it). *Filling*: some units have a copy and
others have none. The input of the node is filled up to the next whole multiple by the units without a copy, and its
result is cut again (`fill_norms`, `unfill`). So all units count equally often in the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, Product, leaves, resolve
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import Numbers, axis_numbers
from onnx_net2net.algebra.weights import Filler
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.edit import Version, Writer, assign, drop_unread
from onnx_net2net.graph.graph import Node, Place, Tensor, Variable
from onnx_net2net.graph.walk import constant_of, made_by
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rules import traits

_TAKES = traits.CUTS - traits.SPLITS | traits.ROWS
"""What cuts a result that was filled up."""

Times = dict[Dim, int]
"""How often each unit of a dim counts in a statistic."""


# --- Padding -------------------------------------------------------------------------------------------------


def adapt_norms(rewriting: Rewriting, *, keep_epsilon: bool = False) -> tuple[dict[Place, float], dict[Place, Filler]]:
    """Correct normalisers for padding: padding units make the variance or mean square smaller.

    If the fraction s of the units are copies, epsilon and the square of the scale are multiplied by s (growth-math
    section 2).

    Args:
        rewriting: The graph.
        keep_epsilon: Whether the input of the normaliser is scaled instead (see `onnx_net2net.rewrite.scaling`).

    Returns:
        For the scales and shifts of the nodes: their factors, and their values for padding units.
    """
    factors: dict[Place, float] = {}
    fillers: dict[Place, Filler] = {}
    growth = rewriting.growth
    for number, said in rewriting.analysis.said.items():
        for statistic in said.statistics:
            grown = {dim for axis in statistic.axes for dim in rewriting.grown(axis)}
            padded = [dim for dim in grown if growth[dim].kind.any()]
            if not padded or statistic.law is None:
                continue
            (dim,) = padded
            share = float((growth[dim].kind == 0).mean())
            node = rewriting.nodes[number]
            if not keep_epsilon:
                node.attrs["epsilon"] = float(node.attrs.get("epsilon", statistic.epsilon)) * share
                rewriting.note(f"epsilon in {node.op}", node)
            if statistic.scale is not None:
                factors[number, statistic.scale], fillers[number, statistic.scale] = share**0.5, "copy"
            if statistic.shift is not None:
                fillers[number, statistic.shift] = "zero"
    return factors, fillers


def correct_norms(draft: Draft, shares: Mapping[str, float]) -> None:
    """Undo `adapt_norms` when the padding is gone.

    Without padding a statistic grows by 1 / s, and so do epsilon and the square of the scale.

    Args:
        draft: The model without padding.
        shares: For the results of normalisers: which part s of the units that they read was no padding.
    """
    for number, said in draft.said.items():
        node = draft.nodes[number]
        share = shares.get(node.outputs[0].name, 1.0)
        for statistic in said.statistics if share < 1 else ():
            node.attrs["epsilon"] = float(node.attrs.get("epsilon", statistic.epsilon)) / share
            assert statistic.scale is not None
            constant = draft.uses[number, statistic.scale].constant
            read, factor = draft.graph.reader(constant), share**-0.5

            def compute(read: Callable[[], Array] = read, factor: float = factor) -> Array:
                values = read()
                return (values.astype(np.float64) * factor).astype(values.dtype)

            version = Version([(node, statistic.scale)], tuple(constant.shape), compute)
            assign(draft.graph, constant, [Version(()), version])  # other readers keep theirs


# --- Whole multiples -----------------------------------------------------------------------------------------


def fill_norms(rewriting: Rewriting, opset: int) -> None:
    """Let normalisers of unequally many copies read the next whole multiple, and cut what they make."""
    for number, said in rewriting.analysis.said.items():
        times: Times = {}
        for axis in (axis for statistic in said.statistics for axis in statistic.axes):
            times.update(_times(rewriting, axis))
        odd = {dim for dim, often in times.items() if rewriting.size(dim) != often * dim.size}
        if odd:
            _surround(rewriting, number, times, odd, opset)


def _times(rewriting: Rewriting, axis: Axis) -> Times:
    """Return how often the units of a normalised axis are to count: parts that are laid end to end equally often."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        return {dim: often for part in axis.parts for dim, often in _times(rewriting, part).items()}
    dims = list(leaves(axis))
    if any(rewriting.growth[dim].kind.any() for dim in rewriting.grown(axis)):
        return {}  # padding, which the node does not notice
    return dict.fromkeys(dims, max(-(-rewriting.size(dim) // dim.size) for dim in dims))


def _surround(rewriting: Rewriting, number: int, times: Times, odd: set[Dim], opset: int) -> None:
    """Give a node whole multiples: fill up its inputs, and cut its outputs."""
    node, graph = rewriting.nodes[number], rewriting.graph
    rewriting.note(f"nodes around {node.op}", node)
    op = Writer(graph, f"{node.name or node.outputs[0].name}_")

    def take(source: Tensor, places: np.ndarray, axis: int, output: Variable | None = None) -> Variable:
        """Take places along an axis; a run of them is a Slice, which is faster than a Gather."""
        start, stop = int(places[0]), int(places[-1]) + 1
        if not np.array_equal(places, np.arange(start, stop)):
            return op.Gather(source, graph.constant("places", places), result=output, axis=axis)
        if opset < 10:
            return op.Slice(source, result=output, starts=[start], ends=[stop], axes=[axis])
        inputs = [graph.constant(name, np.array([value])) for name, value in
                  (("start", start), ("stop", stop), ("axis", axis))]  # fmt: skip
        return op.Slice(source, *inputs, result=output)

    for index, tensor in enumerate(node.inputs):
        for position, axis in enumerate(rewriting.input_axes(number, index)):
            if odd & set(leaves(axis)):
                places, size = _filled(rewriting, axis, times), rewriting.size(axis)
                if np.array_equal(places[:size], np.arange(size)):
                    node.inputs[index] = op.Concat(tensor, take(tensor, places[size:], position), axis=position)
                else:
                    node.inputs[index] = take(tensor, places, position)
                tensor = node.inputs[index]
    for index, tensor in enumerate(node.outputs):
        for position, axis in reversed(list(enumerate(rewriting.axes.get(tensor.name, ())))):
            if odd & set(leaves(axis)):
                whole = Variable(graph.unique_name(f"{tensor.name}_whole"), dtype=tensor.dtype)
                take(whole, _own(rewriting, axis, times), position, tensor)
                node.outputs[index] = tensor = whole


def _filled(rewriting: Rewriting, axis: Axis, times: Times) -> np.ndarray:
    """Return where the units of an axis that is filled up are in the student's; copies lie one round after another."""

    def places(dim: Dim) -> Numbers:
        size = rewriting.size(dim)
        units = np.arange(times[dim] * dim.size if dim in times else size)
        return np.where(units < size, units, units % dim.size), size

    return axis_numbers(axis, places)[0]


def _own(rewriting: Rewriting, axis: Axis, times: Times) -> np.ndarray:
    """Return where the student's units of an axis are in the one that is filled up."""

    def places(dim: Dim) -> Numbers:
        size = rewriting.size(dim)
        return np.arange(size), times[dim] * dim.size if dim in times else size

    return axis_numbers(axis, places)[0]


@dataclass(frozen=True)
class Fill:
    """What a normaliser was given to read.

    Attributes:
        result: The tensor that it makes.
        source: The tensor that it reads.
        axis: Along which that was filled up.
        places: The units that it read, in their order.
    """

    result: str
    source: str
    axis: int
    places: np.ndarray


def unfill(draft: Draft) -> list[Fill]:
    """Let all normalisers read and make what they did before they were filled up, so that duplicates can be found.

    A plain node computes the same as soon as each class of duplicates is read equally often.

    Args:
        draft: The model, which computes something else then.

    Returns:
        What was taken off.
    """
    found: list[Fill] = []
    for number, said in draft.said.items():
        node = draft.nodes[number]
        cuts = [tensor.outputs[0] for tensor in node.outputs if len(tensor.outputs) == 1]
        same = len(cuts) == len(node.outputs) and all(cut.op in _TAKES for cut in cuts)
        fills = {index: fill for index, tensor in enumerate(node.inputs) if (fill := _source_of(draft, tensor))}
        if not said.statistics or not same or 0 not in fills:
            continue
        for index, (source, _, _) in fills.items():
            node.inputs[index] = source
        results = [cut.outputs[0] for cut in cuts]
        for cut in cuts:
            cut.inputs.clear()
            cut.outputs.clear()
        node.outputs = results
        source, axis, places = fills[0]
        found.append(Fill(results[0].name, source.name, axis, places))
    if found:
        drop_unread(draft.graph, draft.kept)
    return found


def _source_of(analysis: Analysis, tensor: Tensor) -> tuple[Tensor, int, np.ndarray] | None:
    """Return the tensor and the axis whose units are read more than once, and the places that are read."""
    node = made_by(tensor, traits.ROWS | traits.JOINS)
    if node is None or len(tensor.outputs) != 1:
        return None
    if node.op in traits.ROWS:
        places = _constant(analysis, node.inputs[1])
        return None if places is None or places.ndim != 1 else (node.inputs[0], int(node.attrs.get("axis", 0)), places)
    if len(node.inputs) != 2:
        return None
    source, axis = node.inputs[0], int(node.attrs["axis"])
    again = made_by(node.inputs[1], _TAKES)
    if again is None or again.inputs[0] is not source:
        return None
    size = analysis.axes[source.name][axis].size if source.name in analysis.axes else 0
    rest = _sliced(analysis, again, axis) if again.op in traits.CUTS else _constant(analysis, again.inputs[1])
    constant = constant_of(source)
    size = constant.shape[axis] if constant is not None else size
    return None if rest is None or not size else (source, axis, np.concatenate([np.arange(size), rest]))


def _sliced(analysis: Analysis, node: Node, axis: int) -> np.ndarray | None:
    """Return the units that a Slice takes along one axis."""
    if len(node.inputs) == 1:
        bounds = [node.attrs[name] for name in ("starts", "ends", "axes")]
    else:
        bounds = [_constant(analysis, tensor) for tensor in node.inputs[1:4]]
    if any(bound is None or len(bound) != 1 for bound in bounds) or bounds[2][0] != axis:
        return None
    return np.arange(int(bounds[0][0]), int(bounds[1][0]))


def _constant(analysis: Analysis, tensor: Tensor) -> np.ndarray | None:
    constant = constant_of(tensor)
    return None if constant is None else np.asarray(analysis.graph.read(constant))
