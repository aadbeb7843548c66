"""The house: every module has its test file, and none is too long. `lint-imports` sees to what imports what."""

from __future__ import annotations

from pathlib import Path

import pytest

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
