"""Train the small models in ``models/`` on scikit-learn's digits and export them as users export.

    python tools/train_models.py --out models

Three classifiers of 8x8 grey images, one for each common way a PyTorch network becomes an ONNX file:

* ``digits_inception_bn``: legacy exporter, batch normalisation kept as nodes;
* ``digits_resnet``: default (dynamo) exporter, batch normalisation folded into the convolutions;
* ``digits_mlp``: legacy exporter.

Every class takes its channel widths as constructor arguments, so that a network of the grown shape can
be built and given the weights of a grown ONNX file: ``inception_bn``, ``resnet`` and ``mlp`` build the
shapes of the shipped models, scaled by ``width``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from accuracy import correct
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 2016
TEST_SIZE = 500
CLASSES = 10
IMAGE_SIZE = 8


# --- data ---------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """The digits, split once and for all by `SEED`; images are ``[n, 1, 8, 8]`` between 0 and 1."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_split() -> Digits:
    """Load scikit-learn's digits and split them into 1297 for training and 500 for the test."""
    bunch = load_digits()
    # Grey levels are the integers 0 to 16, so these values are exact in float32.
    images = (bunch.images[:, None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_SIZE, random_state=SEED, stratify=labels
    )
    return Digits(train_x, train_y, test_x, test_y)


def jitter(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little at random.

    Args:
        images: ``[n, 1, 8, 8]``.

    Returns:
        As many images of the same shape: up to 10 degrees, 10 % and 0.8 pixels off.
    """
    angle, scale, *shift = torch.empty(4, len(images)).uniform_(-1, 1)
    angle, scale = angle * torch.pi / 18, 1 + scale * 0.1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    pixels = 0.8 * 2 / IMAGE_SIZE  # affine_grid spans the image from -1 to 1
    rows = [cos, -sin, shift[0] * pixels, sin, cos, shift[1] * pixels]
    grid = functional.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


# --- Inception-BN -------------------------------------------------------------------------------------


class ConvBn(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; with stride 1 the padding keeps the image size."""

    def __init__(self, channels_in: int, channels: int, kernel: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers."""
        return functional.relu(self.bn(self.conv(x)))


class Branches(NamedTuple):
    """Channels of every convolution in one Inception module.

    Attributes:
        branch1x1: The 1x1 convolution.
        branch3x3: The 1x1 and the 3x3 convolution.
        branch7x7: The 1x1 convolution, then 1x7, 7x1, 1x7, ... in turn, as many as there are entries.
        branch_pool: The 1x1 convolution after the pool.
    """

    branch1x1: int
    branch3x3: tuple[int, int]
    branch7x7: tuple[int, ...]
    branch_pool: int

    @property
    def channels(self) -> int:
        """Channels of the module's concatenated output."""
        return self.branch1x1 + self.branch3x3[-1] + self.branch7x7[-1] + self.branch_pool

    def scaled(self, width: float) -> Branches:
        """The same module with every channel count times `width`."""
        return Branches(
            _scaled(self.branch1x1, width),
            (_scaled(self.branch3x3[0], width), _scaled(self.branch3x3[1], width)),
            tuple(_scaled(channels, width) for channels in self.branch7x7),
            _scaled(self.branch_pool, width),
        )


class Inception(nn.Module):
    """One Inception module: four branches side by side, their channels concatenated."""

    def __init__(self, channels_in: int, widths: Branches) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(channels_in, widths.branch1x1, (1, 1))
        self.branch3x3_1 = ConvBn(channels_in, widths.branch3x3[0], (1, 1))
        self.branch3x3_2 = ConvBn(widths.branch3x3[0], widths.branch3x3[1], (3, 3))
        self.branch7x7 = [f"branch7x7_{number}" for number in range(1, len(widths.branch7x7) + 1)]
        before = channels_in
        kernels = itertools.chain([(1, 1)], itertools.cycle([(1, 7), (7, 1)]))
        for name, channels, kernel in zip(self.branch7x7, widths.branch7x7, kernels, strict=False):
            self.add_module(name, ConvBn(before, channels, kernel))
            before = channels
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.branch_pool = ConvBn(channels_in, widths.branch_pool, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branches and concatenate."""
        branch1x1 = self.branch1x1(x)
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7 = x
        for name in self.branch7x7:
            branch7x7 = self.get_submodule(name)(branch7x7)
        branch_pool = self.branch_pool(self.pool(x))
        return torch.cat([branch1x1, branch3x3, branch7x7, branch_pool], dim=1)


INCEPTION_STEM = (16, 32)
INCEPTION_MODULES: Mapping[str, Branches] = {
    "inception3a": Branches(16, (16, 24), (8, 12, 16), 8),
    "inception3b": Branches(16, (16, 24), (8, 12, 16), 8),
    "inception4a": Branches(24, (24, 32), (12, 16, 24), 16),
    "inception4b": Branches(24, (24, 32), (12, 16, 24), 16),
    "inception4c": Branches(24, (24, 32), (12, 16, 24), 16),
}


class InceptionBn(nn.Module):
    """A small Inception-BN: two stem convolutions, Inception modules, global average pool, classifier.

    Args:
        stem: Channels of the two stem convolutions.
        modules: The Inception modules by name, in order. The digit in a name is its stage, and a pool lies
            between two stages: ``inception3*`` see 8x8 images, ``inception4*`` 4x4.
        classes: Number of classes.
        stride: Of both stem convolutions, for larger images.
    """

    def __init__(
        self,
        stem: tuple[int, int] = INCEPTION_STEM,
        modules: Mapping[str, Branches] = INCEPTION_MODULES,
        classes: int = CLASSES,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBn(1, stem[0], (3, 3), stride)
        self.conv2 = ConvBn(stem[0], stem[1], (3, 3), stride)
        channels = stem[1]
        for name, widths in modules.items():
            self.add_module(name, Inception(channels, widths))
            channels = widths.channels
        self.module_names = tuple(modules)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, height, width]``."""
        x = self.conv2(self.conv1(image))
        for stage, names in itertools.groupby(self.module_names, key=_stage):
            if stage != _stage(self.module_names[0]):
                x = self.pool(x)
            for name in names:
                x = self.get_submodule(name)(x)
        return self.fc(self.gap(x).flatten(1))


def _stage(name: str) -> str:
    return name.removeprefix("inception")[0]


def inception_bn(width: float = 1.0) -> InceptionBn:
    """Build the shipped Inception-BN with every channel count times `width`."""
    stem = (_scaled(INCEPTION_STEM[0], width), _scaled(INCEPTION_STEM[1], width))
    return InceptionBn(stem, {name: widths.scaled(width) for name, widths in INCEPTION_MODULES.items()})


# --- ResNet and MLP -----------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, hidden: int, channels: int, stride: int, folded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, hidden, 3, stride, padding=1, bias=folded)
        self.bn1 = _norm(hidden, folded)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=folded)
        self.bn2 = _norm(channels, folded)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=folded)
            self.downsample = nn.Sequential(shortcut, _norm(channels, folded))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


def _norm(channels: int, folded: bool) -> nn.Module:
    return nn.Identity() if folded else nn.BatchNorm2d(channels)


RESNET_STAGES = (12, 24, 48)
RESNET_BLOCKS = 2


class ResNet(nn.Module):
    """A small ResNet of basic blocks; every stage after the first halves the image.

    Args:
        stages: Channels of the residual stream in each stage; the stem has those of the first.
        hidden: Channels inside the blocks of each stage; as the stream if not given.
        blocks: Blocks per stage.
        folded: Convolutions with a bias and no batch normalisation: the network that the exported file holds.
        classes: Number of classes.
        stride: Of the stem, for larger images.
    """

    def __init__(
        self,
        stages: Sequence[int] = RESNET_STAGES,
        hidden: Sequence[int] | None = None,
        blocks: int = RESNET_BLOCKS,
        folded: bool = False,
        classes: int = CLASSES,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, stages[0], 3, stride, padding=1, bias=folded)
        self.bn1 = _norm(stages[0], folded)
        self.stages = len(stages)
        before = stages[0]
        for number, (channels, inner) in enumerate(zip(stages, hidden or stages, strict=True), start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                layer.append(BasicBlock(before, inner, channels, stride, folded))
                before = channels
            self.add_module(f"layer{number}", layer)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, height, width]``."""
        x = functional.relu(self.bn1(self.conv1(image)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(self.gap(x).flatten(1))


def resnet(width: float = 1.0, folded: bool = False) -> ResNet:
    """Build the shipped ResNet with every channel count times `width`."""
    return ResNet(tuple(_scaled(channels, width) for channels in RESNET_STAGES), folded=folded)


MLP_HIDDEN = (128, 64)


class Mlp(nn.Module):
    """A multilayer perceptron with ReLU on the flattened image: ``fc1``, ``fc2``, ... .

    Args:
        hidden: Features of each hidden layer.
        pixels: Of an image.
        classes: Number of classes.
    """

    def __init__(
        self, hidden: Sequence[int] = MLP_HIDDEN, pixels: int = IMAGE_SIZE * IMAGE_SIZE, classes: int = CLASSES
    ) -> None:
        super().__init__()
        widths = [pixels, *hidden, classes]
        self.depth = len(widths) - 1
        for number in range(1, self.depth + 1):
            self.add_module(f"fc{number}", nn.Linear(widths[number - 1], widths[number]))

    def forward(self, image: Tensor) -> Tensor:
        """Classify images ``[n, 1, height, width]``."""
        x = image.flatten(1)
        for number in range(1, self.depth):
            x = functional.relu(self.get_submodule(f"fc{number}")(x))
        return self.get_submodule(f"fc{self.depth}")(x)


def mlp(width: float = 1.0) -> Mlp:
    """Build the shipped perceptron with every hidden layer times `width`."""
    return Mlp(tuple(_scaled(features, width) for features in MLP_HIDDEN))


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


# --- training -----------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float = 5e-3,
    batch: int = 64,
    seed: int = SEED,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a classifier in place: AdamW, one-cycle learning rate, jittered images.

    The model of the last epoch is the result: no choice is made by looking at a test set.

    Args:
        model: The network.
        images: ``[n, 1, 8, 8]``.
        labels: ``[n]``.
        epochs: Passes over the images.
        learning_rate: The highest one of the cycle.
        batch: Images per step; an incomplete last batch is left out.
        seed: Fixes the order of the images and the jitter.
        on_epoch: Called after each epoch with its number, from 1, and its mean loss; the model is then in
            evaluation mode.

    Returns:
        The model, in evaluation mode.
    """
    torch.manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for epoch in range(1, epochs + 1):
        model.train()
        loss_sum = 0.0
        for picked in torch.randperm(len(x))[: steps * batch].split(batch):
            loss = functional.cross_entropy(model(jitter(x[picked])), y[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        model.eval()
        if on_epoch is not None:
            on_epoch(epoch, loss_sum / steps)
    return model.eval()


# --- export -------------------------------------------------------------------------------------------


def export_legacy(model: nn.Module, path: Path, *, keep_bn: bool = False) -> None:
    """Export with the TorchScript-based exporter, opset 17, dynamic batch axis.

    Args:
        model: The network, in evaluation mode.
        path: The ONNX file to write.
        keep_bn: Leave batch normalisation as nodes instead of folding it into the convolutions.
    """
    keep = torch.onnx.TrainingMode.PRESERVE if keep_bn else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        # This exporter is deprecated, and still what many deployed files were written by.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (_example(),),
            str(path),
            dynamo=False,
            training=keep,
            do_constant_folding=not keep_bn,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )


def export_dynamo(model: nn.Module, path: Path) -> None:
    """Export with the default exporter, opset 20, dynamic batch axis, weights inside the file.

    Args:
        model: The network, in evaluation mode.
        path: The ONNX file to write.
    """
    torch.onnx.export(
        model,
        (_example(),),
        str(path),
        dynamo=True,
        external_data=False,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    _drop_stack_traces(path)


def _example() -> Tensor:
    # Two images: the default exporter would take a batch of one for a constant.
    return torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)


def _drop_stack_traces(path: Path) -> None:
    """Remove the exporter's stack traces: they name files of the machine that exported."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


# --- command line -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one shipped model is built, trained and exported."""

    build: Callable[[], nn.Module]
    export: Callable[[nn.Module, Path], None]
    epochs: int


def _export_keeping_bn(model: nn.Module, path: Path) -> None:
    export_legacy(model, path, keep_bn=True)


RECIPES: Mapping[str, Recipe] = {
    "digits_inception_bn": Recipe(inception_bn, _export_keeping_bn, epochs=60),
    "digits_resnet": Recipe(resnet, export_dynamo, epochs=60),
    "digits_mlp": Recipe(mlp, export_legacy, epochs=200),
}


def make(name: str, digits: Digits, out: Path, epochs: int | None = None) -> str:
    """Train and export one model.

    Args:
        name: A key of `RECIPES`.
        digits: The data.
        out: The folder to write ``NAME.onnx`` to.
        epochs: Instead of the recipe's.

    Returns:
        Its row of the table: name, parameters, file size, test accuracy of the exported file.
    """
    recipe = RECIPES[name]
    torch.manual_seed(SEED)  # the initial weights
    model = recipe.build()
    train(model, digits.train_images, digits.train_labels, epochs=epochs or recipe.epochs)
    path = out / f"{name}.onnx"
    recipe.export(model, path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    right = correct(path, digits.test_images, digits.test_labels)
    total = len(digits.test_labels)
    size = f"{path.stat().st_size / 1000:.0f} kB"
    return f"| `{path.name}` | {parameters:,} | {size} | {right}/{total} = {right / total:.1%} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, measure and print a table."""
    parser = argparse.ArgumentParser(description="Train and export the models in models/.")
    parser.add_argument("--out", type=Path, default=Path("models"), metavar="DIR", help="where to write")
    parser.add_argument("--epochs", type=int, help="instead of each model's own number")
    parser.add_argument("--only", choices=list(RECIPES), metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    digits = load_split()
    np.savez_compressed(options.out / "digits_test.npz", image=digits.test_images, label=digits.test_labels)
    rows = ["| model | parameters | size | test accuracy |", "|---|---:|---:|---:|"]
    for name in [options.only] if options.only else RECIPES:
        start = time.perf_counter()
        rows.append(make(name, digits, options.out, options.epochs))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
