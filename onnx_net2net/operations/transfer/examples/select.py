"""Chooses the units that a narrower target keeps: those from which the others can be predicted best.

A dim of n units becomes one of k, and loses n - k units in all tensors. If the lost units are predicted from the kept
ones K by least squares, an error is left:

    tr(M (C - C[:, K] C[K, K]^-1 C[K, :]))

C is the covariance of the tensor that a node reads. M says how much two units matter to the node: W^T W for a layer
with the weights W, the second moments of the other factor in a product of activations, 1 for a mean or a normalisation.
All nodes that read the dim keep the same units; their errors are summed, each divided by the largest possible one. K is
chosen greedily: next comes the unit that lowers the error most. This is a Cholesky decomposition with this pivot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, leaf_set
from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import units_of
from onnx_net2net.operations.transfer.examples.moments import Moments, reader_of
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Network
from onnx_net2net.run.inputs import Feeds
from onnx_net2net.run.watch import watched

_LEAST = 1e-9
"""A unit that varies less than this beyond what follows from others, by what it varies itself, follows from them."""

TensorAxis = tuple[str, int]
"""A tensor and one of its axes."""

Weigh = Callable[[Mapping[tuple[str, int, Dim], Moments]], Array]
"""Returns the weights M of the units of a dim where they are read, from the moments of tensors: float64 [n, n]."""


def choose(
    network: Network, modules: Iterable[Module], batches: Sequence[Feeds], sizes: Mapping[Dim, int]
) -> dict[Dim, Array]:
    """Choose the units that are kept.

    Args:
        network: The teacher, before it grows.
        modules: Its layers that the target has too.
        batches: Inputs by name.
        sizes: For each dim that becomes smaller, how many units it keeps.

    Returns:
        int64 [k] for each of these dims that anything reads: the units, in the teacher's order.
    """
    axes: dict[tuple[str, int, Dim], Axis] = {}
    weighs: dict[tuple[str, int, Dim], list[Weigh]] = defaultdict(list)
    for (tensor, position), axis, dims, weigh in _readings(network, list(modules)):
        for dim in dims & leaf_set(axis) & sizes.keys() if tensor in network.visible else ():
            axes[tensor, position, dim] = axis
            weighs[tensor, position, dim].append(partial(weigh, dim))
    if not axes:
        return {}
    tensors = list(dict.fromkeys(tensor for tensor, _, _ in axes))
    moments = {key: Moments() for key in axes}
    with watched(network.runnable(), tensors, "teacher") as watch:
        for feeds in batches:
            answer = watch(feeds, tensors)
            for (tensor, position, dim), axis in axes.items():
                if answer[tensor].shape[position] == axis.size:  # no axis that a dynamic one is merged into
                    moments[tensor, position, dim].add(_gathered(answer[tensor], position, axis, dim)[None])
    terms: dict[Dim, list[tuple[Array, Array]]] = defaultdict(list)
    for key, some in weighs.items():
        if not moments[key].count:
            continue
        weights = sum((weigh(moments) for weigh in some), np.zeros(()))
        terms[key[2]].append((moments[key].covariances()[0][0], weights))
    return {dim: np.sort(keep(found, sizes[dim])) for dim, found in terms.items()}


Reading = tuple[TensorAxis, Axis, set[Dim], Callable[..., Array]]
"""A tensor's axis that is read, its dims, those that are summed over, and the weights of their units."""


def _readings(network: Network, modules: Iterable[Module]) -> Iterator[Reading]:
    """Yield what sums over dims."""
    analysis = network.analysis
    for module in modules:
        reader = reader_of(network, module)
        if reader is not None:
            parameter = module.parameters["weight"]
            summed = leaf_set(parameter.axes(analysis)[1])
            yield (reader.tensor, reader.position), reader.axis, summed, partial(_gram, network, parameter)
    for number, said in analysis.said.items():
        inputs = analysis.nodes[number].inputs
        for contraction in said.contractions:
            data = [place for place in contraction.sides if not analysis.is_derived(number, place[0])]
            if len(data) != len(contraction.sides):
                continue
            places = [(inputs[index].name, position) for index, position in data]
            for place, other in zip(places, reversed(places), strict=True):
                axis = (analysis.axes.get(place[0]) or ())[place[1]]
                weigh = _evenly if place == other else partial(_with, other)
                yield place, axis, leaf_set(contraction.axis), weigh
        for statistic in said.statistics:
            tensor = inputs[statistic.inputs[0]].name
            for position, axis in enumerate(analysis.axes.get(tensor, ())):
                yield (tensor, position), axis, leaf_set(*statistic.axes) & leaf_set(axis), _evenly


