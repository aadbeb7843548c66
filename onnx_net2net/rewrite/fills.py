"""Normalisers that widening filled up to whole multiples, taken for plain ones while duplicates are looked for.

Where copies stand beside single units, `normalisers.fill_up` lets a node read the single ones twice, and cuts its
result. A plain node in its place computes the same as soon as each class of duplicates is read equally often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_net2net.analysis.inference import Analysis, constant_of
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.rewrite.rewrite import drop_unread


@dataclass(frozen=True)
class Fill:
    """What a normaliser was given to read.

    Attributes:
        result: The tensor that it makes.
        source: The tensor that it reads.
        axis: Along which that was filled up.
        places: The units that it read, in their order.
    """

    result: str
    source: str
    axis: int
    places: np.ndarray


def take_off(analysis: Analysis) -> list[Fill]:
    """Let all normalisers read and make what they did before they were filled up.

    Args:
        analysis: The dims of the model; its draft is edited, and computes something else then.

    Returns:
        What was taken off.
    """
    found: list[Fill] = []
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        cuts = [tensor.outputs[0] for tensor in node.outputs if len(tensor.outputs) == 1]
        same = len(cuts) == len(node.outputs) and all(cut.op in ("Slice", "Gather") for cut in cuts)
        fills = {index: fill for index, tensor in enumerate(node.inputs) if (fill := _filled(analysis, tensor))}
        if not said.statistics or not same or 0 not in fills:
            continue
        for index, (source, _, _) in fills.items():
            node.inputs[index] = source
        results = [cut.outputs[0] for cut in cuts]
        for cut in cuts:
            cut.inputs.clear()
            cut.outputs.clear()
        node.outputs = results
        source, axis, places = fills[0]
        found.append(Fill(results[0].name, source.name, axis, places))
    drop_unread(analysis)
    return found


def _filled(analysis: Analysis, tensor: Tensor) -> tuple[Tensor, int, np.ndarray] | None:
    """Return of which tensor, along which axis, units are read more than once, and which."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or len(tensor.outputs) != 1:
        return None
    if node.op == "Gather":
        places = _constant(analysis, node.inputs[1])
        return None if places is None or places.ndim != 1 else (node.inputs[0], int(node.attrs.get("axis", 0)), places)
    if node.op != "Concat" or len(node.inputs) != 2:
        return None
    source, axis = node.inputs[0], int(node.attrs["axis"])
    again = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
    if again is None or again.op not in ("Slice", "Gather") or again.inputs[0] is not source:
        return None
    size = analysis.axes[source.name][axis].size if source.name in analysis.axes else 0
    rest = _sliced(analysis, again, axis) if again.op == "Slice" else _constant(analysis, again.inputs[1])
    constant = constant_of(source)
    size = constant.shape[axis] if constant is not None else size
    return None if rest is None or not size else (source, axis, np.concatenate([np.arange(size), rest]))


def _sliced(analysis: Analysis, node: Node, axis: int) -> np.ndarray | None:
    """Return the units that a Slice takes along one axis."""
    if len(node.inputs) == 1:
        bounds = [node.attrs[name] for name in ("starts", "ends", "axes")]
    else:
        bounds = [_constant(analysis, tensor) for tensor in node.inputs[1:4]]
    if any(bound is None or len(bound) != 1 for bound in bounds) or bounds[2][0] != axis:
        return None
    return np.arange(int(bounds[0][0]), int(bounds[1][0]))


def _constant(analysis: Analysis, tensor: Tensor) -> np.ndarray | None:
    constant = constant_of(tensor)
    return None if constant is None else np.asarray(analysis.draft.read(constant))
