"""Load and save ONNX models: nothing is lost, and weights are read only when they are needed.

A `Model` is an `onnx.ModelProto` without weights, plus a table of weights. In the proto, stubs stand for the larger
tensors (see `model.tensors`). `graph.Graph` makes an editable copy; it is fast, as no weights are copied. A weight is
an array, a place in a file, or a function that computes it when it is written.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import onnx

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.checks import check, parse_bytes, parse_model
from onnx_net2net.model.functions import check_functions
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.saving import Progress, Staged, check_room, stage_model, write
from onnx_net2net.model.staging import work_folder, writing
from onnx_net2net.model.tensors import Weight, Weights, data_of, detach, is_floating
from onnx_net2net.model.wire import without_data

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Model", "ModelLike", "Progress", "load"]


@runtime_checkable
class HasProto(Protocol):
    """An exported program, like the ONNXProgram of `torch.onnx.export`."""

    @property
    def model_proto(self) -> onnx.ModelProto:
        """The whole model."""
        ...


SINGLE_FILE_LIMIT = 1_900_000_000
"""Larger models are saved with external data: a protobuf message ends at 2 GiB."""


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A loaded ONNX model. It never changes; `graph.Graph(model)` is an editable copy.

    Attributes:
        proto: The model with stubs in the place of all larger tensors. Do not save it; see `to_proto`.
        weights: For each stub, by its key: the tensor that reads or computes its bytes.
        path: The file that holds exactly this model; None if there is none.
        external: Whether the weights lie, or will be saved, in a separate file.
        sources: The files that `weights` may still read.
    """

    proto: onnx.ModelProto
    weights: Mapping[int, Weight]
    path: Path | None = None
    external: bool = False
    sources: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        where = self.path or self.proto.graph.name or "unnamed"
        size = f"{self.parameters:,} parameters, {self.nbytes / 1e6:.1f} MB"
        return f"<Model {where}: {len(self.proto.graph.node)} nodes, {size}>"

    @property
    def nbytes(self) -> int:
        """Size of the saved model in bytes, without the few bytes of protobuf's framing."""
        return int(self.proto.ByteSize() + sum(weight.nbytes for weight in self.weights.values()))

    @property
    def parameters(self) -> int:
        """Number of floating-point elements in all initializers and tensor attributes."""
        floats = (t for t in all_tensors(self.proto) if is_floating(t.data_type))
        return sum(math.prod(tensor.dims) for tensor in floats)

    @property
    def is_fresh(self) -> bool:
        """Whether it comes straight from an operation, so that some weights are computed on demand."""
        return any(weight.is_computed for weight in self.weights.values())

    def tensor(self, tensor: onnx.TensorProto) -> Weight:
        """Return the tensor behind a `TensorProto` of `proto`, stub or not; nothing is read yet."""
        return data_of(tensor, self.weights)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield a file that onnxruntime can open: the model's own file if it has one, else a temporary one."""
        if self.path is not None:
            yield self.path
            return
        with work_folder() as folder:
            path = folder / "model.onnx"
            with writing(path):
                self._write(path, f"{path.name}.data", None)
            yield path

    def stage(
        self, path: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> contextlib.AbstractContextManager[Staged]:
        """Write the model next to `path`; it takes the place of `path` only when `commit` is called.

        The layout follows the source: external data stays external (`<name>.onnx.data`), anything else becomes
        one file unless it would exceed `SINGLE_FILE_LIMIT`. Computed weights are computed now, one at a time.

        Args:
            path: Destination; `commit` replaces an existing file as a whole.
            progress: Called before each tensor is written.

        Returns:
            A context manager. Inside the context the written file exists; leaving it without `commit` removes the file.

        Raises:
            BadInputError: On entering: the folder is missing or not writable, the destination is no file or one that
                this model reads, or a file that the model reads has changed.
            WriteError: On entering: the file cannot be written, for example because the disk is full.
        """
        folder = Path(os.path.realpath(path)).parent
        if folder.is_dir():  # else `stage_model` says what is wrong
            check_room(folder, self.nbytes)
        return stage_model(Path(path), self.sources, lambda file, data_name: self._write(file, data_name, progress))

    def save(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Write the model to `path`, with external data as in its source; see `stage_model`.

        At any moment `path` holds either the old file or the whole new one.

        Args:
            path: Destination; an existing file is replaced.
            progress: Called before each tensor is written.

        Raises:
            BadInputError: The destination cannot be used, or a file that the model reads has changed.
            WriteError: The file cannot be written, for example because the disk is full.
        """
        with self.stage(path, progress=progress) as staged:
            staged.commit()

    def to_bytes(self) -> bytes:
        """Return the model as one serialized message; computed weights are computed now.

        Raises:
            BadInputError: It is larger than `SINGLE_FILE_LIMIT`, so that it can only be saved to a file (`save`).
        """
        if self.nbytes > SINGLE_FILE_LIMIT:
            raise BadInputError(f"a model of {self.nbytes / 1e9:.1f} GB does not fit into one message: save it")
        with work_folder() as folder, writing(folder):
            write(self.proto, self.weights, folder / "model.onnx", None)
            return (folder / "model.onnx").read_bytes()

    def to_proto(self) -> onnx.ModelProto:
        """Return the whole model with its weights; `proto` has none.

        Raises:
            BadInputError: It is too large; see `to_bytes`.
        """
        return onnx.load_model_from_string(self.to_bytes())

    def session(self, *, provider: str = "cpu") -> Any:
        """Open the model in onnxruntime, as an `onnxruntime.InferenceSession`; see `onnx_net2net.session`."""
        from onnx_net2net.run.session import session  # a way up for people's convenience; nothing here depends on it

        return session(self, provider=provider)

    def _write(self, path: Path, data_name: str, progress: Progress | None) -> Path | None:
        """Write the model file and, if the layout wants one, the data file beside it; return the latter."""
        external = self.weights and (self.external or self.nbytes > SINGLE_FILE_LIMIT)
        data = path.parent / data_name if external else None
        write(self.proto, self.weights, path, data, progress)
        return data


ModelLike: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | HasProto | Model"
"""A path, bytes, a model of `onnx` or `onnx_ir`, a result of `torch.onnx.export`, or a loaded model."""


def load(source: ModelLike) -> Model:
    """Load a model without reading its external data.

    Args:
        source: A path, or a model in memory: bytes, an `onnx.ModelProto`, an `onnx_ir.Model`, or the `ONNXProgram` that
            `torch.onnx.export(..., dynamo=True)` returns. A model in memory is copied, so that it may change later. A
            loaded model is returned as it is.

    Raises:
        BadInputError: It is no valid model, or its versions of ONNX are not supported; the text says why.
    """
    if isinstance(source, Model):
        return source
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    proto = _parsed(path) if path is not None else _proto(source)
    weights: Weights = {}
    try:
        check(proto)
        check_functions(proto)
        files = detach(proto, weights, path)
    except (BadInputError, ValueError, TypeError, AssertionError) as error:
        raise BadInputError(f"{path or 'the model'} cannot be used: {one_line(error)}") from error
    # A fresh copy, because protobuf frees the memory of the removed data only with the message as a whole.
    if path is None:
        return Model(copy.deepcopy(proto), weights)
    beside = [file for file in files if file != path.resolve()]
    return Model(copy.deepcopy(proto), weights, path, bool(beside), (path, *beside))


def _parsed(path: Path) -> onnx.ModelProto:
    """Read a model file; the weights of a large one stay there."""
    with contextlib.suppress(OSError):  # `parse_model` says what it is
        if (proto := without_data(path)) is not None:
            return proto
    return parse_model(path)


def _proto(source: object) -> onnx.ModelProto:
    """Return a message of its own that holds a model in memory."""
    if isinstance(source, onnx.ModelProto):
        return copy.deepcopy(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return parse_bytes(bytes(source))
    if (onnx_ir := sys.modules.get("onnx_ir")) and isinstance(source, onnx_ir.Model):
        return onnx_ir.to_proto(source)
    if isinstance(source, HasProto):
        return copy.deepcopy(source.model_proto)
    raise BadInputError(
        f"{type(source).__name__} is no ONNX model: give a file, bytes, an onnx.ModelProto, an onnx_ir.Model, or what "
        "torch.onnx.export(..., dynamo=True) returns"
    )
