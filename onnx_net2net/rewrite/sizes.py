"""Numbers that are sizes: every node gets those that it needs in the student.

Of the three kinds of numbers that follow a width, attributes (`group`) are set, size constants are replaced at the one
input that reads them, and sizes taken from Shape follow by themselves. They do so also where they must not: a size
that is used as data (the square root of a head's width, 1 / N) keeps the teacher's value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from onnx_net2net.algebra.dims import Axis
from onnx_net2net.algebra.floats import Array, are_equal
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph import sizes
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Tensor, Variable
from onnx_net2net.graph.walk import made_by
from onnx_net2net.model.model import Model
from onnx_net2net.rewrite.rewriting import Inserted, Rewriting
from onnx_net2net.rules import traits
from onnx_net2net.rules.statements import Selection


def resize(teacher: Model, rewriting: Rewriting) -> None:
    """Give every node the numbers that it needs at the new sizes, whose constants must have them already.

    Raises:
        RefusedError: If a size that grows is an output, or is read in a body.
    """
    for number in rewriting.analysis.said:
        _set_attributes(rewriting, number)
    _set_inputs(teacher, rewriting)
    for number, said in rewriting.analysis.said.items():
        for selection in said.selections:
            _select(rewriting, number, selection)
        for index, position in said.counts:
            _count(rewriting, number, index, position)
        _list_runs(rewriting, number)


def _total(rewriting: Rewriting, axes: Sequence[Axis]) -> tuple[int, int]:
    """Return the size of some axes together, in the teacher and in the student."""
    return sum(axis.size for axis in axes), sum(map(rewriting.size, axes))


def _place(given: int, size: int) -> int:
    """Return the place that a bound means on an axis of a size."""
    return max(0, min(given + size if given < 0 else given, size))


# --- Attributes ----------------------------------------------------------------------------------------------


def _set_attributes(rewriting: Rewriting, number: int) -> None:
    """Set the attributes that are sizes; places on an axis that still mean the same stay as they are written."""
    said, node = rewriting.analysis.said[number], rewriting.nodes[number]
    attrs = node.attrs
    missing: dict[str, dict[int, tuple[int, int]]] = {}
    for name, value, axis in said.defaults:
        if rewriting.grown(axis):
            attrs[name] = value
            rewriting.note(f"{name} in {node.op}", node)
    for size in said.size_attributes:
        old, new = _total(rewriting, size.axes)
        if size.element is None:
            if old != new:
                attrs[size.name] = new
        elif size.name not in attrs:
            missing.setdefault(size.name, {})[size.element] = old, new
        elif size.whole is None or _place(attrs[size.name][size.element], rewriting.size(size.whole)) != new:
            attrs[size.name] = [new if k == size.element else v for k, v in enumerate(attrs[size.name])]
    for name, entries in missing.items():  # equal parts that need not be written down, until they differ
        if len({new for _, new in entries.values()}) > 1 and any(old != new for old, new in entries.values()):
            attrs[name] = [new for _, (_, new) in sorted(entries.items())]


# --- Inputs --------------------------------------------------------------------------------------------------


def _set_inputs(teacher: Model, rewriting: Rewriting) -> None:
    """Give each node the numbers that it reads, where the graph would not compute them."""
    known = rewriting.analysis.sizes.values
    student = _student_sizes(teacher, rewriting)
    for number, node in enumerate(list(rewriting.graph.graph.nodes)):
        needs = _needs(rewriting, number)
        passes_on = any(output.name in known for output in node.outputs)
        for index, tensor in enumerate(node.inputs):
            is_data = index not in needs and not passes_on  # it keeps its value
            have, need = student.values.get(tensor.name), known.get(tensor.name) if is_data else needs.get(index)
            if have is not None and need is not None and have.shape == need.shape and not are_equal(have, need):
                node.inputs[index] = _supply(rewriting, tensor, have, need)
                if is_data:
                    rewriting.note(f"the teacher's size in {node.op}", node, is_number=True)
        _split_unequal(rewriting, number)
    kept = {tensor.name: f"the model's output {tensor.name!r}" for tensor in rewriting.graph.graph.outputs}
    for node in rewriting.graph.graph.nodes:
        kept.update(dict.fromkeys(rewriting.graph.captured(node), f"what {node.op} {node.name!r} reads in its body"))
    for name, what in kept.items():
        have, need = student.values.get(name), known.get(name)
        if have is not None and need is not None and not are_equal(have, need):
            raise RefusedError(f"{what} is a size that would grow")


def _student_sizes(teacher: Model, rewriting: Rewriting) -> sizes.Sizes:
    """Return the sizes of the student, as far as the teacher's graph computes them."""
    known = rewriting.analysis.sizes
    types = dict(known.types)
    for name, axes in rewriting.axes.items():
        if any(map(rewriting.grown, axes)):
            types[name] = helper.make_tensor_type_proto(known.dtype(name), list(map(rewriting.size, axes)))
    for use in rewriting.analysis.uses.values():  # a constant may have grown for some of its readers only
        name = use.constant.name
        types[name] = helper.make_tensor_type_proto(known.dtype(name), use.constant.shape)
    return sizes.reevaluate(teacher.proto, known, types)


