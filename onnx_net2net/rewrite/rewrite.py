"""From maps to a student: weights, attributes, sizes, and the few nodes that a map needs.

Weights are rewritten lazily: what is put into the draft here is computed when the student is saved. Of the three
kinds of numbers that follow a width, attributes (`group`) are set, size constants are replaced at the one input
that reads them, and sizes taken from Shape follow by themselves, also where they must not: a size that is used
as data (sqrt of a head's width, 1 / N) keeps the teacher's value.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from typing import Any

import numpy as np
from onnx import helper

from onnx_net2net.algebra.dims import Axes, Axis, Dim, leaves
from onnx_net2net.algebra.maps import (
    NEVER,
    ORIGINS,
    Filler,
    Growth,
    Map,
    Side,
    Style,
    compose,
    evened,
    grow,
    halved,
    new_size,
)
from onnx_net2net.analysis.inference import SHAREABLE, Analysis, Inserted, Use, constant_of, is_fill
from onnx_net2net.analysis.linearity import Norm, Weighing, find_norms, weighings
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.analysis.padding import Scales, State, States, follow
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph import sizes
from onnx_net2net.graph.graph import Constant, Node, Tensor, Variable, dtype_of
from onnx_net2net.model.model import Model
from onnx_net2net.rewrite.norms import Corrections, adapt_normalisers, fill_up
from onnx_net2net.rewrite.scaling import Scaling
from onnx_net2net.rules.op import Contraction, Selection


@dataclass(frozen=True)
class Role:
    """A constant weighs the units that a sum runs over.

    Attributes:
        contraction: The sum.
        silent: Whether padding units hold zero there.
        units: Which of the teacher's units on the axis are weighed; None for all.
        even: Whether copies of a unit get equal shares.
    """

    contraction: Contraction
    silent: bool
    units: np.ndarray | None = None
    even: bool = False


Roles = dict[tuple[int, int], dict[int, Role]]
"""For each read of a constant (node, input): the axes that it weighs."""


@dataclass(frozen=True)
class GrownConstant:
    """How a constant grows where some nodes read it; there is none for constants of which no read grows.

    Attributes:
        teacher: Its name in the teacher: an initializer's, or that of the output of a Constant node.
        student: Its name in the student.
        scopes: The modules of the nodes that read its values, and not its shape only; "" where the file does not tell.
        sides: How each axis grows.
        filler: What it has for units that are no copies.
        factor: By which all of it is multiplied.
        style: How new values are drawn.
    """

    teacher: str
    student: str
    scopes: tuple[str, ...]
    sides: tuple[Side, ...]
    filler: Filler
    factor: float
    style: Style


def rewrite(
    teacher: Model,
    analysis: Analysis,
    growth: Growth,
    style: Style,
    metadata: dict[str, str],
    scaling: Scaling | None = None,
) -> tuple[Model, list[GrownConstant]]:
    """Grow a model.

    Args:
        teacher: The model that was analysed.
        analysis: Its dims; the draft in it is edited and must not be used again.
        growth: Map of each dim that grows.
        style: How new values are drawn.
        metadata: Entries for the student's metadata.
        scaling: By what weights around padded dims are multiplied so that normalisers keep their epsilon; by default
            these get another one, or nodes around them, and outputs that are hidden units too are cut.

    Returns:
        The student, whose weights are computed when it is saved, and how each constant grew.

    Raises:
        RefusedError: If a map cannot be carried out exactly; says where and why.
    """
    roles: Roles = {}
    padding = follow(analysis, _pads(growth))
    unweighed = scaling.unweighed if scaling else set()
    norms = _changed_norms(analysis, growth)
    inserts = list(_weigh_contractions(analysis, growth, roles, padding.states, unweighed.union(norms)))
    for norm in norms.values():
        roles.update({use: roles[norm.weight] for use in norm.uses if norm.weight in roles})
    corrections = adapt_normalisers(analysis, growth, keep_epsilon=scaling is not None)
    biases = _biases(analysis, growth)
    corrections.update((bias, (1.0, "bias")) for bias in biases.values())
    corrections.update((scale, (1.0, "size")) for made in padding.scales.values() for scale in made.values())
    for key, factor in _rescale(analysis, growth).items():
        others = corrections.get(key, (1.0, "copy"))
        corrections[key] = others[0] * factor, others[1]
    for key, factor in scaling.factors.items() if scaling else ():
        usual: Filler = "copy" if _scales_units(analysis, key) else "own"
        others = corrections.get(key, (1.0, usual))
        corrections[key] = others[0] * factor, others[1]
    scales = _read_scales(analysis, padding.scales)
    gains = _gains(analysis, norms.values(), growth, roles, style)
    grown = list(_rewrite_constants(teacher, analysis, growth, roles, style, corrections, scales, gains))
    for node, index, position, map in inserts:
        _insert(analysis, "Mul", node, index, position, map.weight)
    _keep_shares(analysis, growth)
    _silence_new_classes(analysis, growth)
    resize(teacher, analysis, growth)
    if scaling is None:
        fill_up(analysis, growth, sizes.versions_of(teacher.proto)[""])
    _add_priors(analysis, growth, style, biases.keys())
    if scaling is None:
        _cut_outputs(analysis, growth)
    restate_shapes(analysis, growth)
    drop_unread(analysis)
    return analysis.draft.finish(metadata), grown


def _grown(axis: Axis, growth: Growth) -> set[Dim]:
    return {dim for dim in leaves(axis) if dim in growth}


def _pads(growth: Growth) -> dict[Dim, State]:
    """Return the dims with units that start as the mean of the others or as zero."""
    starts = {ORIGINS.index("mean"): "mean", ORIGINS.index("zero_in"): "zero"}
    return {dim: starts[int(map.kind.max())] for dim, map in growth.items() if int(map.kind.max()) in starts}  # type: ignore[misc]


# --- Sums: somebody has to weigh the copies ------------------------------------------------------------------


def _weigh_contractions(
    analysis: Analysis, growth: Growth, roles: Roles, states: States, unweighed: Collection[int]
) -> Iterator[tuple[Node, int, int, Map]]:
    """Find for each sum the weights that weigh the copies; yield those that need a node of their own."""
    weighed_with: set[int] = set()
    ways: list[tuple[int, Contraction, Weighing | None]] = []
    for number, said in analysis.said.items():
        for contraction in said.contractions if number not in unweighed else ():
            weighed = _grown(contraction.axis, growth)
            if not weighed or number in analysis.rescaled or number in weighed_with:
                continue
            maps = [
                _weights(contraction, analysis.input_axes(number, index) or (), position, growth, weighed)
                for index, position in contraction.sides
            ]
            if all(np.allclose(map.weight, 1, rtol=0, atol=1e-12) for map in maps):
                continue  # a mean over equally many copies is the mean
            way = next(weighings(analysis, number, contraction, growth.__contains__), None)
            weighed_with |= way.together if way else frozenset()
            ways.append((number, contraction, way))
    for number, contraction, way in ways:
        if number in weighed_with:  # by what a later one is weighed by
            continue
        weighed = _grown(contraction.axis, growth)
        if way is None:
            index, position = contraction.sides[-1]
            exact = {**growth, **{dim: halved(growth[dim]) for dim in weighed}}  # powers of two round nothing
            map = _weights(contraction, analysis.input_axes(number, index) or (), position, exact, weighed)
            yield analysis.nodes[number], index, position, map
            continue
        silent = _is_silent(analysis, number, contraction, way.index, weighed, states)
        for place in way.carriers:
            role = Role(contraction, silent, place.units, place.even)
            roles.setdefault((place.node, place.input), {})[place.position] = role


def _rescale(analysis: Analysis, growth: Growth) -> dict[tuple[int, int], float]:
    """Let constants in front of a sum carry the division of all copies by their number, which a tied weight cannot."""
    factors: dict[tuple[int, int], float] = {}
    for number, constants in analysis.rescaled.items():
        for contraction in analysis.said[number].contractions:
            weighed = _grown(contraction.axis, growth)
            index, position = contraction.sides[0]
            map = _weights(contraction, analysis.input_axes(number, index) or (), position, growth, weighed)
            for node, place in constants if weighed else ():
                factors[node, place] = float(map.weight[0])
    return factors


Gains = dict[tuple[int, int], tuple[int, Callable[[], np.ndarray]]]
"""For reads of constants (node, input): an axis, and what computes the factors of the student's units along it."""


