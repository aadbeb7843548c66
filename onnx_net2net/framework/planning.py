"""When to grow a network, and whether that can pay: from the log of the small one and a short probe of the large one.

A student starts where its teacher ended. So T steps of the small network replace D(T) steps of the large one: as many
as the large one needs from scratch to the same loss. They cost r T, where r is the cost of a small step divided by that
of a large one. Growing pays if D(T) is more than r T. If S steps follow, training from scratch to the same end takes at
most (D + S) / (r T + S) times as much compute; it may be less, as the student may lose a little when its training
begins. It also pays only if the small network, trained on with all of the compute, would not be better still.

Losses are assumed to fall as floor + scale * step ** -power, as they do at a learning rate that has not decayed yet.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError

FEWEST = 8
"""Points that a curve is fitted to, at least."""

FARTHEST = 10.0
"""A curve is not followed farther than so many times the last step of its log."""

EARLIEST, LATEST = 0.2, 0.35
"""Parts of the compute between which growing was best where it paid."""

_BINS = 48
_POWERS = np.linspace(0.05, 1.5, 117)


@dataclass(frozen=True)
class Log:
    """What a training run wrote: one entry a line.

    Attributes:
        steps: float64 [n], rising, above 0.
        losses: float64 [n].
        cost: Cost of one step, measured as in the other log (FLOPs, seconds); None if the log does not tell.
    """

    steps: Array
    losses: Array
    cost: float | None = None


@dataclass(frozen=True)
class Curve:
    """A loss that falls as floor + scale * step ** -power.

    Attributes:
        last: The last step of the log that it was fitted to.
    """

    floor: float
    scale: float
    power: float
    last: float

    def loss(self, steps: Array) -> Array:
        """Return the loss after some steps."""
        return self.floor + self.scale * np.asarray(steps, float) ** -self.power

    def steps(self, losses: Array) -> Array:
        """Return the steps to some losses; infinity where the curve does not come down to them."""
        above = np.maximum(np.asarray(losses, float) - self.floor, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            return (above / self.scale) ** (-1 / self.power)


@dataclass(frozen=True)
class Plan:
    """When to grow.

    Attributes:
        ratio: Cost of a step of the small network, divided by that of the large one (r).
        budget: All compute, in steps of the large network.
        grow_at: The step of the small network after which to grow (T); 0 if growing does not pay.
        stands_for: The number of steps that the large network needs from scratch to the same loss (D).
        after: Steps of the student (S) that the budget leaves.
        share: The fraction of the compute that is spent before growing.
        saves: Compute of the large network from scratch to the same end, divided by the compute of growing; at most.
        grown: The best loss that growing can reach, at a learning rate that does not decay.
        scratch: The loss of the large network from scratch for the same compute.
        small: The loss of the small network trained on for the same compute.
        beyond: The logs that end before the steps that the plan uses: "small", "large".
    """

    ratio: float
    budget: float
    grow_at: float
    stands_for: float
    after: float
    share: float
    saves: float
    grown: float
    scratch: float
    small: float
    beyond: tuple[str, ...] = ()

    @property
    def pays(self) -> bool:
        """Whether growing can come to a better loss than both networks do without it."""
        return self.saves > 1.0 and self.grown < self.small


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read a log: a JSON object a line, with `step`, `loss` and, if known, `cost` (all of it so far).

    Raises:
        BadInputError: If it cannot be read, or has too few entries.
    """
    steps: list[float] = []
    losses: list[float] = []
    costs: list[float] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        step, loss, cost = _entry(line, f"{path}, line {number}")
        if steps and step <= steps[-1]:
            raise BadInputError(f"{path}, line {number}: step {step:g} comes after step {steps[-1]:g}")
        if step > 0:
            steps.append(step)
            losses.append(loss)
            costs.append(math.nan if cost is None else cost)
    if len(steps) < FEWEST:
        raise BadInputError(f"{path} has {len(steps)} entries with a step and a loss; a curve needs {FEWEST}")
    cost = (costs[-1] - costs[0]) / (steps[-1] - steps[0])
    return Log(np.array(steps), np.array(losses), cost if math.isfinite(cost) and cost > 0 else None)


def _entry(line: str, where: str) -> tuple[float, float, float | None]:
    """Return step, loss and cost of a line."""
    try:
        entry = json.loads(line)
        values = [entry["step"], entry["loss"], entry.get("cost", 0.0)]
        step, loss, cost = (float(value) for value in values if not isinstance(value, bool | str))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInputError(f'{where} is no {{"step": ..., "loss": ..., "cost": ...}} of numbers') from error
    if not (math.isfinite(step) and math.isfinite(loss) and math.isfinite(cost)):
        raise BadInputError(f"{where}: step, loss and cost must be finite numbers")
    return step, loss, cost if "cost" in entry else None


