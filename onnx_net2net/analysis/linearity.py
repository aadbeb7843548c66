"""Which constants a tensor is linear in, so that they can be multiplied instead of it.

Where a sum runs over units that are copied, one of its operands has to be divided among the copies. That may be a
constant, but also what follows from one: `x * attention` is as linear in the vector as a MatMul in its matrix, a
weight times a number in the weight, and what a layer makes in the rows of its weight and its bias together. So one
walks back from the operand through operators that are linear in one of their inputs, or in several together, as long
as nobody else reads what would be multiplied.

Units may be shared unevenly among copies as long as everything on the way is linear: f(a) + f(b) = f(a + b). A ReLU
admits positive factors only, so that all copies get equal shares in front of it, and of a sum of absolute values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set, leaves
from onnx_net2net.analysis.inference import DIVISIBLE, SHAREABLE, Analysis
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.rules.statements import Contraction

DEEPEST = 64
"""Constants that are more nodes away than this are not looked for."""

_EVERY = tuple(range(1000))

_ANY_OF = {"Mul": (0, 1), "Div": (0,), "MatMul": (1, 0), "Gemm": (1, 0), "Conv": (1, 0), "ConvTranspose": (1, 0),
           "Einsum": _EVERY, "DequantizeLinear": (0,), "LeakyRelu": (0,), "Relu": (0,), "Abs": (0,), "PRelu": (0,),
           "MaxPool": (0,), "GlobalMaxPool": (0,), "ReduceMax": (0,), "ReduceMin": (0,)}  # fmt: skip
"""Inputs of which each could be multiplied instead of the result; constants among them are tried first."""

_ALL_OF = {"Add": _EVERY, "Sub": _EVERY, "Sum": _EVERY, "Mean": _EVERY, "Max": _EVERY, "Min": _EVERY,
           "Concat": _EVERY, "Where": (1, 2), "Gemm": (2,), "Conv": (2,), "ConvTranspose": (2,),
           "BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2),
           "GroupNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)}  # fmt: skip
"""Inputs that have to be multiplied together, as far as the node has them."""

_EVEN = ("Relu", "LeakyRelu", "PRelu", "Abs", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min",
         "ReduceL1")  # fmt: skip
"""Operators f with f(a x) = a f(x) for positive a only."""

_ALIGNED = ("Mul", "Div", "Add", "Sub", "Sum", "Mean", "Max", "Min", "Where", "PRelu")
"""Operators whose operands are broadcast."""

_IN_PLACE = ("Cast", "CastLike", "Dropout", "DequantizeLinear", "Identity", "Neg", "Slice", "Split", "Concat", "Pad",
             "AveragePool", "GlobalAveragePool", "Resize", "Relu", "LeakyRelu", "Abs", "MaxPool", "GlobalMaxPool",
             "Tile", "Trilu")  # fmt: skip
"""Operators whose first input has the axes of the result, in the same places."""

REARRANGES = ("Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "DequantizeLinear")
"""Operators behind which a constant still is one that is read there alone."""


_REFOLDS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators whose result has the elements of the input in the same order."""


@dataclass(frozen=True, eq=False)
class Carrier:
    """A constant whose units along an axis are multiplied in place of those of an operand.

    Attributes:
        node: The node that reads it.
        input: Which of its inputs it is.
        position: The axis.
        units: bool [size of the axis], which of the teacher's units are; None for all.
        even: Whether copies of a unit have to get equal shares.
    """

    node: int
    input: int
    position: int
    units: np.ndarray | None = None
    even: bool = False


@dataclass(frozen=True)
class Weighing:
    """What is multiplied for a sum.

    Attributes:
        carriers: The constants, all of them together.
        index: Which operand of the sum that is in place of.
        together: Other sums that read the same, and are weighed by it too.
    """

    carriers: tuple[Carrier, ...]
    index: int
    together: frozenset[int] = frozenset()


