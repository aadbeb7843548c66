"""Files that take their places together or not at all, whatever happens meanwhile.

Files are written in a *work folder* beside their places and moved from there. The folder is locked by its writer for as
long as it writes. A lock ends with its process, so the next writer beside it tells what is left of one that was killed,
and removes it. Files are moved under a lock of the folder that they go to, one writer after another, and no signal
interrupts that.

Before the first is moved, a *journal* in the work folder says which files are going to be moved and removed. From
it, `_Journal.settle` completes or undoes what a killed writer left halfway. Where the file system has no locks
(Windows, some network folders), nothing of another writer is removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_net2net.errors import BadInputError, WriteError
from onnx_net2net.model.signals import deferred_signals

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

written: list[Path] = []
"""The files that this process has put in place, for the message when it is interrupted."""

FileIdentity = list[int]
"""Inode, size and time of change: a moved file keeps them, another file of its name has others."""

_log = logging.getLogger(__name__)

_SUFFIX = ".net2net"
_WORK_FOLDER = re.compile(r"\..*\.[a-z0-9_]{8}" + re.escape(_SUFFIX), re.DOTALL)
_NAME_BYTES = 40  # of a work folder's name; file systems allow some 255
_PATIENCE = 30.0
"""Seconds to wait for the lock of a folder. Whoever holds it for longer is no writer of ours, and is ignored."""

_JOURNAL, _OLD = ".journal", ".old"


@dataclass(frozen=True)
class StagedFiles:
    """Files that are written but not yet in their places, which are in the folder around.

    Attributes:
        folder: The work folder, where they are written.
    """

    folder: Path

    def commit(self, choose: Callable[[], tuple[Sequence[str], Sequence[str]]]) -> None:
        """Move files into their places: afterwards all are there, or everything is as before.

        Args:
            choose: Called when no other writer moves files there. Returns the names of files in the work folder, in
                the order in which they take their places, and those of files beside them that are then removed.

        Raises:
            OSError: If a file cannot take its place.
        """
        parent = self.folder.parent
        with _moving_in(parent) as is_locked, deferred_signals():
            if is_locked:  # first what others began, while it is as they left it
                _sweep(parent)
            new, gone = choose()
            journal = _Journal(self.folder, _identities(self.folder, new), _identities(parent, gone))
            journal.write()
            placed: Sequence[str] = ()
            try:
                for name in new:
                    self._place(name, is_last=name == new[-1])
                placed = new
            finally:
                placed = placed or journal.arrived()
                journal.settle(placed)
                if len(placed) == len(new) and not parent.name.endswith(_SUFFIX):
                    written.extend(parent / name for name in new)

    def _place(self, name: str, is_last: bool) -> None:
        target = self.folder.parent / name
        if not is_last and os.path.lexists(target):  # a later one may fail
            (self.folder / _OLD).mkdir(exist_ok=True)
            _link_or_copy(target, self.folder / _OLD / name)
        os.replace(self.folder / name, target)


@contextlib.contextmanager
def staged_files(target: Path) -> Iterator[StagedFiles]:
    """Make a work folder beside a file that is going to be written; on leaving the context it is removed.

    Args:
        target: The file, as `destination` returned it.

    Raises:
        BadInputError: If that is not possible there.
    """
    with contextlib.ExitStack() as stack:
        with writing(target):
            folder = stack.enter_context(work_folder(target.parent, target.name))
        yield StagedFiles(folder)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file, which appears at a path as a whole or not at all.

    Raises:
        BadInputError: If it cannot be written there.
    """
    target = destination(path)
    with staged_files(target) as staged, writing(path):
        yield staged.folder / target.name
        staged.commit(lambda: ([target.name], []))


@contextlib.contextmanager
def work_folder(parent: Path | None = None, name: str = "onnx_net2net") -> Iterator[Path]:
    """Make a folder that is removed on leaving the context, or else by who next makes one beside it.

    Args:
        parent: Where; by default where the system has temporary files.
        name: What its name begins with.
    """
    parent = Path(os.path.realpath(tempfile.gettempdir())) if parent is None else parent
    short = os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")
    with contextlib.ExitStack() as stack:
        with _moving_in(parent) as is_locked, deferred_signals():
            if is_locked:
                _sweep(parent)
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{short}.", suffix=_SUFFIX))
            stack.enter_context(locked(folder))
            stack.callback(_remove, folder)
        yield folder


@contextlib.contextmanager
def kept_folder(target: Path) -> Iterator[Path]:
    """Make the folder in which a folder is written, or take the one that a killed writer of the same left.

    Whoever writes into it moves it to its place (`place_folder`). On an error it is removed; when the process is killed
    or interrupted it stays, so that the next writer can go on.

    Args:
        target: The folder to be, which must not exist, or be empty.

    Raises:
        BadInputError: If it cannot be written there, or another process is writing it.
    """
    with writing(target):
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise BadInputError(f"cannot write {target}: there is something of this name")
        parent = Path(os.path.realpath(target.parent))
        if not parent.is_dir():
            raise BadInputError(f"cannot write {target}: the folder {target.parent} does not exist")
        folder = parent / f".{target.name}.growing"
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise BadInputError(f"cannot write {target}: no permission")
    with locked(folder, wait=False) as is_locked:
        if not is_locked and fcntl is not None:
            raise BadInputError(f"cannot write {target}: another process is writing it")
        try:
            yield folder
        except Exception:
            _remove(folder)
            raise


