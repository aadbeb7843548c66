"""How the experts of a router get copies that together count as they did."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_net2net.algebra.dims import Dim
from onnx_net2net.algebra.maps import Map, lifted, split
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.modules import find_modules
from onnx_net2net.analysis.routers import find_lifts, find_masks
from onnx_net2net.analysis.shares import find_shares
from onnx_net2net.errors import RefusedError
from onnx_net2net.operations.widen.options import WidenOptions
from onnx_net2net.rewrite.rewriting import Copies


def copied(name: str, old: int, new: int, options: WidenOptions) -> Map:
    """Return the map of experts: each has as many copies as the others, the first ones one more.

    Raises:
        RefusedError: If copies of that number cannot count as the experts did.
    """
    if options.framework and options.how == "split":
        why = f"a class of {options.framework} has no masks of copies; --how topk or lift"
        raise RefusedError(f"{name!r} cannot have {new} units: {why}")
    if options.how == "topk" and new % old:
        raise RefusedError(f"{name!r} cannot have {new} units: all have to be chosen as often; --how lift or split")
    counts = np.full(old, new // old) + (np.arange(old) < new % old)
    return lifted(counts) if options.how == "lift" else split(counts)


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
    if modules and (options.framework or options.how == "topk"):
        raise RefusedError(
            "experts that are modules of their own get copies in the graph alone, and by --how split or lift"
        )
    if options.how == "split":
        return Copies(masks=tuple(find_masks(analysis, routed)), modules=modules)
    if options.how == "lift":
        return Copies(lifts=find_lifts(analysis, routed), modules=modules)
    parted: set[tuple[int, int]] = set()
    factors: dict[tuple[int, int], float] = {}
    for dim in routed:
        times = growth[dim].new // dim.size
        found = find_shares(analysis, {dim})
        if options.framework and found.grouped:
            raise RefusedError(f"a class of {options.framework} chooses groups of experts by fixed numbers of scores")
        for chosen in found.chosen:
            known = growth.setdefault(chosen, split(np.full(chosen.size, times)))
            if known.new != chosen.size * times:
                raise RefusedError("experts that are chosen together with others need as many copies as these")
        parted |= found.parted
        factors.update(dict.fromkeys(found.divided, 1 / times))
    return Copies(parted=frozenset(parted), factors=factors)
