"""What transfer gives on digits: right after it and after 1, 2 and 5 epochs, beside random weights and DPIAT.

    python tools/experiments/transfer.py [--seeds 5] [--out FOLDER]

Teachers are trained once. Each target is drawn anew for each seed, exported as a user would, filled by `transfer` and
by `transfer --method dpiat`, and trained by Adam with the rate that is best for each arm of each pair. One file has the
accuracies of every run, a second one the similarities of each pair and the means of each arm; printed is how the
similarities go with the gain over random weights, which a figure shows.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import io
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_models import Mlp, ResNet, load_split

from onnx_net2net.dpiat import transfer_dpiat
from onnx_net2net.errors import RefusedError
from onnx_net2net.model import Model, load
from onnx_net2net.similarity import similarities
from onnx_net2net.transfer import transfer

BATCH = 64
EPOCHS = (0, 1, 2, 5)
RATES = (1e-3, 3e-3, 1e-2)
TEACHER_EPOCHS, TEACHER_RATE = 15, 3e-3
RANDOM, DPIAT, OURS = ARMS = ("random", "dpiat", "transfer")
RESULTS = Path(__file__).resolve().parent / "results"
MEASURES = ("kept", "filled", "dpiat", "agreement")


class Vgg(nn.Module):
    """Convolutions with batch normalisation; every stage after the first halves the image.

    Args:
        stages: Channels of each stage.
        depth: Convolutions of each stage.
    """

    def __init__(self, stages: Sequence[int], depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, channels in enumerate(stages):
            layers += [nn.MaxPool2d(2)] if number else []
            for _ in range(depth):
                layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, 8, 8]``."""
        return self.fc(self.pool(self.features(image)).flatten(1))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet((8, 16, 32)),
    "resnet wide": lambda: ResNet((12, 24, 48)),
    "resnet narrow": lambda: ResNet((5, 10, 20)),
    "resnet deep": lambda: ResNet((8, 16, 32), blocks=3),
    "resnet wide deep": lambda: ResNet((12, 24, 48), blocks=3),
    "vgg": lambda: Vgg((8, 16, 32)),
    "vgg wide": lambda: Vgg((12, 24, 48)),
    "vgg narrow": lambda: Vgg((5, 10, 20)),
    "vgg deep": lambda: Vgg((8, 16, 32), depth=2),
    "mlp": lambda: Mlp((64, 32)),
    "mlp wide": lambda: Mlp((96, 48)),
    "mlp deep": lambda: Mlp((64, 32, 32)),
}
PAIRS = (
    ("resnet", "resnet"), ("resnet", "resnet wide"), ("resnet", "resnet deep"), ("resnet", "resnet wide deep"),
    ("resnet", "resnet narrow"), ("resnet wide", "resnet"), ("vgg", "vgg wide"), ("vgg", "vgg deep"),
    ("vgg", "vgg narrow"), ("vgg", "resnet"), ("resnet", "vgg"), ("mlp", "mlp wide"), ("mlp", "mlp deep"),
    ("mlp wide", "mlp"),
)  # fmt: skip
"""Teacher and target: as large, wider, deeper, both, narrower, of another family."""


@functools.cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels, test_images, test_labels = map(torch.from_numpy, load_split())
    return images, labels, test_images, test_labels


def train(model: nn.Module, rate: float, epochs: Iterable[int], seed: int) -> tuple[float, ...]:
    """Train by Adam and return the accuracy on the test images after each of some numbers of epochs."""
    images, labels, test_images, test_labels = _digits()
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    accuracies, done = [], 0
    for wanted in epochs:
        model.train()
        for _ in range(wanted - done):
            for batch in torch.randperm(len(images), generator=order).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        done = wanted
        model.eval()
        with torch.no_grad():
            accuracies.append((model(test_images).argmax(1) == test_labels).float().mean().item())
    return tuple(accuracies)


@functools.cache
def exported(name: str) -> onnx.ModelProto:
    """Export a network with the names of its state dict, and with its BatchNormalizations."""
    example = _digits()[0][:2]
    program = torch.onnx.export(
        NETWORKS[name]().eval(), (example,), dynamo=True, optimize=False, verbose=False, input_names=["image"],
        output_names=["logits"], dynamic_shapes=[{0: torch.export.Dim("n")}],
    )  # fmt: skip
    content = io.BytesIO()
    program.save(content)
    return onnx.load_from_string(content.getvalue())


def to_onnx(name: str, module: nn.Module) -> Model:
    """Return the export of a network with the weights of a module."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exported(name))
    state = module.state_dict()
    for tensor in proto.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    return load(proto)


def from_onnx(name: str, model: Model) -> nn.Module:
    """Return a module with the weights of a model."""
    module = NETWORKS[name]()
    with model.on_disk() as path:
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    state = {key: torch.from_numpy(np.array(values[key])) if key in values else old
             for key, old in module.state_dict().items()}  # fmt: skip
    module.load_state_dict(state)
    return module


@functools.cache
def teacher(name: str) -> Model:
    """Return a trained network."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    (accuracy,) = train(module, TEACHER_RATE, [TEACHER_EPOCHS], 0)
    print(f"teacher {name}: {accuracy:.3f}", file=sys.stderr)
    return to_onnx(name, module)


