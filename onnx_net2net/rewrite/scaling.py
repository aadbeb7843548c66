"""Padding without another epsilon: the units of a padded dim are scaled instead.

Let the fraction s of the units be no padding. Then a variance or mean square is s times as large as without padding.
`widen` corrects the epsilon of the normaliser for that, but a class made at the new size has the old epsilon. If all
weights that make the units are scaled by a = s ** -0.5, the statistic is the same as before, and the epsilon fits. The
normalised units are then a times as large, and the scale of the normaliser is divided by a. Most networks admit that:
between the normalisations of a residual stream there are only sums and layers of weights.

Each tensor has an exponent e: the student's values in it are a ** e times the teacher's. The nodes relate the exponents
of their inputs and outputs, and factors of constants do the rest. A decomposed normalisation needs no special case:
x * x has twice the exponent of x, and a mean over padded units subtracts two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx_net2net.algebra.dims import Dim, leaves
from onnx_net2net.algebra.maps import Growth
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.padding import State, follow
from onnx_net2net.analysis.ties import Ties
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Place, Tensor
from onnx_net2net.graph.walk import constant_of, label_of, made_by, number_in
from onnx_net2net.rules import traits


@dataclass
class Scaling:
    """How a network is scaled.

    Attributes:
        factors: What constants are multiplied by, by the input of the node that reads them.
        unweighed: Nodes that take a mean over padded units, which needs no correction.
    """

    factors: dict[Place, float] = field(default_factory=dict)
    unweighed: set[int] = field(default_factory=set)


def rescale(analysis: Analysis, growth: Growth, pads: dict[Dim, State], ties: Ties | None = None) -> Scaling:
    """Find the factors of the weights around padded dims.

    Args:
        analysis: The dims.
        growth: How they grow.
        pads: Those that are padded, with what their padding units hold.
        ties: What else changes for tied weights.

    Raises:
        RefusedError: If something between two normalisations cannot be scaled; says what.
    """
    scaling = Scaling()
    for dim, held in pads.items():
        scale = float((growth[dim].kind == 0).mean()) ** -0.5
        stream = _Stream(analysis, dim, held, ties or Ties())
        for use, exponent in stream.solve().items():
            scaling.factors[use] = scaling.factors.get(use, 1.0) * scale**exponent
        scaling.unweighed |= stream.means
    return scaling


class _Stream:
    """The exponents that one dim asks for."""

    def __init__(self, analysis: Analysis, dim: Dim, held: State, ties: Ties) -> None:
        self._ties = ties
        self._analysis, self._dim, self._held = analysis, dim, held
        self._known: dict[str, float] = {}
        self._sizes = {name for name, value in analysis.sizes.values.items() if value.size == 1}
        self._queue: list[int] = []
        padding = follow(analysis, {dim: held})
        self._states, self._is_noticed = padding.states, bool(padding.noticed)
        self._readers: dict[str, list[int]] = {}
        for number, node in enumerate(analysis.nodes):
            for tensor in (*node.inputs, *node.outputs, *self._looked_up(number)):
                self._readers.setdefault(tensor.name, []).append(number)
        self.means: set[int] = set()

    def solve(self) -> dict[Place, float]:
        """Return the exponents of constants."""
        graph = self._analysis.graph
        for tensor in (*graph.inputs, *graph.outputs):
            self._known[tensor.name] = 0.0
        for number, said in self._analysis.said.items():
            node = self._analysis.nodes[number]
            if any(self._dim in leaves(axis) for c in said.contractions if c.law == "mean" for axis in (c.axis,)):
                self.means.add(number)
            for statistic in said.statistics:
                if any(self._dim in leaves(axis) for axis in statistic.axes):
                    for index in statistic.inputs:
                        if index < len(node.inputs) and node.inputs[index].name:
                            self._set(node.inputs[index], 1.0, number)
        for number in sorted(self.means):
            self._queue.append(number)
            self._squares(number)
        self._spread()
        while (tensor := self._undecided()) is not None:
            self._set(tensor, 0.0, -1)
            self._spread()
        if self._is_noticed:
            raise RefusedError(f"a normalization would notice padding that holds {self._held} values")
        return {use: e for use, e in self._constants() if e}

    def _squares(self, number: int) -> None:
        """Keep a mean of squares over the dim, as an epsilon is added to it: x has exponent 1."""
        node = self._analysis.nodes[number]
        if not self._is_centred(node.inputs[0]) and node.op in traits.AVERAGES:
            return
        self._set(node.outputs[0], 0.0, number)

    # -- what nodes say ----------------------------------------------------------------------------------------

    def _spread(self) -> None:
        while self._queue:
            self._relate(self._queue.pop())

    def _exponent(self, tensor: Tensor) -> float | None:
        return self._known.get(tensor.name)

    def _set(self, tensor: Tensor, exponent: float, number: int) -> None:
        """State an exponent."""
        known = self._known.get(tensor.name)
        if known is None:
            self._known[tensor.name] = exponent
            self._queue += self._readers.get(tensor.name, ())
        elif not math.isclose(known, exponent, abs_tol=1e-9):
            raise RefusedError(
                f"{label_of(self._analysis.nodes[number])} cannot be scaled, and padding for a normalisation that "
                "keeps its epsilon needs that"
            )

    def _data(self, number: int) -> list[Tensor]:
        """Return the inputs of a node that have values of activations: no constants, and no sizes.

        What an expanded constant holds is known, too, where it is small; it is scaled like any other.
        """
        node = self._analysis.nodes[number]
        inputs = node.inputs[:1] if node.op in traits.CASTS else node.inputs
        floats = [t for t in inputs if t.name and self._analysis.sizes.dtype(t.name) in DIVISIBLE]
        return [t for t in floats if constant_of(t) is None and t.name not in self._sizes]

    def _relate(self, number: int) -> None:
        node, said = self._analysis.nodes[number], self._analysis.said.get(number)
        if node.op in traits.SHAPES or said is None or not node.outputs:
            return
        data, result = self._data(number), node.outputs[0]
        if any(self._dim in leaves(axis) for statistic in said.statistics for axis in statistic.axes):
            for statistic in said.statistics:
                if statistic.total is not None and statistic.total < len(node.outputs):
                    self._equal([node.inputs[i] for i in statistic.inputs], node.outputs[statistic.total], number)
            return
        if said.contractions:
            self._relate_sum(number, data, result)
        elif node.op in traits.FACTORS:
            self._relate_product(number, result, traits.DEGREES[node.op][1])
        elif node.op == "Pow" and (power := self._power(number)) is not None:
            self._scale(data[0], result, power, number)
        elif len(traits.DEGREES.get(node.op, ())) == 1:
            self._scale(data[0], result, traits.DEGREES[node.op][0], number)
        elif node.op in traits.HOMOGENEOUS or said.pointwise in ("linear", "relu"):
            for output in node.outputs:
                self._equal(data, output, number)
        elif any(self._exponent(t) for t in (*data, *node.outputs)):
            for tensor in (*data, *node.outputs):
                self._set(tensor, 0.0, number)

    def _equal(self, data: list[Tensor], result: Tensor, number: int) -> None:
        tensors = [t for t in (*data, result) if t.name]
        known = next((e for t in tensors if (e := self._exponent(t)) is not None), None)
        if known is not None:
            for tensor in tensors:
                self._set(tensor, known, number)

    def _scale(self, source: Tensor, result: Tensor, power: float, number: int) -> None:
        before, after = self._exponent(source), self._exponent(result)
        if before is not None:
            self._set(result, before * power, number)
        elif after is not None:
            self._set(source, after / power, number)

    def _power(self, number: int) -> float | None:
        """Return the constant that a tensor is raised to."""
        return number_in(self._analysis.graph, self._analysis.nodes[number].inputs[1])

    def _relate_product(self, number: int, result: Tensor, sign: float) -> None:
        """Add up the exponents of factors; a vector with more than one number can have any."""
        node = self._analysis.nodes[number]
        if self._vector(number) is not None:
            return
        signs = [(t, s) for t, s in zip(node.inputs, (1, sign), strict=True) if constant_of(t) is None]
        signs = [(t, s) for t, s in signs if t.name not in self._analysis.sizes.values]
        unknown = [(t, s) for t, s in (*signs, (result, -1)) if self._exponent(t) is None]
        total = sum((self._exponent(t) or 0.0) * s for t, s in (*signs, (result, -1)))
        if len({t.name for t, _ in unknown}) == 1:
            times = sum(s for _, s in unknown)
            if times:
                self._set(unknown[0][0], -total / times, number)
        elif not unknown and not math.isclose(total, 0, abs_tol=1e-9):
            self._set(result, (self._exponent(result) or 0.0) + total, number)

    def _vector(self, number: int) -> int | None:
        """Return the input of a product or quotient that is a vector of parameters."""
        for index, tensor in enumerate(self._analysis.nodes[number].inputs):
            constant = constant_of(tensor)
            if constant is not None and math.prod(constant.shape) > 1:
                return index
        return None

    def _relate_sum(self, number: int, data: list[Tensor], result: Tensor) -> None:
        """Relate products of activations, and means; weights can have any exponent."""
        looked_up = self._looked_up(number)
        if looked_up:
            data = [*(tensor for tensor in data if not self._is_weight(number, tensor)), *looked_up]
        elif self._weights(number) is not None:
            return
        if number in self.means and len(data) == 1:
            centred = self._is_centred(data[0])
            kept = self._held == "mean" and self._states.get(data[0].name, {}).get(self._dim) == "mean"
            if not kept and not centred:
                node = self._analysis.nodes[number]
                raise RefusedError(f"{node.op} {node.name!r} takes a mean over padding that may not hold zeros")
            loss = 2.0 if centred else 0.0
            before, after = self._exponent(data[0]), self._exponent(result)
            if before is not None:
                self._set(result, before - loss, number)
            elif after is not None:
                self._set(data[0], after + loss, number)
            return
        unknown = [t for t in (*data, result) if self._exponent(t) is None]
        known = sum(self._exponent(t) or 0.0 for t in data)
        if not unknown or unknown == [result]:
            self._set(result, known, number)
        elif len(unknown) == 1:
            self._set(unknown[0], (self._exponent(result) or 0.0) - known, number)

    def _looked_up(self, number: int) -> list[Tensor]:
        """Return what is looked up in the table that a layer's weights are tied to, and has the exponent of these."""
        if number not in self._ties.rescaled or (index := self._weights(number)) is None:
            return []
        source = self._source(number, index)
        table = self._ties.tied.get(source) if source is not None else None
        node = self._analysis.nodes[table[0]] if table is not None and table != source else None
        return list(node.outputs) if node is not None and (node.op, 0) in traits.TABLES else []

    def _is_centred(self, tensor: Tensor) -> bool:
        """Tell whether padding units hold zero in a tensor: squares of them, or what is left of the mean."""
        while True:
            if self._states.get(tensor.name, {}).get(self._dim) == "zero":
                return True
            node = made_by(tensor, traits.DISTANCES)
            if node is None:
                return False
            if node.op == "Sub":
                break
            tensor = node.inputs[0]
        mean = made_by(node.inputs[1], traits.AVERAGES)
        return mean is not None and mean.inputs[0] is node.inputs[0]

    def _weights(self, number: int) -> int | None:
        """Return the input of a layer that holds its weights."""
        for contraction in self._analysis.said[number].contractions:
            for index, _ in contraction.sides:
                if self._analysis.is_derived(number, index):
                    return index
        return None

    # -- the rest ----------------------------------------------------------------------------------------------

    def _undecided(self) -> Tensor | None:
        """Return a tensor of unknown exponent that a product relates to scaled ones."""
        for number, node in enumerate(self._analysis.nodes):
            if node.op in traits.FACTORS and self._vector(number) is None and node.outputs:
                tensors = [t for t in (*self._data(number), node.outputs[0]) if t.name]
                unknown = [t for t in tensors if self._exponent(t) is None]
                if unknown and any(self._exponent(t) for t in tensors):
                    return unknown[0]
        return None

    def _constants(self) -> Iterator[tuple[Place, float]]:
        """Yield the exponent of each constant that has one."""
        for number, node in enumerate(self._analysis.nodes):
            said = self._analysis.said.get(number)
            if said is None or not node.outputs:
                continue
            after = self._exponent(node.outputs[0]) or 0.0
            before = sum(self._exponent(t) or 0.0 for t in self._data(number) if not self._is_weight(number, t))
            normalises = any(self._dim in leaves(axis) for s in said.statistics for axis in s.axes)
            for index, tensor in enumerate(node.inputs):
                if index == self._weights(number) and (source := self._source(number, index)) is not None:
                    yield source, after - before
                    continue
                constant = constant_of(tensor)
                if constant is None or (number, index) not in self._analysis.uses:
                    continue
                if normalises:
                    yield (number, index), after  # gamma has been corrected for the padding already
                elif node.op in traits.FACTORS and index == self._vector(number):
                    yield (number, index), (after - before) * traits.DEGREES[node.op][1]
                elif after and (said.contractions or node.op in traits.HOMOGENEOUS) and self._is_value(number, index):
                    if math.prod(constant.shape) == 1:
                        raise RefusedError(f"{node.op} {node.name!r} adds a number to what would have to be scaled")
                    yield (number, index), after

    def _source(self, number: int, index: int) -> Place | None:
        """Return the constant that an input is a rearrangement of."""
        while (number, index) not in self._analysis.uses:
            tensor = self._analysis.nodes[number].inputs[index]
            if not tensor.inputs or len(tensor.inputs[0].inputs) < 1:
                return None
            number, index = self._analysis.numbers[id(tensor.inputs[0])], 0
        return number, index

    def _is_weight(self, number: int, tensor: Tensor) -> bool:
        index = self._weights(number)
        return index is not None and self._analysis.nodes[number].inputs[index] is tensor

    def _is_value(self, number: int, index: int) -> bool:
        """Tell whether a constant is data, and no list of sizes or mask."""
        return self._analysis.sizes.dtype(self._analysis.nodes[number].inputs[index].name) in DIVISIBLE
