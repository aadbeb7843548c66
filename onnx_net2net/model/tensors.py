"""Where the bytes of a tensor are, and stubs: tensors of a proto whose bytes are in a table of weights instead.

Small tensors stay in the proto. A **stub** has the name, type, shape and documentation of a larger one; its only
external-data entry is a key into the table. External-data files are checked here and read when somebody asks.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.rows import InMemory, Rows, Source, row_blocks
from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.protos import all_tensors

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
"""Bytes that are copied at a time."""

_NARROW = 1024
"""Bytes of rows that are not worth a read each."""

_keys = itertools.count()

Chunk = tuple[int, Callable[[], Array | bytes]]
"""A part of a tensor's bytes: where it begins, and what reads or computes it."""


@cache
def type_bits(kind: int) -> int:
    """Return how many bits an element of a type has, by its `TensorProto.DataType`."""
    packed = re.match(r"(?:FLOAT|U?INT)([246])(?:E|$)", onnx.TensorProto.DataType.Name(kind))
    return int(packed[1]) if packed else numpy_type(kind).itemsize * 8


@cache
def numpy_type(kind: int) -> np.dtype[Any]:
    """Return a type, given as `TensorProto.DataType`, as numpy or ml_dtypes have it."""
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return dtype


@cache
def is_floating(kind: int) -> bool:
    """Tell whether a type, by its `TensorProto.DataType`, is one of floats."""
    return str(onnx.TensorProto.DataType.Name(kind)).startswith(("FLOAT", "DOUBLE", "BFLOAT"))


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
        return self.opened().read(offset, size)

    def opened(self) -> OpenFile:
        """Open the file.

        Raises:
            BadInputError: If it has changed or cannot be read.
        """
        try:
            return OpenFile(self, os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
        except OSError as error:
            raise BadInputError(f"cannot read {self.path}: {error.strerror or error}") from error


class OpenFile:
    """A data file that is open, to be read by several threads; it is closed when nobody needs it any more."""

    def __init__(self, file: DataFile, descriptor: int) -> None:
        self._file, self._descriptor = file, descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, size: int) -> Array:
        """Return bytes, not to be written to; see `DataFile.read`."""
        content = np.empty(size, np.uint8)
        self.read_into(content, offset)
        content.flags.writeable = False
        return content

    def read_into(self, target: Array, offset: int) -> None:
        """Fill a contiguous array with bytes of the file.

        Raises:
            BadInputError: If the file has changed or cannot be read.
        """
        view, done = memoryview(target.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
        try:
            while done < len(view) and (count := os.preadv(self._descriptor, [view[done:]], offset + done)):
                done += count
            state = _state(os.fstat(self._descriptor))
        except OSError as error:
            raise BadInputError(f"cannot read {self._file.path}: {error.strerror or error}") from error
        if done < len(view) or state != self._file.state:
            raise BadInputError(f"{self._file.path} changed while it was read")


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class Weight:
    """The values of a tensor: in memory, in a file, or computed when somebody asks (see `algebra.rows.Source`).

    Attributes:
        kind: The type of its elements, a `TensorProto.DataType`.
        shape: Its shape.
        name: Its name, for messages.
    """

    def __init__(self, kind: int, shape: Sequence[int], name: str, source: Source | Callable[[], Array]) -> None:
        self.kind, self.shape, self.name = kind, tuple(map(int, shape)), name
        self._source = source

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its elements in numpy or ml_dtypes."""
        return numpy_type(self.kind)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes in a file."""
        return (self.size * type_bits(self.kind) + 7) // 8

    @property
    def is_computed(self) -> bool:
        """Whether it is neither in memory nor in a file."""
        return not isinstance(self._source, InMemory)

    def __call__(self) -> Array:
        """Return its values, not to be written to."""
        array = np.asarray(self._source())
        if array.shape != self.shape:  # would shift everything behind it in the data file
            raise ValueError(f"{self.name}: computed shape {array.shape}, declared {self.shape}")
        if array.dtype != self.dtype:
            raise ValueError(f"{self.name}: computed type {array.dtype}, declared {self.dtype}")
        return array

    def numpy(self) -> Array:
        """Return its values, not to be written to."""
        return self()

    def tobytes(self) -> bytes:
        """Return its bytes as they are in a file."""
        return _bytes_of(self.numpy(), self.kind)

    def rows(self) -> Rows:
        """Return what reads or computes some of its rows."""
        if _is_source(self._source):
            return self._source.rows()
        return InMemory(self()).rows()

    @property
    def has_rows(self) -> bool:
        """Whether it is made row by row, and not as a whole."""
        return _is_source(self._source) and bool(self.shape) and type_bits(self.kind) >= 8

    def pieces(self) -> Iterator[Chunk]:
        """Yield its bytes in pieces, in order, to be made in any order by any thread."""
        if not self.has_rows:
            yield 0, self.tobytes
            return
        rows, width = self.rows(), math.prod(self.shape[1:]) * self.dtype.itemsize
        for places in row_blocks(self.shape, self.dtype.itemsize):
            yield int(places[0]) * width, partial(rows, places)


def _is_source(source: object) -> TypeGuard[Source]:
    """Tell a source from a function, faster than by `isinstance`, which would look at all that a source has."""
    return hasattr(source, "rows")


class FileWeight(Weight):
    """A tensor in a file, which is read at each use."""

    def __init__(self, file: DataFile, offset: int, tensor: onnx.TensorProto) -> None:
        super().__init__(tensor.data_type, tensor.dims, tensor.name, self._values)
        self._file, self._offset = file, offset

    @property
    def is_computed(self) -> bool:
        """Whether it is neither in memory nor in a file."""
        return False

    def _values(self) -> Array:
        return _values_of(self._file.read(self._offset, self.nbytes), self.kind, self.shape)

    def tobytes(self) -> bytes:
        """Return its bytes."""
        return self._file.read(self._offset, self.nbytes).tobytes()

    def rows(self) -> Rows:
        """Return what reads some of its rows; rows that lie together are read at once."""
        file, row, dtype = self._file.opened(), math.prod(self.shape[1:]) * self.dtype.itemsize, self.dtype

        def read(places: Array) -> Array:
            block = np.empty((len(places), *self.shape[1:]), dtype)
            breaks = np.flatnonzero(np.diff(places) != 1) + 1
            for start, stop in itertools.pairwise([0, *breaks.tolist(), len(places)]):
                file.read_into(block[start:stop], self._offset + int(places[start]) * row)
            return block

        return read if row >= _NARROW or self.nbytes > _BLOCK else InMemory(self()).rows()

    def pieces(self) -> Iterator[Chunk]:
        """Yield its bytes in pieces."""
        file = self._file.opened()
        for done in range(0, self.nbytes, _BLOCK):
            yield done, partial(file.read, self._offset + done, min(_BLOCK, self.nbytes - done))


Weights = dict[int, Weight]


def stub_key(tensor: onnx.TensorProto) -> int | None:
    """Return the key of a stub, None for any other tensor."""
    return next((int(entry.value) for entry in tensor.external_data if entry.key == _STUB), None)


def make_stub(tensor: onnx.TensorProto, weight: Weight, weights: Weights) -> None:
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


def data_of(tensor: onnx.TensorProto, weights: Mapping[int, Weight]) -> Weight:
    """Return the values behind a stub, or those of the tensor itself; nothing is read yet."""
    key = stub_key(tensor)
    if key is not None:
        return weights[key]
    return Weight(tensor.data_type, tensor.dims, tensor.name, partial(numpy_helper.to_array, tensor))


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
            raise BadInputError(f"tensor {tensor.name} has the element type {tensor.data_type}, which does not exist")
        if tensor.data_type in _OPAQUE_TYPES:
            if external:
                raise BadInputError(f"tensor {tensor.name} is in an external file, and holds strings or has no type")
            continue
        size = _nbytes(tensor)
        is_small = size <= (LIST_BYTES if tensor.data_type == onnx.TensorProto.INT64 else INLINE_BYTES)
        if is_small and not external and len(tensor.raw_data) == size > 0:  # as it will be
            continue
        key = stub_key(tensor)
        known = key in weights
        if key is not None and known:
            weight = weights[key]
        else:
            weight = _external(tensor, size, path, files) if external else _in_memory(tensor, size)
        if not is_small and not known:
            make_stub(tensor, weight, weights)
        elif is_small and external:
            set_inline(tensor, weight.tobytes() if size else b"")
    return [file.path for file in files.values()]


def _nbytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise BadInputError(f"tensor {tensor.name} has a negative dimension")
    return (int(math.prod(tensor.dims)) * type_bits(tensor.data_type) + 7) // 8


def _in_memory(tensor: onnx.TensorProto, size: int) -> Weight:
    """Return the data of a tensor as an array that no longer needs the proto."""
    if tensor.HasField("raw_data"):
        content = tensor.raw_data
    else:
        try:
            content = _bytes_of(numpy_helper.to_array(tensor), tensor.data_type)
        except ValueError:
            content = b""
    if len(content) != size:
        raise BadInputError(f"tensor {tensor.name} has {len(content)} bytes of data instead of {size}")
    array = _values_of(np.frombuffer(content, np.uint8), tensor.data_type, tuple(tensor.dims))
    return Weight(tensor.data_type, tensor.dims, tensor.name, InMemory(array))


def _values_of(content: Array, kind: int, shape: tuple[int, ...]) -> Array:
    """Return the values that bytes of a file are."""
    if type_bits(kind) < 8:  # several elements to a byte
        proto = onnx.TensorProto(data_type=kind, dims=shape, raw_data=content.tobytes())
        return np.asarray(numpy_helper.to_array(proto))
    values: Array = content.view(numpy_type(kind)).reshape(shape)
    return values


def _bytes_of(values: Array, kind: int) -> bytes:
    """Return values as they are in a file."""
    if type_bits(kind) < 8:
        return bytes(numpy_helper.from_array(values).raw_data)
    return values.tobytes()


def _external(tensor: onnx.TensorProto, size: int, path: Path | None, files: dict[str, DataFile]) -> FileWeight:
    """Return the data of a tensor in a file, checked to be there but not read."""
    if path is None:
        raise BadInputError(f"tensor {tensor.name} is in an external file; load such a model by its path")
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    if _STUB in info:
        raise BadInputError("it is the `proto` of a Model, without weights: use `save` or `to_proto` of the Model")
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", size))
    except ValueError as error:
        raise BadInputError(f"tensor {tensor.name} does not say where in {location} it is: {one_line(error)}") from None
    if location not in files:
        files[location] = DataFile.of(data_file(path, location))
    file = files[location]
    if length != size:
        raise BadInputError(f"tensor {tensor.name} needs {size} bytes of {location}, but claims {length}")
    if not 0 <= offset <= file.state[0] - size:
        raise BadInputError(f"external data file {location} is too short for tensor {tensor.name}")
    return FileWeight(file, offset, tensor)


def data_file(model: Path, location: str) -> Path:
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
