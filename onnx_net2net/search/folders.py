"""The folders that chains and searches work in: one runner each, and files that tell what they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.model.staging import locked, writing

_LOCK = ".runner"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and work in it, alone.

    Raises:
        BadInputError: If another runner works there, or it cannot be made.
    """
    lock = folder / _LOCK
    with writing(folder):
        lock.mkdir(parents=True, exist_ok=True)
    with locked(lock, wait=False) as is_ours:
        if not is_ours:
            raise BadInputError(f"another runner works in {folder}; wait for it, or give another folder")
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON, which appears as a whole or not at all.

    Raises:
        WriteError: If it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with writing(path):
            beside.write_text(json.dumps(value, indent=2))
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds; None where there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return what a YAML file of names and values holds.

    Raises:
        BadInputError: If it cannot be read, or holds something else.
    """
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # of files, of text, of YAML
        raise BadInputError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(read, dict):
        raise BadInputError(f"{path} is no {what}: it has no names with values")
    return read


def take(given: Any, where: str, **kinds: Any) -> dict[str, Any]:
    """Return the values of a mapping that may have some names.

    Args:
        given: The mapping; what is left out has its default.
        where: What messages call it.
        kinds: For each name the type (or types) of its value, and the default; a name whose default is Ellipsis must
            be there.

    Raises:
        BadInputError: If it is no mapping, or something in it is unknown, missing or of another type.
    """
    if not isinstance(given, Mapping):
        raise BadInputError(f"{where} has to be names with values, not {one_line(given, 60)}")
    unknown = [str(name) for name in given if name not in kinds]
    if unknown:
        raise BadInputError(f"{where} has no {unknown[0]!r}; it may have {', '.join(kinds)}")
    found = {}
    for name, (kind, default) in kinds.items():
        value = given.get(name, default)
        if value is ...:
            raise BadInputError(f"{where} needs {name!r}")
        types = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if value is not default and not fits:
            raise BadInputError(f"{where}: {name} cannot be {one_line(value, 60)}")
        found[name] = value
    return found


def agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Note what a search is made with, or refuse to go on with something else.

    Raises:
        BadInputError: If it was made with something else; the text says with what.
    """
    known = read_json(path)
    if known is None:
        write_json(path, settings)
        return
    other = [name for name in settings if known.get(name) != settings[name]]
    if other:
        raise BadInputError(f"this search was made with another {other[0]}; give the same again, or another --work")


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files.

    Raises:
        BadInputError: If one cannot be read.
    """
    whole = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                own = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
        except OSError as error:
            raise BadInputError(f"cannot read {path}: {error.strerror}") from error
        whole.update(own.digest())
    return whole.hexdigest()


def _digest(file: Any) -> Any:
    own = hashlib.sha256()
    while block := file.read(1 << 20):
        own.update(block)
    return own


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
