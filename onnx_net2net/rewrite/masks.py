"""Masks of copies of experts: for each token only one copy of each expert keeps its score.

Hyperplanes in the router's input x decide which copy that is. For expert e and copy j the number n_ej x + o_ej is
computed, and the copy with the largest number wins. The planes are orthogonal to the router's row of the expert, so
that they divide its tokens in about equal halves, whatever its scores are. They are constants, and do not learn.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.algebra.maps import NEVER, Map, compose, ranks
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.analysis.routers import Mask
from onnx_net2net.graph.edit import Writer
from onnx_net2net.graph.graph import Tensor
from onnx_net2net.rewrite.rewriting import Rewriting

_SMALL = 1e-3
"""Offsets of planes: where equal inputs lie on all planes, some copy has to win."""

MaskRows = Mapping[int, Compute]
"""For layers that make logits: what computes the router's rows."""


def mask_copies(rewriting: Rewriting, masks: Sequence[Mask], rows: MaskRows, seed: int) -> None:
    """Add a penalty to the scores of all copies of experts but one, for each token another one.

    Args:
        rewriting: The graph, whose experts have their copies already.
        masks: Where the penalty is added.
        rows: The router's rows.
        seed: Seed of the planes.
    """
    made: dict[int, Tensor] = {}
    for mask in masks:
        if mask.layer not in made:
            made[mask.layer] = _penalty(rewriting, mask.layer, rows.get(mask.layer), seed)
        node = rewriting.nodes[mask.node]
        rewriting.note("a mask of copies at", node)
        plain, result = rewriting.intercept(node, mask.output)
        penalty, op = made[mask.layer], Writer(rewriting.graph, f"{node.name or result.name}_mask")
        kind = rewriting.type_of(result)
        if kind != TensorProto.FLOAT:
            penalty = op.Cast(penalty, name="_cast", to=kind)
        if mask.folded:
            penalty = op.Reshape(penalty, op.Shape(plain, name="_shape"), name="_folded")
        op.Add(plain, penalty, name="", result=result)


def _penalty(rewriting: Rewriting, layer: int, rows: Compute | None, seed: int) -> Tensor:
    """Return the penalties of copies, in the shape of the logits that a layer makes."""
    graph, node, analysis = rewriting.graph, rewriting.nodes[layer], rewriting.analysis
    label = node.name or node.outputs[0].name
    network = LayerGraph(analysis)
    data, weights = node.inputs[1 - network.layers[layer].weights], network.layers[layer].weights
    axis, read = network.axes(layer)[-1], (analysis.input_axes(layer, 1 - weights) or ())[-1]
    index = compose(axis, rewriting.growth).index
    rank = ranks(index)
    most, lead = int(rank.max()) + 1, [0] * (len(network.axes(layer)) - 1)
    exists = np.zeros((axis.size, most), bool)
    exists[index, rank] = True
    kind = analysis.sizes.dtype(analysis.nodes[layer].outputs[0].name)
    lowest = np.finfo(np.float16 if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else np.float32).min
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    inputs = compose(read, rewriting.growth)
    draw = partial(_planes, exists, inputs, rows, dtype, [seed, zlib.crc32(label.encode())])
    tiny = np.random.default_rng([seed, 1]).uniform(-_SMALL, _SMALL, exists.size)
    start = np.where(exists.reshape(-1), tiny, float(lowest)).astype(dtype)

    def numbers(what: str, values: Array) -> Tensor:
        return graph.constant(f"{label}_copies_{what}", values)

    planes = graph.lazy_constant(f"{label}_planes", kind, (inputs.new, exists.size), draw)
    op = Writer(graph, f"{label}_copies_")
    sides = op.Add(op.MatMul(data, planes), numbers("offsets", start))
    apart = op.Reshape(sides, numbers("shape", np.array([*lead, axis.size, most])), name="Apart")
    winner = op.ArgMax(apart, axis=-1, keepdims=0)
    marks = numbers("marks", np.array([NEVER, 0.0], np.float32))  # onnxruntime has no OneHot of every type
    losers = op.OneHot(winner, numbers("depth", np.array(most)), marks)
    penalty = op.Reshape(losers, numbers("units", np.array([*lead, axis.size * most])), name="Together")
    places = index * most + rank
    if not np.array_equal(places, np.arange(exists.size)):
        penalty = op.Gather(penalty, numbers("places", places), axis=-1)
    return penalty


def read_rows(rewriting: Rewriting, masks: Sequence[Mask]) -> MaskRows:
    """Return for each layer that makes logits what reads the router's rows [units, inputs] of the teacher.

    A layer whose weight follows from several constants is left out. It has to be called before constants grow.
    """
    analysis, rows = rewriting.analysis, {}
    for layer in {mask.layer for mask in masks}:
        weights = LayerGraph(analysis).layers[layer].weights
        use = analysis.uses.get((layer, weights))
        if use is not None and len(use.axes) == 2:
            position = dict(analysis.said[layer].contractions[0].sides)[weights]
            rows[layer] = partial(_turned, rewriting.graph.reader(use.constant), position)
    return rows


def _turned(read: Compute, position: int) -> Array:
    return np.moveaxis(read(), position, 1).astype(np.float64)


def _planes(exists: Array, inputs: Map, rows: Compute | None, dtype: np.dtype[Any], seed: Sequence[int]) -> Array:
    """Draw planes [inputs, units x copies], orthogonal to the rows of their units."""
    planes = np.random.default_rng(seed).normal(size=(*exists.shape, inputs.old))
    if rows is not None:
        row = rows()
        sizes = np.square(row).sum(1)
        along = np.einsum("ujd,ud->uj", planes, row) / np.where(sizes > 0, sizes, 1)[:, None]
        planes -= along[:, :, None] * row[:, None]
    planes[~exists] = 0
    whole = planes.reshape(-1, inputs.old).T
    return np.asarray(whole[inputs.index] * inputs.weight[:, None], dtype)
