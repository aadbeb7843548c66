"""The command `draw`."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx_net2net.analysis.outline import outline
from onnx_net2net.cli.drawing import Drawing
from onnx_net2net.cli.options import Command, argument
from onnx_net2net.cli.output import say_written
from onnx_net2net.cli.student import check_replaced
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.history import history
from onnx_net2net.model.model import load
from onnx_net2net.model.staging import destination, whole

_SUFFIXES = (".svg", ".html")


def run(options: argparse.Namespace) -> int:
    """Draw a model, or what became of it."""
    output: Path = options.output
    if output.suffix not in _SUFFIXES:
        raise BadInputError(f"{output}: pictures are {' or '.join(_SUFFIXES)} files")
    destination(output)
    check_replaced(options)
    model = load(options.model)
    drawing = Drawing(options.model.name, outline(model))
    if options.student is not None:
        student = load(options.student)
        steps = history(student)
        title = f"{options.model.name} \u2192 {options.student.name}"
        kinds = dict.fromkeys(str(step["map"]) for step in steps if "map" in step)
        before = {one.name: one for one in drawing.layers}
        drawing = Drawing(title, outline(student), before, ", ".join(kinds))
    if not drawing.layers:
        raise BadInputError(f"{options.model} has no layers of weights to draw")
    picture = drawing.svg() if output.suffix == ".svg" else drawing.html()
    with whole(output) as place:
        place.write_text(picture, encoding="utf-8")
    say_written(options, output)
    return 0


COMMAND = Command(
    "teacher.onnx student.onnx -o growth.svg",
    [
        argument("model", type=Path, metavar="MODEL", help="the network to draw (.onnx)"),
        argument("student", type=Path, nargs="?", metavar="STUDENT",
                 help="the student that it became; what grew is drawn in colour"),
        argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the picture (.svg, .html)"),
    ],
    run,
)  # fmt: skip
