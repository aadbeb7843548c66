"""Reasons why axes are fixed: texts for people, each with a kind for code."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """Kinds of reasons why axes are fixed, as far as code distinguishes them."""

    ROUTINE = "as in every network: kernels and positions, not channels"
    UNTYPED = "a shape could not be inferred"
    OTHER = "any other"


class Reason(str):
    """Why an axis is fixed: a text for people, with a kind for code."""

    kind: Kind

    def __new__(cls, text: str, kind: Kind) -> Reason:
        """Give a text its kind."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __reduce__(self) -> tuple[type[Reason], tuple[str, Kind]]:
        """Return what pickle needs: without it a ``str`` comes back without its attribute."""
        return Reason, (str(self), self.kind)


def kind_of(reason: str | None) -> Kind:
    """Return the kind of a reason; that of a plain text is OTHER."""
    return reason.kind if isinstance(reason, Reason) else Kind.OTHER


KERNEL = Reason("works along this axis", Kind.ROUTINE)
LISTED = Reason("is a list of sizes or places", Kind.ROUTINE)
UNREAD = Reason("reads this operand as it is", Kind.ROUTINE)
UNTYPED = Reason("has an operand whose shape could not be inferred", Kind.UNTYPED)
LOOKED_UP = "looks entries up along this axis"
RANKED = "ranks the entries along this axis"
