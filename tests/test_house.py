"""The house: every module has its test file, and none is too long. `lint-imports` sees to what imports what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from onnx import defs

from onnx_net2net.rules import supported

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnx_net2net"
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
TESTED_ROOMS = ("algebra", "graph", "rewrite", "analysis")
MOST_LINES = 450

LONG = {}
"""Modules that are too long yet, and how long they may be. Lines leave this list; none comes in."""


def has_test(module: str) -> bool:
    """Whether a module has a test file of its own: test_<module>.py, or several test_<module>_*.py."""
    path = Path(module)
    folder = ROOT / "tests" / path.parent
    return (folder / f"test_{path.stem}.py").exists() or any(folder.glob(f"test_{path.stem}_*.py"))


def lines_of(module: str) -> int:
    return len((PACKAGE / module).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long(module: str) -> None:
    assert lines_of(module) <= LONG.get(module, MOST_LINES)


def test_the_list_of_long_modules_only_shrinks() -> None:
    kept = {module for module in LONG if module in MODULES and lines_of(module) > MOST_LINES}
    assert set(LONG) == kept, "these are gone or short enough: take them off the list"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(TESTED_ROOMS) and "__" not in m])
def test_every_module_has_its_test_file(module: str) -> None:
    assert has_test(module), f"write tests/{Path(module).parent}/test_{Path(module).name}"


def asked_for(module: str) -> set[str]:
    """Return the names that a module compares the operators of nodes with; torch's own have small letters."""
    compared = [node for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
                if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute)
                and node.left.attr in ("op", "op_type", "operator")]  # fmt: skip
    inside = (one for node in compared for other in node.comparators for one in ast.walk(other))
    names = {one.value for one in inside if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return {name for name in names if name[:1].isupper()}


def test_operators_that_are_asked_for_exist() -> None:
    known = {schema.name for schema in defs.get_all_schemas()} | {kind for _, kind, _ in supported()}
    unknown = {module: names for module in MODULES if (names := asked_for(module) - known)}
    assert not unknown
    assert "Reshape" in asked_for("analysis/heads.py")
