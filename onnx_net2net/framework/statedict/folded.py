"""Entries of a state dict that an export folded away: what is left of them in the constants of the graph.

A convolution with a BatchNormalization behind it is exported as one convolution (pytorch #49226): W is W * s along its
outputs, with s = gamma / sqrt(var + eps), and the bias is (b - mean) * s + beta. So the rows of the two kernels are
parallel, s is what is between them, and gamma / s squared less var must be one number for all units: the epsilon. A
table that a constant index looks up has the values of its units, in other places and numbers. Nothing of this needs a
name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.statedict.match import (
    Match,
    Matches,
    Piece,
    StoredConstant,
    biases_of,
    in_common,
    left_over,
    single,
)
from onnx_net2net.rules import traits

EPSILONS = (1e-5, 1e-3, 1e-6, 1e-4, 1e-12, 1e-2, 0.0)
"""Epsilons of BatchNormalizations, the usual ones first."""

TOLERANCE = 2e-6
"""By what part of the largest weight rows that are called parallel may differ from that."""

_SAMPLE = 64


@dataclass(frozen=True, eq=False)
class _Norm:
    """The entries of a BatchNormalization: names, and values as of float64."""

    names: dict[str, str]
    mean: Array
    variance: Array
    scale: Array
    shift: Array
    place: int


def match_folded(entries: StateDict, constants: Mapping[str, StoredConstant], matches: Matches) -> None:
    """Add to the matches the layers with their normalisations, and the looked-up tables, that were folded.

    Args:
        entries: The state dict.
        constants: The constants of the graph.
        matches: What was found so far; entries and constants in it are left out here.
    """
    _match_norms(entries, constants, matches)
    _match_scales(entries, constants, matches)
    left = left_over(constants, matches)
    for name in _lost(entries, matches):
        found = [one for constant in left if (one := _looked_up(entries[name].read(), constant)) is not None]
        if found:
            matches[name] = found


def _lost(entries: StateDict, matches: Matches) -> list[str]:
    """Return the matrices and kernels that are not in the graph."""
    return [name for name, entry in entries.items() if name not in matches and len(entry.shape) > 1]


def _match_norms(entries: StateDict, constants: Mapping[str, StoredConstant], matches: Matches) -> None:
    norms, biases, weights = list(_norms(entries)), biases_of(constants), _lost(entries, matches)
    for constant in left_over(constants, matches):
        layer = next((read for read in constant.reads if read.operator in traits.LAYERS and read.input == 1), None)
        if layer is None or len(constant.shape) < 2:
            continue
        bias = biases.get(layer.node)
        for name, match, scale in _parallel(constant, layer.operator, entries, weights):
            norm = _norm_of(name, entries, norms, scale, bias)
            if norm is not None:
                norms.remove(norm)
                weights.remove(name)
                matches[name] = [match]
                assert match.axes is not None
                out = match.axes[out_axis(layer.operator, len(match.axes))]
                pieces = (match.pieces[0], *([Piece(bias.name, ())] if bias else []))
                for what, entry in norm.names.items():
                    matches[entry] = [Match("folded", pieces, axes=(out,), scales=what in ("weight", "running_var"))]
                own_bias = _sibling(name, "bias")
                if own_bias in entries and len(entries[own_bias].shape) == 1:
                    matches[own_bias] = [Match("folded", pieces, axes=(out,))]
                break


def _match_scales(entries: StateDict, constants: Mapping[str, StoredConstant], matches: Matches) -> None:
    """Add the normalisations whose scale and variance were folded into one factor: gamma / sqrt(var + eps)."""
    vectors = {name: entry.read().astype(np.float64) for name, entry in entries.items()
               if name not in matches and is_float(entry.dtype) and len(entry.shape) == 1}  # fmt: skip
    for constant in left_over(constants, matches):
        axis = next((axis for axis, size in enumerate(constant.shape) if size > 1), None)
        if axis is None or max(constant.shape) != np.prod(constant.shape):
            continue
        folded = constant.read().reshape(-1).astype(np.float64)
        alike = {name: values for name, values in vectors.items() if values.shape == folded.shape}
        pairs = itertools.chain(itertools.permutations(alike, 2), ((None, name) for name in alike))
        fits = [(_distance(scale, variance)[0] if scale else 0, scale, variance) for scale, variance in pairs
                if _is_scale(folded, alike[scale] if scale else 1.0, alike[variance])]  # fmt: skip
        nearest = min((distance for distance, _, _ in fits), default=0)
        for _, scale, variance in (fit for fit in fits if fit[0] == nearest):
            piece = Piece(constant.name, ())
            matches.setdefault(variance, []).append(Match("folded", (piece,), axes=(axis,), scales=True))
            if scale:
                matches.setdefault(scale, []).append(Match("folded", (piece,), axes=(axis,)))


def _is_scale(folded: Array, scale: Array | float, variance: Array) -> bool:
    if np.any(variance < 0):
        return False
    made = (scale / np.sqrt(np.maximum(variance + epsilon, 1e-30)) for epsilon in EPSILONS)
    return any(np.allclose(one, folded, rtol=1e-5, atol=0) for one in made)


def _sibling(name: str, what: str) -> str:
    return f"{name.rpartition('.')[0]}.{what}" if "." in name else what


def _norms(entries: StateDict) -> Iterator[_Norm]:
    """Yield the normalisations among the entries: all that has a running mean and variance."""
    for place, mean in enumerate(entries):
        if not mean.endswith("running_mean"):
            continue
        prefix = mean.removesuffix("running_mean")
        names = {what: f"{prefix}{what}" for what in ("weight", "bias", "running_mean", "running_var")}
        names = {what: name for what, name in names.items() if name in entries}
        values = {what: entries[name].read().astype(np.float64) for what, name in names.items()}
        if "running_var" in names and len({array.shape for array in values.values()}) == 1:
            ones = np.ones_like(values["running_mean"])
            scale, shift = values.get("weight", ones), values.get("bias", 0 * ones)
            yield _Norm(names, values["running_mean"], values["running_var"], scale, shift, place)


def out_axis(operator: str, rank: int) -> int:
    """Return the axis of a framework's weight that makes the outputs."""
    return 1 if operator in traits.TRANSPOSED and rank > 2 else 0


