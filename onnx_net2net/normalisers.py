"""Normalisers at widths that are no multiples: padding that they do not notice, or copies that they weigh.

A statistic over copies of some units more often than of others is another statistic. Where padding units stand
beside whole copies, the scale and the epsilon of the node make up for their share. Where copies stand beside single
units, the node is written as the arithmetic that it is, with means that weigh every copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_net2net.dims import Dim, leaves
from onnx_net2net.inference import Analysis
from onnx_net2net.maps import Filler, Growth, Map, compose
from onnx_net2net.operation import Statistic

Corrections = dict[tuple[int, int], tuple[float, Filler]]
"""For the scale and shift of normalisers and other scales (node, input): a factor, and what padding units have."""

_NARROW = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
"""Types whose statistics are taken in single precision."""


def weighable(analysis: Analysis) -> set[Dim]:
    """Return the dims whose statistics are all of normalisers that can be written as arithmetic."""
    can: set[Dim] = set()
    cannot: set[Dim] = set()
    for number, said in analysis.said.items():
        for statistic in said.statistics:
            over = {dim for axis in statistic.axes for dim in leaves(axis)}
            (can if _is_plain(analysis, number, statistic) else cannot).update(over)
    return can - cannot


def _is_plain(analysis: Analysis, number: int, statistic: Statistic) -> bool:
    """Tell whether a normaliser has a known law, runs over the last axes and gives out nothing else that is read."""
    node = analysis.nodes[number]
    axes = analysis.axes.get(node.outputs[0].name, ())
    others = [tensor for index, tensor in enumerate(node.outputs) if index not in (0, statistic.total)]
    last = axes[len(axes) - len(statistic.axes) :]
    return (
        statistic.law is not None
        and [list(leaves(axis)) for axis in last] == [list(leaves(axis)) for axis in statistic.axes]
        and not any(tensor.outputs or tensor.name in analysis.kept for tensor in others)
    )


def adapt_normalisers(analysis: Analysis, growth: Growth) -> Corrections:
    """Make normalisers not notice how their dims grow.

    With share s of units that are copies, epsilon and the square of the scale shrink by s (growth-math section 2).
    Normalisers of units that are copied unequally often are replaced by arithmetic, as soon as all else is rewritten.

    Returns:
        What becomes of the scale and shift of those in front of which units are padded.
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
            node.attrs["epsilon"] = float(node.attrs.get("epsilon", statistic.epsilon)) * share
            if statistic.scale is not None:
                corrections[number, statistic.scale] = share**0.5, "copy"
            if statistic.shift is not None:
                corrections[number, statistic.shift] = 1.0, "zero"
    return corrections


def weigh_copies(analysis: Analysis, growth: Growth, opset: int) -> None:
    """Write the normalisers of units that are copied unequally often as arithmetic that weighs the copies."""
    for number, said in analysis.said.items():
        for statistic in said.statistics:
            maps = [compose(axis, growth) for axis in statistic.axes]
            if not any(map.kind.any() for map in maps) and not all(_is_even(map) for map in maps):
                _write_out(analysis, number, statistic, maps, opset)


def _is_even(map: Map) -> bool:
    """Tell whether every unit is copied equally often."""
    return bool(np.allclose(map.weight * map.new, map.old))


def _write_out(analysis: Analysis, number: int, statistic: Statistic, maps: list[Map], opset: int) -> None:
    """Replace a node by (x - mean) / sqrt(mean of squares + epsilon) * scale + shift."""
    node = analysis.nodes[number]
    inputs, outputs = list(node.inputs), list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    write = _Writer(analysis, node.name or outputs[0].name)
    terms = [inputs[index] for index in statistic.inputs if index < len(inputs) and inputs[index].name]
    total = terms[0]
    for term in terms[1:]:
        total = write("Add", [total, term])
    if statistic.total is not None and statistic.total < len(outputs) and outputs[statistic.total].name:
        total = write("Identity", [total], outputs[statistic.total])
    dtype = analysis.sizes.dtype(outputs[0].name)
    wide = onnx.TensorProto.FLOAT if dtype in _NARROW else dtype
    x = write("Cast", [total], to=wide) if wide != dtype else total
    kind = helper.tensor_dtype_to_np_dtype(wide)
    weights, count = _weights(maps).astype(kind), np.array(prod(map.old for map in maps), kind)

    def mean(values: gs.Tensor) -> gs.Tensor:
        weighed = write("Mul", [values, write.constant("weights", weights)])
        axes = np.arange(-len(maps), 0)
        if opset < 13:
            sum = write("ReduceSum", [weighed], axes=axes.tolist(), keepdims=1)
        else:
            sum = write("ReduceSum", [weighed, write.constant("axes", axes)], keepdims=1)
        return write("Div", [sum, write.constant("count", count)])  # so that rounded weights shift no mean

    centred = write("Sub", [x, mean(x)]) if statistic.law == "layer" else x
    epsilon = np.array(node.attrs.get("epsilon", statistic.epsilon), kind)
    spread = write("Add", [mean(write("Mul", [centred, centred])), write.constant("epsilon", epsilon)])
    result = write("Div", [centred, write("Sqrt", [spread])])
    if wide != dtype:
        result = write("Cast", [result], to=dtype)
    operands = [(kind, inputs[index]) for kind, index in (("Mul", statistic.scale), ("Add", statistic.shift))
                if index is not None and index < len(inputs) and inputs[index].name]  # fmt: skip
    for operator, operand in operands:
        result = write(operator, [result, operand])
    write("Identity", [result], outputs[0])


def _weights(maps: Iterable[Map]) -> np.ndarray:
    """Return what each element counts in a sum over some axes: the elements that are copies of one count as one."""
    parts = np.ix_(*(map.weight for map in maps))
    return np.asarray(prod(parts[1:], start=parts[0]))


class _Writer:
    """Appends nodes in the place of one, under its name."""

    def __init__(self, analysis: Analysis, name: str) -> None:
        self._draft, self._name = analysis.draft, name

    def constant(self, what: str, values: np.ndarray) -> gs.Constant:
        """Return a new constant."""
        return self._draft.constant(f"{self._name}_{what}", values)

    def __call__(
        self, kind: str, inputs: list[gs.Tensor], output: gs.Variable | None = None, **attrs: object
    ) -> gs.Tensor:
        """Append a node and return its result."""
        name = self._draft.unique_name(f"{self._name}_{kind}")
        result = output if output is not None else gs.Variable(self._draft.unique_name(f"{name}_out"))
        self._draft.graph.nodes.append(gs.Node(kind, name, dict(attrs), inputs, [result]))
        return result