def _changed_norms(analysis: Analysis, growth: Growth) -> dict[int, Norm]:
    """Return the norms of weights that change because copies share these, by the node that sums the squares."""
    norms = find_norms(analysis)
    summed = {number: [c.axis for c in analysis.said[number].contractions] for number in norms}
    return {number: norm for number, norm in norms.items() if any(_grown(a, growth) for a in summed[number])}


def _gains(analysis: Analysis, norms: Iterable[Norm], growth: Growth, roles: Roles, style: Style) -> Gains:
    """Let gains make up for other norms of weights: g' = g |v| / |v'|."""
    gains: Gains = {}
    for norm in norms:
        use = analysis.uses[norm.weight]
        sides = _sides(use, growth, roles, {})
        read, salt = analysis.draft.reader(use.constant), _salt(analysis, use.constant.name)
        compute = _Computation(read, sides, style, salt, "own", 1.0, None)
        factors = partial(_factors, read, compute, norm, sides[norm.kept].map.index)
        gains.update({(gain.node, gain.input): (gain.position, factors) for gain in norm.gains})
    return gains


def _factors(
    read: Callable[[], np.ndarray], compute: Callable[[], np.ndarray], norm: Norm, index: np.ndarray
) -> np.ndarray:
    """Return by what a gain makes up for the norms of weights, of which the student has other ones."""
    old, new = (
        np.square(values, dtype=np.float64).sum(axis=tuple(p for p in range(values.ndim) if p != norm.kept))
        for values in (read(), compute())
    )
    whole = (old[index] > 0) & (new > 0)  # where a weight is zero, so is its product with any gain
    return np.where(whole, np.divide(old[index], new, where=whole, out=np.ones_like(new)) ** norm.power, 1.0)