def weighings(
    analysis: Analysis, number: int, contraction: Contraction, grows: Callable[[Dim], bool]
) -> Iterator[Weighing]:
    """Yield ways to weigh the units of a sum, the best first: constants, what follows from them, then activations.

    Args:
        analysis: The dims.
        number: The node that sums.
        contraction: What it sums over.
        grows: Tells which dims grow; those of the sum that do are weighed.
    """
    sides = contraction.sides
    if all(analysis.is_derived(number, index) for index, _ in sides):  # a state that starts at zeros stays as it is
        sides = tuple(side for side in sides if not analysis.is_fill(number, side[0])) or sides
    table = analysis.tables.get((number, contraction.sides))
    derived = [side for side in sides if analysis.is_derived(number, side[0])]
    others = [side for side in sides if side not in derived]
    # What is read in two ways is weighed only where nothing else is: the norm of a weight would change, for example.
    ways = [(sides, True, False), (derived, False, True), (derived, False, False), (others, False, False)]
    if any(_is_dequantized(analysis, number, index) for index, _ in derived):
        ways.pop()  # onnxruntime may round the other operand as well, and shares of it would be rounded otherwise
    for some, nearby, alone in ways:
        for index, position in some:
            search = _Search(analysis, number, contraction.axis, contraction.law, grows, nearby)
            search.avoided = _read_twice(analysis) if alone else set()
            even = analysis.nodes[number].op in _EVEN
            carriers = search.operand(number, index, _Place(position, even=even), 0)
            if carriers and (table is None or table in [(place.node, place.input) for place in carriers]):
                yield Weighing(tuple(carriers), index, frozenset(search.together))


def _is_dequantized(analysis: Analysis, number: int, index: int) -> bool:
    """Tell whether an operand is a weight in steps, maybe rearranged."""
    tensor = analysis.nodes[number].inputs[index]
    while tensor.inputs and tensor.inputs[0].op in REARRANGES:
        if tensor.inputs[0].op == "DequantizeLinear":
            return True
        tensor = tensor.inputs[0].inputs[0]
    return False


@dataclass(frozen=True, eq=False)
class _Place:
    """Where in a tensor units are multiplied.

    Attributes:
        position: The axis of the units.
        mask: bool, of the tensor's rank and broadcast to its shape: which elements are multiplied; None for all.
        even: As in `Carrier`.
    """

    position: int
    mask: np.ndarray | None = None
    even: bool = False


