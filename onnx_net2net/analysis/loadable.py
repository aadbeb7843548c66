"""Growth that a framework's own class can hold: its weights and sizes grow, everything else it computes anew.

A student in a file may have nodes, attributes and constants that its teacher did not have. A class that is made at
other sizes has the teacher's operations only, and computes from its sizes what the file holds as constants: the scale
`head_dim ** -0.5` of an attention, the table of a rotary embedding, `sqrt(hidden)` behind an embedding. So the dims
whose growth asks for more than other weights and sizes keep their size here, each with the reason.

Classes also make several widths of one size: a layer that makes as many units as it reads of a residual stream is taken
to be of such a class, be it all heads of an attention together or the dense layer in front of an output. What it makes
grows by what the stream grows by.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axis, Dim, Product, leaf_set, leaves, resolve
from onnx_net2net.analysis.computed import computed
from onnx_net2net.analysis.groups import Group, Inspection, inspect_analysis, paused_gc
from onnx_net2net.analysis.inference import Analysis, Use, infer
from onnx_net2net.analysis.layers import Layer, Network
from onnx_net2net.analysis.linearity import find_norms, weighings
from onnx_net2net.analysis.multipliers import computed_numbers, multipliers, number_of
from onnx_net2net.analysis.names import name_dims, scope_of
from onnx_net2net.analysis.roles import HEAD_COUNTS, HEAD_WIDTHS, Role
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.flatten import Opened, open_bodies
from onnx_net2net.graph.graph import dtype_of
from onnx_net2net.model.model import Model, load
from onnx_net2net.rules.statements import Contraction

LISTS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
"""Types of constants that hold places, and no weights."""

FRAMEWORKS = ("torch",)
"""Frameworks whose classes can be grown for; what is said here holds for any that makes its modules of sizes."""

ADVICE = "--keep-numbers if it does not; if it does, transfer fills the wider class"
"""What to do about a number that may be a function of a size."""

_POWERS = (0.5, -0.5, -1.0)
"""Powers of a size that classes compute: sqrt(hidden), head_dim ** -0.5, 1 / channels."""

_SHARED_POWERS = (*_POWERS, -0.25)
"""The same where two factors of a product share one: the queries and the keys of an attention."""

_PASSES = ("Mul", "Div", "Add", "Cast", "Identity")
"""Operators between scores and the number that scales them."""


def check_framework(framework: str | None) -> None:
    """Refuse a framework that nothing is known of.

    Raises:
        BadInputError: If it is none of `FRAMEWORKS`.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise BadInputError(f"there is no framework {framework!r}; there are {', '.join(FRAMEWORKS)}")


def analyse(model: Model, framework: str | None, *, keep_numbers: bool = False) -> tuple[Opened, Analysis, Inspection]:
    """Find the dims of a model, and hold those that a class of a framework could not follow.

    Args:
        model: A loaded model.
        framework: One of `FRAMEWORKS`, or None for growth that a file can hold.
        keep_numbers: As in `hold`.

    Raises:
        BadInputError: If there is no such framework.
    """
    check_framework(framework)
    opened = open_bodies(model)
    analysis = infer(opened.model, by_units=framework is None)
    names = name_dims(analysis, opened.model.proto)  # before any are held, so that all have the same names
    if framework:
        hold(analysis, opened.model.proto, keep_numbers=keep_numbers)
    inspection = inspect_analysis(opened.model, analysis, names)
    if framework:
        adapt(analysis, inspection)
    return opened, analysis, inspection


def inspect_for(framework: str | None, model: str | os.PathLike[str] | onnx.ModelProto | Model) -> Inspection:
    """Return what `inspect` does, as growth for a class of a framework sees it.

    Args:
        framework: As in `analyse`.
        model: A path, a model in memory or a loaded model.

    Raises:
        BadInputError: If there is no such framework, or the model cannot be used.
    """
    loaded = load(model)
    with paused_gc():
        return analyse(loaded, framework)[2]


# --- What has to keep its size -------------------------------------------------------------------------------


