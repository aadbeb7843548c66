"""Runs studies: every training once, from checkpoints that several of them share."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import statistics
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from experiments import growth
from experiments.studies import GROWN, Network, Study, Variant
from experiments.training import Score, Training, rates, undecayed

SCRATCH = "scratch"
WARMUP = 50
"""Steps of the warmup of networks that are trained from scratch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, to the end of its schedule.

    Attributes:
        network: What was trained.
        arm: From random weights (`SCRATCH`), or the name of a variant of growth.
        teacher: The network that it grew from.
        teacher_steps: For how long that was trained.
        steps: For how long this one was.
        seed: Of everything random.
        rate: Peak of the learning rate.
        parameters: Trainable parameters.
        flops: Floating-point operations of all training, the teacher's too.
        start_loss: Validation loss before the first step; nan from scratch.
        accuracy: On the validation set.
        loss: Likewise (nats).
    """

    network: str
    arm: str
    teacher: str
    teacher_steps: int
    steps: int
    seed: int
    rate: float
    parameters: int
    flops: float
    start_loss: float
    accuracy: float
    loss: float

    @property
    def key(self) -> tuple[object, ...]:
        """What tells runs apart."""
        return dataclasses.astuple(self)[:7]


def read_runs(path: Path) -> list[Run]:
    """Read the runs of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    kinds = {"network": str, "arm": str, "teacher": str}
    kinds |= dict.fromkeys(("teacher_steps", "steps", "seed", "parameters"), int)
    with path.open(newline="") as file:
        return [
            Run(**{name: kinds.get(name, float)(text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


class Lab:
    """Trains, and remembers.

    Attributes:
        runs: What was trained, by what tells it apart.
    """

    def __init__(self, out: Path, work: Path, device: str = "cpu") -> None:
        """Read what is there.

        Args:
            out: The folder of `runs.csv`, to which every run is appended.
            work: A folder for checkpoints; without them a stopped study trains some of its networks again.
            device: Of PyTorch.
        """
        self._out, self._file, self._work, self._device = out, out / "runs.csv", work, device
        self.runs = {run.key: run for run in read_runs(self._file)}

    # --- a study --------------------------------------------------------------------------------------------------

    def study(self, study: Study, seeds: Iterable[int], trials: Sequence[int]) -> None:
        """Choose rates by the trial seeds, then train the three arms with every seed."""
        low, high, rate = self._rates(study, trials)
        self._say(f"{study.name}: rates {low:g} (small), {high:g} (large), {rate:g} (grown); ratio {study.ratio:.3f}")
        for seed in seeds:
            self._small(study, seed, low)
            for budget in (*study.budgets, *study.longer):
                self.scratch(study.large, seed, high, round(budget * study.ratio))
            for budget in study.budgets:
                self.grown(study, GROWN, seed, budget, low, rate)
            self._say(f"{study.name}: seed {seed}")

    def variants(self, study: Study, seeds: Iterable[int], trials: Sequence[int]) -> None:
        """Train the variants of a study at one budget, at the rates of the three arms."""
        low, _, rate = self._rates(study, trials)
        for seed in seeds if study.variants else ():
            for variant in study.variants:
                self.grown(study, variant, seed, study.budgets[study.varied], low, rate)
            self._say(f"{study.name}: variants, seed {seed}")

    def _rates(self, study: Study, trials: Sequence[int]) -> tuple[float, float, float]:
        """Return the best rates of the small network, of the large one, and of the student, at the second budget."""
        budget = study.budgets[1]
        steps = round(budget * study.ratio)
        low = tuned(lambda rate: self._trials(trials, lambda seed: self.scratch(study.small, seed, rate, budget)),
                    study.small.rate)  # fmt: skip
        high = tuned(lambda rate: self._trials(trials, lambda seed: self.scratch(study.large, seed, rate, steps)),
                     study.large.rate)  # fmt: skip
        return (
            low,
            high,
            tuned(
                lambda rate: self._trials(trials, lambda seed: self.grown(study, GROWN, seed, budget, low, rate)), high
            ),
        )

    @staticmethod
    def _trials(seeds: Sequence[int], run: Callable[[int], Run]) -> float:
        return statistics.fmean(run(seed).loss for seed in seeds)

    def _small(self, study: Study, seed: int, rate: float) -> None:
        """Train the small network on, with stops where it will be grown."""
        if any(self._key(study.small, seed, rate, steps) not in self.runs for steps in study.budgets):
            stops = {round(budget * GROWN.share) for budget in study.budgets} | {
                undecayed(budget) for budget in study.budgets
            }
            stops |= {round(study.budgets[study.varied] * variant.share) for variant in study.variants}
            for stop in sorted(stops):
                self._trunk(study.small, seed, rate, stop)
        for budget in study.budgets:
            self.scratch(study.small, seed, rate, budget)

    # --- trainings ------------------------------------------------------------------------------------------------

    def scratch(self, network: Network, seed: int, rate: float, steps: int) -> Run:
        """Train a network from random weights."""
        key = self._key(network, seed, rate, steps)
        if key not in self.runs:
            training = self._annealed(network, seed, rate, steps)
            self._keep(key, training, steps * network.step_flops, math.nan)
        return self.runs[key]

    def grown(self, study: Study, variant: Variant, seed: int, budget: int, low: float, rate: float) -> Run:
        """Train the small network, grow it, and train it on.

        Args:
            study: Which networks.
            variant: How to grow.
            seed: Of everything random.
            budget: All compute, in steps of the small network.
            low: The small network's rate.
            rate: The student's, unless the variant has one of its own.
        """
        before = round(budget * variant.share)
        steps = round((budget - before) * study.ratio)
        peak = rate if variant.by_teacher is None else low * variant.by_teacher
        key = (study.large.name, variant.name, study.small.name, before, steps, seed, float(f"{peak:.6g}"))
        if key not in self.runs:
            teacher = (self._annealed if variant.annealed else self._trunk)(study.small, seed, low, before)
            student = self._begin(study.large, seed, "grown")
            self._grow(study, variant, seed, teacher, student)
            start = student.score()
            student.advance(steps, rates(peak, round(variant.warmup * steps), steps))
            flops = before * study.small.step_flops + steps * study.large.step_flops
            self._keep(key, student, flops, start.loss)
        return self.runs[key]

    def _grow(self, study: Study, variant: Variant, seed: int, teacher: Training, student: Training) -> None:
        first, *others = study.commands(study.small.build(), study.large.build())
        commands = [
            [*first, *variant.options, "--seed", str(seed)],
            *([*other, "--seed", str(seed)] for other in others),
        ]
        adam = teacher.optimizer.state_dict() if variant.moments else None
        with tempfile.TemporaryDirectory() as folder:
            growth.export(teacher.model.cpu(), teacher.task.example, Path(folder))
            student.model.cpu()
            lines, state = growth.grow(student.model, Path(folder), commands, adam)
            student.model.to(self._device)
        if variant is GROWN:
            (self._out / f"{study.file}.sh").write_text("\n".join(lines) + "\n")
        if state is not None:
            student.optimizer.load_state_dict(dict(state))

    def _annealed(self, network: Network, seed: int, rate: float, steps: int) -> Training:
        training = self._trunk(network, seed, rate, undecayed(steps))
        training.advance(steps, rates(rate, WARMUP, steps))
        return training

    def _trunk(self, network: Network, seed: int, rate: float, step: int) -> Training:
        """Train from random weights at a rate that does not decay, from the nearest checkpoint on."""
        folder = self._work / re.sub(r"\W+", "-", f"{network.name} {rate:g} {seed}")
        training = self._begin(network, seed, SCRATCH)
        saved = [int(path.stem) for path in folder.glob("*.pt")]
        if saved := [one for one in saved if one <= step]:
            training.resume(folder / f"{max(saved)}.pt")
        if training.step < step:
            training.advance(step, rates(rate, WARMUP))
            training.save(folder / f"{step}.pt")
        return training

    def _begin(self, network: Network, seed: int, arm: str) -> Training:
        number = zlib.crc32(f"{network.name} {arm} {seed}".encode())
        torch.manual_seed(number)
        return Training(network.build(), network.task(), network.batch, number, self._device)

    def _key(self, network: Network, seed: int, rate: float, steps: int) -> tuple[object, ...]:
        return (network.name, SCRATCH, "", 0, steps, seed, float(f"{rate:.6g}"))

    def _keep(self, key: tuple[object, ...], training: Training, flops: float, start: float) -> None:
        """Evaluate a network and append what came of it to the file."""
        score: Score = training.score()
        run = Run(*key, _parameters(training.model), flops, start, score.accuracy, score.loss)  # type: ignore[arg-type]
        self.runs[key] = run
        new = not self._file.exists()
        with self._file.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow([field.name for field in dataclasses.fields(Run)])
            writer.writerow(
                [f"{value:.6g}" if isinstance(value, float) else value for value in dataclasses.astuple(run)]
            )

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def tuned(loss: Callable[[float], float], start: float) -> float:
    """Return the best rate among halves and doubles of `start`, with a worse one tried on either side."""
    losses = {}
    best = 0
    while missing := [power for power in (best, best - 1, best + 1) if power not in losses]:
        for power in missing:
            value = loss(start * 2.0**power)
            losses[power] = value if math.isfinite(value) else math.inf
        best = min(losses, key=lambda power: (losses[power], power))
    return start * 2.0**best


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