def _gram(network: Network, parameter: Parameter, dim: Dim, _: object) -> Array:
    """Return the weights of units in the results of a layer, summed over all places of the units."""
    read = network.reader(parameter)
    assert read is not None
    rows = _gathered(read().astype(np.float64), 1, parameter.axes(network.analysis)[1], dim)
    gram: Array = rows.T @ rows
    return gram


def _with(other: TensorAxis, dim: Dim, moments: Mapping[tuple[str, int, Dim], Moments]) -> Array:
    """Return the weights of units in a product with another tensor."""
    key = *other, dim
    if key not in moments or not moments[key].count:
        return np.eye(dim.size)
    second: Array = moments[key].covariances(centred=False)[0][0]
    return second


def _evenly(dim: Dim, _: object) -> Array:
    return np.eye(dim.size)


def keep(terms: Sequence[tuple[Array, Array]], size: int) -> Array:
    """Choose units greedily; when none is missed on the examples any more, the ones least like the chosen ones.

    Args:
        terms: For each tensor that is read, the covariance C and the weights M of the units: float64 [n, n].
        size: How many units to choose.

    Returns:
        int64 [size], in the order of choice.
    """
    rests = [_Rest(covariance, weights / total) for covariance, weights in terms
             if 0 < (total := float((covariance * weights).sum())) < np.inf]  # fmt: skip
    alike = _likeness([covariance for covariance, _ in terms])
    free = np.ones(len(alike), bool)
    nearest = np.zeros(len(alike))
    chosen: list[int] = []
    for _ in range(size):
        gains = sum((rest.gains() for rest in rests), np.where(free, 0.0, -np.inf))
        best = int(gains.argmax() if gains.max() > 0 else np.where(free, nearest, np.inf).argmin())
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, alike[best])
        for rest in rests:
            rest.take(best)
    return np.array(chosen)


def _likeness(covariances: Sequence[Array]) -> Array:
    """Return how alike units are, at least in one tensor: the absolute values of their correlations."""
    found = np.zeros(covariances[0].shape)
    for covariance in covariances:
        size = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        size[size <= 1e-6 * size.max(initial=0.0)] = np.inf
        found = np.maximum(found, np.nan_to_num(np.abs(covariance) / np.multiply.outer(size, size)))
    return found


class _Rest:
    """The part of a tensor's units that does not follow from the chosen ones.

    Attributes:
        rest: float64 [n, n], their covariance E then.
        saved: float64 [n], the diagonal of E M E: how far the error tr(M E) falls with a unit, times E's diagonal.
    """

    def __init__(self, covariance: Array, weights: Array) -> None:
        self._weights, self._least = weights, _LEAST * np.diag(covariance)
        self._all = np.diag(covariance).copy()
        self.rest = covariance.copy()
        self.saved = np.einsum("ij,ij->j", covariance, weights @ covariance)

    def gains(self) -> Array:
        """Return how far each unit lowers the error; rounding errors count only among units with nothing else."""
        own = np.diag(self.rest)
        tiny = np.finfo(float).tiny
        floor = 1e-20 * own / np.maximum(self._all, tiny)
        return np.where(own > self._least, np.maximum(self.saved / np.maximum(own, tiny), floor), 0.0)

    def take(self, unit: int) -> None:
        """Take off what follows from a unit."""
        own = self.rest[unit, unit]
        if own > self._least[unit]:
            part = self.rest[unit] / np.sqrt(own)
            weighed = self._weights @ part
            self.saved += part * (part * (part @ weighed) - 2 * (self.rest @ weighed))
            self.rest -= np.multiply.outer(part, part)


def _gathered(values: Array, position: int, axis: Axis, dim: Dim) -> Array:
    """Return the units of a dim on an axis, for all places of the other axes and of what it is multiplied with."""
    units = np.moveaxis(values, position, -1)[..., places(axis, dim)]
    return np.moveaxis(units, -2, -1).reshape(-1, dim.size)


def places(axis: Axis, dim: Dim) -> Array:
    """Return where the units of a dim are on an axis: int64 [units, places of each]."""
    units = units_of(axis, dim)
    return np.argsort(units, kind="stable")[int((units < 0).sum()) :].reshape(dim.size, -1)