def _is_silent(
    analysis: Analysis, number: int, contraction: Contraction, carrier: int, weighed: set[Dim], states: States
) -> bool:
    """Tell whether padding units hold zero in every other operand, so that any weights read them."""
    others = [index for index, _ in contraction.sides if index != carrier]
    held = [states.get(analysis.nodes[number].inputs[index].name, {}) for index in others]
    return bool(others) and all(state.get(dim) == "zero" for state in held for dim in weighed if dim in state)


def _weights(contraction: Contraction, axes: Axes, position: int, growth: Growth, weighed: set[Dim]) -> Map:
    if contraction.law != "sum":  # a mean has equal shares
        growth = {**growth, **{dim: evened(growth[dim]) for dim in weighed}}
    map = compose(axes[position], growth, weighed)
    if contraction.law == "mean":
        return changed(map, weight=map.weight * (new_size(contraction.axis, growth) / contraction.axis.size))
    if contraction.law == "square":
        return changed(map, weight=np.sqrt(map.weight))
    return map


def _insert(analysis: Analysis, kind: str, node: Node, index: int, position: int, values: np.ndarray) -> None:
    """Multiply an operand by weights of its units, where no weight could carry them, or add to it."""
    tensor = node.inputs[index]
    scaled = Variable(analysis.draft.unique_name(f"{tensor.name}_weighed"), dtype=tensor.dtype)
    analysis.sizes.types[scaled.name] = analysis.sizes.types[tensor.name]  # another axis may be weighed after this
    analysis.axes[scaled.name] = analysis.input_axes(analysis.numbers[id(node)], index) or ()
    _combine(analysis, kind, node.name or tensor.name, tensor, position, values, scaled)
    node.inputs[index] = scaled


def _append(analysis: Analysis, kind: str, node: Node, position: int, values: np.ndarray) -> None:
    """Multiply the result of a node by one value for each unit of an axis, or add to it."""
    result = node.outputs[0]
    node.outputs[0] = inner = Variable(analysis.draft.unique_name(f"{result.name}_plain"), dtype=result.dtype)
    analysis.sizes.types[inner.name] = analysis.sizes.types[result.name]
    _combine(analysis, kind, node.name or result.name, inner, position, values, result)


def _combine(
    analysis: Analysis, kind: str, name: str, tensor: Tensor, position: int, values: np.ndarray, result: Variable
) -> None:
    """Add a node that combines a tensor with one value for each unit of an axis."""
    draft = analysis.draft
    rank = len(analysis.sizes.shape(tensor.name) or ())
    values = values.astype(_numpy_dtype(analysis, tensor)).reshape(-1, *(1,) * (rank - 1 - position))
    weights = draft.constant(f"{tensor.name}_weights", values)
    draft.graph.nodes.append(Node(kind, draft.unique_name(f"{name}_weigh"), {}, [tensor, weights], [result]))
    analysis.inserted.append(Inserted(f"{kind} at", name))


def _keep_shares(analysis: Analysis, growth: Growth) -> None:
    """Let copies under a Softmax share what their unit had, and give each of them the whole of it behind.

    With the logarithm of their number taken off c copies of x, their sum is c * e^(x - log c) = e^x.
    """
    for number, said in analysis.said.items():
        for position in said.shares:
            map = compose((analysis.input_axes(number, 0) or ())[position], growth)
            old = map.kind == 0  # new classes are no copies
            copies = np.where(old, np.bincount(map.index[old])[map.index], 1)
            if (copies == 1).all():
                continue
            _insert(analysis, "Add", analysis.nodes[number], 0, position, -np.log(copies))
            _append(analysis, "Mul", analysis.nodes[number], position, copies)


def _numpy_dtype(analysis: Analysis, tensor: Tensor) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(analysis.sizes.dtype(tensor.name)))
    return dtype


# --- Weights -------------------------------------------------------------------------------------------------


ScaleReaders = dict[tuple[int, int], dict[Dim, Callable[[], np.ndarray]]]
"""For reads of constants (node, input): what reads the scale that the units of a dim get in a later node."""


def _read_scales(analysis: Analysis, scales: Scales) -> ScaleReaders:
    """Return for each constant whose units are scaled later what reads the scale: one reader for each scale."""
    used = {scale for made in scales.values() for scale in made.values()}
    readers = {scale: analysis.draft.reader(analysis.uses[scale].constant) for scale in used}
    return {key: {dim: readers[scale] for dim, scale in made.items()} for key, made in scales.items()}


