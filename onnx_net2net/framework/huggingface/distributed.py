"""Checkpoints as `torch.distributed.checkpoint` writes them (FSDP, and trainers on top of it), without processes.

A tensor is in memory at a time, in reading and in writing. The library reads its table of tensors by pickle; only the
classes of this table are made here, so that no code in it is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from onnx_net2net.errors import BadInputError, one_line

TABLE = ".metadata"
"""The file in a folder that lists the tensors."""

Key = tuple[str | int, ...]
"""Where a value is in nested dicts and lists."""

_OWN = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_OTHERS = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
}  # fmt: skip


class _Table(pickle.Unpickler):
    """Makes the classes of a table, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in _OWN or (module, name) in _OTHERS or is_type:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of tensors")


class _Reader(dcp.FileSystemReader):  # type: ignore[misc]
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with open(Path(self.path) / TABLE, "rb") as file:
            table = _Table(file).load()
        table.storage_meta = table.storage_meta or StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table


class _Loading(dcp.DefaultLoadPlanner):  # type: ignore[misc]
    def load_bytes(self, read_item: Any, value: Any) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


@dataclass(frozen=True)
class Distributed:
    """A checkpoint.

    Attributes:
        path: Its folder.
        table: What it has.
    """

    path: Path
    table: Metadata

    @property
    def keys(self) -> dict[str, Key]:
        """Where its values are in nested dicts, by the names that the table has for them."""
        nested = self.table.planner_data or {}
        return {name: tuple(nested.get(name, (name,))) for name in self.table.state_dict_metadata}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None for any other value."""
        found = self.table.state_dict_metadata[name]
        return tuple(found.size) if isinstance(found, TensorStorageMetadata) else None

    def value(self, name: str) -> Any:
        """Read a value.

        Raises:
            BadInputError: If it cannot be read.
        """
        found = self.table.state_dict_metadata[name]
        own: dict[str, Any] = {name: None}
        if isinstance(found, TensorStorageMetadata):
            own[name] = torch.empty(found.size, dtype=found.properties.dtype)
        try:
            dcp.load(
                own, storage_reader=_Reader(self.path), planner=_Loading(flatten_state_dict=False), no_dist=True
            )  # fmt: skip
        except Exception as error:  # of the library, of the files
            raise BadInputError(f"cannot read {name} of {self.path}: {one_line(error)}") from error
        return own[name]


def read_checkpoint(path: Path) -> Distributed:
    """Read what a checkpoint has; no tensor is read.

    Raises:
        BadInputError: If it is none.
    """
    try:
        table = _Reader(path).read_metadata()
        if not isinstance(table, Metadata):
            raise ValueError(f"{TABLE} has no table")
    except Exception as error:  # of the files, of what is in them
        raise BadInputError(f"{path} is no checkpoint of torch.distributed: {one_line(error)}") from error
    return Distributed(path, table)


class _Saving(dcp.DefaultSavePlanner):  # type: ignore[misc]
    """Computes each tensor when it is written."""

    def __init__(self, values: Mapping[Key, Callable[[], torch.Tensor]]) -> None:
        super().__init__()
        self._values = values

    def lookup_object(self, index: Any) -> Any:
        make = self._values.get(tuple(self.mappings[index.fqn]))
        return make() if make else super().lookup_object(index)


def write_checkpoint(
    path: Path, others: Mapping[Key, Any], tensors: Mapping[Key, tuple[tuple[int, ...], torch.dtype]],
    value: Callable[[Key], torch.Tensor],
) -> None:  # fmt: skip
    """Write a checkpoint.

    Args:
        path: The folder, which is made.
        others: Values that are no tensors.
        tensors: The shapes and types of tensors.
        value: Computes a tensor; called once for each.
    """
    stubs = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in tensors.items()}
    planner = _Saving({key: partial(value, key) for key in tensors})
    dcp.save(
        _nested({**others, **stubs}), storage_writer=dcp.FileSystemWriter(path), planner=planner, no_dist=True
    )  # fmt: skip


def _nested(values: Mapping[Key, Any]) -> Any:
    """Return nested dicts and lists of what is in them."""
    root: dict[Any, Any] = {}
    for key, value in values.items():
        inner = root
        for step in key[:-1]:
            inner = inner.setdefault(step, {})
        inner[key[-1]] = value
    return _with_lists(root)


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    own = {key: _with_lists(inner) for key, inner in value.items()}
    return [own[place] for place in range(len(own))] if own and set(own) == set(range(len(own))) else own
