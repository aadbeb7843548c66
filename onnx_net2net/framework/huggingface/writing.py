"""Write the student's folder: shard by shard, a piece of a weight at a time, and all of it in its place at once.

A shard that is finished has its name. So a run that was killed goes on where it was: what it was to write is in the
plan beside the shards, and finished ones are not made again if the plan is the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.formats.state_dicts import DTYPES
from onnx_net2net.framework.huggingface.card import card
from onnx_net2net.framework.huggingface.folder import CONFIG, Folder
from onnx_net2net.framework.huggingface.parameters import Written
from onnx_net2net.framework.huggingface.student import Request, Student
from onnx_net2net.model.saving import Progress
from onnx_net2net.model.staging import kept_folder, place_folder, writing
from onnx_net2net.model.threads import in_threads, processors

SHARD = 5_000_000_000
"""Bytes of a shard, at most (but for a single larger weight)."""

PLAN = ".plan.json"
"""What a killed run leaves beside the shards."""

_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt", ".npz")
"""Ends of names of files with the teacher's weights or its training in them, which a student has no use for."""

Shard = tuple[str, Sequence[Written]]
"""The name of a file, and its tensors."""


def shards_of(student: Student, limit: int | None = None) -> list[Shard]:
    """Return which files the student's tensors go to; at least as many as the teacher has, as far as there are tensors.

    Args:
        student: The student.
        limit: Bytes of a shard, at most; by default `SHARD`.
    """
    if student.teacher.is_one_file:
        return [("model.safetensors", student.tensors)]
    most = limit or min(SHARD, -(-student.nbytes // len(student.teacher.folder.shards)))
    parts: list[list[Written]] = []
    size = 0
    for tensor in student.tensors:
        if not parts or size + tensor.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    if len(parts) == 1:
        return [("model.safetensors", parts[0])]
    return [(f"model-{number:05}-of-{len(parts):05}.safetensors", part) for number, part in enumerate(parts, 1)]


def write_folder(
    student: Student, request: Request, output: Path, check: Callable[[Path], Sequence[str]], *,
    limit: int | None = None, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write the student's folder.

    Args:
        student: The student.
        request: What was asked for, which the card tells.
        output: The folder, which must not exist or be empty.
        check: Called with the folder of the finished shards and the config, before it takes its place; returns lines
            for the card.
        limit: Bytes of a shard, at most.
        progress: Told about each shard.

    Raises:
        BadInputError: If it cannot be written there.
        Net2NetError: Whatever `check` raises; then nothing is written.
    """
    shards = shards_of(student, limit)
    with kept_folder(output) as folder:
        _begin(folder, _plan(student, request, shards))
        _check_room(folder, student, shards, output)
        total, done = student.nbytes, 0
        for name, tensors in shards:
            if progress:
                progress(name, done, total)
            if not (folder / name).exists():
                with writing(output / name):
                    write_shard(folder / name, tensors)
            done += sum(tensor.nbytes for tensor in tensors)
        with writing(output):
            _write_rest(folder, student, shards)
            lines = check(folder)
            (folder / "README.md").write_text(card(student, request, lines), encoding="utf-8")
            (folder / PLAN).unlink()
        place_folder(folder, output)


def write_shard(path: Path, tensors: Sequence[Written]) -> None:
    """Write a file of tensors, which has its name only when it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        shape, stop = list(tensor.cut.shape), start + tensor.nbytes
        header[tensor.name] = {"dtype": _kind(tensor), "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
        file.flush()
        in_threads(_jobs(file.fileno(), 8 + len(text), tensors))
    os.replace(part, path)


def _jobs(file: int, offset: int, tensors: Sequence[Written]) -> Generator[Callable[[], None], None, None]:
    """Yield what writes the pieces of tensors into a file from a place on."""

    def put(place: int, make: Callable[[], Array]) -> None:
        view, done = memoryview(make().reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
        while done < len(view):
            done += os.pwrite(file, view[done:], place + done)

    for tensor in tensors:
        yield from (partial(put, offset + place, make) for place, make in tensor.pieces())
        offset += tensor.nbytes


def _kind(tensor: Written) -> str:
    return next(kind for kind, dtype in DTYPES.items() if dtype == tensor.parameter.dtype)


def seconds_for(student: Student) -> float:
    """Estimate how long computing a student's weights takes on this machine, from some pieces of each kind."""
    alike: dict[object, list[Written]] = {}
    for tensor in student.tensors:
        alike.setdefault((tensor.cut.shape, tensor.parameter.growth is None), []).append(tensor)
    seconds = 0.0
    for tensors in alike.values():
        pieces = list(itertools.islice(tensors[0].pieces(), _TRIED))
        started = time.perf_counter()
        made = sum(make().nbytes for _, make in pieces)
        seconds += (time.perf_counter() - started) * sum(tensor.nbytes for tensor in tensors) / max(1, made)
    return seconds / processors()


_TRIED = 4
"""Pieces of a weight by which time is estimated."""


# --- A run that was killed ----------------------------------------------------------------------------------------


def _plan(student: Student, request: Request, shards: Sequence[Shard]) -> str:
    """Return what is the same for runs that write the same."""
    folder = student.teacher.folder
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.shards]
    tensors = [(name, [(t.name, t.cut.shape, t.parameter.dtype.name) for t in own]) for name, own in shards]
    content = [version("onnx-net2net"), repr(request), files, student.config, tensors]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _begin(folder: Path, plan: str) -> None:
    """Keep what a run of the same plan has finished, and nothing else."""
    with writing(folder):
        is_same = (folder / PLAN).is_file() and (folder / PLAN).read_text() == plan
        for file in list(folder.iterdir()):
            if file.is_dir():  # of an optimizer
                shutil.rmtree(file)
            elif not is_same or file.suffix == ".part":
                file.unlink()
        (folder / PLAN).write_text(plan)


def _check_room(folder: Path, student: Student, shards: Sequence[Shard], output: Path) -> None:
    """Refuse a student that the disk does not take."""
    missing = sum(t.nbytes for name, tensors in shards if not (folder / name).exists() for t in tensors)
    missing += sum(path.stat().st_size for path in kept_files(student.teacher.folder))
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise BadInputError(f"cannot write {output}: it takes {missing / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


# --- What stands beside the shards ----------------------------------------------------------------------------------


def kept_files(folder: Folder) -> list[Path]:
    """Return the files that the student has, too: a tokenizer, but no other weights."""
    return [path for path in folder.others if path.suffix not in _OF_WEIGHTS and path.name != "README.md"]


def _write_rest(folder: Path, student: Student, shards: Sequence[Shard]) -> None:
    for path in kept_files(student.teacher.folder):
        shutil.copyfile(path, folder / path.name)
    (folder / CONFIG).write_text(json.dumps(student.config, indent=2) + "\n", encoding="utf-8")
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": student.nbytes},
            "weight_map": dict(sorted((tensor.name, name) for name, tensors in shards for tensor in tensors)),
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
