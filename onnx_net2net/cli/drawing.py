"""A picture of a network: its layers from above, widths as bands, and what grew in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from onnx_net2net.analysis.outline import LayerOutline, Section, sections
from onnx_net2net.cli.output import shape_text
from onnx_net2net.errors import optional, shown
from onnx_net2net.texts import shorten

if TYPE_CHECKING:
    import drawsvg

OLD, GROWN, NEW = "#8d9db0", "#f28e2b", "#59a14f"
"""Colours of what the teacher has, of what grew, and of new layers."""

_FRAME, _TEXT, _PALE = "#d5dbe1", "#1f2933", "#616e7c"
_WIDTH, _NAMES, _RAIL, _BAND, _SIZES = 1000, 232, 290, 480, 650
_HALF, _RAIL_HALF = 150, 26
_ROW, _GAP, _HEAD, _PAD = 28, 8, 24, 10
_LETTERS = 30
_BEHIND = 5


@dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
        title: What stands above.
        layers: The layers.
        before: The same layers of the teacher, by name; None where there is no teacher.
        map: How new units came about, "" where nobody knows.
    """

    title: str
    layers: Sequence[LayerOutline]
    before: Mapping[str, LayerOutline] | None = None
    map: str = ""

    def svg(self) -> str:
        """Return the picture as an SVG file."""
        return str(self._drawn().as_svg())

    def html(self) -> str:
        """Return the picture as a page of its own."""
        style = "body{margin:16px;font-family:sans-serif}svg{max-width:100%;height:auto}"
        svg = self.svg().partition("?>")[2]
        title = escape(shown(self.title))
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n'
            f"<body>{svg}</body></html>\n"
        )

    def _drawn(self) -> drawsvg.Drawing:
        found = sections(self.layers)
        height = 76 + sum(_height(section) + _GAP for section in found)
        pen = _Pen(_WIDTH, height)
        pen.text(self.title, 16, 26, size=17, weight="bold")
        self._legend(pen)
        top, largest = 68.0, max((max(layer.reads, layer.makes, 1) for layer in self.layers), default=1)
        at = top
        for section in found:
            if section.name:
                pen.frame(8, at, _WIDTH - 16, _height(section))
            at += _height(section) + _GAP
        self._rails(pen, found, top, largest)
        for section in found:
            self._section(pen, section, top, largest)
            top += _height(section) + _GAP
        return pen.drawing

    def _legend(self, pen: _Pen) -> None:
        entries = [(OLD, "as it was"), (GROWN, "grown"), (NEW, "new layer")] if self.before is not None else []
        for place, (colour, text) in enumerate(entries):
            pen.box(16 + 110 * place, 40, 14, 12, colour)
            pen.text(text, 36 + 110 * place, 51, colour=_PALE)
        pen.text("bands are as wide as the root of the number of units", _WIDTH - 16, 51, anchor="end", colour=_PALE)

    def _rails(self, pen: _Pen, found: Sequence[Section], top: float, largest: int) -> None:
        """Draw the residual streams beside the layers, from where one is first made to where it is last read."""
        spans: dict[str, list[float]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for section in found:
            for place, layer in enumerate(section.layers):
                y = top + _HEAD * bool(section.name) + _PAD + place * (_ROW + _GAP)
                old = (self.before or {}).get(layer.name, layer)
                if layer.makes_stream and layer.names:
                    spans.setdefault(layer.names[-1], [y + _ROW, y + _ROW])[1] = y + _ROW
                    sizes[layer.names[-1]] = (old.makes, layer.makes)
                if layer.reads_stream:
                    spans.setdefault(layer.names[0], [y, y])[1] = y
                    sizes.setdefault(layer.names[0], (old.reads, layer.reads))
            top += _height(section) + _GAP
        for name, (start, end) in spans.items():
            before, after = (_half(size, largest) * _RAIL_HALF / _HALF for size in sizes[name])
            for half, colour in ((after, GROWN), (before, OLD)):
                if colour == OLD or after > before:
                    note = f"residual stream {name}: {_change(*sizes[name])} units"
                    pen.box(_RAIL - half, start, 2 * half, max(end - start, 2), colour, note)

    def _section(self, pen: _Pen, section: Section, top: float, largest: int) -> None:
        if section.name:
            pen.text(_heading(section), 18, top + 17, weight="bold", colour=_PALE)
            new = self._new_repetitions(section)
            if new:
                pen.text(f"{new} of them new", _WIDTH - 18, top + 17, anchor="end", colour=NEW)
            top += _HEAD
        top += _PAD
        for layer in section.layers:
            self._layer(pen, layer, section, top, largest)
            top += _ROW + _GAP

    def _new_repetitions(self, section: Section) -> int:
        if self.before is None or section.times == 1:
            return 0
        prefix, _, _ = section.name.rpartition("*")
        first = section.layers[0].name.removeprefix(prefix).partition(".")
        known = sum(f"{prefix}{int(first[0]) + k}.{first[2]}" in self.before for k in range(section.times))
        return section.times - known

    def _layer(self, pen: _Pen, layer: LayerOutline, section: Section, y: float, largest: int) -> None:
        old = layer if self.before is None else self.before.get(layer.name)
        is_new = old is None
        old = old or layer
        note = self._note(layer, old, is_new)
        if old.experts != layer.experts:  # more of the same stand behind them
            pen.band(_BAND, y + _BEHIND, _half(layer.reads, largest), _half(layer.makes, largest), GROWN, note)
        for one, colour in ((layer, GROWN), (old, NEW if is_new else OLD)):
            if one is old or (one.reads, one.makes) != (old.reads, old.makes):
                pen.band(_BAND, y, _half(one.reads, largest), _half(one.makes, largest), colour, note)
        if layer.reads_stream:
            pen.line(_RAIL, y, _BAND - _half(layer.reads, largest), y)
        if layer.makes_stream:
            pen.line(_BAND - _half(layer.makes, largest), y + _ROW, _RAIL, y + _ROW)
        name = layer.name.removeprefix(_prefix(layer.name) if section.name else "")
        pen.text(shorten(shown(name), _LETTERS), _NAMES, y + _ROW / 2 + 4, anchor="end", note=note)
        pen.text(_sizes(layer, old), _SIZES, y + _ROW / 2 + 4, note=note)

    def _note(self, layer: LayerOutline, old: LayerOutline, is_new: bool) -> str:
        """Return what is shown where the pointer rests on a layer."""
        shape = shape_text(layer.shape)
        if old.shape != layer.shape:
            shape = f"{shape_text(old.shape)} -> {shape}"
        lines = [f"{layer.name} ({layer.kind}){': a new layer' if is_new else ''}",
                 f"{layer.weight or 'weights'}: {shape}",
                 f"dims: {', '.join(layer.names)}"]  # fmt: skip
        if self.map and old != layer:
            lines.append(f"map: {self.map}")
        return "\n".join(map(shown, lines))


class _Pen:
    """Draws shapes and texts; notes are shown where the pointer rests."""

    def __init__(self, width: float, height: float) -> None:
        self._made = drawsvg = optional("drawsvg", "pictures need drawsvg: pip install 'onnx-net2net[draw]'")
        self.drawing = drawsvg.Drawing(width, height, id="onnx_net2net", font_family="Helvetica, Arial, sans-serif")
        self.drawing.append(drawsvg.Rectangle(0, 0, width, height, fill="white"))

    def text(
        self, text: str, x: float, y: float, *, size: float = 13, anchor: str = "start", weight: str = "normal",
        colour: str = _TEXT, note: str = "",
    ) -> None:  # fmt: skip
        """Write a line, which begins or ends at a place."""
        self._add(self._made.Text(shown(text), size, x, y, text_anchor=anchor, font_weight=weight, fill=colour), note)

    def box(self, x: float, y: float, width: float, height: float, colour: str, note: str = "") -> None:
        """Draw a filled rectangle."""
        self._add(self._made.Rectangle(x, y, width, height, fill=colour), note)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        """Draw the frame of a block."""
        self._add(self._made.Rectangle(x, y, width, height, rx=8, fill="#f7f9fb", stroke=_FRAME))

    def line(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw a thin line."""
        self._add(self._made.Line(x, y, to_x, to_y, stroke=_PALE, stroke_width=1))

    def band(self, x: float, y: float, above: float, below: float, colour: str, note: str) -> None:
        """Draw a layer: a trapezoid whose upper and lower half widths are given."""
        bottom = y + _ROW
        corners = (x - above, y, x + above, y, x + below, bottom, x - below, bottom)
        self._add(self._made.Lines(*corners, close=True, fill=colour), note)

    def _add(self, shape: Any, note: str = "") -> None:
        if note:
            shape.append_title(note)
        self.drawing.append(shape)


def _half(size: int, largest: int) -> float:
    return float(max(2.0, _HALF * (size / largest) ** 0.5))


def _height(section: Section) -> float:
    rows = len(section.layers)
    return rows * (_ROW + _GAP) + 2 * _PAD - _GAP + _HEAD * bool(section.name)


def _sizes(layer: LayerOutline, old: LayerOutline) -> str:
    """Say how many units a layer reads and makes, and how many these were."""
    text = f"{layer.reads:,} to {layer.makes:,}" + (f" x {layer.experts} experts" if layer.experts else "")
    if (old.reads, old.makes) != (layer.reads, layer.makes):
        return f"{text} (was {old.reads:,} to {old.makes:,}{f' x {old.experts}' if old.experts else ''})"
    return text if old.experts == layer.experts else f"{text} (was {old.experts})"


def _change(old: int, new: int) -> str:
    return f"{new:,}" if old == new else f"{old:,} \u2192 {new:,}"


def _heading(section: Section) -> str:
    name = section.name if section.times > 1 else _prefix(section.layers[0].name).rstrip(".")
    return shorten(name, 60) + (f"  x {section.times}" if section.times > 1 else "")


def _prefix(name: str) -> str:
    """Return the part of a name up to and with its first number that stands alone."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts[:-1]) if part.isdigit()), -1)
    return "".join(f"{part}." for part in parts[: place + 1])
