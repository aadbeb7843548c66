"""Weights of a student that reads less than its teacher, fitted to what the teacher's layers make of the same examples.

From the first layer to the last, teacher and student run side by side. Where the student's layer reads x (for a
convolution all that is under its kernel) and the teacher's makes y, the student's weights W get the change

    dW = (Cov(y, x) - W Cov(x, x)) (Cov(x, x) + r diag)^-1                 and the bias E(y) - (W + dW) E(x),

ridge regression with the weights that there are as the point to start from. r is the one that serves best on the half
of the examples that dW was not fitted to; there is no dW if none helps there. Where the result is added to a residual
stream, y gets what the student's stream lacks so far, so that errors do not pile up. A BatchNormalization behind the
layer gets the statistics with which its results have the mean and the variance that y gives the teacher's. A layer
that makes what it should is left as it is, to the bit.

Fitting what follows to what is left is the second half of channel pruning (He, Zhang, Sun 2017; ThiNet, Luo et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from onnx_net2net.alignment import Slot, Unit
from onnx_net2net.calibration import Watch, watched
from onnx_net2net.fitting import Fitted
from onnx_net2net.inputs import Feeds
from onnx_net2net.maps import compose
from onnx_net2net.model import Model, Progress
from onnx_net2net.readers import Moments, Reader, reader_of
from onnx_net2net.sides import Compute, Side, Sides
from onnx_net2net.tensors import Array

RIDGES = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried for r; the diagonal is that of the covariance."""

WIDEST = 4608
"""Layers that read more units and places than this keep their weights: the matrices would be too large."""

_ROWS_EACH = 50
"""So many rows for each unit and place that is read are enough."""

_NOTHING = 1e-10
"""A share of the variance of what a layer makes that is float noise."""

Changes = dict[tuple[int, str], Array]
"""What is added to a parameter of a unit of the teacher, by the number of the target's unit and the parameter."""


@dataclass(frozen=True)
class Pair:
    """A layer that both networks have."""

    teacher: Reader
    student: Reader

    @property
    def key(self) -> tuple[str, int]:
        """What is the same for layers that can be fitted after the same run."""
        return self.student.tensor, self.student.position


def pairs_of(sides: Sides, units: Iterable[tuple[Unit, Unit]]) -> list[Pair]:
    """Return the layers that can be fitted, in the order of the target; the teacher has not grown yet."""
    found = []
    for old, new in sorted(units, key=lambda pair: pair[1].node):
        readers = reader_of(sides.teacher, old), reader_of(sides.target, new)
        tied = _is_tied(sides.teacher, old) or _is_tied(sides.target, new)
        if readers[0] is not None and readers[1] is not None and not tied and old.shape[2:] == new.shape[2:]:
            found.append(Pair(*readers))
    return found


def _is_tied(side: Side, unit: Unit) -> bool:
    """Tell whether other nodes read the weights of a layer too."""
    slot = unit.slots.get("weight")
    uses = side.analysis.uses
    return slot is not None and any(
        key != slot.use and use.constant is uses[slot.use].constant and side.nodes[use.node].op not in ("Shape", "Size")
        for key, use in uses.items()
    )


class Reconstruction:
    """Fits a student, layer by layer.

    Args:
        sides: The two networks, of which the teacher has the target's sizes by now.
        fitted: How it got them.
        changes: What is changed; the student has all that is in it.
        examples: Inputs of teacher and target by name.
    """

    def __init__(self, sides: Sides, fitted: Fitted, changes: Changes, examples: Sequence[tuple[Feeds, Feeds]]) -> None:
        self._sides, self._fitted, self._changes, self._examples = sides, fitted, changes, examples

    def run(self, pairs: Sequence[Pair], progress: Progress | None = None) -> None:
        """Fit layers."""
        steps = [list(some) for _, some in groupby(pairs, lambda pair: pair.key)]
        tensors = {name for pair in pairs for name in (pair.teacher.result, pair.teacher.skip) if name}
        with watched(self._sides.teacher.opened.model, tensors, "teacher") as watch:
            for number, some in enumerate(steps):
                if progress is not None:
                    progress("reconstructing", number, len(steps))
                layers = [_Layer(self._sides, self._fitted, pair, some[0].student.unit.node) for pair in some]
                self._measure(watch, [layer for layer in layers if layer.fits])
                for layer in layers:
                    layer.fit(self._changes)

    def _measure(self, teacher: Watch, layers: Sequence[_Layer]) -> None:
        """Run both networks and let layers see what they read and are to make."""
        if not layers:
            return
        old = list(dict.fromkeys(name for layer in layers for name in layer.old_tensors))
        new = list(dict.fromkeys(name for layer in layers for name in layer.new_tensors))
        with watched(self._sides.target.analysis.draft.finish(), new, "student") as student:
            for feeds in self._examples:
                given = teacher(feeds[0], old), student(feeds[1], new)
                for layer in layers:
                    layer.see(*given, len(self._examples))


