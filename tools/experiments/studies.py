"""The studies: which network is grown into which, and with how much compute."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_models import Mlp

from experiments import data, growth
from experiments.data import GLYPH_SIZE, GLYPHS, Task
from experiments.networks import PAIR_END, glyph_inception, transformer

Commands = Callable[[nn.Module, nn.Module], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and its data.

    Attributes:
        name: What it is called.
        build: Makes it with random weights.
        task: Its data.
        batch: Examples in a minibatch.
        rate: The rate of Adam around which to look for the best.
    """

    name: str
    build: Callable[[], nn.Module]
    task: Callable[[], Task]
    batch: int
    rate: float

    @functools.cached_property
    def step_flops(self) -> int:
        """Floating-point operations of a training step, the backward pass as two forward passes."""
        # Only this way of attention is counted on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.build().eval()(self.task().example[:1])
        return 3 * self.batch * counter.get_total_flops()


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to grow.

    Attributes:
        name: The arm.
        share: Part of the compute before growth.
        options: More options of the command that grows.
        annealed: Whether the teacher's rate has decayed.
        moments: Whether the state of the optimizer is carried over.
        warmup: Part of the student's steps.
        by_teacher: The student's rate by the teacher's; otherwise it is tuned.
    """

    name: str
    share: float = 1 / 3
    options: tuple[str, ...] = ()
    annealed: bool = False
    moments: bool = False
    warmup: float = 0.05
    by_teacher: float | None = None


GROWN = Variant("grown")
EARLY, LATE = Variant("grown early", share=1 / 6), Variant("grown late", share=1 / 2)
ANNEALED = Variant("annealed teacher", annealed=True)
TENTH = Variant("a tenth of the teacher's rate", by_teacher=0.1)
NO_WARMUP = Variant("no warmup", warmup=0.0)
TIMES = (EARLY, LATE, ANNEALED)
MAPS = (
    Variant("spread 1", options=("--spread", "1")),
    Variant("even split", options=("--spread", "0")),
    Variant("noise", options=("--spread", "0", "--noise", "0.05")),
    Variant("zero_out", options=("--map", "zero_out")),
    Variant("random pad", options=("--map", "random_pad")),
)
LATE_SPREAD = Variant("grown late, spread 1", share=1 / 2, options=("--spread", "1"))
OTHERS = (TENTH, NO_WARMUP, Variant("moments, no warmup", moments=True, warmup=0.0))


@dataclasses.dataclass(frozen=True)
class Study:
    """One growth, and what it is compared with.

    Attributes:
        name: What it is called.
        small: The network that is grown.
        large: The network that it becomes.
        commands: What grows the file of the one into that of the other.
        budgets: All compute, in steps of the small network.
        longer: Budgets for the large network from scratch alone, to see how much it needs.
        variants: Other ways to grow.
        varied: Number of the budget that they have.
    """

    name: str
    small: Network
    large: Network
    commands: Commands
    budgets: tuple[int, ...]
    longer: tuple[int, ...]
    variants: tuple[Variant, ...] = ()
    varied: int = 2

    @property
    def ratio(self) -> float:
        """Cost of a step of the small network by that of a step of the large one."""
        return self.small.step_flops / self.large.step_flops

    @property
    def file(self) -> str:
        """What its files are called."""
        return self.name.replace(",", "").replace(" ", "_")

    def scaled(self, scale: float) -> Study:
        """Return the same with other budgets."""
        budgets, longer = (tuple(max(20, round(one * scale)) for one in steps) for steps in (self.budgets, self.longer))
        return dataclasses.replace(self, budgets=budgets, longer=longer)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of everything.

    Attributes:
        studies: In the order in which they are run.
        seeds: How many times everything is repeated.
        trials: Seeds by which rates are chosen.
    """

    studies: tuple[Study, ...]
    seeds: int
    trials: tuple[int, ...]


def fixed(*commands: Sequence[str]) -> Commands:
    """Write the same commands for any networks."""
    return lambda small, large: [list(command) for command in commands]


def widen(small: nn.Module, large: nn.Module) -> list[list[str]]:
    """Write the command that makes every layer of `small` as wide as that of `large`."""
    sizes = {name: _features(layer) for name, layer in small.named_modules() if _features(layer)}
    command = ["widen"]
    for name, layer in large.named_modules():
        if name in sizes and _features(layer) != sizes[name]:
            command += ["--set", f"{name}={_features(layer)}"]
    return [command]


def _features(layer: nn.Module) -> int:
    return getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0)


def deepen(pairs: int) -> list[str]:
    """Write the command that inserts pairs of convolutions behind the pair of every Inception module."""
    where = ["--after", f"*.{PAIR_END}.conv", "--pairs", str(pairs)]
    return ["deepen", *where, "--calibrate", growth.CALIBRATION]


