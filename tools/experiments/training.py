"""Training: one loop for all networks, and the curve that it leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from experiments.data import Task


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        steps: Number of minibatches.
        batch: Examples in each.
        rate: The initial learning rate.
        decay: What the learning rate is divided by from the first step to the last, at an even pace.
        optimizer: ``adam`` or ``sgd``, the latter with momentum 0.9.
        every: Steps between two evaluations; half of that, and a fifth, at the beginning.
        evaluations: Instead, the steps before which the network is evaluated.
    """

    steps: int
    batch: int
    rate: float
    decay: float = 30.0
    optimizer: str = "adam"
    every: int = 50
    evaluations: tuple[int, ...] = ()

    def evaluated(self) -> set[int]:
        """Return the steps before which the network is evaluated: more of them at the beginning."""
        if self.evaluations:
            return set(self.evaluations)
        early = {part * self.every // 10 for part in (2, 4, 6, 8, 15, 25, 35)}
        return {*early, *range(0, self.steps, self.every), self.steps}


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: Minibatches so far.
        train_accuracy, train_loss: Of the minibatches since the last evaluation; nan before the first.
        accuracy, loss: Of the validation set.
    """

    step: int
    train_accuracy: float
    train_loss: float
    accuracy: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """How one network learned.

    Attributes:
        experiment: The name of the experiment.
        shape: What the networks that are compared have in common, if there are several such shapes.
        arm: How this one came by its weights, or was trained.
        seed: Of everything random.
        parameters: Trainable parameters.
        step_flops: Floating-point operations of a training step.
        distinct_units: Hidden units of the trained network that respond differently; -1 where it was not counted.
        points: Evaluations.
    """

    experiment: str
    shape: str
    arm: str
    seed: int
    parameters: int
    step_flops: int
    distinct_units: int
    points: list[Point]


def train(model: nn.Module, task: Task, schedule: Schedule, seed: int, device: str = "cpu") -> list[Point]:
    """Train a network in place and return its curve.

    Args:
        model: The network; it stays on the device.
        task: Data.
        schedule: How to train.
        seed: Of the order of the examples, and of dropout.
        device: Of PyTorch.

    Returns:
        Evaluations from before the first step to after the last.
    """
    return list(_train(model.to(device), task, schedule, seed, device))


def _train(model: nn.Module, task: Task, schedule: Schedule, seed: int, device: str) -> Iterator[Point]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if schedule.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), schedule.rate, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), schedule.rate, momentum=0.9)
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, schedule.decay ** (-1 / schedule.steps))
    batches = task.batches(schedule.batch, generator)
    evaluated = schedule.evaluated()
    right, losses, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for step in range(schedule.steps + 1):
        if step in evaluated:
            means = (right.item() / seen, losses.item() / seen) if seen else (math.nan, math.nan)
            yield Point(step, *means, *evaluate(model, task, device))
            right, losses, seen = torch.zeros_like(right), torch.zeros_like(losses), 0
        if step == schedule.steps:
            return
        model.train()
        inputs, classes = (tensor.to(device) for tensor in next(batches))
        logits = model(inputs)
        loss = functional.cross_entropy(logits.flatten(0, -2), classes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        right += (logits.detach().argmax(-1) == classes).float().mean()
        losses += loss.detach()
        seen += 1


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, device: str = "cpu") -> tuple[float, float]:
    """Return accuracy and mean cross entropy (nats) on the validation set; the model is left in evaluation mode."""
    model.eval()
    right = loss = places = 0.0
    for batch in task.valid:
        inputs, classes = (tensor.to(device) for tensor in batch)
        logits = model(inputs)
        right += (logits.argmax(-1) == classes).sum().item()
        loss += functional.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="sum").item()
        places += classes.numel()
    return right / places, loss / places
