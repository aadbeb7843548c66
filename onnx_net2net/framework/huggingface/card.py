"""The model card of a student: what was done to which teacher, how well they agree, and the record to do it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from onnx_net2net.framework.huggingface.parameters import parameters_in
from onnx_net2net.framework.huggingface.student import Request, Student


def card(student: Student, request: Request, lines: Sequence[str]) -> str:
    """Return the text of README.md: the front matter of the teacher's, what was done, and then the teacher's text."""
    front, body = _teachers(student)
    return "\n".join([*front, *_own(student, request, lines), *body])


def _teachers(student: Student) -> tuple[list[str], list[str]]:
    """Return the front matter of the teacher's card, and its text."""
    path = student.teacher.folder.path / "README.md"
    if not path.is_file():
        return [], []
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    end = text.index("---", 1) + 1 if text[:1] == ["---"] and "---" in text[1:] else 0
    return [*text[:end], *([""] if end else [])], ["", "## The teacher's card", "", *text[end:]]


def _own(student: Student, request: Request, lines: Sequence[str]) -> Iterator[str]:
    folder = student.teacher.folder
    before, after = parameters_in(student.teacher.parameters), parameters_in(student.parameters)
    yield from (
        f"# {folder.path.resolve().name}, grown", "",
        f"This model was grown from `{folder.path.resolve().name}` by onnx_net2net: from {before:,} to {after:,} "
        "numbers. It computes what its teacher computes, and is meant to be trained on.", "",
        "| config | teacher | student |", "|---|---|---|",
    )  # fmt: skip
    for name, old, new in changes(folder.config, student.config):
        yield f"| {name} | {old} | {new} |"
    yield from ("", *lines, "", "The record:", "", "```json")
    options = {key: value for key, value in dataclasses.asdict(request).items() if value not in (None, {}, ())}
    yield json.dumps({"request": options, "steps": student.record}, indent=1, default=str)
    yield "```"


def changes(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield what differs between two configs: the name, the value in the old one, that in the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            yield from changes(old.get(key), new[key], f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new
