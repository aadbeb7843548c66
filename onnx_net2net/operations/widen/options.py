"""The options of `widen`: they are checked here, and written into records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_net2net.algebra.maps import MAP_KINDS, MapKind
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis.loadable import check_framework
from onnx_net2net.errors import BadInputError

HOWS = ("split", "topk", "lift", "granular")
"""How a router treats copies of experts: it sees one at a time, or all together, or none until a balancer raises it.

Or they are no copies but parts, with a part of the units of their expert each, which are chosen together."""


@dataclass(frozen=True)
class WidenOptions:
    """The options of `onnx_net2net.widen`; its arguments explain them.

    Raises:
        BadInputError: An option makes no sense.
    """

    factor: float | None = None
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    multiple_of: int = 1
    map: MapKind = "replicate"
    spread: float = 0.3
    noise: float = 0.0
    seed: int = 0
    prior: float | None = None
    fill_norms: bool | None = None
    framework: str | None = None
    keep_numbers: bool = False
    how: str = "split"
    scale_weights: bool = False
    loads: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spread, noise = (math.isfinite(value) and value >= 0 for value in (self.spread, self.noise))
        checks = [
            (self.factor is None or (math.isfinite(self.factor) and self.factor >= 1),
             f"the factor must be a number of at least 1, not {self.factor}"),
            (self.seed >= 0, f"the seed must be at least 0, not {self.seed}"),
            (self.multiple_of >= 1, f"multiple_of must be at least 1, not {self.multiple_of}"),
            (self.map in MAP_KINDS, f"there is no map {self.map!r}; there are {', '.join(MAP_KINDS)}"),
            (self.prior is None or 0 <= self.prior < 1, f"the prior must be a probability below 1, not {self.prior}"),
            (self.how in HOWS, f"there is no way {self.how!r} for experts; there are {', '.join(HOWS)}"),
            (spread, f"spread must be a number of at least 0, not {self.spread}"),
            (noise, f"noise must be a number of at least 0, not {self.noise}"),
        ]  # fmt: skip
        for fits, text in checks:
            if not fits:
                raise BadInputError(text)
        check_framework(self.framework)
        if self.framework and self.fill_norms:
            raise BadInputError(f"a class of {self.framework} has no nodes around its norms; leave out --fill-norms")
        if self.keep_numbers and self.framework is None:
            raise BadInputError("--keep-numbers is about the numbers of a class; give --for too")

    @property
    def recorded(self) -> dict[str, Any]:
        """Return the options as a record has them."""
        later = {"how": "split", "scale_weights": False, "loads": {}}  # records had no such options
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    @property
    def style(self) -> Style:
        """How new values are drawn."""
        prior = {} if self.prior is None else {"prior": self.prior}
        return Style(self.seed, self.spread, self.noise, **prior)

    @property
    def is_exact(self) -> bool:
        """Whether the student computes the teacher's function."""
        return self.map != "random_pad" and not self.noise


def target_size(pattern: str, text: int | str, size: int) -> int:
    """Read a size: units (96), how many more (+4) or a multiplier (2x)."""
    try:
        if isinstance(text, str) and text.strip().startswith("+"):
            return size + int(text.strip()[1:])
        if isinstance(text, str) and text.strip().endswith("x"):
            wanted = float(text.strip()[:-1]) * size
            if not math.isfinite(wanted):
                raise ValueError
            return round(wanted)
        return int(text)
    except (ValueError, OverflowError):
        raise BadInputError(f"{pattern}={text}: not a size (96), more units (+4) or a multiplier (1.5x)") from None