def hold(analysis: Analysis, proto: onnx.ModelProto, *, keep_numbers: bool = False) -> None:
    """Keep the dims whose growth a class could not follow; called before anything is planned.

    Args:
        analysis: The dims.
        proto: The model that was analysed.
        keep_numbers: Whether the class is known to compute none of its numbers from sizes.
    """
    _join_layers(analysis, proto)
    numbers = () if keep_numbers else _numbers(analysis)
    known = list(computed(analysis, proto))
    doubtful = {id(use.constant) for use, _ in known}
    if proto.producer_name != "pytorch":  # nobody tells parameters from others
        doubtful.update(id(use.constant) for use in analysis.uses.values())
    for axis, reason in [*numbers, *_computed(analysis, known), *_reasons(analysis, doubtful)]:
        dims.freeze(axis, reason)
    for number, said in analysis.said.items():
        said.statistics[:] = [replace(found, law=None) for found in said.statistics]  # padding needs another epsilon
        for contraction in said.contractions:
            if contraction.law == "mean" and _is_unweighed(analysis, number, contraction):
                dims.keep_uniform(contraction.axis, f"{_label(analysis, number)} takes a mean over it")


def _numbers(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """Yield each axis of whose size a class may compute a number, with the reason."""
    known = set()
    for constant in frozen_constants(analysis):
        if constant.power != -1.0 or any(map(_is_free, leaves(constant.axis))):  # 1 / 3 may be 4 / 12 as well
            known.add(f"{constant.value:.5g}")
        yield constant.axis, f"{constant.node} has {constant.value:.6g} = {constant.text}, which a class computes anew"
    for found in computed_numbers(analysis):
        if f"{abs(found.multiplier.value):.5g}" not in known:
            text = f"has {found.multiplier.value:.6g} = {found.text}, which a class may compute anew"
            for dim in found.dims:
                yield dim, f"{found.multiplier.node} {text} ({ADVICE})"


def numbers_beside(analysis: Analysis, growth: Collection[Dim]) -> list[str]:
    """Return the single numbers that scale something beside dims that grow, once each, for people.

    Those of activations, and those that are a power of a size that stays, are none.
    """
    explained = {c.node for c in frozen_constants(analysis) if not leaf_set(c.axis).intersection(growth)}
    found: dict[float, list[str]] = {}
    for multiplier in multipliers(analysis):
        beside = any(size.dims.intersection(growth) for size in multiplier.sizes)
        if beside and multiplier.is_told and multiplier.node not in explained:
            found.setdefault(multiplier.value, []).append(str(multiplier))
    return [first + (f" and {len(more)} more" if more else "") for first, *more in found.values()]


def _reasons(analysis: Analysis, doubtful: Collection[int]) -> Iterator[tuple[Axis, str]]:
    """Yield each axis that has to keep its size in a class, with the reason; `doubtful` constants it may compute."""
    norms = find_norms(analysis)
    for number, said in analysis.said.items():
        label = _label(analysis, number)
        for contraction in said.contractions if number not in norms else ():
            if contraction.law == "square" and analysis.is_derived(number, 0) and _is_read_elsewhere(analysis, number):
                yield contraction.axis, f"{label} takes a norm of weights over it, which no gain could make up for"
            if contraction.law != "mean" and _is_unweighed(analysis, number, contraction):
                yield contraction.axis, f"{label} sums over it, and no weight of the class could weigh copies there"
            indices = [index for index, _ in contraction.sides]
            is_constant = len(indices) > 1 and all(analysis.is_derived(number, index) for index in indices)
            is_constant = is_constant and not _is_norm(analysis, number)
            if is_constant and any(_may_be_computed(analysis, number, index, doubtful) for index in indices):
                yield contraction.axis, f"{label} multiplies constants, some of which a class may compute"
        for position in said.shares:
            axes = analysis.input_axes(number, 0) or ()
            yield axes[position], f"{label} divides a whole among its units, which a class would not correct"
        for name, _, axis in said.defaults:
            yield axis, f"{label} takes its {name} from this size, as a class would again"
        for selection in said.selections:
            for unit in selection.units:
                yield unit, f"{label} picks its units by their places, which a class does not move"
        for run in said.runs:
            if run.before.size or run.rest.size:
                for axis in (run.before, run.units, run.rest):
                    yield axis, f"{label} picks its units by their places, which a class does not move"
    for use in analysis.uses.values():
        if analysis.sizes.dtype(analysis.nodes[use.node].inputs[use.input].name) in LISTS:
            for axis in use.axes:
                yield axis, f"{_label(analysis, use.node)} looks its units up by a list, which a class does not grow"
    for name in analysis.cut:
        for dim in leaf_set(*analysis.axes[name]):
            yield dim, f"is the model's output {name!r}, which a class would not cut"
    yield from _ties(analysis)


def _join_layers(analysis: Analysis, proto: onnx.ModelProto) -> None:
    """Let the layers of one recurrent module have one size of state, as its constructor takes only one."""
    states: dict[tuple[str, str, int], Axis] = {}
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for size in said.size_attributes if node.op in ("LSTM", "GRU", "RNN") else ():
            module = scope_of(proto.graph.node[number])
            told = bool(module) or proto.producer_name == "pytorch"
            for axis in size.axes if told and size.name == "hidden_size" else ():
                first = states.setdefault((module, node.op, axis.size), axis)
                dims.unify(first, axis, f"is the state of all layers of {module or node.op}")


def _computed(analysis: Analysis, known: Sequence[tuple[Use, tuple[int, ...]]]) -> Iterator[tuple[Axis, str]]:
    """Yield the axes of constants that a class computes, but for those along which copies are what it computes too."""
    weighed = weighed_axes(analysis)
    for use, varying in known:
        reason = f"{use.constant.name!r} is no weight: a class computes it from its sizes (export with folding off)"
        for position, axis in enumerate(use.axes):
            if position in varying or position in weighed.get((use.node, use.input), ()):
                yield axis, reason


def _label(analysis: Analysis, number: int) -> str:
    node = analysis.nodes[number]
    return f"{node.op} {node.name or node.outputs[0].name!r}"


def _may_be_computed(analysis: Analysis, number: int, index: int, doubtful: Collection[int]) -> bool:
    """Tell whether what follows from constants is neither made of parameters alone nor one number everywhere."""
    moves = (*_MOVES, "Expand", "Tile")
    pending, seen = [(number, index)], set()
    while pending:
        place = pending.pop()
        tensor = analysis.nodes[place[0]].inputs[place[1]]
        use = analysis.uses.get(place)
        known = tensor.name if use is None else id(use.constant)
        if known in seen or analysis.is_fill(*place):
            continue
        seen.add(known)
        if use is not None:
            if id(use.constant) in doubtful:
                return True
            continue
        maker = analysis.numbers[id(tensor.inputs[0])] if tensor.inputs else -1
        node = analysis.nodes[maker]
        if maker < 0 or node.op not in ("Gemm", "MatMul", "Add", "Sub", "Mul", *moves):
            return True
        data = range(len(node.inputs)) if node.op not in moves else (0,)
        pending += [(maker, other) for other in data if node.inputs[other].name]
    return False


def _is_unweighed(analysis: Analysis, number: int, contraction: Contraction) -> bool:
    """Tell whether there are units to grow in a sum that no weight takes part in."""
    if not any(not dim.frozen for dim in leaves(contraction.axis)):
        return False
    return next(weighings(analysis, number, contraction, _is_free), None) is None


def _is_norm(analysis: Analysis, number: int) -> bool:
    """Tell whether a product of constants is summed into one number, as the norm u' W v of a weight is."""
    while True:
        result = analysis.nodes[number].outputs[0]
        if math.prod(analysis.sizes.shape(result.name) or ()) == 1:
            return True
        reader = result.outputs[0] if len(result.outputs) == 1 else None
        number = analysis.numbers.get(id(reader), -1)
        if number not in analysis.said or not analysis.said[number].contractions:
            return False
        if not all(analysis.is_derived(number, index) for index in range(len(analysis.nodes[number].inputs))):
            return False


def _is_read_elsewhere(analysis: Analysis, number: int) -> bool:
    """Tell whether the weight that a node takes a norm of has another reader."""
    use = analysis.uses.get((number, 0))
    return use is not None and sum(other.constant is use.constant for other in analysis.uses.values()) > 1


def _is_free(dim: Dim) -> bool:
    return not dim.frozen


# --- Tied weights --------------------------------------------------------------------------------------------


def _ties(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """Yield the axes of matrices that one reader sums over and another one makes: shares there, copies here."""
    weighed = weighed_axes(analysis)
    normed = {use for norm in find_norms(analysis).values() for use in norm.uses}
    copies = {**_copies(analysis), **_turned_copies(analysis)}
    readings: dict[int, list[tuple[tuple[int, int], dict[int, int]]]] = {}
    for key, use in analysis.uses.items():
        if use.input in analysis.said[use.node].ignored or key in normed:
            continue  # reads no values, or as they come
        found = weighed.get(key, {})
        readings.setdefault(id(use.constant), []).append((key, found))
        if id(use.constant) in copies:
            original, is_turned = copies[id(use.constant)]
            turned = {1 - position: number for position, number in found.items()}
            readings.setdefault(original, []).append((key, turned if is_turned else found))
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        known = readings.get(id(use.constant), [])
        if sum(axis.size > 1 for axis in use.axes) < 2:  # exporters merge vectors of equal values
            continue
        for position, axis in enumerate(use.axes):
            sums = [found[position] for _, found in known if position in found]
            made = [key for key, found in known if position not in found]
            reason = f"is made and summed over by the tied weight {use.constant.name!r}"
            is_free = not sums or not made or rescale_instead(analysis, sums, axis, reason)
            if not is_free and not _divide_tables(analysis, sums, made, axis):
                yield axis, reason


def _divide_tables(analysis: Analysis, sums: Sequence[int], made: Sequence[tuple[int, int]], axis: Axis) -> bool:
    """Let a tied weight be divided where it makes units, instead of the weights that sum over these; tell if it can.

    It is divided for the sum over it already. So what it makes, x / c for each copy, is read by weights that are not
    divided: c (w x / c) = w x.
    """
    found: dict[tuple[int, tuple[tuple[int, int], ...]], tuple[int, int]] = {}
    for number, said in analysis.said.items():
        for contraction in said.contractions if number not in sums else ():
            ways = weighings(analysis, number, contraction, _is_free) if contraction.axis.size == axis.size else ()
            for way in ways:
                reads = {(place.node, place.input) for place in way.carriers if place.units is None}
                found.update(((number, contraction.sides), key) for key in made if key in reads)
    if len(set(found.values())) < len(made):
        return False
    analysis.tables.update(found)
    return True


def weighed_axes(analysis: Analysis) -> dict[tuple[int, int], dict[int, int]]:
    """Return for reads of constants (node, input) the axes that are summed over, with the node that sums."""
    weighed: dict[tuple[int, int], dict[int, int]] = {}
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            way = next(weighings(analysis, number, contraction, _is_free), None)
            for place in way.carriers if way else ():
                weighed.setdefault((place.node, place.input), {})[place.position] = number
    return weighed


def _copies(analysis: Analysis) -> dict[int, tuple[int, bool]]:
    """Find the matrices that are copies of others: folding makes one for each use of a weight.

    Returns:
        The original of each, and that it is not transposed, by id. Their axes are made the same.
    """
    originals: dict[object, list[Use]] = {}
    copies: dict[int, tuple[int, bool]] = {}
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        if sum(axis.size > 1 for axis in use.axes) < 2 or dtype_of(use.constant).kind == "i":
            continue
        values = analysis.draft.reader(use.constant)()
        known = originals.setdefault((values.shape, values.dtype, values[-1].tobytes()), [])
        for other in known:
            if np.array_equal(values, analysis.draft.reader(other.constant)()) and values.min() < values.max():
                copies[id(use.constant)] = id(other.constant), False
                analysis.copies[use.constant.name] = other.constant.name
                for axis, same in zip(use.axes, other.axes, strict=True):
                    dims.unify(axis, same, f"{use.constant.name!r} is a copy of {other.constant.name!r}")
                break
        else:
            known.append(use)
    return copies


def _turned_copies(analysis: Analysis) -> dict[int, tuple[int, bool]]:
    """Find the matrices that are transposes of tables: folding makes such a one of a tied head.

    Returns:
        The table of each, and that it is transposed, by id. Their axes are made the same.
    """
    matrices: dict[tuple[int, ...], dict[int, Use]] = {}
    tables: dict[int, Use] = {}
    for (number, index), use in analysis.uses.items():
        if len(use.axes) == 2 and min(axis.size for axis in use.axes) > 1:
            is_table = analysis.nodes[number].op == "Gather" and index == 0
            same_kind = tables if is_table else matrices.setdefault(tuple(use.constant.shape), {})
            same_kind[id(use.constant)] = use
    copies: dict[int, tuple[int, bool]] = {}
    for table in tables.values():
        candidates = matrices.get(tuple(reversed(table.constant.shape)), {})
        values = analysis.draft.reader(table.constant)() if candidates else np.zeros(0)
        for key, matrix in candidates.items():
            other = analysis.draft.reader(matrix.constant)().T
            if np.array_equal(values[0], other[0]) and np.array_equal(values, other) and values.min() < values.max():
                copies[key] = id(table.constant), True
                for axis, same in zip(table.axes, reversed(matrix.axes), strict=True):
                    dims.unify(axis, same, f"{matrix.constant.name!r} is {table.constant.name!r} transposed")
    return copies


def rescale_instead(analysis: Analysis, sums: Sequence[int], axis: Axis, reason: str) -> bool:
    """Let the layers in front of sums over a tied weight carry the division of its copies; tell whether they can.

    With all units copied c times a sum over them is c times too large, and the tie keeps its weights. So what goes into
    it is made smaller by c: the scale and shift of the last normalisation (growth-math section 2, tied embeddings).
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for number in sums:
        (contraction, *more) = analysis.said[number].contractions
        data = [index for index, _ in contraction.sides if not analysis.is_derived(number, index)]
        scaled = scalable(analysis, number, data[0], axis) if len(data) == 1 and not more else None
        if scaled is None:
            return False
        found[number] = scaled
    dims.keep_uniform(axis, reason)
    analysis.rescaled.update(found)
    return True


_MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherND")


def scalable(analysis: Analysis, number: int, index: int, axis: Axis) -> list[tuple[int, int]] | None:
    """Return the weights (node, input) of an axis that make an operand k times as large if they are, None without."""
    found: list[tuple[int, int]] = []
    pending = [(number, index)]
    while pending:
        place = pending.pop()
        if place in analysis.uses:
            if not _has(analysis, *place, axis):
                return None
            found.append(place)
            continue
        tensor = analysis.nodes[place[0]].inputs[place[1]]
        if len(tensor.outputs) != 1 or tensor.name in analysis.kept or not tensor.inputs:
            return None  # somebody else reads it
        node = tensor.inputs[0]
        maker = analysis.numbers[id(node)]
        if maker not in analysis.said:
            return None
        if node.op in _MOVES or node.op == "Div":
            pending.append((maker, 0))
        elif node.op == "Add":
            pending += [(maker, 1), (maker, 0)]
        else:
            own = _own_scales(analysis, maker, axis)
            if own is None and node.op in ("MatMul", "Einsum"):  # a product of activations: one of them is made larger
                operands = (scalable(analysis, maker, side, axis) for side in range(len(node.inputs)))
                own = next((operand for operand in operands if operand), None)
            if own is None:
                return None
            found += own
    return found


def _own_scales(analysis: Analysis, number: int, axis: Axis) -> list[tuple[int, int]] | None:
    """Return the weights of a node itself that scale its result, None where it has none with the axis."""
    node, said = analysis.nodes[number], analysis.said[number]
    if node.op == "Mul":
        return next(([(number, side)] for side in (0, 1) if _has(analysis, number, side, axis)), None)
    scales = [(statistic.scale, statistic.shift) for statistic in said.statistics if statistic.scale is not None]
    if node.op in ("MatMul", "Gemm"):
        scales.append((1, 2))
    for pair in scales:
        places = [place for place in pair if place is not None and place < len(node.inputs) and node.inputs[place].name]
        if all(_has(analysis, number, place, axis) for place in places):
            return [(number, place) for place in places]
    return None


def _has(analysis: Analysis, number: int, index: int, axis: Axis) -> bool:
    """Tell whether an input is a constant with an axis."""
    use = analysis.uses.get((number, index))
    return use is not None and leaf_set(axis) <= leaf_set(*use.axes)


# --- Constants that a class computes from its sizes ----------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """A node that scales activations by one number.

    Attributes:
        node: How messages call the node.
        value: The magnitude of the number, as a factor.
        axes: The widths that it may be for.
        operand: The node's number and the input that is scaled, -1 where the node itself makes it.
    """

    node: str
    value: float
    axes: tuple[Axis, ...]
    operand: tuple[int, int]


@dataclass(frozen=True)
class FrozenConstant:
    """A number in the file that a class computes from one of its sizes.

    Attributes:
        node: How messages call the node that has it.
        value: The number.
        axis: The axis of that size.
        place: Which of the axes of the `Scaling` it is.
        power: The power of the size that it is.
        operand: What is scaled, as in `Scaling`.
    """

    node: str
    value: float
    axis: Axis
    place: int
    power: float
    operand: tuple[int, int]

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
                yield FrozenConstant(scaling.node, scaling.value, axis, place, power, scaling.operand)
                break


def scalings(analysis: Analysis) -> Iterator[Scaling]:
    """Yield the nodes that scale activations by one number, which they have as an operand or as an attribute."""
    products = Network(analysis).products
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for index in (0, 1) if node.op == "Mul" else (1,) if node.op == "Div" else ():
            value = number_of(analysis, node.inputs[index])
            if value:
                value = abs(value)
                factor = value if node.op == "Mul" else 1 / value
                axes = tuple(_scaled(analysis, number, 1 - index, products))
                yield Scaling(_label(analysis, number), factor, axes, (number, 1 - index))
        scale = node.attrs.get("scale")
        if isinstance(scale, float) and scale > 0 and said.contractions:
            yield Scaling(_label(analysis, number), scale, tuple(c.axis for c in said.contractions), (number, -1))


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


# --- Widths that a class makes of others ---------------------------------------------------------------------

_KEYS = (Role.KEY_HEAD_DIM, Role.ROTARY_PAIRS)


def _factors(analysis: Analysis) -> set[Dim]:
    """Return the dims that are factors of an axis with others that could grow instead."""
    axes = [axis for axes in analysis.axes.values() for axis in map(resolve, axes) if not isinstance(axis, Dim)]
    free = [{dim for dim in leaves(axis) if not dim.frozen} for axis in axes if isinstance(axis, Product)]
    return set().union(*(dims for dims in free if len(dims) > 1))


def adapt(analysis: Analysis, inspection: Inspection) -> None:
    """Let groups have the sizes that a class can have: no filled up norms, and widths that follow others."""
    group_of = {dim: group for group in inspection.groups for dim in group.dims}
    keys = {group.size: group for group in inspection.groups if group.role in _KEYS}
    multiplied = leaf_set(*Network(analysis).products.values()) & _factors(analysis)
    for group in inspection.groups:
        group.fillable = False
        if group.role in _KEYS or multiplied.intersection(group.dims):
            group.follows = (group,)  # heads grow in number, and in width only if they are asked to
        if group.role is Role.VALUE_HEAD_DIM:
            group.follows = (keys.get(group.size, group),)  # where the keys keep their width, so do the values
    layers = list(Network(analysis).layers.values())
    squares = [(streams, made) for layer in layers for streams, made in _squares(layer, group_of)]
    for streams, made in squares:
        heads = [group for group in made if group.role in HEAD_COUNTS | HEAD_WIDTHS]
        counts = [group for group in heads if group.role in HEAD_COUNTS]
        is_whole = len(heads) > 1 or (not heads and streams[0].role is Role.RESIDUAL_STREAM)
        for group in counts if heads else made if is_whole else ():
            if group not in streams and not group.follows:
                group.follows = streams
    for layer in layers:  # heads that are not read of the stream that they make
        read = list(dict.fromkeys(group_of[dim] for dim in sorted(layer.reads, key=_serial) if dim in group_of))
        made = [group_of[dim] for term in layer.terms if len(term) == 1 for dim in term if dim in group_of]
        counts = [group for group in read if group.role in HEAD_COUNTS]
        if counts and len(made) == 1 and made[0].size == layer.width and made[0].role is Role.RESIDUAL_STREAM:
            squares.append(((made[0],), read))
            for group in counts:
                group.follows = group.follows or (made[0],)
    for group in inspection.groups:
        group.follows = _roots(group)
    for layer in layers:  # heads that a layer mixes, and what that makes of them
        groups = {id(group_of[dim]): group_of[dim] for dim in (*layer.reads, *itertools.chain(*layer.terms))
                  if dim in group_of}  # fmt: skip
        heads = [group for group in groups.values() if group.role in HEAD_COUNTS]
        if len(groups) == 2 and len(heads) == 1 and len({group.size for group in groups.values()}) == 1:
            (mixed,) = (group for group in groups.values() if group is not heads[0])
            mixed.follows = heads[0].follows or (heads[0],)
    for streams, made in squares:
        if not any(group.role in HEAD_COUNTS | HEAD_WIDTHS for group in streams):
            parts = [group for group in made if not group.role]
            _hold_together(inspection, streams, [group for group in made if group.role in HEAD_COUNTS | HEAD_WIDTHS])
            if len(parts) > 1 and len(parts) == len(made):
                for group in (*streams, *parts):
                    _hold_group(inspection, group, f"which of the factors of {made[0].name!r} grows is not known")


def _roots(group: Group) -> tuple[Group, ...]:
    """Return the groups that a group follows in the end."""
    seen = {id(group)}
    followed = group.follows
    while len(followed) == 1 and followed[0].follows and id(followed[0]) not in seen:
        seen.add(id(followed[0]))
        followed = followed[0].follows
    return followed


def _squares(layer: Layer, group_of: Mapping[Dim, Group]) -> Iterator[tuple[tuple[Group, ...], list[Group]]]:
    """Yield what a layer reads where it makes as much, and what it makes: all of an axis, or of parts in a row."""
    streams = tuple(dict.fromkeys(group_of[dim] for dim in sorted(layer.reads, key=_serial) if dim in group_of))
    if not streams or math.prod(group.size for group in streams) != layer.width:
        return
    run: list[Group] = []
    total = 0
    for size, term in zip(layer.sizes, layer.terms, strict=True):
        made = list(dict.fromkeys(group_of[dim] for dim in term if dim in group_of))
        heads = [group for group in made if group.role in HEAD_COUNTS | HEAD_WIDTHS]
        if math.prod(group.size for group in heads or made) == layer.width:  # perhaps several times: q, k and v
            yield streams, made
            continue
        run, total = run + made, total + size
        if total == layer.width:
            yield streams, list(dict.fromkeys(run))
        if total >= layer.width:
            run, total = [], 0


def _serial(dim: Dim) -> int:
    return dim.serial


def _hold_together(inspection: Inspection, streams: Sequence[Group], heads: Sequence[Group]) -> None:
    """Let a stream have only sizes that the heads of an attention as wide as it can make up, or keep its size."""
    if not heads:
        return
    leaders = [leader for stream in streams for leader in (stream, *stream.follows)]
    following = [group for group in heads if any(leader in leaders for leader in group.follows)]
    if not any(group.reason is None for group in following):
        reason = f"is as wide as all heads of {heads[0].name!r}, which do not grow"
        for stream in streams:
            _hold_group(inspection, stream, next((f"{reason}: {g.reason}" for g in heads if g.reason), reason))
    for stream in streams:
        for group in following:
            stream.step = math.lcm(stream.step, stream.size // math.gcd(stream.size, group.size))


def _hold_group(inspection: Inspection, group: Group, reason: str) -> None:
    """Keep the size of a group, and of those that grow by one factor with it."""
    ratios = {dim.ratio.root() for dim in group.dims if dim.ratio is not None}
    for other in inspection.groups:
        shares = any(dim.ratio is not None and dim.ratio.root() in ratios for dim in other.dims)
        if other is group or shares:
            other.reason = other.reason or reason
