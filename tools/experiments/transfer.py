"""What transfer gives on digits and glyphs: right after it and after some epochs, beside DPIAT and random weights.

    python tools/experiments/transfer.py [--seeds 5] [--out FOLDER]    # some 35 minutes of one idle core
    python tools/experiments/transfer.py --redraw                      # tables and figures from the runs that are there

A seed fixes the training of the teachers, the weights of the targets, the transfer and the order of the images, which
is the same for all arms. Each target is exported as a user would, filled by `transfer` and by DPIAT (`--method dpiat`),
and trained by Adam at a constant learning rate, as are random weights.

The rate is chosen for each arm of each pair: the one whose accuracy is best on average after 1, 2 and 5 epochs. This is
measured on validation images, with seeds of its own. Validation images are a part of the data set's training images
that no network is trained on, teachers neither; test images are seen only by the runs that are reported, at the chosen
rate.

`transfer_runs.csv` has every run, those that chose the rates too; see `transfer_results` for what is made of them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_models import CLASSES, IMAGE_SIZE, Mlp, ResNet, load_split

from experiments import transfer_results as results
from experiments.data import GLYPH_SIZE, GLYPHS, Images, Task, glyph_images, images, in_passes
from experiments.networks import Vgg
from experiments.training import Training
from experiments.transfer_results import ARMS, DPIAT, EPOCHS, MEASURES, RANDOM, TEST, VALIDATION, Alike, Pair, Run
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.transfer.dpiat.dpiat import transfer_dpiat
from onnx_net2net.operations.transfer.similarity import similarity
from onnx_net2net.operations.transfer.transfer import transfer

BATCH = 32
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TRIAL_SEEDS = (100, 101)
TEACHER_EPOCHS, TEACHER_RATE = 15, 3e-3
TEACHER_SEED = 1000  # more than a seed, so that teachers do not start as targets do
RESULTS = Path(__file__).resolve().parent / "results"


# --- data ---------------------------------------------------------------------------------------------


@functools.cache
def _digits() -> tuple[Images, Images, Images]:
    arrays = [torch.from_numpy(array) for array in load_split()]
    train_images, test = Images(*arrays[:2]), Images(*arrays[2:])
    return train_images.part(0, 1024), train_images.part(1024), test  # the split has shuffled them


@functools.cache
def _glyphs() -> tuple[Images, Images, Images]:
    drawn = glyph_images(3048)
    return drawn.part(0, 1536), drawn.part(1536, 2048), drawn.part(2048)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set and what networks need to know of it.

    Attributes:
        parts: Images to train on, to choose rates by, and to report by.
        classes: Number of classes.
        side: Pixels along each side of an image.
        stride: Of the first convolution of a network.
    """

    parts: Callable[[], tuple[Images, Images, Images]]
    classes: int
    side: int
    stride: int


SETS: Mapping[str, DataSet] = {
    "digits": DataSet(_digits, CLASSES, IMAGE_SIZE, stride=1),
    "glyphs": DataSet(_glyphs, len(GLYPHS), GLYPH_SIZE, stride=2),
}


@functools.cache
def tasks(data: str) -> Mapping[str, Task]:
    """Return the same training images with those to choose rates by, and with those to report by."""
    training, validation, test = SETS[data].parts()
    return {VALIDATION: images(in_passes, training, validation), TEST: images(in_passes, training, test)}


# --- networks -----------------------------------------------------------------------------------------

# Family, channels of each stage or features of each hidden layer, and blocks or convolutions of each stage.
NETWORKS: Mapping[str, tuple[str, tuple[int, ...], int]] = {
    "resnet": ("resnet", (8, 16, 32), 1),
    "resnet wide": ("resnet", (12, 24, 48), 1),
    "resnet narrow": ("resnet", (5, 10, 20), 1),
    "resnet deep": ("resnet", (8, 16, 32), 2),
    "resnet wide deep": ("resnet", (12, 24, 48), 2),
    "vgg": ("vgg", (8, 16, 32), 1),
    "vgg wide": ("vgg", (12, 24, 48), 1),
    "vgg narrow": ("vgg", (5, 10, 20), 1),
    "vgg deep": ("vgg", (8, 16, 32), 2),
    "mlp": ("mlp", (64, 32), 1),
    "mlp wide": ("mlp", (96, 48), 1),
    "mlp deep": ("mlp", (64, 32, 32), 1),
}
PAIRS: Mapping[str, Sequence[tuple[str, str]]] = {
    "same": [("resnet", "resnet")],
    "wider": [("resnet", "resnet wide"), ("vgg", "vgg wide"), ("mlp", "mlp wide")],
    "deeper": [("resnet", "resnet deep"), ("vgg", "vgg deep"), ("mlp", "mlp deep")],
    "wider and deeper": [("resnet", "resnet wide deep")],
    "narrower": [("resnet", "resnet narrow"), ("resnet wide", "resnet"), ("vgg", "vgg narrow"), ("mlp wide", "mlp")],
    "other family": [("vgg", "resnet"), ("resnet", "vgg"), ("vgg deep", "resnet"), ("resnet", "vgg deep")],
}
"""Teachers and targets, by how the target differs."""


def network(data: str, name: str) -> nn.Module:
    """Build a network of `NETWORKS` with random weights."""
    family, widths, depth = NETWORKS[name]
    of = SETS[data]
    if family == "mlp":
        return Mlp(widths, of.side**2, of.classes)
    if family == "vgg":
        return Vgg(widths, depth, of.classes, of.stride)
    return ResNet(widths, blocks=depth, classes=of.classes, stride=of.stride)


