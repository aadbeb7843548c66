"""Model files as protobuf lays them out: the data of initializers is written, and found, where it lies in the file.

A message that holds all weights is in memory several times until it is a file. Here only what is around them is a
message.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from onnx_net2net.model.tensors import LIST_BYTES, Weight, clear_data, set_external, stub_key

Part = bytes | int
"""A part of a file: bytes, or the key of the weight that stands there."""

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_ELSEWHERE = onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER
_LOCATION = onnx.TensorProto.DATA_LOCATION_FIELD_NUMBER

_LARGE = 1 << 25
"""Bytes of a file whose weights stay there: those of smaller ones are as well in memory."""

_LEAST = LIST_BYTES
"""Bytes of an initializer that may stay in its file."""

_HEAD = 20
"""Bytes that the number and the length of a field have at most."""


_MOST_FIELDS = 1 << 20
"""Fields of a file that are read one by one. Protobuf is faster where there are more, as in an attack."""


def serialized(proto: onnx.ModelProto, weights: Mapping[int, Weight]) -> list[Part]:
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


# --- Reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A field of a message in a file: its number, and where it starts, its content starts, and it ends.

    Attributes:
        is_bytes: Whether it is bytes, as messages are too.
    """

    number: int
    is_bytes: bool
    start: int
    content: int
    end: int


def without_data(path: Path) -> onnx.ModelProto | None:
    """Parse a large model file but for the data of large initializers: their entries say where in this file it is.

    Returns:
        The model; None if the file is small, or has anything unusual, so that protobuf has to judge it.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < _LARGE or re.search(r"[\\:]", path.name):  # these are no names of external data
            return None
        try:
            return onnx.load_model_from_string(_Bare(file.fileno(), path.name, itertools.count()).model(size))
        except (ValueError, DecodeError):
            return None


@dataclass(frozen=True)
class _Bare:
    """Reads messages of a file, without large data."""

    file: int
    name: str
    numbers: Iterator[int]  # of the fields that are read

    def model(self, size: int) -> bytes:
        return self._replaced(0, size, _GRAPH, self._graph)

    def _graph(self, start: int, end: int) -> bytes:
        return self._replaced(start, end, _INITIALIZER, self._initializer)

    def _initializer(self, start: int, end: int) -> bytes:
        fields = list(self._fields(start, end))
        data = [field for field in fields if field.number == _DATA and field.is_bytes]
        places = [self._read(field.start, field.end)[-1] for field in fields if field.number == _LOCATION]
        if len(data) != 1 or any(places) or any(field.number == _ELSEWHERE for field in fields):
            return self._read(start, end)
        where = onnx.TensorProto()
        entries = {"location": self.name, "offset": data[0].content, "length": data[0].end - data[0].content}
        set_external(where, entries)
        return self._read(start, data[0].start) + self._read(data[0].end, end) + bytes(where.SerializeToString())

    def _replaced(self, start: int, end: int, number: int, replace: Callable[[int, int], bytes]) -> bytes:
        """Return a message in which large fields of a number are replaced."""
        parts, kept = [], start
        for field in self._fields(start, end):
            if field.number == number and field.is_bytes and field.end - field.content > _LEAST:
                content = replace(field.content, field.end)
                parts += [self._read(kept, field.start), _varint(number << 3 | 2), _varint(len(content)), content]
                kept = field.end
        return b"".join((*parts, self._read(kept, end)))

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        """Yield the fields of a message.

        Raises:
            ValueError: It is none.
        """
        while start < end:
            head = os.pread(self.file, _HEAD, start)
            key, length = _read_varint(head, 0)
            value, behind = _read_varint(head, length) if key & 7 in (0, 2) else (0, length)
            content = start + behind
            stop = content + {0: 0, 1: 8, 2: value, 5: 4}.get(key & 7, end)
            if stop > end or not key >> 3 or next(self.numbers) > _MOST_FIELDS:
                raise ValueError("no message, or one of too many fields to be read one by one")
            yield _Field(key >> 3, key & 7 == 2, start, content, stop)
            start = stop

    def _read(self, start: int, end: int) -> bytes:
        found = bytearray()
        while len(found) < end - start and (more := os.pread(self.file, end - start - len(found), start + len(found))):
            found += more
        return bytes(found)


def _read_varint(content: bytes, start: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    value = 0
    for place in range(start, min(start + 10, len(content))):
        value |= (content[place] & 127) << 7 * (place - start)
        if content[place] < 128:
            return value, place + 1
    raise ValueError("a number does not end")
