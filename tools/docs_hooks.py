"""Hooks of the documentation's build (mkdocs.yml): pages from the repository's own files, and from `--help`.

`ARCHITECTURE.md` and its like are pages of the site, too; links out of `docs/` are led to them, or to nothing. A line
`::: help COMMAND` of a page becomes what `onnx-net2net COMMAND --help` prints.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the repository that are pages of the site, too."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./|\./)?[\w./-]+)((?:#[\w-]*)?)\)")
_HELP = re.compile(r"^::: help ([\w-]+)$", re.MULTILINE)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the repository's pages."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name.lower(), content=_relinked(text, "")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the site's pages, and put in what commands print."""
    if page.file.src_uri in map(str.lower, PAGES):
        return markdown
    return _HELP.sub(lambda found: _help(found[1]), _relinked(markdown, "docs/"))


def _relinked(markdown: str, folder: str) -> str:
    """Return a page with its links to files outside of `docs/` led to the site's, or shown as names."""

    def relink(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        path = os.path.normpath(folder + target)
        if path in PAGES:
            return f"{image}[{text}]({path.lower()}{anchor})"
        if path.startswith("docs/"):
            return f"{image}[{text}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(relink, markdown)


def _help(command: str) -> str:
    """Return the help of a command as it is printed."""
    os.environ["COLUMNS"] = "100"
    from onnx_net2net.cli.main import _parser

    (commands,) = (action for action in _parser([command])._actions if isinstance(action, argparse._SubParsersAction))
    return f"```text\n{commands.choices[command].format_help()}```"