def _rewrite_constants(
    teacher: Model,
    analysis: Analysis,
    growth: Growth,
    roles: Roles,
    style: Style,
    corrections: Corrections,
    scales: ScaleReaders,
    gains: Gains,
) -> Iterator[GrownConstant]:
    """Give every constant its grown values; uses that grow alike share one tensor, as they did."""
    for uses in analysis.readings():
        gained = any((use.node, use.input) in gains for use in uses)
        if gained or any(_grown(axis, growth) for use in uses for axis in use.axes):
            yield from _rewrite_constant(teacher, analysis, uses, growth, roles, style, corrections, scales, gains)


def _rewrite_constant(
    teacher: Model,
    analysis: Analysis,
    uses: list[Use],
    growth: Growth,
    roles: Roles,
    style: Style,
    corrections: Corrections,
    scales: ScaleReaders,
    gains: Gains,
) -> Iterator[GrownConstant]:
    alike: dict[tuple[object, ...], list[tuple[Use, list[Side]]]] = {}
    settings: dict[tuple[object, ...], tuple[Filler, float]] = {}
    for use in sorted(uses, key=lambda use: not _reads_values(analysis, use)):
        sides = _sides(use, growth, roles, scales.get((use.node, use.input), {}))
        usual: Filler = "copy" if _scales_units(analysis, (use.node, use.input)) else "own"
        factor, filler = corrections.get((use.node, use.input), (1.0, usual))
        if not (style.noise or any(side.map.kind.any() for side in sides)):
            filler = "own"  # copies have no new values
        zero = _zero_point(analysis, use) if any(side.reads for side in sides) else None
        gain = gains.get((use.node, use.input))
        key: tuple[object, ...] = (*(side.key for side in sides), filler, factor, id(zero), id(gain))
        settings[key] = filler, factor
        sizes = [side.map.new for side in sides]
        is_type = not _reads_shape(analysis, use)
        fit = (group for group in alike.values() if is_type or [side.map.new for side in group[0][1]] == sizes)
        group = None if _reads_values(analysis, use) else next(fit, None)
        group = alike.setdefault(key, []) if group is None else group
        group.append((use, sides))
    constant = uses[0].constant
    original = analysis.draft.reader(constant)
    dtype = helper.np_dtype_to_tensor_dtype(dtype_of(constant))
    name = constant.name
    shown = shown_name(analysis.nodes[uses[0].node].inputs[uses[0].input])
    still = {key for key, ((use, sides), *_) in alike.items()
             if all(side.map.is_identity for side in sides) and (use.node, use.input) not in gains}  # fmt: skip
    kept = bool(still)
    is_matrix = sum(axis.size > 1 for axis in uses[0].axes) > 1
    if len(alike) > 1 and is_matrix and not is_fill(original()):  # exporters merge vectors of equal values, and zeros
        analysis.untied.append(name)
    for key, group in alike.items():
        (use, sides), (filler, factor) = group[0], settings[key]
        readers = [use.node for use, _ in group if _reads_values(analysis, use)]
        scopes = tuple(scope_of(teacher.proto.graph.node[node]) for node in readers)
        record = GrownConstant(shown, shown, scopes, tuple(sides), filler, factor, style)
        if key in still:
            yield record
            continue
        shape = [side.map.new for side in sides]
        read_zero = _zero_reader(analysis, use)
        salt = _salt(analysis, name)
        compute = _Computation(original, sides, style, salt, filler, factor, read_zero)
        compute.gain = gains.get((use.node, use.input))
        if not kept:
            analysis.draft.replace(constant, shape, compute)
            kept = True
            yield record
            continue
        own = analysis.draft.lazy_constant(name, dtype, shape, compute, like=constant)
        yield changed(record, student=own.name)
        for use, _ in group:
            analysis.nodes[use.node].inputs[use.input] = own


def _salt(analysis: Analysis, name: str) -> int:
    """Return what tells the draws of a constant apart; copies stay copies."""
    return zlib.crc32(analysis.copies.get(name, name).encode())


def _scales_units(analysis: Analysis, key: tuple[int, int]) -> bool:
    """Tell whether an input multiplies each unit by a number of its own."""
    return key[1] in analysis.said[key[0]].scales


def _reads_values(analysis: Analysis, use: Use) -> bool:
    """Tell whether a node reads the values of a constant; else it can take another version of it."""
    return use.input not in analysis.said[use.node].ignored


def _reads_shape(analysis: Analysis, use: Use) -> bool:
    """Tell whether a node reads the shape of a constant, and no values."""
    return analysis.nodes[use.node].op in ("Shape", "Size")


