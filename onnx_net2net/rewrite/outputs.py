"""Outputs that are hidden units too: widening cuts them back to the teacher's units, narrowing takes the cuts off.

A cut is a Gather that picks units of a hidden tensor and makes an output of them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_net2net.algebra.maps import compose
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Tensor, Variable
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import integer, refill
from onnx_net2net.model.tensors import stub_key
from onnx_net2net.rewrite.rewriting import Inserted, Rewriting
from onnx_net2net.rules import traits


def cut_outputs(rewriting: Rewriting) -> None:
    """Cut outputs that are hidden units too back to the teacher's units, and to those that were asked for."""
    graph, growth = rewriting.graph, rewriting.growth
    asked = {dim: dataclasses.replace(map, first=np.ones(map.new, bool))
             for dim, map in growth.items() if dim.pinned}  # fmt: skip
    for output in graph.graph.outputs:
        maps = [compose(axis, {**growth, **asked}) for axis in rewriting.axes.get(output.name, ())]
        grown = [position for position, map in enumerate(maps) if not map.first.all()]
        if not grown or output.name not in rewriting.analysis.cut:
            continue
        if output.shape is not None:
            sizes = zip(maps, output.shape, strict=True)
            output.shape = [stated if map.first.sum() == map.old else int(map.first.sum()) for map, stated in sizes]
        inner = Variable(graph.unique_name(f"{output.name}_grown"), dtype=output.dtype, shape=output.shape)
        rewriting.axes[inner.name] = rewriting.axes.pop(output.name)
        _replace(output, inner)
        rewriting.inserted.append(Inserted("Gather behind the output", output.name))
        source = inner
        for position in grown:
            units = graph.constant(f"{output.name}_units", np.flatnonzero(maps[position].first))
            cut = output if position == grown[-1] else Variable(graph.unique_name(f"{output.name}_cut"), output.dtype)
            source = Writer(graph, f"{output.name}_").Gather(source, units, result=cut, axis=position)


def _replace(old: Tensor, new: Tensor) -> None:
    """Let all nodes make and read another tensor in place of one."""
    for node in (*old.inputs, *old.outputs):
        for tensors in (node.inputs, node.outputs):
            for position, tensor in enumerate(tensors):
                if tensor is old:
                    tensors[position] = new


@dataclass(frozen=True)
class OutputGather:
    """A Gather that makes an output of a hidden tensor.

    Attributes:
        node: The Gather.
        output: What it makes.
        axis: Along which it picks units.
        places: The units that it picks.
    """

    node: onnx.NodeProto
    output: onnx.ValueInfoProto
    axis: int
    places: np.ndarray


def uncut(model: Model) -> tuple[Model, list[OutputGather]]:
    """Return a model with hidden tensors for outputs where these were cut, and the cuts."""
    graph = model.proto.graph
    outputs = {value.name: value for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer if stub_key(tensor) is None}
    readers = Counter(name for node in graph.node for name in node.input)
    made = {name for node in graph.node for name in node.output} - outputs.keys()
    cuts: dict[str, OutputGather] = {}
    for node in graph.node:
        source, places = (*node.input, "", "")[:2]
        shown = outputs.get(node.output[0]) if node.op_type in traits.ROWS else None
        if shown is None or source not in made or source in cuts or places not in constants or readers[shown.name]:
            continue
        index = numpy_helper.to_array(constants[places])
        axis = integer(node, "axis")
        rank = len(shown.type.tensor_type.shape.dim)
        if index.ndim == 1 and 0 <= axis < rank and index.min(initial=0) >= 0:
            cuts[source] = OutputGather(node, shown, axis, index)
    if not cuts:
        return model, []
    proto = copy.deepcopy(model.proto)
    gone = {cut.output.name: source for source, cut in cuts.items()}
    refill(proto.graph.node, [node for node in proto.graph.node if not gone.keys() & set(node.output)])
    for value in proto.graph.output:
        if value.name in gone:
            cut = cuts[gone[value.name]]
            value.name = gone[value.name]
            value.type.tensor_type.shape.dim[cut.axis].Clear()
    refill(proto.graph.value_info, [value for value in proto.graph.value_info if value.name not in cuts])
    return dataclasses.replace(model, proto=proto), list(cuts.values())


def cut_again(model: Model, cuts: list[OutputGather]) -> Model:
    """Return a model whose outputs are cut again; `places` of the cuts count the units that there are now."""
    proto = copy.deepcopy(model.proto)
    by_source = {cut.node.input[0]: cut for cut in cuts}
    taken = {name for node in proto.graph.node for name in node.input}
    for value in proto.graph.output:
        cut = by_source.get(value.name)
        if cut is None:
            continue
        value.CopyFrom(cut.output)
        node = proto.graph.node.add()
        node.CopyFrom(cut.node)
        if node.input[1] in taken:
            node.input[1] = f"{cut.output.name}_places"
        refill(proto.graph.initializer, [t for t in proto.graph.initializer if t.name != node.input[1]])
        proto.graph.initializer.append(numpy_helper.from_array(cut.places, node.input[1]))
        taken.add(node.input[1])
    return dataclasses.replace(model, proto=proto)
