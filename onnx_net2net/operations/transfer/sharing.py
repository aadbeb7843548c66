"""Keys and values that fewer queries share: a teacher with more heads of them, each repeated for its queries.

In grouped attention an axis of query heads is a product (k, r): r queries share each of k heads of keys and values.
The same function has m k heads of keys and values that r / m queries share, if each is there m times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from onnx_net2net.algebra.dims import Axis, Concat, Dim, Product, leaf_set, resolve
from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.algebra.maps import compose, from_index, keep
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.fit import bind
from onnx_net2net.operations.transfer.networks import Networks
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rewrite.sizes import resize


def shared_less(networks: Networks, found: Alignment) -> Model | None:
    """Return the teacher with as many heads of keys and values as the target has, None if it needs no more.

    Args:
        networks: The two networks.
        found: Which of their modules correspond.
    """
    network, uses = networks.teacher, networks.teacher.analysis.uses.values()
    axes = [axis for use in uses for axis in use.axes]
    known = [leaf_set(axis) for axis in axes]
    times = {(heads, queries): m for heads, queries, m in _pairs(axes, bind(networks, found).solve())
             if all(heads in own for own in known if queries in own)
             and not all(queries in own for own in known if heads in own)}  # fmt: skip
    if not times:
        return None
    growth = {}
    for (heads, queries), m in times.items():
        growth[heads] = from_index(heads.size, np.repeat(np.arange(heads.size), m))
        growth[queries] = keep(queries.size, np.arange(queries.size // m))
    draft = Draft.of(network.analysis)
    for use in {id(use.constant): use for use in draft.uses.values()}.values():
        places = [_places(axis, times) for axis in use.axes]
        if any(not np.array_equal(own, np.arange(axis.size)) for own, axis in zip(places, use.axes, strict=True)):
            shape = [len(own) for own in places]
            draft.graph.replace(use.constant, shape, partial(_taken, draft.graph.reader(use.constant), places))
    rewriting = Rewriting(draft, growth)
    resize(network.opened.model, rewriting)
    rewriting.clean_up()
    return rewriting.graph.finish(stale="all")


def _pairs(axes: Iterable[Axis], wanted: Mapping[Dim, int]) -> Iterator[tuple[Dim, Dim, int]]:
    """Yield dims side by side, and m, where the target asks for m times the first and an m-th of the second."""
    for product in (product for axis in axes for product in _products(axis)):
        for heads, queries in itertools.pairwise(product.parts[:-1]):  # the last is a head's width
            if isinstance(heads, Dim) and isinstance(queries, Dim) and {heads, queries} <= wanted.keys():
                times, rest = divmod(queries.size, wanted[queries])
                if times > 1 and not rest and wanted[heads] >= heads.size * times and not heads.fixed:
                    yield heads, queries, times


def _products(axis: Axis) -> list[Product]:
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return []
    return [*([axis] if isinstance(axis, Product) else []), *(one for part in axis.parts for one in _products(part))]


def _places(axis: Axis, times: Mapping[tuple[Dim, Dim], int]) -> Array:
    """Return which of the old units each new unit of an axis is."""
    axis = resolve(axis)
    if isinstance(axis, Concat):
        starts = np.cumsum([0, *(part.size for part in axis.parts)])
        return np.concatenate([_places(part, times) + start for part, start in zip(axis.parts, starts, strict=False)])
    parts = axis.parts if isinstance(axis, Product) else (axis,)
    for (heads, queries), m in times.items():
        if heads not in parts:
            continue
        place = parts.index(heads)
        old = np.arange(axis.size).reshape(-1, heads.size, int(np.prod([part.size for part in parts[place + 1 :]])))
        fewer, taken = queries.size // m, []
        for part in range(m):
            window = {queries: keep(queries.size, np.arange(part * fewer, (part + 1) * fewer))}
            taken.append(old[:, :, compose(Product(parts[place + 1 :]), window).index])
        return np.stack(taken, 2).reshape(-1)
    return np.arange(axis.size)


def _taken(read: Compute, places: Sequence[Array]) -> Array:
    values = read()
    for axis, own in enumerate(places):
        values = np.take(values, own, axis)
    return values