def fit_curve(log: Log) -> Curve:
    """Fit a curve to a log: least squares over the medians of evenly spaced parts of log(step).

    Raises:
        BadInputError: If the loss does not fall.
    """
    steps, losses = _medians(log)
    best: tuple[float, Curve] | None = None
    for power in _POWERS:
        falling = steps**-power
        floor, scale = np.linalg.lstsq(np.stack([np.ones_like(falling), falling], 1), losses, rcond=None)[0]
        if floor < 0:
            floor, scale = 0.0, float(falling @ losses / (falling @ falling))
        error = float(np.square(floor + scale * falling - losses).sum())
        if scale > 0 and (best is None or error < best[0]):
            best = error, Curve(float(floor), float(scale), float(power), float(log.steps[-1]))
    if best is None or losses[-1] >= losses[0]:
        raise BadInputError("the loss does not fall, so that nothing can be planned by it")
    return best[1]


def _medians(log: Log) -> tuple[Array, Array]:
    """Return the median step and loss of parts of a log that are equally long in log(step), the warmup left out."""
    start = log.steps[-1] * 0.02
    late = log.steps >= start if np.count_nonzero(log.steps >= start) >= FEWEST else log.steps > 0
    steps, losses = log.steps[late], log.losses[late]
    edges = np.geomspace(steps[0], steps[-1], _BINS + 1)
    places = np.clip(np.searchsorted(edges, steps, side="right"), 1, _BINS)
    parts = [places == number for number in np.unique(places)]
    return np.array([np.median(steps[p]) for p in parts]), np.array([np.median(losses[p]) for p in parts])


def plan(small: Log, large: Log, budget: float, ratio: float | None = None) -> Plan:
    """Choose the step of the small network at which growing saves most.

    Args:
        small: The log of the small network, best at a learning rate that has not decayed.
        large: The log of a short run of the large one from scratch, likewise.
        budget: All compute, in steps of the large network.
        ratio: Cost of a step of the small network by that of the large one; by default from the logs.

    Raises:
        BadInputError: If the logs do not tell costs and no ratio is given, or a number is out of range.
    """
    if ratio is None:
        if small.cost is None or large.cost is None:
            raise BadInputError(
                "the logs have no cost; give the ratio of a small step's cost to a large one's (--ratio)"
            )
        ratio = small.cost / large.cost
    if not 0 < ratio < math.inf or not 0 < budget < math.inf:
        raise BadInputError(f"the ratio ({ratio:g}) and the budget ({budget:g}) must be above 0")
    cheap, dear = fit_curve(small), fit_curve(large)
    times = np.geomspace(1.0, min(budget / ratio, FARTHEST * cheap.last), 2000)
    stands = np.minimum(dear.steps(cheap.loss(times)), FARTHEST * dear.last)
    best = int(np.argmax(stands - ratio * times))
    grow_at, stands_for = float(times[best]), float(stands[best])
    after = max(0.0, budget - ratio * grow_at)
    saves = (stands_for + after) / (ratio * grow_at + after)
    grown, scratch = (float(dear.loss(np.array(steps))) for steps in (stands_for + after, budget))
    alone = float(cheap.loss(np.array(budget / ratio)))
    if saves <= 1.0:
        return Plan(ratio, budget, 0.0, 0.0, budget, 0.0, 1.0, scratch, scratch, alone)
    ends = {"small": (grow_at, cheap.last), "large": (stands_for, dear.last)}
    beyond = tuple(name for name, (step, last) in ends.items() if step > last)
    share = ratio * grow_at / budget
    return Plan(ratio, budget, grow_at, stands_for, after, share, saves, grown, scratch, alone, beyond)


def expected(small: Log, ratio: float, budget: float) -> tuple[float, float]:
    """Return between which steps to grow where nothing is known of the large network: after 20 to 35 % of the compute.

    Args:
        small: The log of the small network; its loss has to fall.
        ratio: Cost of a step of the small network by that of the large one.
        budget: All compute, in steps of the large network.

    Raises:
        BadInputError: If the loss does not fall, or the ratio is out of range.
    """
    fit_curve(small)
    if not 0 < ratio < math.inf:
        raise BadInputError(f"the ratio must be above 0, not {ratio:g}")
    return EARLIEST * budget / ratio, LATEST * budget / ratio


def sentences(plan: Plan) -> Iterable[str]:
    """Yield what a plan says, a statement a sentence."""
    yield f"a step of the small network costs {plan.ratio:.2g} of one of the large network"
    if plan.saves <= 1.0:
        yield "growing cannot pay: the large network gets to the small one's loss for less compute, at every step"
        return
    if not plan.pays:
        yield (
            f"growing cannot pay at this budget: the small network, trained on, gets to {plan.small:.3f}, "
            f"the grown one to {plan.grown:.3f}, the large one from scratch to {plan.scratch:.3f}"
        )
        return
    yield (
        f"grow at step {plan.grow_at:,.0f} of the small network, after {plan.share:.0%} of the compute, "
        "before its learning rate has decayed"
    )
    yield f"that stands for {plan.stands_for:,.0f} steps of the large network from scratch"
    yield f"train the student for {plan.after:,.0f} steps: from scratch takes at most {plan.saves:.2f} x the compute"
    yield (
        f"at a rate that does not decay it comes to a loss of {plan.grown:.3f}, from scratch to {plan.scratch:.3f}, "
        f"and the small network to {plan.small:.3f}"
    )
    for name in plan.beyond:
        yield f"this is read off beyond the end of the {name} network's log: a longer one makes it surer"


__all__: Sequence[str] = ["Curve", "Log", "Plan", "expected", "fit_curve", "plan", "read_log", "sentences"]
