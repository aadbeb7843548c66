"""Replace sequences of tensors by the tensors in them, where constants say which: a part of a split is a Slice.

`chunk` and `split` of torch become SplitToSequence and SequenceAt where an exporter does not optimize, and lists of a
scripted model SequenceConstruct. Their rules could say nothing: a sequence has no axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.model.protos import bodies, captured, initializer_names, integer, refill, scopes, value_names
from onnx_net2net.rules import traits


def without_sequences(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the sequences whose parts are known; the model itself where it has none."""
    nodes = (node for scope in scopes(proto) for node in scope.node if node.domain in DEFAULT_DOMAIN)
    if not any(node.op_type in traits.SEQUENCES for node in nodes):
        return proto
    proto = copy.deepcopy(proto)
    names = {name for scope in scopes(proto) for node in scope.node for name in (*node.input, *node.output)}
    names.update(name for scope in scopes(proto) for name in initializer_names(scope))
    for graph in _graphs(proto.graph):
        _Unpacking(graph, names).replace_all()
    return proto


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)


class _Unpacking:
    """One graph whose sequences are replaced; names of new tensors are not among `names`."""

    def __init__(self, graph: onnx.GraphProto, names: set[str]) -> None:
        self._graph, self._names = graph, names
        self._makers = {name: node for node in graph.node for name in node.output}
        fed = value_names(graph.input)  # an initializer among the inputs is a default, and no constant
        self._constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed}

    def replace_all(self) -> None:
        """Replace what reads sequences, and drop the sequences that nobody reads any more."""
        refill(self._graph.node, [new for node in self._graph.node for new in self._replaced(node) or (node,)])
        while unread := self._unread():
            refill(self._graph.node, [node for node in self._graph.node if not unread.intersection(node.output)])

    def _unread(self) -> set[str]:
        read = captured(self._graph.node).union(value_names(self._graph.output), *(n.input for n in self._graph.node))
        made = {name for node in self._graph.node if node.op_type in traits.SEQUENCES for name in node.output}
        return made - read

    def _replaced(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return what computes the same as a node that reads a sequence, None where it is to stay."""
        replace = {"SequenceAt": self._part, "ConcatFromSequence": self._joined}.get(node.op_type)
        return replace(node) if replace is not None and node.domain in DEFAULT_DOMAIN else None

    def _joined(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the node that joins the parts of a sequence."""
        parts, axis = self._parts(node.input[0]), integer(node, "axis")
        is_cat = parts and not integer(node, "new_axis")
        return [helper.make_node("Concat", parts, node.output, node.name, axis=axis)] if is_cat else None

    def _part(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the node that takes a part of a sequence."""
        maker, parts, place = self._makers.get(node.input[0]), self._parts(node.input[0]), self._known(node.input[1])
        if place is None:
            return None
        if parts is not None and -len(parts) <= place.item() < len(parts):
            return [helper.make_node("Identity", [parts[place.item()]], node.output, node.name)]
        if maker is not None and maker.op_type == "SplitToSequence":
            return self._part_of_split(maker, node, int(place.item()))
        return None

    def _parts(self, name: str) -> list[str] | None:
        """Return the tensors that were put into a sequence one by one, None where that is not known."""
        added: list[str] = []
        while True:
            maker = self._makers.get(name)
            if maker is None or maker.domain not in DEFAULT_DOMAIN:
                return None
            if maker.op_type != "SequenceInsert" or len(maker.input) != 2:
                break
            name, last = maker.input
            added.append(last)
        is_known = maker.op_type in ("SequenceConstruct", "SequenceEmpty")
        return [*maker.input, *reversed(added)] if is_known else None

    def _part_of_split(self, split: onnx.NodeProto, node: onnx.NodeProto, place: int) -> list[onnx.NodeProto] | None:
        """Return the node that takes one part of a split; a scalar says how large all parts but the last are."""
        source, axis = split.input[0], integer(split, "axis")
        if len(split.input) == 1 and not integer(split, "keepdims", 1):
            index = self._constant(node, place)
            return [helper.make_node("Gather", [source, index], node.output, node.name, axis=axis)]
        lengths = self._known(split.input[1]) if len(split.input) > 1 else np.array(1)
        if lengths is None or (place < 0 and lengths.ndim == 0):
            return None
        start, length = (place * lengths, lengths) if lengths.ndim == 0 else (lengths[:place].sum(), lengths[place])
        bounds = [self._constant(node, [int(bound)]) for bound in (start, start + length, axis)]
        return [helper.make_node("Slice", [source, *bounds], node.output, node.name)]

    def _known(self, name: str) -> np.ndarray | None:
        """Return the value of a constant."""
        node = self._makers.get(name)
        tensor = self._constants.get(name)
        if node is not None and node.op_type in traits.CONSTANTS:
            value = helper.get_attribute_value(node.attribute[0])
            tensor = value if isinstance(value, onnx.TensorProto) else None
            if tensor is None:
                return np.array(value)
        is_here = tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL
        return numpy_helper.to_array(tensor) if is_here else None

    def _constant(self, node: onnx.NodeProto, value: int | list[int]) -> str:
        name = base = f"{node.output[0]}_place"
        number = 0
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name
