"""Train a toy mixture with twice the experts: masks, top-k, lift with a balancer, copies alone, from scratch.

Six experts (k = 2) are trained on clusters for 600 steps of Adam, then twelve for 700. Masks, twice the k and a bias
that rules copies out keep the function at step 0; copies with noise on the router do not (Expert Upcycling). The bias
is raised by a balancer (Wang et al. 2024, loss-free balancing). All losses have a balance loss in training. Five seeds:

    python tools/experiments/expert_masks.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTH, HIDDEN, TOKENS, EXPERTS = 12, 12, 512, 6
FULL, HELD, FADING = 1e4, 300, 200
RAISED = 5e-3
"""By how much a balancer raises or lowers a bias in each step."""


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens of eight clusters, and what a network of each cluster makes of them."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, WIDTH, generator=draw) * 1.5
    tokens = centres[torch.randint(0, 8, (TOKENS,), generator=draw)] + torch.randn(TOKENS, WIDTH, generator=draw)
    first = torch.randn(8, WIDTH, 24, generator=draw) / WIDTH**0.5
    second = torch.randn(8, 24, WIDTH, generator=draw) / 24**0.5
    own = torch.cdist(tokens, centres).argmin(1)
    hidden = torch.tanh(torch.einsum("td,tdh->th", tokens, first[own]))
    return tokens, torch.einsum("th,thd->td", hidden, second[own])


class Mixture(nn.Module):
    """A mixture of experts; `losers` marks for each token the copies that get the penalty."""

    def __init__(self, experts: int, draw: torch.Generator) -> None:
        """Draw the weights."""
        super().__init__()
        self.router = nn.Parameter(torch.randn(WIDTH, experts, generator=draw) * 0.3)
        self.up = nn.Parameter(torch.randn(experts, WIDTH, HIDDEN, generator=draw) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(experts, HIDDEN, WIDTH, generator=draw) / HIDDEN**0.5)
        self.losers: torch.Tensor | None = None
        self.penalty = 0.0
        self.balance = torch.zeros(())
        self.chosen = 2
        self.bias = torch.zeros(experts)
        self.load = torch.zeros(experts)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the chosen experts make, by gates that sum to 1; a bias counts for who is chosen alone."""
        plain = tokens @ self.router
        scores = plain if self.losers is None else plain - self.penalty * self.losers
        shares = scores.softmax(-1)
        places = (shares + self.bias).topk(self.chosen).indices
        top = shares.gather(1, places)
        gates = torch.zeros_like(plain).scatter(1, places, top / top.sum(-1, keepdim=True))
        self.load = (gates > 0).float().mean(0)
        self.balance = (self.load * plain.softmax(-1).mean(0)).sum() * plain.shape[1] / self.chosen
        hidden = torch.tanh(torch.einsum("td,edh->teh", tokens, self.up))
        return torch.einsum("ted,te->td", torch.einsum("teh,ehd->ted", hidden, self.down), gates)

    def doubled(self, draw: torch.Generator, noise: float = 0.0) -> Mixture:
        """Return a mixture with two copies of each expert, side by side."""
        made, index = Mixture(2 * EXPERTS, draw), torch.arange(EXPERTS).repeat_interleave(2)
        made.router.data = self.router.data[:, index] + noise * torch.randn(made.router.shape, generator=draw)
        made.up.data, made.down.data = self.up.data[index].clone(), self.down.data[index].clone()
        return made

    def choose_twice_as_many(self, draw: torch.Generator) -> None:
        """Choose both copies of an expert; their last layers differ by parts that cancel."""
        parts = 0.3 * torch.randn(self.down[::2].shape, generator=draw)
        self.chosen = 4
        self.down.data *= 1 + torch.stack([parts, -parts], 1).flatten(0, 1)

    def lift(self) -> None:
        """Give copies a bias with which none is chosen: shares are less than 1."""
        self.bias[1::2] = -1.001

    def mask(self, tokens: torch.Tensor, draw: torch.Generator) -> None:
        """Let planes that are orthogonal to the router's rows tell which copies get the penalty."""
        rows, planes = self.router.data, torch.randn(self.router.shape, generator=draw)
        planes = planes - (planes * rows).sum(0) / (rows * rows).sum(0) * rows
        worse = (tokens @ planes).reshape(-1, EXPERTS, 2).argmin(-1)
        self.losers, self.penalty = functional.one_hot(worse, 2).reshape(-1, 2 * EXPERTS).float(), FULL


