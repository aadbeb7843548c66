"""Reads and writes state dicts of training frameworks; the suffix of the file tells the format.

Formats are .safetensors, torch's .pt, Keras' .weights.h5 and .keras, .npz, Flax' .msgpack, and folders of Orbax.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, WriteError, one_line, optional
from onnx_net2net.framework.formats import hdf5, trees
from onnx_net2net.framework.formats.stored import SMALL_FLOATS, Entries, StateDict, Stored
from onnx_net2net.model.checks import parse_model
from onnx_net2net.model.history import HISTORY
from onnx_net2net.model.saving import check_target
from onnx_net2net.model.staging import place_folder, staged_files, writing
from onnx_net2net.model.tensors import DataFile
from onnx_net2net.run.inputs import arrays_of

TORCH = (".pt", ".pth", ".bin", ".ckpt")
"""What the names of torch's files end in."""

_MADE = "onnx_net2net"
"""In the metadata of .safetensors files that this package made."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts put the state dict beside other things."""

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


_DEPTH = 10
"""How many dicts a state dict may be inside of."""


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> StateDict:
    """Read a state dict.

    Args:
        source: The result of `module.state_dict()`, or a file: .safetensors, .npz, .weights.h5 or .keras (needs h5py),
            .msgpack (needs msgpack), a folder of Orbax, or a file of torch with one of the suffixes `TORCH` (needs
            torch; the state dict may be inside another dict under one of the keys `WRAPPERS`). No code in a file is
            run.

    Returns:
        The tensors by name; values are read on demand.

    Raises:
        BadInputError: There is no state dict, or a package is missing.
    """
    if isinstance(source, Mapping):
        return from_torch(source)
    path = Path(source)
    if path.is_dir():
        return trees.read_orbax(path)
    if not path.is_file():
        raise BadInputError(f"cannot read {path}: there is no such file")
    if path.suffix not in _READERS:
        raise BadInputError(f"{path}: state dicts are {_FORMATS}")
    return _READERS[path.suffix](path)


