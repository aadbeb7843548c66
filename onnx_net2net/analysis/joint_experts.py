"""Copies of experts that are chosen together: a router that chose k experts chooses all m copies of each, m k in all.

Then only weights and the number k change, so that a class of a framework can follow. The copies of an expert together
must count as the expert did. A softmax over all or over the chosen experts gives each copy an m-th part. So does a
division of the gates by their sum, which is m times as large. Where gates are neither, the results of the experts are
divided instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.multipliers import number_of
from onnx_net2net.analysis.routers import is_measured
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node, Place
from onnx_net2net.graph.walk import label_of
from onnx_net2net.rules import traits

ExpertState = Literal["same", "whole", "shared", "times", "marks", "marked"]
"""What a tensor holds in the student. "same": the teacher's values, without a dim of experts. "whole": for each copy
the value of its expert. "shared": for each copy an m-th part of that value. "times": m times the teacher's values.
"marks": for each chosen copy a mark (one-hot) at this copy. "marked": such marks times shared values."""

_TINY = 1e-9
"""Numbers that are added to sums of gates so that nothing is divided by 0."""


@dataclass
class JointExperts:
    """What else changes where copies of experts are chosen together.

    Attributes:
        chosen: The dims that run over the chosen experts (k); they grow by the number of copies.
        parted: The weights of the experts' last layers: copies can differ there, as long as the differences cancel.
        divided: The constants that are divided by the number of copies.
        grouped: Whether groups of experts are chosen by the sum of a fixed number of scores in each.
    """

    chosen: set[Dim] = field(default_factory=set)
    parted: set[Place] = field(default_factory=set)
    divided: set[Place] = field(default_factory=set)
    grouped: bool = False


def find_joint_experts(analysis: Analysis, grown: Collection[Dim]) -> JointExperts:
    """Return what changes where all copies of an expert are chosen together.

    Args:
        analysis: The dims.
        grown: The dims of experts that get copies, each as many.

    Raises:
        RefusedError: If the copies together do not count as one expert did; says which node and why.
    """
    walk = _Walk(analysis, grown)
    for number in analysis.said:
        walk.visit(number)
    for tensor in analysis.graph.outputs:
        if walk.states.get(tensor.name, "same") != "same" or tensor.name in walk.listed:
            raise RefusedError(f"experts cannot get copies: the model's output {tensor.name!r} tells them apart")
    if not walk.found.parted:
        raise RefusedError("experts cannot get copies: no sum over those chosen was found")
    return walk.found


class _Walk:
    """The states of all tensors, from the first node to the last; those that have none are "same"."""

    def __init__(self, analysis: Analysis, grown: Collection[Dim]) -> None:
        self._analysis, self._experts = analysis, set(grown)
        self.found = JointExperts()
        self.states: dict[str, ExpertState] = {}
        self.listed: set[str] = set()

    def _has(self, *axes: Axis) -> bool:
        return not (self._experts | self.found.chosen).isdisjoint(leaf_set(*axes))

    def _state(self, number: int, index: int) -> ExpertState:
        name = self._analysis.nodes[number].inputs[index].name
        if name in self.states and (number, index) not in self._analysis.uses:
            return self.states[name]
        return "whole" if self._has(*(self._analysis.input_axes(number, index) or ())) else "same"

    def _refuse(self, number: int, why: str) -> RefusedError:
        label = label_of(self._analysis.nodes[number])
        return RefusedError(f"experts cannot get copies that are chosen together: {label} {why}")

    def visit(self, number: int) -> None:
        """Note the states of what a node makes."""
        node, said = self._analysis.nodes[number], self._analysis.said[number]
        if is_measured(self._analysis, node):
            return
        held = [self._state(number, index) for index in range(len(node.inputs)) if node.inputs[index].name]
        places = [self._analysis.places.get(tensor.name) for tensor in node.inputs]
        reads_places = any(axis is not None and not self._experts.isdisjoint(leaf_set(axis)) for axis in places)
        if reads_places and node.op not in traits.BY_PLACE and not said.counts:
            raise self._refuse(number, "computes with their places")
        if (all(state == "same" for state in held) and not reads_places) or node.op in traits.SHAPES:
            return
        state = self._choice(number) if said.choices else self._made(number, held)
        for tensor in node.outputs:
            if state != "same" or self._has(*self._analysis.axes.get(tensor.name, ())):
                self.states[tensor.name] = state

    def _choice(self, number: int) -> ExpertState:
        """Return the state of what a node chooses; it chooses all copies."""
        node, ((index, position), *_) = self._analysis.nodes[number], self._analysis.said[number].choices
        state, axis = self._state(number, index), (self._analysis.input_axes(number, index) or ())[position]
        if self._experts.isdisjoint(leaf_set(axis)):
            if state in ("same", "times"):
                self.found.grouped |= state == "times" and axis.size > 1  # one group is always chosen
                return state
            raise self._refuse(number, "chooses for each copy alone")
        if node.domain:
            raise self._refuse(number, "chooses and sums in one, and does not tell what (--how split)")
        chosen = self._analysis.axes[node.outputs[0].name][position] if node.op == "TopK" else None
        if chosen is None or chosen.size == 1:
            raise self._refuse(number, "chooses one expert, where copies tie (--how lift or split)")
        why = next((dim.fixed for dim in leaves(chosen) if dim.fixed), "")
        if why:
            raise self._refuse(number, f"chooses so many experts always: {why} (--how lift or split)")
        self.found.chosen |= leaf_set(chosen)
        return state

    def _made(self, number: int, held: list[ExpertState]) -> ExpertState:
        """Return the state of what any other node makes."""
        node, said = self._analysis.nodes[number], self._analysis.said[number]
        if node.op == "OneHot" or said.counts:
            return "marks"
        if any(self._has(axis) for axis in said.normalised):
            if node.op not in traits.SHARES or held[0] != "whole":
                raise self._refuse(number, "normalises over copies in a way that is not known")
            return "shared"
        over = [c for c in said.contractions if self._has(c.axis)]
        if over:
            return self._summed(number, over[0].law, [self._state(number, side) for side, _ in over[0].sides])
        if node.op == "ReduceMax" and set(held) <= {"whole", "same"}:
            gone = not self._has(*self._analysis.axes.get(node.outputs[0].name, ()))
            return "same" if gone else "whole"
        if node.op in traits.PICKS:
            return held[0]
        if node.op in traits.MARKS:
            return self._written(number)
        if node.op in traits.MOVES | traits.JOINS | traits.COPIES | {"Neg"}:
            if len({state for state in held if state != "same"}) == 1:
                return next(state for state in held if state != "same")
            raise self._refuse(number, "joins values that copies share with others")
        if said.contractions or node.op in traits.FACTORS:
            return self._product(number, held)
        if node.op in traits.TERMS:
            return self._sum(number, held)
        if set(held) <= {"whole", "same"}:
            return "whole"
        raise self._refuse(number, "is no linear function of what copies share")

    def _written(self, number: int) -> ExpertState:
        """Return the state of zeros into which something is written at the places of experts."""
        if fill_of(self._analysis, self._analysis.nodes[number].inputs[0]) == 0:
            return self._state(number, 2)
        if {self._state(number, 0), self._state(number, 2)} <= {"whole", "same"}:
            return "whole"
        raise self._refuse(number, "writes what copies share between other things")

    def _product(self, number: int, held: list[ExpertState]) -> ExpertState:
        """Return the state of a product or a quotient."""
        if self._analysis.nodes[number].op in traits.QUOTIENTS and held[1] != "same":
            if held[0] in ("whole", "times") and held[1] == "times":
                return "shared" if held[0] == "whole" else "same"
            if held == ["whole", "whole"]:
                return "whole"
        elif {"marks", "marked"} & set(held):
            if held.count("marks") + held.count("marked") + held.count("shared") + held.count("times") == 1:
                return "marked" if "marked" in held else "marks"
            if sorted(held) == ["marks", "shared"]:
                return "marked"
        else:
            factors = [state for state in held if state not in ("same", "whole")]
            if not factors:
                return "whole"
            if len(factors) == 1 and (factors[0] == "shared" or "whole" not in held):
                return factors[0]
        raise self._refuse(number, "multiplies what copies share by one another")

    def _sum(self, number: int, held: list[ExpertState]) -> ExpertState:
        """Return the state of a sum, beside which numbers that are next to nothing do not count."""
        node = self._analysis.nodes[number]
        numbers = [number_of(self._analysis, tensor) for tensor in node.inputs]
        counted = {state for state, value in zip(held, numbers, strict=True) if value is None or abs(value) > _TINY}
        if counted <= {"whole", "same"}:
            return "whole"
        if len(counted) == 1:
            return counted.pop()
        raise self._refuse(number, "adds values that copies share to others")

    def _summed(self, number: int, law: str, sides: list[ExpertState]) -> ExpertState:
        """Return the state of a sum over copies."""
        left = self._has(*self._analysis.axes.get(self._analysis.nodes[number].outputs[0].name, ()))
        shared = sides.count("shared")
        if left and {"marks", "marked"} & set(sides) and law == "sum":
            product = self._product(number, sides)
            return "whole" if product == "marks" else "shared"
        if {"marks", "marked"} & set(sides):
            raise self._refuse(number, "sums marks of copies in a way that is not known")
        if law != "sum" or left or shared > 1:
            raise self._refuse(number, "sums over copies in a way that is not known")
        weights, biases = self._last_layers(number, range(len(self._analysis.nodes[number].inputs)))
        self.found.parted |= weights
        if shared:
            return "same"
        dtypes = {self._analysis.sizes.dtype(self._analysis.uses[place].constant.name) for place in weights | biases}
        if not weights or not dtypes.issubset(DIVISIBLE):  # integers cannot be divided by how many copies there are
            return "times"
        self.found.divided |= weights | biases
        return "same"

    # -- the last layers of the experts ----------------------------------------------------------------------------

    def _last_layers(self, number: int, indices: Iterable[int]) -> tuple[set[Place], set[Place]]:
        """Return the stacks of weights and of biases that what a sum reads is linear in, none if in none."""
        for index in indices:
            found = self._linear_in(number, index, False)
            if found is not None and found[0]:
                return found
        return set(), set()

    def _linear_in(self, number: int, index: int, in_layer: bool) -> tuple[set[Place], set[Place]] | None:
        """Return the stacks in which an input is linear, as weights of a layer or as biases; None if it is in none."""
        use = self._analysis.uses.get((number, index))
        if use is not None:
            place = {(number, index)}
            has = not self._experts.isdisjoint(leaf_set(*use.axes))
            return ((place, set()) if in_layer else (set(), place)) if has else None
        tensor = self._analysis.nodes[number].inputs[index]
        maker = self._analysis.numbers.get(id(tensor.inputs[0]), -1) if tensor.inputs else -1
        if maker not in self._analysis.said:
            return None
        node, said = self._analysis.nodes[maker], self._analysis.said[maker]
        if node.op in traits.MOVES | traits.COPIES:
            return self._linear_in(maker, 0, in_layer)
        if node.op in traits.SUMS:
            return _all(self._linear_in(maker, i, in_layer) for i in range(len(node.inputs)))
        if in_layer or not (said.contractions or node.op in traits.FACTORS):
            return None
        return self._of_layer(maker, node)

    def _of_layer(self, number: int, node: Node) -> tuple[set[Place], set[Place]] | None:
        """Return the stacks of a layer, or those that one factor of a product is linear in."""
        sides = range(1 if node.op in traits.QUOTIENTS else 2)
        if self._analysis.said[number].contractions:
            found = next((one for i in sides if (one := self._linear_in(number, i, True)) is not None), None)
            if found is not None and node.op in traits.MATRICES and len(node.inputs) > 2:
                return _all((found, self._linear_in(number, 2, False)))
            if found is not None:
                return found
        return next((one for i in sides if (one := self._linear_in(number, i, False)) is not None), None)


def _all(parts: Iterable[tuple[set[Place], set[Place]] | None]) -> tuple[set[Place], set[Place]] | None:
    """Return the stacks of all parts of a sum; None if one of them is linear in none."""
    known = list(parts)
    if any(part is None for part in known):
        return None
    return set().union(*(part[0] for part in known if part)), set().union(*(part[1] for part in known if part))
