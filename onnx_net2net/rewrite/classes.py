"""New classes: they start at a chosen probability, and under a softmax at 0."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set, leaves
from onnx_net2net.algebra.maps import NEVER, ORIGINS, compose
from onnx_net2net.graph.graph import Place
from onnx_net2net.rewrite.rewriting import Rewriting
from onnx_net2net.rules import traits


def _classes(rewriting: Rewriting, origin: str) -> set[Dim]:
    """Return the dims that have new classes of a kind."""
    return {dim for dim, map in rewriting.growth.items() if ORIGINS[int(map.kind.max())] == origin}


def find_biases(rewriting: Rewriting) -> dict[Dim, Place]:
    """Find for new classes the first constant that is added to them, which can hold their prior."""
    analysis, classes = rewriting.analysis, _classes(rewriting, "prior")
    biases: dict[Dim, Place] = {}
    for place, use in sorted(analysis.uses.items()):
        contractions = analysis.said[use.node].contractions
        weighs = any(index == use.input for contraction in contractions for index, _ in contraction.sides)
        if analysis.nodes[use.node].op in traits.SUMS or (contractions and not weighs):
            for dim in leaf_set(*use.axes) & classes:
                biases.setdefault(dim, place)
    return biases


def silence_classes(rewriting: Rewriting) -> None:
    """Take so much off new classes in front of a softmax that it gives them a probability of 0.

    What stands between may do anything to a logit (the gain of Div, the sign of Neg), so that no bias could.
    """
    silent = _classes(rewriting, "never")
    for number, said in rewriting.analysis.said.items() if silent else ():
        normalised = leaf_set(*said.normalised) & silent
        for position, axis in enumerate(rewriting.input_axes(number, 0)):
            if normalised & set(leaves(axis)):
                new = compose(axis, rewriting.growth).kind == ORIGINS.index("never")
                rewriting.insert(number, 0, position, plus=np.where(new, NEVER, 0.0))


def add_priors(rewriting: Rewriting, logit: float, biased: Collection[Dim]) -> None:
    """Add a bias that holds the prior of new classes, where the layer that makes them has none."""
    classes = _classes(rewriting, "prior").difference(biased)
    for number, said in rewriting.analysis.said.items() if classes else ():
        node, uses = rewriting.nodes[number], rewriting.analysis.uses
        if not said.contractions or not any((number, index) in uses for index in range(len(node.inputs))):
            continue
        for position, axis in enumerate(rewriting.analysis.axes.get(node.outputs[0].name, ())):
            made = rewriting.grown(axis) & classes
            if made:
                new = compose(axis, rewriting.growth, made).kind == ORIGINS.index("prior")
                rewriting.append(number, position, plus=np.where(new, logit, 0.0))