def _read_twice(analysis: Analysis) -> set[int]:
    """Return the constants, by id, that more than one input reads."""
    counts = Counter(id(use.constant) for use in analysis.uses.values())
    return {key for key, count in counts.items() if count > 1}


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

    def operand(self, number: int, index: int, place: _Place, depth: int) -> list[Carrier] | None:
        """Return the constants that are multiplied for an operand, None if there are none."""
        use = self._analysis.uses.get((number, index))
        if use is not None:
            return self._constant(number, index, place)
        tensor = self._analysis.nodes[number].inputs[index]
        value = self._analysis.sizes.values.get(tensor.name)
        if value is not None and value.dtype.kind == "f" and not value.any():
            return []  # zeros stay
        if not tensor.inputs or tensor.name in self._analysis.kept or depth > DEEPEST:
            return None
        before = set(self.together)
        if len(self._readers(tensor)) > 1:
            place_ = None if self._nearby else self._shared(tensor, number, index, place)
            if place_ is None:
                self.together = before
                return None
            place = place_
        carriers = self._node(tensor, place, depth + 1)
        if carriers is None:
            self.together = before
        return carriers

    def _constant(self, number: int, index: int, place: _Place) -> list[Carrier] | None:
        use = self._analysis.uses[number, index]
        if id(use.constant) in self.avoided:
            return None
        type_ = self._analysis.sizes.dtype(use.constant.name)
        if type_ not in DIVISIBLE:
            said = self._analysis.said[number]
            whole = self._law == "sum" and self._grown(use.axes[place.position]) == self._dims
            if not (whole and place.mask is None and index in said.integers and type_ in SHAREABLE):
                return None
        units = None
        if place.mask is not None:
            if any(size > 1 for position, size in enumerate(place.mask.shape) if position != place.position):
                return None
            units = place.mask.reshape(-1)
        return [Carrier(number, index, place.position, units, place.even)]

    def _grown(self, axis: Axis) -> set[Dim]:
        return {dim for dim in leaves(axis) if self._grows(dim)}

    def _node(self, tensor: Tensor, place: _Place, depth: int) -> list[Carrier] | None:
        """Return what is multiplied for a node's result."""
        node = tensor.inputs[0]
        number = self._analysis.numbers.get(id(node))
        said = self._analysis.said.get(number) if number is not None else None
        if number is None or said is None or node.domain not in (None, "", "ai.onnx"):
            return None
        if self._nearby and node.op not in REARRANGES:
            return None
        if self._analysis.sizes.dtype(tensor.name) == TensorProto.BOOL:
            return None  # the mask of a Dropout follows from no weight
        if node.op in ("Cast", "CastLike") and _bits(self._analysis, node.inputs[0]) < _bits(self._analysis, tensor):
            return None  # what is divided would be rounded
        if node.op in _EVEN:
            place = replace(place, even=True)
        one, every = _ANY_OF.get(node.op, ()), _ALL_OF.get(node.op, ())
        if not one and not every:
            if said.pointwise != "linear":
                return None
            one = (0,)
        present = [i for i, t in enumerate(node.inputs) if t.name]
        found: list[Carrier] = []
        for index in (i for i in present if i in every):
            carriers = self._input(number, index, tensor, place, depth)
            if carriers is None:
                return None
            found += carriers
        choices = sorted((i for i in one if i in present), key=lambda i: (number, i) not in self._analysis.uses)
        for index in choices:
            carriers = self._input(number, index, tensor, place, depth)
            if carriers is not None:
                return found + carriers
        return None if one else found

    def _input(self, number: int, index: int, result: Tensor, place: _Place, depth: int) -> list[Carrier] | None:
        """Return what is multiplied for an input of a node in place of its result."""
        before = _before(self._analysis, self._dims, number, index, result, place)
        if before is None or isinstance(before, list):
            return before
        return self.operand(number, index, before, depth)

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

    def _shared(self, tensor: Tensor, number: int, index: int, place: _Place) -> _Place | None:
        """Return what is multiplied of a tensor that others read: what they read too must be multiplied for them.

        They may read other elements (of q, k and v in one), or sum over the same units themselves.
        """
        shape = self._analysis.sizes.shape(tensor.name) or ()
        total = np.ones((1,) * len(shape), bool) if place.mask is None else place.mask
        elsewhere, even = [], place.even
        for reader in self._readers(tensor):
            other = self._analysis.numbers.get(id(reader))
            for position, operand in enumerate(reader.inputs):
                if operand is not tensor or (other, position) == (number, index):
                    continue
                if other is None or other not in self._analysis.said:
                    return None
                read = _read_by(self._analysis, other, position, len(shape))
                sums = self._sum_behind(other, position)
                if sums is None or sums == self._number:  # the other factor of the sum
                    elsewhere.append(read)
                else:
                    self.together.add(sums)
                    total = total | read
                    even |= self._analysis.nodes[sums].op in _EVEN
        if any((total & read).any() for read in elsewhere):
            return None
        return replace(place, mask=None if not elsewhere else total, even=even)

    def _sum_behind(self, number: int, index: int) -> int | None:
        """Return the sum over the same units that a reader is, or that alone reads what it makes."""
        for _ in range(DEEPEST):
            node = self._analysis.nodes[number]
            for contraction in self._analysis.said[number].contractions:
                inside = index in [side for side, _ in contraction.sides]
                if inside and contraction.law == "sum" and self._grown(contraction.axis) == self._dims:
                    return number
            is_move = self._analysis.said[number].pointwise == "linear" and index == 0 and len(node.outputs) == 1
            if not is_move and node.op not in ("Mul", "MatMul", "Einsum"):
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


