"""Data of the experiments, none of it downloaded: glyphs of installed fonts, Python source.

Everything is made from a fixed seed, so that all arms of an experiment see the same images and text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import string
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SEED = 2015
GLYPHS = string.digits + string.ascii_letters
GLYPH_SIZE = 20
# Fonts that matplotlib ships, and so every machine that can plot the results has; the ones with other symbols in
# the places of letters are left out.
FONTS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf", "cm[brst]?10.ttf", "cmb10.ttf", "cmr10.ttf")
NOT_LETTERS = ("Display", "cmsy10")
NOISE = 0.1
BYTES = 256

Batches: TypeAlias = Callable[[int, torch.Generator], Iterator[tuple[Tensor, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is trained for: to tell the class of each input ``[n]``, or of each place in it ``[n, length]``.

    Attributes:
        batches: Gives training inputs and classes without end, in minibatches of some size, chosen by a generator.
        valid: Validation inputs and classes in batches.
        example: A small batch, to export by and to calibrate normalisations on.
    """

    batches: Batches
    valid: Sequence[tuple[Tensor, Tensor]]
    example: Tensor


class Images(NamedTuple):
    """Images ``[n, 1, height, width]`` and their classes ``[n]``."""

    inputs: Tensor
    classes: Tensor

    def part(self, start: int, stop: int | None = None) -> Images:
        """Return some of them."""
        return Images(self.inputs[start:stop], self.classes[start:stop])


def at_random(train: Images) -> Batches:
    """Draw every minibatch from all images."""

    def batches(batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            picked = torch.randint(len(train.classes), (batch,), generator=generator)
            yield train.inputs[picked], train.classes[picked]

    return batches


def in_passes(train: Images) -> Batches:
    """Go through all images again and again, each time in another order; an incomplete last minibatch is left out."""

    def batches(batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(train.classes), generator=generator)
            for picked in order[: len(order) // batch * batch].split(batch):
                yield train.inputs[picked], train.classes[picked]

    return batches


def images(batches: Callable[[Images], Batches], train: Images, valid: Images) -> Task:
    """Make a task of images.

    Args:
        batches: `at_random` or `in_passes`.
        train: To train on.
        valid: To evaluate on.
    """
    return Task(batches(train), list(zip(*(part.split(500) for part in valid), strict=True)), train.inputs[:256])


@functools.cache
def glyphs(train: int, valid: int = 1000) -> Task:
    """Classify images of 62 characters in some 20 fonts, each distorted in its own way.

    Args:
        train: Number of training images.
        valid: Number of validation images: the same fonts, other distortions.

    Returns:
        Inputs ``[n, 1, 20, 20]``, about 0 to 1; the classes are 0-9, a-z, A-Z.
    """
    drawn = glyph_images(train + valid)
    return images(at_random, drawn.part(0, train), drawn.part(train))


def glyph_images(count: int) -> Images:
    """Draw the first images of `glyphs`, which are alike: any of them can be for training and any for validation."""
    generator = torch.Generator().manual_seed(SEED)
    rendered = _rendered()
    fonts, classes = rendered.shape[:2]
    font = torch.randint(fonts, (count,), generator=generator)
    label = torch.randint(classes, (count,), generator=generator)
    pieces = zip(font.split(2000), label.split(2000), strict=True)
    return Images(torch.cat([_distorted(rendered[f, c][:, None], generator) for f, c in pieces]), label)


@functools.cache
def _rendered() -> Tensor:
    """Draw every character in every font: ``[fonts, characters, 20, 20]``, 0 to 1."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted({file for pattern in FONTS for file in folder.glob(pattern)})
    pages = []
    for file in files:
        if any(part in file.name for part in NOT_LETTERS):
            continue
        font = ImageFont.truetype(str(file), 17)
        for character in GLYPHS:
            page = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
            # A common baseline, so that c and C, s and S differ by more than a scale.
            ImageDraw.Draw(page).text((GLYPH_SIZE // 2, 15), character, font=font, fill=255, anchor="ms")
            pages.append(np.asarray(page, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(pages)).reshape(-1, len(GLYPHS), GLYPH_SIZE, GLYPH_SIZE)


def _distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear, shift and dim each image, and add noise: ``[n, 1, 20, 20]`` to the same."""
    angle, zoom, stretch, shear, right, down, ink = torch.empty(7, len(images)).uniform_(-1, 1, generator=generator)
    angle = angle * math.pi / 12
    # affine_grid asks where in the source each pixel comes from: a factor above 1 shrinks the glyph.
    across, along = 1 + 0.15 * zoom + 0.1 * stretch, 1 + 0.15 * zoom - 0.1 * stretch
    cos, sin = angle.cos(), angle.sin()
    shear = 0.2 * shear
    rows = [
        across * cos,
        across * (shear * cos - sin),
        0.1 * right,
        along * sin,
        along * (shear * sin + cos),
        0.1 * down,
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return moved * (0.75 + 0.25 * ink)[:, None, None, None] + NOISE * torch.randn(images.shape, generator=generator)


@functools.cache
def python_source(context: int, megabytes: int = 4, valid: int = 300) -> Task:
    """Tell the next byte of Python source: that of the standard library of the interpreter that runs.

    Modules lie in the order of a fixed shuffle; every tenth is for validation.

    Args:
        context: Bytes that the model sees, at most.
        megabytes: How much to read.
        valid: Number of validation pieces of that length.

    Returns:
        Inputs and classes ``[n, context]``.
    """
    train, held_out = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in _modules(megabytes * 1_000_000))

    def pieces(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        piece = text[starts[:, None] + torch.arange(context + 1)].long()
        return piece[:, :-1], piece[:, 1:]

    def batches(batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield pieces(train, torch.randint(len(train) - context, (batch,), generator=generator))

    starts = torch.linspace(0, len(held_out) - context - 1, valid).long()
    return Task(batches, [pieces(held_out, part) for part in starts.split(50)], pieces(train, torch.arange(2))[0])


def _modules(size: int) -> tuple[bytes, bytes]:
    """Read about `size` bytes of source for training, and a tenth of that for validation."""
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idlelib", "site-packages"}
    files = sorted(file for file in folder.rglob("*.py") if not left_out & set(file.relative_to(folder).parts))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, index in enumerate(np.random.default_rng(SEED).permutation(len(files))):
        parts[number % 10 == 0].append(files[index].read_bytes())
        if sum(map(len, parts[0])) > size:
            break
    return b"".join(parts[0]), b"".join(parts[1])