class _Layer:
    """One layer that is fitted."""

    def __init__(self, sides: Sides, fitted: Fitted, pair: Pair, first: int) -> None:
        self._old, self._new = pair.teacher, pair.student
        unit, self._number = self._old.unit, self._new.unit.node
        slot = unit.slots["weight"]
        made = compose(slot.axes(sides.teacher.analysis)[0], fitted.growth)
        self._made, self._plain = made.index, made.kind == 0
        self._values = {what: read for what, own in unit.slots.items() if (read := sides.teacher.reader(own))}
        self._epsilon = sides.teacher.epsilon(unit.norm) if unit.norm is not None else 0.0
        self._normed = unit.norm is not None and {"scale", "mean", "variance"} <= self._values.keys()
        self._shifts = self._normed or self._new.unit.norm is not None or "bias" in self._new.unit.slots
        self._inside = "bias" in unit.slots and unit.slots["bias"].use[0] == unit.node
        self._group = int(self._new.node.attrs.get("group", 1))
        self._halves = Moments(), Moments()
        self.fits = "weight" in self._values and slot.use not in fitted.scaled
        self.fits &= self._normed or unit.norm is None
        if self.fits:
            self._weight = self._values["weight"]().astype(np.float64)
            self.fits = len(self._weight) == len(self._made) and self._weight[0].size * self._group <= WIDEST * (self._group if self._group > 1 else 1)
        self._adds = bool(self._old.skip and self._new.skip and self._new.known < first)

    @property
    def old_tensors(self) -> list[str]:
        return [self._old.result, *([self._old.skip] if self._adds else [])]

    @property
    def new_tensors(self) -> list[str]:
        return [self._new.tensor, *([self._new.skip] if self._adds else [])]

    # -- measuring ---------------------------------------------------------------------------------------------

    def see(self, old: Mapping[str, Array], new: Mapping[str, Array], runs: int) -> None:
        """Take in what one run shows."""
        y = np.moveaxis(old[self._old.result], self._old.makes, -1)
        read = self._patches(new[self._new.tensor], y.shape[:-1])
        if not self.fits or read is None or read.shape[:-2] != y.shape[:-1] or len(self._made) % self._group:
            self.fits = False
            return
        places = self._sample(y.shape[:-1], read.shape[-2] * read.shape[-1], runs)
        x, y = read[places], y[places][:, self._made].astype(np.float64)
        if self._adds:
            stream = [np.moveaxis(v, self._old.makes, -1)[places] for v in (old[self._old.skip], new[self._new.skip])]
            gain = self._gain()
            y = y + np.where(gain, stream[0][:, self._made] - stream[1], 0) / np.where(gain, gain, 1)
        x = x.reshape(len(x), self._group, -1).swapaxes(0, 1)
        y = y.reshape(len(y), self._group, -1).swapaxes(0, 1)
        if x.shape[2] != self._weight[0].size:
            self.fits = False
            return
        middle = x.shape[1] // 2
        self._halves[0].add(x[:, :middle], y[:, :middle])
        self._halves[1].add(x[:, middle:], y[:, middle:])

    def _sample(self, shape: tuple[int, ...], width: int, runs: int) -> tuple[Array, ...]:
        """Draw some places of the result, in order."""
        total, most = math.prod(shape), max(_ROWS_EACH * width // runs, 64)
        flat = np.arange(total)
        if total > most:
            flat = np.sort(np.random.default_rng(0).choice(total, most, replace=False))
        return np.unravel_index(flat, shape)

    def _gain(self) -> Array:
        if not self._normed:
            return np.ones(len(self._made))
        scale, variance = (self._values[what]().astype(np.float64) for what in ("scale", "variance"))
        gain = scale / np.sqrt(variance + self._epsilon)
        return np.where(np.abs(gain) > 1e-3 * np.abs(gain).max(), gain, 0)

    def _patches(self, values: Array, places: tuple[int, ...]) -> Array | None:
        """Return what a layer reads at each place of its result: [*places, units, places of the kernel]."""
        if self._new.node.op != "Conv":
            return np.moveaxis(values, self._new.position, -1)[..., None]
        attrs, size = self._new.node.attrs, places[1:]
        rank = len(size)
        kernel = self._weight.shape[2:] or (1,) * rank
        if values.ndim != rank + 2 or len(kernel) != rank: return None
        steps, wide = (attrs.get(key) or [1] * rank for key in ("strides", "dilations"))
        before = list((attrs.get("pads") or [0] * (2 * rank))[:rank])
        reach = [w * (k - 1) + 1 for w, k in zip(wide, kernel, strict=True)]
        spans = [s * (n - 1) + r for s, n, r in zip(steps, size, reach, strict=True)]
        if (auto := attrs.get("auto_pad", "NOTSET")) in ("SAME_UPPER", "SAME_LOWER"):
            lack = [max(a - b, 0) for a, b in zip(spans, values.shape[2:], strict=True)]
            before = [(n + (auto == "SAME_LOWER")) // 2 for n in lack]
        after = [max(a - b - n, 0) for a, b, n in zip(spans, before, values.shape[2:], strict=True)]
        padded = np.pad(values, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
        picks = [slice(None, s * (n - 1) + 1, s) for s, n in zip(steps, size, strict=True)]
        view = view[(slice(None), slice(None), *picks, *(slice(None, None, w) for w in wide))]
        return np.moveaxis(view, 1, 1 + rank).reshape(*view.shape[:1], *size, values.shape[1], -1) if False else _Lazy(view, rank)

    # -- fitting -----------------------------------------------------------------------------------------------

    def fit(self, changes: Changes) -> None:
        """Find what is to change."""
        if not self.fits or not self._halves[1].count:
            return
        group = self._group
        own = self._weight.reshape(group, len(self._made) // group, -1)
        both = Moments().join(self._halves[0]).join(self._halves[1])
        made = (own @ both.mean[..., None])[..., 0]
        bias = self._values["bias"]().astype(np.float64) if "bias" in self._values else np.zeros(len(self._made))
        inside = bias if self._inside else 0 * bias
        target = both.other - inside.reshape(both.other.shape)
        spread = both.covariance()
        power, cross = both.power / both.count, both.cross / both.count
        error = power - 2 * (own * cross).sum(-1) + ((own @ spread) * own).sum(-1) + (target - made) ** 2
        if (error <= _NOTHING * power.sum(-1, keepdims=True)).all():
            return
        change = regression(own, self._halves, self._shifts)
        change[~self._plain.reshape(group, -1)] = 0
        if change.any():
            changes[self._number, "weight"] = change.reshape(self._weight.shape)
        made = ((own + change) @ both.mean[..., None])[..., 0]
        if self._normed:
            varies = (((own + change) @ spread) * (own + change)).sum(-1)
            self._match(changes, made.reshape(-1), varies.reshape(-1), target.reshape(-1), power.reshape(-1), bias)
        elif self._shifts:
            changes[self._number, "bias"] = np.where(self._plain, (target - made).reshape(-1), 0)

    def _match(self, changes, made, varies, target, power, bias) -> None:
        mean, variance = (self._values[what]().astype(np.float64) for what in ("mean", "variance"))
        alive = self._plain & (varies > 1e-12 * varies.max(initial=0)) & (power > 1e-12 * power.max(initial=0))
        ratio = np.where(alive, varies, 1) / np.where(alive, power, 1)
        changes[self._number, "variance"] = np.maximum((variance + self._epsilon) * ratio - self._epsilon, 0) - variance
        wanted = made + bias - (target + bias - mean) * np.sqrt(ratio)
        changes[self._number, "mean"] = np.where(self._plain, wanted - mean, 0)


class _Lazy:
    def __init__(self, view, rank):
        self.view = np.moveaxis(view, 1, 1 + rank)
        self.rank = rank
        s = self.view.shape
        self.shape = (*s[: rank + 2], math.prod(s[rank + 2 :]))
    def __getitem__(self, places):
        return self.view[places].reshape(len(places[0]), self.shape[-2], -1)


def regression(own: Array, halves: Sequence[Moments], centred: bool) -> Array:
    """Return the change of weights that brings what they make nearest to what they should make.

    Args:
        own: The weights: float64 [g, m, n].
        halves: Moments of what is read and what should be made, for two halves of the examples.
        centred: Whether a constant may be added.

    Returns:
        float64 [g, m, n], zero where no change helps on the other half.
    """
    systems = [_system(own, half, centred) for half in halves]
    (spread, lacking), (other, missing) = systems
    best, least = None, 0.0
    for ridge in RIDGES:
        change = _ridge(spread, lacking, ridge)
        error = float((change * (change @ other - 2 * missing)).sum())
        if error < least:
            best, least = ridge, error
    if best is None:
        return np.zeros_like(own)
    whole = Moments().join(halves[0]).join(halves[1])
    return _ridge(*_system(own, whole, centred), best)


def _system(own: Array, moments: Moments, centred: bool) -> tuple[Array, Array]:
    spread, cross = moments.spread / moments.count, moments.cross / moments.count
    if not centred:
        spread = spread + moments.mean[..., :, None] * moments.mean[..., None, :]
        cross = cross + moments.other[..., :, None] * moments.mean[..., None, :]
    return spread, cross - own @ spread


def _ridge(spread: Array, lacking: Array, ridge: float) -> Array:
    diagonal = np.einsum("gii->gi", spread)
    floor = np.maximum(diagonal, 1e-6 * diagonal.mean(-1, keepdims=True) + np.finfo(float).tiny)
    raised = spread + ridge * floor[..., None] * np.eye(spread.shape[-1])
    return np.linalg.solve(raised, lacking.swapaxes(-1, -2)).swapaxes(-1, -2)
