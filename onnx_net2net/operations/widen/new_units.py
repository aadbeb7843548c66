"""Which new units a dim admits: copies, units with weights of their own, or units appended to the interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.algebra.maps import MapKind
from onnx_net2net.analysis.groups import Group
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.padding import State, follow
from onnx_net2net.graph.walk import label_of, source
from onnx_net2net.rules import traits


def appended_as(analysis: Analysis, group: Group, prior: float | None) -> tuple[str, str | None]:
    """Return how new units of a dim of the interface come about, and why they cannot.

    Units that a weight reads, and entries of tables, are of their own and weighed by 0; the others are classes.
    """
    dims = set(group.dims)
    read = {dim for said in analysis.said.values() for c in said.contractions for dim in leaves(c.axis)}
    listed = {dim for said in analysis.said.values() for axis in said.tables for dim in leaves(axis)}
    normalised = [number for number, said in analysis.said.items() if dims & leaf_set(*said.normalised)]
    breaking = ((dim, why) for number, dim, why in _breaking(analysis, "zero_out") if number < max(normalised))
    unfit = dict(breaking) if normalised else unfit_dims(analysis, "zero_out")
    reason = next((unfit.get(dim) or dim.statistic or dim.copies for dim in group.dims), None)
    if len(dims) > 1:
        reason = "its units are rearranged one by one"
    if dims & (read | listed):
        return "zero_out", "a softmax over it would notice them" if normalised else reason
    integers = {use.constant.name for use in analysis.uses.values() if any(dims & set(leaves(a)) for a in use.axes)}
    if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in integers):
        reason = "its weights are integers, which cannot express a prior"
    if normalised and prior:
        reason = "under a softmax new classes change the old ones, unless they start at a prior of 0"
    logits = {analysis.nodes[number].inputs[0].name for number in normalised}
    if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in logits):
        reason = "it is normalised in integers, which cannot express a probability of 0"
    return "never" if normalised else "prior", reason


def interface_axes(analysis: Analysis, dims: set[Dim]) -> Iterator[tuple[str, int, Axis]]:
    """Yield where inputs and outputs have one of the dims: their name, the position and the axis."""
    graph = analysis.graph
    for tensor in (*graph.inputs, *graph.outputs):
        for position, axis in enumerate(analysis.axes.get(tensor.name, ())):
            if dims & set(leaves(axis)):
                yield tensor.name, position, axis


def interface_names(analysis: Analysis, groups: Sequence[Group]) -> dict[int, tuple[str, ...]]:
    """Return what people call groups of the interface, by id: inputs.NAME and outputs.NAME.

    Where an input or output has several, each has its axis behind the name: inputs.NAME[1]. The rows of a table belong
    to the input that they are looked up by.
    """
    names: dict[int, tuple[str, ...]] = {}
    of_dim = {dim: group for group in groups if group.on_request for dim in group.dims}
    graph = analysis.graph
    for kind, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for tensor in tensors:
            axes = analysis.axes.get(tensor.name, ())
            found = [(p, of_dim[dim]) for p, axis in enumerate(axes) for dim in leaf_set(axis) if dim in of_dim]
            for position, group in found:
                plain = (f"{kind}.{tensor.name}",) if len(found) == 1 else ()
                names[id(group)] = (*names.get(id(group), ()), *plain, f"{kind}.{tensor.name}[{position}]")
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for axis in said.tables if node.op in traits.LOOKUPS else ():
            index = min(traits.LOOKUPS[node.op][0])
            asked = source(node.inputs[index], traits.INDEX_PATHS)
            for group in {of_dim[dim] for dim in leaf_set(axis) if dim in of_dim}:
                if any(asked is tensor for tensor in graph.inputs):
                    names[id(group)] = (*names.get(id(group), ()), f"inputs.{asked.name}")
    return names


def unfit_dims(analysis: Analysis, kind: MapKind) -> dict[Dim, str]:
    """Return the dims that do not admit a kind of new units, with the reason.

    Units that start at zero (`zero_in`) need phi(0) = 0 all the way, and learn nothing behind a ReLU; units of random
    values that are weighed by 0 (`zero_out`) must stay finite. Neither may change a statistic or an extreme.
    """
    if kind not in UNFITTING:
        return {}
    unfit = {dim: dim.statistic or dim.copies or "" for dim in analysis.dims() if dim.statistic or dim.copies}
    for number, said in analysis.said.items():
        for dim in (dim for axis in said.normalised for dim in leaves(axis)):
            node = analysis.nodes[number]
            unfit.setdefault(dim, f"{label_of(node)} normalises over this axis")
    for _, dim, reason in _breaking(analysis, kind):
        unfit.setdefault(dim, reason)
    if kind == "zero_in":
        _note_lost_zeros(analysis, unfit)
    return unfit


def _breaking(analysis: Analysis, kind: MapKind) -> Iterator[tuple[int, Dim, str]]:
    """Yield each node whose function rules out a kind of new units, with a dim of its results and the reason."""
    for number, said in analysis.said.items():
        reason = UNFITTING[kind].get(said.pointwise or "")
        node = analysis.nodes[number]
        made = [axis for tensor in node.outputs for axis in analysis.axes.get(tensor.name, ())]
        broken = analysis.input_axes(number, 1) or () if node.op in traits.QUOTIENTS else made  # by zero, not of zero
        for dim in leaf_set(*broken) if reason else ():
            yield number, dim, f"{label_of(node)} {reason}"


def _note_lost_zeros(analysis: Analysis, unfit: dict[Dim, str]) -> None:
    """Add the dims whose new units do not reach their readers as zeros."""
    zeros: dict[Dim, State] = {dim: "zero" for dim in analysis.dims() if not dim.frozen and dim not in unfit}
    states = follow(analysis, zeros).states
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for contraction in said.contractions:
            for index, _ in contraction.sides:
                held = states.get(node.inputs[index].name, {})
                for dim in leaves(contraction.axis):
                    if held.get(dim, "zero") != "zero":
                        reason = "reads its units after an operation that does not keep zeros"
                        unfit.setdefault(dim, f"{label_of(node)} {reason}")


UNFITTING: dict[str, dict[str, str]] = {
    "zero_in": {"relu": "lets no gradient through at zero, so that the new units would never learn"},
    "zero_out": {"partial": "may make an infinity of random values"},
}
"""For each map, what of a node between the units and their readers rules it out."""
