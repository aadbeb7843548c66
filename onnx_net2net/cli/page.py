"""A report as one file of HTML: what a command tells, with pictures; no script, and nothing from elsewhere."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.table import Table

from onnx_net2net.analysis.outline import outline
from onnx_net2net.cli.drawing import Drawing
from onnx_net2net.errors import BadInputError, optional, shown
from onnx_net2net.framework.formats.state_dicts import is_made
from onnx_net2net.model.model import Model
from onnx_net2net.model.staging import destination, whole

Points = Sequence[tuple[float, float]]

_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#9c755f", "#edc948")


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        title: What stands above it.
        svg: The picture.
    """

    title: str
    svg: str


def check_free(path: Path, force: bool) -> None:
    """Refuse to replace a file of somebody else.

    Raises:
        BadInputError: If there is a file that this package has not made, unless `force` is given.
    """
    if path.is_file() and not force and not is_made(path):
        raise BadInputError(f"{path} exists and was not made by this tool; --force replaces it")


def check_page(options: argparse.Namespace) -> None:
    """Refuse a report that cannot be written, before anything costs time.

    Raises:
        BadInputError: If it cannot be written there or would replace a file of somebody else, or jinja2 is not
            installed.
    """
    path: Path | None = options.html
    if path is None:
        return
    check_free(path, options.force)
    if path.suffix not in (".html", ".htm"):
        raise BadInputError(f"{path}: a report is a file of HTML (.html)")
    destination(path)
    _template()


def write_page(path: Path, title: str, items: Iterable[object]) -> None:
    """Write a report.

    Args:
        path: The file.
        title: What stands above.
        items: Tables, figures, and the texts of all else, in order.

    Raises:
        BadInputError: If it cannot be written there.
    """
    made = _template().render(title=shown(title), items=list(map(_item, items)), version=version("onnx-net2net"))
    with whole(path) as place:
        place.write_text(made, encoding="utf-8")


def picture(teacher: Model, student: Model) -> list[Figure]:
    """Return a picture of a student with what grew; none where there is nothing to draw, or nothing to draw it with."""
    drawing = Drawing("", outline(student), {one.name: one for one in outline(teacher)})
    try:
        return [Figure("what grew", _inline(drawing.svg()))] if drawing.layers else []
    except BadInputError:  # there is no drawsvg
        return []


def curves(title: str, x: str, y: str, lines: Mapping[str, Points], scatter: bool = False) -> list[Figure]:
    """Return a figure of curves, or of points with their names; none without matplotlib.

    Args:
        title: What stands above.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        lines: The points of each curve, by its name.
        scatter: Whether they are points.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Plot
    except ImportError:
        return []
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return []
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        plot = Plot(figsize=(7, 4), layout="constrained")
        axes: Any = plot.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            xs, ys = zip(*points, strict=True)
            colour = _COLOURS[number % len(_COLOURS)]
            if scatter:
                axes.plot(xs, ys, "o", color=colour)
                axes.annotate(name, (xs[0], ys[0]), xytext=(4, 4), textcoords="offset points", fontsize=9)
            else:
                axes.plot(xs, ys, color=colour, label=name, lw=1.5)
        axes.set(xlabel=x, ylabel=y)
        values = [value for points in lines.values() for _, value in points]
        if 0 < 10 * min(values) < max(values):
            axes.set_yscale("log")
        if not scatter and len(lines) <= len(_COLOURS):
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        written = io.StringIO()
        plot.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return [Figure(title, _inline(written.getvalue()))]


def _inline(svg: str) -> str:
    """Return a picture as it stands in a page: without what comes before it in a file."""
    return svg[svg.index("<svg") :]


def _item(item: object) -> dict[str, Any]:
    from markupsafe import Markup

    if isinstance(item, Figure):
        return {"kind": "figure", "title": item.title, "svg": Markup(item.svg)}
    if isinstance(item, Table):
        columns = [{"name": str(column.header), "right": column.justify == "right"} for column in item.columns]
        cells = zip(*(map(str, column.cells) for column in item.columns), strict=True)
        rows = [{"cells": own, "pale": row.style == "dim"} for own, row in zip(cells, item.rows, strict=True)]
        return {"kind": "table", "title": str(item.title or ""), "columns": columns, "rows": rows}
    return {"kind": "text", "text": shown(item)}


def _template() -> Any:
    jinja2 = optional("jinja2", "--html needs jinja2: pip install 'onnx-net2net[report]'")
    text = files("onnx_net2net.cli").joinpath("page.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True).from_string(text)
