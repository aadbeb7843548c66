"""Load, edit and save ONNX models: nothing is lost, and weights are read only when somebody asks.

A `Model` is a *weightless* `onnx.ModelProto` plus a table of weights. Each tensor of more than `INLINE_BYTES`
is a **stub** in the proto (name, type, shape, documentation, no data) whose only external-data entry is a key
into the table. onnx-graphsurgeon edits a `Draft` of that proto, which keeps it fast and harmless; onnx-ir owns
the bytes: mapped files, arrays, or functions that compute a grown weight at the moment it is written.

onnx-graphsurgeon drops much of what a model carries (metadata, documentation, several attribute and value types,
functions' annotations, unused initializers). So `Draft.finish` starts from the original proto and takes over
from the edited graph only what differs from an export of the unedited one.
"""

from __future__ import annotations

import contextlib
import graphlib
import heapq
import itertools
import math
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_ir.external_data import CallbackInfo, convert_tensors_to_external

from onnx_net2net.errors import BadInputError

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
"""Called before each tensor is written with (its name, bytes written so far, bytes in all)."""

INLINE_BYTES = 1024
"""Tensors up to this size stay in the proto: they are shapes, axes, scalars that the analysis looks at."""

SINGLE_FILE_LIMIT = 1_900_000_000
"""Larger models are saved with external data: a protobuf message ends at 2 GiB."""

OPSETS = range(7, min(onnx.defs.onnx_opset_version(), 26) + 1)
"""Versions of the default domain that are understood here and run in onnxruntime."""

NEWEST_IR = min(onnx.IR_VERSION, 13)

_STUB = "onnx_net2net.stub"
_DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"),
    "data_location",
)
_OPAQUE_TYPES = (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED)
_DEFAULT_DOMAIN = ("", "ai.onnx")
_keys = itertools.count()


