"""Growth that a framework's class can follow: only its weights and sizes grow, and it computes all other numbers anew.

A student in a file may have nodes, attributes and constants that its teacher did not have. A class that is made at
other sizes has only the teacher's operations. Some constants of the file it computes from its sizes: the scale
`head_dim ** -0.5` of an attention, the table of a rotary embedding, `sqrt(hidden)` behind an embedding. So dims whose
growth needs more than other weights and sizes are frozen here, each with the reason.

Classes also use one size for several widths. If a layer reads a residual stream and has as many outputs, the two widths
are taken to be one size of the class: all heads of an attention together, or the dense layer in front of an output.
These outputs then grow with the stream.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import onnx

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.computed import computed
from onnx_net2net.analysis.equal_widths import follow_widths
from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.analysis.groups import Inspection, inspect_analysis, paused_gc
from onnx_net2net.analysis.inference import Analysis, Use, infer
from onnx_net2net.analysis.multipliers import FrozenConstant, held_numbers
from onnx_net2net.analysis.names import name_dims, scope_of
from onnx_net2net.analysis.padding import State, follow
from onnx_net2net.analysis.routers import routed_dims
from onnx_net2net.analysis.ties import Ties, find_ties
from onnx_net2net.analysis.weighing import Ways, find_ways, is_free, is_unweighed, scalable, weighed_axes
from onnx_net2net.analysis.weight_norms import find_norms
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.flatten import Opened, open_bodies
from onnx_net2net.graph.graph import Place
from onnx_net2net.graph.walk import label_of
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.rules import traits
from onnx_net2net.texts import FRAMEWORKS

LISTS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
"""Types of constants that hold places, and no weights."""


def check_framework(framework: str | None) -> None:
    """Refuse the name of an unknown framework.

    Raises:
        BadInputError: It is none of `FRAMEWORKS`.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise BadInputError(f"there is no framework {framework!r}; there are {', '.join(FRAMEWORKS)}")


class Loadable(NamedTuple):
    """A model that was analysed for growth."""

    opened: Opened  # the model, with its bodies opened
    analysis: Analysis  # its dims; those are held that a class could not follow
    inspection: Inspection  # the same as people see them
    ties: Ties  # what else changes for tied weights


def analyse(
    model: Model, framework: str | None, *, keep_numbers: bool = False, with_zeros: bool = False,
    scale_weights: bool = False,
) -> Loadable:  # fmt: skip
    """Find the dims of a model, and freeze those whose growth a class of a framework could not follow.

    Args:
        model: A loaded model.
        framework: One of `onnx_net2net.texts.FRAMEWORKS`, or None if a file is enough.
        keep_numbers: Whether the class is known to compute none of its numbers from sizes.
        with_zeros: Whether new units hold zeros where possible, so that they add nothing to the statistic of a norm.
        scale_weights: Whether weights will be scaled to cancel the change of numbers that the class computes anew.

    Raises:
        BadInputError: There is no such framework.
    """
    check_framework(framework)
    opened, ties, names = open_bodies(model), Ties(), dict[Dim, str]()

    def hold(analysis: Analysis) -> None:
        nonlocal ties
        names.update(name_dims(analysis, opened.model.proto))  # before any are held, so that all have the same names
        if framework:
            ties = _hold(analysis, opened.model.proto, keep_numbers, with_zeros, scale_weights)

    analysis = infer(opened.model, by_units=framework is None, hold=hold)
    inspection = inspect_analysis(opened.model, analysis, names)
    if framework:
        for group in inspection.groups:
            group.padding, group.fillable = None, False  # a class keeps its epsilons, and has no nodes around its norms
        follow_widths(analysis, inspection)
    return Loadable(opened, analysis, inspection, ties)


def inspect_for(framework: str | None, model: ModelLike) -> Inspection:
    """Do the same as `inspect`, for growth that a class of a framework can follow.

    Args:
        framework: As in `analyse`.
        model: A path, a model in memory or a loaded model.

    Raises:
        BadInputError: If there is no such framework, or the model cannot be used.
    """
    loaded = load(model)
    with paused_gc():
        return analyse(loaded, framework).inspection


