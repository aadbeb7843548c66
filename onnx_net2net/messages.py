"""Turn the errors of other libraries into text for the user."""

from __future__ import annotations


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error, or else its type, in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
