"""Which units a narrower target keeps: those from which the others can be had best.

A dim of n units that becomes one of k loses n - k of them wherever it stands. What a layer reads of the lost ones it can
still have as far as they follow from the kept ones K: least squares leave an error of

    tr(M (C - C[:, K] C[K, K]^-1 C[K, :]))

where C is the covariance of what the layer reads, and M = W^T W says what units weigh in its results. All layers that
read the dim keep the same units; their errors are added up, each divided by what the layer's results vary. K is chosen
greedily, the unit next that lowers the error most, which is a Cholesky decomposition with this pivot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnx_net2net.alignment import Unit
from onnx_net2net.calibration import watched
from onnx_net2net.dims import Axis, Dim, Product, resolve
from onnx_net2net.inputs import Feeds
from onnx_net2net.readers import Moments, Reader, reader_of
from onnx_net2net.sides import Side
from onnx_net2net.tensors import Array

_LEAST = 1e-9
"""A unit that varies less than this beyond what follows from others, by what it varies itself, follows from them."""


def choose(side: Side, units: Iterable[Unit], batches: Sequence[Feeds], sizes: Mapping[Dim, int]) -> dict[Dim, Array]:
    """Choose the units that are kept.

    Args:
        side: The teacher, before it grows.
        units: Its layers that the target has too.
        batches: Inputs by name.
        sizes: For each dim that becomes smaller, how many units it keeps.

    Returns:
        int64 [k] for each of these dims that a layer sums over: the units, in the teacher's order.
    """
    read: dict[tuple[str, int, Dim], list[Reader]] = {}
    for reader in filter(None, (reader_of(side, unit) for unit in units)):
        summed = reader.unit.slots["weight"].axes(side.analysis)[1]
        for dim in sizes:
            if places(reader.axis, dim) is not None and places(summed, dim) is not None:
                read.setdefault((reader.tensor, reader.position, dim), []).append(reader)
    if not read:
        return {}
    tensors = list(dict.fromkeys(name for name, _, _ in read))
    moments = {key: Moments() for key in read}
    with watched(side.opened.model, tensors, "teacher") as watch:
        for feeds in batches:
            answer = watch(feeds, tensors)
            for (name, position, dim), sums in moments.items():
                units_ = np.moveaxis(answer[name], position, -1)[..., places(read[name, position, dim][0].axis, dim)]
                rows = np.moveaxis(units_, -2, -1).reshape(1, -1, dim.size)
                sums.add(rows, rows[..., :0])
    terms: dict[Dim, list[tuple[Array, Array]]] = {}
    for (name, position, dim), sums in moments.items():
        weights = sum((_gram(side, reader, dim) for reader in read[name, position, dim]), np.zeros(()))
        terms.setdefault(dim, []).append((sums.covariance()[0], weights))
    return {dim: np.sort(keep(found, sizes[dim])) for dim, found in terms.items()}


def keep(terms: Sequence[tuple[Array, Array]], size: int) -> Array:
    """Choose units greedily.

    Args:
        terms: For each tensor that is read, the covariance C and the weights M of the units: float64 [n, n].
        size: How many units to choose.

    Returns:
        int64 [size], in the order of choice.
    """
    rests = [_Rest(covariance, weights / total) for covariance, weights in terms
             if (total := float((covariance * weights).sum())) > 0]  # fmt: skip
    n = len(terms[0][0])
    free = np.ones(n, bool)
    chosen = []
    for _ in range(size):
        gains = sum((rest.gains() for rest in rests), np.zeros(n))
        chosen.append(int(np.where(free, gains, -1.0).argmax()))
        free[chosen[-1]] = False
        for rest in rests:
            rest.take(chosen[-1])
    return np.array(chosen)


class _Rest:
    """What the units of one tensor vary beyond what follows from the chosen ones.

    Attributes:
        rest: float64 [n, n], their covariance E then.
        saved: float64 [n], the diagonal of E M E: by how much the error tr(M E) falls with a unit, times E's diagonal.
    """

    def __init__(self, covariance: Array, weights: Array) -> None:
        self._weights, self._least = weights, _LEAST * np.diag(covariance)
        self.rest = covariance.copy()
        self.saved = np.einsum("ij,ij->j", covariance, weights @ covariance)

    def gains(self) -> Array:
        """Return by how much each unit lowers the error."""
        own = np.diag(self.rest)
        return np.where(own > self._least, self.saved / np.maximum(own, np.finfo(float).tiny), 0.0)

    def take(self, unit: int) -> None:
        """Take off what follows from a unit."""
        own = self.rest[unit, unit]
        if own > self._least[unit]:
            part = self.rest[unit] / np.sqrt(own)
            weighed = self._weights @ part
            self.saved += part * (part * (part @ weighed) - 2 * (self.rest @ weighed))
            self.rest -= np.multiply.outer(part, part)


def _gram(side: Side, reader: Reader, dim: Dim) -> Array:
    """Return what two units weigh together in the results of a layer, summed over all places of the units."""
    slot = reader.unit.slots["weight"]
    read = side.reader(slot)
    where = places(slot.axes(side.analysis)[1], dim)
    assert read is not None
    assert where is not None
    weights = np.moveaxis(read().astype(np.float64), 1, -1)[..., where]
    flat = np.moveaxis(weights, -2, -1).reshape(-1, dim.size)
    return flat.T @ flat


def places(axis: Axis, dim: Dim) -> Array | None:
    """Return where the units of a dim are on an axis: int64 [units, places of each], None if they are not."""
    units = _units(axis, dim)
    order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
    return order.reshape(dim.size, -1) if len(order) else None


def _units(axis: Axis, dim: Dim) -> Array:
    """Return which unit of a dim each place of an axis belongs to, -1 for none."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return np.arange(dim.size) if axis is dim else np.full(axis.size, -1)
    parts = [_units(part, dim) for part in axis.parts]
    if not isinstance(axis, Product):
        return np.concatenate(parts)
    found = parts[0]
    for part in parts[1:]:
        found = np.maximum(found[:, None], part).reshape(-1)
    return found