def _parallel(
    constant: StoredConstant, operator: str, entries: StateDict, names: Collection[str]
) -> Iterator[tuple[str, Match, Array]]:
    """Yield the entries whose outputs are multiples of the constant's, with the factors."""
    values = constant.read()
    same = tuple(range(values.ndim))
    orders = (same, same[::-1]) if values.ndim == 2 else (same,)
    for name in list(names):
        for order in orders:
            if tuple(constant.shape[k] for k in order) != entries[name].shape:
                continue
            out = out_axis(operator, len(order))
            mine = rows(single(np.transpose(values, order)), out)
            its = rows(single(entries[name].read()), out)
            scale = _factors(mine, its)
            if scale is not None:
                yield name, Match("folded", (Piece(constant.name, ()),), axes=order), scale


def _factors(folded: Array, plain: Array) -> Array | None:
    """Return by what each row of an array was multiplied to give that of another one, None if it was not."""
    some = np.linspace(0, len(plain) - 1, min(len(plain), 8)).astype(int)
    if not _are_parallel(folded[some, :_SAMPLE], plain[some, :_SAMPLE]) or not _are_parallel(folded, plain):
        return None
    return row_factors(folded, plain)


def rows(array: Array, axis: int) -> Array:
    """Return an array as a matrix with a row for each unit of an axis."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def row_factors(folded: Array, plain: Array) -> Array:
    """Return by what each row of a matrix is multiplied to come nearest to that of another one."""
    sizes = np.einsum("ij,ij->i", plain, plain, dtype=np.float64)
    products = np.einsum("ij,ij->i", folded, plain, dtype=np.float64)
    factors: Array = products / np.where(sizes == 0, 1, sizes)
    return factors


def _are_parallel(folded: Array, plain: Array) -> bool:
    rest = folded - row_factors(folded, plain)[:, None].astype(np.float32) * plain
    return float(np.abs(rest).max(initial=0)) <= TOLERANCE * float(np.abs(folded).max(initial=0))


def _norm_of(
    name: str, entries: StateDict, norms: Collection[_Norm], scale: Array, bias: StoredConstant | None
) -> _Norm | None:
    """Return the normalisation that multiplies by `scale`; of several that whose name is nearest to the layer's."""
    place = list(entries).index(name)
    own = entries.get(_sibling(name, "bias"))
    before = own.read().astype(np.float64) if own is not None and len(own.shape) == 1 else 0.0
    after = bias.read().astype(np.float64) if bias is not None else None
    fit = [norm for norm in norms if len(norm.mean) == len(scale) and _fits(norm, scale, before, after)]
    return min(
        fit, key=lambda norm: (_distance(name, norm.names["running_mean"]), abs(norm.place - place)), default=None
    )


def _distance(layer: str, norm: str) -> tuple[int, int]:
    """Return how far apart names are: steps of the path that differ, and numbers (conv2 and bn2, 0 and 1 in a row)."""
    one, other = (re.split("[./]", name)[:-1] for name in (layer, norm))
    apart = len(one) + len(other) - 2 * in_common(one, other)
    numbers = [re.findall(r"\d+", path[-1]) if path else [] for path in (one, other)]
    if not all(numbers):
        return apart, 0
    behind = int(numbers[1][-1]) - int(numbers[0][-1])
    in_a_row = one[-1].isdigit() and other[-1].isdigit()
    return apart, abs(behind - in_a_row)


def _fits(norm: _Norm, scale: Array, before: Array | float, after: Array | None) -> bool:
    for epsilon in EPSILONS:
        own = norm.scale / np.sqrt(norm.variance + epsilon)
        if np.allclose(own, scale, rtol=1e-4, atol=1e-5 * float(np.abs(scale).max(initial=0))):
            made = (before - norm.mean) * own + norm.shift
            if after is None or np.allclose(made, after.reshape(-1), rtol=1e-3, atol=1e-4 * (1 + np.abs(made).max())):
                return True
    return False


def _looked_up(table: Array, constant: StoredConstant) -> Match | None:
    """Return how a table was looked up along an axis, its other axes being those of the constant."""
    if len(constant.shape) < 2 or table.size < 4:
        return None
    table, values = single(table), single(constant.read())
    kept = [axis for axis, size in enumerate(table.shape) if size > 1]
    for looked_up in kept:
        rest = [axis for axis in kept if axis != looked_up]
        if len(rest) != 1:
            continue
        for axis, size in enumerate(values.shape):
            if size == table.shape[rest[0]] and _is_look_up(table, values, rest[0], axis):
                axes = tuple(axis if k == rest[0] else None for k in range(table.ndim))
                return Match("gathered", (Piece(constant.name, ()),), axes=axes)
    return None


def _is_look_up(table: Array, values: Array, unit: int, axis: int) -> bool:
    """Tell whether each unit of an array has values of the same unit of a table only."""
    for k in range(table.shape[unit]):
        mine = np.take(values, k, axis).reshape(-1)
        if not np.isin(mine, np.take(table, k, unit)).all():
            return False
    return len(np.unique(values)) > 1
