"""DPIAT as its authors' code has it, to compare with: dynamic programming over blocks, then centre crop and pad.

Czyzewski, Nowak, Piechowiak, "Breaking the Architecture Barrier: A Method for Efficient Knowledge Transfer Across
Networks", arXiv 2212.13970. Weights and biases of matched layers are copied, statistics of BatchNormalizations are
not, and nothing is exact: a network that is transferred to itself computes something else (`dpiat.elements`
says what its layers and blocks are in a graph).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.weights import into_middle
from onnx_net2net.errors import RefusedError
from onnx_net2net.model.history import fingerprint, record
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.transfer.dpiat.elements import (
    Element,
    Scored,
    ScoredLayer,
    ScoredWeight,
    layers_of,
    standardized,
    swapped,
)  # fmt: skip
from onnx_net2net.operations.transfer.networks import Network, Networks, Obstacle
from onnx_net2net.operations.transfer.transfer import Transfer, check_correspondence
from onnx_net2net.operations.transfer.values import Values

LayerPair: TypeAlias = tuple[ScoredLayer, ScoredLayer]
"""A layer of the source and the layer of the target that it is copied to."""

_EQUAL = 1e-9
"""Scores that differ by less are equal: they are sums of floats."""

INEXACT = Obstacle("method", "DPIAT copies what overlaps, and no statistics, whatever the networks compute")
"""What is said of every transfer."""

LIMIT = 1 << 30
"""The matching of n layers with m others looks at up to n * n * m places: with this many it takes seconds."""

_ROWS = 64
"""So many rows of a table are computed at a time: they stay in the processor's cache."""


# --- Matching ------------------------------------------------------------------------------------------------


class Matcher:
    """Aligns lists of layers and blocks; what it found for two blocks is kept for those that look the same."""

    def __init__(self) -> None:
        self._scores: dict[tuple[object, object], float] = {}

    def score(self, source: Sequence[Element], target: Sequence[Element]) -> float:
        """Return s(source -> target): the value of the best alignment."""
        return float(best_scores(self._similarities(source, target))[-1, -1])

    def pairs(self, source: Sequence[Element], target: Sequence[Element]) -> list[LayerPair]:
        """Return the matched layers, in the order of the target; a target layer has at most one source."""
        similarities = self._similarities(source, target)
        scores = best_scores(similarities)
        found: list[list[LayerPair]] = []
        i, j = len(target), len(source)
        while i and j:
            if length := run_length(similarities, scores, i, j):
                j -= 1
                matched = [t for t in range(i - length, i) if similarities[t, j] > 0]
                found += [self._matched(source[j], target[t]) for t in reversed(matched)]
                i -= length
            elif scores[i - 1, j] > scores[i, j - 1] + _EQUAL:
                i -= 1
            else:
                j -= 1
        return [pair for pairs in reversed(found) for pair in pairs]

    def _matched(self, source: Element, target: Element) -> list[LayerPair]:
        if isinstance(source, list) and isinstance(target, list):
            return self.pairs(source, target)
        assert isinstance(source, ScoredLayer)
        assert isinstance(target, ScoredLayer)
        return [(source, target)]

    def _similarities(self, source: Sequence[Element], target: Sequence[Element]) -> Array:
        """Return S as (target elements, source elements): layers by their shapes, blocks by their alignments."""
        n, m = len(target), len(source)
        if n * n * m > LIMIT:
            raise RefusedError(f"DPIAT's matching of {m:,} with {n:,} layers takes too long: its time is cubic")
        similarities = np.zeros((n, m))
        for kind, rank in {(e.kind, len(e.shape)) for e in source if isinstance(e, ScoredLayer)}:
            columns, old = _shapes(source, kind, rank)
            rows, new = _shapes(target, kind, rank)
            ratios = new[:, None] / old
            similarities[np.ix_(rows, columns)] = np.minimum(ratios, 1 / ratios).prod(2)
        for column, one in enumerate(source):
            for row, other in enumerate(target):
                if isinstance(one, list) and isinstance(other, list):
                    similarities[row, column] = self._block_score(one, other)
        return similarities

    def _block_score(self, source: Sequence[Element], target: Sequence[Element]) -> float:
        key = _looks(source), _looks(target)
        if key not in self._scores:
            self._scores[key] = self.score(source, target)
        return self._scores[key]


