"""Indexing, searching, sampling and the rest of ai.onnx: the axes that are looked along stay, the others pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from onnx_net2net.algebra.dims import Axes, Axis, Dim, Product, cut, leaves
from onnx_net2net.rules import rule, signature
from onnx_net2net.rules.normalization import typed_as_input
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.reasons import LISTED, LOOKED_UP, RANKED
from onnx_net2net.rules.typing import Typed, type_function

WRITTEN = "writes entries along this axis, where copies would be written twice"


# --- Entries by their place ---------------------------------------------------------------------------------------


@rule("GatherElements", pointwise="zero")
def gather_elements(op: Op) -> None:
    """y[i, j, k] = x[i, index[i, j, k], k]: the axes beside `axis` are those of the indices, unit by unit."""
    data, indices, target = op.known(0), op.known(1), op.result()
    at = op.axis(len(data), 0)
    op.look_up(data[at], 1)
    for position, (a, b, c) in enumerate(zip(data, indices, target, strict=True)):
        op.unify(b, c)
        if position != at and (a.size != b.size or not op.unify(a, b)):
            op.freeze((a, b), "looks up along another axis in a part of this one")
    op.scales(1)


@rule("GatherND")
def gather_nd(op: Op) -> None:
    """y[b, i, :] = x[b, *index[b, i], :]: batch axes and those of the indices pass, and what is not looked along."""
    data, indices, target = op.known(0), op.known(1), op.result()
    batch = int(op.attrs.get("batch_dims", 0))
    depth = indices[-1].size
    op.unify_all(data[:batch], indices[:batch])
    if depth == 1:
        op.look_up(data[batch], 1)
    else:
        op.freeze(data[batch : batch + depth], LOOKED_UP)
    op.freeze(indices[-1], LOOKED_UP)
    op.unify_all((*indices[:-1], *data[batch + depth :]), target)
    op.scales(1)
    op.pointwise("zero" if batch else "linear")


@rule("ScatterElements", "Scatter", pointwise="zero")
def scatter_elements(op: Op) -> None:
    """Write y[i, index[i, j, k], k] = update[i, j, k] into a copy of x: the axes beside `axis` pass, unit by unit."""
    data, indices, updates, target = op.known(0), op.known(1), op.known(2), op.result()
    at = op.axis(len(data), 0)
    op.unify_all(data, target)
    op.unify_all(indices, updates)
    for position, (a, b) in enumerate(zip(data, indices, strict=True)):
        if position == at and 1 in op.listed:
            op.look_up(a, 1)
            op.freeze([dim for dim in leaves(b) if not dim.frozen], WRITTEN)
        elif position == at or a.size != b.size or not op.unify(a, b):
            op.freeze((a, b), WRITTEN)
    op.scales(1)


@rule("ScatterND")
def scatter_nd(op: Op) -> None:
    """Write y[*index[i], :] = update[i, :] into a copy of x: the axes behind those that the places count along pass.

    An axis that they count along passes too where constant places name a run of it in order, independent of the other
    axes: all of it (the channels of y[:, :, 2:] = x), or a range, at whose ends it is cut (the biases of the keys
    among those of queries, keys and values). Where updates are added up, those of copies are summed.
    """
    data, indices, updates, target = op.known(0), op.known(1), op.known(2), op.result()
    depth, places = indices[-1].size, len(indices) - 1
    op.unify_all(data, target)
    op.unify_all(data[depth:], updates[places:])
    listed = op.value(1)
    runs = _runs(listed) if op.constant[1] and listed is not None and listed.size else {}
    for column, axis in enumerate(data[:depth]):
        if column not in runs or not _write_run(op, column, axis, runs[column], updates):
            op.freeze(axis, WRITTEN)
    for along, axis in enumerate(updates[:places]):
        if along in [a for a, _ in runs.values()]:
            continue
        if op.attrs.get("reduction", "none") == "add" and not op.constant[1] and op.unify(indices[along], axis):
            op.contract(axis, [(2, along)])
        else:
            op.freeze((indices[along], axis), WRITTEN)
    op.freeze(indices[-1] if not op.constant[1] else indices, LISTED)
    op.pointwise("linear" if op.attrs.get("reduction", "none") in ("none", "add") else "zero")


def _runs(listed: np.ndarray) -> dict[int, tuple[int, np.ndarray]]:
    """Return for each column of a list of places that has an axis of the list to itself: that axis, and the places.

    The column depends on no other axis, and no other column on that one (as in a diagonal).
    """
    columns = np.moveaxis(listed, -1, 0)
    moving = [[a for a in range(places.ndim) if (places != places.take([0], a)).any()] for places in columns]
    found: dict[int, tuple[int, np.ndarray]] = {}
    for column, (places, axes) in enumerate(zip(columns, moving, strict=True)):
        if len(axes) == 1 and sum(axes[0] in others for others in moving) == 1:
            found[column] = axes[0], np.moveaxis(places, axes[0], -1).reshape(-1, places.shape[axes[0]])[0]
    return found


def _write_run(op: Op, column: int, axis: Axis, run: tuple[int, np.ndarray], updates: Axes) -> bool:
    """State that a run of places on an axis of the data is written, if it is one, by an axis of the updates."""
    along, places = run[0], run[1] % axis.size
    ends = cut(axis, int(places[-1]) + 1) if np.array_equal(places, places[0] + np.arange(places.size)) else None
    pieces = ends and cut(ends[0], int(places[0]))
    if not ends or not pieces or not op.unify(pieces[1], updates[along]):
        op.freeze(updates[along], WRITTEN)
        return False
    op.list_run(1, column, along, pieces[0], pieces[1], ends[1])
    return True


@rule("TensorScatter", pointwise="zero")
def tensor_scatter(op: Op) -> None:
    """Write `update` into the cache from a place on, one for each entry of the batch; the other axes pass."""
    cache, update, target = op.known(0), op.known(1), op.result()
    at = op.axis(len(cache), -2)
    op.unify_all(cache, target)
    op.freeze((cache[at], update[at]), WRITTEN)
    op.unify_all((*cache[:at], *cache[at + 1 :]), (*update[:at], *update[at + 1 :]))
    op.unify_all(cache[:1], op.input(2) or cache[:1])
    op.scales(2)


@rule("OneHot", pointwise="any")
def one_hot(op: Op) -> None:
    """y[i, :, j] = one of depth for index[i, j]: the new axis counts from 0, the others are those of the indices."""
    indices, target = op.known(0), op.result()
    at = op.axis(len(target), -1)
    op.freeze((*(op.input(1) or ()), *(op.input(2) or ())), "counts along this axis")
    if 0 in op.listed:
        op.look_up(target[at], 0)
        op.size(1, 0, target[at])
    else:
        op.freeze(target[at], "counts along this axis")
    op.unify_all(indices, (*target[:at], *target[at + 1 :]))


# --- Along an axis, whose order counts ----------------------------------------------------------------------------


@rule("TopK", pointwise="any")  # the places of equal entries are not all 0
def top_k(op: Op) -> None:
    """Return the largest entries along `axis` and their places there; the other axes pass."""
    source = op.known(0)
    at = op.axis(len(source), -1)
    for target in op.outputs:
        if target is not None:
            op.unify_all((*source[:at], *source[at + 1 :]), (*target[:at], *target[at + 1 :]))
    chosen = [target[at] for target in op.outputs if target is not None]
    if op.attrs.get("largest", 1) and op.version > 1:
        op.choose(0, at, 1)
        op.chosen(chosen)
        if "k" in op.attrs:
            op.attribute("k", chosen[0])
        else:
            op.size(1, 0, chosen[0])
    else:
        op.freeze((source[at], *chosen), RANKED)
    op.scalars(1)


@rule("CumSum", "CumProd")
def cumulate(op: Op) -> None:
    """Sum (multiply) all entries up to each along an axis; the others pass."""
    source, axis = op.input(0), op.value(1)
    op.apply("*x -> *x")
    if source is None or axis is None:
        op.freeze_all("cumulates along an axis that is not known")
        return
    op.freeze(source[int(axis.reshape(-1)[0]) % len(source)], "cumulates along this axis")
    op.pointwise("linear" if op.kind == "CumSum" else "any")


@rule("ReverseSequence", pointwise="zero")
def reverse_sequence(op: Op) -> None:
    """Reverse the first entries along `time_axis`, in each entry of the batch as many as its length says."""
    source, lengths = op.known(0), op.known(1)
    op.apply("*x -> *x")
    op.freeze(source[op.axis(len(source), 0, "time_axis")], "reverses this axis")
    op.unify(source[op.axis(len(source), 1, "batch_axis")], lengths[0])
    op.scales(1)


@rule("Trilu", pointwise="linear")
def trilu(op: Op) -> None:
    """Keep a triangle of each matrix; the axes in front pass."""
    op.apply("*b m n -> *b m n", fixed="m n")
    op.scalars(1)


@rule("CenterCropPad", pointwise="linear")
def center_crop_pad(op: Op) -> None:
    """Crop or pad the listed axes (all by default) around the centre; one that keeps its size passes."""
    source, target = op.known(0), op.result()
    op.freeze(op.input(1), LISTED)
    listed = [a % len(source) for a in op.attrs.get("axes", range(len(source)))]
    for position, (a, b) in enumerate(zip(source, target, strict=True)):
        if a.size != b.size or not op.unify(a, b):
            op.freeze((a, b), "crops or pads this axis around its centre")
        elif position in listed:
            op.size(1, listed.index(position), b)


signature("Det", "*b m n -> *b", fixed="m n", pointwise="zero")


@rule("DFT", pointwise="linear")
def dft(op: Op) -> None:
    """Transform along one axis; the last one holds the real and the imaginary part, the others pass."""
    source, target = op.input(0), op.output()
    op.scalars(1)
    known = op.ints("axis", 2) or ([1 if op.version < 20 else -2] if not op.has(2) else None)
    if source is None or target is None or known is None:
        op.freeze_all("transforms along an axis that is not known")
        return
    at = known[0] % len(source)
    for position, (a, b) in enumerate(zip(source, target, strict=True)):
        if position in (at, len(source) - 1):
            op.freeze((a, b), "transforms along this axis")
        else:
            op.unify(a, b)


@rule("STFT", pointwise="linear")
def stft(op: Op) -> None:
    """Transform windows of each signal; nothing but the batch passes."""
    signal, target = op.known(0), op.result()
    op.unify(signal[0], target[0])
    op.scalars(1, 3)
    op.freeze((*signal[1:], *target[1:], *(op.input(2) or ())), "transforms windows along this axis")


@type_function("STFT", domain="")
def _stft_type(types: Sequence[Typed | None], attrs: Mapping[str, Any], values: Sequence[Any]) -> list[Typed]:
    """Type an STFT: the inference of onnx takes an absent `onesided` for 0, though its default is 1."""
    signal, window = types[0], types[2] if len(types) > 2 else None
    length = values[3] if len(values) > 3 and values[3] is not None else window and window[1][0]
    if signal is None or values[1] is None or length is None:
        raise ValueError("has frames of a length that is not known")
    dtype, (batch, samples, *_) = signal
    bins = int(length) // 2 + 1 if attrs.get("onesided", 1) else int(length)
    return [(dtype, (batch, 1 + (samples - int(length)) // int(values[1]), bins, 2))]


# --- Samples of images --------------------------------------------------------------------------------------------

# Each channel of an image is sampled alone, at the positions that the image's grid holds.
signature("GridSample", "n c *x, n *y r -> n c *y", fixed="x y r", scales=(1,), pointwise="zero")

# Each channel of the image that a region names is pooled alone.
signature("RoiAlign", "b c *x, r q, r -> r c *y", fixed="b x r q y", scales=(1, 2), pointwise="zero")
signature("MaxRoiPool", "b c *x, r q -> r c *y", fixed="b x r q y", scales=(1,), pointwise="zero")


@rule("DeformConv")
def deform_conv(op: Op) -> None:
    """A Conv whose taps are moved: offsets and mask hold for all channels of an offset group, which grow alike."""
    op.apply(
        "n (g i) *x, (g o) i *k, n f *y, (g o), n m *y -> n (g o) *y", sizes={"g": "group"}, fixed="x k y f m"
    )  # fmt: skip
    axes, parts = op.input(0), int(op.attrs.get("offset_group", 1))
    if axes is not None and parts > 1:
        outer = Dim(parts, op.why("moves these groups of channels apart"))
        op.unify(axes[1], Product((outer, Dim(axes[1].size // parts))), "moves groups of channels apart")


@rule("Col2Im", pointwise="linear")
def col2im(op: Op) -> None:
    """Add the columns of blocks up to an image: a channel has a run of columns, one for each place in the block."""
    block = op.value(2)
    if block is None:
        op.freeze_all("has a block of unknown size")
        return
    op.apply("n (c k) l, i, b -> n c *y", sizes={"k": prod(block.tolist())}, fixed="k l y i b")


# --- Unit by unit -------------------------------------------------------------------------------------------------

signature("SwiGLU", "*x, *x -> *x", pointwise="zero")
signature("BitCast", "*x -> *x", pointwise="partial")  # of random bits may be no number
signature("CausalConvWithState", "n c t, c j k, c, n c s -> n c t, n c s", fixed="t j k s", pointwise="zero")


@rule("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", pointwise="any")
def loss(op: Op) -> None:
    """Compare scores with labels, place by place; a loss over all places has a fixed number of them."""
    if op.attrs.get("reduction", "mean") == "none":
        op.apply("n c *x, n *x, c -> n *x, n c *x", fixed="c")
    else:
        op.freeze_all("takes a loss over all of its places")


# --- Before opset 10 some runtimes knew more ----------------------------------------------------------------------

signature("Affine", "ParametricSoftplus", "*x -> *x", pointwise="any")
signature("Scale", "*x -> *x", pointwise="linear")
signature("ScaledTanh", "*x -> *x", pointwise="zero")
signature("ImageScaler", "n c *x -> n c *x", fixed="c", pointwise="any")  # has a bias for each channel
signature("Crop", "n c *x -> n c *y", fixed="x y", pointwise="linear")


type_function("Affine", "ParametricSoftplus", "Scale", "ScaledTanh", "ImageScaler", domain="")(typed_as_input)


@type_function("Crop", domain="")
def _cropped_type(types: Sequence[Typed | None], attrs: Mapping[str, Any], values: Sequence[Any]) -> list[Typed]:
    known = next(known for known in types if known)
    (n, c, h, w), (left, top, right, bottom) = known[1], attrs["border"]
    size = attrs.get("scale") or (h - top - bottom, w - left - right)
    return [(known[0], (n, c, *size))]
