"""The command `checkpoint`."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

from onnx_net2net.cli.options import JSON, REPORT, TEACHER, Command, argument
from onnx_net2net.cli.output import answer, shape_text, table
from onnx_net2net.cli.student import check_replaced, widths_of
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.checkpoint import Checkpoint, checkpoint
from onnx_net2net.framework.formats.state_dicts import check_output
from onnx_net2net.framework.optimizer import grow_state, output_beside, read_state, with_note, write_state
from onnx_net2net.framework.recipe import next_steps, recipe_of_entries
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.model.model import load


def run(options: argparse.Namespace) -> int:
    """Write a student's weights as a state dict, and an optimizer's state beside it."""
    if options.optimizer and not options.state_dict:
        raise BadInputError("--optimizer needs --state-dict, for the names of its parameters")
    files = [path for path in (options.teacher, options.student, options.state_dict, options.optimizer) if path]
    check_output(options.output, files)
    check_replaced(options)
    outputs = [options.output]
    if options.optimizer:
        outputs.append(output_beside(options.output))
        check_output(outputs[-1], files)
    teacher, student = load(options.teacher), load(options.student)
    result = checkpoint(teacher, student, options.state_dict, untie=options.untie)
    widths = widths_of(options, teacher, student)
    state = grow_state(read_state(options.optimizer), result) if options.optimizer else None
    beside = {outputs[-1]: partial(write_state, state)} if state is not None else None
    result.save(options.output, beside)
    if beside:
        result = with_note(result)
    advice = recipe_of_entries(result.entries, carried=state is not None)
    title = f"{(options.state_dict or options.teacher).name} -> {options.output.name}"
    record = {**_to_dict(result), **widths, "output": str(options.output), "recipe": advice.as_dict()}
    told = [_table(result, title), *result.notes, *widths.get("widths", ()), next_steps(advice)]
    return answer(options, record, told, *outputs)


COMMAND = Command(
    "teacher.onnx student.onnx --state-dict teacher.pt -o student.safetensors",
    [
        TEACHER,
        argument("student", type=Path, metavar="STUDENT", help="the model that was grown from it (.onnx)"),
        argument("--state-dict", type=Path, metavar="FILE",
                 help="the teacher's state dict: a file of PyTorch, Keras or Flax (default: names and layouts of the "
                 "graph)"),
        argument("-o", "--output", type=Path, required=True, metavar="FILE",
                 help="the file to write (.safetensors, .pt, .weights.h5, .keras, .npz or .msgpack; without a suffix: "
                 "a folder of Orbax)"),
        argument("--untie", action="store_true",
                 help="let tied weights grow differently; your class must not tie them any more"),
        argument("--optimizer", type=Path, metavar="FILE",
                 help="grow this state of the teacher's Adam, AdamW or SGD, too (.pt); it is written beside the output "
                 "(student.safetensors: student.optimizer.pt)"),
        REPORT,
        JSON,
    ],
    run,
)  # fmt: skip


def _table(checkpoint: Checkpoint, title: str) -> object:
    """Return how the entries of a state dict were found in the graph, with an example that grew for each way."""
    by_relation: dict[str, list[Entry]] = {}
    for entry in checkpoint.entries:
        by_relation.setdefault(entry.relation, []).append(entry)
    rows = []
    for relation, entries in by_relation.items():
        grown = [entry for entry in entries if entry.new != entry.old]
        largest = max(grown or entries, key=lambda entry: math.prod(entry.new))
        before, after = sum(math.prod(e.old) for e in entries), sum(math.prod(e.new) for e in entries)
        example = f"{largest.name} {shape_text(largest.old)}"
        example += f" -> {shape_text(largest.new)}" if largest.new != largest.old else ""
        rows.append(([relation, str(len(entries)), str(len(grown)), f"{before:,}", f"{after:,}", example], not grown))
    return table(title, ["in the graph", ">entries", ">grown", ">before", ">after", "for example"], rows)


def _to_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "entries": [
            {"name": entry.name, "relation": entry.relation, "constants": list(entry.constants),
             "before": list(entry.old), "after": list(entry.new), "note": entry.note or None}
            for entry in checkpoint.entries
        ],
        "notes": list(checkpoint.notes),
    }  # fmt: skip
