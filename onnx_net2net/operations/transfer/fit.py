"""Grow a teacher to the sizes of a target: axes of matched parameters tell the sizes; each dim gets a map."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_net2net.algebra.dims import Axis, Concat, Dim, leaf_set, leaves, resolve
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import ORIGINS, Growth, compose, in_turn, keep, new_size, pad, padded
from onnx_net2net.algebra.weights import Style, window
from onnx_net2net.analysis import layers
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.groups import Group, Inspection, inspect_analysis
from onnx_net2net.analysis.layers import parts_of
from onnx_net2net.analysis.multipliers import frozen_constants, scalings
from onnx_net2net.analysis.padding import State, follow
from onnx_net2net.analysis.ties import Ties
from onnx_net2net.analysis.weighing import find_ways, scalable, weighed_axes
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Place
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.attention import weigh_products
from onnx_net2net.operations.transfer.counterparts import Counterparts, are_sizes, input_number
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Networks
from onnx_net2net.operations.transfer.softmaxes import share_gates
from onnx_net2net.operations.transfer.ties import averaged
from onnx_net2net.operations.widen.new_units import interface_axes
from onnx_net2net.operations.widen.options import WidenOptions
from onnx_net2net.operations.widen.plan import WidenPlan
from onnx_net2net.rewrite.rewrite import rewrite
from onnx_net2net.rewrite.scaling import Scaling, rescale
from onnx_net2net.rules import traits

_HELD: dict[int, State] = {ORIGINS.index("mean"): "mean", ORIGINS.index("zero_in"): "zero"}
"""The values of the units that a map pads with, by their origin."""


Choose = Callable[[Mapping[Dim, int]], Mapping[Dim, Array]]
"""Chooses the units that narrower dims keep: int64 [k] for each, from the numbers k. Dims left out keep the middle."""


@dataclass
class TargetSizes:
    """The sizes that the target asks of the teacher's dims.

    Attributes:
        wanted: For each dim the sizes that are asked for, each with the number of elements that ask for it.
        pending: Axes with only their whole size known so far.
        partner: The teacher's dim that corresponds to a dim of the target.
    """

    wanted: dict[Dim, Counter[int]] = field(default_factory=dict)
    pending: list[tuple[Axis, Axis, int]] = field(default_factory=list)
    partner: dict[Dim, Dim] = field(default_factory=dict)

    def bind(self, teacher: Axis, target: Axis, weight: int) -> None:
        """State that an axis of the teacher is to have the size of one of the target."""
        teacher, target = resolve(teacher), resolve(target)
        if isinstance(teacher, Dim):
            self.wanted.setdefault(teacher, Counter())[target.size] += weight
            if isinstance(target, Dim):
                self.partner.setdefault(target, teacher)
        elif type(teacher) is type(target) and len(teacher.parts) == len(target.parts):
            for old, new in zip(teacher.parts, target.parts, strict=True):
                self.bind(old, new, weight)
        else:
            self.pending.append((teacher, target, weight))

    def more_parts(self, teacher: Axis, target: Axis) -> list[tuple[int, bool]] | None:
        """Return the parts of a target's concatenation that is longer than the teacher's, None for other axes.

        Returns:
            The sizes of the parts, and whether the teacher has such a part. None also if that cannot be told.
        """
        old, new = map(parts_of, (teacher, target))
        if len(new) <= len(old):
            return None
        known = [any(dim in self.partner for dim in leaves(part)) for part in new]
        return [(part.size, own) for part, own in zip(new, known, strict=True)] if sum(known) == len(old) else None

    def solve(self) -> dict[Dim, int]:
        """Return a size for each dim that got one: the one that most elements ask for."""
        waiting = []
        for teacher, target, weight in self.pending:
            parts = self.more_parts(teacher, target) or [(target.size, True)]
            waiting.append((teacher, sum(size for size, own in parts if own), weight))
        while waiting:
            later = [(axis, size, weight) for axis, size, weight in waiting if not self._solve(axis, size, weight)]
            if len(later) == len(waiting):
                break
            waiting = later
        return {dim: counter.most_common(1)[0][0] for dim, counter in self.wanted.items()}

    def _solve(self, axis: Axis, size: int, weight: int) -> bool:
        """Find the size of the only dim of an axis that has none yet."""
        unknown = {dim for dim in leaves(axis) if dim not in self.wanted and not dim.frozen}
        unknown = {dim for dim in unknown if dim.size > 1} or unknown
        if len(unknown) > 1:
            return False
        for dim in unknown:
            fitting = [n for n in range(1, size + 1) if self._size(axis, {dim: n}) == size]
            if fitting:
                self.wanted.setdefault(dim, Counter())[fitting[0]] += weight
        return True

    def _size(self, axis: Axis, assumed: dict[Dim, int]) -> int:
        axis = resolve(axis)
        if isinstance(axis, Dim):
            known = self.wanted.get(axis)
            return assumed.get(axis) or (known.most_common(1)[0][0] if known else axis.size)
        sizes = [self._size(part, assumed) for part in axis.parts]
        return sum(sizes) if isinstance(axis, Concat) else math.prod(sizes)


@dataclass(frozen=True)
class Fit:
    """How a teacher has grown to the sizes of a target.

    Attributes:
        sizes: The sizes that were asked for.
        growth: The map of each dim of the teacher that has another size now.
        scaled: The teacher's constants that were multiplied by a number, so that a normaliser behind does the same.
        factors: Numbers by which the units of some of the target's parameters are multiplied besides.
        offsets: Numbers that are added to the units of some of the target's biases.
        weighed: The teacher's nodes with numbers that these factors replace.
        tied: For uses of tied constants of the target, the teacher's parameter that all get their values from.
        interface: Grown inputs and outputs, for the record of the operation.
    """

    sizes: TargetSizes
    growth: Growth
    scaled: frozenset[Place]
    factors: dict[Place, Array]
    offsets: dict[Place, Array]
    weighed: set[int]
    tied: dict[Place, Parameter]
    interface: dict[str, Any]

    def sources(self, old: Module, new: Module) -> dict[str, Parameter]:
        """Return where the teacher has the parameters of a module: for what the target ties, all in one place."""
        return {
            what: self.tied.get(new.parameters[what].use, parameter) if what in new.parameters else parameter
            for what, parameter in old.parameters.items()
        }


def fit(
    networks: Networks, found: Alignment, style: Style, tied: dict[Place, Parameter], ties: Ties,
    choose: Choose | None = None,
) -> Fit:  # fmt: skip
    """Grow the teacher in place to the sizes of the target, as far as it can.

    Args:
        networks: The two networks; obstacles are noted.
        found: Which of their modules correspond.
        style: How copies share their outgoing weights, and the seed.
        tied: For uses of tied constants of the target, the teacher's parameter that all get their values from.
        ties: What else changes for them.
        choose: Chooses the units that narrower dims keep; the middle if None.
    """
    return _Fitting(networks, found, style, tied, ties).fit(choose)


def bind(networks: Networks, found: Alignment) -> TargetSizes:
    """Return the sizes that the target's matched parameters ask for; kernels are no dims."""
    asked = TargetSizes()
    for pair in found.parameters:
        axes = [one.axes(network.analysis)[: one.channels] for one, network in zip(pair, networks, strict=True)]
        if len(axes[0]) != len(axes[1]):
            axes = [[axis for axis in own if axis.size > 1] for own in axes]
        if len(axes[0]) == len(axes[1]):
            weight = math.prod(axis.size for axis in axes[1])
            for one, other in zip(*axes, strict=True):
                asked.bind(one, other, weight)
    return asked


