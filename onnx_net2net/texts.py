"""Names of frameworks, of repeated layers as one, and tables as notebooks show them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from onnx_net2net.errors import shown, some

FRAMEWORKS = ("torch", "keras", "flax")
"""Frameworks whose classes can be grown for. What holds for one holds for any that makes its modules of sizes."""

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]{3}")


def fold_names(names: Sequence[str]) -> list[str]:
    """Return names, those that differ by numbers alone as one, with how many they are.

    >>> fold_names(["h.0.fc", "h.1.fc", "head"])
    ['h.*.fc x2', 'head']
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_mask(name), []).append(name)
    return [_common(group) for group in groups.values()]


def fold_rows(rows: Iterable[tuple[Iterable[str], bool]]) -> list[tuple[list[str], bool]]:
    """Return rows of a table; those that differ by numbers in names alone are one, at the place of the first.

    The first cell is a name, and so is what else is no number.
    """
    groups: dict[tuple[object, ...], list[list[str]]] = {}
    for cells, is_pale in rows:
        row = list(cells)
        masked = (_mask(cell) if not place or _WORD.search(cell) else cell for place, cell in enumerate(row))
        key: tuple[object, ...] = (is_pale, *masked)
        groups.setdefault(key, []).append(row)
    folded = []
    for key, group in groups.items():
        names, *others = zip(*group, strict=True)
        folded.append(([_common(names), *map(_starred, others)], bool(key[0])))
    return folded


def shorten(name: str, width: int) -> str:
    """Return a name of at most so many letters, with its middle left out where it has more."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - half]}\u2026{name[-half:]}"


def _mask(text: str) -> str:
    return _NUMBER.sub("*", text)


def _common(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{_starred(names)} x{len(names)}"


def _starred(texts: Sequence[str]) -> str:
    """Return the first of texts of one mask, with stars for the numbers that are not the same in all."""
    differ = [len(set(numbers)) > 1 for numbers in zip(*map(_NUMBER.findall, texts), strict=True)]
    stars = iter(differ)
    return _NUMBER.sub(lambda number: "*" if next(stars) else number[0], texts[0])


def lines_by_reason(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, with the names that it is given for; reasons that name repeated layers are one."""
    names: dict[str, list[str]] = {}
    for name, reason in pairs:
        names.setdefault(reason, []).append(name)
    return fold_names([f"{some(fold_names(found))}: {reason}" for reason, found in names.items()])


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return a table in HTML; all texts are escaped."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><caption>{_cell(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return escape(f"{value:,}" if isinstance(value, int) else shown(value))
