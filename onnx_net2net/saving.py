"""Write a model: first beside its destination, then moved into place as a whole."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.external_data import CallbackInfo, convert_tensors_to_external

from onnx_net2net.checks import parse
from onnx_net2net.errors import BadInputError
from onnx_net2net.protos import all_tensors
from onnx_net2net.tensors import set_external, set_inline, stub_key

Progress = Callable[[str, int, int], None]
"""Called before each tensor is written with (its name, bytes written so far, bytes in all)."""


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


@contextlib.contextmanager
def stage(target: Path, sources: tuple[Path, ...], write: Callable[[Path, str], Path | None]) -> Iterator[Staged]:
    """Write a model beside its destination; on leaving the context everything that was not committed is removed.

    Args:
        target: The destination.
        sources: Files that the model reads, which therefore stay.
        write: Writes a model file and, if need be, a data file of the given name beside it; returns the latter.

    Raises:
        BadInputError: If that is not possible there.
    """
    check_target(target, sources)
    with contextlib.ExitStack() as stack:
        try:
            # Beside the target, because only then is moving it there atomic.
            temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
            path = Path(stack.enter_context(temporary)) / target.name
            data = write(path, _free_data_name(target))
        except OSError as error:
            raise BadInputError(f"cannot write {target}: {error.strerror or error}") from error
        yield Staged(path, target, data, sources)


def write(
    proto: onnx.ModelProto,
    weights: Mapping[int, ir.TensorProtocol],
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
    shared = {key: weights[key] for _, key in stubs}  # a tensor that several share counts once
    total = sum(weight.nbytes for weight in shared.values())
    if data is None:
        done = 0
        for tensor, key in stubs:
            report(tensor.name, done, total)
            set_inline(tensor, weights[key].tobytes())
            done = min(done + weights[key].nbytes, total)
    else:

        def tell(tensor: ir.TensorProtocol, info: CallbackInfo) -> None:
            report(tensor.name or "", info.offset, total)

        written = convert_tensors_to_external(list(shared.values()), data.parent, data.name, callback=tell)
        places = dict(zip(shared, written, strict=True))
        for tensor, key in stubs:
            place = places[key]
            set_external(tensor, {"location": data.name, "offset": place.offset, "length": place.length})
    path.write_bytes(proto.SerializeToString())
    report(path.name, total, total)


def check_target(target: Path, sources: Iterable[Path]) -> None:
    """Refuse a place that cannot be written, or that the model itself is read from.

    Raises:
        BadInputError: The target is a folder, is in none, or is one of the sources.
    """
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
    """Return a name for the data file that does not touch the one of the model being replaced."""
    names = (f"{target.name}{middle}.data" for middle in itertools.chain([""], map(".{}".format, itertools.count(1))))
    return next(name for name in names if not os.path.lexists(target.parent / name))


def _own_data_files(target: Path) -> list[Path]:
    """Return the data files that the model at `target` refers to, as far as they bear a name that we would give."""
    pattern = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    ours = [name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    if not ours or not target.is_file():
        return []
    try:
        old = parse(target)
    except BadInputError:  # whatever it is, it has no data files
        return []
    used = {entry.value for tensor in all_tensors(old) for entry in tensor.external_data if entry.key == "location"}
    return [target.parent / name for name in ours if name in used]
