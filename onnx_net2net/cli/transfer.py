"""The command `transfer`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx_net2net.cli.options import HTML, JSON, SEED, SPREAD, TEACHER, Command, argument, checking, checking_arguments
from onnx_net2net.cli.output import answer, progress_bar, shape_text, table, tell
from onnx_net2net.cli.page import check_page, picture, write_page
from onnx_net2net.cli.student import check_replaced
from onnx_net2net.errors import NotEquivalentError, RefusedError
from onnx_net2net.framework.formats.state_dicts import check_output
from onnx_net2net.framework.recipe import next_steps, recipe_of
from onnx_net2net.framework.statedict.filled import fill_state_dict
from onnx_net2net.model.model import load
from onnx_net2net.model.saving import check_target
from onnx_net2net.operations.transfer.dpiat.dpiat import transfer_dpiat
from onnx_net2net.operations.transfer.networks import Obstacle
from onnx_net2net.operations.transfer.transfer import Transfer, proof, transfer
from onnx_net2net.run.inputs import arrays_of, input_specs
from onnx_net2net.run.watch import in_batches

_ORIGINS = {
    "teacher": "the teacher's",
    "identity": "identities",
    "zero": "zero",
    "reconstructed": "fitted to the teacher's",
    "measured": "measured",
    "kept": "the target's own",
}
"""What people call the ways in which tensors of a target get their values."""


def run(options: argparse.Namespace) -> int:
    """Fill a target from a teacher."""
    teacher, target = load(options.teacher), load(options.target)
    data = arrays_of(options.data) if options.data else None
    checked = checking(options, teacher, in_batches(data, input_specs(teacher.proto))[0] if data else None)
    check_page(options)
    sources = [*teacher.sources, *target.sources]
    if options.state_dict is None:
        check_target(options.output, sources)
    else:
        check_output(options.output, [*sources, options.state_dict])
    check_replaced(options)
    if options.method == "dpiat":
        result: Transfer = transfer_dpiat(teacher, target)
    else:
        with progress_bar() as progress:
            result = transfer(teacher, target, spread=options.spread, seed=options.seed, data=data, prove=False,
                              progress=progress)  # fmt: skip
    with progress_bar() as progress:
        verification, obstacles = proof(result, progress=progress, **checked)
    _refuse_unasked(options, obstacles, expected=bool(result.obstacles or result.doubts))
    if options.state_dict is None:
        result.student.save(options.output)
    else:
        fill_state_dict(result, options.state_dict).save(options.output)
    advice = recipe_of(result)
    exact = "exact: the student computes what the teacher computes"
    title = f"{options.teacher.name} -> {options.target.name}"
    told = [_table(result, title), *_inexact(obstacles), next_steps(advice), *([] if obstacles else [exact]),
            verification or "not compared"]  # fmt: skip
    if options.html:
        write_page(options.html, title, [*told, *picture(result.teacher, result.student)])
    record = {**_to_dict(result, obstacles), "output": str(options.output), "recipe": advice.as_dict(),
              "verification": verification.to_dict() if verification else None}  # fmt: skip
    return answer(options, record, told, options.output)


COMMAND = Command(
    "teacher.onnx target.onnx -o student.onnx",
    [
        TEACHER,
        argument("target", type=Path, metavar="TARGET", help="the network to fill, with any weights"),
        argument("-o", "--output", type=Path, required=True, metavar="STUDENT",
                 help="the file to write; with --state-dict a .safetensors or .pt file"),
        argument("--state-dict", type=Path, metavar="FILE",
                 help="the target's state dict, as it was when the target was exported"),
        argument("--method", default="net2net", choices=("net2net", "dpiat"),
                 help="dpiat crops and pads as Czyzewski et al. (2022) do; it is never exact and serves as a baseline"),
        argument("--partial", action="store_true",
                 help="write the student even if it is not exact (default: only with --data or --method dpiat)"),
        argument("--exact", action="store_true",
                 help="write the student only if it is exact, also with --data or --method dpiat"),
        SPREAD,
        SEED,
        HTML,
        JSON,
        *checking_arguments(
            "examples, without labels: where the transfer is not exact, they decide which units are kept and what "
            "layers are fitted to; teacher and student are compared on them"
        ),
    ],
    run,
)  # fmt: skip


def _refuse_unasked(options: argparse.Namespace, obstacles: Sequence[Obstacle], *, expected: bool) -> None:
    """Refuse a student that is not exact, unless it is asked for; it failed the check if that was not expected."""
    is_asked = options.partial or options.data is not None or options.method == "dpiat"
    if not obstacles or (is_asked and not options.exact):
        return
    tell(_inexact(obstacles[1:]) if not options.json else [])
    more = f" (and {len(obstacles) - 1} more)" if len(obstacles) > 1 else ""
    remedy = "" if options.exact else "; --partial writes it as it is"
    kind = RefusedError if expected else NotEquivalentError
    raise kind(f"not exact: {obstacles[0]}{more}{remedy}")


def _inexact(obstacles: Sequence[Obstacle]) -> list[str]:
    return [f"not exact: {obstacle}" for obstacle in obstacles]


def _table(transfer: Transfer, title: str) -> object:
    """Return where the values of the target's tensors came from, with the largest tensor of each kind."""
    total = sum(math.prod(source.shape) for source in transfer.sources)
    rows = []
    for origin, text in _ORIGINS.items():
        sources = [source for source in transfer.sources if source.origin == origin]
        if sources:
            elements = sum(math.prod(source.shape) for source in sources)
            largest = max(sources, key=lambda source: math.prod(source.shape))
            example = f"{largest.name} {shape_text(largest.shape)}"
            example += f" from {largest.teacher}" if largest.teacher else ""
            cells = [text, str(len(sources)), f"{elements:,}", f"{elements / total:.1%}", example]
            rows.append((cells, origin == "kept"))
    student, teacher = transfer.student.parameters, transfer.teacher.parameters
    totals = [["parameters", "", f"{student:,}", "", f"teacher: {teacher:,}"]]
    return table(title, ["values", ">tensors", ">elements", ">share", "for example"], rows, totals)


def _to_dict(transfer: Transfer, obstacles: Sequence[Obstacle]) -> dict[str, Any]:
    return {
        "exact": not obstacles,
        "obstacles": [{"place": obstacle.place, "reason": obstacle.reason} for obstacle in obstacles],
        "filled": transfer.filled,
        "seed": transfer.seed,
        "parameters": {"teacher": transfer.teacher.parameters, "student": transfer.student.parameters},
        "tensors": [
            {"name": s.name, "shape": list(s.shape), "origin": s.origin, "teacher": s.teacher or None}
            for s in transfer.sources
        ],
    }
