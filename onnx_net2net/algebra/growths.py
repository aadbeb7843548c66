"""What is asked of a weight that grows: how each axis does, and how new values are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_net2net.algebra.maps import NEVER, Map


@dataclass(frozen=True)
class AxisGrowth:
    """How one axis of a weight grows.

    Attributes:
        map: The map of the axis.
        reads: The weight sums over the axis, so that copies are weighed; else it makes the axis.
        spread: Whether copies may be weighed unevenly: all copies of one unit are summed together.
        silent: Whether new units are still zero where this weight reads them, so that its values for them may be
            random.
        scale: Reads what a later node multiplies the units by, so that padding holds the mean of the products.
        shares: float64 [q], what gradients of the units are multiplied by, where that does not follow from `reads`:
            the axis also has copies that another weight weighs.
        parted: Whether copies that the weight makes differ, by parts of it that add up to nothing.
        ranks: int64 [q], for experts that are cut into parts: which part of its expert each unit is.
        places: int64 [parts, q], for the units inside of such experts: which of them each part has.
    """

    map: Map
    reads: bool = False
    spread: bool = True
    silent: bool = False
    scale: Callable[[], np.ndarray] | None = None
    shares: np.ndarray | None = None
    parted: bool = False
    ranks: np.ndarray | None = None
    places: np.ndarray | None = None

    @property
    def learned(self) -> np.ndarray:
        """What gradients of the units are multiplied by: the shares that others weigh the copies by."""
        if self.shares is not None:
            return self.shares
        return np.ones(self.map.new) if self.reads else self.map.weight

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for axes that grow a weight in the same way."""
        arrays = (self.map.index, self.map.kind, *((self.map.weight,) if self.reads else ()))
        arrays += tuple(array for array in (self.ranks, self.places) if array is not None)
        spread = self.spread and self.map.is_even  # other shares are what they are
        return self.reads, spread, self.silent, self.parted, id(self.scale), *(array.tobytes() for array in arrays)


@dataclass(frozen=True)
class Style:
    """How new values are drawn.

    Attributes:
        seed: Seed of every random draw; each tensor draws from a stream of its own.
        spread: Standard deviation, relative to each weight, of what is added to one copy's share of it and subtracted
            from another's, so that copies learn different things. Exact (growth-math, N of section 1): no share
            is much larger than the weight, what is zero stays zero, and whole weights get shares exact in binary.
        noise: Standard deviation, relative to the tensor's, of noise on the incoming weights of all but the first
            copy (paper, section 2.3). Not exact.
        prior: The probability at which new classes start.
    """

    seed: int = 0
    spread: float = 0.3
    noise: float = 0.0
    prior: float = 0.01

    @property
    def logit(self) -> float:
        """The logit at which a new class starts."""
        return float(np.log(self.prior / (1 - self.prior))) if self.prior else NEVER


Filler = Literal["own", "copy", "zero", "size", "bias", "never", "below"]
"""What a weight has for units that are no copies: values of their own, those of a copy (where it scales units one by
one), zero (the shift of a normaliser), its root mean square (where `AxisGrowth.scale` reads it), or the logit of the
prior (where it is the bias of new classes). Copies of experts have a bias that rules them out: a logit that is never
chosen, or what lies by more than 1 below all others (where it is added to probabilities)."""
