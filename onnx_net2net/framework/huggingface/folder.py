"""The folder of a checkpoint: its config, where the tensors of its shards lie, and other files; nothing is read yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_net2net.errors import BadInputError, one_line, some
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.formats.stored import StateDict, Stored
from onnx_net2net.model.tensors import data_file

CONFIG = "config.json"

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the better first; each has an index of this name and `.index.json` if it is in several shards."""

_LARGEST_JSON = 1 << 28
"""Bytes of the largest file of JSON that is read."""


@dataclass(frozen=True)
class Folder:
    """A checkpoint.

    Attributes:
        path: The folder.
        config: What its config says; empty where there is none.
        tensors: Its tensors by name, in the order of the shards.
        shards: The files that hold them.
        others: The other files, which grow along unchanged.
    """

    path: Path
    config: dict[str, Any]
    tensors: StateDict
    shards: tuple[Path, ...]
    others: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_folder(path: Path) -> Folder:
    """Read what a checkpoint's folder says of its tensors.

    Args:
        path: The folder; or a file of weights, or the index of several, which has nothing beside it.

    Raises:
        BadInputError: If it is no checkpoint, or its index, its shards and its config do not agree.
    """
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise BadInputError(f"cannot read {path}: there is no such folder")
    config = _json(path / CONFIG) if (path / CONFIG).is_file() else {}
    listed = next((path / f"{kind}.index.json" for kind in WEIGHTS if (path / f"{kind}.index.json").is_file()), None)
    single = next((path / kind for kind in WEIGHTS if (path / kind).is_file()), None)
    if listed is not None and (single is None or single.suffix == ".bin"):
        tensors = dict(_indexed(path, listed))
        shards = dict.fromkeys(_shards(path, _weight_map(listed)))
    elif single is not None:
        tensors, shards = dict(state_dicts.read(_inside(path, single.name))), {single: None}
    else:
        shards = dict.fromkeys(_inside(path, file.name) for file in sorted(path.glob("*.safetensors")))
        tensors = dict(_together(shards))
        if not tensors:
            raise BadInputError(f"{path} is no checkpoint: it has neither {WEIGHTS[0]} nor {WEIGHTS[0]}.index.json")
    weights = {*shards, *(path / name for kind in WEIGHTS for name in (kind, f"{kind}.index.json"))}
    others = sorted(file for file in path.iterdir() if file.is_file() and file not in weights and file.name != CONFIG)
    return Folder(path, config, tensors, tuple(shards), tuple(others))


def _read_file(path: Path) -> Folder:
    if path.name.endswith(".index.json"):
        tensors, shards = dict(_indexed(path.parent, path)), tuple(_shards(path.parent, _weight_map(path)))
    else:
        tensors, shards = dict(state_dicts.read(path)), (path,)
    return Folder(path, {}, tensors, shards, ())


def _together(shards: Iterable[Path]) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of files that no index lists."""
    found: dict[str, Path] = {}
    for shard in shards:
        for name, tensor in state_dicts.read(shard).items():
            if found.setdefault(name, shard) != shard:
                raise BadInputError(f"{found[name]} and {shard} both have {name}, and no index tells which counts")
            yield name, tensor


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise BadInputError(f"cannot read {path}: it is too large for what it should be")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise BadInputError(f"cannot read {path}: it is no object")
    return content


def _weight_map(index: Path) -> dict[str, str]:
    found = _json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise BadInputError(f"cannot read {index}: it has no weight_map of file names")
    return found


def _shards(folder: Path, weight_map: dict[str, str]) -> Iterator[Path]:
    for name in dict.fromkeys(weight_map.values()):
        _inside(folder, name)
        yield folder / name


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a folder, checked to be in it."""
    try:
        return data_file(folder / CONFIG, name)
    except BadInputError as error:
        raise BadInputError(f"{folder}: {str(error).replace('external data ', 'shard ')}") from error


def _indexed(folder: Path, index: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of all shards that an index lists."""
    weight_map = _weight_map(index)
    for shard in _shards(folder, weight_map):
        stored = state_dicts.read(_inside(folder, shard.name))
        wanted = {name for name, file in weight_map.items() if file == shard.name}
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise BadInputError(f"{shard} does not have {some(sorted(missing))}, as {index.name} says")
        yield from ((name, tensor) for name, tensor in stored.items() if name in wanted)