# --- the networks ---------------------------------------------------------------------------------------------


def _transformer(stream: int, blocks: int, context: int, head_dim: int, batch: int, rate: float) -> Network:
    return Network(
        f"transformer {stream} x {blocks}",
        lambda: transformer(stream, blocks, context, head_dim),
        lambda: data.python_source(context),
        batch,
        rate,
    )


def _inception(setting: str, name: str, width: float, pairs: int, images: int, batch: int) -> Network:
    return Network(
        f"Inception-BN {name}",
        lambda: glyph_inception(setting, width, pairs),
        lambda: data.glyphs(images),
        batch,
        1e-2,
    )


def _mlp(features: int) -> Network:
    return Network(
        f"MLP {features}, {features}",
        lambda: Mlp((features, features), GLYPH_SIZE**2, len(GLYPHS)),
        lambda: data.glyphs(24_000),
        64,
        4e-3,
    )


def _small() -> Setting:
    lm = functools.partial(_transformer, context=64, head_dim=8, batch=8)
    lm16, lm32, lm64, deep32 = lm(16, 2, rate=1.6e-2), lm(32, 2, rate=8e-3), lm(64, 2, rate=4e-3), lm(32, 4, rate=4e-3)
    inception = functools.partial(_inception, "small", images=24_000, batch=64)
    narrow, standard = inception("narrow", math.sqrt(0.3), 0), inception("standard", 1.0, 0)
    wide, pairs2, pairs4 = (
        inception("wide", math.sqrt(2), 0),
        inception("2 pairs", 1.0, 2),
        inception("4 pairs", 1.0, 4),
    )
    budgets, longer = (3200, 4800, 7200, 10_800), (16_200,)
    depth, images = (500, 800, 1300, 2100, 3100), (500, 750, 1100, 1600)
    return Setting(
        (
            Study("width 4x", lm16, lm64, fixed(["widen", "--factor", "4", "--for", "torch"]), budgets, longer,
                  (*TIMES, *OTHERS, *MAPS)),
            Study("width 2x", lm16, lm32, fixed(["widen", "--factor", "2", "--for", "torch"]),
                  (3200, 4500, *budgets[1:]), longer, (LATE, MAPS[0], LATE_SPREAD), varied=1),
            Study("depth 2x", lm32, deep32, fixed(["deepen", "--depth", "2x"]), depth, (4600,), TIMES,
                  varied=4),
            Study("figure 4", narrow, standard, widen, images, (2400,), (ANNEALED, TENTH, MAPS[-1])),
            Study("figure 5", standard, pairs2, fixed(deepen(2)), images[:3], (1600, 2400)),
            Study("figure 6, deeper", standard, pairs4, fixed(deepen(4)), images[:3], (1600, 2400)),
            Study("figure 6, wider", standard, wide, widen, images[:3], (1600,)),
            Study("wider and deeper", lm16, deep32,
                  fixed(["widen", "--factor", "2", "--for", "torch"], ["deepen", "--depth", "2x"]), budgets, longer),
            Study("MLP", _mlp(16), _mlp(64), widen, (500, 1000, 2000, 4000), (6000,), (*TIMES, *OTHERS, *MAPS)),
        ),
        seeds=5,
        trials=(100,),
    )  # fmt: skip


def _large() -> Setting:
    lm = functools.partial(_transformer, context=256, head_dim=32, batch=64)
    lm128, lm512, deep512 = lm(128, 6, rate=2e-3), lm(512, 6, rate=5e-4), lm(512, 12, rate=2.5e-4)
    inception = functools.partial(_inception, "large", images=200_000, batch=256)
    narrow, standard, pairs2 = (inception("narrow", math.sqrt(0.3), 0), inception("standard", 1.0, 0),
                                inception("2 pairs", 1.0, 2))  # fmt: skip
    images = (1000, 1500, 2200, 3200)
    return Setting(
        (
            Study("width 4x", lm128, lm512, fixed(["widen", "--factor", "4", "--for", "torch"]),
                  (3000, 4500, 6500, 9500), (14_000,), TIMES),
            Study("depth 2x", lm512, deep512, fixed(["deepen", "--depth", "2x"]), (400, 600, 900, 1400), (2100,)),
            Study("figure 4", narrow, standard, widen, images, (4800,)),
            Study("figure 5", standard, pairs2, fixed(deepen(2)), images, (4800,)),
        ),
        seeds=2,
        trials=(100,),
    )  # fmt: skip


SETTINGS: Mapping[str, Callable[[], Setting]] = {"small": _small, "large": _large}