# --- Norms of weights ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """A sum of squares of a weight, by which the weight is divided: g * v / |v| (weight normalisation).

    Copies of what v reads get shares of v, which have another norm. Where a gain is multiplied on for each unit that
    the norm is of, it makes up for that.

    Attributes:
        uses: The reads of v (node, input) that only the norm is for.
        weight: Another read of v.
        kept: The axis of v that each unit has a norm along.
        power: To which power of the sum of squares the weight is proportional.
        gains: What makes up for another norm.
    """

    uses: tuple[tuple[int, int], ...]
    weight: tuple[int, int]
    kept: int
    power: float
    gains: tuple[Carrier, ...]


def find_norms(analysis: Analysis) -> dict[int, Norm]:
    """Return the norms of weights that gains can make up for, by the node that sums the squares."""
    twice = _read_twice(analysis)
    norms = {}
    for number, said in analysis.said.items():
        if said.contractions and analysis.is_derived(number, 0):
            norm = _norm(analysis, number, twice)
            if norm is not None:
                norms[number] = norm
    return norms


_ROOTS = {"ReduceL2": 0.5, "ReduceSumSquare": 1.0, "ReduceSum": 1.0}
"""To which power of a sum of squares the results of operators are proportional, as far as they sum squares."""


def _norm(analysis: Analysis, number: int, twice: set[int]) -> Norm | None:
    node = analysis.nodes[number]
    if node.op not in _ROOTS:
        return None
    squares = [(number, 0)]
    if node.op == "ReduceSum":
        source = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
        if source is None or source.op != "Mul" or source.inputs[0] is not source.inputs[1]:
            return None
        squares = [(analysis.numbers[id(source)], index) for index in (0, 1)]
    uses = [analysis.uses.get(square) for square in squares]
    (use, *_) = uses
    if use is None or id(use.constant) not in twice or any(u is None or u.constant is not use.constant for u in uses):
        return None
    summed = {position for c in analysis.said[number].contractions for _, position in c.sides}
    kept = [p for p, axis in enumerate(use.axes) if p not in summed and axis.size > 1]
    others = [key for key, other in analysis.uses.items() if other.constant is use.constant and key not in squares]
    if len(kept) != 1 or len(others) != 1:
        return None
    reader = _reader(analysis, others[0][0])
    if reader is None:
        return None
    axis = use.axes[kept[0]]
    result = analysis.nodes[reader[0]].inputs[reader[1]]
    power = _power(analysis, result, node.outputs[0], {})
    position = _position_of(analysis, reader, others[0], kept[0])
    if position is None or not power:
        return None
    search = _Search(analysis, reader[0], axis, "square", leaf_set(axis).__contains__, False)
    search.avoided = {id(use.constant)}
    gains = search.operand(*reader, _Place(position), 0)
    if not gains or any(gain.units is not None for gain in gains):
        return None
    return Norm(tuple(squares), others[0], kept[0], power * _ROOTS[node.op], tuple(gains))


def _reader(analysis: Analysis, number: int) -> tuple[int, int] | None:
    """Return the input that reads what is computed from constants alone, if there is one, from a node on."""
    while True:
        (result, *_) = analysis.nodes[number].outputs
        if len(result.outputs) != 1 or result.name in analysis.kept:
            return None
        reader = result.outputs[0]
        number = analysis.numbers[id(reader)]
        if not all(analysis.is_derived(number, index) for index in range(len(reader.inputs))):
            return number, [tensor is result for tensor in reader.inputs].index(True)


def _position_of(analysis: Analysis, reader: tuple[int, int], source: tuple[int, int], position: int) -> int | None:
    """Return where in what follows from a constant one of its axes is."""
    axis = analysis.uses[source].axes[position]
    for own, other in enumerate(analysis.input_axes(*reader) or ()):
        if leaf_set(other) == leaf_set(axis):
            search = _Search(analysis, reader[0], axis, "square", leaf_set(axis).__contains__, False)
            search.avoided = {id(use.constant) for key, use in analysis.uses.items() if key != source}
            search.avoided.discard(id(analysis.uses[source].constant))
            found = search.operand(*reader, _Place(own), 0)
            if found and [(c.node, c.input, c.position) for c in found] == [(*source, position)]:
                return own
    return None


def _power(analysis: Analysis, tensor: Tensor, norm: Tensor, known: dict[str, float | None]) -> float | None:
    """Return to which power of a norm a tensor is proportional, None if it is none."""
    if tensor is norm:
        return 1.0
    if not tensor.inputs:
        return 0.0
    if tensor.name not in known:
        known[tensor.name] = None
        if len(known) > DEEPEST:
            return None
        node = tensor.inputs[0]
        powers = [_power(analysis, operand, norm, known) for operand in node.inputs]
        known[tensor.name] = _power_of(analysis, node, powers)
    return known[tensor.name]


def _power_of(analysis: Analysis, node: Node, powers: list[float | None]) -> float | None:
    if any(power is None for power in powers):
        return None
    exponents = [power for power in powers if power is not None]
    if not any(exponents):
        return 0.0
    if node.op in ("Mul", "MatMul"):
        return exponents[0] + exponents[1]
    if node.op == "Div":
        return exponents[0] - exponents[1]
    if node.op in ("Sqrt", "Reciprocal"):
        return exponents[0] * (0.5 if node.op == "Sqrt" else -1)
    said = analysis.said.get(analysis.numbers.get(id(node), -1))
    is_move = said is not None and said.pointwise == "linear" and not any(exponents[1:])
    return exponents[0] if is_move else None


def _bits(analysis: Analysis, tensor: Tensor) -> int:
    type_ = analysis.sizes.dtype(tensor.name)
    return helper.tensor_dtype_to_np_dtype(type_).itemsize * 8 if type_ in DIVISIBLE else 0


# --- From a result to an input -------------------------------------------------------------------------------


def _before(
    analysis: Analysis, dims: set[Dim], number: int, index: int, result: Tensor, place: _Place
) -> _Place | list[Carrier] | None:
    """Return where an input is multiplied in place of a node's result; no carriers where nothing of it is read."""
    node = analysis.nodes[number]
    axes = analysis.input_axes(number, index)
    shape = analysis.sizes.shape(result.name)
    if axes is None or shape is None:
        return None
    own = tuple(axis.size for axis in axes)
    if node.op in _ALIGNED:
        shift = len(shape) - len(own)
        position = place.position - shift
        if position < 0 or own[position] != shape[place.position]:
            return None
        mask = place.mask
        if mask is not None:
            if math.prod(mask.shape[:shift]) > 1:
                return None
            mask = mask.reshape(mask.shape[shift:])
            if ((np.array(mask.shape) > 1) & (np.array(own) == 1)).any():
                return None
        return replace(place, position=position, mask=mask)
    if node.op == "Transpose":
        perm = list(node.attrs.get("perm") or range(len(own))[::-1])
        mask = None if place.mask is None else np.transpose(place.mask, np.argsort(perm))
        return replace(place, position=perm[place.position], mask=mask)
    picks = _picks(analysis, number)
    if picks is not None:
        pick = picks[node.outputs.index(result)]
        before = _unpicked(pick, own, place)
        is_alone = len(node.inputs[0].outputs) == 1 or (number, index) in analysis.uses  # each read has its own version
        nobody_reads_the_rest = place.mask is None and len(picks) == 1 and is_alone
        return replace(before, mask=None) if nobody_reads_the_rest else before
    if node.op == "Concat":
        return _part(analysis, dims, number, index, place)
    if node.op in _IN_PLACE and own == tuple(shape):
        return place
    summed = {position for c in analysis.said[number].contractions for side, position in c.sides if side == index}
    holders = [p for p, axis in enumerate(axes) if dims & leaf_set(axis) and p not in summed]
    if node.op in _REFOLDS:  # of several axes with the dims those that are a part of the result's, or have it as one
        start, end = math.prod(shape[: place.position]), math.prod(shape[: place.position + 1])
        bounds = {p: (math.prod(own[:p]), math.prod(own[: p + 1])) for p in holders}
        holders = [p for p, (a, b) in bounds.items() if (start <= a and b <= end) or (a <= start and end <= b)]
    if len(holders) != 1:
        return None
    mask = place.mask
    if mask is not None:
        if node.op in _REFOLDS:
            mask = _reshaped(mask, tuple(shape), own)
        elif any(size > 1 for p, size in enumerate(mask.shape) if p != place.position):
            mask = None
        else:
            mask = mask.reshape([-1 if p == holders[0] else 1 for p in range(len(own))])
        if mask is None:
            return None
    return replace(place, position=holders[0], mask=mask)


