"""Constants of a file that a framework's class computes: they are no entries of its state dict.

A class that is made at other sizes computes them anew: the frequencies of a sinusoidal embedding, an identity matrix,
a window. If their units were copied in the file, the class would not have the copies. Exporters tell some of them:
torch's newer exporter notes what each initializer was, and what folded ones were computed from; its older one writes
parameters as initializers and other constants as Constant nodes. Where an exporter tells nothing, values that follow a
simple formula are taken to be computed; trained weights follow none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.analysis.names import is_anonymous
from onnx_net2net.graph.graph import Constant
from onnx_net2net.graph.walk import source
from onnx_net2net.rules import traits

_SPEC = "pkg.torch.export.graph_signature.InputSpec."
_ORIGINS = "pkg.onnxscript.optimizer.folded_from"

_MADE = re.compile(
    r"^_?(val|arange|linspace|logspace|eye|ones|zeros|full|empty|new|scalar_tensor|lift_fresh|clone|detach|alias|to|type_as|"
    r"tril?u?|triu|one_hot|(\w+_)?window|meshgrid|rand\w*|mul|div|add|sub|rsub|neg|pow|exp\w*|log\w*|r?sqrt|square|reciprocal|"
    r"sin\w*|cos\w*|tanh?|atan\w*|sigmoid|softmax|abs|sign|floor\w*|ceil|round|trunc|remainder|fmod|cumsum|cumprod|sum|mean|max\w*|"
    r"min\w*|clamp\w*|where|masked_fill|eq|ne|lt|le|gt|ge|logical\w*|bitwise\w*|norm|linalg\w*|matmul|mm|bmm|outer|einsum|unsqueeze|"
    r"squeeze|view|reshape|permute|transpose|t|expand\w*|repeat\w*|tile|cat|stack|slice\w*|select\w*|index\w*|gather|flip|roll|"
    r"split\w*|getitem|chunk|unbind|flatten|unflatten|pad|constant_pad_nd|diag\w*|arange_start|copy|contiguous|sym_size)"
    r"(_(like|default|copy|scalar|tensor|int|start|step|nd))*(_\d+)*$"
)
"""Names of what operators make, as torch's exporter numbers them; a parameter's has the path of its module."""

_SAMPLE = 8
"""Lines of a constant that are looked at."""

_EXACT = 3e-4
"""By what part of its largest value a line may miss a formula: single precision of sines of large angles."""


def computed(analysis: Analysis, proto: onnx.ModelProto) -> Iterator[tuple[Use, tuple[int, ...]]]:
    """Yield the reads of constants that a class computes, with the positions of the axes along which these vary."""
    told = {value.name: {entry.key: entry.value for entry in value.metadata_props} for value in proto.graph.value_info}
    kinds = {notes[f"{_SPEC}kind"] for notes in told.values() if f"{_SPEC}kind" in notes}
    has_parameters = "PARAMETER" in kinds  # modules of Keras have none: theirs are lifted as constants
    listed = proto.producer_name == "pytorch" and any(np.prod(t.dims) > 1 for t in proto.graph.initializer)
    varying: dict[int, tuple[int, ...]] = {}
    for (number, index), use in analysis.uses.items():
        if id(use.constant) not in varying:
            read, name = analysis.graph.reader(use.constant), use.constant.name
            in_node = listed and not isinstance(source(analysis.nodes[number].inputs[index], traits.RENAMES), Constant)
            sure = in_node or _is_no_entry(told.get(name, {}), has_parameters)
            is_open = sure is None and (bool(kinds) or is_anonymous(name))
            values = read() if (sure or is_open) and max((a.size for a in use.axes), default=1) > 1 else np.zeros(0)
            varies = _varying(values) if is_float(values.dtype) and values.size else ()
            varying[id(use.constant)] = varies if sure or (varies and follows_a_formula(values)) else _NONE
        if varying[id(use.constant)] is not _NONE:
            yield use, varying[id(use.constant)]


_NONE: tuple[int, ...] = (-1,)


def _is_no_entry(notes: Mapping[str, str], has_parameters: bool) -> bool | None:
    """Tell by an exporter's notes whether a constant is no entry of a state dict, None where they leave it open.

    Args:
        notes: Those of the constant.
        has_parameters: Whether the notes call any constant a parameter.
    """
    kind = notes.get(f"{_SPEC}kind")
    if kind is not None and (has_parameters or kind != "CONSTANT_TENSOR"):
        return kind == "CONSTANT_TENSOR" or (kind == "BUFFER" and notes.get(f"{_SPEC}persistent") == "False")
    try:
        origins = ast.literal_eval(notes.get(_ORIGINS, "None"))
    except (ValueError, SyntaxError):
        return None
    made = isinstance(origins, list) and all(isinstance(name, str) and _MADE.match(name) for name in origins)
    return True if made and origins else None


def _varying(values: Array) -> tuple[int, ...]:
    """Return the axes along which values are not the same."""
    return tuple(
        axis for axis, size in enumerate(values.shape)
        if size > 1 and not np.array_equal(values, np.broadcast_to(values.take([0], axis), values.shape))
    )  # fmt: skip


def follows_a_formula(values: Array) -> bool:
    """Tell whether values are zeros and ones, or along an axis follow a recurrence of few numbers.

    Such are powers and equal steps (x' = a x, x' = x + a) and sines, cosines and windows of them (x'' = a x' + b x +
    c). With lines that are longer than the numbers of the recurrence no chance makes that.
    """
    if values.size > 3 and np.isin(values.ravel()[:_SAMPLE], (0, 1)).all() and np.isin(values, (0, 1)).all():
        return True
    return any(
        size > 3 and _recurs(np.moveaxis(values, axis, 0).reshape(size, -1)) for axis, size in enumerate(values.shape)
    )


def _recurs(lines: Array) -> bool:
    """Tell whether the lines of a matrix, one a column, follow recurrences, and some are no constant."""
    lines = lines[:, :: -(-lines.shape[1] // _SAMPLE)].astype(np.float64)
    lines = lines[:, np.isfinite(lines).all(0) & (np.ptp(lines, axis=0) > 0)]
    return lines.shape[1] > 0 and all(map(_has_recurrence, lines.T))


def _has_recurrence(line: Array) -> bool:
    follows = [(line[:-1, None], line[1:]), (np.ones((len(line) - 1, 1)), np.diff(line))]
    if len(line) > 6:
        follows.append((np.stack([line[1:-1], line[:-2], np.ones(len(line) - 2)], 1), line[2:]))
    for known, wanted in follows:
        numbers = np.linalg.lstsq(known, wanted, rcond=None)[0]
        if wanted.any() and float(np.abs(known @ numbers - wanted).max()) <= _EXACT * float(np.abs(wanted).max()):
            return True
    return False
