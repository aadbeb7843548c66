"""Write a model and its external data, together or not at all (see `onnx_net2net.model.staging`)."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, WriteError
from onnx_net2net.model.checks import parse_model
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.staging import StagedFiles, destination, same_file, staged_files, writing
from onnx_net2net.model.tensors import Weight, set_external, set_inline, stub_key
from onnx_net2net.model.threads import in_threads
from onnx_net2net.model.wire import Part, serialized, size_of

Content = Array | bytes

Progress = Callable[[str, int, int], None]
"""Called before each tensor is written with (its name, bytes written so far, bytes in all)."""


@dataclass(frozen=True)
class Staged:
    """A model that is written but not yet in its place.

    Attributes:
        path: The temporary model file, in a work folder; onnxruntime can open it.
        data: The temporary external-data file, if there is one.
        sources: Files that the model reads, which stay.
    """

    path: Path
    data: Path | None
    sources: tuple[Path, ...]

    @property
    def target(self) -> Path:
        """Where `commit` puts it."""
        return self.path.parent.parent / self.path.name

    def commit(self, beside: Iterable[str] = ()) -> None:
        """Move the files into place, the model last, and remove the replaced model's data file if it was ours.

        Args:
            beside: The names of other files in the work folder, which take their places with the model or not at all.

        Raises:
            WriteError: If a file cannot be moved there; nothing has changed, then.
        """
        with writing(self.target):
            StagedFiles(self.path.parent).commit(lambda: self._moves(beside))

    def _moves(self, beside: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the files to move and those to remove, when no other writer changes the folder."""
        new = [*beside, self.path.name]
        if self.data is not None:
            new.insert(0, self._free_name(self.data))
        old = _own_data_files(self.target)
        return new, [path.name for path in old if not any(same_file(path, source) for source in self.sources)]

    def _free_name(self, data: Path) -> str:
        """Return the name of the data file, another one if somebody has taken it since it was written."""
        if not os.path.lexists(self.target.parent / data.name):
            return data.name
        name = _free_data_name(self.target)
        os.replace(data, data.with_name(name))
        proto = parse_model(self.path)
        for tensor in all_tensors(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        self.path.write_bytes(proto.SerializeToString())
        return name


@contextlib.contextmanager
def stage_model(target: Path, sources: tuple[Path, ...], write: Callable[[Path, str], Path | None]) -> Iterator[Staged]:
    """Write a model beside its destination; on leaving the context everything that was not committed is removed.

    Args:
        target: The destination, or a link to it.
        sources: Files that the model reads, which therefore stay.
        write: Writes a model file and, if need be, a data file of the given name beside it; returns the latter.

    Raises:
        BadInputError: If that is not possible there.
    """
    place = check_target(target, sources)
    with staged_files(place) as files:
        with writing(target):
            path = files.folder / place.name
            data = write(path, _free_data_name(place))
        yield Staged(path, data, sources)


def write(
    proto: onnx.ModelProto,
    weights: Mapping[int, Weight],
    path: Path,
    data: Path | None,
    progress: Progress | None = None,
) -> None:
    """Write a model file.

    Args:
        proto: The model, with stubs.
        weights: What the stubs stand for.
        path: The model file.
        data: The file beside it for the weights; None to write them into the model file.
        progress: Told about each tensor before it is written.
    """
    report = progress or (lambda *_: None)
    proto = copy.deepcopy(proto)
    stubs = [(tensor, key) for tensor in all_tensors(proto) if (key := stub_key(tensor)) is not None]
    if data is None:
        initializers = list(proto.graph.initializer)
        around = set(map(id, initializers))
        for tensor, key in stubs:
            if id(tensor) not in around:  # it is in a body, or in a function
                set_inline(tensor, weights[key].tobytes())
        total = _write_parts(path, serialized(proto, weights), weights, report)
    else:
        shared = {key: weights[key] for _, key in stubs}  # a tensor that several share counts once
        places = dict(zip(shared, itertools.accumulate((w.nbytes for w in shared.values()), initial=0), strict=False))
        total = _write_parts(data, list(shared), weights, report)
        for tensor, key in stubs:
            entries = {"location": data.name, "offset": places[key], "length": shared[key].nbytes}
            set_external(tensor, entries)
        path.write_bytes(proto.SerializeToString())
    report(path.name, total, total)


def _write_parts(path: Path, parts: Sequence[Part], weights: Mapping[int, Weight], report: Progress) -> int:
    """Write a file of bytes and weights, which are made in threads, and each once; return the bytes of weights."""
    starts = list(itertools.accumulate((size_of(part, weights) for part in parts), initial=0))
    places: dict[int, list[int]] = {}
    with open(path, "wb", buffering=0) as file:
        _reserve(file.fileno(), starts[-1])
        for part, start in zip(parts, starts, strict=False):
            if isinstance(part, bytes):
                _write_at(file.fileno(), start, part)
            else:
                places.setdefault(part, []).append(start)
        lock = threading.Lock()  # the kernel lets one thread write to a file, while others spin

        def put(key: int, offset: int, content: Content) -> None:
            with lock:
                for place in places[key]:
                    _write_at(file.fileno(), place + offset, content)

        needed = {key: weights[key] for key in places}
        before = dict(zip(needed, itertools.accumulate((w.nbytes for w in needed.values()), initial=0), strict=False))
        total = sum(weight.nbytes for weight in needed.values())
        in_threads(_jobs(needed, put, lambda key: report(weights[key].name, before[key], total)))
    return total


def _jobs(
    weights: Mapping[int, Weight],
    put: Callable[[int, int, Content], None],
    tell: Callable[[int], None],
) -> Generator[Callable[[], None], None, None]:
    """Yield what makes the pieces of weights and puts them where they belong.

    A weight that is computed as a whole is put there before the next job is asked for: there is one at a time.
    """
    for key, weight in weights.items():
        tell(key)
        if not weight.has_rows:
            for offset, read in weight.pieces():
                put(key, offset, read())
            continue
        for offset, read in weight.pieces():
            yield partial(_make, partial(put, key, offset), read)


def _make(put: Callable[[Content], None], read: Callable[[], Content]) -> None:
    put(read())


def _flat(content: Content) -> Array:
    return np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content.reshape(-1).view(np.uint8)


def _write_at(descriptor: int, offset: int, content: Content) -> None:
    view = memoryview(_flat(content))  # type: ignore[arg-type]
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _reserve(descriptor: int, size: int) -> None:
    """Have the disk set the space of a file aside: a full one says so at once, and the kernel writes faster."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot
                raise


def check_room(folder: Path, nbytes: int) -> None:
    """Refuse what a disk has no room for, before anything costs time.

    Raises:
        WriteError: Less is left there.
    """
    total, _, free = shutil.disk_usage(folder)
    if total and free < nbytes:  # some file systems count nothing
        raise WriteError(
            f"cannot write into {folder}: {nbytes / 1e9:.2f} GB are needed, the disk has {free / 1e9:.2f} GB left"
        )


def check_target(path: Path, sources: Iterable[Path]) -> Path:
    """Return the file that is written where a path is given.

    Raises:
        BadInputError: It cannot be written (see `destination`), or the model itself is read from it.
    """
    target = destination(path)
    if any(same_file(target, source) for source in sources):
        raise BadInputError(f"cannot write {path}: the model reads its weights from it")
    return target


def _free_data_name(target: Path) -> str:
    """Return a name for the data file that does not touch the one of the model being replaced."""
    names = (f"{target.name}{middle}.data" for middle in itertools.chain([""], map(".{}".format, itertools.count(1))))
    return next(name for name in names if not os.path.lexists(target.parent / name))


def _own_data_files(target: Path) -> list[Path]:
    """Return the data files that the model at `target` refers to, as far as they bear a name that we would give."""
    pattern = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    try:
        files = [entry.name for entry in os.scandir(target.parent) if entry.is_file(follow_symlinks=False)]
        ours = list(filter(pattern.fullmatch, files))
        if not ours or not target.is_file():
            return []
        old = parse_model(target)
    except (BadInputError, OSError):  # whatever it is, it has no data files
        return []
    used = {entry.value for tensor in all_tensors(old) for entry in tensor.external_data if entry.key == "location"}
    return [target.parent / name for name in ours if name in used]
