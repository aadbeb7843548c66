"""Which constants a tensor is linear in, so that they can be multiplied instead of the tensor.

Where a sum runs over copied units, one of its operands has to be divided among the copies. That may be a constant, or a
tensor that is linear in constants: `x * vector` is linear in the vector, a MatMul in its matrix, and the result of a
layer in its weight and bias together. So the search walks back from the operand through operators that are linear in
one input, or in several inputs together, as long as no other node reads the tensor that would be multiplied.

Shares may be uneven as long as all operators on the way are linear: f(a) + f(b) = f(a + b). A ReLU admits only positive
factors, so that all copies get equal shares in front of it. The same holds for a sum of absolute values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.analysis.inference import DIVISIBLE, SHAREABLE, Analysis
from onnx_net2net.analysis.preimages import Multiplied, multiplied_before, read_by, whole_operand
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import makers
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.rules import traits
from onnx_net2net.rules.statements import Contraction

DEEPEST = 64
"""Constants that are more nodes away than this are not looked for."""

_NEARBY = traits.REARRANGES - traits.CASTS
"""Operators behind which a constant still is one that is read there alone."""


@dataclass(frozen=True, eq=False)
class WeighedAxis:
    """An axis of a constant whose units are multiplied in place of those of an operand."""

    node: int  # the node that reads it
    input: int  # which of its inputs it is
    position: int  # the axis
    units: np.ndarray | None = None  # bool [size of the axis], which of the teacher's units are; None for all
    even: bool = False  # whether copies of a unit have to get equal shares


@dataclass(frozen=True)
class Weighing:
    """What is multiplied for a sum."""

    axes: tuple[WeighedAxis, ...]  # of constants, all of them together
    index: int  # which operand of the sum that is in place of
    together: frozenset[int] = frozenset()  # other sums that read the same, and are weighed by it too


Tables = dict[tuple[int, tuple[tuple[int, int], ...]], tuple[int, int]]
"""For sums (node, and the sides of the sum) over what a tied weight made: the read (node, input) of it that is weighed
instead of what they read, so that it is divided for all of its readers."""


def weighings(
    analysis: Analysis,
    number: int,
    contraction: Contraction,
    grows: Callable[[Dim], bool],
    tables: Tables | None = None,
) -> Iterator[Weighing]:
    """Yield ways to weigh the units of a sum, the best first: constants, what follows from them, then activations.

    Args:
        analysis: The dims.
        number: The node that sums.
        contraction: What it sums over.
        grows: Tells which dims grow; those of the sum that do are weighed.
        tables: What must be weighed for some sums.
    """
    sides = contraction.sides
    read = analysis.nodes[number].inputs
    if all(analysis.is_derived(number, index) for index, _ in sides):  # a state that starts at zeros stays as it is
        sides = tuple(side for side in sides if fill_of(analysis, read[side[0]]) is None) or sides
    table = (tables or {}).get((number, contraction.sides))
    derived = [side for side in sides if analysis.is_derived(number, side[0])]
    others = [side for side in sides if side not in derived]
    # What is read in two ways is weighed only where nothing else is: the norm of a weight would change, for example.
    ways = [(sides, True, False), (derived, False, True), (derived, False, False), (others, False, False)]
    if any(_is_dequantized(analysis, number, index) for index, _ in derived):
        ways.pop()  # onnxruntime may round the other operand as well, and shares of it would be rounded otherwise
    for some, nearby, alone in ways:
        for index, position in some:
            search = _Search(analysis, number, contraction.axis, contraction.law, grows, nearby)
            search.avoided = read_twice(analysis) if alone else set()
            part = Multiplied(
                position, whole_operand(analysis, number, index), analysis.nodes[number].op in traits.POSITIVE
            )
            axes = search.operand(number, index, part)
            if axes and (table is None or table in [(axis.node, axis.input) for axis in axes]):
                yield Weighing(tuple(axes), index, frozenset(search.together))


def _is_dequantized(analysis: Analysis, number: int, index: int) -> bool:
    """Tell whether an operand is a weight in steps, maybe rearranged."""
    return any(node.op == "DequantizeLinear" for node in makers(analysis.nodes[number].inputs[index], _NEARBY))


def read_twice(analysis: Analysis) -> set[int]:
    """Return the constants, by id, that more than one input reads."""
    counts = Counter(id(use.constant) for use in analysis.uses.values())
    return {key for key, count in counts.items() if count > 1}


def weighed_axes_of(
    analysis: Analysis, number: int, index: int, position: int, axis: Axis, avoided: Collection[int]
) -> list[WeighedAxis] | None:
    """Return the constants that are multiplied for an axis of an operand, None if there are none.

    Args:
        analysis: The dims.
        number: The node that reads the operand.
        index: Which of its inputs that is.
        position: Where the axis is.
        axis: The axis.
        avoided: Constants, by id, that must not be multiplied.
    """
    search = _Search(analysis, number, axis, "square", leaf_set(axis).__contains__, False)
    search.avoided = set(avoided)
    return search.operand(number, index, Multiplied(position, whole_operand(analysis, number, index)))


class _Search:
    """The way back from one operand.

    Attributes:
        avoided: Constants, by id, that must not be multiplied.
        together: As in `Weighing`.
    """

    def __init__(
        self, analysis: Analysis, number: int, axis: Axis, law: str, grows: Callable[[Dim], bool], nearby: bool
    ) -> None:
        self._analysis, self._number, self._nearby = analysis, number, nearby
        self._law, self._grows = law, grows
        self._dims = self._grown(axis)
        self.avoided: set[int] = set()
        self.together: set[int] = set()

    def operand(self, number: int, index: int, part: Multiplied, depth: int = 0) -> list[WeighedAxis] | None:
        """Return the constants that are multiplied for an operand, None if there are none."""
        use = self._analysis.uses.get((number, index))
        if use is not None:
            return self._constant(number, index, part)
        tensor = self._analysis.nodes[number].inputs[index]
        value = self._analysis.sizes.values.get(tensor.name)
        if value is not None and value.dtype.kind == "f" and not value.any():
            return []  # zeros stay
        if not tensor.inputs or tensor.name in self._analysis.kept or depth > DEEPEST:
            return None
        before = set(self.together)
        shared: Multiplied | None = part
        if len(self._readers(tensor)) > 1:
            shared = None if self._nearby else self._shared(tensor, number, index, part)
        axes = self._node(tensor, shared, depth + 1) if shared else None
        if axes is None:
            self.together = before
        return axes

    def _constant(self, number: int, index: int, part: Multiplied) -> list[WeighedAxis] | None:
        use = self._analysis.uses[number, index]
        if id(use.constant) in self.avoided:
            return None
        type_ = self._analysis.sizes.dtype(use.constant.name)
        if type_ not in DIVISIBLE:
            said = self._analysis.said[number]
            is_whole = self._law == "sum" and self._grown(use.axes[part.position]) == self._dims
            if not (is_whole and part.mask.all() and index in said.integers and type_ in SHAREABLE):
                return None
        if part.mask.size > part.mask.shape[part.position]:
            return None  # other elements on other axes
        units = None if part.mask.all() else part.mask.reshape(-1)
        return [WeighedAxis(number, index, part.position, units, part.even)]

    def _grown(self, axis: Axis) -> set[Dim]:
        return {dim for dim in leaves(axis) if self._grows(dim)}

    def _node(self, tensor: Tensor, part: Multiplied, depth: int) -> list[WeighedAxis] | None:
        """Return what is multiplied for a node's result."""
        node = tensor.inputs[0]
        number = self._analysis.numbers.get(id(node))
        said = self._analysis.said.get(number) if number is not None else None
        if number is None or said is None or node.domain not in DEFAULT_DOMAIN:
            return None
        if self._nearby and node.op not in _NEARBY:
            return None
        if self._analysis.sizes.dtype(tensor.name) == TensorProto.BOOL:
            return None  # the mask of a Dropout follows from no weight
        if node.op in traits.CASTS and _bits(self._analysis, node.inputs[0]) < _bits(self._analysis, tensor):
            return None  # what is divided would be rounded
        if node.op in traits.POSITIVE:
            part = replace(part, even=True)
        one, every = traits.LINEAR_IN_EACH.get(node.op, ()), traits.LINEAR_IN_ALL.get(node.op, ())
        if not one and not every:
            if said.pointwise != "linear":
                return None
            one = (0,)
        present = [i for i, t in enumerate(node.inputs) if t.name]
        found: list[WeighedAxis] = []
        for index in (i for i in present if i in every):
            axes = self._input(number, index, tensor, part, depth)
            if axes is None:
                return None
            found += axes
        choices = sorted((i for i in one if i in present), key=lambda i: (number, i) not in self._analysis.uses)
        for index in choices:
            axes = self._input(number, index, tensor, part, depth)
            if axes is not None:
                return found + axes
        return None if one else found

    def _input(self, number: int, index: int, result: Tensor, part: Multiplied, depth: int) -> list[WeighedAxis] | None:
        """Return what is multiplied for an input of a node in place of its result."""
        before = multiplied_before(self._analysis, self._dims, number, index, result, part)
        if before is None:
            return None
        return self.operand(number, index, before, depth) if before.mask.any() else []

    # -- who else reads it -------------------------------------------------------------------------------------

    def _readers(self, tensor: Tensor) -> list[Node]:
        """Return the nodes that read the values of a tensor, and not its shape only."""
        readers = {id(reader): reader for reader in tensor.outputs}.values()
        said = [self._analysis.said.get(self._analysis.numbers.get(id(reader), -1)) for reader in readers]
        ignored = [one.ignored if one else set() for one in said]
        return [
            reader
            for reader, unread in zip(readers, ignored, strict=True)
            if any(operand is tensor and position not in unread for position, operand in enumerate(reader.inputs))
        ]

    def _shared(self, tensor: Tensor, number: int, index: int, part: Multiplied) -> Multiplied | None:
        """Return where a tensor is multiplied that others read, too; None where they must not see it.

        They may read other elements (of q, k and v in one), or sum over the same channels themselves.
        """
        total, elsewhere, even = part.mask, [], part.even
        for reader in self._readers(tensor):
            other = self._analysis.numbers.get(id(reader))
            for position, operand in enumerate(reader.inputs):
                if operand is not tensor or (other, position) == (number, index):
                    continue
                if other is None or other not in self._analysis.said:
                    return None
                read = read_by(self._analysis, other, position)
                sums = self._sum_behind(other, position)
                if sums is None or sums == self._number:  # the other factor of the sum
                    elsewhere.append(read)
                else:
                    self.together.add(sums)
                    total = total | read
                    even |= self._analysis.nodes[sums].op in traits.POSITIVE
        if any((total & read).any() for read in elsewhere):
            return None
        return replace(part, mask=total if elsewhere else whole_operand(self._analysis, number, index), even=even)

    def _sum_behind(self, number: int, index: int) -> int | None:
        """Return the sum over the same units that a reader is, or that alone reads what it makes."""
        for _ in range(DEEPEST):
            node = self._analysis.nodes[number]
            for contraction in self._analysis.said[number].contractions:
                inside = index in [side for side, _ in contraction.sides]
                if inside and contraction.law == "sum" and self._grown(contraction.axis) == self._dims:
                    return number
            is_move = self._analysis.said[number].pointwise == "linear" and index == 0 and len(node.outputs) == 1
            if not is_move and node.op not in traits.BILINEAR:
                return None
            result = node.outputs[0]
            axes = self._analysis.axes.get(result.name, ())
            if len(result.outputs) != 1 or result.name in self._analysis.kept or not self._dims <= leaf_set(*axes):
                return None
            reader = result.outputs[0]
            number = self._analysis.numbers.get(id(reader), -1)
            if number not in self._analysis.said or sum(t is result for t in reader.inputs) != 1:
                return None
            index = [t is result for t in reader.inputs].index(True)
        return None


def _bits(analysis: Analysis, tensor: Tensor) -> int:
    type_ = analysis.sizes.dtype(tensor.name)
    return helper.tensor_dtype_to_np_dtype(type_).itemsize * 8 if type_ in DIVISIBLE else 0
