"""The model card of a student: what was done to which teacher, how well they agree, and the record to do it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from onnx_net2net.framework.huggingface.student import Request, Student


def card(student: Student, request: Request, lines: Sequence[str]) -> str:
    """Return the text of README.md: the front matter of the teacher's, what was done, and then the teacher's text."""
    front, body = _teachers(student)
    return "\n".join([*front, *_own(student, request, lines), *body])


def _teachers(student: Student) -> tuple[list[str], list[str]]:
    """Return the front matter of the teacher's card, and its text."""
    path = student.teacher.folder.path / "README.md"  # a single file has none
    if not path.is_file():
        return [], []
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    end = text.index("---", 1) + 1 if text[:1] == ["---"] and "---" in text[1:] else 0
    return [*text[:end], *([""] if end else [])], ["", "## The teacher's card", "", *text[end:]]


def _own(student: Student, request: Request, lines: Sequence[str]) -> Iterator[str]:
    folder = student.teacher.folder
    before, after = student.teacher.skeleton.elements, student.skeleton.elements
    yield from (
        f"# {folder.path.resolve().name}, grown", "",
        f"This model was grown from `{folder.path.resolve().name}` by onnx_net2net: from {before:,} to {after:,} "
        "numbers. It computes what its teacher computes, and is meant to be trained on.", "",
        "| config | teacher | student |", "|---|---|---|",
    )  # fmt: skip
    for name, old, new in changes(student):
        yield f"| {name} | {old} | {new} |"
    yield from ("", *lines, "", "The record:", "", "```json")
    options = {key: value for key, value in dataclasses.asdict(request).items() if value not in (None, {}, ())}
    yield json.dumps({"request": options, "steps": student.record}, indent=1, default=str)
    yield "```"


def changes(student: Student) -> Iterator[tuple[str, object, object]]:
    """Yield what differs between the configs of teacher and student: the name, the value in the one and in the other.

    What the teacher's leaves to its class has the class's value.
    """
    return _differing(student.teacher.folder.config, student.config, student.teacher.skeleton.config.to_dict())


def _differing(old: Any, new: Any, full: Any, path: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(new, dict) and isinstance(old, dict | None):
        for key in new:
            one, other = ((whole or {}).get(key) if isinstance(whole, dict | None) else None for whole in (old, full))
            yield from _differing(one, new[key], other, f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, full if old is None else old, new