# --- What has to keep its size -------------------------------------------------------------------------------


def _hold(
    analysis: Analysis, proto: onnx.ModelProto, keep_numbers: bool, with_zeros: bool, scale_weights: bool
) -> Ties:
    """Freeze the dims whose growth a class could not follow.

    Returns:
        How tied weights are handled.
    """
    _join_layers(analysis, proto)
    scaled = partial(_is_scalable, analysis) if scale_weights else lambda _: False
    numbers = () if keep_numbers else held_numbers(analysis, scaled)
    known = list(computed(analysis, proto))
    doubtful = {id(use.constant) for use, _ in known}
    if proto.producer_name != "pytorch":  # nobody tells parameters from others
        doubtful.update(id(use.constant) for use in analysis.uses.values())
    ways, norms = find_ways(analysis), find_norms(analysis)
    held = [*numbers, *_computed(known, weighed_axes(analysis, ways))]
    zeros = _held_as_zeros(analysis) if with_zeros else {}
    for number in analysis.said:
        if number not in norms:
            held += _sums(analysis, number, ways, doubtful, zeros)
        held += _places(analysis, number)
    held += _lists_and_outputs(analysis)
    ties, tied = find_ties(analysis, ways, {use for norm in norms.values() for use in norm.uses})
    for axis, reason in [*held, *tied]:
        dims.freeze(axis, reason)
    for number, said in analysis.said.items():
        for contraction in said.contractions:
            if contraction.law == "mean" and is_unweighed(analysis, number, contraction, ties.tables):
                dims.keep_uniform(contraction.axis, f"{label_of(analysis.nodes[number])} takes a mean over it")
    return ties


def _is_scalable(analysis: Analysis, constant: FrozenConstant) -> bool:
    """Tell whether weights alone make what a number scales."""
    number, operand = constant.operand
    return operand >= 0 and bool(scalable(analysis, number, operand, constant.axis))


def _held_as_zeros(analysis: Analysis) -> Mapping[str, Collection[Dim]]:
    """Return the dims whose new units, if they start as zeros, hold zeros, for each tensor."""
    free: dict[Dim, State] = {dim: "zero" for dim in analysis.dims() if is_free(dim) and not dim.statistic}
    states = follow(analysis, free).states
    return {name: [dim for dim, state in held.items() if state == "zero"] for name, held in states.items()}


def _sums(
    analysis: Analysis,
    number: int,
    ways: Ways,
    doubtful: Collection[int],
    zeros: Mapping[str, Collection[Dim]],
) -> Iterator[tuple[Axis, str]]:
    """Yield each axis that a node sums over and a class could not grow, with the reason."""
    label = label_of(analysis.nodes[number])
    for contraction in analysis.said[number].contractions:
        axis, indices = contraction.axis, [index for index, _ in contraction.sides]
        if contraction.law == "square" and analysis.is_derived(number, 0) and _is_read_elsewhere(analysis, number):
            yield axis, f"{label} takes a norm of weights over it, and no gain could correct it"
        held = zeros.get(analysis.nodes[number].inputs[indices[0]].name, ()) if len(indices) == 1 else ()
        growing = [dim for dim in leaves(axis) if is_free(dim) and dim not in held]
        if contraction.law != "mean" and growing and ways[number, contraction.sides] is None:
            yield axis, f"{label} sums over it, and no weight of the class could weigh copies there"
        is_constant = len(indices) > 1 and all(analysis.is_derived(number, index) for index in indices)
        inputs = analysis.nodes[number].inputs
        is_zero = any(fill_of(analysis, inputs[index]) == 0 for index in indices)  # a state that starts at zeros
        is_constant = is_constant and not is_zero and not _is_norm(analysis, number)
        if is_constant and any(_may_be_computed(analysis, number, index, doubtful) for index in indices):
            yield axis, f"{label} multiplies constants, and a class may compute some of them"


