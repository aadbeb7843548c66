"""State dicts of Flax: trees of arrays, in a file of msgpack or a folder of Orbax.

Names are the keys of the tree, joined by `/` (`params/dense/kernel`). A file of msgpack is read without Flax. A folder
of Orbax is read and written by Orbax itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, one_line, optional
from onnx_net2net.framework.formats.stored import SMALL_FLOATS, Entries, Stored

MSGPACK = ".msgpack"
"""What the names of Flax's files end in."""

_DEPTH = 100
"""How deep a tree may be."""

_ARRAY, _SCALAR = 1, 3
"""Types that Flax adds to msgpack: an array, and a number as numpy has it."""

_CHUNKED, _MOST = "__msgpack_chunked_array__", 1 << 30
"""The mark of an array that Flax cut, and the bytes from which on it cuts."""

Keys = tuple[Any, ...]


@dataclass(frozen=True)
class Tree:
    """What a tree has beside arrays.

    Attributes:
        keys: Of each tensor, by its name.
        others: The other leaves (numbers, texts, None, empty nodes), by their keys.
        lists: The keys of the nodes that are lists.
    """

    keys: Mapping[str, Keys]
    others: Mapping[Keys, Any]
    lists: frozenset[Keys] = frozenset()


def from_tree(tree: Any, where: str) -> Entries:
    """Take the arrays of a tree of dicts and lists.

    Raises:
        BadInputError: If there are none, or two have one name.
    """
    found, keys, others, lists = Entries(), dict[str, Keys](), dict[Keys, Any](), set[Keys]()
    for path, value, is_list in _leaves(tree, (), where):
        if is_list:
            lists.add(path)
        elif not isinstance(value, np.ndarray):
            others[path] = value
        else:
            name = "/".join(map(str, path))
            kind = value.dtype.kind
            if name in found or kind not in "fiubV" or (kind == "V" and value.dtype.name not in SMALL_FLOATS):
                what = "is there twice" if name in found else f"is of the type {value.dtype}, which is not supported"
                raise BadInputError(f"{where}: {name} {what}")
            found[name], keys[name] = Stored.of(value), path
    if not found:
        raise BadInputError(f"{where} has no tensors by name")
    found.kept = Tree(keys, others, frozenset(lists))
    return found


def _leaves(node: Any, path: Keys, where: str) -> Iterator[tuple[Keys, Any, bool]]:
    """Yield the leaves of a tree with their keys, and the nodes that are lists."""
    if len(path) > _DEPTH:
        raise BadInputError(f"cannot read {where}: it is nested too deeply")
    if isinstance(node, list | tuple):
        yield path, None, True
    if isinstance(node, Mapping) and node:
        pairs = list(node.items())
    elif isinstance(node, list | tuple) and node:
        pairs = list(enumerate(node))
    else:
        if not isinstance(node, list | tuple):
            yield path, node, False
        return
    for key, value in pairs:
        yield from _leaves(value, (*path, key), where)


def to_tree(arrays: Mapping[str, Array], kept: Any) -> Any:
    """Return the tree of arrays: the one that the names were taken from, or else a dict of dicts."""
    own = kept if isinstance(kept, Tree) else Tree({}, {})
    root: dict[Any, Any] = {}
    for path in sorted(own.lists, key=len):
        _put(root, path, {})
    for path, value in own.others.items():
        _put(root, path, value)
    for name, array in arrays.items():
        _put(root, own.keys.get(name) or tuple(name.split("/")), array)
    return _listed(root, (), own.lists)


def _put(root: dict[Any, Any], path: Keys, value: Any) -> None:
    *steps, last = path
    for step in steps:
        root = root.setdefault(step, {})
        if not isinstance(root, dict):
            raise BadInputError(f"{'/'.join(map(str, path))} is inside of another tensor")
    root[last] = value


def _listed(node: Any, path: Keys, lists: frozenset[Keys]) -> Any:
    """Return a tree with the nodes as lists that are some."""
    if not isinstance(node, dict):
        return node
    inside = {key: _listed(value, (*path, key), lists) for key, value in node.items()}
    return [inside[key] for key in sorted(inside)] if path in lists else inside


# --- msgpack -----------------------------------------------------------------------------------------------------


def _import_msgpack(path: Path) -> Any:
    return optional("msgpack", f"{path} needs msgpack: pip install 'onnx-net2net[flax]'")