def _shapes(elements: Sequence[Element], kind: str, rank: int) -> tuple[list[int], Array]:
    """Return where the layers of a kind are, and the shapes of their weights as (layers, rank)."""
    found = {
        i: e.shape
        for i, e in enumerate(elements)
        if isinstance(e, ScoredLayer) and (e.kind, len(e.shape)) == (kind, rank)
    }
    return list(found), np.array(list(found.values()), np.float64).reshape(-1, rank)


def _looks(elements: Sequence[Element]) -> tuple[object, ...]:
    """Return all of a block that scores depend on."""
    return tuple(
        _looks(element) if isinstance(element, list) else element and (element.kind, element.shape)
        for element in elements
    )


def best_scores(similarities: Array) -> Array:
    """Align in order: each source element serves at most one run of target elements, d of them at weight 1/sqrt(d).

        F[i, j] = max(F[i - 1, j], F[i, j - 1], max_k F[k - 1, j - 1] + sum(S[k..i, j]) / sqrt(i - k + 1))

    Args:
        similarities: S, float64, (target elements n, source elements m), not negative.

    Returns:
        F, float64, (n + 1, m + 1).
    """
    n, m = similarities.shape
    scores = np.zeros((n + 1, m + 1))
    known: dict[bytes, list[tuple[slice, Array, Array]]] = {}
    for j in range(1, m + 1):
        column, before = similarities[:, j - 1], scores[:, j - 1]
        best = before.copy()
        places = np.flatnonzero(column)  # a run that starts or ends in a zero is worse than without it
        sums, gains = np.concatenate([[0.0], np.cumsum(column)]), before[places]
        if places.tobytes() not in known:
            known[places.tobytes()] = _discounts(places)
        for rows, discounts, barred in known[places.tobytes()]:
            ends, starts = places[rows] + 1, places[: rows.stop]
            values = np.subtract.outer(sums[ends], sums[starts])
            values *= discounts
            values += barred
            values += gains[: rows.stop]
            best[ends] = np.maximum(best[ends], values.max(1))
        scores[:, j] = np.maximum.accumulate(best)
    return scores


def _discounts(places: Array) -> list[tuple[slice, Array, Array]]:
    """Return 1/sqrt(d) of the runs between places, and what bars those that end before they start, row by row."""
    found = []
    for first in range(0, len(places), _ROWS):
        rows = slice(first, min(first + _ROWS, len(places)))
        lengths = places[rows, None] + 1 - places[: rows.stop]
        found.append((rows, 1 / np.sqrt(np.maximum(lengths, 1)), np.where(lengths > 0, 0.0, -np.inf)))
    return found


def run_length(similarities: Array, scores: Array, i: int, j: int) -> int:
    """Return how long the run is that ends in target element i and has source element j; 0 if one is skipped.

    Of equal values the alignment that skips wins over the run, and the shorter run over the longer one.
    """
    lengths = np.arange(1, i + 1)
    values = scores[i - lengths, j - 1] + np.cumsum(similarities[:i, j - 1][::-1]) / np.sqrt(lengths)
    if values.max() <= max(scores[i - 1, j], scores[i, j - 1]) + _EQUAL:
        return 0
    return int(np.argmax(values >= values.max() - _EQUAL)) + 1


def network_similarity(one: Sequence[Element], other: Sequence[Element]) -> float:
    """Return sqrt(s(A->B) s(B->A) / (s(A->A) s(B->B))), which is in [0, 1]; 0 where either has no layer.

    s(A->A) is the number of layers of A: each layer counts 1, whatever its size.
    """
    counts = len(layers_of(one)) * len(layers_of(other))
    if not counts:
        return 0.0
    matcher = Matcher()
    return min(1.0, math.sqrt(matcher.score(one, other) * matcher.score(other, one) / counts))


