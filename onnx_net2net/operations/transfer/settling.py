"""Which weights make a tensor hold one number everywhere, whatever the inputs of the model are.

A layer whose weights are zero returns its bias, and elementwise operators turn one number into one number. So the
search walks back from the tensor to weights: a sum is 0 if its terms are, and a gate is 1 if the bias in front of its
Sigmoid is large.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx_net2net.analysis.inference import DIVISIBLE
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node, Place, Tensor
from onnx_net2net.graph.walk import constant_of, number_in
from onnx_net2net.rules import inverses, traits

Settled = Mapping[Place, float]
"""The number that each weight holds, by the input of a node that reads it."""

_DEEPEST = 200
"""Nodes that are followed back."""


class Settling:
    """Finds the weights in some nodes of a network that make tensors one number.

    Args:
        network: The layers of the graph.
        nodes: The nodes whose weights may be set.
    """

    def __init__(self, network: LayerGraph, nodes: Collection[int]) -> None:
        self._network, self._analysis, self._inside = network, network.analysis, nodes
        self._found: dict[tuple[str, float], Settled | RefusedError] = {}
        self._depth = 0

    def settle(self, wanted: Mapping[Place, float]) -> Settled:
        """Return what makes the inputs of nodes the numbers that are wanted of them.

        Raises:
            RefusedError: If nothing does.
        """
        found: dict[Place, float] = {}
        for use, value in wanted.items():
            part = self._input(use, value)
            if any(found.get(weight, number) != number for weight, number in part.items()):
                raise RefusedError("one weight would have to hold two different numbers")
            found |= part
        return found

    def _first(self, ways: Iterable[Mapping[Place, float]]) -> Settled:
        """Return what makes inputs the numbers that are wanted in the first way in which something does."""
        refusal = RefusedError("it has no weight that could be set")
        for wanted in ways:
            try:
                return self.settle(wanted)
            except RefusedError as error:
                refusal = error
        raise refusal

    def _input(self, use: Place, value: float) -> Settled:
        """Return what makes an input of a node a number."""
        tensor = self._analysis.nodes[use[0]].inputs[use[1]]
        if constant_of(tensor) is not None:
            return self._constant(use, value)
        key = tensor.name, value
        if key not in self._found:
            self._depth += 1
            try:
                if self._depth > _DEEPEST:
                    raise RefusedError("its branch is too long to be followed")
                self._found[key] = self._made(tensor, value)
            except RefusedError as error:
                self._found[key] = error
            finally:
                self._depth -= 1
        answer = self._found[key]
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def _constant(self, use: Place, value: float) -> Settled:
        number = self._number(use)
        if number == value:
            return {}
        found = self._analysis.uses.get(use)
        if found is None or not found.constant.shape or self._analysis.graph.type_of(found.constant) not in DIVISIBLE:
            raise RefusedError(f"{self._analysis.nodes[use[0]].op} has a fixed number there")
        same = (other for other in self._analysis.uses.values() if other.constant is found.constant)
        is_matrix = sum(size > 1 for size in found.constant.shape) > 1
        if is_matrix and any(other.node not in self._inside for other in same):
            raise RefusedError(f"its weight {found.constant.name!r} is read elsewhere, too")
        return {use: value}

    def _number(self, use: Place) -> float | None:
        """Return the one number that a constant holds everywhere and no parameter is, None for all others."""
        return number_in(self._analysis.graph, self._analysis.nodes[use[0]].inputs[use[1]])

    def _made(self, tensor: Tensor, value: float) -> Settled:
        """Return what makes a computed tensor a number."""
        number = self._network.age(tensor)
        if number not in self._inside:
            raise RefusedError(f"it depends on {tensor.name}, which is computed outside")
        node = self._analysis.nodes[number]
        present = [(number, index) for index, operand in enumerate(node.inputs) if operand.name]
        if node.op in traits.NORMS:
            return self._affine(present[1:2], present[2:3], value, node)
        if number in self._network.layers and node.op in traits.LAYERS:
            weights = self._network.layers[number].weights
            return self._affine([(number, weights), (number, 1 - weights)], present[2:], value, node)
        if number in self._network.products or node.op in traits.TIMES:
            return self._product(present, value)
        if node.op in traits.TERMS | traits.QUOTIENTS and len(present) == 2:
            return self._arithmetic(node.op, present[0], present[1], value)
        if node.op == "ScatterND" and (value or node.attrs.get("reduction", "none") not in ("none", "add")):
            raise RefusedError("it writes into a tensor that may hold other numbers")
        if node.op in inverses.ALIKE or (node.op in traits.SUMS and value == 0):
            data = traits.HANDED_ON.get(node.op, traits.EVERY)
            return self.settle(dict.fromkeys([place for place in present if place[1] in data], value))
        return self._input(present[0], self._before(node, number, value))

    def _affine(self, factors: Sequence[Place], shift: Sequence[Place], value: float, node: Node) -> Settled:
        """Return a factor of zero, and a shift of the value."""
        if value and not shift:
            raise RefusedError(f"{node.op} has no bias, so that it could only be 0")
        return self._first({use: 0.0, **dict.fromkeys(shift, value)} for use in factors)

    def _arithmetic(self, op: str, one: Place, other: Place, value: float) -> Settled:
        """Return what makes a sum, a difference or a quotient a number; a bias stands second."""
        numbers = self._number(one), self._number(other)
        if op in traits.QUOTIENTS:
            return self._first([{one: value * (numbers[1] or 1.0), other: numbers[1] or 1.0},
                                *([{one: 0.0}] if value == 0 else [])])  # fmt: skip
        sign = float(traits.SIGNS.get(op, (1, 1))[1])
        ways = [{one: 0.0, other: sign * value}, {one: value, other: 0.0}]
        if numbers[1] is not None:
            ways.insert(0, {one: value - sign * numbers[1]})
        if numbers[0] is not None:
            ways.insert(0, {other: sign * (value - numbers[0])})
        return self._first(ways)

    def _product(self, uses: Sequence[Place], value: float) -> Settled:
        """Return what makes a product a number: a scale, or a factor as large as the result, the last ones first."""
        scales = [use for use in uses if use in self._analysis.uses]
        order = [*scales, *(use for use in reversed(uses) if use not in scales)]
        ways = [
            {rest: value / number} for use, rest in itertools.permutations(uses, 2) if (number := self._number(use))
        ]
        if value == 0:
            ways += [{use: 0.0} for use in order]
        elif len(uses) == 2 and uses[0][0] not in self._network.products:
            ways += [{one: value, other: 1.0} for one, other in (order, order[::-1])]
        if not ways:
            raise RefusedError("it ends in a sum of products, which could only be 0")
        return self._first(ways)

    def _before(self, node: Node, number: int, value: float) -> float:
        """Return what the first input of a node has to be, that its result is a number."""
        said = self._analysis.said.get(number)
        keeps_zero = node.op in traits.HOMOGENEOUS | traits.LINEAR or (said is not None and said.pointwise in _ZERO)
        if keeps_zero and value == 0:
            return value
        if node.op == "Clip" and self._bound(node, number, 0) <= value <= self._bound(node, number, 1):
            return value
        try:
            return inverses.before(node.op, node.attrs, value)
        except (ValueError, ZeroDivisionError):
            raise RefusedError(f"{node.op} never returns {value:g}") from None
        except KeyError:
            raise RefusedError(f"it ends in {node.op}, and nothing could make its result {value:g}") from None

    def _bound(self, node: Node, number: int, index: int) -> float:
        """Return a bound of a Clip."""
        if index + 1 < len(node.inputs) and node.inputs[index + 1].name:
            known = self._number((number, index + 1))
            return math.nan if known is None else known
        return float(node.attrs.get(("min", "max")[index], (-math.inf, math.inf)[index]))


_ZERO = ("linear", "zero", "relu")
"""Kinds of functions that make zeros of zeros; see `Op.pointwise`."""