def read_msgpack(path: Path) -> Entries:
    """Read a tree as `flax.serialization.to_bytes` writes it; the whole file is held in memory.

    Raises:
        BadInputError: If it is none.
    """
    msgpack = _import_msgpack(path)

    def extended(code: int, data: bytes) -> Any:
        if code not in (_ARRAY, _SCALAR):
            return msgpack.ExtType(code, data)
        shape, kind, buffer = msgpack.unpackb(data, raw=True)
        array = np.frombuffer(buffer, _type(kind.decode())).reshape(shape)
        return array if code == _ARRAY else _Scalar(array)

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=extended, strict_map_key=False)
        return from_tree(_whole(tree), str(path))
    except BadInputError:
        raise
    except Exception as error:  # of msgpack, of numpy
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error


@dataclass(frozen=True)
class _Scalar:
    """A number as numpy has it, which grows along unchanged."""

    array: Array


def _type(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(SMALL_FLOATS.get(name, name))
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"arrays of the type {name} are not supported")
    return dtype


def _whole(node: Any) -> Any:
    """Return a tree with the arrays whole that were cut."""
    if isinstance(node, list):
        return [_whole(value) for value in node]
    if not isinstance(node, dict):
        return node
    if _CHUNKED in node:
        shape, chunks = ([part[str(k)] for k in range(len(part))] for part in (node["shape"], node["chunks"]))
        return np.concatenate(chunks).reshape(shape)
    return {key: _whole(value) for key, value in node.items()}


def write_msgpack(path: Path, arrays: Mapping[str, Array], kept: Any) -> None:
    """Write a tree as `flax.serialization.from_bytes` reads it."""
    msgpack = _import_msgpack(path)

    def extended(value: Any) -> Any:
        array = value.array if isinstance(value, _Scalar) else value
        if not isinstance(array, np.ndarray):
            return value
        content = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        return msgpack.ExtType(_SCALAR if isinstance(value, _Scalar) else _ARRAY, content)

    content = msgpack.packb(_cut(to_tree(arrays, kept)), default=extended, strict_types=True)
    path.write_bytes(content)


def _cut(node: Any) -> Any:
    """Return a tree in which no array is larger than msgpack takes."""
    if isinstance(node, dict):
        return {key: _cut(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_cut(value) for value in node]
    if not isinstance(node, np.ndarray) or node.nbytes <= _MOST:
        return node
    flat, size = node.reshape(-1), max(1, _MOST // node.dtype.itemsize)
    chunks = [flat[k : k + size] for k in range(0, flat.size, size)]
    return {_CHUNKED: True, "shape": _numbered(node.shape), "chunks": _numbered(chunks)}


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {str(k): value for k, value in enumerate(values)}


# --- Orbax -------------------------------------------------------------------------------------------------------

_ITEMS = ("default", "state", "params", "model")
"""What a manager of checkpoints calls the tree in the folder of a step."""


def _import_orbax(path: Path) -> Any:
    return optional("orbax.checkpoint", f"{path} is a folder, as Orbax writes them: pip install 'onnx-net2net[flax]'")


def read_orbax(path: Path) -> Entries:
    """Read a folder that Orbax wrote: a tree, or the step of a manager with one tree.

    Raises:
        BadInputError: If it is none.
    """
    if not (path / "_METADATA").is_file():
        path = next((path / item for item in _ITEMS if (path / item / "_METADATA").is_file()), path)
    if not (path / "_METADATA").is_file():
        raise BadInputError(f"cannot read {path}: it is no folder of Orbax (no _METADATA)")
    orbax = _import_orbax(path)
    try:
        with orbax.PyTreeCheckpointer() as reader:
            shapes = reader.metadata(path.absolute()).item_metadata.tree
            plain = orbax.checkpoint_utils.construct_restore_args(shapes)
            restore = _in_numpy(plain, orbax)
            tree = reader.restore(path.absolute(), args=orbax.args.PyTreeRestore(restore_args=restore))
        return from_tree(tree, str(path))
    except BadInputError:
        raise
    except Exception as error:  # of Orbax, of what it uses
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error


def _in_numpy(node: Any, orbax: Any) -> Any:
    """Return arguments by which arrays are read as numpy's, whatever devices they were on."""
    if isinstance(node, Mapping):
        return {key: _in_numpy(value, orbax) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_in_numpy(value, orbax) for value in node]
    return orbax.RestoreArgs(restore_type=np.ndarray) if isinstance(node, orbax.ArrayRestoreArgs) else node


def write_orbax(path: Path, arrays: Mapping[str, Array], kept: Any) -> None:
    """Write a folder that `orbax.checkpoint.StandardCheckpointer` restores."""
    orbax = _import_orbax(path)
    with orbax.StandardCheckpointer() as writer:
        writer.save(path.absolute(), to_tree(arrays, kept))
