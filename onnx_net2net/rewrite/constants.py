"""Constants at the student's sizes: each gets what its readers need, and readers that need the same share one tensor.

Values are computed lazily: what is put into the graph here is computed when the student is saved.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.algebra.rows import Source, is_fill
from onnx_net2net.algebra.weights import Filler, GrownSource, Style, WeightGrowth
from onnx_net2net.analysis.inference import SHAREABLE, Use
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.analysis.padding import Scales
from onnx_net2net.analysis.weight_norms import Norm, find_norms
from onnx_net2net.graph.edit import Version, assign
from onnx_net2net.graph.graph import Constant, Place
from onnx_net2net.model.model import Model
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rewrite.sums import Weighers, axis_growths
from onnx_net2net.rules import traits


@dataclass(frozen=True)
class GrownConstant:
    """How a constant grows where some nodes read it; a constant that no node reads grown has none.

    Attributes:
        teacher: Its name in the teacher: an initializer's, or that of the output of a Constant node.
        student: Its name in the student.
        scopes: The modules of the nodes that read its values, and not its shape only; "" where the file does not tell.
        growth: How it grows.
    """

    teacher: str
    student: str
    scopes: tuple[str, ...]
    growth: WeightGrowth


Gain = tuple[int, Compute]
"""An axis of a constant, and what computes the factors of its units in the student."""


@dataclass
class Demands:
    """What is asked of constants besides their maps, by the place where a node reads them.

    Attributes:
        weighers: Those that weigh copies.
        factors: What all values are multiplied by.
        fillers: What they have for units that are no copies, where that is not the usual.
        scales: For units that a later node scales: what reads the scale.
        gains: Factors that cancel the change of a weight's norm.
    """

    weighers: Weighers
    factors: dict[Place, float] = field(default_factory=dict)
    fillers: dict[Place, Filler] = field(default_factory=dict)
    scales: dict[Place, dict[Dim, Compute]] = field(default_factory=dict)
    gains: dict[Place, Gain] = field(default_factory=dict)

    def multiply(self, factors: Mapping[Place, float]) -> None:
        """Multiply by more factors."""
        for place, factor in factors.items():
            self.factors[place] = self.factors.get(place, 1.0) * factor


def read_scales(rewriting: Rewriting, scales: Scales) -> dict[Place, dict[Dim, Compute]]:
    """Return for each constant whose units are scaled later what reads the scale: one reader for each scale."""
    used = {scale for made in scales.values() for scale in made.values()}
    readers = {scale: rewriting.graph.reader(rewriting.analysis.uses[scale].constant) for scale in used}
    return {place: {dim: readers[scale] for dim, scale in made.items()} for place, made in scales.items()}


def grow_constants(teacher: Model, rewriting: Rewriting, demands: Demands, style: Style) -> Iterator[GrownConstant]:
    """Give every constant its grown values."""
    for uses in rewriting.analysis.readings():
        gained = any((use.node, use.input) in demands.gains for use in uses)
        if gained or any(rewriting.grown(axis) for use in uses for axis in use.axes):
            yield from _grow_constant(teacher, rewriting, uses, demands, style)


@dataclass
class _Alike:
    """Uses that grow alike."""

    growth: WeightGrowth
    gain: Gain | None
    uses: list[Use] = field(default_factory=list)


def _grow_constant(
    teacher: Model, rewriting: Rewriting, uses: list[Use], demands: Demands, style: Style
) -> Iterator[GrownConstant]:
    constant = uses[0].constant
    groups = _alike(rewriting, uses, demands, style)
    read = rewriting.graph.reader(constant)
    is_matrix = sum(axis.size > 1 for axis in uses[0].axes) > 1
    if len(groups) > 1 and is_matrix and not is_fill(read()):  # exporters merge vectors of equal values, and zeros
        rewriting.untied.append(constant.name)
    salt = _salt(rewriting, constant.name)
    versions = []
    for group in groups:
        zero = _zero_reader(rewriting, group.uses[0])
        compute: Source | Compute = GrownSource(read, group.growth, salt)
        if zero is not None or group.gain is not None:
            compute = partial(_compute, read, group.growth, salt, zero, group.gain)
        is_still = group.growth.is_identity and group.gain is None
        readers = [(rewriting.nodes[use.node], use.input) for use in group.uses]
        versions.append(Version(readers, group.growth.shape, None if is_still else compute))
    names = assign(rewriting.graph, constant, versions)
    for group, name in zip(groups, names, strict=True):
        nodes = [teacher.proto.graph.node[use.node] for use in group.uses if _reads_values(rewriting, use)]
        scopes = tuple(map(scope_of, nodes))
        yield GrownConstant(constant.name, name, scopes, group.growth)


def _alike(rewriting: Rewriting, uses: list[Use], demands: Demands, style: Style) -> list[_Alike]:
    """Group the uses of a constant that can share one version of it."""
    groups: dict[tuple[object, ...], _Alike] = {}
    for use in sorted(uses, key=lambda use: not _reads_values(rewriting, use)):
        place = use.node, use.input
        axes = axis_growths(rewriting, use, demands.weighers, demands.scales.get(place))
        filler: Filler = demands.fillers.get(place, "copy" if scales_units(rewriting, place) else "own")
        if not (style.noise or any(axis.map.kind.any() for axis in axes)):
            filler = "own"  # copies have no new values
        growth = WeightGrowth(axes, filler, demands.factors.get(place, 1.0), style)
        zero = _zero_point(rewriting, use) if any(axis.reads for axis in axes) else None
        gain = demands.gains.get(place)
        key = (*(axis.key for axis in axes), filler, growth.factor, id(zero), id(gain))
        group = None if _reads_values(rewriting, use) else _fitting(rewriting, use, growth, groups.values())
        if group is None:
            group = groups.setdefault(key, _Alike(growth, gain))
        group.uses.append(use)
    return list(groups.values())


def _fitting(rewriting: Rewriting, use: Use, growth: WeightGrowth, groups: Iterable[_Alike]) -> _Alike | None:
    """Return a version for a node that does not read values: one of the same shape, or any if it only reads a type."""
    is_shape = rewriting.nodes[use.node].op in traits.SHAPES
    return next((group for group in groups if not is_shape or group.growth.shape == growth.shape), None)


def _compute(read: Compute, growth: WeightGrowth, salt: int, zero: Compute | None, gain: Gain | None) -> Array:
    """Compute the values of a grown constant, the same ones every time."""
    values = growth.apply(read(), salt, zero=zero() if zero is not None else None)
    if gain is not None:
        position, factors = gain
        values *= factors().astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1 - position))
    return values


def _salt(rewriting: Rewriting, name: str) -> int:
    """Return what tells the draws of a constant apart; copies stay copies."""
    return zlib.crc32(rewriting.ties.copies.get(name, name).encode())


def scales_units(rewriting: Rewriting, place: Place) -> bool:
    """Tell whether an input multiplies each unit by a number of its own."""
    return place[1] in rewriting.analysis.said[place[0]].scales


def _reads_values(rewriting: Rewriting, use: Use) -> bool:
    """Tell whether a node reads the values of a constant; else it can take another version of it."""
    return use.input not in rewriting.analysis.said[use.node].ignored


# --- Integers ------------------------------------------------------------------------------------------------


def _zero_point(rewriting: Rewriting, use: Use) -> Constant | None:
    """Return what the integers of a constant are counted from, None where that is 0."""
    integers = rewriting.analysis.said[use.node].integers.get(use.input)
    zero = rewriting.analysis.uses.get((use.node, integers.zero_point)) if integers else None
    return zero.constant if zero else None


def _zero_reader(rewriting: Rewriting, use: Use) -> Compute | None:
    """Return what reads the zero point of integers, in a shape that broadcasts with them; None for other constants."""
    said = rewriting.analysis.said[use.node]
    if use.input not in said.integers or rewriting.analysis.sizes.dtype(use.constant.name) not in SHAREABLE:
        return None
    constant = _zero_point(rewriting, use)
    if constant is None:
        return lambda: np.zeros((), np.int8)
    axis = said.integers[use.input].axis
    read, shape = rewriting.graph.reader(constant), [part.size for part in use.axes]

    def zero() -> Array:
        values = read()
        if values.ndim == 1:
            return values.reshape([-1 if position == axis else 1 for position in range(len(shape))])
        for position, size in enumerate(shape[len(shape) - values.ndim :]):
            if values.shape[position] not in (1, size):  # one for each block
                values = np.repeat(values, size // values.shape[position], axis=position)
        return values

    return zero


# --- Norms of weights ----------------------------------------------------------------------------------------


def changed_norms(rewriting: Rewriting) -> dict[int, Norm]:
    """Return the norms of weights that change because copies share these, by the node that sums the squares."""
    said = rewriting.analysis.said
    norms = find_norms(rewriting.analysis)
    return {n: norm for n, norm in norms.items() if any(rewriting.grown(c.axis) for c in said[n].contractions)}


def gains_for(rewriting: Rewriting, norms: Iterable[Norm], weighers: Weighers, style: Style) -> dict[Place, Gain]:
    """Return the factors of gains that cancel the changes of norms: g' = g |v| / |v'|."""
    gains: dict[Place, Gain] = {}
    for norm in norms:
        use = rewriting.analysis.uses[norm.weight]
        growth = WeightGrowth(axis_growths(rewriting, use, weighers), style=style)
        read, salt = rewriting.graph.reader(use.constant), _salt(rewriting, use.constant.name)
        factors = partial(_factors, read, growth, salt, norm)
        gains.update({(gain.node, gain.input): (gain.position, factors) for gain in norm.gains})
    return gains


def _factors(read: Compute, growth: WeightGrowth, salt: int, norm: Norm) -> Array:
    """Compute the factors of a gain whose weight has other norms in the student."""
    values, index = read(), growth.axes[norm.kept].map.index
    others = tuple(position for position in range(values.ndim) if position != norm.kept)
    old, new = (np.square(v, dtype=np.float64).sum(axis=others) for v in (values, growth.apply(values, salt)))
    whole = (old[index] > 0) & (new > 0)  # where a weight is zero, so is its product with any gain
    return np.where(whole, np.divide(old[index], new, where=whole, out=np.ones_like(new)) ** norm.power, 1.0)
