"""Reasons for which axes are fixed."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """Kinds of reasons for which axes are fixed, as far as somebody asks for them."""

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
        """Give what makes the reason again in another process: a pickled ``str`` comes back without attributes."""
        return Reason, (str(self), self.kind)


def kind_of(reason: str | None) -> Kind:
    """Return the kind of a reason; a text alone is of no special one."""
    return reason.kind if isinstance(reason, Reason) else Kind.OTHER


KERNEL = Reason("works along this axis", Kind.ROUTINE)
LISTED = Reason("is a list of sizes or places", Kind.ROUTINE)
UNREAD = Reason("reads this operand as it is", Kind.ROUTINE)
UNTYPED = Reason("has an operand whose shape could not be inferred", Kind.UNTYPED)
LOOKED_UP = "looks entries up along this axis"
RANKED = "ranks the entries along this axis"
