"""The experiments: which networks are trained, grown and compared."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from experiments import data, growth
from experiments.data import Task
from experiments.networks import PAIR_END, TRANSFORMERS, DropoutMlp, glyph_inception, perceptron, transformer
from experiments.training import Curve, Schedule, train

TEACHER, RANDOM_INIT, RANDOM_PAD = "teacher", "random initialization", "random pad"
NET2NET = "Net2Net"
PAIRS, WIDER = {2: "2 pairs deeper", 4: "4 pairs deeper"}, "wider"
# SGD's learning rate by Adam's, and how symmetry is broken.
SGD_BY_ADAM = 10
NOISE = "0.05"
DROPOUT = 0.1

_Network = TypeVar("_Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of everything; names of networks in `networks` are those of the settings.

    Attributes:
        seeds: How many times everything is repeated.
        train_images: Glyphs to train on.
        images: How Inception-BN is trained; students have half the steps.
        digits: How the perceptron is trained.
        text: How transformers are trained.
    """

    seeds: int
    train_images: int
    images: Schedule
    digits: Schedule
    text: Schedule


SETTINGS: Mapping[str, Setting] = {
    "small": Setting(
        seeds=5,
        train_images=24_000,
        images=Schedule(steps=1000, batch=64, rate=2e-2),
        digits=Schedule(steps=500, batch=64, rate=1e-2),
        text=Schedule(steps=250, batch=16, rate=2e-2),
    ),
    "large": Setting(
        seeds=5,
        train_images=200_000,
        images=Schedule(steps=10_000, batch=256, rate=1e-2, every=250),
        digits=Schedule(steps=5000, batch=64, rate=1e-2, every=250),
        text=Schedule(steps=10_000, batch=64, rate=1e-3, every=250),
    ),
}


@dataclasses.dataclass
class Bench:
    """One run of one experiment with one seed: what it is given, a folder for files, and what it leaves."""

    experiment: str
    setting: str
    seed: int
    device: str
    folder: Path
    curves: list[Curve] = dataclasses.field(default_factory=list)
    commands: list[str] = dataclasses.field(default_factory=list)

    @property
    def sizes(self) -> Setting:
        """The sizes of the setting."""
        return SETTINGS[self.setting]

    def new(self, build: Callable[..., _Network], *arguments: Any, **options: Any) -> _Network:
        """Build a network of this setting with initial weights of this seed."""
        torch.manual_seed(self.seed)
        return build(self.setting, *arguments, **options)

    def train(self, arm: str, model: nn.Module, task: Task, schedule: Schedule, shape: str = "") -> None:
        """Train a network, keep its curve, and leave it on the CPU.

        All students of an experiment see the same examples in the same order, and the teacher others.
        """
        flops = step_flops(model, task, schedule.batch)
        order = zlib.crc32(f"{self.experiment} {arm == TEACHER} {self.seed}".encode())
        points = train(model, task, schedule, order, self.device)
        model.cpu()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        distinct = distinct_units(model, task) if isinstance(model, DropoutMlp) else -1
        self.curves.append(Curve(self.experiment, shape, arm, self.seed, parameters, flops, distinct, points))

    def grow(self, teacher: nn.Module, student: nn.Module, task: Task, command: Sequence[str], exact: bool) -> None:
        """Give `student` the weights of the grown `teacher`, by the public commands."""
        if not self.commands:  # an experiment has one teacher
            growth.export(teacher, task.example, self.folder)
        self.commands += growth.grow(student, self.folder, [*command, "--seed", str(self.seed)], exact)


