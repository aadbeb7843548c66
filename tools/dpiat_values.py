"""Compare DPIAT's similarities with those that its authors' code gives, from PyTorch modules and from ONNX exports.

    python tools/dpiat_values.py

Needs torch, timm and onnxscript. The expected values were measured by running the authors' code (branch `submission`
of KamilPiechowiak/iatransfer) on timm 1.0.31 and on its own ResNet for CIFAR-10, with random weights: no data is used.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from checkpoint_table import import_torchvision
from torch import nn

from onnx_net2net.model.model import load
from onnx_net2net.operations.transfer.dpiat.dpiat import elements_of, network_similarity
from onnx_net2net.operations.transfer.dpiat.elements import Element, LayerTree, Scored, ScoredLayer, standardized
from onnx_net2net.operations.transfer.networks import Network

SCORED = [f"{kind}{n}d" for kind in ("Conv", "ConvTranspose", "BatchNorm") for n in (1, 2, 3)] + ["Linear"]

EXPECTED = {
    ("resnet 2x16", "resnet 2x24"): 0.5594,
    ("resnet 2x16", "resnet 2x10"): 0.5142,
    ("resnet 2x16", "resnet 3x16"): 0.9102,
    ("resnet 2x16", "resnet 5x16"): 0.7999,
    ("tf_efficientnet_b0", "tf_efficientnet_b1"): 0.8967,
    ("tf_efficientnet_b0", "tf_efficientnet_b2"): 0.8040,
    ("tf_efficientnet_b1", "tf_efficientnet_b2"): 0.8966,
    ("tf_efficientnet_b0", "semnasnet_100"): 0.7637,
    ("tf_efficientnet_b0", "regnety_004"): 0.3058,
}


class Block(nn.Module):
    """A residual block that may halve the image; its shortcut is registered first, as the authors have it."""

    def __init__(self, width: int, halves: bool) -> None:
        super().__init__()
        outputs = 2 * width if halves else width
        if halves:
            self.downsampling_conv = nn.Conv2d(width, outputs, 3, 2, 1)
        first = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
        second = nn.Conv2d(width, outputs, 3, 1 + halves, 1), nn.BatchNorm2d(outputs), nn.ReLU()
        self.block = nn.Sequential(*first, *second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the block and the shortcut."""
        return self.block(x) + (self.downsampling_conv(x) if hasattr(self, "downsampling_conv") else x)


class Resnet(nn.Module):
    """Three stages of blocks."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        stem = nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
        stages = [Block(width << s, b == blocks - 1 and s < 2) for s in range(3) for b in range(blocks)]
        self.model = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images."""
        return self.model(x)


def make(name: str) -> nn.Module:
    """Build a network of random weights."""
    if name.startswith("resnet"):
        return Resnet(*map(int, name.split()[1].split("x"))).eval()
    import_torchvision()
    import timm

    return timm.create_model(name, num_classes=100).eval()


def tree_of(module: nn.Module) -> LayerTree:
    """Return the tree of modules of a network."""
    for kind in SCORED:
        if isinstance(module, getattr(nn, kind)):
            return ScoredLayer(kind, tuple(module.weight.shape))
    return [tree_of(child) for child in module.children()]


def exported(module: nn.Module, folder: Path) -> Scored:
    """Export a network with its BatchNormalizations and read the file."""
    path = folder / "model.onnx"
    side = 32 if isinstance(module, Resnet) else 224
    torch.onnx.export(module, (torch.randn(1, 3, side, side),), path, dynamo=False, do_constant_folding=False,
                      training=torch.onnx.TrainingMode.PRESERVE)  # fmt: skip
    return Scored(Network(load(path)))


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    modules: dict[str, list[Element]] = {}
    graphs: dict[str, Scored] = {}
    print(f"{'pair':44}{'elements':>10}{'expected':>10}{'modules':>10}{'ONNX names':>12}{'ONNX graph':>12}")
    for (one, other), expected in EXPECTED.items():
        for name in {one, other} - modules.keys():
            network = make(name)
            modules[name] = standardized(tree_of(network))
            with tempfile.TemporaryDirectory() as folder:
                graphs[name] = exported(network, Path(folder))
        named = network_similarity(*elements_of(graphs[one], graphs[other]))
        by_graph = network_similarity(graphs[one].elements(), graphs[other].elements())
        counts = f"{len(modules[one])}, {len(modules[other])}"
        values = (
            f"{expected:10.4f}{network_similarity(modules[one], modules[other]):10.4f}{named:12.4f}{by_graph:12.4f}"
        )
        print(f"{f'{one} - {other}':44}{counts:>10}{values}")


if __name__ == "__main__":
    main()