def _reshaped(mask: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...]) -> np.ndarray | None:
    """Return what a mask of a tensor is before a Reshape from another shape; None where it is none along axes."""
    masked = [position for position, size in enumerate(mask.shape) if size > 1]
    if not masked:
        return np.ones((1,) * len(own), bool)
    # The shortest run of axes, on both sides, that has the masked ones and as many elements.
    starts = np.cumprod((1, *shape)), np.cumprod((1, *own))
    before = [k for k in range(masked[0] + 1) if starts[0][k] in starts[1]][-1]
    after = next((k for k in range(masked[-1] + 1, len(shape) + 1) if starts[0][k] in starts[1]), None)
    if after is None:
        return None
    begin = int(np.flatnonzero(starts[1] == starts[0][before])[-1])
    end = int(np.flatnonzero(starts[1] == starts[0][after])[0])
    if end <= begin:
        return None
    part = np.broadcast_to(mask.reshape(mask.shape[before:after]), shape[before:after]).reshape(own[begin:end])
    for axis in range(part.ndim):
        first = part.take([0], axis=axis)
        part = first if (part == first).all() else part
    return part.reshape((1,) * begin + part.shape + (1,) * (len(own) - end))


_Pick = dict[int, np.ndarray]
"""For axes of a tensor: which places a node takes, an array of no axis where it takes one and drops the axis."""


