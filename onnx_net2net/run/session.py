"""Runs models in onnxruntime: without a silent fallback to another provider, and with dtypes that numpy lacks."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ValueInfoProto, helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, Net2NetError, one_line
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.wire import without_data
from onnx_net2net.run.inputs import Feeds


class Level(Enum):
    """How much onnxruntime rearranges a graph: the names that it has for that."""

    PLAIN = "ORT_DISABLE_ALL"
    OPTIMIZED = "ORT_ENABLE_ALL"


LEVELS = (Level.PLAIN, Level.OPTIMIZED)

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # TF32 keeps 10 bits of float32's 23


_libraries: list[Path] = []
"""Shared libraries with operators of the user's own."""


def _ort() -> Any:
    """Return onnxruntime, which is imported where something runs."""
    import onnxruntime

    return onnxruntime


def use_library(path: Path) -> None:
    """Run all further models with the operators of a shared library (`onnxruntime` calls it a custom op library).

    Raises:
        BadInputError: It cannot be loaded.
    """
    with blaming(BadInputError, f"the library {path} cannot be loaded"):
        _ort().SessionOptions().register_custom_ops_library(str(path))
    if path not in _libraries:
        _libraries.append(path)


def _options() -> Any:
    """Return the options of a session that has the operators of the user's own."""
    options = _ort().SessionOptions()
    for library in _libraries:
        options.register_custom_ops_library(str(library))
    return options


_NO_OVERFLOW = {"session.x64quantprecision": "1"}
"""On x64 processors without VNNI, sums of unsigned by signed bytes overflow otherwise. It is an optimization."""

# Weights are read where they are, in a mapped file. A copy of them that is laid out for a kernel costs more time than a
# few runs take, and as much memory as the model has.
_IN_PLACE = {"session.disable_prepacking": "1"}


def _options_for(level: Level, entries: Mapping[str, str]) -> Any:
    options = _options()
    options.graph_optimization_level = getattr(_ort().GraphOptimizationLevel, level.value)
    options.log_severity_level = 4  # errors come as exceptions; they need not be printed too
    for key, value in {**_IN_PLACE, **entries}.items():
        options.add_session_config_entry(key, value)
    return options


