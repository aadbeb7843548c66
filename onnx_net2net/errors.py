"""What can go wrong, by the exit code that the command line gives it, and how text is shown in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Net2NetError(Exception):
    """Base of every error this package raises on purpose; its text is one line meant for the user."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the text in one line, with what names of a file have in them escaped."""
        return shown(super().__str__())


class NotEquivalentError(Net2NetError):
    """The student does not compute what the teacher computes (exit 1)."""

    exit_code = 1


class BadInputError(Net2NetError):
    """The file, model, option or path cannot be used (exit 2)."""

    exit_code = 2


class WriteError(BadInputError):
    """A file cannot be written, which says nothing of what was asked for: the disk may be full (exit 2)."""


class RefusedError(Net2NetError):
    """A sound request on a sound model that cannot be done exactly (exit 3)."""

    exit_code = 3


_WORD = 200
"""Letters that a word is shown with; of a longer one the middle is left out."""

_MESSAGE = 4000
"""Letters that a message is shown with."""


def shown(text: object) -> str:
    """Return text as it is shown: what cannot be printed is escaped, so that it is one line, and it ends somewhere.

    Escaped are line ends, control characters, marks that change the direction of writing, and what is no character.
    """
    half = _WORD // 2
    short = re.sub(rf"\S{{{_WORD + 1},}}", lambda word: f"{word[0][:half]}...{word[0][-half:]}", str(text))
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short[: _MESSAGE + 1])
    return escaped if len(escaped) <= _MESSAGE else escaped[: _MESSAGE - 3] + "..."


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error, or else its type, in one line of at most `limit` characters."""
    text = shown(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