# --- Copying -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopiedWeight:
    """A weight or bias that was copied.

    Attributes:
        source: The teacher's.
        target: The target's.
    """

    source: ScoredWeight
    target: ScoredWeight

    @property
    def name(self) -> str:
        """The tensor of the target."""
        return self.target.name

    @property
    def filled(self) -> int:
        """How many elements of the target's come from the teacher."""
        return math.prod(map(min, self.source.shape, self.target.shape))


@dataclass(frozen=True)
class DpiatTransfer(Transfer):
    """A target that was filled from a teacher by DPIAT.

    Attributes:
        similarity: DPIAT's symmetric similarity of the two.
        pairs: The matched layers, the teacher's first, in the order of the target.
        copies: What was copied.
    """

    similarity: float
    pairs: tuple[LayerPair, ...]
    copies: tuple[CopiedWeight, ...]

    @property
    def filled(self) -> float:
        """Share of the target's float elements that come from the teacher."""
        return sum(copy.filled for copy in self.copies) / sum(math.prod(source.shape) for source in self.sources)


def transfer_dpiat(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model, target: str | os.PathLike[str] | onnx.ModelProto | Model
) -> DpiatTransfer:
    """Fill a target from a teacher as DPIAT does (clip, DP, blocks): weights and biases of the matched layers.

    Running means and variances of BatchNormalizations are not copied, nor are LayerNormalizations, embeddings and bare
    parameters; what is not copied keeps the target's values. The student does not compute what the teacher computes.

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        target: The same, of any architecture.

    Raises:
        BadInputError: If a model cannot be used.
        RefusedError: If no layer of the teacher matches one of the target, or they have other inputs or outputs.
    """
    old, new = load(teacher), load(target)
    check_correspondence(old.proto.graph, new.proto.graph)
    networks = Networks(Network(old), Network(new))
    one, other = elements_of(*map(Scored, networks))
    pairs = Matcher().pairs(one, other)
    if not pairs:
        raise RefusedError(f"DPIAT matches no layer: the teacher has {_kinds(one)}, the target {_kinds(other)}")
    values = Values(networks.target)
    both = [pair for old, new in pairs for pair in ((old.weight, new.weight), (old.bias, new.bias))]
    copies = [CopiedWeight(given, taken) for given, taken in both if given is not None and taken is not None]
    for copy in copies:
        _copy(networks, values, copy)
    sources = tuple(values.write())
    opened = networks.target.opened
    metadata = record(old, "transfer", {"method": "dpiat"}, {"filled": fingerprint(new), **opened.notes()})
    student = opened.close(networks.target.analysis.graph.finish(metadata))
    alike = network_similarity(one, other)
    return DpiatTransfer(old, new, student, sources, (INEXACT,), 0, alike, tuple(pairs), tuple(copies))


def elements_of(source: Scored, target: Scored) -> tuple[list[Element], list[Element]]:
    """Return layers and blocks of two graphs: by modules where the names of both tell them, else by the graphs."""
    trees = source.tree(), target.tree()
    if source.exporter == target.exporter and trees[0] is not None and trees[1] is not None:
        return standardized(trees[0]), standardized(trees[1])
    return source.elements(), target.elements()


def _kinds(elements: Sequence[Element]) -> str:
    return ", ".join(sorted({layer.kind for layer in layers_of(elements)})) or "none that DPIAT knows"


def _copy(networks: Networks, values: Values, copy: CopiedWeight) -> None:
    """Give the target's weight the teacher's values where the two overlap."""
    given, taken = copy.source, copy.target
    read, factor = networks.teacher.reader(given.parameter), given.factor / taken.factor
    assert read is not None  # nothing has been grown

    def compute() -> Array:
        own, old = taken.turned(values.initial(taken.parameter)), given.turned(read())
        made = into_middle(old if factor == 1 else old * np.asarray(factor, old.dtype), own)
        return swapped(made, taken.groups) if taken.groups else made

    values.put(taken.parameter, (taken.parameter.use,), compute, "teacher", given.name, uses=taken.uses)
