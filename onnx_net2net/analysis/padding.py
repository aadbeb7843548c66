"""Padding: widths that are no multiples, for dims that a LayerNormalization or RMSNormalization reads.

Copying every unit equally often is not the only way to keep a statistic. Padding units that hold the mean of the others
do not change the mean, and change the variance only by a factor. Padding units that hold zero change a mean square only
by a factor. The factor goes into the scale and the epsilon of the normaliser (growth-math section 2).

A forward pass tells what padding holds in each tensor. Layers are linear in their weights, so that their padding units
can hold the mean. A normaliser turns means into zeros. Other values must not reach a normaliser.

A later node may scale the units one by one (the layer scale gamma of x + gamma * f(x)). Then the layer in front has to
put into the padding the mean of the scaled units, divided by the padding's own scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onnx import TensorProto

from onnx_net2net.algebra.dims import Dim, leaf_set, leaves, resolve
from onnx_net2net.algebra.maps import ORIGINS, Growth
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.graph.graph import Node
from onnx_net2net.graph.walk import source
from onnx_net2net.rules import traits
from onnx_net2net.rules.statements import Statistic

State = Literal["mean", "zero", "other"]
"""What the padding units of a dim hold in a tensor."""


class Scale(NamedTuple):
    """Padding units hold what this constant, read by this input of this node, turns into the mean."""

    node: int
    input: int


Contents = State | Scale
States = dict[str, dict[Dim, Contents]]
"""What padding units hold, by tensor name and dim."""

Scales = dict[tuple[int, int], dict[Dim, Scale]]
"""For reads of constants (node, input): what scales the units of a dim that they make."""

PADS: dict[str, State] = {"layer": "mean", "rms": "zero"}
"""What units a normaliser does not notice, by its law."""


def paddable(analysis: Analysis) -> dict[Dim, State]:
    """Return the dims that can be padded to any width, with what their padding units hold."""
    laws: dict[Dim, set[str | None]] = {}
    for number, said in analysis.said.items():
        for statistic in said.statistics:
            law = statistic.law if _is_alone(analysis, number, statistic) else None
            for dim in (d for axis in statistic.axes for d in leaves(axis)):
                laws.setdefault(dim, set()).add(law)
    pads = {dim: PADS[law] for dim, known in laws.items() if len(known) == 1 and (law := next(iter(known))) in PADS}
    normalised = {dim for said in analysis.said.values() for axis in said.normalised for dim in leaves(axis)}
    pads = {dim: pad for dim, pad in pads.items() if dim not in normalised}
    pads = {dim: pad for dim, pad in pads.items() if dim.ratio and not dim.ratio.shared and not dim.copies}
    noticed = follow(analysis, pads).noticed
    return {dim: pad for dim, pad in pads.items() if dim not in noticed}


def _is_alone(analysis: Analysis, number: int, statistic: Statistic) -> bool:
    """Tell whether a statistic runs over one plain dim, and the node can be corrected for padding.

    Scale and shift must be constants. The epsilon is an attribute in single precision, which is not enough for doubles.
    """
    if analysis.sizes.dtype(analysis.nodes[number].inputs[0].name) == TensorProto.DOUBLE:
        return False
    operands = [operand for operand in (statistic.scale, statistic.shift) if operand is not None]
    present = [o for o in operands if o < len(analysis.nodes[number].inputs) and analysis.nodes[number].inputs[o].name]
    return (
        len(statistic.axes) == 1
        and isinstance(resolve(statistic.axes[0]), Dim)
        and statistic.scale in present
        and all((number, operand) in analysis.uses for operand in present)
    )


@dataclass
class Padding:
    """What becomes of padding units.

    Attributes:
        states: What they hold in each tensor.
        noticed: The dims whose normalisers would notice them.
        scales: For each constant: the later scale that makes its padding the mean.
    """

    states: States
    noticed: set[Dim]
    scales: Scales


def follow(analysis: Analysis, pads: dict[Dim, State]) -> Padding:
    """Follow padding units through the graph.

    Args:
        analysis: The dims.
        pads: What the constants that make a dim put into its padding units.
    """
    scales = _later_scales(analysis, pads)
    while True:
        padding = _follow(analysis, pads, scales)
        vain = {
            (dim, s) for made in scales.values() for dim, s in made.items() if not _is_mean(padding, dim, s, analysis)
        }
        if not vain:
            return padding
        scales = {key: {d: s for d, s in made.items() if (d, s) not in vain} for key, made in scales.items()}


def _is_mean(padding: Padding, dim: Dim, scale: Scale, analysis: Analysis) -> bool:
    """Tell whether a scale indeed turns what is put into padding units into the mean."""
    return padding.states[analysis.nodes[scale.node].outputs[0].name].get(dim) == "mean"


def _later_scales(analysis: Analysis, pads: dict[Dim, State]) -> Scales:
    """Find the constants whose units a later product with a vector scales, before anyone else reads them."""
    scales: Scales = {}
    for (number, index), use in analysis.uses.items():
        wide = [resolve(axis) for axis in use.axes if axis.size > 1]
        if analysis.nodes[number].op not in traits.TIMES or len(wide) != 1:
            continue
        (dim,) = wide
        if isinstance(dim, Dim) and pads.get(dim) == "mean":
            for maker in _makers(analysis, number, 1 - index, dim):
                scales.setdefault(maker, {})[dim] = Scale(number, index)
    return scales


def _makers(analysis: Analysis, number: int, index: int, dim: Dim) -> Iterator[tuple[int, int]]:
    """Yield the constants that give an operand a dim, as far back as nobody else reads what they make."""
    queue = [(number, index)]
    while queue:
        number, index = queue.pop()
        if not _keeps(analysis, number, index, dim):
            continue
        tensor = analysis.nodes[number].inputs[index]
        if (number, index) in analysis.uses:
            yield number, index
        elif len(tensor.outputs) == 1 and tensor.inputs:
            producer = analysis.numbers[id(tensor.inputs[0])]
            if producer in analysis.said:
                queue += [(producer, i) for i in range(len(analysis.nodes[producer].inputs))]


def _follow(analysis: Analysis, pads: dict[Dim, State], scales: Scales) -> Padding:
    padding = Padding({}, set(), scales)
    for number, node in enumerate(analysis.nodes):
        if number not in analysis.said:
            continue
        held = [_held(analysis, number, index, pads, padding) for index in range(len(node.inputs))]
        for statistic in analysis.said[number].statistics:
            for dim in (d for axis in statistic.axes for d in leaves(axis) if d in pads):
                summed = [held[i] for i in statistic.inputs if i < len(held) and node.inputs[i].name]
                if any(state.get(dim) != PADS.get(statistic.law or "") for state in summed):
                    padding.noticed.add(dim)
        for output, tensor in enumerate(node.outputs):
            dims_here = {d for axis in analysis.axes.get(tensor.name, ()) for d in leaves(axis)} & pads.keys()
            if dims_here:
                padding.states[tensor.name] = {d: _result(analysis, number, output, d, held) for d in dims_here}
    return padding


def _held(analysis: Analysis, number: int, index: int, pads: dict[Dim, State], padding: Padding) -> dict[Dim, Contents]:
    use = analysis.uses.get((number, index))
    if use is None:
        return padding.states.get(analysis.nodes[number].inputs[index].name, {})
    # Integers and what scales units one by one are copied, and hold neither means nor zeros.
    copied = index in analysis.said[number].scales or analysis.sizes.dtype(use.constant.name) not in DIVISIBLE
    own = padding.scales.get((number, index), {})
    held: dict[Dim, Contents] = {}
    for axis in map(resolve, use.axes):
        for dim in (d for d in leaves(axis) if d in pads):
            # The mean is taken over an axis, which must not have other units beside those of the dim.
            mixed = pads[dim] == "mean" and axis is not dim
            held[dim] = "other" if copied or mixed else own.get(dim, pads[dim])
    return held


def _result(analysis: Analysis, number: int, output: int, dim: Dim, held: list[dict[Dim, Contents]]) -> Contents:
    """Return what a node makes of the padding units of a dim, in one of its outputs."""
    said, node = analysis.said[number], analysis.nodes[number]
    operands = {index: state[dim] for index, state in enumerate(held) if dim in state}
    if not operands:
        return "other"
    for statistic in said.statistics:
        if any(dim in leaves(axis) for axis in statistic.axes):
            if output == statistic.total:
                return operands.get(statistic.inputs[0], "other")
            return "zero"  # the mean less the mean, or zero; the shift is made zero
    if any(index and not _is_float(analysis, number, index) for index in operands):
        return "other"  # it looks up or picks by the dim, and a place 0 is a place
    if analysis.sizes.dtype(node.outputs[output].name) == TensorProto.BOOL:
        return "other"  # the mask of a Dropout is true everywhere
    if said.pointwise == "linear":
        return _common(operands.values())
    if node.op in traits.FACTORS:
        divisor = source(node.inputs[1], {"Expand"})
        is_norm = dim not in leaf_set(*analysis.axes.get(divisor.name, ()))
        return _scaled(number, node.op in traits.QUOTIENTS, operands, is_norm)
    if node.op in traits.TERMS | traits.EXTREMES | {"Mean"}:
        return _combined(node, operands)
    if said.contractions:
        state = _product(analysis, number, operands, dim)
        return state if said.pointwise is None or _stays_zero(said.pointwise, state) else "other"
    if output:
        return "other"  # a deviation of zeros, a mask
    # What scales units one by one (the gain of a BatchNormalization, the slope of a PRelu) leaves zeros alone.
    gains = {index for index in said.scales if (number, index) in analysis.uses}
    rest = _common(operands.get(index, "other") for index in _summands(analysis, number) if index not in gains - {0})
    return rest if _stays_zero(said.pointwise or ("zero" if gains else "any"), rest) else "other"


def _is_float(analysis: Analysis, number: int, index: int) -> bool:
    return analysis.sizes.dtype(analysis.nodes[number].inputs[index].name) in DIVISIBLE


def _summands(analysis: Analysis, number: int) -> list[int]:
    """Return the inputs that must be zero for a result of zeros: a bias without the dim adds to all of its units.

    These are the data and whatever neither scales it nor is a number for the whole node.
    """
    said, inputs = analysis.said[number], analysis.nodes[number].inputs
    others = said.scales | said.ignored
    return [
        index
        for index, tensor in enumerate(inputs)
        if index == 0 or (tensor.name and index not in others and _is_float(analysis, number, index))
    ]


def _common(states: Iterable[Contents]) -> Contents:
    """Return what all operands hold, "other" where they differ."""
    found = set(states)
    return found.pop() if len(found) == 1 else "other"


def pads_of(growth: Growth) -> dict[Dim, State]:
    """Return the dims with units that start as the mean of the others or as zero."""
    starts: dict[int, State] = {ORIGINS.index("mean"): "mean", ORIGINS.index("zero_in"): "zero"}
    return {dim: starts[kind] for dim, map in growth.items() if (kind := int(map.kind.max())) in starts}


def _stays_zero(pointwise: str, state: Contents) -> bool:
    return state == "zero" and pointwise in ("zero", "relu")


def _scaled(number: int, divides: bool, operands: dict[int, Contents], is_norm: bool) -> Contents:
    """Return what a product or quotient holds: an operand without the dim scales all units alike.

    Args:
        number: The node.
        divides: Whether it is a quotient.
        operands: What operands with the dim hold.
        is_norm: Whether the second operand is one number for all units, spread over them.
    """
    if not divides and "zero" in operands.values():
        return "zero"
    if divides and operands.get(0) == "zero" and operands.get(1) == "other" and is_norm:
        return "zero"  # another divisor might be 0 where this is
    if any(state == Scale(number, 1 - index) for index, state in operands.items()):
        return "mean"
    if len(operands) > 1:
        return "other"
    return operands.get(0, "other" if divides else operands.get(1, "other"))


def _combined(node: Node, operands: dict[int, Contents]) -> Contents:
    """Return what a sum or extreme holds: an operand without the dim adds to all units alike, so to zeros too."""
    state = _common(operands.values())
    whole = len(operands) == len(node.inputs)
    if node.op in traits.EXTREMES:
        return state if state == "zero" and whole else "other"
    return state if whole or state == "mean" else "other"


def _product(analysis: Analysis, number: int, operands: dict[int, Contents], dim: Dim) -> Contents:
    """Return what a product of two operands (0 and 1) plus a bias holds on a dim that it does not sum over."""
    operands = {index: state for index, state in operands.items() if _keeps(analysis, number, index, dim)}
    factors = {operands[index] for index in (0, 1) if index in operands}
    bias = {state for index, state in operands.items() if index > 1}
    if 0 in operands and 1 in operands:
        factors = {"zero"} if operands[0] == "zero" else {"other"}
    held = factors | bias
    if held != {"mean"} and any(index > 1 and index not in operands for index in _summands(analysis, number)):
        return "other"  # a bias that does not have the dim adds to all of its units
    return held.pop() if len(held) == 1 else "other"


def _keeps(analysis: Analysis, number: int, index: int, dim: Dim) -> bool:
    """Tell whether an operand has the dim on an axis that the node does not sum over."""
    sums = [c for c in analysis.said[number].contractions if dim in leaves(c.axis)]
    summed = {side for contraction in sums for side in contraction.sides}
    axes = analysis.input_axes(number, index) or ()
    return any(dim in leaves(axis) and (index, position) not in summed for position, axis in enumerate(axes))


def fillable(analysis: Analysis) -> set[Dim]:
    """Return the dims of statistics whose nodes can be given whole multiples: they state neither sums nor sizes."""
    can: set[Dim] = set()
    cannot: set[Dim] = set()
    for said in analysis.said.values():
        over = {dim for statistic in said.statistics for axis in statistic.axes for dim in leaves(axis)}
        told = [axis for size in said.size_inputs for axis in size.axes]
        told += [axis for size in said.size_attributes for axis in size.axes]
        told += [contraction.axis for contraction in said.contractions]
        can |= over
        cannot |= over & {dim for axis in told for dim in leaves(axis)}
    return can - cannot
