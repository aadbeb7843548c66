"""Compare one tensor of a student with the teacher's; the yardstick is the teacher's float noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np

from onnx_net2net.algebra.floats import Array, epsilon

NOISE_FACTOR = 20.0
"""How many times the teacher's own noise the student may be away."""

MAX_TOLERANCE = 0.01
QUANTIZED_TOLERANCE = 0.05
"""However noisy the teacher is, an error above this part of its largest output is one."""

Judge = Callable[..., "OutputReport"]
"""`compare` with tolerances."""


@dataclass(frozen=True)
class Typical:
    """The usual noise and size of an output. In a single run its few elements may cancel, or nothing may move them.

    Attributes:
        noise: The median of its noise, absolute.
        size: The median of its largest magnitude.
    """

    noise: float = 0.0
    size: float = 0.0

    @property
    def slack(self) -> float:
        """About how far a student may be off."""
        return min(NOISE_FACTOR * self.noise, MAX_TOLERANCE * self.size)


@dataclass(frozen=True)
class OutputReport:
    """How one output of the student compares with the teacher's, in the worst run.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference among elements that are finite in both.
        max_rel: ``max_abs`` divided by the teacher's largest magnitude.
        noise: The teacher's own float noise, absolute; 0 for integers.
        tolerance: The allowed absolute difference; the largest one if it varies between elements.
        ratio: ``max_abs / noise``; 0 for integers.
        different_fraction: The fraction of the elements that are out of tolerance.
    """

    name: str
    max_abs: float
    max_rel: float
    noise: float
    tolerance: float
    ratio: float
    different_fraction: float

    @property
    def severity(self) -> tuple[bool, float]:
        """Orders reports from the best to the worst."""
        return self.different_fraction > 0, self.max_abs / self.tolerance if self.tolerance else self.max_abs


def compare(
    name: str,
    student: Array | None,
    teacher: Sequence[Array],
    moved: Sequence[Array],
    *,
    typical: Typical = Typical(),
    rtol: float | None,
    atol: float | None,
    units: Mapping[str, float] = MappingProxyType({}),
    cap: float = MAX_TOLERANCE,
) -> OutputReport:
    """Compare one tensor.

    Args:
        name: For the report.
        student: Its values, None if the student has none.
        teacher: The teacher's values at each optimization level.
        moved: The teacher's values with everything nudged, one a draw.
        typical: What the tensor is like in most runs.
        rtol: Allowed error, as a fraction of the teacher's value. With `rtol` or `atol` the noise does not matter.
        atol: Allowed absolute error.
        cap: The largest error that any noise excuses, as a fraction of the largest value.
        units: The natural size of the values of some tensors, by name: a probability of 1e-6 is as noisy as one of 1.
    """
    first = teacher[0]
    if student is None or student.shape != first.shape:
        return OutputReport(name, math.inf, math.inf, 0.0, 0.0, math.inf, 1.0)
    answers = teacher if epsilon(first.dtype) else (*teacher, *moved)  # of equal scores any may be the largest
    known = [values for values in answers if values.shape == first.shape]
    error = np.min([gap(student, values) for values in known], axis=0)
    largest = largest_of(first)
    scale = max(largest, typical.size, units.get(name, 0.0))
    step = epsilon(first.dtype)
    noise, allowed = 0.0, np.zeros(())
    if step is not None:
        levels = noise_of(first, teacher[1:])
        # The levels are the noise only where nothing could be moved. Otherwise they are added once: some optimizations
        # approximate, and a student that gets only some of them lands between the two.
        own = max(noise_of(first, moved), typical.noise)
        noise = max(own or levels, step * scale, float(ml_dtypes.finfo(first.dtype).tiny))
        limit = max(cap, 4 * step) * scale  # bfloat16 has steps of 0.8 %
        allowed = np.asarray(min(NOISE_FACTOR * noise + levels, limit))
        if rtol is not None or atol is not None:
            allowed = (atol or 0.0) + (rtol or 0.0) * np.abs(first.astype(np.float64))
    different = (error > allowed) | np.isinf(error)
    off = _largest(error)
    return OutputReport(
        name=name,
        max_abs=off,
        max_rel=off / largest if largest else off,
        noise=noise,
        tolerance=_largest(allowed),
        ratio=off / noise if noise else 0.0,
        different_fraction=float(np.mean(different)) if different.size else 0.0,
    )


def gap(one: Array, other: Array) -> Array:
    """Return absolute differences, infinite where only one is finite; of texts, 1 where they differ."""
    same = one == other
    if one.dtype == object:
        return np.asarray(~np.asarray(same, bool), np.float64)
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - other)
    return np.where(same | (np.isnan(one) & np.isnan(other)), 0.0, np.where(np.isnan(gap), np.inf, gap))


def largest_of(values: Array) -> float:
    """Return the largest magnitude among finite elements; 1 for texts."""
    return float(np.max(np.abs(values), initial=0, where=finite(values))) if values.dtype != object else 1.0


def noise_of(first: Array, others: Sequence[Array]) -> float:
    """Return how far values are at most from those of other runs; 0 if they are no floats."""
    if epsilon(first.dtype) is None:
        return 0.0
    return max((_largest(gap(first, one)) for one in others if one.shape == first.shape), default=0.0)


def finite(values: Array) -> Array:
    """Tell of each element whether it is finite; those of other types than floats are."""
    if epsilon(values.dtype) is None:
        return np.ones(values.shape, bool)
    return np.isfinite(values.astype(np.float64))


def _largest(values: Array) -> float:
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))
