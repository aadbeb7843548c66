"""The errors of this package, each with the exit code of the command line, and how a text is shown in one line."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any


class Net2NetError(Exception):
    """Base of all errors that this package raises on purpose. The text is one line for the user."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the text in one line; unprintable characters, for example of names in a file, are escaped."""
        return shown(super().__str__())


class NotEquivalentError(Net2NetError):
    """The student does not compute what the teacher computes (exit 1)."""

    exit_code = 1


class BadInputError(Net2NetError):
    """The file, model, option or path cannot be used (exit 2)."""

    exit_code = 2


class WriteError(BadInputError):
    """A file cannot be written, for example because the disk is full (exit 2). The request itself may be sound."""


class RefusedError(Net2NetError):
    """A sound request on a sound model that cannot be done exactly (exit 3)."""

    exit_code = 3


def optional(package: str, otherwise: str) -> Any:
    """Import a package that not everybody needs.

    Raises:
        BadInputError: If it cannot be imported; says `otherwise`, and why.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # large packages import much, which may fail in any way
        raise BadInputError(f"{otherwise} ({one_line(error)})") from error


_WORD = 200
"""Letters that a word is shown with; of a longer one the middle is left out."""

_MESSAGE = 4000
"""Letters that a message is shown with."""


def shown(text: object) -> str:
    """Return a text as one line of limited length.

    Line ends, control characters, marks that change the direction of writing and invalid characters are escaped. Long
    words lose their middle, and a long text its end.
    """
    half = _WORD // 2
    short = re.sub(rf"\S{{{_WORD + 1},}}", lambda word: f"{word[0][:half]}...{word[0][-half:]}", str(text))
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short[: _MESSAGE + 1])
    return escaped if len(escaped) <= _MESSAGE else escaped[: _MESSAGE - 3] + "..."


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error in one line of at most `limit` characters; its type if it has no text."""
    text = shown(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