def shown_name(tensor: Tensor) -> str:
    """Return the name of the initializer, or of a Constant node's output, that a tensor is an alias of."""
    while not isinstance(tensor, Constant) and tensor.inputs[0].op == "Identity":
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)


class _Computation:
    """The grown values of one constant, computed whenever they are asked for, always the same."""

    def __init__(
        self,
        read: Callable[[], np.ndarray],
        sides: list[Side],
        style: Style,
        salt: int,
        filler: Filler,
        factor: float,
        zero: Callable[[], np.ndarray] | None,
    ) -> None:
        self._read, self._sides, self._style, self._zero = read, sides, style, zero
        self._salt, self._filler, self._factor = salt, filler, factor
        self.gain: tuple[int, Callable[[], np.ndarray]] | None = None

    def __call__(self) -> np.ndarray:
        rng = np.random.Generator(np.random.SFC64([self._style.seed, self._salt]))
        zero = self._zero() if self._zero is not None else None
        values = grow(self._read(), self._sides, self._style, rng, self._filler, self._factor, zero)
        if self.gain is not None:
            position, factors = self.gain
            values *= factors().astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1 - position))
        return values


def _holds_integers(analysis: Analysis, use: Use) -> bool:
    """Tell whether copies can share the values of a constant in whole parts."""
    tensor = analysis.nodes[use.node].inputs[use.input]
    return use.input in analysis.said[use.node].integers and analysis.sizes.dtype(tensor.name) in SHAREABLE


def _zero_point(analysis: Analysis, use: Use) -> Constant | None:
    """Return what the integers of a constant are counted from, None where that is 0."""
    integers = analysis.said[use.node].integers.get(use.input)
    zero = analysis.uses.get((use.node, integers.zero_point)) if integers else None
    return zero.constant if zero else None


