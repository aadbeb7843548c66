"""Reasons why axes are fixed: texts for people, each with a kind for code."""

from __future__ import annotations

from enum import Enum


class ReasonKind(Enum):
    """Kinds of reasons why axes are fixed, as far as code distinguishes them."""

    ROUTINE = "as in every network: kernels and positions, not channels"
    UNTYPED = "a shape could not be inferred"
    OTHER = "any other"


class Reason(str):
    """Why an axis is fixed: a text for people, with a kind for code."""

    kind: ReasonKind

    def __new__(cls, text: str, kind: ReasonKind) -> Reason:
        """Give a text its kind."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __reduce__(self) -> tuple[type[Reason], tuple[str, ReasonKind]]:
        """Return what pickle needs: without it a ``str`` comes back without its attribute."""
        return Reason, (str(self), self.kind)


def kind_of(reason: str | None) -> ReasonKind:
    """Return the kind of a reason; that of a plain text is OTHER."""
    return reason.kind if isinstance(reason, Reason) else ReasonKind.OTHER


KERNEL = Reason("works along this axis", ReasonKind.ROUTINE)
LISTED = Reason("is a list of sizes or places", ReasonKind.ROUTINE)
UNREAD = Reason("reads this operand as it is", ReasonKind.ROUTINE)
UNTYPED = Reason("has an operand whose shape could not be inferred", ReasonKind.UNTYPED)
LOOKED_UP = "looks entries up along this axis"
RANKED = "ranks the entries along this axis"
