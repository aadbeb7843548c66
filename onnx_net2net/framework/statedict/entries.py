"""The entries of a grown state dict, and how each grew."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.weights import Held, WeightGrowth
from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.formats.stored import Stored


@dataclass(frozen=True)
class Entry:
    """An entry of the grown state dict.

    Attributes:
        name: Its name.
        relation: What it was in the teacher's graph.
        constants: The names of the constants there.
        stored: The tensor that the teacher's state dict has.
        growths: How it grows, step by step.
        note: What else there is to say, for people.
        carried: Computes the student's values; None where they grow from those of the teacher's state dict.
    """

    name: str
    relation: str
    constants: tuple[str, ...]
    stored: Stored = field(repr=False, compare=False)
    growths: tuple[WeightGrowth, ...] = field(default=(), repr=False)
    note: str = ""
    carried: Callable[[], Array] | None = field(default=None, repr=False, compare=False)

    @property
    def old(self) -> tuple[int, ...]:
        """Its shape in the teacher."""
        return self.stored.shape

    @property
    def new(self) -> tuple[int, ...]:
        """Its shape in the student."""
        return self.growths[-1].shape if self.growths else self.old

    @property
    def is_matrix(self) -> bool:
        """Whether it has at least two axes of more than one unit; exporters merge vectors of equal values."""
        return is_matrix(self.old)

    def value(self) -> Array:
        """Return its values in the student."""
        return self.carried() if self.carried else self.grow(self.stored.read())

    def tensor(self) -> Stored:
        """Return the tensor of the student's state dict."""
        return replace(self.stored, shape=self.new, read=self.value, elements=None)

    def grow(self, values: Array, held: Held = "weight") -> Array:
        """Grow an array that has an element for each of the teacher's entry.

        Args:
            values: Of the shape `old`.
            held: "weight" for values (which are divided where they are read, unevenly as `Style.spread` says),
                "gradient" for gradients and means of these (`exp_avg`, momentum: copied where values are divided,
                and divided where values are copied, by the shares of the copies), "square" for squares of gradients
                (`exp_avg_sq`). The law is m' = D^T m E^T, growth-math.md section 3.2.

        Returns:
            An array of the shape `new` and the same dtype.

        Raises:
            BadInputError: If the shape is another one.
        """
        if values.shape != self.old:
            raise BadInputError(f"{self.name} has the shape {list(self.old)}, not {list(values.shape)}")
        for growth in self.growths:
            values = growth.apply(values, zlib.crc32(self.name.encode()), held)
        return values


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether at least two axes have more than one unit."""
    return sum(size > 1 for size in shape) > 1