class _Fitting:
    """Grows one teacher to the target's sizes."""

    def __init__(
        self, networks: Networks, found: Alignment, style: Style, tied: dict[Place, Parameter], ties: Ties
    ) -> None:
        self._networks, self._found, self._style, self._tied, self._ties = networks, found, style, tied, ties
        self._analysis: Draft = networks.teacher.analysis
        self._asked = bind(networks, found)
        self._averaged = leaf_set(*(axis for _, axis in averaged(self._analysis)))
        self._products: dict[Dim, list[int]] = {}
        self._silent: set[int] = set()
        self._inspection: Inspection = inspect_analysis(networks.teacher.opened.model, self._analysis)
        self._plan = WidenPlan(self._analysis, self._inspection, WidenOptions(seed=style.seed, fill_norms=False))

    def fit(self, choose: Choose | None) -> Fit:
        """Grow the teacher in place; obstacles are noted."""
        wanted = self._asked.solve()
        self._products = self._unweighed({dim for dim, size in wanted.items() if size > dim.size})
        for group in self._inspection.groups:
            self._note_conflicts(group)
        for group in self._inspection.groups:
            self._fit(group, wanted)
        growth = self._plan.growth
        narrower = {dim: map.new for dim, map in growth.items() if map.new < map.old}
        for dim, units in (choose(narrower) if choose else {}).items():
            growth[dim] = keep(dim.size, units)
        interface = self._interface()
        model = self._networks.teacher.opened.model
        weighing = weigh_products(self._networks, self._found, growth)
        scaling = self._scaling()
        gates = share_gates(self._networks, self._found, growth)
        self._silent |= gates.nodes
        scaling.unweighed |= weighing.products | self._silent
        for use, factor in self._numbers(weighing.scaled):
            scaling.factors[use] = scaling.factors.get(use, 1.0) * factor
        self._note_products(growth)
        grown = rewrite(model, self._analysis, growth, self._style, {}, scaling, self._ties)
        scaled = {self._label(number) for number in weighing.scaled}
        known = {self._label(number) for numbers in self._products.values() for number in numbers}
        for inserted in grown.inserted:
            if inserted.place not in known and not (inserted.is_number and inserted.place in scaled):
                reason = f"growing it needs {inserted}, which the target does not have"
                self._networks.hinder(inserted.place, reason)
        scaled_uses = frozenset(scaling.factors)
        return Fit(
            self._asked, growth, scaled_uses, weighing.factors, gates.offsets, weighing.scaled, self._tied, interface
        )

    def _interface(self) -> dict[str, Any]:
        """Return the inputs and outputs that grow, for the record; outputs that are hidden units too are not cut."""
        found, growth = [], self._plan.growth
        for name, position, axis in interface_axes(self._analysis, set(growth)):
            map = compose(axis, growth)
            if (map.first == (np.arange(map.new) < map.old)).all():
                found.append((name, position, map.old, map.new))
            else:
                self._networks.hinder(name, "the teacher's units are not the first ones in it")
        return {"interface": found} if found else {}

    def _note_conflicts(self, group: Group) -> None:
        for dim in group.dims:
            asked = sorted(self._asked.wanted.get(dim, ()))
            if len(asked) > 1:
                texts = " and ".join(map(str, asked))
                self._networks.hinder(group.name, f"one dim of {dim.size} units has {texts} in the target")

    def _fit(self, group: Group, wanted: dict[Dim, int]) -> None:
        """Give a group the target's size, by an exact map if there is one."""
        asked = {dim: wanted.get(dim, dim.size) for dim in group.dims}
        size = sum(asked.values())
        if size == group.size or any(dim in self._plan.growth for dim in group.dims):
            return
        if size < group.size:
            self._crop(group, asked)
        elif not (self._pad(group, size) or self._add_zeros(group, size) or self._share(group, size)):
            self._grow(group, size, asked)

    def _crop(self, group: Group, asked: dict[Dim, int]) -> None:
        self._networks.hinder(group.name, f"{group.size} units do not fit into {sum(asked.values())}")
        for dim, new in asked.items():
            if new < dim.size and not dim.fixed:
                self._plan.growth[dim] = keep(dim.size, np.arange(dim.size)[window(dim.size, new)[0]])

    def _pad(self, group: Group, size: int) -> bool:
        """Pad a dim that a mean runs over to a size that is no multiple, if scaling the rest makes that exact."""
        (dim, *rest) = group.dims
        if dim not in self._averaged or rest or group.reason is not None or not size % dim.size or group.padding:
            return False
        for held in ("zero", "mean"):
            with contextlib.suppress(RefusedError):
                rescale(self._analysis, {dim: (map := pad(dim.size, size, held))}, {dim: held}, self._ties)
                self._plan.growth[dim] = map
                return True
        return False

    def _unweighed(self, dims: Collection[Dim]) -> dict[Dim, list[int]]:
        """Return the nodes that multiply activations and sum over a dim, where copies of its units would be wrong.

        No weight could weigh them, or the class adds an identity matrix, in which copies would need other ones.
        """
        found: dict[Dim, list[int]] = {}
        ways = find_ways(self._analysis)
        for number, said in self._analysis.said.items():
            for contraction in said.contractions:
                if ways[number, contraction.sides] is None:
                    for dim in leaf_set(contraction.axis) & set(dims):
                        found.setdefault(dim, []).append(number)
        uses, identities = self._analysis.uses, self._networks.teacher.identities
        made = set(dims) & {dim for place in identities for dim in leaf_set(*uses[place].axes)}
        found |= {dim: [*found.get(dim, ())] for dim in made}
        for number, axis in layers.LayerGraph(self._analysis).products.items() if made else ():
            for dim in leaf_set(axis) & made:
                found.setdefault(dim, []).append(number)
        return found

    def _add_zeros(self, group: Group, size: int) -> bool:
        """Give a dim units that are zero, where products of activations sum over it and would notice copies."""
        (dim, *rest) = group.dims
        products = self._products.get(dim, [])
        if dim not in self._products or rest or group.reason is not None or dim.statistic or dim.copies:
            return False
        states, nodes = follow(self._analysis, {dim: "zero"}).states, self._analysis.nodes
        for number in products:
            if not any(states.get(tensor.name, {}).get(dim) == "zero" for tensor in nodes[number].inputs):
                return False
        self._silent |= set(products)
        self._plan.growth[dim] = padded(dim.size, size, "zero_in")
        return True

    def _share(self, group: Group, size: int) -> bool:
        """Copy the experts of a mixture, if what its Softmaxes give them can be parted."""
        (dim, *rest) = group.dims
        numbers = {number for number, said in self._analysis.said.items() for place in said.shares
                   if dim in leaf_set((self._analysis.input_axes(number, 0) or ())[place])}  # fmt: skip
        is_shown = any(dim in leaf_set(axis) for _, _, axis in interface_axes(self._analysis, {dim}))
        if rest or not numbers or not group.on_request or is_shown:
            return False
        copied = in_turn(dim.size, size)
        if not numbers <= share_gates(self._networks, self._found, {dim: copied}).nodes:
            return False
        self._plan.growth[dim] = copied
        return True

    def _note_products(self, growth: Growth) -> None:
        """Say of the dims that products of activations sum over and that have copies now why that is not exact."""
        for group in self._inspection.groups:
            for dim in [dim for dim in group.dims if dim in growth and self._products.get(dim)]:
                number = next((n for n in self._products[dim] if n not in self._silent), None)
                if number is None:
                    continue
                lost = self._lost(dim)
                why = f", and units of zero do not stay zero behind {lost}" if lost else ""
                self._networks.hinder(
                    group.name,
                    f"{self._label(number)} sums products of activations over its {dim.size} units, which are "
                    f"{growth[dim].new} in the target: no weight in front could divide copies{why}; "
                    f"{dim.size} units there would be exact",
                )

    def _lost(self, dim: Dim) -> str:
        """Return the node behind which new units of a dim are not zero, "" if there is none."""
        states = follow(self._analysis, {dim: "zero"}).states
        for number, node in enumerate(self._networks.teacher.nodes):
            held = [states.get(tensor.name, {}).get(dim) for tensor in (*node.inputs, *node.outputs)]
            if "zero" in held[: len(node.inputs)] and "other" in held[len(node.inputs) :]:
                return f"{node.op} {self._label(number)!r}"
        return ""

    def _label(self, number: int) -> str:
        node = self._networks.teacher.nodes[number]
        return str(node.name or node.outputs[0].name)

    def _grow(self, group: Group, size: int, asked: dict[Dim, int]) -> None:
        try:
            if group.reason is None:
                self._plan.grow_exactly(group, size)
            elif group.on_request:
                self._plan.append(group, size)
            else:
                self._networks.hinder(group.name, f"it cannot have {size} units: {group.reason}")
        except RefusedError as error:
            why = next((dim.statistic for dim in group.dims if dim.statistic), str(error))
            near = size // group.size * group.size
            text = f"{group.size} units cannot grow to {size}, which is no multiple: {why}"
            text += f" (multiples near it are {near} and {near + group.size})" if group.is_whole else ""
            self._networks.hinder(group.name, text)
            for dim, new in asked.items():
                if new > dim.size and not dim.frozen:
                    self._plan.growth[dim] = in_turn(dim.size, new)

    def _numbers(self, weighed: set[int]) -> Iterator[tuple[Place, float]]:
        """Yield weights and the factor for each, so that a number which the target computes from its sizes is right."""
        replaced = set(weighed)
        anew = {(constant.power, constant.axis.size) for constant in frozen_constants(self._networks.target.analysis)}
        for constant in frozen_constants(self._analysis):
            number, operand = constant.operand
            size = new_size(constant.axis, self._plan.growth)
            if number in weighed or size == constant.axis.size or (constant.power, size) not in anew:
                continue
            replaced.add(number)
            factor = (constant.axis.size / size) ** constant.power
            places = scalable(self._analysis, number, operand, constant.axis) if operand >= 0 else None
            if not places:
                reason = f"{constant.node} has {constant.value:.6g} = {constant.text}, which the target computes anew"
                self._networks.hinder(constant.node, reason)
            for use in places or ():
                yield from self._with_tied(use, factor)
        partner = Counterparts(self._networks, self._found).partner
        for scaling in scalings(self._analysis):  # other functions of a size, like sqrt(2 / n)
            number, operand = scaling.operand
            if operand < 0 or number not in partner or number in replaced:
                continue
            nodes = zip(self._networks, (number, partner[number]), strict=True)
            own, other = (input_number(network, (node, 1 - operand)) for network, node in nodes)
            if own is None or other is None or math.isclose(own, other, rel_tol=1e-6) or not are_sizes(own, other):
                continue
            found = (scalable(self._analysis, number, operand, axis) for axis in scaling.axes)
            factor = other / own if self._analysis.nodes[number].op in traits.QUOTIENTS else own / other
            for use in next((places for places in found if places), ()):
                yield from self._with_tied(use, factor)

    def _with_tied(self, use: Place, factor: float) -> Iterator[tuple[Place, float]]:
        """Yield a weight and those that are scaled with it as they are tied to it, and their factors."""
        yield use, factor
        tied = self._ties.tied
        sums = weighed_axes(self._analysis)
        for other in [other for other, first in tied.items() if first == tied.get(use) and other != use]:
            yield other, factor
            for number in sums.get(other, {}).values():
                for place in self._ties.rescaled.get(number, ()):
                    yield place, 1 / factor

    def _scaling(self) -> Scaling:
        """Return the factors of the weights around padded dims, as the target keeps its epsilons."""
        scaling, growth = Scaling(), self._plan.growth
        for group in self._inspection.groups:
            pads = {dim: _HELD[kind] for dim in group.dims
                    if dim in growth and (kind := int(growth[dim].kind.max())) in _HELD}  # fmt: skip
            try:
                found = rescale(self._analysis, growth, pads, self._ties)
            except RefusedError as error:
                self._networks.hinder(group.name, str(error))
                continue
            scaling.unweighed |= found.unweighed
            for use, factor in found.factors.items():
                scaling.factors[use] = scaling.factors.get(use, 1.0) * factor
        return scaling
