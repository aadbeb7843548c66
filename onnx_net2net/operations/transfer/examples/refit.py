"""Fits the weights of a student to the results of the teacher's layers on the same examples.

From the first layer to the last, teacher and student run side by side. Let x be the input of the student's layer (for a
convolution, the values under its kernel), and y the result of the teacher's layer. The weights W of the student get the
change

    dW = (Cov(y, x) - W Cov(x, x)) (Cov(x, x) + r diag)^-1              and the bias E(y) - (W + dW) E(x),

which is ridge regression around the present weights. r is the one that serves best on the half of the examples that dW
was not fitted to; there is no dW if none serves there. Where the result is added to a residual stream, y also gets what
the student's stream lacks so far, so that errors do not pile up. A BatchNormalization behind the layer gets statistics
that give its results the mean and the variance of the teacher's. A layer that is right stays as it is, to the bit.

Fitting the layer behind to the units that are left is the second half of channel pruning (He, Zhang, Sun 2017,
arXiv 1707.06168, section 3.1; Luo, Wu, Lin 2017, ThiNet, arXiv 1707.06342, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.maps import compose
from onnx_net2net.model.model import Progress
from onnx_net2net.operations.transfer.examples.moments import CHUNK, Moments, Reader, reader_of
from onnx_net2net.operations.transfer.fill import Changes
from onnx_net2net.operations.transfer.fit import Fit
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Network, Networks
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import Feeds
from onnx_net2net.run.watch import Watch, watched

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9)
"""Values that are tried for r, until the next one serves worse; the diagonal is that of the covariance."""

WIDEST = 4608
"""Layers whose results depend on more numbers than this keep their weights: the matrices would be too large."""

_ROWS_EACH = 20
"""So many rows for each number that is read are enough."""

_NOISE = 1e-10
"""A share of the variance of what a layer makes that may be float noise."""

Tensors = Mapping[str, Array]


class Reconstruction:
    """Fits the layers of a target.

    Args:
        networks: The two networks; the teacher has not grown yet.
        pairs: Their modules that correspond.
    """

    def __init__(self, networks: Networks, pairs: Iterable[tuple[Module, Module]]) -> None:
        self._networks = networks
        self._pairs: list[tuple[Module | None, Module]] = [*pairs]
        self._readers = {new.node: _readers(networks, old, new) for old, new in self._pairs if old is not None}

    def run(
        self,
        fit: Fit,
        changes: Changes,
        kept: Iterable[Module],
        examples: Sequence[tuple[Feeds, Feeds]],
        progress: Progress | None = None,
    ) -> None:
        """Fit one layer of the student after another.

        Args:
            fit: How the teacher got the target's sizes, which it has by now.
            changes: Takes what is found; the target's draft follows it.
            kept: Units of the target that nothing in the teacher corresponds to, and that are no identities.
            examples: Inputs of teacher and target, by name.
            progress: Told how many steps are done, and of how many.
        """
        steps = [list(some) for _, some in groupby(self._steps(fit, kept), lambda step: step.key)]
        tensors = {name for some in steps for step in some for name in step.old}
        with watched(self._networks.teacher.runnable(), tensors, "teacher") as watch:
            for number, some in enumerate(steps):
                if progress is not None:
                    progress("reconstructing", number, len(steps))
                self._see(some, watch, examples)
                for step in some:
                    step.fit(changes)
                some.clear()  # what they have seen is large

    def _steps(self, fit: Fit, kept: Iterable[Module]) -> list[LayerFit | NormFit]:
        found: list[LayerFit | NormFit] = []
        for old, new in sorted([*self._pairs, *((None, module) for module in kept)], key=lambda pair: pair[1].node):
            readers = self._readers.get(new.node)
            if old is not None and readers is not None:
                before = found[-1] if found and found[-1].key == readers[1].tensor else None
                layer = LayerFit(self._networks, fit, *readers, first=before.first if before else new.node)
                if layer.fits and self._can_see(layer):
                    found.append(layer)
                    continue
            if new.norm is not None and (norm := NormFit(self._networks, fit, old, new)).fits and self._can_see(norm):
                found.append(norm)
        return found

    def _can_see(self, step: LayerFit | NormFit) -> bool:
        return self._networks.teacher.visible.issuperset(step.old) and self._networks.target.visible.issuperset(
            step.new
        )

    def _see(
        self, steps: Sequence[LayerFit | NormFit], teacher: Watch, examples: Sequence[tuple[Feeds, Feeds]]
    ) -> None:
        """Run both networks, and let some steps see what the two have at their places."""
        old = list(dict.fromkeys(name for step in steps for name in step.old))
        new = list(dict.fromkeys(name for step in steps for name in step.new))
        with watched(self._networks.target.runnable(filled=True), new, "student") as student:
            for one, other in examples:
                found = teacher(one, old), student(other, new)
                for step in steps:
                    step.fits = step.fits and step.see(*found, len(examples))


def _readers(networks: Networks, old: Module, new: Module) -> tuple[Reader, Reader] | None:
    """Return both layers with what they read, None if the target's cannot be fitted, as others read its weights too."""
    one, other = reader_of(networks.teacher, old), reader_of(networks.target, new)
    if one is None or other is None or old.shape[2:] != new.shape[2:]:
        return None
    return None if _is_tied(networks.teacher, old) or _is_tied(networks.target, new) else (one, other)


