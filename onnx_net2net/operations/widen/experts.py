"""How the experts of a router get copies, so that the copies of an expert together count as the expert did."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set
from onnx_net2net.algebra.maps import Map, keep, lifted, split_copies
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.joint_experts import find_joint_experts
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.analysis.modules import find_modules
from onnx_net2net.analysis.routers import find_lifts, find_masks
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Place
from onnx_net2net.graph.walk import label_of
from onnx_net2net.operations.widen.load import copies_by_load
from onnx_net2net.operations.widen.options import WidenOptions
from onnx_net2net.rewrite.rewriting import Copies

_TOGETHER = ("topk", "granular")
"""Ways in which all copies, or parts, of an expert are chosen together."""


def copied(name: str, old: int, new: int, options: WidenOptions) -> Map:
    """Return the map of experts: each has as many copies as the others, the first ones one more.

    Raises:
        RefusedError: If copies of that number cannot count as the experts did.
    """
    if options.framework and options.how == "split":
        why = f"a class of {options.framework} has no masks of copies; --how topk, lift or granular"
        raise RefusedError(f"{name!r} cannot have {new} units: {why}")
    if options.how in _TOGETHER and new % old:
        why = "each expert needs equally many copies; --how lift and split admit other numbers"
        raise RefusedError(f"{name!r} cannot have {new} units: {why}")
    counts = np.full(old, new // old) + (np.arange(old) < new % old)
    if name in options.loads:
        if options.how in _TOGETHER or len(options.loads[name]) != old:
            raise RefusedError(
                f"{name!r}: loads need one number for each of its {old} experts, and --how split or lift"
            )
        counts = copies_by_load(options.loads[name], new)
    return lifted(counts) if options.how == "lift" else split_copies(counts)


def route(analysis: Analysis, routed: Collection[Dim], growth: dict[Dim, Map], options: WidenOptions) -> Copies:
    """Return how copies of experts are kept from counting twice; what is chosen of them may grow with them.

    Args:
        analysis: The dims.
        routed: The dims of experts that get copies.
        growth: The maps of all dims that grow.
        options: Tell how a router treats copies.

    Raises:
        RefusedError: If that is not exact; says which node and why.
    """
    if not routed:
        return Copies()
    modules = find_modules(analysis, routed)
    if modules and (options.framework or options.how in _TOGETHER):
        raise RefusedError(
            "experts that are separate modules get copies only without --for, and only by --how split or lift"
        )
    if options.how == "split":
        return Copies(masks=tuple(find_masks(analysis, routed)), modules=modules)
    if options.how == "lift":
        return Copies(lifts=find_lifts(analysis, routed), modules=modules)
    return _together(analysis, routed, growth, options)


def _together(analysis: Analysis, routed: Collection[Dim], growth: dict[Dim, Map], options: WidenOptions) -> Copies:
    """Return what changes where all copies or parts of an expert are chosen together; see `route`."""
    parted: set[Place] = set()
    parts: dict[Dim, Dim] = {}
    factors: dict[Place, float] = {}
    for dim in routed:
        times = growth[dim].new // dim.size
        found = find_joint_experts(analysis, {dim})
        if options.framework and found.grouped:
            raise RefusedError(f"a class of {options.framework} chooses groups of experts by a fixed number of scores")
        for chosen in found.chosen:
            known = growth.setdefault(chosen, split_copies(np.full(chosen.size, times)))
            if known.new != chosen.size * times:
                raise RefusedError("all experts that are chosen together need equally many copies")
        factors.update(dict.fromkeys(found.divided, 1 / times))
        if options.how == "topk":
            parted |= found.parted
            continue
        inside = _units(analysis, dim, found.parted, times)
        if not inside.isdisjoint(growth):
            raise RefusedError("units of experts cannot grow while experts are cut into parts: widen again for that")
        for units in inside:
            growth[units], parts[units] = keep(units.size, np.arange(units.size // times)), dim
        for use in found.parted:
            if not inside.isdisjoint(leaf_set(*analysis.uses[use].axes)):
                factors[use] = factors.get(use, 1.0) * times
    return Copies(parted=frozenset(parted), factors=factors, parts=parts)


def _units(analysis: Analysis, experts: Dim, last: Collection[Place], times: int) -> set[Dim]:
    """Return the units inside of experts that are cut into so many parts; those of each layer that has such experts.

    Args:
        analysis: The dims.
        experts: The dim of the experts.
        last: What their last layers read.
        times: How many parts each has.

    Raises:
        RefusedError: If they have none, or units of one expert do not stand for themselves.
    """
    network = LayerGraph(analysis)
    found = [
        {dim for dim in layer.reads if not _outside(analysis, experts, dim)}
        for number, layer in network.layers.items()
        if network.stack_of(number) in last
    ]
    if not found or any(len(inside) != 1 for inside in found):
        raise RefusedError("experts cannot be cut into parts: they have no hidden units of their own")
    for (units,) in found:
        if units.frozen or units.size % times:
            why = units.frozen or f"{units.size} is no multiple of {times}"
            raise RefusedError(f"experts of {units.size} units cannot be cut into {times} parts: {why}")
        _check_apart(analysis, network, units)
    return set().union(*found)


def _outside(analysis: Analysis, experts: Dim, units: Dim) -> bool:
    """Tell whether a weight without the experts has some units."""
    known = (leaf_set(*use.axes) for use in analysis.uses.values())
    return any(units in dims and experts not in dims for dims in known)


def _check_apart(analysis: Analysis, network: LayerGraph, units: Dim) -> None:
    """Refuse what reads all units of an expert together.

    Raises:
        RefusedError: Says which node does.
    """
    for number, said in analysis.said.items():
        together = [*(axis for statistic in said.statistics for axis in statistic.axes), *said.normalised]
        together += [contraction.axis for contraction in said.contractions if number not in network.layers]
        if any(units in leaf_set(axis) for axis in together):
            label = label_of(analysis.nodes[number])
            raise RefusedError(f"experts cannot be cut into parts: {label} reads all their units together")
