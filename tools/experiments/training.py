"""Training by Adam: to a step at some rate, from there on later, or down to the end of a schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from experiments.data import Task

DECAY = 0.4
"""Part of a schedule in which the rate falls, in a straight line to `LAST` of its peak."""

LAST = 0.02


class Score(NamedTuple):
    """What a network does on the validation set.

    Attributes:
        accuracy: Part of the classes that are told right.
        loss: Mean cross entropy (nats).
    """

    accuracy: float
    loss: float


def rates(peak: float, warmup: int, steps: int | None = None) -> Callable[[int], float]:
    """Return the learning rate of each step: a rise, a constant, and a fall.

    Args:
        peak: The constant.
        warmup: Steps of the rise.
        steps: Where the fall ends. Without it the rate never falls, so that one training serves several budgets.
    """

    def rate(step: int) -> float:
        risen = min(1.0, (step + 1) / (warmup + 1))
        if steps is None or step < undecayed(steps):
            return peak * risen
        left = (steps - step) / (steps - undecayed(steps))
        return peak * min(risen, LAST + (1 - LAST) * left)

    return rate


def undecayed(steps: int) -> int:
    """Return the step at which the fall of a schedule begins."""
    return steps - round(DECAY * steps)


class Training:
    """A network in training.

    Attributes:
        model: The network, on the device.
        optimizer: Its Adam.
        step: Minibatches so far.
    """

    def __init__(self, model: nn.Module, task: Task, batch: int, seed: int, device: str = "cpu") -> None:
        """Begin.

        Args:
            model: Trained in place; it moves to the device.
            task: Data.
            batch: Examples in a minibatch.
            seed: Of the order of the examples.
            device: Of PyTorch.
        """
        self.model, self.task, self.device = model.to(device), task, device
        self.optimizer = torch.optim.Adam(model.named_parameters(), fused=True)
        self.step = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = task.batches(batch, self._generator)

    def advance(self, until: int, rate: Callable[[int], float]) -> None:
        """Train to a step, at the rate of each."""
        self.model.train()
        for step in range(self.step, until):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(step)
            inputs, classes = (tensor.to(self.device) for tensor in next(self._batches))
            logits = self.model(inputs)
            loss = functional.cross_entropy(logits.flatten(0, -2), classes.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.step = max(self.step, until)

    def score(self) -> Score:
        """Evaluate on the validation set."""
        return evaluate(self.model, self.task, self.device)

    def state(self) -> Mapping[str, Any]:
        """Return a copy of all that `resume` needs; of data that are drawn anew for each minibatch only."""
        parts = self.model.state_dict(), self.optimizer.state_dict(), self._generator.get_state()
        return dict(zip(("model", "optimizer", "generator"), copy.deepcopy(parts), strict=True), step=self.step)

    def save(self, path: Path) -> None:
        """Write the state to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(self.state(), part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a state in a file."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.step = state["step"]


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, device: str = "cpu") -> Score:
    """Return the score of a network, which is left in evaluation mode."""
    model.eval()
    right = loss = places = 0.0
    for batch in task.valid:
        inputs, classes = (tensor.to(device) for tensor in batch)
        logits = model(inputs)
        right += (logits.argmax(-1) == classes).sum().item()
        loss += functional.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="sum").item()
        places += classes.numel()
    return Score(right / places, loss / places)
