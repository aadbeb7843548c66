"""State dicts of Keras: an HDF5 file (.weights.h5), and the archive that has one beside a config (.keras).

No code of Keras runs: h5py and zipfile read them. Names are paths in the file (`layers/dense/vars/0`). What a hostile
file can do (links out of it, shapes without data, archives that swell) is refused.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, one_line, optional
from onnx_net2net.framework.formats.keras_config import resized
from onnx_net2net.framework.formats.stored import Entries, Stored

H5 = (".h5", ".hdf5")
"""What the names of HDF5 files end in."""

KERAS = ".keras"
"""What the name of Keras' archives ends in."""

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
"""Members of such an archive."""

_OPTIMIZERS = ("optimizer", "optimizer_weights")
"""Groups at the top that hold the state of an optimizer."""

_LARGE, _SWELL = 1 << 30, 1000
"""Bytes that may be declared freely, and how often larger than its data in the file anything larger may be."""

_LARGEST_JSON = 1 << 28
"""Bytes of the largest config that is read."""


@dataclass(frozen=True)
class Groups:
    """What an HDF5 file has beside tensors.

    Attributes:
        attributes: Of each group and tensor that has any, by its path; groups without tensors are here too.
        members: The other members of the archive that it lies in, by their names; nothing for a file of its own.
    """

    attributes: Mapping[str, Mapping[str, Any]]
    members: Mapping[str, bytes] | None = None


def read_h5(path: Path) -> Entries:
    """Read an HDF5 file; tensors are read when they are needed.

    Raises:
        BadInputError: If it is none, or has what no file of weights has.
    """
    return _entries(path, path, None)


def read_keras(path: Path) -> Entries:
    """Read the weights of Keras' archive, which are held in memory, and note its config.

    Raises:
        BadInputError: If it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if _CONFIG not in sizes or _WEIGHTS not in sizes:
                raise BadInputError(f"cannot read {path}: it has no {_WEIGHTS} and {_CONFIG}, as Keras 3 writes them")
            check_archive(path, archive)
            for name in (_CONFIG, _METADATA):
                if sizes.get(name, 0) > _LARGEST_JSON:
                    raise BadInputError(f"cannot read {path}: {name} is too large for what it should be")
            members = {name: archive.read(name) for name in (_METADATA, _CONFIG) if name in sizes}
            weights = io.BytesIO(archive.read(_WEIGHTS))
    except BadInputError:
        raise
    except Exception as error:  # of zip files, of decompression
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    return _entries(path, weights, members)


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that swells.

    Raises:
        BadInputError: If a member is large and a thousand times as large as what is stored of it.
    """
    for info in archive.infolist():
        if info.file_size > _LARGE and info.file_size > _SWELL * info.compress_size:
            raise BadInputError(f"cannot read {path}: {info.filename} swells to {info.file_size:,} bytes")


def import_h5py(path: Path) -> Any:
    """Import h5py, which only these files need.

    Raises:
        BadInputError: If it is not installed.
    """
    return optional("h5py", f"{path} needs h5py: pip install 'onnx-net2net[keras]'")


def _entries(path: Path, source: Path | io.BytesIO, members: Mapping[str, bytes] | None) -> Entries:
    h5py = import_h5py(path)
    try:
        # By an open file of our own: HDF5 would lock a path, also against the framework in the same process.
        file = h5py.File(open(source, "rb") if isinstance(source, Path) else source, "r")  # noqa: SIM115
        found, attributes = Entries(), dict[str, Mapping[str, Any]]()
        attributes[""] = dict(file.attrs)
        for name, item in _walk(path, h5py, file, "", {_address(h5py, file)}):
            if isinstance(item, h5py.Dataset):
                found[name] = _stored(path, name, item)
            attributes[name] = dict(item.attrs)
    except BadInputError:
        raise
    except Exception as error:  # of HDF5, h5py makes errors of many kinds
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    if any(name in _OPTIMIZERS for name in file):
        found.notes = ("warning: the state of the optimizer in the file is left out",)
    if not found:
        raise BadInputError(f"{path} has no tensors by name")
    found.kept = Groups(attributes, members)
    return found