@functools.cache
def exported(data: str, name: str) -> onnx.ModelProto:
    """Export a network with the names of its state dict, and with its BatchNormalizations."""
    program = torch.onnx.export(
        network(data, name).eval(), (tasks(data)[TEST].example[:2],), dynamo=True, optimize=False, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=[{0: torch.export.Dim("n")}],
    )  # fmt: skip
    content = io.BytesIO()
    program.save(content)
    return onnx.load_from_string(content.getvalue())


def to_onnx(data: str, name: str, module: nn.Module) -> Model:
    """Return the export of a network with the weights of a module."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exported(data, name))
    state = module.state_dict()
    for tensor in proto.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    return load(proto)


def from_onnx(data: str, name: str, model: Model) -> nn.Module:
    """Return a module with the weights of a model."""
    module = network(data, name)
    with model.on_disk() as path:
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    state = {key: torch.from_numpy(np.array(values[key])) if key in values else old
             for key, old in module.state_dict().items()}  # fmt: skip
    module.load_state_dict(state)
    return module


# --- training -----------------------------------------------------------------------------------------


def accuracies(
    model: nn.Module, data: str, held_out: str, rate: float, seed: int, epochs: Sequence[int] = EPOCHS
) -> tuple[float, ...]:
    """Train a network in place; return its accuracy on `VALIDATION` or `TEST` images after some numbers of epochs."""
    steps = len(SETS[data].parts()[0].classes) // BATCH
    training, found = Training(model, tasks(data)[held_out], BATCH, seed), []
    for epoch in epochs:
        training.advance(epoch * steps, lambda _: rate)
        found.append(training.score().accuracy)
    return tuple(found)


@functools.cache
def trained(data: str, name: str, seed: int) -> Model:
    """Return a teacher."""
    torch.manual_seed(TEACHER_SEED + seed)
    module = network(data, name)
    (accuracy,) = accuracies(module, data, VALIDATION, TEACHER_RATE, TEACHER_SEED + seed, [TEACHER_EPOCHS])
    print(f"{data}, seed {seed}, teacher {name}: {accuracy:.3f} of validation", file=sys.stderr)
    return to_onnx(data, name, module)


def drawn(data: str, name: str, seed: int) -> nn.Module:
    """Return a target with random weights."""
    torch.manual_seed(seed)
    return network(data, name)


@functools.lru_cache(1)  # for the rates of an arm
def begun(data: str, teacher: str, target: str, arm: str, seed: int) -> nn.Module:
    """Return a target with the weights that an arm gives it."""
    module = drawn(data, target, seed)
    if arm == RANDOM:
        return module
    source, model = trained(data, teacher, seed), to_onnx(data, target, module)
    filled = transfer_dpiat(source, model) if arm == DPIAT else transfer(source, model, seed=seed, prove=False)
    return from_onnx(data, target, filled.student)


@functools.cache  # random weights are the same for all teachers
def _learned(
    data: str, teacher: str, target: str, arm: str, rate: float, held_out: str, seed: int
) -> tuple[float, ...]:
    return accuracies(copy.deepcopy(begun(data, teacher, target, arm, seed)), data, held_out, rate, seed)


def run(pair: Pair, arm: str, rate: float, held_out: str, seed: int) -> Run:
    """Train one arm of a pair once."""
    teacher = "" if arm == RANDOM else pair.teacher
    return Run(pair, arm, rate, held_out, seed, _learned(pair.data, teacher, pair.target, arm, rate, held_out, seed))


def alike(pair: Pair, seed: int) -> dict[str, float]:
    """Return how similar teacher and target are by each measure."""
    target = to_onnx(pair.data, pair.target, drawn(pair.data, pair.target, seed))
    (one,) = similarity(target, [trained(pair.data, pair.teacher, seed)], measure="agreement")
    return {measure: getattr(one, measure) or 0.0 for measure in MEASURES}


# --- command line -------------------------------------------------------------------------------------


def study(pairs: Sequence[Pair], seeds: int, out: Path) -> None:
    """Choose the rates, run every seed, and write what there is after each of them.

    Args:
        pairs: Teachers and targets.
        seeds: How many.
        out: The folder to write to.
    """
    runs: list[Run] = []
    rates = {}
    for pair, arm in itertools.product(pairs, ARMS):
        trials = [run(pair, arm, rate, VALIDATION, seed) for seed in TRIAL_SEEDS for rate in RATES]
        rates[pair, arm] = results.best_rate(trials)
        runs += trials
        print(f"{pair}, {arm}: rate {rates[pair, arm]}", file=sys.stderr, flush=True)
    found: Alike = {pair: [] for pair in pairs}
    for seed in range(seeds):
        for pair in pairs:
            found[pair].append(alike(pair, seed))
            runs += [run(pair, arm, rates[pair, arm], TEST, seed) for arm in ARMS]
        results.write_runs(out, runs, found)
        print(f"{seed + 1} seeds\n{results.summarize_folder(out)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, or only draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--redraw", action="store_true", help="only tables and figures, from the runs in --out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.redraw:
        print(results.summarize_folder(options.out))
    else:
        study([Pair(data, kind, *names) for data in SETS for kind in PAIRS for names in PAIRS[kind]],
              options.seeds, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