def is_made(path: Path) -> bool:
    """Tell whether a file says that this package made it.

    Models with a record do, .safetensors files, pictures, reports and tables of explorations; files of torch do not.
    """
    try:
        if path.suffix == ".safetensors":
            with open(path, "rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            return _MADE in header.get("__metadata__", {})
        if path.suffix in (".svg", ".html", ".htm"):
            return _MADE in path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return path.read_text(encoding="utf-8").startswith("trial,")
        return any(entry.key == HISTORY for entry in parse_model(path).metadata_props)
    except (OSError, ValueError, MemoryError, OverflowError, AttributeError, BadInputError):
        return False


def _read_torch(path: Path) -> StateDict:
    return from_torch(load_torch(path), str(path))


def _read_npz(path: Path) -> StateDict:
    try:
        with zipfile.ZipFile(path) as archive:
            hdf5.check_archive(path, archive)
    except BadInputError:
        raise
    except Exception as error:  # of zip files, each has its own
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    arrays = arrays_of(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise BadInputError(f"{path}: {name} is of the type {array.dtype}, which is not supported")
    return Entries({name: Stored.of(array) for name, array in arrays.items()})


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError, safe_open

    try:
        file = DataFile.of(path)
        with safe_open(path, framework="numpy"):  # checks that the header and the file agree
            pass
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    header.pop("__metadata__", None)
    found: dict[str, Stored] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise BadInputError(f"{path}: {name} is of the type {entry['dtype']}, which is not supported")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        elements = partial(_elements, file, 8 + length + entry["data_offsets"][0], dtype)
        found[name] = Stored.in_parts(shape, dtype, elements)
    return found


def _elements(file: DataFile, offset: int, dtype: np.dtype[Any], start: int, stop: int) -> Array:
    size = dtype.itemsize
    return file.read(offset + start * size, (stop - start) * size).view(dtype)


def load_torch(path: Path) -> Any:
    """Return what a file of torch holds, with tensors on the CPU; no code in it is run.

    Raises:
        BadInputError: If it cannot be read.
    """
    torch = import_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # of unpickling, of zip files, of torch itself
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def import_torch(path: Path) -> Any:
    """Import torch, which only its own files need.

    Raises:
        BadInputError: If it is not installed.
    """
    return optional("torch", f"{path} is a file of torch, which is not installed; or use .safetensors")


def from_torch(loaded: Any, where: str = "the state dict") -> StateDict:
    """Take a state dict of torch tensors, also from inside of one of `WRAPPERS`.

    Raises:
        BadInputError: If there are no tensors.
    """
    for _ in range(_DEPTH):  # a dict may be inside itself
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    tensors = {str(k): v for k, v in loaded.items() if hasattr(v, "layout")} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise BadInputError(f"{where} has no tensors by name")
    entries = Entries({name: _of_torch(name, tensor) for name, tensor in tensors.items()})
    entries.kept = getattr(loaded, "_metadata", None)
    return entries


def _of_torch(name: str, tensor: Any) -> Stored:
    import torch

    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        raise BadInputError(f"{name} is no plain tensor on the CPU, which is not supported")
    kind = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(SMALL_FLOATS.get(kind, kind))

    def read() -> Array:
        if kind not in SMALL_FLOATS:
            return np.asarray(tensor.numpy())
        bits = torch.uint8 if tensor.element_size() == 1 else torch.int16
        return np.asarray(tensor.contiguous().view(bits).numpy()).view(dtype)

    shared = (tensor.data_ptr(), tensor.stride()) if tensor.numel() else None
    return Stored(tuple(tensor.shape), dtype, read, shared)


def write(
    path: str | os.PathLike[str],
    names: Iterable[str],
    value: Callable[[str], Array],
    sources: Iterable[Path] = (),
    kept: Any = None,
    beside: Mapping[Path, Callable[[Path], None]] | None = None,
) -> None:
    """Write a state dict in the format of the path's suffix. The file appears as a whole or not at all.

    Args:
        path: The file; a name without a suffix is a folder of Orbax.
        names: The names of the tensors.
        value: Returns the values of a tensor.
        sources: Files that are still read; they must not be overwritten.
        kept: What the file of the teacher's state dict holds besides tensors; see `Entries`.
        beside: Further files in the same folder, each with a function that writes it. All appear together, or none.

    Raises:
        BadInputError: There is no such format, or the file cannot be written there.
        RefusedError: The format needs a config, and its new sizes cannot be told.
    """
    path = Path(path)
    target = check_output(path, sources)
    others = {check_target(other, sources): write_other for other, write_other in (beside or {}).items()}
    for other in others:
        if other.parent != target.parent or not path.suffix:
            raise BadInputError(f"cannot write {other} together with {target}: it is a folder, or in another folder")
    with staged_files(target) as staged:
        with writing(path):
            arrays = {name: np.asarray(value(name), order="C") for name in names}
        with saving(path):
            _WRITERS[path.suffix](staged.folder / target.name, arrays, kept)
        if not path.suffix:
            place_folder(staged.folder / target.name, target)
            return
        for other, write_other in others.items():
            write_other(staged.folder / other.name)
        with writing(path):
            staged.commit(lambda: ([other.name for other in (*others, target)], []))


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what fails while a file of tensors is written into one line.

    Raises:
        WriteError: In its place.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # of torch's "unexpected pos"
        raise WriteError(f"cannot write {path}: {one_line(getattr(cause, 'strerror', None) or cause)}") from error


def check_output(path: Path, sources: Iterable[Path]) -> Path:
    """Return the file that is written where a path for a state dict is given.

    Raises:
        BadInputError: For the reasons of `check_target`, or because the name tells no format.
    """
    if path.suffix not in _WRITERS:
        raise BadInputError(f"cannot write {path}: state dicts are {_FORMATS}")
    if path.suffix in TORCH:
        import_torch(path)
    if path.suffix in (*hdf5.H5, hdf5.KERAS):
        hdf5.import_h5py(path)
    if path.suffix:
        return check_target(path, sources)
    with writing(path):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
            raise BadInputError(f"cannot write {path}: there is something of this name")
        if not path.parent.is_dir():
            raise BadInputError(f"cannot write {path}: the folder {path.parent} does not exist")
    return Path(os.path.realpath(path))


def _write_torch(path: Path, arrays: Mapping[str, Array], kept: Any) -> None:
    tensors: Any = OrderedDict((name, torch_tensor(array)) for name, array in arrays.items())
    if isinstance(kept, OrderedDict):
        tensors._metadata = kept
    save_torch(tensors, path)


def _write_npz(path: Path, arrays: Mapping[str, Array], _: Any) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise BadInputError(f"cannot write {path.name}: {name} is {array.dtype}, which .npz does not have")
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():  # any name will do, which np.savez does not take
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_safetensors(path: Path, arrays: Mapping[str, Array], _: Any) -> None:
    from safetensors import TensorSpec, serialize_file

    specs = {
        name: TensorSpec(dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in arrays.items()
    }
    serialize_file(specs, path, metadata={"format": "pt", _MADE: "1"})


def save_torch(value: Any, path: Path) -> None:
    """Write a file of torch; to an open file, because torch itself does not tell the system's errors."""
    import torch

    with open(path, "wb") as file:
        torch.save(value, file)


def torch_tensor(array: Array) -> Any:
    """Return a torch tensor of the same type and values."""
    import torch

    if array.dtype.name not in SMALL_FLOATS:
        return torch.from_numpy(np.array(array))
    bits = np.array(array).view(np.uint8 if array.dtype.itemsize == 1 else np.int16)
    return torch.from_numpy(bits).view(getattr(torch, array.dtype.name))


_READERS: dict[str, Callable[[Path], StateDict]] = {
    ".safetensors": _read_safetensors,
    **dict.fromkeys(TORCH, _read_torch),
    **dict.fromkeys(hdf5.H5, hdf5.read_h5),
    hdf5.KERAS: hdf5.read_keras,
    ".npz": _read_npz,
    trees.MSGPACK: trees.read_msgpack,
}
"""What reads a file, by the end of its name."""

_WRITERS: dict[str, Callable[[Path, Mapping[str, Array], Any], None]] = {
    ".safetensors": _write_safetensors,
    **dict.fromkeys(TORCH, _write_torch),
    **dict.fromkeys(hdf5.H5, hdf5.write_h5),
    hdf5.KERAS: hdf5.write_keras,
    ".npz": _write_npz,
    trees.MSGPACK: trees.write_msgpack,
    "": trees.write_orbax,
}
"""What writes one; a name without a suffix is a folder."""

_FORMATS = f"files in {', '.join(_READERS)}, or folders of Orbax"
