"""The language of rules: an operator's axes in the style of einops.

    Conv   "n (g i) *x, (g o) i *k, (g o) -> n (g o) *y"

A letter is a dim, `(a b)` a product of dims (row-major), and `*x` any number of axes. A `~` after a term marks an axis
that may be absent or of size 1, and is then broadcast. Inputs that a node leaves out are skipped. The same letter means
the same units everywhere. A letter in two inputs and in no output is summed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias, TypeVar


@dataclass(frozen=True)
class Term:
    """One axis of a signature, or with a star any number of axes.

    Attributes:
        names: The letters whose product the axis is; a single one for a plain axis.
        star: Whether the term stands for any number of axes.
        broadcast: Whether the axis may be absent or of size 1.
    """

    names: tuple[str, ...]
    star: bool = False
    broadcast: bool = False


Operand = tuple[Term, ...]
T = TypeVar("T")
Aligned: TypeAlias = "list[tuple[Term, int, tuple[T, ...]]] | None"


@dataclass(frozen=True)
class Signature:
    """The axes of each input and output of an operator."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    @cached_property
    def _aligned(self) -> dict[tuple[int, int], Aligned[int]]:
        return {}

    def aligned(self, index: int, rank: int) -> Aligned[int]:
        """Return how the terms of an operand (inputs, then outputs) lie on so many axes, by their numbers."""
        if (index, rank) not in self._aligned:
            self._aligned[index, rank] = pair_terms((*self.inputs, *self.outputs)[index], range(rank))
        return self._aligned[index, rank]

    @cached_property
    def contracted(self) -> dict[str, list[int]]:
        """Return the letters in two or more inputs and no output, each with the inputs that have it."""
        kept = {name for operand in self.outputs for term in operand for name in term.names}
        holders: dict[str, list[int]] = {}
        for index, operand in enumerate(self.inputs):
            for name in dict.fromkeys(name for term in operand for name in term.names):
                holders.setdefault(name, []).append(index)
        return {name: where for name, where in holders.items() if name not in kept and len(where) > 1}


@cache
def parse(text: str) -> Signature:
    """Parse a signature.

    Raises:
        ValueError: The text is not a signature; the message quotes it.
    """
    try:
        left, right = text.split("->")
        return Signature(_operands(left), _operands(right))
    except ValueError as error:
        raise ValueError(f"not a signature: {text!r} ({error})") from None


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(_operand(part) for part in text.split(","))


def _operand(text: str) -> Operand:
    terms: list[Term] = []
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    while words:
        word = words.pop(0)
        if word == "(":
            close = words.index(")")
            terms.append(Term(tuple(_name(inner) for inner in words[:close])))
            del words[: close + 1]
        else:
            terms.append(Term((_name(word.strip("*~")),), star=word[0] == "*", broadcast=word[-1] == "~"))
    if sum(term.star for term in terms) > 1:
        raise ValueError(f"more than one * in {text.strip()!r}")
    return tuple(terms)


def _name(word: str) -> str:
    if not word.isidentifier():
        raise ValueError(f"{word!r} is not a name")
    return word


def pair_terms(operand: Operand, axes: Sequence[T]) -> Aligned[T]:
    """Pair the terms of an operand with axes (or sizes): (term, position, run); None if the rank does not fit."""
    terms = list(operand)
    stars = [i for i, term in enumerate(terms) if term.star]
    while not stars and len(terms) > len(axes) and terms[0].broadcast:
        terms.pop(0)
    spare = len(axes) - len(terms) + (1 if stars else 0)
    if spare < 0 or (not stars and spare):
        return None
    matched, position = [], 0
    for term in terms:
        width = spare if term.star else 1
        matched.append((term, position, tuple(axes[position : position + width])))
        position += width
    return matched