class Runner:
    """A model opened in onnxruntime; a call runs it."""

    def __init__(
        self,
        model: Path | bytes,
        level: Level = LEVELS[0],
        *,
        provider: str = _PROVIDERS["cpu"],
        file: Path | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: A file, or a serialized model.
            level: One of `LEVELS`.
            provider: What `provider_name` returned.
            file: The model file whose external data a serialized model has.

        Raises:
            BadInputError: If the provider does not load; anything else is an exception of onnxruntime.
        """
        entries: dict[str, str] = {}
        source = str(model) if isinstance(model, Path) else model
        if isinstance(model, Path) and (bare := without_data(model)) is not None:
            source, file = bare.SerializeToString(), model
        elif isinstance(model, Path) and model.is_symlink():
            source, file = model.read_bytes(), model
        if isinstance(source, bytes) and file is not None:
            source, folder = _beside(source, file)
            entries["session.model_external_initializers_file_folder_path"] = str(folder)
        providers = [(provider, _OPTIONS.get(provider, {}))]
        try:
            options = _options_for(level, {**entries, **_NO_OVERFLOW})
            self._session = _ort().InferenceSession(source, options, providers, enable_fallback=0)
        except Exception:  # that pass of onnxruntime gives two constants one name in some quantized models
            options = _options_for(level, entries)
            self._session = _ort().InferenceSession(source, options, providers, enable_fallback=0)
        if (got := self._session.get_providers()[0]) != provider:  # onnxruntime only prints a warning
            raise BadInputError(f"{provider} cannot be loaded, onnxruntime would run on {got}{_hint(provider)}")
        self._names = [value.name for value in self._session.get_outputs()]
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        self._exotic = any("bfloat16" in value.type or "float8" in value.type for value in values)

    def __call__(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return all outputs by name, or some, for which no more is run than they need.

        Members of sequences and maps count as outputs.
        """
        options = _ort().RunOptions()
        options.only_execute_path_to_fetches = outputs is not None
        if self._exotic:  # types that numpy lacks
            inputs = {name: _to_ort(array) for name, array in feeds.items()}
            values = [_from_ort(value) for value in self._session.run_with_ort_values(outputs, inputs, options)]
        else:
            values = self._session.run(outputs, feeds, options)
        return dict(itertools.chain.from_iterable(map(_tensors, outputs or self._names, values)))


def session(model: ModelLike, *, provider: str = "cpu") -> Any:
    """Open a model in onnxruntime, with the optimizations that onnxruntime has by default.

    Args:
        model: A path, a model in memory or a loaded model; it need not be saved.
        provider: Where to run: ``cpu``, ``cuda``, ... or the full name of an execution provider.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        BadInputError: The model cannot be used, or there is no such provider.
    """
    name = provider_name(provider)
    with load(model).on_disk() as path, blaming(BadInputError, "the model does not run"):
        return _ort().InferenceSession(
            str(path), _options(), providers=[(name, _OPTIONS.get(name, {}))], enable_fallback=0
        )


def _beside(model: bytes, file: Path) -> tuple[bytes, Path]:
    """Return a model, and the folder where onnxruntime finds its data.

    A file of a Hugging Face cache is a link, and so is its data. onnxruntime opens no data that are links out of the
    folder which it is told; so it is told the folder that they lead to, and their names there.
    """
    if not file.is_symlink():
        return model, file.parent
    proto = onnx.load_model_from_string(model)
    entries = [
        entry
        for tensor in all_tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    files = {name: (file.parent / name).resolve() for name in {entry.value for entry in entries}}
    if not files:
        return model, file.parent
    folder = Path(os.path.commonpath([path.parent for path in files.values()]))
    for entry in entries:
        entry.value = files[entry.value].relative_to(folder).as_posix()
    return proto.SerializeToString(), folder


def provider_name(name: str) -> str:
    """Return the full name of an execution provider that this onnxruntime has.

    Raises:
        BadInputError: If there is none.
    """
    full = _PROVIDERS.get(name.lower(), name)
    if full not in _ort().get_available_providers():
        if full not in _ort().get_all_providers():
            raise BadInputError(f"there is no provider {name!r}; known are {', '.join(_PROVIDERS)}")
        raise BadInputError(f"this onnxruntime has no {full}{_hint(full)}")
    return full


@cache
def implements(kind: str, version: int, dtype: int, inputs: int) -> bool:
    """Tell whether onnxruntime has an operator of ai.onnx for an element type on CPU, by trying it.

    Args:
        kind: The operator.
        version: The operator set.
        dtype: onnx.TensorProto.DataType of its inputs.
        inputs: How many it has.
    """
    names = [f"x{number}" for number in range(inputs)]
    values = [helper.make_tensor_value_info(name, dtype, None) for name in names]
    graph = helper.make_graph([helper.make_node(kind, names, ["y"])], kind, values, [ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    try:
        Runner(model.SerializeToString())
    except Exception as error:  # onnxruntime's errors have no base of their own
        return not any(word in str(error) for word in ("NOT_IMPLEMENTED", "Type Error"))
    return True


@contextlib.contextmanager
def blaming(kind: type[Net2NetError], what: str) -> Iterator[None]:
    """Turn whatever onnxruntime raises into one line of ``kind``."""
    try:
        yield
    except Net2NetError:
        raise
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise kind(f"{what}: {one_line(error)}") from None


def check_runs(model: Model, what: str = "the teacher") -> None:
    """Refuse a model that onnxruntime does not take; those with operators of its user's own are not tried.

    Args:
        model: The model.
        what: What messages call it.

    Raises:
        BadInputError: It does not; the text says why.
    """
    domains = {node.domain for node in model.proto.graph.node if node.domain}
    if not _libraries and any(not domain.startswith(("ai.onnx", "com.microsoft")) for domain in domains):
        return
    with model.on_disk() as path, blaming(BadInputError, f"{what} does not run"):
        Runner(path)


def _hint(provider: str) -> str:
    if provider in {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        return "; pip install 'onnx-net2net[gpu]' brings it, the driver and the CUDA libraries have to be there"
    return "; install the onnxruntime package that was built with it"


def _to_ort(array: Array) -> Any:
    if array.dtype.kind != "V":
        return _ort().OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return _ort().OrtValue.ortvalue_from_numpy_with_onnx_type(bits, helper.np_dtype_to_tensor_dtype(array.dtype))


def _from_ort(value: Any) -> Any:
    """Return the value as numpy has it; onnxruntime itself converts no bfloat16."""
    if not value.is_tensor():
        return None  # a sequence beside a bfloat16 tensor: not seen so far
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.element_type()))
    if dtype.kind != "V":
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype).reshape(value.shape())


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of an output, which may be a sequence or a map."""
    if isinstance(value, list | dict):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            yield from _tensors(f"{name}[{key!r}]", member)
    elif value is not None:
        yield name, np.asarray(value)
