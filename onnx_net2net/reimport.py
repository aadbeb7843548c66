"""Growth that a framework's own class can hold: its weights and sizes grow, everything else it computes anew.

A student in a file may have nodes, attributes and constants that its teacher did not have. A class that is made at
other sizes has the teacher's operations only, and computes from its sizes what the file holds as constants: the scale
`head_dim ** -0.5` of an attention, the table of a rotary embedding, `sqrt(hidden)` behind an embedding. So the dims
whose growth asks for more than other weights and sizes keep their size here, each with the reason.

Classes also make some widths of others: all heads of an attention together are often as wide as the stream that they
read. Such heads take what the stream grows by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_net2net import dims
from onnx_net2net.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.inference import Analysis, constant_of
from onnx_net2net.inspection import Inspection
from onnx_net2net.layers import Network
from onnx_net2net.maps import identity
from onnx_net2net.operation import Contraction
from onnx_net2net.rewrite import carrier

FRAMEWORKS = ("torch",)
"""Frameworks whose classes can be grown for; what is said here holds for any that makes its modules of sizes."""

_POWERS = (0.5, -0.5, -1.0)
"""Powers of a size that classes compute: sqrt(hidden), head_dim ** -0.5, 1 / channels."""

_SHARED_POWERS = (*_POWERS, -0.25)
"""The same where two factors of a product share one: the queries and the keys of an attention."""

_PASSES = ("Mul", "Div", "Add", "Cast", "Identity")
"""Operators between scores and the number that scales them."""


# --- What has to keep its size -------------------------------------------------------------------------------


def hold(analysis: Analysis) -> None:
    """Keep the dims whose growth a class could not follow; called before anything is planned."""
    for axis, reason in list(_reasons(analysis)):
        dims.freeze(axis, reason)
    for number, said in analysis.said.items():
        said.statistics[:] = [replace(found, law=None) for found in said.statistics]  # padding needs another epsilon
        for contraction in said.contractions:
            if contraction.law == "mean" and _is_unweighed(analysis, number, contraction):
                dims.keep_uniform(contraction.axis, f"{_label(analysis, number)} takes a mean over it")


def _reasons(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """Yield each axis that has to keep its size in a class, with the reason."""
    for constant in frozen_constants(analysis):
        yield constant.axis, f"{constant.node} has {constant.value:.6g} = {constant.text}, which a class computes anew"
    for number, said in analysis.said.items():
        label = _label(analysis, number)
        for contraction in said.contractions:
            if contraction.law != "mean" and _is_unweighed(analysis, number, contraction):
                yield contraction.axis, f"{label} sums over it, and no weight of the class could weigh copies there"
            if len(contraction.sides) > 1 and all(analysis.is_derived(number, side) for side, _ in contraction.sides):
                yield contraction.axis, f"{label} multiplies constants, some of which a class may compute"
        for position in said.shares:
            axes = analysis.input_axes(number, 0) or ()
            yield axes[position], f"{label} divides a whole among its units, which a class would not correct"
        for name, _, axis in said.defaults:
            yield axis, f"{label} takes its {name} from this size, as a class would again"
        for selection in said.selections:
            for unit in selection.units:
                yield unit, f"{label} picks its units by their places, which a class does not move"
    for name in analysis.cut:
        for dim in leaf_set(*analysis.axes[name]):
            yield dim, f"is the model's output {name!r}, which a class would not cut"
    yield from _ties(analysis)


def _label(analysis: Analysis, number: int) -> str:
    node = analysis.nodes[number]
    return f"{node.op} {node.name or node.outputs[0].name!r}"


def _is_unweighed(analysis: Analysis, number: int, contraction: Contraction) -> bool:
    """Tell whether there are units to grow in a sum that no weight takes part in."""
    return bool(_free(contraction.axis)) and not list(_carriers(analysis, number, contraction))


def _free(axis: Axis) -> set[Dim]:
    return {dim for dim in leaves(axis) if not dim.frozen}


def _carriers(analysis: Analysis, number: int, contraction: Contraction) -> Iterator[tuple[int, int, int]]:
    """Yield where (node, input, axis) constants can weigh the units of a sum."""
    free = _free(contraction.axis)
    growth = {dim: identity(dim.size) for dim in free}
    for index, position in contraction.sides:
        place = carrier(analysis, number, index, position, free, growth, contraction.law)
        if place is not None:
            yield place


def _ties(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """Yield the axes of matrices that one reader sums over and another one makes: copies there, shares here."""
    weighed: dict[tuple[int, int], set[int]] = {}
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            for node, index, position in _carriers(analysis, number, contraction):
                weighed.setdefault((node, index), set()).add(position)
    positions: dict[int, list[set[int]]] = {}
    for key, use in analysis.uses.items():
        positions.setdefault(id(use.constant), []).append(weighed.get(key, set()))
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        found = positions[id(use.constant)]
        if sum(axis.size > 1 for axis in use.axes) > 1:  # vectors of equal values are often merged by exporters
            for position in found[0].union(*found) - found[0].intersection(*found):
                yield use.axes[position], f"is made and summed over by the tied weight {use.constant.name!r}"


# --- Constants that a class computes from its sizes ----------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """A node that scales activations by one number.

    Attributes:
        node: How messages call the node.
        value: The magnitude of the number, as a factor.
        axes: The widths that it may be for.
    """

    node: str
    value: float
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class FrozenConstant:
    """A number in the file that a class computes from one of its sizes.

    Attributes:
        node: How messages call the node that has it.
        value: The number.
        axis: The axis of that size.
        place: Which of the axes of the `Scaling` it is.
        power: The power of the size that it is.
    """

    node: str
    value: float
    axis: Axis
    place: int
    power: float

    @property
    def text(self) -> str:
        """The formula."""
        return formula(self.axis.size, self.power)


def formula(size: int, power: float) -> str:
    """Return the text of a power of a size."""
    return f"sqrt({size})" if power == 0.5 else f"{size} ** {power:g}"


def frozen_constants(analysis: Analysis) -> Iterator[FrozenConstant]:
    """Find the numbers by which activations are scaled that are powers of the width that they scale or come from."""
    mixed = leaf_set(*Network(analysis).products.values())
    for scaling in scalings(analysis):
        for place, axis in enumerate(scaling.axes):
            powers = _SHARED_POWERS if leaf_set(axis) & mixed else _POWERS
            power = next((p for p in powers if math.isclose(scaling.value, axis.size**p, rel_tol=1e-3)), None)
            if axis.size > 1 and power is not None:
                yield FrozenConstant(scaling.node, scaling.value, axis, place, power)
                break


def scalings(analysis: Analysis) -> Iterator[Scaling]:
    """Yield the nodes that scale activations by one number, which they have as an operand or as an attribute."""
    products = Network(analysis).products
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for index in (0, 1) if node.op == "Mul" else (1,) if node.op == "Div" else ():
            value = _number(analysis, node.inputs[index])
            if value:
                factor = value if node.op == "Mul" else 1 / value
                yield Scaling(_label(analysis, number), factor, tuple(_scaled(analysis, number, 1 - index, products)))
        scale = node.attrs.get("scale")
        if isinstance(scale, float) and scale > 0 and said.contractions:
            yield Scaling(_label(analysis, number), scale, tuple(found.axis for found in said.contractions))


def _scaled(analysis: Analysis, number: int, index: int, products: Mapping[int, Axis]) -> Iterator[Axis]:
    """Yield the widths that the scale of an operand may be for: that of the product it is, its last axis and parts."""
    tensor = analysis.nodes[number].inputs[index]
    while tensor.inputs and tensor.inputs[0].op in _PASSES:
        tensor = tensor.inputs[0].inputs[0]
    if tensor.inputs and analysis.numbers[id(tensor.inputs[0])] in products:
        yield products[analysis.numbers[id(tensor.inputs[0])]]
    axes = analysis.input_axes(number, index)
    if axes:
        yield axes[-1]
        yield from reversed(list(leaves(axes[-1])))


def _number(analysis: Analysis, tensor: gs.Tensor) -> float | None:
    """Return the magnitude of the one float that a constant is, or that follows from sizes; else None."""
    known = analysis.sizes.values.get(tensor.name)
    if known is not None:
        return abs(float(known.reshape(-1)[0])) if known.size == 1 and known.dtype.kind == "f" else None
    constant = constant_of(tensor)
    if constant is None or constant.shape is None or math.prod(constant.shape) != 1:
        return None
    return abs(float(analysis.draft.reader(constant)().reshape(-1)[0]))


# --- Widths that a class makes of others ---------------------------------------------------------------------

_KEYS = ("query/key head_dim", "rotary pairs")
_COUNTS = ("heads", "kv heads", "heads per kv head")


def adapt(analysis: Analysis, inspection: Inspection) -> None:
    """Let groups have the sizes that a class can have: no filled up norms, and widths that follow others."""
    group_of = {dim: group for group in inspection.groups for dim in group.dims}
    keys = {group.size: group for group in inspection.groups if group.role in _KEYS}
    for group in inspection.groups:
        group.fillable = False
        if group.role == "value head_dim":
            group.follows = keys.get(group.size)
    for layer in Network(analysis).layers.values():
        width = math.prod(dim.size for dim in layer.reads)
        streams = [group_of[dim] for dim in layer.reads if dim in group_of]
        for term in layer.terms:
            parts = [group_of[dim] for dim in term if dim in group_of and "head" in group_of[dim].role]
            if len(streams) == 1 and len(parts) > 1 and math.prod(part.size for part in parts) == width:
                for part in parts:
                    if part.role in _COUNTS:
                        part.follows = streams[0]