def _address(h5py: Any, item: Any) -> int:
    address: int = h5py.h5o.get_info(item.id).addr
    return address


def _walk(path: Path, h5py: Any, group: Any, prefix: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what is in a group and in those inside it, with the paths; but for optimizers."""
    for key in group:
        name = f"{prefix}{key}"
        if name in _OPTIMIZERS:
            continue
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise BadInputError(f"cannot read {path}: {name} is a link, which is not followed")
        item = group[key]
        yield name, item
        if isinstance(item, h5py.Group):
            own = _address(h5py, item)
            if own in above:
                raise BadInputError(f"cannot read {path}: {name} is inside itself")
            yield from _walk(path, h5py, item, f"{name}/", above | {own})


def _stored(path: Path, name: str, dataset: Any) -> Stored:
    """Return a tensor.

    Raises:
        BadInputError: If its values are elsewhere or nowhere, or no numbers.
    """
    is_brain = dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2
    dtype = np.dtype(ml_dtypes.bfloat16) if is_brain else dataset.dtype
    if dataset.shape is None or not (is_brain or dtype.kind in "fiub"):
        raise BadInputError(f"{path}: {name} is of the type {dataset.dtype}, which is not supported")
    if dataset.external or dataset.is_virtual:
        raise BadInputError(f"cannot read {path}: {name} lies in other files")
    size = math.prod(dataset.shape) * dtype.itemsize
    if size > _LARGE and size > _SWELL * dataset.id.get_storage_size():
        raise BadInputError(f"cannot read {path}: {name} swells to {size:,} bytes")
    native = dtype.newbyteorder("=")

    def read() -> Array:
        try:
            values = np.asarray(dataset[()])
        except Exception as error:  # of HDF5
            raise BadInputError(f"cannot read {path}: {name}: {one_line(error)}") from error
        return values.view(native).reshape(dataset.shape) if is_brain else values.astype(native, copy=False)

    return Stored(tuple(dataset.shape), native, read)


def write_h5(path: Path, arrays: Mapping[str, Array], kept: Any) -> None:
    """Write an HDF5 file, with the groups that the one had which the tensors are from.

    Raises:
        BadInputError: If a name is none that a path can have.
    """
    with open(path, "w+b") as file:
        _write_groups(file, path, arrays, kept.attributes if isinstance(kept, Groups) else {})


def _write_groups(file: Any, path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    h5py = import_h5py(path)
    for name in arrays:
        if any(step in ("", ".", "..") for step in name.split("/")) or "\0" in name:
            raise BadInputError(f"cannot write {path.name}: {name!r} is no path in an HDF5 file")
    with h5py.File(file, "w") as root:
        for name in attributes:
            if name and name not in arrays:
                root.require_group(name)
        for name, array in arrays.items():
            dataset = root.create_dataset(name, data=array)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
        for name, values in attributes.items():
            item = root[name] if name else root
            for key, value in values.items():
                item.attrs[key] = value


def write_keras(path: Path, arrays: Mapping[str, Array], kept: Any) -> None:
    """Write Keras' archive: its config with the sizes of the tensors, and these.

    Raises:
        BadInputError: If the tensors are of another kind of file, so that there is no config.
        RefusedError: If the config has layers that may hold sizes which nothing tells.
    """
    if not isinstance(kept, Groups) or kept.members is None:
        raise BadInputError(
            f"cannot write {path.name}: only a state dict that is a .keras file has the config of the model; write "
            ".weights.h5"
        )
    try:
        config = json.loads(kept.members[_CONFIG])
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"the config of the .keras file cannot be read: {one_line(error)}") from error
    names = {path.removesuffix("/vars"): _text(found["name"])
             for path, found in kept.attributes.items() if path.endswith("/vars") and "name" in found}  # fmt: skip
    config = resized(config, {name: array.shape for name, array in arrays.items()}, names)
    weights = io.BytesIO()
    _write_groups(weights, path, arrays, kept.attributes)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.members.items():
            archive.writestr(name, json.dumps(config) if name == _CONFIG else content)
        archive.writestr(_WEIGHTS, weights.getvalue())


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
