"""One unit for each class of duplicates: weights are folded, and nodes get the numbers that they need then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import keep
from onnx_net2net.algebra.weights import fold
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.graph.edit import Version, assign
from onnx_net2net.graph.graph import Node, dtype_of
from onnx_net2net.model.model import Model
from onnx_net2net.operations.narrow.duplicates import Duplicates, axis_labels, class_count, is_first
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rewrite.sizes import resize


def merge_units(teacher: Model, analysis: Analysis, found: Duplicates) -> Model:
    """Let one unit stand for each class.

    Args:
        teacher: The model that was analysed.
        analysis: Its dims.
        found: The duplicates in it.

    Returns:
        The model without them; its weights are computed when it is saved.
    """
    maps = {dim: keep(len(own), np.flatnonzero(is_first(own))) for dim, own in found.classes.items()}
    draft = Draft.of(analysis)
    rewriting = Rewriting(draft, maps)
    for uses in draft.readings():
        if any(rewriting.grown(axis) for use in uses for axis in use.axes):
            _merge_constant(rewriting, uses, found)
    resize(teacher, rewriting)
    rewriting.clean_up()
    return draft.graph.finish()


@dataclass
class _Folding:
    """How uses of a constant are folded: the labels on each axis, and the factor for means over fewer units."""

    labels: list[np.ndarray]
    share: float
    squares: bool
    readers: list[tuple[Node, int]] = field(default_factory=list)


def _merge_constant(rewriting: Rewriting, uses: list[Use], found: Duplicates) -> None:
    """Fold a constant; uses that fold it alike share one tensor, as they did."""
    alike: dict[tuple[object, ...], _Folding] = {}
    for use in uses:
        read_at = use.node, use.input
        summed = found.summed.get(read_at, {})
        labels = [axis_labels(axis, found.classes, summed.get(p, set())) for p, axis in enumerate(use.axes)]
        shares = [class_count(own) / len(own) for p, own in enumerate(labels) if (*read_at, p) in found.means]
        folding = _Folding(labels, math.prod(shares), read_at in found.squares)
        key = folding.share, folding.squares, *(own.tobytes() for own in labels)
        alike.setdefault(key, folding).readers.append((rewriting.nodes[use.node], use.input))
    read, dtype = rewriting.graph.reader(uses[0].constant), dtype_of(uses[0].constant)
    versions = []
    for folding in alike.values():
        is_whole = all(np.array_equal(own, np.arange(len(own))) for own in folding.labels)
        compute = None if is_whole else partial(_fold_back, read, folding, dtype)
        versions.append(Version(folding.readers, [class_count(own) for own in folding.labels], compute))
    assign(rewriting.graph, uses[0].constant, versions)


def _fold_back(read: Callable[[], Array], folding: _Folding, dtype: np.dtype[Any]) -> Array:
    """Fold a constant and return it in its own type."""
    folded = fold(read(), folding.labels, folding.squares)
    return (folded if folding.share == 1 else folded * folding.share).astype(dtype, copy=False)
