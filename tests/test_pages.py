"""The pages: what they show runs, what they name exists, and the README stays short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from onnx_net2net.cli.main import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ROOMS = sorted(path.name for path in (ROOT / "onnx_net2net").iterdir() if (path / "__init__.py").exists())
PLACES = re.compile(rf"(?<![\w./-])(?:(?:{'|'.join(ROOMS)}|tests|tools|docs|models)/[\w./-]*|errors\.py)")
"""What a page writes in backquotes as the path of a folder, a module or a file; rooms are those of the package."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    lines = [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]
    return [words[words.index("onnx-net2net") :] for words in lines if "onnx-net2net" in words]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the repository has, in which commands may write."""
    for name in ("models", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "tools"))
    return tmp_path


def test_the_readme_is_short() -> None:
    assert README.stat().st_size < 9_000


def test_commands_of_the_readme_run(workplace: Path) -> None:
    shown = commands(README)
    assert {words[1] for words in shown} >= {"inspect", "widen", "deepen", "transfer", "checkpoint", "verify"}
    for words in shown:
        if "--module" not in words:
            assert main(words[1:]) == 0, words


@pytest.mark.slow
def test_growth_of_a_module_is_as_the_readme_prints_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    monkeypatch.syspath_prepend(str(ROOT))
    torch.manual_seed(0)
    (code,) = blocks(README, "python grow")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [line for line in README.read_text(encoding="utf-8").splitlines() if line in printed[:-1]]
    assert "computes the same" in printed[-1]


def test_python_of_the_readme_runs(workplace: Path) -> None:
    (code,) = blocks(README, r"python(?=\n)")
    exec(compile(code, "README.md", "exec"), {})
    assert (workplace / "student.onnx").exists()


@pytest.mark.slow
def test_the_loop_of_the_readme_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three growths, each trained, in twenty lines; at the end more is right than at the beginning."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx2fx")
    (code,) = blocks(README, "python loop")
    assert len([line for line in code.splitlines() if line]) <= 20
    exec(compile(code, "README.md", "exec"), {})
    before, after = map(float, re.findall(r"([0-9.]+)%", capsys.readouterr().out))
    assert 90 < before < after


def test_the_docstring_of_the_package_is_what_the_readme_shows() -> None:
    """The same calls with other arguments; who reads one finds the other."""
    import onnx_net2net

    (code,) = blocks(README, r"python(?=\n)")
    calls = re.compile(r"\b(inspect|widen|verify|raise_if_different|save)\(")
    assert calls.findall(code) == calls.findall(onnx_net2net.__doc__ or "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path else page
            assert goal.exists(), target
            titles = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, target


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_places_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for quoted in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        for place in PLACES.findall(quoted):
            found = [folder / place.rstrip(".") for folder in (ROOT, ROOT / "onnx_net2net")]
            assert any(path.exists() for path in found), f"{page.name} names {place}, which is not there"


def test_the_readme_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.M))
    assert known == set(re.findall(r"^\| `([a-z-]+) ", README.read_text(encoding="utf-8"), re.M))


def test_contributing_names_every_tool() -> None:
    tools = {path.name for path in (ROOT / "tools").glob("*.py")}
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert tools <= named, sorted(tools - named)


def test_architecture_names_every_room_once_in_its_picture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    picture = re.search(r"(?:^ {3,}.*\n)+", text, re.M)
    assert picture is not None
    assert sorted(re.findall(r"(\w+)/", picture[0])) == ROOMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_pages_name_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    asked = {"--help", "--debug", "--version", "--print-completion"}
    for command in re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.M):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        asked |= set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out))
    text = page.read_text(encoding="utf-8")
    quoted = [part for part in re.findall(r"`([^`\n]+)`", text) if ".py" not in part and ".sh" not in part]
    for option in re.findall(r"(?<![\w-])--[a-z-]+", " ".join(quoted)):
        assert option in asked or page.name in ("CONTRIBUTING.md", "ARCHITECTURE.md"), option