def _picks(analysis: Analysis, number: int) -> list[_Pick] | None:
    """Return what each output of a Slice, Split or Gather takes of the input, None for other nodes."""
    node = analysis.nodes[number]
    shape = analysis.sizes.shape(node.inputs[0].name) if node.op in ("Slice", "Split", "Gather") else None
    if shape is None:
        return None
    if node.op == "Split":
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        sizes = [(analysis.sizes.shape(tensor.name) or shape)[axis] for tensor in node.outputs]
        if sum(sizes) != shape[axis]:
            return None
        return [{axis: np.arange(stop - size, stop)} for stop, size in zip(np.cumsum(sizes), sizes, strict=True)]
    if node.op == "Gather":
        places = analysis.sizes.values.get(node.inputs[1].name)
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        return None if places is None or places.ndim > 1 else [{axis: places % shape[axis]}]
    known = [_integers(analysis, number, name, index)
             for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)]  # fmt: skip
    starts, ends, axes, steps = known
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    bounds = zip(axes, starts, ends, steps, strict=True)
    return [{axis % len(shape): np.arange(shape[axis])[slice(start, end, step)] for axis, start, end, step in bounds}]


def _integers(analysis: Analysis, number: int, name: str, index: int) -> list[int] | None:
    node = analysis.nodes[number]
    if name in node.attrs:
        return [int(value) for value in node.attrs[name]]
    value = analysis.sizes.values.get(node.inputs[index].name) if index < len(node.inputs) else None
    return None if value is None else [int(entry) for entry in value.reshape(-1)]


def _unpicked(pick: _Pick, own: tuple[int, ...], place: _Place) -> _Place:
    """Return where a tensor is multiplied in place of what is taken of it."""
    position, mask = place.position, place.mask
    for axis, places in pick.items():
        whole = places.ndim == 1 and np.array_equal(places, np.arange(own[axis]))
        if places.ndim == 0:
            position += axis <= position
            mask = None if mask is None else np.expand_dims(mask, axis)
        if whole:
            continue
        inner = np.ones((1,) * len(own), bool) if mask is None else mask
        if inner.shape[axis] == 1:
            inner = np.repeat(inner, places.size, axis=axis)
        mask = np.zeros((*inner.shape[:axis], own[axis], *inner.shape[axis + 1 :]), bool)
        for k, target in enumerate(places.reshape(-1)):
            np.moveaxis(mask, axis, 0)[target] |= np.moveaxis(inner, axis, 0)[k]
    return replace(place, position=position, mask=mask)


def _read_by(analysis: Analysis, number: int, index: int, rank: int) -> np.ndarray:
    """Return which elements of a tensor a node reads."""
    picks = _picks(analysis, number) if index == 0 else None
    if picks is None or len(picks) > 1:
        return np.ones((1,) * rank, bool)
    own = tuple(analysis.sizes.shape(analysis.nodes[number].inputs[0].name) or ())
    mask = _unpicked(picks[0], own, _Place(0)).mask
    return np.ones((1,) * rank, bool) if mask is None else mask


def _part(analysis: Analysis, dims: set[Dim], number: int, index: int, place: _Place) -> _Place | list[Carrier] | None:
    """Return where one of the parts of a Concat is multiplied."""
    node = analysis.nodes[number]
    sizes = [[axis.size for axis in analysis.input_axes(number, i) or ()] for i in range(len(node.inputs))]
    rank = len(sizes[index])
    along = int(node.attrs.get("axis", 1)) % rank
    if any(len(own) != rank for own in sizes):
        return None
    axes = analysis.input_axes(number, index) or ()
    if not dims & leaf_set(axes[place.position]):
        return [] if along == place.position else None
    if place.mask is None or place.mask.shape[along] == 1:
        return place
    start = sum(own[along] for own in sizes[:index])
    mask = place.mask.take(range(start, start + sizes[index][along]), axis=along)
    return replace(place, mask=mask) if mask.any() else []
