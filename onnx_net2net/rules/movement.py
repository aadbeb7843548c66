"""Data movement: the same units in other places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_net2net.algebra.dims import Axes, Axis, Concat, Dim, Product, cut, factor, resolve
from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op, is_one, required
from onnx_net2net.rules.reasons import LOOKED_UP


@rule("Constant", "Shape", "Size", "Range", "RandomNormal", "RandomUniform")
def source(op: Op) -> None:
    """Make a tensor from nothing or from sizes; nothing is known of its axes."""
    if op.kind != "Constant":
        op.freeze(op.output(), "makes this axis")
    op.ignores(0)
    op.scalars(1, 2)


@rule("ConstantOfShape")
def constant_of_shape(op: Op) -> None:
    """Fill a tensor whose sizes are the input."""
    for element, axis in enumerate(op.output() or ()):
        op.size(0, element, axis)


@rule("Concat", pointwise="linear")
def concat(op: Op) -> None:
    """Lay the inputs end to end along `axis`."""
    target, parts = op.result(), [required(axes) for axes in op.inputs]
    at = op.axis(len(target), 1)
    for axes in parts:
        op.unify_all((*axes[:at], *axes[at + 1 :]), (*target[:at], *target[at + 1 :]))
    op.unify(Concat(axes[at] for axes in parts), target[at])


@rule("Split", pointwise="linear")
def split(op: Op) -> None:
    """Cut an axis into the outputs; parts without sizes are equal, and get sizes when they grow apart."""
    source, parts = op.known(0), [required(axes) for axes in op.outputs]
    at = op.axis(len(source), 0)
    for axes in parts:
        op.unify_all((*axes[:at], *axes[at + 1 :]), (*source[:at], *source[at + 1 :]))
    if op.has(1) and op.value(1) is None:
        op.freeze((source[at], *(axes[at] for axes in parts)), "cuts this axis into parts whose sizes depend on data")
        return
    op.unify(Concat(axes[at] for axes in parts), source[at])
    for element, axes in enumerate(parts):
        if op.version >= 13:
            op.size(1, element, axes[at])
        else:
            op.attribute("split", axes[at], element=element)


@rule("Compress", pointwise="linear")
def compress(op: Op) -> None:
    """Take the entries along `axis` for which a condition holds, however many; without an axis, those of all."""
    source, target = op.known(0), op.result()
    op.scalars(1)
    if "axis" not in op.attrs:
        op.freeze((*source, *target), "takes entries of all axes by a condition")
        return
    at = op.axis(len(source), 0)
    op.freeze((source[at], target[at]), "takes entries along this axis by a condition")
    op.unify_all((*source[:at], *source[at + 1 :]), (*target[:at], *target[at + 1 :]))


@rule("Slice", pointwise="linear")
def slice_(op: Op) -> None:
    """Take a range of each listed axis; with step 1 the axis is cut there."""
    source, target = op.known(0), op.result()
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    listed = op.ints("axes", 3) or list(range(len(starts or ())))
    steps = op.ints("steps", 4) or [1] * len(listed)
    if starts is None or ends is None or (op.has(3) and op.value(3) is None) or (op.has(4) and op.value(4) is None):
        for a, b in zip(source, target, strict=True):
            if a.size != b.size or not op.unify(a, b):
                op.freeze((a, b), "slices this axis at places that are not known")
        return
    ranges = {a % len(source): (element, starts[element], ends[element], steps[element]) for element, a in
              enumerate(listed)}  # fmt: skip
    for position, (a, b) in enumerate(zip(source, target, strict=True)):
        if position not in ranges:
            op.unify(a, b)
            continue
        element, start, end, step = ranges[position]
        first, last, _ = slice(start, end, step).indices(a.size)
        if step == 1:
            taken = first <= last and _take_range(op, element, a, b, first, last)
        elif 0 <= first < step and b.size * step == a.size:
            taken = _take_every(op, element, a, b, first, step)
        else:
            taken = len(ranges) == 1 and op.permute(position, a, b, np.arange(a.size)[start:end:step])
        if not taken:
            op.freeze((a, b), "takes a range of this axis that cuts through its factors or skips entries")


def _take_every(op: Op, element: int, source: Axis, target: Axis, first: int, step: int) -> bool:
    """State that `target` is number `first` of each `step` units of `source`: the outer factor of (outer step)."""
    factors = factor(source, step, op.why("takes every so many units of this axis"))
    if factors is None:
        return False
    op.freeze(factors[1], "takes every so many units of this axis")
    _bound(op, 1, "starts", element, source, Dim(first, op.why("starts there")))
    _bound(op, 2, "ends", element, source, source)
    return op.unify(factors[0], target)


def _take_range(op: Op, element: int, source: Axis, target: Axis, first: int, last: int) -> bool:
    """State that `target` is the units first..last of `source`, and the bounds with it."""
    pieces = cut(source, last)
    inner = pieces and cut(pieces[0], first)
    if not inner or not op.unify(inner[1], target):
        return False
    _bound(op, 1, "starts", element, source, inner[0])
    _bound(op, 2, "ends", element, source, *inner)
    return True


def _bound(op: Op, index: int, name: str, element: int, whole: Axis, *before: Axis) -> None:
    """State that a bound of Slice stands behind the axes `before`."""
    if name in op.attrs:
        op.attribute(name, *before, element=element, whole=whole)
    else:
        op.size(index, element, *before, whole=whole)


@rule("Reshape", pointwise="linear")
def reshape(op: Op) -> None:
    """Merge and split axes, row-major: runs of axes with equal products are the same units."""
    source, shape = op.input(0), op.output()
    match_runs(op, source, shape, op.ints("shape", 1) or ())
    for element, axis in enumerate(shape or ()):
        if "shape" in op.attrs:
            op.attribute("shape", axis, element=element)
        else:
            copied = source[element] if source is not None and element < len(source) else None
            op.size(1, element, axis, instead={-1: None} if op.attrs.get("allowzero") else {-1: None, 0: copied})


@rule("Flatten", "Squeeze", "Unsqueeze", pointwise="linear")
def refold(op: Op) -> None:
    """Merge axes, or drop and add axes of size 1; no size is written down."""
    match_runs(op, op.input(0), op.output())
    op.scalars(1)


def match_runs(op: Op, source: Axes | None, target: Axes | None, sizes: Sequence[int] = ()) -> None:
    """Unify the shortest runs of axes whose sizes have the same product.

    A hidden channel of size 1 fits into the run before and into the one behind. It is in the one whose other side has
    such a channel, too, or takes what is left (a size of -1); else in the one behind.
    """
    left, right = ([axis for axis in required(axes) if not is_one(axis)] for axes in (source, target))
    rest = next((axis for axis, size in zip(target or (), sizes, strict=False) if size == -1), None)
    while left and right:
        xs, ys = [left.pop(0)], [right.pop(0)]
        while (m := Product(xs).size) != (n := Product(ys).size) and (left if m < n else right):
            xs.append(left.pop(0)) if m < n else ys.append(right.pop(0))
        while left and left[0].size == 1 and (_singles(ys) > _singles(xs) or rest in ys):
            xs.append(left.pop(0))
        while right and right[0].size == 1 and _singles(xs) > _singles(ys):
            ys.append(right.pop(0))
        op.unify(Product(xs), Product(ys), "regroups axes that have no common factors")
    op.freeze((*left, *right), "has an empty tensor")


def _singles(axes: Sequence[Axis]) -> int:
    """Return how many hidden channels of size 1 are factors of some axes."""
    factors = (
        factor for axis in map(resolve, axes) for factor in (axis.parts if isinstance(axis, Product) else (axis,))
    )
    return sum(factor.size == 1 for factor in factors)


@rule("Transpose", pointwise="linear")
def transpose(op: Op) -> None:
    """Permute axes (reversed by default)."""
    axes, target = op.known(0), op.result()
    op.unify_all([axes[a] for a in op.attrs.get("perm", range(len(axes))[::-1])], target)


@rule("Expand", pointwise="linear")
def expand(op: Op) -> None:
    """Broadcast to given sizes."""
    target = op.output() or ()
    op.broadcast(op.inputs[:1], target)
    shape = op.value(1)
    offset = len(target) - (len(shape) if shape is not None else len(target))
    for element, axis in enumerate(target[offset:]):
        op.size(1, element, axis, instead={1: None} if axis.size != 1 else {})


@rule("Tile", pointwise="linear")
def tile(op: Op) -> None:
    """Repeat along axes: the repetition is the outer factor."""
    source, target, repeats = op.input(0), op.output(), op.value(1)
    if source is None or target is None or repeats is None:
        op.freeze_all("repeats a number of times that is not known")
        return
    for element, (a, b, times) in enumerate(zip(source, target, repeats.tolist(), strict=True)):
        if times == 1:
            op.unify(a, b)
        elif a.size == 1:
            op.size(1, element, b)
        else:
            op.unify(Product((Dim(times, op.why("repeats this often")), a)), b)


@rule("Gather", pointwise="linear")
def gather(op: Op) -> None:
    """Take entries along an axis; a constant list of distinct places moves units, other indices fix the axis."""
    data, indices, target = op.known(0), op.known(1), op.result()
    at = op.axis(len(data), 0)
    op.unify_all((*data[:at], *data[at + 1 :]), (*target[:at], *target[at + len(indices) :]))
    places = op.value(1)
    wide = [position for position, axis in enumerate(indices) if axis.size > 1]
    if op.constant[1] and places is not None and len(wide) == 1:
        op.permute(at, data[at], target[at + wide[0]], places.reshape(-1) % data[at].size, 1)
        return
    op.unify_all(indices, target[at : at + len(indices)])
    if op.constant[1]:
        op.freeze(data[at], LOOKED_UP)
    else:
        op.look_up(data[at], 1)


@rule("Pad")
def pad(op: Op) -> None:
    """Add constant entries at either end of an axis; they belong to no unit and stay as many."""
    source, target = op.input(0), op.output()
    pads = op.ints("pads", 1) or op.ints("paddings")
    if source is None or target is None or pads is None:
        op.freeze_all("pads by amounts that are not known")
        return
    filler = op.value(2) if op.has(2) else op.attrs.get("value", 0)
    op.pointwise("linear" if filler is not None and not np.any(filler) else "any")
    listed = op.ints("axes", 3) or list(range(len(source)))
    constant = op.attrs.get("mode", "constant") == "constant"
    amounts = {a % len(source): (pads[k], pads[k + len(listed)]) for k, a in enumerate(listed)}
    for position, (a, b) in enumerate(zip(source, target, strict=True)):
        before, after = amounts.get(position, (0, 0))
        reason = op.why("pads this axis")
        if (before, after) == (0, 0):
            op.unify(a, b)
        elif constant and before >= 0 and after >= 0:
            op.unify(Concat((Dim(before, reason), a, Dim(after, reason))), b)
        else:
            op.freeze((a, b), "pads this axis with its own entries or cuts it")
