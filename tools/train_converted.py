"""Train students on that come back from their ONNX files alone, by onnx2torch and by jaxonnxruntime.

    pip install onnx2torch jax jaxonnxruntime
    python tools/train_converted.py

Four classifiers of scikit-learn's digits are widened by 1.5, converted, and trained for a few steps of SGD: those in
``models/``, and a vision transformer that is trained here. The table has what each converter made of them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_models import Digits, load_split

from onnx_net2net import widen
from onnx_net2net.errors import one_line

MODELS = Path(__file__).parent.parent / "models"
BATCH = 64


class Vit(nn.Module):
    """A vision transformer of 16 patches of 2 x 2."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(16, width) * 0.02)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, functional.gelu,
                                                               batch_first=True, norm_first=True)
                                    for _ in range(layers))  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of [n, 1, 8, 8]."""
        tokens = self.embed(image).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens.mean(1)))


def batches(digits: Digits, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of training images and labels, drawn at random."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(0, len(digits.train_images), BATCH)
        yield digits.train_images[chosen], digits.train_labels[chosen]


def train_vit(digits: Digits, path: Path, steps: int = 1500) -> Path:
    """Train the transformer and export it by the legacy exporter at opset 17."""
    torch.manual_seed(0)
    net = Vit()
    fit(net, torch.optim.AdamW(net.parameters(), 3e-3), digits, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        torch.onnx.export(net.eval(), (torch.zeros(2, 1, 8, 8),), path, dynamo=False, opset_version=17,
                          input_names=["image"], output_names=["logits"], dynamic_axes={"image": [0]})  # fmt: skip
    return path


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, steps: int) -> None:
    """Train a PyTorch module."""
    for images, labels in batches(digits, steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimizer.step()


def make_trainable(net: nn.Module) -> int:
    """Turn the weights that a converter left as buffers into parameters; return how many elements these have."""
    turned = 0
    for module in net.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            is_weight = buffer.is_floating_point() and buffer.numel() > 1
            if is_weight and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(buffer.clone()))
                turned += buffer.numel()
    return turned


def correct(logits: np.ndarray, digits: Digits) -> int:
    """Return how many test images are told right."""
    return int((logits.argmax(1) == digits.test_labels).sum())


def by_onnx2torch(student: Path, digits: Digits, steps: int, rate: float) -> str:
    """Convert a student to PyTorch, train it, and say how it went."""
    from onnx2torch import convert

    net = convert(onnx.load(student)).eval()
    own = sum(parameter.numel() for parameter in net.parameters())
    turned = make_trainable(net)
    images = torch.from_numpy(digits.test_images)
    before, start = correct(net(images).detach().numpy(), digits), copy.deepcopy(net.state_dict())
    fit(net, torch.optim.SGD(net.parameters(), rate, momentum=0.9), digits, steps)
    after = correct(net(images).detach().numpy(), digits)
    moved = sum(int((value != start[name]).sum()) for name, value in net.named_parameters())
    return f"{own:,} | {turned:,} | {moved:,} | {before} | {after}"


def by_jax(student: Path, digits: Digits, steps: int, rate: float) -> str:
    """Run a student in JAX, train it, and say how it went; the names of initializers are the keys of its parameters."""
    import jax
    import jax.numpy as jnp
    from jaxonnxruntime import call_onnx, config

    config.update("jaxort_only_allow_initializers_as_static_args", False)
    run, parameters = call_onnx.call_onnx_model(onnx.load(student), {"image": digits.test_images})
    weights = {name: value for name, value in parameters.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    before = correct(np.asarray(run(parameters, {"image": digits.test_images})[0]), digits)

    def loss(weights: dict[str, Any], images: Any, labels: Any) -> Any:
        logits = run({**parameters, **weights}, {"image": images})[0]
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    start, gradient = weights, jax.jit(jax.grad(loss))
    for images, labels in batches(digits, steps):
        moved = gradient(weights, images, labels)
        weights = {name: value - rate * moved[name] for name, value in weights.items()}
    after = correct(np.asarray(run({**parameters, **weights}, {"image": digits.test_images})[0]), digits)
    moved = sum(int((value != start[name]).sum()) for name, value in weights.items())
    return f"{sum(value.size for value in weights.values()):,} | 0 | {moved:,} | {before} | {after}"


def main() -> None:
    """Widen, convert, train, and print the table."""
    parser = argparse.ArgumentParser(description="Train students on that come back from their ONNX files alone.")
    parser.add_argument("--steps", type=int, default=100, help="steps of SGD (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.003, help="its learning rate (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_split()
    print("| student | by | weights as parameters | as buffers | that moved | right before | after training |")
    print("|---|---|--:|--:|--:|--:|--:|")
    converters: dict[str, Callable[..., str]] = {"onnx2torch": by_onnx2torch, "jaxonnxruntime": by_jax}
    with tempfile.TemporaryDirectory() as folder:
        teachers = [*sorted(MODELS.glob("digits_*.onnx")), train_vit(digits, Path(folder) / "digits_vit.onnx")]
        for teacher in teachers:
            student = Path(folder) / "student.onnx"
            widen(teacher, factor=1.5).student.save(student)
            for name, convert in converters.items():
                try:
                    result = convert(student, digits, options.steps, options.rate)
                except Exception as error:  # whatever a converter does not know
                    result = f"{type(error).__name__}: {one_line(error, 120)} | | |"
                print(f"| {teacher.stem} | {name} | {result} |", flush=True)


if __name__ == "__main__":
    main()
