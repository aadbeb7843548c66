"""Advice on how to train a student on, so that growing it pays.

The table `ADVICE` has all advice, each with its evidence. Numbers follow from how much each weight grew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnx_net2net.algebra.weights import WeightGrowth
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.operations.deepen.deepen import Deepening
from onnx_net2net.operations.transfer.transfer import Transfer
from onnx_net2net.operations.widen.widen import Widening

WARMUP = 0.05
"""Part of the student's steps in which the rate rises to its peak."""

DECAYS_TO = 0.02
"""Part of the peak rate at which the schedule ends (cosine)."""


class Advice(NamedTuple):
    """One thing to do, and what it was measured on."""

    about: str
    text: str
    evidence: str


ADVICE: tuple[Advice, ...] = (
    Advice(
        "teacher",
        "Grow from a checkpoint whose learning rate has not decayed yet.",
        "five seeds, against a teacher whose rate had decayed: language model, width 4x: -.010 nats; depth 2x: -.011, "
        "in a longer training +.006; Inception-BN: -.015 (deviation .018); in earlier trainings -.035 to -.071",
    ),
    Advice(
        "when",
        "Grow after about a third of the planned compute, and only if the large network is what you need: at equal "
        "compute the small one is often as good.",
        "language models: after a sixth worse by .01 to .04 nats; after a half better by .02 in short trainings, worse "
        "by .02 to .03 in long ones; all compute up to 1.6 x less than from scratch, and the better of the fixed sizes "
        "beaten on four of five seeds at best, by .012; `plan` computes it from logs",
    ),
    Advice(
        "rate",
        "Peak at the large network's own rate. Adam: the teacher's peak, divided by the width factor for matrices, "
        "unchanged for convolutions, divided by the depth factor. A tenth of the teacher's rate is too low.",
        "rates tuned on a seed of their own: language models 1/2 of the teacher's at width 4x, 1 at 2x, 1/2 at depth "
        "2x, 1/2 at both; Inception-BN 2 from .55 of the channels to all, 1/2 to 1.4 times, 1/2 and 1/4 with two and "
        "four more pairs; so mostly within a factor of two of this rule. A tenth is worse by .018 (width 4x) and .074 "
        "nats (Inception-BN). In groups by weight it is muP's rule (Yang and Hu 2021). That was not measured here, nor "
        "was SGD, where the teacher's rate is a start",
    ),
    Advice(
        "schedule",
        "Warm up over 5 % of the steps, then decay to 2 % of the peak (cosine). Leave it out if the state of the "
        "optimizer was carried over (`checkpoint --optimizer`).",
        "without both the loss of Inception-BN goes from .48 to 3.8 in ten steps; carried moments are as good as a "
        "warmup, not better",
    ),
    Advice(
        "map",
        "Keep the default map. In a language model copies may differ more: --spread 1.",
        "language model: --spread 1 is better than .3 by .032 nats at width 4x, on every seed, and by .016 at 2x; an "
        "even split is worse by .034; on a ReLU MLP --spread 1 is worse by .38, and zero_out better by .07",
    ),
)


class GrownWeight(NamedTuple):
    """A weight of the student.

    Attributes:
        name: Of the parameter.
        rank: Its number of axes; convolutions have three or more.
        elements: Its number of elements.
        reads: The number of units that it sums over, relative to the teacher's.
    """

    name: str
    rank: int
    elements: int
    reads: float