def _is_tied(network: Network, module: Module) -> bool:
    """Tell whether other nodes read the weights of a layer too."""
    return len(network.readings[id(network.original(module.parameters["weight"].use))]) > 1


class LayerFit:
    """A layer, and the BatchNormalization behind it.

    Attributes:
        key: Layers in a row with equal keys can be fitted after the same run.
        first: The number of the first node of these.
        old: The tensors of the teacher that it has to see.
        new: Those of the student.
        fits: Whether it can be fitted.
    """

    def __init__(self, networks: Networks, fit: Fit, old: Reader, new: Reader, first: int) -> None:
        self._old, self._new, self.key, self.first = old, new, new.tensor, first
        parameters = old.module.parameters
        self._values = networks.teacher.readers(fit.sources(old.module, new.module))
        made = compose(parameters["weight"].axes(networks.teacher.analysis)[0], fit.growth)
        self._made, self._plain = made.index, made.kind == 0
        self._norm = _Statistics(networks, old.module) if old.module.norm is not None else None
        self._shifts = self._norm is not None or new.module.norm is not None or "bias" in new.module.parameters
        self._inside = "bias" in parameters and parameters["bias"].use[0] == old.module.node
        self._group = int(new.node.attrs.get("group", 1))
        self._halves = Moments(), Moments()
        shape = networks.teacher.shape(parameters["weight"])
        width = math.prod(shape[1:])
        self.fits = len(shape) > 1 and shape[0] == len(self._made) and shape[0] % self._group == 0 and width <= WIDEST
        self.fits &= parameters["weight"].use not in fit.scaled and (self._norm is None or self._norm.known)
        self._kernel = shape[2:]
        self._width = width
        adds = bool(old.skip and new.skip) and new.known < first
        self.old = (old.result, *((old.skip,) if adds else ()))
        self.new = (new.tensor, *((new.skip,) if adds else ()))

    # -- what is read and what should be made ------------------------------------------------------------------

    def see(self, old: Tensors, new: Tensors, runs: int) -> bool:
        """Take in what a run shows; tell whether that can be made sense of."""
        result, *stream = (np.moveaxis(old[name], self._old.makes, -1) for name in self.old)
        given, *own = (new[name] for name in self.new)
        own = [np.moveaxis(values, self._new.makes, -1) for values in own]
        gather = self._windows(given, result.shape[:-1])
        if gather is None or result.shape[-1] <= self._made.max(initial=0):
            return False
        if own and (own[0].shape[:-1] != result.shape[:-1] or own[0].shape[-1] != len(self._made)):
            return False
        most = max(_ROWS_EACH * self._width // runs, 64)
        chosen = _sample(math.prod(result.shape[:-1]), most, seed=self._halves[0].count)
        step = max(1, CHUNK // (self._width * self._group))
        for number, half in enumerate(np.array_split(chosen, 2)):
            for start in range(0, len(half), step):
                places = np.unravel_index(half[start : start + step], result.shape[:-1])
                x = gather(places).reshape(len(places[0]), self._group, -1)
                y = result[places][:, self._made].astype(np.float64)
                if own:
                    y += self._lacking(stream[0][places][:, self._made] - own[0][places].astype(np.float64))
                if x.shape[-1] != self._width:
                    return False
                self._halves[number].add(x.swapaxes(0, 1), y.reshape(len(y), self._group, -1).swapaxes(0, 1))
        return True

    def _lacking(self, values: Array) -> Array:
        """Return what the layer has to make for its BatchNormalization to make values (0 for silent units)."""
        if self._norm is None:
            return values
        gain = self._norm.gain()
        heard = np.abs(gain) > 1e-3 * np.abs(gain).max()
        found: Array = np.where(heard, values / np.where(heard, gain, 1.0), 0.0)
        return found

    def _windows(self, values: Array, places: tuple[int, ...]) -> Callable[[tuple[Array, ...]], Array] | None:
        """Return a function that gathers what the layer reads for r places of its result: [r, units, *kernel]."""
        if self._new.node.op not in traits.CONVOLUTIONS:
            read = np.moveaxis(values, self._new.position, -1)
            return read.__getitem__ if read.shape[:-1] == places else None
        attrs, rank, size = self._new.node.attrs, len(places) - 1, places[1:]
        if values.ndim != rank + 2 or len(values) != places[0]:
            return None
        steps, wide = ([*(attrs.get(key) or [1] * rank)] for key in ("strides", "dilations"))
        kernel = self._kernel or (1,) * rank
        reach = [d * (k - 1) + 1 for d, k in zip(wide, kernel, strict=True)]
        spans = [s * (n - 1) + r for s, n, r in zip(steps, size, reach, strict=True)]
        before = [*(attrs.get("pads") or [0] * rank)][:rank]
        if (auto := attrs.get("auto_pad")) in ("SAME_UPPER", "SAME_LOWER"):
            lack = [max(a - b, 0) for a, b in zip(spans, values.shape[2:], strict=True)]
            before = [(n + (auto == "SAME_LOWER")) // 2 for n in lack]
        after = [max(a - b - n, 0) for a, b, n in zip(spans, before, values.shape[2:], strict=True)]
        padded = np.pad(values, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
        at = [slice(None, s * (n - 1) + 1, s) for s, n in zip(steps, size, strict=True)]
        whole = slice(None), slice(None), *at, *(slice(None, None, d) for d in wide)
        return np.moveaxis(view[whole], 1, 1 + rank).__getitem__

    # -- fitting -----------------------------------------------------------------------------------------------

    def fit(self, changes: Changes) -> None:
        """Note what is to change."""
        if not self.fits or not all(half.count for half in self._halves):
            return
        shape, number = (self._group, len(self._made) // self._group, self._width), self._new.module.node
        weights = self._values["weight"]().astype(np.float64)
        own = weights.reshape(shape)
        both = Moments().join(self._halves[0]).join(self._halves[1])
        bias = self._values["bias"]().astype(np.float64) if "bias" in self._values else np.zeros(len(self._made))
        target = both.other - (bias.reshape(shape[:2]) if self._inside else 0.0)
        power, (spread, cross) = both.power / both.count, both.covariances()
        error = power - 2 * (own * cross).sum(-1) + ((own @ spread) * own).sum(-1)
        error += (target - _times(own, both.mean)) ** 2
        if not np.isfinite(error).all() or (error <= _NOISE * power.sum(-1, keepdims=True)).all():
            return
        change = regression(own, self._halves, centred=self._shifts)
        change[~self._plain.reshape(shape[:2])] = 0.0
        if change.any():
            changes[number, "weight"] = change.reshape(weights.shape)
        made = _times(own + change, both.mean).reshape(-1)
        if self._norm is not None:
            varies = (((own + change) @ spread) * (own + change)).sum(-1).reshape(-1)
            moments = made + bias, varies, target.reshape(-1) + bias, power.reshape(-1)
            changes.update(self._norm.matched(number, *moments, self._plain))
        elif self._shifts:
            changes[number, "bias"] = np.where(self._plain, target.reshape(-1) - made, 0.0)


class NormFit:
    """A BatchNormalization behind what is not fitted, or alone; the teacher has it too, or nothing like it.

    The attributes are those of `LayerFit`.
    """

    def __init__(self, networks: Networks, fit: Fit, old: Module | None, new: Module) -> None:
        assert new.norm is not None
        tensors = []
        for network, module in zip(networks, (old, new), strict=True):
            if module is not None and module.norm is not None:
                tensors.append((network.opened.model.proto.graph.node[module.norm].input[0],))
        self.old, self.new = (tensors[0] if len(tensors) > 1 else ()), tensors[-1]
        self.key, self.first, self._number = f"{self.new[0]} normalised", new.norm, new.node
        self._added = old is None
        self._norm = (
            _Statistics(networks, old) if old is not None and self.old else _Statistics(networks, new, initial=True)
        )
        self.fits = self._norm.known and (self._added or bool(self.old))
        self._sums = Moments(), Moments()
        self._made: Array | None = None
        self._bias: Callable[[], Array] | None = None
        if old is not None and self.fits:
            made = compose(old.parameters["mean"].axes(networks.teacher.analysis)[0], fit.growth)
            self._made, self._plain = made.index, made.kind == 0
            if "bias" in old.parameters and "bias" not in new.parameters:
                self._bias = networks.teacher.reader(old.parameters["bias"])

    def see(self, old: Tensors, new: Tensors, runs: int) -> bool:
        """Take in what a run shows."""
        for sums, found, names in zip(self._sums, (new, old), (self.new, self.old), strict=True):
            for name in names:
                sums.add(np.moveaxis(found[name], 1, 0).reshape(found[name].shape[1], -1, 1))
        return True

    def fit(self, changes: Changes) -> None:
        """Note what is to change."""
        if not self.fits:
            return
        (made, varies), *rest = ((s.mean[:, 0], s.spread[:, 0, 0] / s.count) for s in self._sums if s.count)
        if not np.isfinite([made, varies]).all():
            return
        if self._made is None:
            changes.update(self._norm.replaced(self._number, made, varies))
        elif len(made) == len(self._made):
            made = made + (self._bias().astype(np.float64) if self._bias is not None else 0.0)
            target, power = (values[self._made] for values in rest[0])
            if not np.allclose(made, target, atol=1e-5 * math.sqrt(power.max())) or not np.allclose(varies, power):
                changes.update(self._norm.matched(self._number, made, varies, target, power, self._plain))


class _Statistics:
    """The statistics of a BatchNormalization: those that the teacher's has by now, or those that the target's had.

    Attributes:
        known: Whether they are constants.
    """

    def __init__(self, networks: Networks, module: Module, *, initial: bool = False) -> None:
        assert module.norm is not None
        network = networks.target if initial else networks.teacher
        own = {what: module.parameters[what] for what in ("scale", "mean", "variance") if what in module.parameters}
        self._read = network.readers(own)
        self._epsilon = network.epsilon(module.norm)
        self.known = len(self._read) == 3

    def _value(self, what: str) -> Array:
        return self._read[what]().astype(np.float64)

    def gain(self) -> Array:
        """Return the factor of each unit."""
        gain: Array = self._value("scale") / np.sqrt(self._value("variance") + self._epsilon)
        return gain

    def matched(self, number: int, made: Array, varies: Array, target: Array, power: Array, plain: Array) -> Changes:
        """Return the changes that give its results the mean and the variance of the teacher's.

        Args:
            number: The number of the target's module.
            made: The means of what it gets.
            varies: The variances.
            target: The means of what the teacher's gets.
            power: The variances.
            plain: Which units are the teacher's, and not padding.
        """
        mean, variance = self._value("mean"), self._value("variance")
        alive = plain & (varies > _NOISE * varies.max(initial=0.0)) & (power > _NOISE * power.max(initial=0.0))
        ratio = np.where(alive, varies, 1.0) / np.where(alive, power, 1.0)
        wanted = np.maximum((variance + self._epsilon) * ratio - self._epsilon, 0.0)
        shift = np.where(plain, made - (target - mean) * np.sqrt(ratio) - mean, 0.0)
        return {(number, "variance"): wanted - variance, (number, "mean"): shift}

    def replaced(self, number: int, made: Array, varies: Array) -> Changes:
        """Return the changes that give it the mean and the variance of what it gets."""
        return {(number, "mean"): made - self._value("mean"), (number, "variance"): varies - self._value("variance")}


def _sample(total: int, most: int, seed: int) -> Array:
    """Choose some of all places, in order; other ones in every run, so that none is left out."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def _times(weights: Array, values: Array) -> Array:
    product: Array = (weights @ values[..., None])[..., 0]
    return product


def regression(own: Array, halves: Sequence[Moments], *, centred: bool) -> Array:
    """Return the change of weights that brings their results nearest to the wanted ones.

    Args:
        own: The weights: float64 [g, m, n].
        halves: Moments of what is read, and of what should be made, on two halves of the examples.
        centred: Whether a constant may be added to the results.

    Returns:
        float64 [g, m, n], zero where no change serves on the other half.
    """
    first, (spread, lacking) = (_equations(own, half, centred) for half in halves)
    best, least = None, 0.0
    for ridge in RIDGES:
        change = _solved(*first, ridge)
        error = float((change * (change @ spread - 2 * lacking)).sum())
        if error >= least:
            break
        best, least = ridge, error
    if best is None:
        return np.zeros_like(own)
    return _solved(*_equations(own, Moments().join(halves[0]).join(halves[1]), centred), best)


def _equations(own: Array, moments: Moments, centred: bool) -> tuple[Array, Array]:
    """Return Cov(x, x) and Cov(y - W x, x)."""
    spread, cross = moments.covariances(centred=centred)
    return spread, cross - own @ spread


def _solved(spread: Array, lacking: Array, ridge: float) -> Array:
    diagonal = np.einsum("gii->gi", spread)
    least = 1e-6 * diagonal.mean(-1, keepdims=True)
    raised = spread.copy()
    np.einsum("gii->gi", raised)[...] += ridge * np.maximum(diagonal, np.where(least > 0, least, 1.0))
    change: Array = np.linalg.solve(raised, lacking.swapaxes(-1, -2)).swapaxes(-1, -2)
    return change
