"""What onnx-graphsurgeon is shown of a model, and how its edits get back into the original.

onnx-graphsurgeon drops much of what a model carries (metadata, documentation, several attribute and value types,
functions' annotations, unused initializers). So an edited graph never becomes the model: only the differences
between its exports before and after are put into the original proto.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.model.protos import by_name, captured, initializer_names, refill, sorted_indices, value_names
from onnx_net2net.model.tensors import inherit


def portable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the parts that onnx-graphsurgeon cannot carry; it would share memory with the original."""
    proto = copy.deepcopy(proto)
    del proto.functions[:]
    proto.ClearField("training_info")
    graph = proto.graph
    for value in itertools.chain(graph.input, graph.output, graph.value_info):
        if not value.type.tensor_type.elem_type:
            value.ClearField("type")
    for node in graph.node:
        if not all(map(_is_portable, node.attribute)):
            refill(node.attribute, filter(_is_portable, node.attribute))
    return proto


def _is_portable(attribute: onnx.AttributeProto) -> bool:
    kinds = onnx.AttributeProto
    if attribute.type in (kinds.FLOATS, kinds.INTS, kinds.STRINGS):
        if not (attribute.floats or attribute.ints or attribute.strings):
            return False  # exporting an empty list raises
    elif attribute.type not in (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR):
        return False
    try:
        return all(text.decode() is not None for text in (attribute.s, *attribute.strings))
    except UnicodeDecodeError:
        return False


def merged_node(original: onnx.NodeProto, before: onnx.NodeProto, after: onnx.NodeProto) -> onnx.NodeProto:
    """Return the original node with the changes that lead from `before` to `after`."""
    node = copy.deepcopy(original)
    for field in ("op_type", "domain", "name"):
        if getattr(after, field) != getattr(before, field):
            setattr(node, field, getattr(after, field))
    for field in ("input", "output"):
        if getattr(after, field) != getattr(before, field):
            refill(getattr(node, field), getattr(after, field))
    if after.attribute != before.attribute:
        _merge_attributes(node, by_name(before.attribute), by_name(after.attribute))
    return node


def _merge_attributes(node: onnx.NodeProto, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    merged = []
    for old in node.attribute:
        new = after.get(old.name)
        if new == before.get(old.name):  # also those that were never shown
            merged.append(old)
        elif new is not None:
            if new.HasField("t"):
                inherit(new.t, old.t)
            new.doc_string = old.doc_string
            merged.append(new)
    refill(node.attribute, merged + _missing(after.values(), node.attribute))


def merge(
    proto: onnx.ModelProto, before: onnx.GraphProto, after: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]
) -> None:
    """Put finished nodes into the original model, and carry over what else changed from `before` to `after`.

    Raises:
        BadInputError: If the nodes have a cycle.
    """
    graph = proto.graph
    _import_domains(proto, nodes)
    captured_before, captured_now = captured(graph.node), captured(nodes)
    gone = (_tensor_names(before) | captured_before) - _tensor_names(after) - captured_now
    types = _changed_types(before, after)
    refill(graph.node, [nodes[index] for index in sorted_indices(nodes)])

    added = _missing(after.initializer, graph.initializer)
    _merge_initializers(graph, before, after, captured_before, captured_now)
    alive = {*initializer_names(graph), *value_names(after.input)}
    late = _missing(after.input, graph.input)
    if proto.ir_version < 4:  # there every initializer is an input too
        late += [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in added]
    refill(graph.input, _retyped([value for value in graph.input if value.name in alive] + late, types))
    outputs = by_name(graph.output)
    refill(graph.output, _retyped([outputs.get(value.name, value) for value in after.output], types))
    late = _missing(after.value_info, [*before.value_info, *graph.value_info])
    refill(graph.value_info, _retyped([v for v in graph.value_info if v.name not in gone] + late, types))
    refill(graph.quantization_annotation, [q for q in graph.quantization_annotation if q.tensor_name not in gone])


def _import_domains(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Import the domains of new nodes. Those that the original uses without importing them are not our business."""
    known = {*DEFAULT_DOMAIN, *(opset.domain for opset in proto.opset_import), *(n.domain for n in proto.graph.node)}
    for domain in dict.fromkeys(node.domain for node in nodes if node.domain not in known):
        proto.opset_import.add(domain=domain, version=1)


def _merge_initializers(
    graph: onnx.GraphProto,
    before: onnx.GraphProto,
    after: onnx.GraphProto,
    captured_before: set[str],
    captured_now: set[str],
) -> None:
    """Take over changed and new initializers, and drop those that had a use before and have none now."""
    produced = {name for node in graph.node for name in node.output}
    old, new = by_name(before.initializer), by_name(after.initializer)
    used_before, used = captured_before.union(initializer_names(before)), set(initializer_names(after))

    def stays(name: str) -> bool:
        return name in used or (name not in produced and (name in captured_now or name not in used_before))

    merged = []
    for tensor in graph.initializer:
        changed = new.get(tensor.name)
        if changed is not None and changed != old.get(tensor.name):
            inherit(changed, tensor)
            merged.append(changed)
        elif stays(tensor.name):
            merged.append(tensor)
    refill(graph.initializer, merged + _missing(after.initializer, graph.initializer))
    refill(graph.sparse_initializer, [t for t in graph.sparse_initializer if stays(t.values.name)])


def _missing(items: Iterable[Any], known: Iterable[Any]) -> list[Any]:
    """Return those items that have no namesake among the known ones."""
    names = by_name(known)
    return [item for item in items if item.name not in names]


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    names = {*initializer_names(graph), *value_names(graph.input), *value_names(graph.output)}
    return names.union(*(node.input for node in graph.node), *(node.output for node in graph.node))


def _changed_types(before: onnx.GraphProto, after: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Return the new type of each tensor, initializers included, whose type was edited."""

    def types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
        values = itertools.chain(graph.input, graph.output, graph.value_info)
        tensors = {t.name: onnx.helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}
        return {**{value.name: value.type for value in values}, **tensors}

    old = types(before)
    return {name: kind for name, kind in types(after).items() if kind != old.get(name)}


def _retyped(values: Iterable[onnx.ValueInfoProto], types: Mapping[str, onnx.TypeProto]) -> Iterator[Any]:
    for value in values:
        if value.name in types:
            value.type.CopyFrom(types[value.name])
        yield value
