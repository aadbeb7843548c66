"""Dims that must all grow by the same factor, joined like sets (union-find)."""

from __future__ import annotations


class Ratio:
    """Dims that share a ratio must all grow by the same whole factor.

    Attributes:
        members: How many dims there are that still stand.
        frozen: Why one of them cannot grow, so that none can, or None.
    """

    __slots__ = ("_to", "frozen", "members")

    def __init__(self) -> None:
        self._to: Ratio | None = None
        self.members = 0
        self.frozen: str | None = None

    @property
    def shared(self) -> bool:
        """Whether there is more than one such dim."""
        return self.root().members > 1

    def root(self) -> Ratio:
        """Return the representative of the class."""
        root = self
        while root._to is not None:
            root = root._to
        return root

    def join(self, other: Ratio) -> None:
        """Make both one class."""
        mine, its = self.root(), other.root()
        if mine is not its:
            mine._to = its
            its.members += mine.members
            its.frozen = its.frozen or mine.frozen