def loss_of(model: Mixture, tokens: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the loss without training."""
    with torch.no_grad():
        return float(((model(tokens) - wanted) ** 2).mean())


def train(
    model: Mixture, tokens: torch.Tensor, wanted: torch.Tensor, steps: int,
    penalty: Callable[[int], float] | None = None, raised: float = 0.0,
) -> list[float]:  # fmt: skip
    """Train, and return the loss of each step; a balancer raises the bias of experts that are chosen seldom."""
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for step in range(steps):
        model.penalty = penalty(step) if penalty is not None else model.penalty
        optimizer.zero_grad()
        loss = ((model(tokens) - wanted) ** 2).mean()
        (loss + 1e-3 * model.balance).backward()
        optimizer.step()
        model.bias += raised * torch.sign(model.load.mean() - model.load)
        losses.append(float(loss.detach()))
    return losses


def study(seed: int) -> dict[str, float]:
    """Return the losses of all ways for one seed."""
    tokens, wanted = problem(seed)
    draw = torch.Generator().manual_seed(100 + seed)
    teacher = Mixture(EXPERTS, draw)
    train(teacher, tokens, wanted, 600)
    found = {"teacher": loss_of(teacher, tokens, wanted)}
    trained = copy.deepcopy(teacher)
    masked = teacher.doubled(draw)
    masked.mask(tokens, draw)
    found["masks, step 0"] = loss_of(masked, tokens, wanted)
    found["masks, 300 steps"] = train(masked, tokens, wanted, HELD)[-1]
    rest = 700 - HELD
    ways: dict[str, Callable[[int], float]] = {
        "kept": lambda _: FULL, "annealed": lambda step: max(0.0, 8 * (1 - step / FADING)), "dropped": lambda _: 0.0,
    }  # fmt: skip
    for way, penalty in ways.items():
        model = Mixture(2 * EXPERTS, draw)
        model.load_state_dict(masked.state_dict())
        model.losers = masked.losers
        losses = train(model, tokens, wanted, rest, penalty)
        found |= {f"masks {way}, highest then": max(losses), f"masks {way}, 700 steps": losses[-1]}
    copied = teacher.doubled(draw, 1e-3)
    found["copies alone, step 0"] = loss_of(copied, tokens, wanted)
    found["copies alone, 700 steps"] = train(copied, tokens, wanted, 700)[-1]
    found["teacher goes on, 700 steps"] = train(teacher, tokens, wanted, 700)[-1]
    scratch = train(Mixture(2 * EXPERTS, draw), tokens, wanted, 1300)
    found |= {"from scratch, 700 steps": scratch[699], "from scratch, 1300 steps": scratch[-1]}
    both, lifted = trained.doubled(draw), trained.doubled(draw)
    both.choose_twice_as_many(draw)
    lifted.lift()
    for name, model, raised in (("top-k of 4", both, 0.0), ("lift with a balancer", lifted, RAISED)):
        found[f"{name}, step 0"] = loss_of(model, tokens, wanted)
        losses = train(model, tokens, wanted, 700, raised=raised)
        found |= {f"{name}, highest": max(losses), f"{name}, 700 steps": losses[-1]}
    return found


def main() -> None:
    """Print a table of means and deviations."""
    torch.set_num_threads(1)
    rows = [study(seed) for seed in range(5)]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(f"| {name} | {values.mean():.4f} | {values.std(ddof=1):.4f} |")


if __name__ == "__main__":
    main()