def _needs(rewriting: Rewriting, number: int) -> dict[int, Array]:
    """Return the values that the integer inputs of a node must have in the student."""
    needs: dict[int, Array] = {}
    said = rewriting.analysis.said.get(number)
    inputs = rewriting.nodes[number].inputs if said is not None else []
    for size in said.size_inputs if said is not None else ():
        raw = rewriting.analysis.sizes.values.get(inputs[size.input].name) if size.input < len(inputs) else None
        if raw is None:
            continue
        need = needs.setdefault(size.input, raw.copy()).reshape(-1)
        old, new = _total(rewriting, size.axes)
        given = int(raw.reshape(-1)[size.element])
        if size.whole is not None:
            stays = _place(given, rewriting.size(size.whole)) == new
        elif given in size.instead:
            stands_for = size.instead[given]
            stays = stands_for is None or rewriting.size(stands_for) == new
        else:
            stays = old == new
        if not stays:
            need[size.element] = new
    return needs


def _supply(rewriting: Rewriting, tensor: Tensor, have: Array, need: Array) -> Tensor:
    """Return a tensor of the needed value: a constant, or the computed one corrected where sizes are dynamic."""
    graph, known = rewriting.graph, rewriting.analysis.sizes
    if not known.binding or tensor.name in known.constant:
        return graph.constant(f"{tensor.name}_grown", need)

    def grown() -> Variable:
        return Variable(graph.unique_name(f"{tensor.name}_grown"), dtype=tensor.dtype)

    op = Writer(graph, f"{tensor.name}_")
    producer = made_by(tensor, traits.JOINS)
    if producer is not None and have.ndim == 1:
        parts, start = [], 0
        for part in producer.inputs:
            stop = start + int(np.prod(known.shape(part.name) or (1,)))
            same = np.array_equal(have[start:stop], need[start:stop])
            parts.append(part if same else _supply(rewriting, part, have[start:stop], need[start:stop]))
            start = stop
        return op.Concat(*parts, result=grown(), axis=0)
    times = graph.constant(f"{tensor.name}_times", need)
    over = graph.constant(f"{tensor.name}_over", np.where(have == 0, 1, have).astype(have.dtype))
    return op.Div(op.Mul(tensor, times, result=grown()), over, result=grown())


def _split_unequal(rewriting: Rewriting, number: int) -> None:
    """Write down the sizes of a Split that gave none, where its parts no longer are equal."""
    said = rewriting.analysis.said.get(number)
    node = rewriting.nodes[number] if said is not None and said.size_inputs else None
    if node is None or said is None or node.op not in traits.SPLITS or len(node.inputs) > 1:
        return
    totals = [_total(rewriting, size.axes) for size in said.size_inputs]
    if any(old != new for old, new in totals) and len({new for _, new in totals}) > 1:
        node.attrs.pop("num_outputs", None)
        parts = np.array([new for _, new in totals])
        node.inputs.append(rewriting.graph.constant(f"{node.outputs[0].name}_sizes", parts))


# --- Places --------------------------------------------------------------------------------------------------


def _select(rewriting: Rewriting, number: int, selection: Selection) -> None:
    """Say where the picked units are in the grown source; a shuffle or a strided Slice becomes one Gather."""
    if not any(map(rewriting.grown, selection.units)):
        return
    widths = np.array(list(map(rewriting.size, selection.units)))
    starts = np.cumsum(widths) - widths
    places = np.concatenate([np.arange(starts[k], starts[k] + widths[k]) for k in selection.order])
    node, graph = rewriting.nodes[number], rewriting.graph
    if selection.input is not None:
        shape = rewriting.analysis.sizes.shape(node.inputs[selection.input].name) or ()
        places = places.reshape([len(places) if size > 1 else 1 for size in shape])
    index = graph.constant(f"{node.outputs[0].name}_order", places.astype(np.int64))
    if selection.input is not None:
        node.inputs[selection.input] = index
        rewriting.note(f"places for {node.op}", node)
        return
    output = node.outputs[0]
    node.outputs.clear()
    shuffle = rewriting.analysis.shuffles.get(number)
    source = (rewriting.nodes[shuffle.first] if shuffle is not None else node).inputs[0]
    label = node.name or output.name
    Writer(graph, f"{label}_").Gather(source, index, result=output, axis=selection.axis)
    rewriting.inserted.append(Inserted(f"Gather instead of {node.op}", label))


def _count(rewriting: Rewriting, number: int, index: int, position: int) -> None:
    """Let a list of all places along an axis that grows count on."""
    axes = rewriting.analysis.input_axes(number, index) or ()
    if rewriting.grown(axes[position]):
        node, size = rewriting.nodes[number], rewriting.size(axes[position])
        kind = helper.tensor_dtype_to_np_dtype(rewriting.analysis.sizes.dtype(node.inputs[index].name))
        places = np.arange(size, dtype=kind).reshape([size if p == position else 1 for p in range(len(axes))])
        node.inputs[index] = rewriting.graph.constant(f"{node.outputs[0].name}_places", places)


def _list_runs(rewriting: Rewriting, number: int) -> None:
    """Write a list of places down anew, whose runs are longer or lie elsewhere; its other columns stay.

    Places that count from the end of an axis lie elsewhere, too, where only what is behind them grows.
    """
    runs = rewriting.analysis.said[number].runs
    if not any(rewriting.grown(axis) for run in runs for axis in (run.before, run.units, run.rest)):
        return
    node, index = rewriting.nodes[number], runs[0].input
    use = rewriting.analysis.uses.get((number, index))
    places = rewriting.graph.read(use.constant) if use else rewriting.analysis.sizes.values[node.inputs[index].name]
    for run in runs:
        start, size = rewriting.size(run.before), rewriting.size(run.units)
        places = np.take(places, np.zeros(size, np.int64), axis=run.along)
        shape = [size if axis == run.along else 1 for axis in range(places.ndim - 1)]
        places[..., run.column] = np.arange(start, start + size).reshape(shape)
    node.inputs[index] = rewriting.graph.constant(f"{node.outputs[0].name}_places", places)
    rewriting.note(f"places for {node.op}", node)