def _places(analysis: Analysis, number: int) -> Iterator[tuple[Axis, str]]:
    """Yield each axis whose size or places a node uses and a class would not change, with the reason."""
    said, label = analysis.said[number], label_of(analysis.nodes[number])
    for position in said.shares:
        axes = analysis.input_axes(number, 0) or ()
        if leaf_set(axes[position]) <= routed_dims(analysis):
            continue  # experts, which get copies on request only, in ways that a class can follow
        yield axes[position], f"{label} divides a whole among its units, which a class would not correct"
    for name, _, axis in said.defaults:
        yield axis, f"{label} takes its {name} from this size, as a class would again"
    picked = [unit for selection in said.selections for unit in selection.units]
    for run in said.runs:
        picked += [run.before, run.units, run.rest] if run.before.size or run.rest.size else []
    for axis in picked:
        yield axis, f"{label} picks its units by their places, which a class does not move"


def _lists_and_outputs(analysis: Analysis) -> Iterator[tuple[Axis, str]]:
    """Yield the axes of lists of places, and of outputs that would be cut, with the reason."""
    for use in analysis.uses.values():
        if analysis.sizes.dtype(analysis.nodes[use.node].inputs[use.input].name) in LISTS:
            if any(index == use.input for index, _ in analysis.said[use.node].counts):
                continue  # as long as there are experts
            for axis in use.axes:
                yield (
                    axis,
                    f"{label_of(analysis.nodes[use.node])} looks its units up by a list, which a class does not grow",
                )
    for name in analysis.cut:
        for dim in leaf_set(*analysis.axes[name]):
            yield dim, f"is the model's output {name!r}, which a class would not cut"


def _join_layers(analysis: Analysis, proto: onnx.ModelProto) -> None:
    """Let the layers of one recurrent module have one size of state, as its constructor takes only one."""
    states: dict[tuple[str, str, int], Axis] = {}
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for size in said.size_attributes if node.op in traits.RECURRENT else ():
            module = scope_of(proto.graph.node[number])
            told = bool(module) or proto.producer_name == "pytorch"
            for axis in size.axes if told and size.name == "hidden_size" else ():
                first = states.setdefault((module, node.op, axis.size), axis)
                dims.unify(first, axis, f"is the state of all layers of {module or node.op}")


def _computed(
    known: Sequence[tuple[Use, tuple[int, ...]]], weighed: Mapping[Place, Mapping[int, int]]
) -> Iterator[tuple[Axis, str]]:
    """Yield the axes of constants that a class computes, but for those along which copies are what it computes too."""
    for use, varying in known:
        reason = f"{use.constant.name!r} is no weight: a class computes it from its sizes (export with folding off)"
        for position, axis in enumerate(use.axes):
            if position in varying or position in weighed.get((use.node, use.input), ()):
                yield axis, reason


def _may_be_computed(analysis: Analysis, number: int, index: int, doubtful: Collection[int]) -> bool:
    """Tell whether what follows from constants is neither made of parameters alone nor one number everywhere."""
    pending, seen = [(number, index)], set()
    while pending:
        place = pending.pop()
        tensor = analysis.nodes[place[0]].inputs[place[1]]
        use = analysis.uses.get(place)
        known = tensor.name if use is None else id(use.constant)
        if known in seen or fill_of(analysis, tensor) is not None:
            continue
        seen.add(known)
        if use is not None:
            if id(use.constant) in doubtful:
                return True
            continue
        maker = analysis.numbers[id(tensor.inputs[0])] if tensor.inputs else -1
        node = analysis.nodes[maker]
        if maker < 0 or node.op not in traits.MOVES | traits.PRODUCTS | (traits.ARITHMETIC - traits.QUOTIENTS):
            return True
        data = range(len(node.inputs)) if node.op not in traits.MOVES else (0,)
        pending += [(maker, other) for other in data if node.inputs[other].name]
    return False


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
