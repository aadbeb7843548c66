"""From maps to a student: weights, attributes, sizes, and the few nodes that a map needs."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_net2net.algebra.maps import ORIGINS, Growth
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.padding import follow, pads_of
from onnx_net2net.analysis.ties import Ties
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.model.history import mark_grown
from onnx_net2net.model.model import Model
from onnx_net2net.rewrite.classes import add_priors, find_biases, silence_classes
from onnx_net2net.rewrite.constants import (
    Demands,
    GrownConstant,
    changed_norms,
    gains_for,
    grow_constants,
    read_scales,
)
from onnx_net2net.rewrite.masks import mask_copies, read_rows
from onnx_net2net.rewrite.modules import copy_modules
from onnx_net2net.rewrite.norms import adapt_norms, fill_norms
from onnx_net2net.rewrite.outputs import cut_outputs
from onnx_net2net.rewrite.rewriting import Copies, Inserted, Rewriting
from onnx_net2net.rewrite.scaling import Scaling
from onnx_net2net.rewrite.sizes import resize
from onnx_net2net.rewrite.sums import factors_of_all, find_weighers, keep_shares


@dataclass(frozen=True)
class Rewritten:
    """A student, and what it took.

    Attributes:
        model: The student; its weights are computed when it is saved.
        constants: How each constant grew.
        inserted: What it needs beside weights of other sizes: nodes, and numbers that had to be kept.
        untied: Matrices that became several versions for their uses.
    """

    model: Model
    constants: tuple[GrownConstant, ...]
    inserted: tuple[Inserted, ...]
    untied: tuple[str, ...]


def rewrite(
    teacher: Model,
    draft: Draft,
    growth: Growth,
    style: Style,
    metadata: dict[str, str],
    scaling: Scaling | None = None,
    ties: Ties | None = None,
    copies: Copies | None = None,
) -> Rewritten:
    """Grow a model.

    Args:
        teacher: The model that was analysed.
        draft: Its dims; the graph in it becomes the student's.
        growth: Map of each dim that grows.
        style: How new values are drawn.
        metadata: Entries for the student's metadata.
        scaling: What weights around padded dims are multiplied by, so that normalisers keep their epsilon. By default
            these get another one, or nodes around them, and outputs that are hidden units too are cut.
        ties: What else changes for tied weights.
        copies: How copies of experts are kept from counting twice.

    Returns:
        The student, how each constant grew, and what else it took.

    Raises:
        RefusedError: If a map cannot be carried out exactly; says where and why.
    """
    rewriting = Rewriting(draft, growth, ties, copies)
    masks = rewriting.copies.masks
    rows = read_rows(rewriting, masks)
    padding = follow(draft, pads_of(growth))
    norms = changed_norms(rewriting)
    unweighed = norms.keys() | (scaling.unweighed if scaling else set())
    weighers, inserts = find_weighers(rewriting, padding.states, unweighed)
    for norm in norms.values():
        weighers.update({use: weighers[norm.weight] for use in norm.uses if norm.weight in weighers})
    demands = Demands(weighers, *adapt_norms(rewriting, keep_epsilon=scaling is not None))
    biases = find_biases(rewriting)
    demands.fillers.update(dict.fromkeys(biases.values(), "bias"))
    demands.fillers.update(rewriting.copies.lifts)
    demands.fillers.update((scale, "size") for made in padding.scales.values() for scale in made.values())
    factors = factors_of_all(rewriting)
    demands.fillers = {**dict.fromkeys(factors, "copy"), **demands.fillers}
    demands.multiply(factors)
    demands.multiply(scaling.factors if scaling else {})
    demands.multiply(rewriting.copies.factors)
    demands.scales = read_scales(rewriting, padding.scales)
    demands.gains = gains_for(rewriting, norms.values(), weighers, style)
    constants = tuple(grow_constants(teacher, rewriting, demands, style))
    for number, index, position, map in inserts:
        rewriting.insert(number, index, position, times=map.weight)
    keep_shares(rewriting, unweighed)
    silence_classes(rewriting)
    resize(teacher, rewriting)
    mask_copies(rewriting, masks, rows, style.seed)
    if scaling is None:
        fill_norms(rewriting, opsets_of(teacher.proto)[""])
    add_priors(rewriting, style.logit, biases)
    if scaling is None:
        cut_outputs(rewriting)
    copy_modules(rewriting, rewriting.copies.modules)
    rewriting.clean_up()
    model = rewriting.graph.finish(metadata)
    mark_grown(model.proto, {constant.student: _note(constant) for constant in constants})
    return Rewritten(model, constants, tuple(rewriting.inserted), tuple(rewriting.untied))


def _note(constant: GrownConstant) -> str:
    """Say how a constant grew: its shapes, and how the new units of each axis came about."""
    axes = constant.growth.axes
    old, new = " x ".join(str(axis.map.old) for axis in axes), " x ".join(str(axis.map.new) for axis in axes)
    kinds = {place: ORIGINS[int(axis.map.kind.max())] for place, axis in enumerate(axes) if not axis.map.is_identity}
    return ", ".join([f"{old} -> {new}", *(f"axis {place} {kind}" for place, kind in kinds.items())])
