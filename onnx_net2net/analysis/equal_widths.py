"""Widths that a class makes equal: a layer that makes as many channels as it reads of a residual stream.

Such a layer is taken to be of a class that makes both of one size, be it all heads of an attention together or the
dense layer in front of an output. Its channels then grow by the factor of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from onnx_net2net.algebra.dims import Dim, Product, leaf_set, leaves, resolve
from onnx_net2net.analysis.groups import Group, Inspection
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph
from onnx_net2net.analysis.roles import HEAD_COUNTS, HEAD_WIDTHS, Role

_KEYS = frozenset({Role.KEY_HEAD_DIM, Role.ROTARY_PAIRS})
_HEADS = HEAD_COUNTS | HEAD_WIDTHS


class _Square(NamedTuple):
    """A layer that makes as many channels as it reads."""

    streams: tuple[Group, ...]  # these lead: as a rule the layer reads them
    others: list[Group]  # these follow: the layer makes its axis of them


def follow_widths(analysis: Analysis, inspection: Inspection) -> None:
    """Let groups follow others whose width a class makes them of, or keep their size with these."""
    network = LayerGraph(analysis)
    layers = _Layers(network, inspection.groups)
    _keep_head_widths(analysis, network, inspection.groups)
    squares = sorted(layers.squares(), key=lambda square: not _is_stream(square.streams))  # streams lead the rest
    for streams, others in squares:
        heads, counts = _with_role(others, _HEADS), _with_role(others, HEAD_COUNTS)
        is_whole = len(heads) > 1 or (not heads and _is_stream(streams))
        _follow(counts if heads else others if is_whole else (), streams)
        if not _is_stream(streams):  # a learnt query, as wide as the stream that its keys are made of
            _follow(streams, next((group.follows for group in counts if group.follows != streams), ()))
    for square in layers.outputs_of_heads():
        squares.append(square)
        _follow(_with_role(square.others, HEAD_COUNTS), square.streams)
    for group in inspection.groups:
        group.follows = _roots(group)
    for mixing, mixed in layers.mixed_heads():
        mixed.follows = mixing.follows or (mixing,)
    for square in squares:
        _hold_square(inspection, *square)


def _is_stream(groups: Sequence[Group]) -> bool:
    return groups[0].role is Role.RESIDUAL_STREAM


def _with_role(groups: Iterable[Group], roles: Collection[Role]) -> list[Group]:
    return [group for group in groups if group.role in roles]


def _follow(groups: Iterable[Group], leaders: tuple[Group, ...]) -> None:
    for group in groups:
        if leaders and group not in leaders and not group.follows:
            group.follows = leaders


def _keep_head_widths(analysis: Analysis, network: LayerGraph, groups: Sequence[Group]) -> None:
    """Let heads grow in number, and in width only on request; where the keys keep theirs, so do the values."""
    keys = {group.size: group for group in _with_role(groups, _KEYS)}
    axes = [axis for axes in analysis.axes.values() for axis in map(resolve, axes) if isinstance(axis, Product)]
    free = [{dim for dim in leaves(axis) if not dim.frozen} for axis in axes]
    factors = set().union(*(dims for dims in free if len(dims) > 1))  # with others that could grow instead
    multiplied = leaf_set(*network.products.values()) & factors
    for group in groups:
        if group.role in _KEYS or multiplied.intersection(group.dims):
            group.follows = (group,)
        if group.role is Role.VALUE_HEAD_DIM:
            group.follows = (keys.get(group.size, group),)


class _Layers:
    """What layers read and make, as groups."""

    def __init__(self, network: LayerGraph, groups: Iterable[Group]) -> None:
        self._layers = list(network.layers.values())
        self._group_of = {dim: group for group in groups for dim in group.dims}

    def _groups(self, dims: Iterable[Dim]) -> list[Group]:
        return list(dict.fromkeys(self._group_of[dim] for dim in dims if dim in self._group_of))

    def _read(self, layer: Layer) -> list[Group]:
        return self._groups(sorted(layer.reads, key=lambda dim: dim.serial))

    def squares(self) -> Iterator[_Square]:
        """Yield each layer that makes as many channels as it reads: on all of an axis, or on parts in a row."""
        for layer in self._layers:
            streams = tuple(self._read(layer))
            if not streams or math.prod(group.size for group in streams) != layer.width:
                continue
            run: list[Group] = []
            total = 0
            for size, term in zip(layer.sizes, layer.terms, strict=True):
                made = self._groups(term)
                if math.prod(group.size for group in _with_role(made, _HEADS) or made) == layer.width:
                    yield _Square(streams, made)  # perhaps several times: q, k and v
                    continue
                run, total = run + made, total + size
                if total == layer.width:
                    yield _Square(streams, list(dict.fromkeys(run)))
                if total >= layer.width:
                    run, total = [], 0

    def outputs_of_heads(self) -> Iterator[_Square]:
        """Yield the stream that a layer makes of heads that are not read of it."""
        for layer in self._layers:
            read = self._read(layer)
            made = [group for term in layer.terms if len(term) == 1 for group in self._groups(term)]
            is_stream = len(made) == 1 and made[0].size == layer.width and made[0].role is Role.RESIDUAL_STREAM
            if is_stream and _with_role(read, HEAD_COUNTS):
                yield _Square((made[0],), read)

    def mixed_heads(self) -> Iterator[tuple[Group, Group]]:
        """Yield the heads that a layer mixes, and what that makes of them."""
        for layer in self._layers:
            groups = self._groups((*layer.reads, *chain(*layer.terms)))
            heads = _with_role(groups, HEAD_COUNTS)
            if len(groups) == 2 and len(heads) == 1 and groups[0].size == groups[1].size:
                yield heads[0], next(group for group in groups if group is not heads[0])


def _roots(group: Group) -> tuple[Group, ...]:
    """Return the groups that a group follows in the end."""
    seen = {id(group)}
    followed = group.follows
    while len(followed) == 1 and followed[0].follows and id(followed[0]) not in seen:
        seen.add(id(followed[0]))
        followed = followed[0].follows
    return followed


# --- What keeps its size -------------------------------------------------------------------------------------


def _hold_square(inspection: Inspection, streams: Sequence[Group], others: Sequence[Group]) -> None:
    """Let a stream have only sizes that what is as wide as it can make up, or keep its size."""
    if _with_role(streams, _HEADS):
        return
    heads = _with_role(others, _HEADS)
    leaders = [leader for stream in streams for leader in (stream, *stream.follows)]
    following = [group for group in heads if any(leader in leaders for leader in group.follows)]
    if heads and not any(group.reason is None for group in following):
        reason = f"is as wide as all heads of {heads[0].name!r}, which do not grow"
        _hold(inspection, streams, next((f"{reason}: {group.reason}" for group in heads if group.reason), reason))
    for stream in streams:
        for group in following:
            stream.step = math.lcm(stream.step, stream.size // math.gcd(stream.size, group.size))
    if len(others) > 1 and not any(group.role for group in others):
        _hold(inspection, (*streams, *others), f"which of the factors of {others[0].name!r} grows is not known")


def _hold(inspection: Inspection, groups: Iterable[Group], reason: str) -> None:
    """Keep the size of groups, and of those that grow by one factor with one of them."""
    for group in groups:
        ratios = {dim.ratio.root() for dim in group.dims if dim.ratio is not None}
        for other in inspection.groups:
            shares = any(dim.ratio is not None and dim.ratio.root() in ratios for dim in other.dims)
            if other is group or shares:
                other.reason = other.reason or reason