def step_flops(model: nn.Module, task: Task, batch: int) -> int:
    """Count the floating-point operations of a training step, the backward pass as two forward passes."""
    inputs = task.example[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(inputs)
    return 3 * batch * counter.get_total_flops()


def continued(schedule: Schedule, divisor: float) -> Schedule:
    """Return a student's schedule: half the steps of the teacher's, from a smaller initial learning rate."""
    return dataclasses.replace(at_rate(schedule, divisor), steps=schedule.steps // 2)


def at_rate(schedule: Schedule, divisor: float) -> Schedule:
    """Return the same schedule from a smaller initial learning rate."""
    return dataclasses.replace(schedule, rate=schedule.rate / divisor)


def at(arm: str, divisor: int) -> str:
    """Name an arm whose initial learning rate is the teacher's by `divisor`."""
    return f"{arm}, rate / {divisor}" if divisor > 1 else f"{arm}, teacher's rate"


# --- the paper's figures ------------------------------------------------------------------------------


def figure4(bench: Bench) -> None:
    """Inception-BN with sqrt(0.3) times the channels, widened to standard width (section 3.2).

    With the learning rates of Appendix A; random padding learns best from the teacher's.
    """
    task, schedule = data.glyphs(bench.sizes.train_images), bench.sizes.images
    teacher, student = bench.new(glyph_inception, width=math.sqrt(0.3)), bench.new(glyph_inception)
    bench.train(TEACHER, teacher, task, schedule)
    bench.train(RANDOM_INIT, copy.deepcopy(student), task, schedule)
    bench.grow(teacher, student, task, widen(teacher, student), exact=True)
    for divisor in (1, 3, 10, 30):
        bench.train(at(NET2NET, divisor), copy.deepcopy(student), task, continued(schedule, divisor))
    bench.grow(teacher, student, task, [*widen(teacher, student), "--map", "random_pad"], exact=False)
    bench.train(RANDOM_PAD, student, task, continued(schedule, 1))


def figures5and6(bench: Bench) -> None:
    """Standard Inception-BN, two more pairs of convolutions per pair (section 3.3), or larger (section 3.4).

    As in the paper, the two larger ones, with four more pairs and sqrt(2) times as wide, have only the teacher to be
    compared with.
    """
    task, schedule = data.glyphs(bench.sizes.train_images), bench.sizes.images
    teacher = bench.new(glyph_inception)
    bench.train(TEACHER, teacher, task, schedule)
    bench.train(RANDOM_INIT, bench.new(glyph_inception, pairs=2), task, schedule, PAIRS[2])
    for pairs, shape in PAIRS.items():
        student = bench.new(glyph_inception, pairs=pairs)
        bench.grow(teacher, student, task, deepen(pairs), exact=True)
        bench.train(at(NET2NET, 10), student, task, continued(schedule, 10), shape)
    student = bench.new(glyph_inception, width=math.sqrt(2))
    bench.grow(teacher, student, task, widen(teacher, student), exact=True)
    bench.train(at(NET2NET, 10), student, task, continued(schedule, 10), WIDER)


def widen(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Write the command that makes every convolution of `teacher` as wide as that of `student`."""
    sizes = {name: layer.out_channels for name, layer in teacher.named_modules() if isinstance(layer, nn.Conv2d)}
    command = ["widen"]
    for name, layer in student.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels != sizes[name]:
            command += ["--set", f"{name}={layer.out_channels}"]
    return command


def deepen(pairs: int) -> list[str]:
    """Write the command that inserts pairs of convolutions behind the pair of every Inception module."""
    where = ["--after", f"*.{PAIR_END}.conv", "--pairs", str(pairs)]
    return ["deepen", *where, "--calibrate", growth.CALIBRATION]


# --- symmetry -----------------------------------------------------------------------------------------


def symmetry(bench: Bench) -> None:
    """What makes copies of a unit differ: a narrow perceptron on digits, eight times as wide (section 2.3)."""
    task, schedule = data.digits(), bench.sizes.digits
    teacher, student = bench.new(perceptron), bench.new(perceptron, width=8)
    bench.train(TEACHER, teacher, task, schedule)
    bench.train(RANDOM_INIT, copy.deepcopy(student), task, schedule)
    sizes = [f"--set=fc{number}={features}" for number, features in enumerate(student.hidden, start=1)]
    even = ["--spread", "0"]
    spreads = {"no symmetry breaking": even, "noise": [*even, "--noise", NOISE], "random split": []}
    for spread, options in spreads.items():
        bench.grow(teacher, student, task, ["widen", *sizes, *options], exact=spread != "noise")
        for optimizer, divisor in (("adam", 10), ("sgd", 10 / SGD_BY_ADAM)):
            rated = dataclasses.replace(at_rate(schedule, divisor), optimizer=optimizer)
            for dropout in (0.0, DROPOUT):
                grown = copy.deepcopy(student)
                grown.dropout = dropout
                bench.train(f"{spread}, {optimizer}" + (", dropout" if dropout else ""), grown, task, rated)


@torch.no_grad()
def distinct_units(model: DropoutMlp, task: Task) -> int:
    """Count the hidden units that respond to validation inputs in a way of their own.

    Two units respond alike if the correlation of their activations is above 0.999. Units that never respond do not
    count.
    """
    layers = zip(*(model.eval().hidden_units(inputs) for inputs, _ in task.valid), strict=True)
    count = 0
    for pieces in layers:
        units = torch.cat(pieces).double().T
        units = functional.normalize((units - units.mean(1, keepdim=True))[units.std(1) > 0])
        alike = units @ units.T > 0.999
        # A unit is new if no earlier one responds alike.
        count += int((~alike.tril(-1).any(1)).sum())
    return count


# --- transformers -------------------------------------------------------------------------------------


def language(bench: Bench) -> None:
    """A transformer on Python source, with 1.5 times the heads and hidden units, or twice the blocks.

    Random initialization gets the compute of teacher and student together.
    """
    task, schedule = data.python_source(TRANSFORMERS[bench.setting].context), bench.sizes.text
    teacher = bench.new(transformer)
    bench.train(TEACHER, teacher, task, schedule)
    before = bench.curves[-1].step_flops * schedule.steps
    growths = {
        "wider": ({"width": 1.5}, ["widen", "--factor", "1.5", "--only", "ffn", "--only", "heads"]),
        "deeper": ({"copies": 1}, ["deepen", "--depth", "2x"]),
    }
    for shape, (arguments, command) in growths.items():
        student, scratch = bench.new(transformer, **arguments), bench.new(transformer, **arguments)
        bench.grow(teacher, student, task, command, exact=True)
        for divisor in (1, 10):
            bench.train(at(NET2NET, divisor), copy.deepcopy(student), task, at_rate(schedule, divisor), shape)
        steps = schedule.steps + round(before / bench.curves[-1].step_flops)
        bench.train(RANDOM_INIT, scratch, task, dataclasses.replace(schedule, steps=steps), shape)


EXPERIMENTS: Mapping[str, Callable[[Bench], None]] = {
    "figure4": figure4,
    "figures5and6": figures5and6,
    "transformer": language,
    "symmetry": symmetry,
}


def run(experiment: str, setting: str, seed: int, device: str = "cpu") -> Bench:
    """Run one experiment with one seed; `experiment` is a key of `EXPERIMENTS`, `setting` of `SETTINGS`."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(experiment, setting, seed, device, Path(folder))
        EXPERIMENTS[experiment](bench)
    return bench