@dataclass(frozen=True)
class Staged:
    """A model that is written but not yet in its place.

    Attributes:
        path: The temporary model file; onnxruntime can open it.
        target: Where `commit` puts it.
        data: The temporary external-data file, if there is one.
    """

    path: Path
    target: Path
    data: Path | None
    sources: tuple[Path, ...]

    def commit(self) -> None:
        """Move the files into place, the model last, and remove the replaced model's data file if it was ours."""
        old_data = _own_data_files(self.target)
        if self.data is not None:
            os.replace(self.data, self.target.parent / self.data.name)
        os.replace(self.path, self.target)
        for old in old_data:
            if not any(_same_file(old, source) for source in self.sources):
                old.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """An ONNX model, not to be changed: `draft` makes an editable copy.

    Attributes:
        proto: The model with stubs instead of all larger tensors.
        weights: The bytes of each stub, by its key.
        path: The file that holds exactly this model, if there is one.
        external: Whether the weights live, or will be saved, in a separate file.
        sources: The files that `weights` may still read.
    """

    proto: onnx.ModelProto
    weights: Mapping[int, ir.TensorProtocol]
    path: Path | None = None
    external: bool = False
    sources: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        where = self.path or self.proto.graph.name or "unnamed"
        size = f"{self.parameters:,} parameters, {self.nbytes / 1e6:.1f} MB"
        return f"<Model {where}: {len(self.proto.graph.node)} nodes, {size}>"

    @property
    def nbytes(self) -> int:
        """Size of the saved model in bytes, to within the protobuf framing."""
        stubs = {_stub_key(tensor) for tensor in _tensors(self.proto)} - {None}
        return int(self.proto.ByteSize() + sum(self.weights[key].nbytes for key in stubs if key is not None))

    @property
    def parameters(self) -> int:
        """Number of floating-point elements in all initializers and tensor attributes."""
        floats = (t for t in _tensors(self.proto) if ir.DataType(t.data_type).is_floating_point())
        return sum(math.prod(tensor.dims) for tensor in floats)

    def tensor(self, tensor: onnx.TensorProto) -> ir.TensorProtocol:
        """The tensor behind a `TensorProto` of `proto`, stub or not; nothing is read yet."""
        return _resolve(tensor, self.weights)

    def draft(self) -> Draft:
        """An editable copy."""
        return Draft(self)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A file that onnxruntime can open: the original one if this is it, else a temporary one."""
        if self.path is not None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="onnx_net2net.") as folder:
            path = Path(folder) / "model.onnx"
            self._write(path, f"{path.name}.data", None)
            yield path

    @contextlib.contextmanager
    def stage(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Iterator[Staged]:
        """Write the model next to `path`; it takes the place of `path` only when `commit` is called.

        The layout follows the source: external data stays external (`<name>.onnx.data`), anything else becomes
        one file unless it would exceed `SINGLE_FILE_LIMIT`. Computed weights are computed now, one at a time.

        Args:
            path: Destination; an existing file is replaced as a whole, by `commit`.
            progress: Told about each tensor before it is written.

        Yields:
            What was written. On leaving the context without `commit` everything is removed.

        Raises:
            BadInputError: If the folder is missing or not writable, or the destination is a folder or one of
                the files that this model reads.
        """
        target = Path(path)
        _check_target(target, self.sources)
        with contextlib.ExitStack() as stack:
            try:
                # Beside the target, because only then is moving it there atomic.
                temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
                staged = Path(stack.enter_context(temporary)) / target.name
                data = self._write(staged, _free_data_name(target), progress)
            except OSError as error:
                raise BadInputError(f"cannot write {target}: {error.strerror or error}") from error
            yield Staged(staged, target, data, self.sources)

    def save(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Write the model to `path`, which holds either the old or the new model at any moment; see `stage`."""
        with self.stage(path, progress=progress) as staged:
            staged.commit()

    def _write(self, path: Path, data_name: str, progress: Progress | None) -> Path | None:
        """Write the model file and, if the layout wants one, the data file beside it; return the latter."""
        proto = _copy(self.proto)
        stubs = [(tensor, key) for tensor in _tensors(proto) if (key := _stub_key(tensor)) is not None]
        total = sum(self.weights[key].nbytes for key in {key for _, key in stubs})
        external = bool(stubs) and (self.external or self.nbytes > SINGLE_FILE_LIMIT)
        if external:
            self._write_data(stubs, path.parent / data_name, progress, total)
        else:
            done = 0
            for tensor, key in stubs:
                if progress is not None:
                    progress(tensor.name, done, total)
                content = self.weights[key].tobytes()
                _clear_data(tensor)
                tensor.raw_data = content
                done = min(done + len(content), total)
        path.write_bytes(proto.SerializeToString())
        if progress is not None:
            progress(path.name, total, total)
        return path.parent / data_name if external else None

    def _write_data(
        self, stubs: Sequence[tuple[onnx.TensorProto, int]], path: Path, progress: Progress | None, total: int
    ) -> None:
        """Write the data file and point the stubs at it."""
        keys = list(dict.fromkeys(key for _, key in stubs))  # a shared tensor is written once

        def report(tensor: ir.TensorProtocol, info: CallbackInfo) -> None:
            if progress is not None:
                progress(tensor.name or "", info.offset, total)

        tensors = [self.weights[key] for key in keys]
        written = convert_tensors_to_external(tensors, path.parent, path.name, callback=report)
        places = dict(zip(keys, written, strict=True))
        for tensor, key in stubs:
            _clear_data(tensor)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": path.name, "offset": places[key].offset, "length": places[key].length}
            for field, value in entries.items():
                tensor.external_data.add(key=field, value=str(value))


