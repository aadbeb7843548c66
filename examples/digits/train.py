"""Train a network on the 8x8 digits of scikit-learn: a complete training command for `chain` and `explore`.

    python train.py --export small.onnx --state small.pt          # a small network with random weights
    python train.py --init small.pt --out run --steps 300         # train it, as chain and explore call it

What `chain` and `explore` need of a training command is marked (1) to (6).
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

CLASSES, PIXELS, BATCH = 10, 64, 64


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``[n, width]`` to as many."""
        return x + self.down(functional.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """A residual network on flattened images; its blocks may have different hidden sizes."""

    def __init__(self, width: int, hidden: list[int]) -> None:
        super().__init__()
        self.stem = nn.Linear(PIXELS, width)
        self.blocks = nn.Sequential(*(Block(width, size) for size in hidden))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, 8, 8]``."""
        return self.head(self.blocks(self.stem(image.flatten(1))))


def net_of(state: dict[str, Tensor]) -> Net:
    """Make the network that a state dict fits: its sizes are those of the weights."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    return Net(len(state["stem.weight"]), [len(state[f"blocks.{k}.up.weight"]) for k in range(blocks)])


def digits() -> list[Tensor]:
    """Return images and classes for training, and then for validation."""
    bunch = load_digits()
    images = torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32)
    classes, order = torch.tensor(bunch.target), torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [part[rows] for rows in (order[500:], order[:500]) for part in (images, classes)]


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image a little."""
    angle, scale, *shift = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale = angle * 0.17, 1 + scale * 0.1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, shift[0] * 0.2, sin, cos, shift[1] * 0.2], dim=1)
    grid = functional.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def hint(path: str, net: Net) -> tuple[float, Callable[[Tensor], Tensor]]:
    """Return a weight, and how far features are from the teacher's: a loss of the images that went through the net.

    Each pair of layers counts the mean square of its differences in units of the teacher's variance. The loss starts
    at 0: `{features}` says where each unit of the teacher is in the student.
    """
    told = json.loads(Path(path).read_text())
    state = torch.load(told["state_dict"], weights_only=True)
    teacher = net_of(state)
    teacher.load_state_dict(state)
    seen: dict[nn.Module, Tensor] = {}
    pairs = []
    for pair in told["pairs"]:
        layers = [one.get_submodule(pair[side]["module"]) for side, one in (("teacher", teacher), ("student", net))]
        pairs.append((*layers, torch.tensor(pair["index"]), torch.tensor(pair["scale"], dtype=torch.float32)))
    for layer in {layer for pair in pairs for layer in pair[:2]}:
        layer.register_forward_hook(lambda layer, _, value: seen.__setitem__(layer, value))

    def loss(images: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(images)
        return torch.stack([
            functional.mse_loss(seen[new][..., index] * scale, seen[old]) / seen[old].var()
            for old, new, index, scale in pairs
        ]).mean()  # fmt: skip

    return told["weight"], loss


def part_of(rate: float, share: float) -> float:
    """Return the rate after a share of the steps: a warm-up, and then a cosine down to a fiftieth."""
    return rate * min(1, 20 * share, 0.51 + 0.49 * math.cos(math.pi * share))


def train(options: argparse.Namespace) -> None:
    """Train as `chain` and `explore` want it."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    state = torch.load(options.init, weights_only=True)
    net = net_of(state)  # (1) the network has the sizes of {init} ...
    is_fresh = options.fresh and not options.start
    if not is_fresh:
        net.load_state_dict(state)  # ... and its weights
    optimizer = torch.optim.AdamW(net.named_parameters(), lr=options.rate, weight_decay=1e-2)
    if options.optimizer and not is_fresh:
        optimizer.load_state_dict(torch.load(options.optimizer, weights_only=True))  # (2) {optimizer} may be empty
        for group in optimizer.param_groups:
            group["lr"] = options.rate
    weight, distance = hint(options.features, net) if options.features else (0.0, None)  # for losses on features
    images, classes, valid_images, valid_classes = digits()

    def measure(step: int) -> None:
        net.eval()
        with torch.no_grad():
            logits = net(valid_images)
        loss = functional.cross_entropy(logits, valid_classes).item()
        measured = {"val_loss": loss, "accuracy": (logits.argmax(1) == valid_classes).float().mean().item()}
        if distance is not None:
            measured["hint"] = distance(valid_images).item()
        with open(options.out / "metrics.jsonl", "a") as log:  # (3) a line now and then, the first before all steps
            log.write(json.dumps({"step": step, **measured}) + "\n")

    def leave() -> None:
        torch.save(net.state_dict(), options.out / "state.pt")  # (4) the weights, and if you like the optimizer
        torch.save(optimizer.state_dict(), options.out / "optimizer.pt")

    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))  # (5) on SIGTERM leave a checkpoint and end
    measure(options.start)
    for step in range(options.start + 1, options.steps + 1):  # (6) steps are counted with those done before
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)  # the same batch in a second try
        net.train()
        picked = torch.randint(len(images), (BATCH,), generator=generator)
        batch = jitter(images[picked], generator)
        if options.anneal:
            share = (step - options.start) / (options.steps - options.start)
            for group in optimizer.param_groups:
                group["lr"] = part_of(options.rate, share)
        loss = functional.cross_entropy(net(batch), classes[picked])
        if distance is not None:
            loss = loss + weight * distance(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if asked or step == options.steps or step % options.every == 0:
            measure(step)
        if asked:
            break
    leave()


def export(options: argparse.Namespace) -> None:
    """Write a small network with random weights, as a file and as a state dict."""
    torch.manual_seed(options.seed)
    net = Net(options.width, [options.hidden] * options.blocks).eval()
    torch.save(net.state_dict(), options.state)
    image = torch.zeros(2, 1, 8, 8)  # two: the exporter would take a batch of one for a constant
    sizes = {"image": {0: torch.export.Dim("batch")}}
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(net, (image,), options.export, dynamo=True, external_data=False, dynamic_shapes=sizes, **names)


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Train a small network on digits.")
    parser.add_argument("--init", type=Path, help="the state dict to start from")
    parser.add_argument("--optimizer", help="the optimizer's state to start from, or nothing")
    parser.add_argument("--features", default="", help="features.json, for a loss on features; or nothing")
    parser.add_argument("--out", type=Path, help="the folder to write into")
    parser.add_argument("--start", type=int, default=0, help="steps that were done before")
    parser.add_argument("--steps", type=int, default=300, help="steps in all")
    parser.add_argument("--every", type=int, default=50, help="steps between two measurements")
    parser.add_argument("--rate", type=float, default=2e-3, help="the learning rate")
    parser.add_argument("--anneal", action="store_true", help="let the rate fall to the end of this training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start from random weights of the same sizes")
    parser.add_argument("--export", type=Path, help="write a small network with random weights, and end")
    parser.add_argument("--state", type=Path, default=Path("small.pt"), help="with --export: its state dict")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    options = parser.parse_args()
    if options.export:
        export(options)
    elif options.init and options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        train(options)
    else:
        sys.exit("give --init and --out, or --export")


if __name__ == "__main__":
    main()