def _zero_reader(analysis: Analysis, use: Use) -> Callable[[], np.ndarray] | None:
    """Return what reads the zero point of integers, in a shape that broadcasts with them; None for other constants."""
    if not _holds_integers(analysis, use):
        return None
    constant = _zero_point(analysis, use)
    if constant is None:
        return lambda: np.zeros((), np.int8)
    axis = analysis.said[use.node].integers[use.input].axis
    read, shape = analysis.draft.reader(constant), [part.size for part in use.axes]

    def zero() -> np.ndarray:
        values = read()
        if values.ndim == 1:
            return values.reshape([-1 if position == axis else 1 for position in range(len(shape))])
        for position, size in enumerate(shape[len(shape) - values.ndim :]):
            if values.shape[position] not in (1, size):  # one for each block
                values = np.repeat(values, size // values.shape[position], axis=position)
        return values

    return zero


def _sides(use: Use, growth: Growth, roles: Roles, scales: dict[Dim, Callable[[], np.ndarray]]) -> list[Side]:
    weighs = roles.get((use.node, use.input), {})
    sides = []
    for position, axis in enumerate(use.axes):
        if position not in weighs:
            scale = next((scales[dim] for dim in leaves(axis) if dim in scales), None)
            sides.append(Side(compose(axis, growth), scale=scale))
            continue
        role = weighs[position]
        weighed = _grown(role.contraction.axis, growth)
        even = role.even or role.contraction.law != "sum" or weighed != _grown(axis, growth)
        map = _weights(role.contraction, use.axes, position, growth, weighed)
        if role.units is not None:
            map = changed(map, weight=np.where(role.units[map.index], map.weight, 1.0))
        side = Side(map, reads=True, spread=not even, silent=role.silent)
        if role.contraction.law == "sum" and (role.units is not None or weighed != _grown(axis, growth)):
            whole = compose(axis, growth).weight
            side = changed(side, shares=np.divide(whole, map.weight, out=np.zeros(map.new), where=map.weight > 0))
        sides.append(side)
    return sides


# --- Numbers that are sizes ----------------------------------------------------------------------------------


def resize(teacher: Model, analysis: Analysis, growth: Growth) -> None:
    """Give every node the numbers that it needs at the new sizes, whose constants must have them already."""
    _rewrite_attributes(analysis, growth)
    _rewrite_sizes(teacher, analysis, growth)
    for number, said in analysis.said.items():
        for selection in said.selections:
            _rewrite_selection(analysis, number, selection, growth)
        _rewrite_runs(analysis, number, growth)


def _rewrite_attributes(analysis: Analysis, growth: Growth) -> None:
    """Set the attributes that are sizes; places on an axis that still mean the same stay as they are written."""
    for number, said in analysis.said.items():
        attrs = analysis.nodes[number].attrs
        missing: dict[str, dict[int, tuple[int, int]]] = {}
        for name, value, axis in said.defaults:
            if _grown(axis, growth):
                attrs[name] = value
                analysis.note(f"{name} in {analysis.nodes[number].op}", analysis.nodes[number])
        for size in said.size_attributes:
            old, new = _total(size.axes, growth)
            if size.element is None:
                if old != new:
                    attrs[size.name] = new
            elif size.name not in attrs:
                missing.setdefault(size.name, {})[size.element] = old, new
            elif size.whole is None or _place(attrs[size.name][size.element], new_size(size.whole, growth)) != new:
                attrs[size.name] = [new if k == size.element else v for k, v in enumerate(attrs[size.name])]
        for name, entries in missing.items():  # equal parts that need not be written down, until they differ
            if len({new for _, new in entries.values()}) > 1 and any(old != new for old, new in entries.values()):
                attrs[name] = [new for _, (_, new) in sorted(entries.items())]


def _total(axes: Sequence[Axis], growth: Growth) -> tuple[int, int]:
    return sum(axis.size for axis in axes), sum(new_size(axis, growth) for axis in axes)


def _rewrite_sizes(teacher: Model, analysis: Analysis, growth: Growth) -> None:
    """Give each node the numbers that it needs at the student's sizes, where the graph would not compute them."""
    student = _student_sizes(teacher, analysis, growth)
    arithmetic = set(analysis.sizes.values)
    for number, node in enumerate(list(analysis.nodes)):
        needs = _needs(analysis, number, growth)
        passes_on = any(output.name in arithmetic for output in node.outputs)
        for index, tensor in enumerate(node.inputs):
            have, need = student.values.get(tensor.name), needs.get(index)
            is_data = need is None and not passes_on
            if is_data:  # it keeps its value
                need = analysis.sizes.values.get(tensor.name)
            if have is not None and need is not None and have.shape == need.shape and not np.array_equal(have, need):
                node.inputs[index] = _supply(analysis, tensor, have, need)
                if is_data:
                    analysis.note(f"the teacher's size in {node.op}", node, is_number=True)
        _split_unequal(analysis, number, growth)
    kept = {tensor.name: f"the model's output {tensor.name!r}" for tensor in analysis.draft.graph.outputs}
    for node in analysis.nodes:
        kept.update(dict.fromkeys(analysis.draft.captured(node), f"what {node.op} {node.name!r} reads in its body"))
    for name, what in kept.items():
        have, need = student.values.get(name), analysis.sizes.values.get(name)
        if have is not None and need is not None and not np.array_equal(have, need):
            raise RefusedError(f"{what} is a size that would grow")


def _student_sizes(teacher: Model, analysis: Analysis, growth: Growth) -> sizes.Sizes:
    types = dict(analysis.sizes.types)
    for name, axes in analysis.axes.items():
        if any(_grown(axis, growth) for axis in axes):
            types[name] = helper.make_tensor_type_proto(
                analysis.sizes.dtype(name), [new_size(axis, growth) for axis in axes]
            )
    for use in analysis.uses.values():  # a constant may have grown for some of its readers only, under other names
        name = use.constant.name
        types[name] = helper.make_tensor_type_proto(analysis.sizes.dtype(name), use.constant.shape)
    return sizes.reevaluate(teacher.proto, analysis.sizes, types)


def _needs(analysis: Analysis, number: int, growth: Growth) -> dict[int, np.ndarray]:
    """Return the values that the integer inputs of a node must have in the student."""
    needs: dict[int, np.ndarray] = {}
    node = analysis.nodes[number]
    for size in analysis.said[number].size_inputs if number in analysis.said else ():
        if size.input >= len(node.inputs):
            continue
        raw = analysis.sizes.values.get(node.inputs[size.input].name)
        if raw is None:
            continue
        need = needs.setdefault(size.input, raw.copy())
        old, new = _total(size.axes, growth)
        given = int(raw.reshape(-1)[size.element])
        if size.whole is not None:
            if _place(given, new_size(size.whole, growth)) != new:
                need.reshape(-1)[size.element] = new
            continue
        if given in size.instead:
            stands_for = size.instead[given]
            if stands_for is None or new_size(stands_for, growth) == new:
                continue
        elif old == new:
            continue
        need.reshape(-1)[size.element] = new
    return needs


def _place(given: int, size: int) -> int:
    """Return the place that a bound means on an axis of a size."""
    return max(0, min(given + size if given < 0 else given, size))


def _supply(analysis: Analysis, tensor: Tensor, have: np.ndarray, need: np.ndarray) -> Tensor:
    """Return a tensor of the needed value: a constant, or the computed one corrected where sizes are dynamic."""
    draft = analysis.draft
    if not analysis.sizes.binding or tensor.name in analysis.sizes.constant:
        return draft.constant(f"{tensor.name}_grown", need)
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is not None and producer.op == "Concat" and have.ndim == 1:
        parts, start = [], 0
        for part in producer.inputs:
            stop = start + int(np.prod(analysis.sizes.shape(part.name) or (1,)))
            same = np.array_equal(have[start:stop], need[start:stop])
            parts.append(part if same else _supply(analysis, part, have[start:stop], need[start:stop]))
            start = stop
        return _emit(analysis, "Concat", parts, tensor, axis=0)
    times = draft.constant(f"{tensor.name}_times", need)
    over = draft.constant(f"{tensor.name}_over", np.where(have == 0, 1, have).astype(have.dtype))
    return _emit(analysis, "Div", [_emit(analysis, "Mul", [tensor, times], tensor), over], tensor)


def _emit(analysis: Analysis, kind: str, inputs: list[Tensor], like: Tensor, **attrs: int) -> Tensor:
    draft = analysis.draft
    output = Variable(draft.unique_name(f"{like.name}_grown"), dtype=like.dtype)
    draft.graph.nodes.append(Node(kind, draft.unique_name(f"{like.name}_{kind}"), dict(attrs), list(inputs), [output]))
    return output


def _split_unequal(analysis: Analysis, number: int, growth: Growth) -> None:
    """Write down the sizes of a Split that gave none, where its parts no longer are equal."""
    node, said = analysis.nodes[number], analysis.said.get(number)
    if node.op != "Split" or said is None or not said.size_inputs or len(node.inputs) > 1:
        return
    totals = [_total(size.axes, growth) for size in said.size_inputs]
    if any(old != new for old, new in totals) and len({new for _, new in totals}) > 1:
        node.attrs.pop("num_outputs", None)
        node.inputs.append(analysis.draft.constant(f"{node.outputs[0].name}_sizes", np.array([n for _, n in totals])))


# --- Rearranged units ----------------------------------------------------------------------------------------


def _rewrite_selection(analysis: Analysis, number: int, selection: Selection, growth: Growth) -> None:
    """Say where the picked units are in the grown source; a shuffle or a strided Slice becomes one Gather."""
    if not any(_grown(unit, growth) for unit in selection.units):
        return
    widths = np.array([new_size(unit, growth) for unit in selection.units])
    starts = np.cumsum(widths) - widths
    places = np.concatenate([np.arange(starts[k], starts[k] + widths[k]) for k in selection.order])
    node, draft = analysis.nodes[number], analysis.draft
    if selection.input is not None:
        shape = analysis.sizes.shape(node.inputs[selection.input].name) or ()
        places = places.reshape([len(places) if size > 1 else 1 for size in shape])
    index = draft.constant(f"{node.outputs[0].name}_order", places.astype(np.int64))
    if selection.input is not None:
        node.inputs[selection.input] = index
        analysis.note(f"places for {node.op}", node)
        return
    output = node.outputs[0]
    node.outputs.clear()
    first = analysis.nodes[analysis.shuffles[number].first] if number in analysis.shuffles else node
    name = draft.unique_name(f"{node.name or output.name}_Gather")
    draft.graph.nodes.append(Node("Gather", name, {"axis": selection.axis}, [first.inputs[0], index], [output]))
    analysis.inserted.append(Inserted(f"Gather instead of {node.op}", node.name or output.name))


def _rewrite_runs(analysis: Analysis, number: int, growth: Growth) -> None:
    """Write a list of places down anew, whose runs are longer or lie elsewhere; its other columns stay.

    Places that count from the end of an axis lie elsewhere, too, where only what is behind them grows.
    """
    runs = analysis.said[number].runs
    if not any(_grown(axis, growth) for run in runs for axis in (run.before, run.units, run.rest)):
        return
    node, index = analysis.nodes[number], runs[0].input
    places = _listed(analysis, number, index)
    for run in runs:
        start, size = new_size(run.before, growth), new_size(run.units, growth)
        places = np.take(places, np.zeros(size, np.int64), axis=run.along)
        shape = [size if axis == run.along else 1 for axis in range(places.ndim - 1)]
        places[..., run.column] = np.arange(start, start + size).reshape(shape)
    node.inputs[index] = analysis.draft.constant(f"{node.outputs[0].name}_places", places)
    analysis.note(f"places for {node.op}", node)


def _listed(analysis: Analysis, number: int, index: int) -> np.ndarray:
    """Return the integers that a node reads."""
    use = analysis.uses.get((number, index))
    tensor = analysis.nodes[number].inputs[index]
    return analysis.draft.read(use.constant) if use else analysis.sizes.values[tensor.name]


# --- The interface -------------------------------------------------------------------------------------------


def _classes(growth: Growth, origin: str) -> set[Dim]:
    """Return the dims that have new classes of a kind."""
    return {dim for dim, map in growth.items() if ORIGINS[int(map.kind.max())] == origin}


def _biases(analysis: Analysis, growth: Growth) -> dict[Dim, tuple[int, int]]:
    """Find for new classes the first constant (node, input) that is added to them, which can hold their prior."""
    biases: dict[Dim, tuple[int, int]] = {}
    for key, use in sorted(analysis.uses.items()):
        said = analysis.said[use.node]
        weighs = any(index == use.input for contraction in said.contractions for index, _ in contraction.sides)
        if analysis.nodes[use.node].op in ("Add", "Sum") or (said.contractions and not weighs):
            for dim in {dim for axis in use.axes for dim in leaves(axis)} & _classes(growth, "prior"):
                biases.setdefault(dim, key)
    return biases


def _silence_new_classes(analysis: Analysis, growth: Growth) -> None:
    """Take so much off new classes in front of a softmax that it gives them a probability of 0.

    What stands between may do anything to a logit (the gain of Div, the sign of Neg), so that no bias could.
    """
    silent = _classes(growth, "never")
    for number, said in analysis.said.items() if silent else ():
        normalised = {dim for axis in said.normalised for dim in leaves(axis)} & silent
        for position, axis in enumerate(analysis.input_axes(number, 0) or ()):
            if normalised & set(leaves(axis)):
                new = compose(axis, growth).kind == ORIGINS.index("never")
                _insert(analysis, "Add", analysis.nodes[number], 0, position, np.where(new, NEVER, 0.0))


def _add_priors(analysis: Analysis, growth: Growth, style: Style, biased: Collection[Dim]) -> None:
    """Add a bias that holds the prior of new classes, where the layer that makes them has none."""
    classes = _classes(growth, "prior").difference(biased)
    if not classes:
        return
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        if not said.contractions or not any((number, index) in analysis.uses for index in range(len(node.inputs))):
            continue
        axes = analysis.axes.get(node.outputs[0].name, ())
        for position, axis in enumerate(axes):
            made = _grown(axis, growth) & classes
            if made:
                new = compose(axis, growth, made).kind == ORIGINS.index("prior")
                _append(analysis, "Add", node, position, np.where(new, style.logit, 0.0))


def _cut_outputs(analysis: Analysis, growth: Growth) -> None:
    """Cut outputs that are hidden units too back to the teacher's, and to what they were to have more."""
    draft = analysis.draft
    asked = {dim: changed(map, first=np.ones(map.new, bool)) for dim, map in growth.items() if dim.pinned}
    for output in draft.graph.outputs:
        maps = [compose(axis, {**growth, **asked}) for axis in analysis.axes.get(output.name, ())]
        grown = [position for position, map in enumerate(maps) if not map.first.all()]
        if not grown or output.name not in analysis.cut:
            continue
        if output.shape is not None:
            sizes = zip(maps, output.shape, strict=True)
            output.shape = [stated if map.first.sum() == map.old else int(map.first.sum()) for map, stated in sizes]
        inner = Variable(draft.unique_name(f"{output.name}_grown"), dtype=output.dtype, shape=output.shape)
        analysis.axes[inner.name] = analysis.axes.pop(output.name)
        for node in (*output.inputs, *output.outputs):
            for tensors in (node.inputs, node.outputs):
                for position, tensor in enumerate(tensors):
                    if tensor is output:
                        tensors[position] = inner
        source = inner
        analysis.inserted.append(Inserted("Gather behind the output", output.name))
        for position in grown:
            index = draft.constant(f"{output.name}_units", np.flatnonzero(maps[position].first))
            cut = output if position == grown[-1] else Variable(draft.unique_name(f"{output.name}_cut"), output.dtype)
            name = draft.unique_name(f"{output.name}_Gather")
            draft.graph.nodes.append(Node("Gather", name, {"axis": position}, [source, index], [cut]))
            source = cut


# --- What is left over ---------------------------------------------------------------------------------------


def restate_shapes(analysis: Analysis, growth: Growth) -> None:
    """Bring the recorded shapes of activations up to date."""
    for name, tensor in analysis.draft.graph.tensors().items():
        axes = analysis.axes.get(name)
        stated = tensor.shape if isinstance(tensor, Variable) else None
        constant = constant_of(tensor) if stated is not None else None
        if constant is not None:
            tensor.shape = list(constant.shape)
            continue
        if axes is not None and stated is not None and len(axes) == len(stated):
            tensor.shape = [
                new_size(axis, growth) if _grown(axis, growth) else size
                for axis, size in zip(axes, stated, strict=True)
            ]


def drop_unread(analysis: Analysis) -> None:
    """Remove nodes that nobody reads any more."""
    graph = analysis.draft.graph
    unread = [node for node in graph.nodes if _is_unread(node, analysis.kept)]
    while unread:
        node = unread.pop()
        producers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
        node.inputs.clear()
        node.outputs.clear()
        unread += [producer for producer in producers if _is_unread(producer, analysis.kept)]
    graph.nodes[:] = [node for node in graph.nodes if node.outputs]


def _is_unread(node: Node, kept: frozenset[str]) -> bool:
    return not any(tensor.outputs or tensor.name in kept for tensor in node.outputs)