def load(source: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Load a model without reading its external data.

    Args:
        source: A file, or a model in memory (copied, so that later changes to it do not matter).

    Raises:
        BadInputError: If there is no sound model that this package and onnxruntime can work with; the text is one
            line that says why.
    """
    if isinstance(source, Model):
        return source
    path = None if isinstance(source, onnx.ModelProto) else Path(source)
    proto = _parse(path) if path is not None else _copy(source)
    weights: dict[int, ir.TensorProtocol] = {}
    files: dict[str, Path] = {}
    try:
        _check_versions(proto)
        _check_text(proto)
        _check_structure(proto)
        _detach(proto, weights, path, files)
    except (BadInputError, ValueError, TypeError, AssertionError) as error:
        raise BadInputError(f"{path or 'the model'} cannot be used: {_first_line(error)}") from error
    # A fresh copy, because protobuf frees the memory of the removed data only with the message as a whole.
    sources = () if path is None else (path, *files.values())
    return Model(_copy(proto), weights, path, bool(files), sources)


class Draft:
    """An editable copy of a model's topology.

    Edit `graph` with onnx-graphsurgeon, but take new constants from `constant`, `lazy_constant` and `replace` and
    read old ones by `read`: a constant's own `values` would fail on a stub. Node bodies (If, Loop, Scan),
    functions and attributes that onnx-graphsurgeon cannot carry are not shown in `graph` and are kept as they are.
    `graph.cleanup()` and `graph.copy()` must not be used: the former does not see what bodies capture, and the
    latter makes all nodes new ones. Nodes need not be kept sorted.

    Attributes:
        graph: The topology.
    """

    graph: gs.Graph

    def __init__(self, model: Model) -> None:
        self._model = model
        self._weights = dict(model.weights)
        with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
            try:
                self.graph = gs.import_onnx(_portable(model.proto))
            except Exception as error:  # whatever it stumbles over in a model that it does not expect
                raise BadInputError(f"onnx-graphsurgeon cannot take the model: {_first_line(error)}") from error
        self._nodes = list(self.graph.nodes)  # keeps the nodes alive, so that their ids stay theirs
        self._origin = {id(node): index for index, node in enumerate(self._nodes)}
        self._before = self._export()
        self._names = _all_names(model.proto)

    def captured(self, node: gs.Node) -> frozenset[str]:
        """Names of the tensors of enclosing graphs that the node's bodies use (empty for most nodes)."""
        index = self._origin.get(id(node))
        return frozenset() if index is None else _captured(self._model.proto.graph.node[index])

    def read(self, constant: gs.Constant) -> Array:
        """The values of a constant of the graph or of a node's attribute.

        Returns:
            A read-only view where possible; types that numpy lacks come as those of ml_dtypes.

        Raises:
            BadInputError: If the constant is sparse.
        """
        return self.reader(constant)()

    def reader(self, constant: gs.Constant) -> Callable[[], Array]:
        """Like `read`, but reads when called; what it reads is what the constant is now, whatever becomes of it."""
        values = constant._values  # `values` would try to load a stub
        if isinstance(values, SparseValues):
            raise BadInputError(f"tensor {constant.name} is sparse, which is not supported")
        if not isinstance(values, LazyValues):
            return lambda: np.asarray(values)
        reader: Callable[[], Array] = _resolve(values.tensor, self._weights).numpy
        return reader

    def unique_name(self, base: str) -> str:
        """`base`, or `base` with a number, such that nothing in the model has this name; it is now taken."""
        candidates = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        name = next(name for name in candidates if name not in self._names)
        self._names.add(name)
        return name

    def constant(self, name: str, values: Array) -> gs.Constant:
        """A new constant, of any type that ONNX shares with numpy or ml_dtypes but text; `name` is made unique."""
        tensor = ir.tensor(values)
        if tensor.nbytes > INLINE_BYTES:
            return self.lazy_constant(name, int(tensor.dtype), values.shape, lambda: values)
        proto = ir.serde.serialize_tensor(tensor)
        proto.name = self.unique_name(name)
        return gs.Constant(proto.name, LazyValues(proto))

    def lazy_constant(
        self,
        name: str,
        dtype: int,
        shape: Sequence[int],
        compute: Callable[[], Array],
        like: gs.Constant | None = None,
    ) -> gs.Constant:
        """A new constant whose values are computed each time the model is saved or they are read.

        Args:
            name: Its name, made unique.
            dtype: A `TensorProto.DataType`.
            shape: The shape of the values.
            compute: Returns the values, of this type (as in ml_dtypes, where numpy has none) and shape.
            like: A constant whose documentation and metadata the new one inherits.
        """
        name = self.unique_name(name)
        return gs.Constant(name, self._lazy_values(name, dtype, shape, compute, like))

    def replace(
        self,
        constant: gs.Constant,
        shape: Sequence[int],
        compute: Callable[[], Array],
        dtype: int | None = None,
    ) -> None:
        """Give a constant new values in place: its name and everything that uses it stay; see `lazy_constant`."""
        kind = _tensor_proto(constant).data_type if dtype is None else dtype
        constant.values = self._lazy_values(constant.name, kind, shape, compute, constant)

    def finish(self, metadata: Mapping[str, str] | None = None, stale: Collection[str] | Literal["all"] = ()) -> Model:
        """The edited model, with everything that was not edited as it was; the draft may be edited further.

        Args:
            metadata: Entries to set in the model's `metadata_props`.
            stale: Tensors whose recorded types (`value_info`) no longer hold and are dropped, or "all". Those of
                graph inputs and outputs are kept: change the shapes of these in `graph`.

        Raises:
            BadInputError: If the edited graph is not a valid one.
        """
        self.graph.tensors(check_duplicates=True)
        after = self._export()
        proto = _copy(self._model.proto)
        before_captured = set().union(*(_captured(node) for node in proto.graph.node))
        nodes = [self._finished_node(node, new) for node, new in zip(self.graph.nodes, after.node, strict=True)]
        _merge(proto, self._before, after, nodes, before_captured)
        for scope in _scopes(proto):
            if stale:
                _refill(scope.value_info, (v for v in scope.value_info if stale != "all" and v.name not in stale))
        _set_metadata(proto, metadata or {})
        _import_domains(proto, self._model.proto.graph)
        _check_structure(proto)
        weights = dict(self._weights)
        _detach(proto, weights, None, {})
        alive = {_stub_key(tensor) for tensor in _tensors(proto)}
        weights = {key: tensor for key, tensor in weights.items() if key in alive}
        return Model(proto, weights, None, self._model.external, self._model.sources)

    def _export(self) -> onnx.GraphProto:
        seen: set[int] = set()
        for constant in _constants(self.graph):
            constant.data_location = None  # of the stub; would be written next to values set since
            values = constant._values
            if isinstance(values, LazyValues) and not isinstance(values, SparseValues):
                if id(values.tensor) in seen:  # copies of a constant share it, and export writes their names into it
                    constant.values = LazyValues(_copy(values.tensor))
                seen.add(id(values.tensor))
        with G_LOGGER.suppress():
            return gs.export_onnx(self.graph, do_type_check=False).graph

    def _finished_node(self, node: gs.Node, exported: onnx.NodeProto) -> onnx.NodeProto:
        index = self._origin.get(id(node))
        if index is None:
            return exported
        return _merged_node(self._model.proto.graph.node[index], self._before.node[index], exported)

    def _lazy_values(
        self, name: str, dtype: int, shape: Sequence[int], compute: Callable[[], Array], like: gs.Constant | None
    ) -> LazyValues:
        kind, dims = ir.DataType(dtype), tuple(int(size) for size in shape)

        def evaluate() -> ir.Tensor[Any]:
            array = np.asarray(compute())
            if array.shape != dims:  # would shift everything behind it in the data file
                raise ValueError(f"{name}: computed shape {array.shape}, declared {dims}")
            return ir.Tensor(array, dtype=kind, name=name)

        key = next(_keys)
        self._weights[key] = ir.LazyTensor(evaluate, kind, ir.Shape(dims), name=name)
        proto = onnx.TensorProto(name=name, data_type=dtype, dims=dims)
        _make_stub(proto, key)
        if like is not None:
            _inherit(proto, _tensor_proto(like))
        return LazyValues(proto)


# --- Tensors and stubs ------------------------------------------------------------------------------------------


def _copy(proto: Any) -> Any:
    duplicate = type(proto)()
    duplicate.CopyFrom(proto)
    return duplicate


def _refill(repeated: Any, items: Iterable[Any]) -> None:
    """Replace the content of a repeated protobuf field."""
    items = [_copy(item) for item in items]
    del repeated[:]
    repeated.extend(items)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _scopes(proto: onnx.ModelProto) -> Iterator[Any]:
    """The main graph, the functions, and all bodies inside these (training graphs are left alone throughout)."""
    pending = deque([proto.graph, *proto.functions])
    while pending:
        scope = pending.popleft()
        yield scope
        pending.extend(body for node in scope.node for body in _bodies(node))


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor, initializer or attribute, wherever it is."""
    for scope in _scopes(proto):
        yield from getattr(scope, "initializer", ())
        own = getattr(scope, "attribute_proto", ())
        for attribute in itertools.chain(own, *(node.attribute for node in scope.node)):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _stub_key(tensor: onnx.TensorProto) -> int | None:
    for entry in tensor.external_data:
        if entry.key == _STUB:
            return int(entry.value)
    return None


def _clear_data(tensor: onnx.TensorProto) -> None:
    for field in _DATA_FIELDS:
        tensor.ClearField(field)


def _make_stub(tensor: onnx.TensorProto, key: int) -> None:
    _clear_data(tensor)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key=_STUB, value=str(key))


def _resolve(tensor: onnx.TensorProto, weights: Mapping[int, ir.TensorProtocol]) -> ir.TensorProtocol:
    key = _stub_key(tensor)
    return ir.serde.TensorProtoTensor(tensor) if key is None else weights[key]


def _tensor_proto(constant: gs.Constant) -> onnx.TensorProto:
    values = constant._values  # `values` would try to load a stub
    return values.tensor if isinstance(values, LazyValues) else ir.serde.serialize_tensor(ir.tensor(values))


def _inherit(new: onnx.TensorProto, old: onnx.TensorProto) -> None:
    """Let a tensor that takes the place of another keep its documentation."""
    if not new.doc_string and old.doc_string:
        new.doc_string = old.doc_string
    if not new.metadata_props:
        new.metadata_props.extend(old.metadata_props)


def _nbytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise BadInputError(f"tensor {tensor.name} has a negative dimension")
    return int(math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth + 7) // 8


def _detach(
    proto: onnx.ModelProto, weights: dict[int, ir.TensorProtocol], path: Path | None, files: dict[str, Path]
) -> None:
    """Turn every larger tensor into a stub and every small external one into an inline one.

    Args:
        proto: The model; changed in place. Stubs in it are allowed.
        weights: What the stubs stand for; receives what is taken out.
        path: The file the model came from; None if it cannot have external data.
        files: Receives the external-data files by their location.
    """
    for tensor in _tensors(proto):
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if tensor.data_type in _OPAQUE_TYPES:
            if external:
                raise BadInputError(f"tensor {tensor.name} is in an external file, but text and untyped ones cannot be")
            continue
        key, size = _stub_key(tensor), _nbytes(tensor)
        if key in weights:
            weight = weights[key]
        else:
            key = next(_keys)
            weight = _external(tensor, size, path, files) if external else _in_memory(tensor, size)
        if size > INLINE_BYTES:
            weights[key] = weight
            _make_stub(tensor, key)
        elif external:
            content = weight.tobytes() if size else b""
            _clear_data(tensor)
            tensor.raw_data = content


def _in_memory(tensor: onnx.TensorProto, size: int) -> ir.TensorProtocol:
    """The data of a tensor as an array that no longer needs the proto."""
    source = ir.serde.TensorProtoTensor(tensor)  # knows which field holds which type
    content, kind = source.tobytes(), source.dtype
    if len(content) != size:
        raise BadInputError(f"tensor {tensor.name} has {len(content)} bytes of data instead of {size}")
    raw = np.frombuffer(content, np.uint8)
    if kind.bitwidth < 8:  # several elements to a byte
        return ir.PackedTensor(raw, kind, shape=source.shape, name=tensor.name)
    return ir.Tensor(raw.view(kind.numpy()).reshape(tensor.dims), dtype=kind, name=tensor.name)


def _external(tensor: onnx.TensorProto, size: int, path: Path | None, files: dict[str, Path]) -> ir.ExternalTensor:
    """The data of a tensor in a file, checked to be there but not read."""
    if path is None:
        raise BadInputError(f"tensor {tensor.name} is in an external file; load such a model by its path")
    info = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = info.get("location", ""), int(info.get("offset", 0)), int(info.get("length", size))
    if location not in files:
        files[location] = _data_file(path, location)
    file = files[location]
    if length != size:
        raise BadInputError(f"tensor {tensor.name} needs {size} bytes of {location}, but claims {length}")
    if not 0 <= offset <= file.stat().st_size - size:
        raise BadInputError(f"external data file {location} is too short for tensor {tensor.name}")
    kind, shape = ir.DataType(tensor.data_type), ir.Shape(tensor.dims)
    # Given an absolute path and no base folder onnx-ir leaves the checks to us: it would refuse hard links and the
    # links of a Hugging Face cache, which are harmless here.
    return ir.ExternalTensor(file, offset, None, kind, shape=shape, name=tensor.name)


def _data_file(model: Path, location: str) -> Path:
    """The external-data file of a model, if the model may have it.

    It must stay in the model's folder, after resolving links too. A Hugging Face cache, where the model and
    its data are links into one other folder, is accepted.
    """
    names = PureWindowsPath(location)  # splits at both / and \
    if not location or names.anchor or PurePosixPath(location).is_absolute() or ".." in names.parts:
        raise BadInputError(f"external data location {location!r} is not a path inside the model's folder")
    file = (model.parent / location).resolve()
    if not file.is_file():
        raise BadInputError(f"external data file {location} is missing")
    if model.parent.resolve() not in file.parents and model.resolve().parent != file.parent:
        raise BadInputError(f"external data file {location} is a link that leaves the model's folder")
    return file


# --- Checks -----------------------------------------------------------------------------------------------------


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            raise BadInputError(f"{path} is a folder, not a model file")
        size = path.stat().st_size
        if not size:
            raise BadInputError(f"{path} is empty")
        if size >= 1 << 31:
            raise BadInputError(f"{path} is no ONNX model: these end at 2 GiB, larger ones need external data")
        return onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise BadInputError(f"{path} is no ONNX model, or a truncated one") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_text(proto: onnx.ModelProto) -> None:
    """Refuse names that are not UTF-8: protobuf gives these as bytes, which nothing expects."""
    texts = [tensor.name for tensor in _tensors(proto)]
    for scope in _scopes(proto):
        values = [value for value in (*scope.input, *scope.output, *scope.value_info) if hasattr(value, "type")]
        texts += [scope.name, scope.doc_string, *_initializer_names(scope)]
        texts += [*_value_names(scope.input), *_value_names(scope.output), *_value_names(scope.value_info)]
        texts += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
        for node in scope.node:
            texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
            texts += [attribute.name for attribute in node.attribute]
    if not all(isinstance(text, str) for text in texts):
        raise BadInputError("it has names that are not UTF-8 text")


def _check_versions(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise BadInputError("it holds no graph, so it is no ONNX model")
    if not 0 < proto.ir_version <= NEWEST_IR:
        raise BadInputError(f"it has IR version {proto.ir_version}; supported are 1 to {NEWEST_IR}")
    versions = [opset.version for opset in proto.opset_import if opset.domain in _DEFAULT_DOMAIN]
    if not versions:
        raise BadInputError("it imports no version of the default operator set")
    for version in versions:
        if version not in OPSETS:
            supported = f"{OPSETS.start} to {OPSETS.stop - 1}"
            raise BadInputError(f"it uses operator set {version}; supported are {supported}")


def _check_structure(proto: onnx.ModelProto) -> None:
    """Check, in linear time, that every tensor is produced once and before it is used."""
    if not proto.graph.output:
        raise BadInputError("its graph has no outputs")
    _check_scope(proto.graph, ())
    for function in proto.functions:
        _check_scope(function, ())
    for scope in _scopes(proto):
        for sparse in getattr(scope, "sparse_initializer", ()):
            if sparse.values.external_data or sparse.indices.external_data:
                raise BadInputError(f"sparse tensor {sparse.values.name} is in an external file, not supported")


def _check_scope(scope: Any, outer: tuple[set[str], ...]) -> None:
    """Check a graph or a function; `outer` are the names that the enclosing graphs define."""
    own = set(inputs := _value_names(scope.input))
    if len(own) < len(inputs):
        raise BadInputError("two of its inputs have the same name")
    known = (*outer, own)
    initializers = _initializer_names(scope)
    if len(set(initializers)) < len(initializers):
        raise BadInputError("two of its initializers have the same name")
    own.update(initializers)
    for node in scope.node:
        for name in filter(None, node.input):
            if not any(name in names for names in known):
                raise BadInputError(_why_missing(scope, node, name))
        for body in _bodies(node):
            _check_scope(body, known)
        for name in filter(None, node.output):
            if any(name in names for names in known):
                raise BadInputError(f"tensor {name} is produced twice")
            own.add(name)
    for name in _value_names(scope.output):
        if not any(name in names for names in known):
            raise BadInputError(f"output {name} is not produced by any node")


def _why_missing(scope: Any, node: onnx.NodeProto, name: str) -> str:
    needs = f"node {node.name or node.op_type} needs tensor {name}"
    if any(name in other.output for other in scope.node):
        _sorted_indices(scope.node)  # says so if there is a cycle
        return f"{needs} before it is produced: the nodes are not sorted"
    return f"{needs}, which nothing provides"


def _value_names(values: Iterable[Any]) -> list[str]:
    """Names of inputs or outputs, which functions list as plain strings."""
    return [getattr(value, "name", value) for value in values]


def _initializer_names(scope: Any) -> list[str]:
    dense = [tensor.name for tensor in getattr(scope, "initializer", ())]
    return dense + [sparse.values.name for sparse in getattr(scope, "sparse_initializer", ())]


def _sorted_indices(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The order in which the nodes can run that is closest to the given one.

    Raises:
        BadInputError: If there is none.
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    reads = ({*node.input, *_captured(node)} for node in nodes)
    needs = {index: {producer[name] for name in names if name in producer} for index, names in enumerate(reads)}
    sorter = graphlib.TopologicalSorter(needs)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        names = ", ".join(nodes[index].name or nodes[index].op_type for index in error.args[1][:3])
        raise BadInputError(f"its graph has a cycle through {names}") from None
    order: list[int] = []
    ready: list[int] = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order


def _captured(node: onnx.NodeProto) -> frozenset[str]:
    """Names that the bodies of a node take from the enclosing graphs."""
    names: set[str] = set()
    for body in _bodies(node):
        local = {*_value_names(body.input), *_initializer_names(body)}
        local.update(name for inner in body.node for name in inner.output)
        used = {*_value_names(body.output)}.union(*({*inner.input, *_captured(inner)} for inner in body.node))
        names |= used - local - {""}
    return frozenset(names)


def _check_target(target: Path, sources: Iterable[Path]) -> None:
    if target.is_dir():
        raise BadInputError(f"cannot write {target}: it is a folder")
    if not target.parent.is_dir():
        raise BadInputError(f"cannot write {target}: the folder {target.parent} does not exist")
    if any(_same_file(target, source) for source in sources):
        raise BadInputError(f"cannot write {target}: the model reads its weights from it")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist
        return False


def _free_data_name(target: Path) -> str:
    """A name for the data file that does not touch the one of the model being replaced."""
    names = (f"{target.name}{middle}.data" for middle in itertools.chain([""], map(".{}".format, itertools.count(1))))
    return next(name for name in names if not os.path.lexists(target.parent / name))


def _own_data_files(target: Path) -> list[Path]:
    """The data files that the model at `target` refers to, as far as they bear a name that we would give."""
    pattern = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    ours = [name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    if not ours or not target.is_file():
        return []
    try:
        old = _parse(target)
    except BadInputError:  # whatever it is, it has no data files
        return []
    used = {entry.value for tensor in _tensors(old) for entry in tensor.external_data if entry.key == "location"}
    return [target.parent / name for name in ours if name in used]


# --- What onnx-graphsurgeon shows, and what is put back -----------------------------------------------------------


def _portable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for onnx-graphsurgeon (which shares memory with what it imports), without what it cannot carry."""
    proto = _copy(proto)
    del proto.functions[:]
    proto.ClearField("training_info")
    graph = proto.graph
    for value in itertools.chain(graph.input, graph.output, graph.value_info):
        if not value.type.tensor_type.elem_type:
            value.ClearField("type")
    for node in graph.node:
        kept = [attribute for attribute in node.attribute if _is_portable(attribute)]
        if len(kept) < len(node.attribute):
            _refill(node.attribute, kept)
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


def _all_names(proto: onnx.ModelProto) -> set[str]:
    names: set[str] = set()
    for scope in _scopes(proto):
        names.update(_initializer_names(scope), _value_names(scope.input), _value_names(scope.output))
        names.update(value.name for value in scope.value_info)
        for node in scope.node:
            names.update([node.name], node.input, node.output)
    return names


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants that nodes use and those in their attributes."""
    attributes = (value for node in graph.nodes for value in node.attrs.values())
    for value in itertools.chain(graph.tensors().values(), attributes):
        if isinstance(value, gs.Constant):
            yield value


def _by_name(items: Iterable[Any]) -> dict[str, Any]:
    return {item.name: item for item in items}


def _merged_node(original: onnx.NodeProto, before: onnx.NodeProto, after: onnx.NodeProto) -> onnx.NodeProto:
    """The original node with the changes that lead from `before` to `after`."""
    node = _copy(original)
    for field in ("op_type", "domain", "name"):
        if getattr(after, field) != getattr(before, field):
            setattr(node, field, getattr(after, field))
    for field in ("input", "output"):
        if getattr(after, field) != getattr(before, field):
            del getattr(node, field)[:]
            getattr(node, field).extend(getattr(after, field))
    if after.attribute != before.attribute:
        _merge_attributes(node, _by_name(before.attribute), _by_name(after.attribute))
    return node


def _merge_attributes(node: onnx.NodeProto, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    merged = []
    for old in node.attribute:
        new = after.get(old.name)
        if new == before.get(old.name):  # also those that were never shown
            merged.append(old)
        elif new is not None:
            if new.HasField("t"):
                _inherit(new.t, old.t)
            new.doc_string = old.doc_string
            merged.append(new)
    names = {attribute.name for attribute in node.attribute}
    _refill(node.attribute, merged + [new for new in after.values() if new.name not in names])


def _merge(
    proto: onnx.ModelProto,
    before: onnx.GraphProto,
    after: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    captured_before: set[str],
) -> None:
    """Put finished nodes into the original model, and carry over what else changed from `before` to `after`."""
    graph = proto.graph
    captured = set().union(*(_captured(node) for node in nodes))
    gone = (_tensor_names(before) | captured_before) - _tensor_names(after) - captured
    types = _changed_types(before, after)
    _refill(graph.node, [nodes[index] for index in _sorted_indices(nodes)])

    added = _missing(after.initializer, graph.initializer)
    _merge_initializers(graph, before, after, captured_before, captured)
    alive = {*_initializer_names(graph), *_value_names(after.input)}
    late = _missing(after.input, graph.input)
    if proto.ir_version < 4:  # there every initializer is an input too
        late += [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in added]
    _refill(graph.input, _retyped([value for value in graph.input if value.name in alive] + late, types))
    outputs = _by_name(graph.output)
    _refill(graph.output, _retyped([outputs.get(value.name, value) for value in after.output], types))
    late = _missing(after.value_info, [*before.value_info, *graph.value_info])
    _refill(graph.value_info, _retyped([v for v in graph.value_info if v.name not in gone] + late, types))
    _refill(graph.quantization_annotation, (q for q in graph.quantization_annotation if q.tensor_name not in gone))


def _merge_initializers(
    graph: onnx.GraphProto,
    before: onnx.GraphProto,
    after: onnx.GraphProto,
    captured_before: Collection[str],
    captured: Collection[str],
) -> None:
    """Take over changed and new initializers, and drop those that had a use before and have none now."""
    produced = {name for node in graph.node for name in node.output}
    used_before, used = {*_initializer_names(before), *captured_before}, set(_initializer_names(after))

    def stays(name: str) -> bool:
        return name in used or (name not in produced and (name in captured or name not in used_before))

    old, new = _by_name(before.initializer), _by_name(after.initializer)
    merged = []
    for tensor in graph.initializer:
        changed = new.get(tensor.name)
        if changed is not None and changed != old.get(tensor.name):
            _inherit(changed, tensor)
            merged.append(changed)
        elif stays(tensor.name):
            merged.append(tensor)
    _refill(graph.initializer, merged + _missing(after.initializer, graph.initializer))
    _refill(graph.sparse_initializer, (t for t in graph.sparse_initializer if stays(t.values.name)))


def _missing(items: Iterable[Any], known: Iterable[Any]) -> list[Any]:
    """Those items that have no namesake among the known ones."""
    names = set(_by_name(known))
    return [item for item in items if item.name not in names]


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    names = {*_initializer_names(graph), *_value_names(graph.input), *_value_names(graph.output)}
    return names.union(*(node.input for node in graph.node), *(node.output for node in graph.node))


def _changed_types(before: onnx.GraphProto, after: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """The new type of each tensor, initializers included, whose type was edited."""

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


def _set_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    entries = {entry.key: entry for entry in proto.metadata_props}
    for key, value in metadata.items():
        entry = entries.get(key) or proto.metadata_props.add(key=key)
        entry.value = value


def _import_domains(proto: onnx.ModelProto, original: onnx.GraphProto) -> None:
    """Import the domains of new nodes. Those that the original used without importing them are not our business."""
    known = {*_DEFAULT_DOMAIN, *(opset.domain for opset in proto.opset_import), *(n.domain for n in original.node)}
    for domain in dict.fromkeys(node.domain for node in proto.graph.node if node.domain not in known):
        proto.opset_import.add(domain=domain, version=1)