@dataclasses.dataclass(frozen=True)
class Run:
    """How one network learned: `accuracies` after each of `EPOCHS`."""

    source: str
    target: str
    arm: str
    rate: float
    seed: int
    accuracies: tuple[float, ...]


def runs_of(pair: tuple[str, str], seed: int) -> Iterator[Run]:
    """Yield the runs of one pair with one seed; a transfer that is refused has none."""
    source, target = pair
    drawn = to_onnx(target, _drawn(target, seed))
    filled = {DPIAT: transfer_dpiat(teacher(source), drawn).student}
    try:
        filled[OURS] = transfer(teacher(source), drawn, seed=seed).student
    except RefusedError as error:
        print(f"{source} -> {target}: {error}", file=sys.stderr)
    for rate in RATES:
        yield Run(*pair, RANDOM, rate, seed, _from_scratch(target, rate, seed))
        for arm, model in filled.items():
            yield Run(*pair, arm, rate, seed, train(from_onnx(target, model), rate, EPOCHS, seed))


def _drawn(name: str, seed: int) -> nn.Module:
    torch.manual_seed(1000 + seed)
    return NETWORKS[name]()


@functools.cache
def _from_scratch(name: str, rate: float, seed: int) -> tuple[float, ...]:
    return train(_drawn(name, seed), rate, EPOCHS, seed)


def best(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the rate that is best on average after the epochs of training."""
    by_rate = {rate: [run for run in runs if run.rate == rate] for rate in sorted({run.rate for run in runs})}
    return max(by_rate.values(), key=lambda some: statistics.fmean(sum(run.accuracies[1:]) for run in some))


def summary(runs: Sequence[Run], alike: Mapping[tuple[str, str], Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return for each pair the similarities and the mean accuracies of each arm at its best rate."""
    rows = []
    for pair, values in alike.items():
        row: dict[str, Any] = {"teacher": pair[0], "target": pair[1], **values}
        for arm in ARMS:
            of_arm = [run for run in runs if (run.source, run.target, run.arm) == (*pair, arm)]
            if of_arm:
                chosen = best(of_arm)
                means = np.mean([run.accuracies for run in chosen], 0)
                row |= {f"{arm} {epoch}": float(mean) for epoch, mean in zip(EPOCHS, means, strict=True)}
                row[f"{arm} rate"] = chosen[0].rate
        rows.append(row)
    return rows


def correlations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how each similarity goes with the gain of each arm after each number of epochs (Pearson, Spearman)."""
    lines = [f"{'measure':12}{'arm':10}" + "".join(f"{f'epoch {epoch}':>16}" for epoch in EPOCHS)]
    for measure in MEASURES:
        for arm in (DPIAT, OURS):
            told = [row for row in rows if f"{arm} 0" in row]
            x = np.array([row[measure] for row in told], float)
            cells = []
            for epoch in EPOCHS:
                y = np.array([_gain(row, arm, epoch) for row in told])
                ranks = [(v[:, None] > v).sum(1) + (v[:, None] == v).sum(1) / 2 for v in (x, y)]
                cells.append(f"{np.corrcoef(x, y)[0, 1]:.2f}, {np.corrcoef(*ranks)[0, 1]:.2f}")
            lines.append(f"{measure:12}{arm:10}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], epoch: int = 1) -> None:
    """Draw the gain over random weights after some epochs against each similarity, a point a pair."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(1, len(MEASURES), figsize=(12, 3.4), layout="constrained", sharey=True)
    for measure, ax in zip(MEASURES, axes, strict=True):
        for arm, mark in ((DPIAT, "x"), (OURS, "o")):
            told = [row for row in rows if f"{arm} 0" in row]
            ax.scatter([row[measure] for row in told], [_gain(row, arm, epoch) for row in told], marker=mark, label=arm)
        ax.set(title=measure, xlabel="similarity", xlim=(-0.03, 1.03))
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"accuracy - that of random weights, epoch {epoch}")
    axes[0].legend(fontsize=8)
    canvas.savefig(path, dpi=90)
    plt.close(canvas)


def _gain(row: Mapping[str, Any], arm: str, epoch: int) -> float:
    return float(row[f"{arm} {epoch}"] - row[f"{RANDOM} {epoch}"])


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def as_row(run: Run) -> dict[str, Any]:
    """Return a run as a row of the file of runs."""
    row = {field: getattr(run, field) for field in ("source", "target", "arm", "rate", "seed")}
    return row | {f"epoch {epoch}": accuracy for epoch, accuracy in zip(EPOCHS, run.accuracies, strict=True)}


def main() -> None:
    """Run everything and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    alike = {}
    for pair in PAIRS:
        target = to_onnx(pair[1], _drawn(pair[1], 0))
        (one,) = similarities(target, [teacher(pair[0])], measure="agreement")
        alike[pair] = {measure: getattr(one, measure) or 0.0 for measure in MEASURES}
    runs: list[Run] = []
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for pair in PAIRS:
            runs += runs_of(pair, seed)
        rows = summary(runs, alike)
        write(options.out / "transfer_runs.csv", [as_row(run) for run in runs])
        write(options.out / "transfer.csv", rows)
        print(f"{seed + 1} seeds\n{correlations(rows)}", flush=True)
    draw(options.out / "transfer.png", rows)


if __name__ == "__main__":
    main()
