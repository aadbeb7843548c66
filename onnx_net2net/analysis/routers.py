"""Routers: where copies of experts have to be masked, so that only one copy of each can be chosen.

Copies of an expert, each with a copy of the router's row, have equal scores, so that a router that chooses k experts
would choose several copies of one expert. So for each token all copies but one get a penalty. It is added to the scores
once, as early as necessary. From there on all nodes are followed: nodes that choose among experts, sum over them or
normalise over them must see only this one copy. Otherwise the growth is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.algebra.maps import NEVER
from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.analysis.modules import selected
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import label_of, source
from onnx_net2net.rules import traits

MaskedState = Literal["copy", "low", "faint", "zero", "other"]
"""What the copies that are masked for a token hold in a tensor: what the unmasked one holds; a number far below all
others; 0, where the unmasked ones are above 0; 0; or anything."""

_DEAD = ("faint", "zero")

_WAYS = traits.VIEWS | traits.CASTS | traits.COPIES
"""Operators that a mask may be put in front of instead of behind."""


_MIXES = "counts or sums along the tokens that chose an expert (its capacity): a copy gets a part of these only"


@dataclass(frozen=True)
class Mask:
    """Scores to which a penalty is added.

    Attributes:
        node: The node that makes them.
        output: Which of its outputs they are.
        layer: The layer that makes the logits, from what the router reads.
        folded: Whether the scores have other axes than the logits, in the same order.
    """

    node: int
    output: int
    layer: int
    folded: bool


def chosen_dims(analysis: Analysis) -> set[Dim]:
    """Return the dims among whose units a node chooses the largest."""
    return {
        dim
        for number, said in analysis.said.items()
        for index, position in said.choices
        for dim in leaves((analysis.input_axes(number, index) or ())[position])
    }


def last_choices(analysis: Analysis) -> dict[Dim, Tensor]:
    """Return for each dim of experts the tensor that lists the last choices among them."""
    found: dict[Dim, Tensor] = {}
    experts = chosen_dims(analysis)
    for node in analysis.nodes:
        for tensor in node.outputs if node.op in traits.WINNERS else ():
            axis = analysis.places.get(tensor.name)
            dims = leaf_set(axis) & experts if axis is not None else set()
            if len(dims) == 1 and axis is not None and axis.size == next(iter(dims)).size:
                found[dims.pop()] = tensor
    return found


def is_measured(analysis: Analysis, node: Node) -> bool:
    """Tell whether nothing is read of what a node makes but its shape."""
    readers = [(tensor, reader) for tensor in node.outputs for reader in tensor.outputs]
    return bool(readers) and all(r.op in traits.SHAPES and t.name not in analysis.kept for t, r in readers)


def routed_dims(analysis: Analysis) -> set[Dim]:
    """Return these dims, and those that count what is chosen."""
    return chosen_dims(analysis) | leaf_set(*(axis for said in analysis.said.values() for axis in said.chosen))


def find_masks(analysis: Analysis, grown: Collection[Dim]) -> list[Mask]:
    """Return where copies of experts are masked.

    Args:
        analysis: The dims.
        grown: The dims of experts that get copies.

    Raises:
        RefusedError: If masks do not make the student exact; says which node and why.
    """
    walk = _Walk(analysis, grown)
    walk.run()
    return [walk.mask(name) for name in walk.masked]


Lift = Literal["never", "below"]
"""What a bias holds for copies that nothing chooses: a logit far below all others, or what lies below all others by
more than a probability."""


def find_lifts(analysis: Analysis, grown: Collection[Dim]) -> dict[tuple[int, int], Lift]:
    """Return the biases that keep copies of experts from being chosen, as reads of constants (node, input).

    Raises:
        RefusedError: If there is none where it would take one; says which node and why.
    """
    walk = _Walk(analysis, grown, _WAYS | traits.STRICT)  # the bias of logits counts behind these as well
    walk.run()
    return dict(walk.bias(name) for name in walk.masked)


class _Walk:
    """The states of all tensors that have the dims, from the first node to the last.

    Attributes:
        masked: The tensors that a penalty is added to.
    """

    def __init__(self, analysis: Analysis, grown: Collection[Dim], ways: Collection[str] = _WAYS) -> None:
        self._analysis, self._grown, self._ways = analysis, set(grown), ways
        self._network = LayerGraph(analysis)
        self._states: dict[str, MaskedState] = {}
        self._positions: set[Dim] = set()
        self.masked: dict[str, None] = {}

    def run(self) -> None:
        """Follow the states; start again behind each mask that turns out to be needed."""
        numbers = [number for number in self._analysis.said if self._touches(number)]
        place = 0
        while place < len(numbers):
            asked = self._visit(numbers[place])
            if asked is None:
                place += 1
            else:
                self.masked[asked] = None
                place = next(p for p, number in enumerate(numbers) if asked in self._made(number))
        self._check_outputs()

    # -- the graph -----------------------------------------------------------------------------------------------

    def _has(self, *axes: Axis) -> bool:
        return not self._grown.isdisjoint(leaf_set(*axes))

    def _axes(self, number: int, index: int) -> tuple[Axis, ...]:
        return self._analysis.input_axes(number, index) or ()

    def _touches(self, number: int) -> bool:
        node = self._analysis.nodes[number]
        axes = [axis for index in range(len(node.inputs)) for axis in self._axes(number, index)]
        axes += [axis for tensor in node.outputs for axis in self._analysis.axes.get(tensor.name, ())]
        return self._has(*axes) or any(True for _ in self._listed(node))

    def _listed(self, node: Node) -> Iterator[int]:
        """Yield the inputs of a node that hold places of experts."""
        for index, tensor in enumerate(node.inputs):
            axis = self._analysis.places.get(tensor.name)
            if axis is not None and self._has(axis):
                yield index

    def _made(self, number: int) -> list[str]:
        return [tensor.name for tensor in self._analysis.nodes[number].outputs]

    def _state(self, number: int, index: int) -> MaskedState | None:
        """Return the state of an input, None where it has none of the dims."""
        if not self._has(*self._axes(number, index)):
            return None
        return self._states.get(self._analysis.nodes[number].inputs[index].name, "copy")

    def _refuse(self, number: int, why: str) -> RefusedError:
        return RefusedError(f"experts cannot get copies: {label_of(self._analysis.nodes[number])} {why}")

    # -- node by node --------------------------------------------------------------------------------------------

    def _visit(self, number: int) -> str | None:
        """Note the states of what a node makes; return a tensor that has to be masked first, if one has."""
        node, said = self._analysis.nodes[number], self._analysis.said[number]
        alone = node.op in traits.BY_PLACE or bool(said.counts) or selected(self._analysis, number) is not None
        if not alone and any(True for _ in self._listed(node)) and not is_measured(self._analysis, node):
            raise self._refuse(number, "computes with the places of experts, so that it tells copies apart")
        over = [(index, self._axes(number, index)[position]) for index, position in said.choices]
        over += [(0, axis) for axis in said.normalised]
        for index, axis in over:
            fits = ("low", "faint") if said.choices and not node.domain else ("low",)  # others normalise themselves
            if self._has(axis) and self._state(number, index) not in fits:
                return self._ask(number, index)
        for contraction in said.contractions:
            if self._has(contraction.axis):
                sides = [index for index, _ in contraction.sides]
                if not any(self._state(number, index) in _DEAD for index in sides):
                    return self._ask_for_zero(number, sides)
        state = self._result(number)
        for tensor in node.outputs:
            if self._has(*self._analysis.axes.get(tensor.name, ())):
                self._states[tensor.name] = "low" if tensor.name in self.masked else state
        return None

    def _result(self, number: int) -> MaskedState:
        """Return the state of what a node makes."""
        node, said = self._analysis.nodes[number], self._analysis.said[number]
        held = [state for index in range(len(node.inputs)) if (state := self._state(number, index))]
        if not any(self._has(*self._analysis.axes.get(name, ())) for name in self._made(number)):
            return "copy"  # nothing has the dims any more
        if said.counts:
            return "zero"
        if node.op in traits.MARKS:
            return self._written(number)
        if any(self._has(axis) for axis in said.normalised):
            return "faint" if node.op in traits.SHARES else "low"
        if not held or all(state == "copy" for state in held):
            return "copy"
        if node.op in traits.ALONE or node.op in traits.COPIES:
            return self._alone(node, held[0])
        if node.op in traits.BROADCASTING:
            return self._combined(number)
        if node.op in traits.MOVES | traits.JOINS and len(set(held)) == 1:
            return held[0]
        if said.contractions or node.op in traits.WINNERS | {"ReduceMax"}:
            return self._summed(number, held)
        raise self._refuse(number, _MIXES)

    def _written(self, number: int) -> MaskedState:
        """Return what a node leaves in the places that it does not write."""
        node = self._analysis.nodes[number]
        if node.op == "OneHot":
            values = self._analysis.sizes.values.get(node.inputs[2].name)
            return "zero" if values is not None and not values.reshape(-1)[0] else "other"
        state = self._state(number, 0)
        if state in ("low", "faint", "zero"):
            return "zero" if state == "faint" else state
        return self._filled(node.inputs[0])

    def _filled(self, tensor: Tensor) -> MaskedState:
        """Return the state of a tensor that is one number everywhere."""
        number = fill_of(self._analysis, tensor)
        return "other" if number is None else "zero" if number == 0 else "low" if number <= NEVER else "other"

    def _alone(self, node: Node, state: MaskedState) -> MaskedState:
        """Return what an operator on each unit alone makes."""
        if node.op in traits.CASTS | traits.COPIES:
            return state
        if state == "low":
            return "faint" if node.op in traits.STRICT else "zero" if node.op in traits.FADING else "other"
        keeps = self._analysis.said[self._analysis.numbers[id(node)]].pointwise in ("zero", "linear", "relu")
        is_root = node.op == "Sqrt"
        return ("faint" if is_root else "zero") if state in _DEAD and (keeps or is_root) else "other"

    def _combined(self, number: int) -> MaskedState:
        """Return what an operator on broadcast operands makes."""
        node = self._analysis.nodes[number]
        states = [self._state(number, index) for index in range(len(node.inputs))]
        if node.op == "Where":
            if states[0] in _DEAD:
                return states[2] or self._filled(node.inputs[2])
            branches = {state or self._filled(node.inputs[k]) for k, state in enumerate(states) if k}
            branches = {"zero" if state == "faint" else state for state in branches}
            return branches.pop() if len(branches) == 1 else "other"
        if node.op in traits.TERMS and (node.op in traits.SUMS or states[1] != "low"):
            if "low" in states:
                return "low"
            return "zero" if all(state in _DEAD for state in states) else "other"
        if node.op in traits.ABSORBING and any(state in _DEAD for state in states):
            return "zero"
        if node.op in traits.QUOTIENTS and states[0] in _DEAD and states[1] not in (*_DEAD, "low"):
            return "zero"
        if node.op == "Max" and all(state in (*_DEAD, "low") for state in states) and "low" not in states:
            return "zero"
        return "zero" if node.op == "Greater" and states[0] == "low" and states[1] is None else "other"

    def _summed(self, number: int, held: list[MaskedState]) -> MaskedState:
        """Return what sums and extremes over other axes make: zeros, where no token is mixed with others."""
        said = self._analysis.said[number]
        over = leaf_set(*(contraction.axis for contraction in said.contractions))
        if said.contractions and any(state in _DEAD for state in held) and over.isdisjoint(self._positions):
            return "zero"
        raise self._refuse(number, _MIXES)

    # -- masks ---------------------------------------------------------------------------------------------------

    def _ask(self, number: int, index: int) -> str:
        """Return the tensor that is masked for an input: the first that has the same scores."""
        tensor = self._analysis.nodes[number].inputs[index]
        while tensor.inputs:
            node = tensor.inputs[0]
            before = node.inputs[0] if node.op in self._ways else None
            if node.op == "Where":
                maker = self._analysis.numbers[id(node)]
                fills = [k for k in (1, 2) if not self._state(maker, k) and self._filled(node.inputs[k]) == "low"]
                before = node.inputs[3 - fills[0]] if len(fills) == 1 else None
            if before is None or not before.inputs or not self._has(*self._analysis.axes.get(before.name, ())):
                break
            tensor = before
        if tensor.name in self.masked or not tensor.inputs:
            raise self._refuse(number, "chooses among experts by scores that cannot be masked")
        self._positions |= {dim for dim in leaf_set(*self._analysis.axes[tensor.name]) - self._grown if dim.size > 1}
        return str(tensor.name)

    def _ask_for_zero(self, number: int, sides: Collection[int]) -> str:
        """Return the tensor that is masked so that a sum sees zeros: what a function like Sigmoid reads."""
        for index in sides:
            tensor = self._analysis.nodes[number].inputs[index]
            while tensor.inputs:
                node = tensor.inputs[0]
                maker = self._analysis.numbers[id(node)]
                if node.op in traits.FADING and self._state(maker, 0) != "low":
                    return self._ask(maker, 0)
                if node.op not in _WAYS:
                    break
                tensor = node.inputs[0]
        raise self._refuse(number, "sums over all experts, chosen or not")

    def mask(self, name: str) -> Mask:
        """Return the mask of a tensor.

        Raises:
            RefusedError: If no linear layer makes its scores, or in another order.
        """
        numbers = [n for n in self._analysis.said if name in self._made(n)]
        number = numbers[0]
        output = self._made(number).index(name)
        axes = self._analysis.axes[name]
        grown = self._grown & leaf_set(*axes)
        tensor = self._analysis.nodes[number].outputs[output]
        behind = {number, *(self._network.number(node) for node in self._network.behind(tensor))}
        layers = [n for n in sorted(behind) if n in self._network.layers and grown <= self._network.layers[n].makes]
        for layer in reversed(layers):
            made = self._network.axes(layer)
            if self._is_plain(layer) and _units(made) == _units(axes) and self._has(made[-1]):
                return Mask(number, output, layer, len(made) != len(axes) or made[-1].size != axes[-1].size)
        raise self._refuse(number, "makes scores of experts by other than a linear layer")

    def bias(self, name: str) -> tuple[tuple[int, int], Lift]:
        """Return the constant that is added to scores along experts, and what it holds for copies to rule them out.

        Raises:
            RefusedError: If nothing is added.
        """
        number = next(n for n in self._analysis.said if name in self._made(n))
        node = self._analysis.nodes[number]
        indices = (2,) if node.op in traits.MATRICES else range(len(node.inputs)) if node.op in traits.SUMS else ()
        for index in indices:
            use = self._analysis.uses.get((number, index))
            if use is not None and self._has(*use.axes):
                others = [source(t, _WAYS) for k, t in enumerate(node.inputs) if k != index]
                is_probability = all(t.inputs and t.inputs[0].op in traits.PROBABILITIES for t in others)
                if node.op in traits.MATRICES or not is_probability:
                    return (number, index), "never"
                self._check_only_chosen(number)
                return (number, index), "below"
        raise self._refuse(number, "has no bias that could keep copies from being chosen (--how topk)")

    def _check_only_chosen(self, number: int) -> None:
        """Refuse scores that something else than a choice reads: a little below the others is not 0 in a softmax.

        Raises:
            RefusedError: Something else reads them.
        """
        pending = list(self._analysis.nodes[number].outputs)
        while pending:
            for reader in pending.pop().outputs:
                place = self._analysis.numbers[id(reader)]
                if reader.op in traits.MOVES | {"Where"}:
                    pending += reader.outputs
                elif reader.domain or not self._analysis.said[place].choices:
                    raise self._refuse(place, "reads a bias of the choice for more than the choice (--how topk)")

    def _is_plain(self, layer: int) -> bool:
        """Tell whether a layer multiplies the last axis of what it reads."""
        (contraction, *more) = self._analysis.said[layer].contractions
        index = 1 - self._network.layers[layer].weights
        sides = dict(contraction.sides)
        return not more and sides.get(index) == len(self._axes(layer, index)) - 1

    def _check_outputs(self) -> None:
        for tensor in self._analysis.graph.outputs:
            places = self._analysis.places.get(tensor.name)
            if self._has(*self._analysis.axes.get(tensor.name, ())) or (places is not None and self._has(places)):
                raise RefusedError(f"experts cannot get copies: the model's output {tensor.name!r} tells them apart")


def _units(axes: Collection[Axis]) -> list[Dim]:
    return [dim for axis in axes for dim in leaves(axis) if dim.size > 1]
