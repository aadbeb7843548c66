"""Model files as protobuf lays them out: the data of initializers is written, and found, where it lies in the file.

A message that holds all weights is in memory several times until it is a file. Here only what is around them is a
message.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]

from onnx_net2net.model.tensors import Weight, clear_data, stub_key

Part = bytes | int
"""A part of a file: bytes, or the key of the weight that stands there."""

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def parts_of(proto: onnx.ModelProto, weights: Mapping[int, Weight]) -> list[Part]:
    """Return a model in parts, in order: protobuf would write the same bytes, were the weights in it.

    Args:
        proto: The model. Stubs among the initializers of its graph become weights, others are left as they are.
        weights: What the stubs stand for.
    """
    found: list[Part] = []
    for tensor in proto.graph.initializer:
        key = stub_key(tensor)
        content = [tensor.SerializeToString()] if key is None else _tensor(tensor, key, weights)
        found += _field(_INITIALIZER, content, weights)
    before, behind = _around(proto.graph, _INITIALIZER)
    graph = _field(_GRAPH, [before, *found, behind], weights)
    before, behind = _around(proto, _GRAPH)
    return [before, *graph, behind]


def _tensor(tensor: onnx.TensorProto, key: int, weights: Mapping[int, Weight]) -> list[Part]:
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    clear_data(bare)
    before, behind = _around(bare, _DATA)
    return [before, *_field(_DATA, [key], weights), behind]


def _around(message: Message, number: int) -> tuple[bytes, bytes]:
    """Return the fields of a message before one, and those behind it, serialized."""
    found = []
    for is_kept in (number.__gt__, number.__lt__):
        part = type(message)()
        part.CopyFrom(message)
        for field, _ in message.ListFields():
            if not is_kept(field.number):
                part.ClearField(field.name)
        found.append(part.SerializeToString())
    return found[0], found[1]


def _field(number: int, content: list[Part], weights: Mapping[int, Weight]) -> list[Part]:
    """Return a field of bytes: its number and length, and then the bytes."""
    return [_varint(number << 3 | 2) + _varint(sum(size_of(part, weights) for part in content)), *content]


def size_of(part: Part, weights: Mapping[int, Weight]) -> int:
    """Return how many bytes a part has."""
    return len(part) if isinstance(part, bytes) else weights[part].nbytes


def _varint(number: int) -> bytes:
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])