@dataclass(frozen=True)
class Recipe:
    """How to train a student on.

    Attributes:
        adam: Peak learning rate of Adam and AdamW for most of the weights, relative to the teacher's peak rate.
        sgd: The same for SGD.
        scales: By the name of a parameter: the factor of its peak rate with Adam. Others keep the teacher's rate.
        warmup: The fraction of the steps in which the rate rises; 0 if the optimizer's state was carried over.
        advice: All advice, with its evidence.
    """

    adam: float
    sgd: float
    scales: Mapping[str, float]
    warmup: float = WARMUP
    advice: tuple[Advice, ...] = ADVICE

    def groups(self, parameters: Iterable[tuple[str, Any]], rate: float) -> list[dict[str, Any]]:
        """Return groups of parameters as `torch.optim.Adam` takes them.

        Args:
            parameters: Names and parameters, as `module.named_parameters()` gives them.
            rate: The teacher's peak rate.
        """
        groups: dict[float, list[Any]] = {}
        for name, parameter in parameters:
            groups.setdefault(self.scales.get(name, 1.0), []).append(parameter)
        return [{"params": members, "lr": rate * scale} for scale, members in groups.items()]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON takes."""
        names: dict[float, list[str]] = {}
        for name, scale in self.scales.items():
            names.setdefault(scale, []).append(name)
        return {
            "peak_rate": {"adam": self.adam, "sgd": self.sgd},
            "warmup": self.warmup,
            "decays_to": DECAYS_TO,
            "groups": [{"rate": scale, "parameters": members} for scale, members in names.items()],
            "advice": [advice._asdict() for advice in self.advice],
        }


def recipe(weights: Iterable[GrownWeight], depth: float = 1.0, *, carried: bool = False) -> Recipe:
    """Say how to train a student on.

    Args:
        weights: The weights that grew.
        depth: How many times as deep as its teacher it is.
        carried: Whether the optimizer's state was carried over.
    """
    scales: dict[str, float] = {}
    elements: dict[float, int] = {}
    for weight in weights:
        scale = round(1 / ((weight.reads if weight.rank == 2 else 1.0) * depth), 4)
        scales[weight.name] = scale
        elements[scale] = elements.get(scale, 0) + weight.elements
    most = max(elements, key=lambda scale: (elements[scale], -scale), default=round(1 / depth, 4))
    others = {name: scale for name, scale in scales.items() if scale != 1.0}
    return Recipe(most, 1.0, others, 0.0 if carried else WARMUP)


def recipe_of(result: Widening | Deepening | Transfer) -> Recipe:
    """Return how to train on the result of an operation; weights have the names of the student's constants.

    What is narrower than its teacher keeps the rate: nothing was measured of it.
    """
    if isinstance(result, Transfer):
        shapes = {source.name: source.shape for source in result.sources}
        reads = {name: max(1.0, factor) for name, factor in result.reads.items() if name in shapes}
        weights = (GrownWeight(name, len(shapes[name]), math.prod(shapes[name]), reads[name]) for name in reads)
        return recipe(weights, result.depth)
    if isinstance(result, Deepening):
        counts = result.depths.values()
        return recipe((), max((after / before for before, after in counts), default=1.0))
    grown = {constant.student: constant.growth for constant in result.constants}
    return recipe(_grown(name, [growth]) for name, growth in grown.items())


def recipe_of_entries(entries: Iterable[Entry], *, carried: bool = False) -> Recipe:
    """Say how to train on a class that takes these entries.

    Args:
        entries: Of the student's state dict.
        carried: Whether the optimizer's state was carried over.
    """
    return recipe((_grown(entry.name, entry.growths) for entry in entries if entry.growths), carried=carried)


def _grown(name: str, growths: Sequence[WeightGrowth]) -> GrownWeight:
    """Describe a weight by its growths, step by step."""
    shape = growths[-1].shape
    read = [axis.map for growth in growths for axis in growth.axes if axis.reads]
    reads = math.prod(map.new / map.old for map in read if map.old)
    return GrownWeight(name, len(shape), math.prod(shape), reads)


def next_steps(recipe: Recipe) -> str:
    """Return what the report of a command says, in one line."""
    warmup = f"{recipe.warmup:.0%} warmup" if recipe.warmup else "no warmup"
    return (
        f"to train on: peak rate {recipe.adam:.2g} x the teacher's (Adam), {warmup}, cosine to {DECAYS_TO:.0%}; "
        "grow before the teacher's rate has decayed"
    )
