"""Where the bytes of a tensor are, and stubs: tensors of a proto whose bytes are in a table of weights instead.

Small tensors stay in the proto. A **stub** has the name, type, shape and documentation of a larger one; its only
external-data entry is a key into the table. External-data files are checked here and read when somebody asks.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.protos import all_tensors

Weights = dict[int, ir.TensorProtocol]

INLINE_BYTES = 1024
"""Tensors up to this size stay in the proto: they are shapes, axes, scalars that the analysis looks at."""

LIST_BYTES = 16 * 1024
"""The same for integers of 64 bits, which list the units that a Gather takes."""

_STUB = "onnx_net2net.stub"
_DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"),
    "data_location",
)
_TYPES = frozenset(onnx.TensorProto.DataType.values())
_OPAQUE_TYPES = (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED)
_BLOCK = 1 << 20
_keys = itertools.count()


@dataclass(frozen=True)
class DataFile:
    """A file that is read when its data is needed, and must not change before.

    It is never mapped into memory: reading from a mapped file that somebody cuts off ends the process.

    Attributes:
        path: The file.
        state: Its size and time of change.
    """

    path: Path
    state: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> DataFile:
        """Return a file as it is now.

        Raises:
            OSError: If there is none.
        """
        return cls(path, _state(os.stat(path)))

    def read(self, offset: int, size: int) -> Array:
        """Return bytes, not to be written to.

        Raises:
            BadInputError: If the file has changed or cannot be read.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                content = np.fromfile(file, np.uint8, size, offset=offset)
                state = _state(os.fstat(file.fileno()))
        except OSError as error:
            raise BadInputError(f"cannot read {self.path}: {error.strerror or error}") from error
        if state != self.state:
            raise BadInputError(f"{self.path} changed while it was read")
        content.flags.writeable = False
        return content


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class FileTensor(ir.LazyTensor):  # type: ignore[misc]
    """A tensor in a file, which is read at each use."""

    def __init__(self, file: DataFile, offset: int, size: int, tensor: onnx.TensorProto) -> None:
        kind, shape = ir.DataType(tensor.data_type), ir.Shape(tensor.dims)

        def read() -> ir.TensorProtocol:
            return _of_bytes(file.read(offset, size), kind, shape, self.name)

        super().__init__(read, kind, shape, name=tensor.name)
        self._pieces = [(file, offset + done, min(_BLOCK, size - done)) for done in range(0, size, _BLOCK)]

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes without holding all of them in memory."""
        for source, offset, size in self._pieces:
            file.write(source.read(offset, size).data)


def stub_key(tensor: onnx.TensorProto) -> int | None:
    """Return the key of a stub, None for any other tensor."""
    return next((int(entry.value) for entry in tensor.external_data if entry.key == _STUB), None)


def make_stub(tensor: onnx.TensorProto, weight: ir.TensorProtocol, weights: Weights) -> None:
    """Take the data out of a tensor; `weight`, which is put into `weights`, stands for it."""
    key = next(_keys)
    weights[key] = weight
    set_external(tensor, {_STUB: key})


def set_external(tensor: onnx.TensorProto, entries: Mapping[str, object]) -> None:
    """Replace the data of a tensor by external-data entries."""
    clear_data(tensor)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def set_inline(tensor: onnx.TensorProto, content: bytes) -> None:
    """Replace the data of a tensor by bytes."""
    clear_data(tensor)
    tensor.raw_data = content


def clear_data(tensor: onnx.TensorProto) -> None:
    """Remove the data of a tensor, or the reference to it."""
    for field in _DATA_FIELDS:
        tensor.ClearField(field)


def data_of(tensor: onnx.TensorProto, weights: Mapping[int, ir.TensorProtocol]) -> ir.TensorProtocol:
    """Return the tensor behind a stub, or the tensor itself; nothing is read yet."""
    key = stub_key(tensor)
    return ir.serde.TensorProtoTensor(tensor) if key is None else weights[key]


def inherit(new: onnx.TensorProto, old: onnx.TensorProto) -> None:
    """Let a tensor that takes the place of another keep its documentation."""
    if not new.doc_string and old.doc_string:
        new.doc_string = old.doc_string
    if not new.metadata_props:
        new.metadata_props.extend(old.metadata_props)


def detach(proto: onnx.ModelProto, weights: Weights, path: Path | None = None) -> list[Path]:
    """Turn every larger tensor into a stub and every small external one into an inline one.

    Args:
        proto: The model; changed in place. Stubs in it are allowed.
        weights: What the stubs stand for; receives what is taken out.
        path: The file the model came from; None if it cannot have external data.

    Returns:
        The external-data files.

    Raises:
        BadInputError: The data of a tensor does not fit its type and shape, or is missing.
    """
    files: dict[str, DataFile] = {}
    for tensor in all_tensors(proto):
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if tensor.data_type not in _TYPES:
            raise BadInputError(f"tensor {tensor.name} has the element type {tensor.data_type}, which there is not")
        if tensor.data_type in _OPAQUE_TYPES:
            if external:
                raise BadInputError(f"tensor {tensor.name} is in an external file, but text and untyped ones cannot be")
            continue
        size, key = _nbytes(tensor), stub_key(tensor)
        known = key in weights
        if key is not None and known:
            weight = weights[key]
        else:
            weight = _external(tensor, size, path, files) if external else _in_memory(tensor, size)
        is_small = size <= (LIST_BYTES if tensor.data_type == onnx.TensorProto.INT64 else INLINE_BYTES)
        if not is_small and not known:
            make_stub(tensor, weight, weights)
        elif is_small and external:
            set_inline(tensor, weight.tobytes() if size else b"")
    return [file.path for file in files.values()]


def _nbytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise BadInputError(f"tensor {tensor.name} has a negative dimension")
    return int(math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth + 7) // 8


def _in_memory(tensor: onnx.TensorProto, size: int) -> ir.TensorProtocol:
    """Return the data of a tensor as an array that no longer needs the proto."""
    source = ir.serde.TensorProtoTensor(tensor)  # knows which field holds which type
    content, kind = source.tobytes(), source.dtype
    if len(content) != size:
        raise BadInputError(f"tensor {tensor.name} has {len(content)} bytes of data instead of {size}")
    return _of_bytes(np.frombuffer(content, np.uint8), kind, source.shape, tensor.name)


def _of_bytes(raw: Array, kind: ir.DataType, shape: ir.Shape, name: str | None) -> ir.TensorProtocol:
    if kind.bitwidth < 8:  # several elements to a byte
        return ir.PackedTensor(raw, kind, shape=shape, name=name)
    return ir.Tensor(raw.view(kind.numpy()).reshape(shape.numpy()), dtype=kind, name=name)


def _external(tensor: onnx.TensorProto, size: int, path: Path | None, files: dict[str, DataFile]) -> FileTensor:
    """Return the data of a tensor in a file, checked to be there but not read."""
    if path is None:
        raise BadInputError(f"tensor {tensor.name} is in an external file; load such a model by its path")
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    if _STUB in info:
        raise BadInputError("it has no weights: it is the `proto` of a Model, which `save` or `to_proto` completes")
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", size))
    except ValueError as error:
        raise BadInputError(f"tensor {tensor.name} does not say where in {location} it is: {one_line(error)}") from None
    if location not in files:
        files[location] = DataFile.of(_data_file(path, location))
    file = files[location]
    if length != size:
        raise BadInputError(f"tensor {tensor.name} needs {size} bytes of {location}, but claims {length}")
    if not 0 <= offset <= file.state[0] - size:
        raise BadInputError(f"external data file {location} is too short for tensor {tensor.name}")
    return FileTensor(file, offset, size, tensor)


def _data_file(model: Path, location: str) -> Path:
    """Return the external-data file of a model, if the model may have it.

    It must stay in the model's folder, after resolving links too. A Hugging Face cache, where the model and
    its data are links into one other folder, is accepted.
    """
    names = PureWindowsPath(location)  # splits at both / and \
    if not location or names.anchor or PurePosixPath(location).is_absolute() or ".." in names.parts:
        raise BadInputError(f"external data location {location!r} is not a path inside the model's folder")
    try:
        file = (model.parent / location).resolve()
        is_there = file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have, links that go in a circle
        raise BadInputError(f"external data file {location} cannot be read: {one_line(error)}") from None
    if not is_there:
        raise BadInputError(f"external data file {location} is missing")
    if model.parent.resolve() not in file.parents and model.resolve().parent != file.parent:
        raise BadInputError(f"external data file {location} is a link that leaves the model's folder")
    return file