def place_folder(folder: Path, target: Path) -> None:
    """Move a folder to its place, which does not exist or is an empty folder.

    Raises:
        BadInputError: If that is not possible.
    """
    with writing(target), deferred_signals():
        if target.is_dir():
            target.rmdir()
        os.rename(folder, target)
        written.append(target)


def destination(path: Path) -> Path:
    """Return the file that is written where a path is given: the one that it is or links to.

    Raises:
        BadInputError: If it cannot be written there: the folder does not exist, or what exists is no file.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise BadInputError(f"cannot write {path}: it is {_kind(mode)}")
        folder = target.parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise BadInputError(f"cannot write {path}: the folder {folder} does not exist")
        return target


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one line that says what could not be written.

    Raises:
        WriteError: In its place.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Return what the system says, without the names of files, which may be temporary ones."""
    return error.strerror or f"the disk takes no more ({error})"  # only numpy raises one without, when it writes


def same_file(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to one file."""
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist
        return False


def _sweep(parent: Path) -> None:
    """Settle and remove the work folders of writers that were killed."""
    with contextlib.suppress(OSError):
        for name in filter(_WORK_FOLDER.fullmatch, os.listdir(parent)):
            folder = parent / name
            with locked(folder, wait=False) as is_left:
                if is_left and folder.lstat().st_uid == os.geteuid():  # nobody else tells us what to remove
                    with contextlib.suppress(OSError, ValueError):  # killed before there was a whole journal
                        journal = _Journal.read(folder)
                        journal.settle(journal.arrived())
                    _remove(folder)


@dataclass(frozen=True)
class _Journal:
    """Which files a writer is going to move from its work folder to the folder around, and to remove there."""

    folder: Path
    moves: Mapping[str, FileIdentity]
    removals: Mapping[str, FileIdentity]

    @classmethod
    def read(cls, folder: Path) -> _Journal:
        moves, removals = json.loads((folder / _JOURNAL).read_text())
        return cls(folder, moves, removals)

    def write(self) -> None:
        (self.folder / _JOURNAL).write_text(json.dumps([self.moves, self.removals]))

    def arrived(self) -> list[str]:
        """Return which files are in their places."""
        return [name for name, identity in self.moves.items() if _identity(self.folder.parent / name) == identity]

    def settle(self, placed: Sequence[str]) -> None:
        """Remove what is no longer needed if all files are placed, otherwise bring back what they replaced."""
        parent, old = self.folder.parent, self.folder / _OLD
        if len(placed) < len(self.moves):
            for name in placed:
                with contextlib.suppress(OSError):
                    if (old / name).exists():
                        os.replace(old / name, parent / name)
                    elif not _is_named(parent / name):
                        os.unlink(parent / name)
            return
        for name, identity in self.removals.items():
            try:
                if _identity(parent / name) == identity and not _is_named(parent / name):
                    os.unlink(parent / name)
            except OSError as error:
                _log.warning("%s is no longer needed, but cannot be removed: %s", parent / name, reason(error))


def _identities(folder: Path, names: Sequence[str]) -> dict[str, FileIdentity]:
    return {name: identity for name in names if (identity := _identity(folder / name))}


def _identity(path: Path) -> FileIdentity | None:
    """Return the identity of a regular file, None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None


def _is_named(data: Path) -> bool:
    """Tell whether a model in the folder of a data file has it as its external data."""
    name = os.fsencode(data.name)
    length = len(name)  # as protobuf writes it: 7 bits to a byte, the lowest first
    prefix = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    places = re.escape(prefix + name) + rb"|.{1,2}[^\0]{0,1000}/" + re.escape(name)
    pattern = re.compile(rb"location\x12(?:" + places + rb")", re.DOTALL)
    others = (Path(entry) for entry in os.scandir(data.parent) if entry.is_file() and entry.name != data.name)
    return any(_is_model(path) and _matches(path, pattern) for path in others)


def _is_model(path: Path) -> bool:
    """Tell whether a file may be a model: it begins with an IR version and is no larger than a message can be."""
    with open(path, "rb") as file:
        return file.read(1) == b"\x08" and os.fstat(file.fileno()).st_size < 1 << 31


def _matches(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Search a file without holding it in memory."""
    tail = b""
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            if pattern.search(tail + block):
                return True
            tail = block[-2048:]
    return False


def _moving_in(parent: Path) -> contextlib.AbstractContextManager[bool]:
    """Keep other writers from moving files in a folder; a work folder, which is locked already, has none."""
    return contextlib.nullcontext(False) if parent.name.endswith(_SUFFIX) else locked(parent)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder; yields whether it could be had. It ends with the process."""
    descriptor = None
    is_locked = False
    deadline = time.monotonic() + (_PATIENCE if wait else 0)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                while not (is_locked := _try_lock(descriptor)) and time.monotonic() < deadline:
                    time.sleep(0.01)
        yield is_locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove a work folder; what resists is left to the next writer."""
    with deferred_signals():
        shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _kind(mode: int) -> str:
    """Say what something is that is no regular file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
