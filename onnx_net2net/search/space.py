"""The space of a search, read from YAML: what may vary among networks that are grown from one teacher.

A *candidate* has a choice for each size (`widen`), a choice for each number of copies (`repeat`), and a value for each
number that the training command takes (`train`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.search.cost import Cost
from onnx_net2net.search.folders import read_yaml, take
from onnx_net2net.search.growing import Step
from onnx_net2net.search.training import PLACES, is_number

Candidate = Mapping[str, Any]
"""The choice of each variable, by its name."""

_COSTS = {"parameters": "parameters", "macs": "macs", "latency_ms": "latency"}
"""What a constraint is called, and the field of `Cost`."""


@dataclass(frozen=True)
class Variable:
    """Something that varies.

    Attributes:
        name: Its name in studies and tables.
        kind: "widen", "repeat" or "train".
        key: The dim, pattern or role; the group of blocks; or the place in the training command.
        choices: Its possible values, in ascending order; empty if it is a number in a range.
        low: The lowest value of a range.
        high: The highest value of a range.
        log: Whether values are drawn on a logarithmic scale.
    """

    name: str
    kind: Literal["widen", "repeat", "train"]
    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class Space:
    """The variables of a search, and the limits of its candidates.

    Attributes:
        variables: What varies.
        limits: The upper limit of each cost: a number, or a text like "3x" for a multiple of the teacher's.
    """

    variables: tuple[Variable, ...]
    limits: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers that the training command takes."""
        return tuple(variable.key for variable in self.variables if variable.kind == "train")

    @property
    def size(self) -> float:
        """How many candidates there are."""
        return math.prod(len(variable.choices) or math.inf for variable in self.variables)

    @property
    def is_timed(self) -> bool:
        """Whether networks have to be run."""
        return "latency_ms" in self.limits

    def candidates(self) -> Iterator[Candidate]:
        """Yield all candidates of a space without ranges."""
        names = [variable.name for variable in self.variables]
        for choice in itertools.product(*(variable.choices for variable in self.variables)):
            yield dict(zip(names, choice, strict=True))

    def steps(self, candidate: Candidate, since: Candidate | None = None) -> list[Step]:
        """Return how a network grows to a candidate.

        Args:
            candidate: What it becomes; no smaller than `since`.
            since: The candidate that it is; the teacher if None.
        """
        sizes: dict[str, int | str] = {}
        repeats: list[str] = []
        for variable in self.variables:
            old = since[variable.name] if since else None
            new = candidate.get(variable.name)
            if variable.kind == "widen" and new != old:
                size = _growth(new, old)
                sizes |= {variable.key: size} if size != "1x" else {}
            elif variable.kind == "repeat" and (more := (new or 0) - (old or 0)):
                repeats.append(f"{variable.key}=+{more}")
        widen = [{"operation": "widen", "sizes": sizes}] if sizes else []
        return [*widen, *([{"operation": "deepen", "repeat": repeats}] if repeats else [])]

    def joined(self, one: Candidate, other: Candidate) -> dict[str, Any]:
        """Return the smallest architecture that both can grow to, with the numbers of the second."""
        return {
            v.name: max((one[v.name], other[v.name]), key=v.choices.index) if v.kind != "train" else other[v.name]
            for v in self.variables
        }

    def varied(self, candidate: Candidate, draw: random.Random) -> dict[str, Any]:
        """Return a candidate with other numbers near its own, and maybe one size or number of copies higher."""
        found = self.numbered(candidate, draw)
        larger = [v for v in self.variables if v.kind != "train" and found[v.name] != v.choices[-1]]
        if larger and draw.random() < 0.5:
            chosen = draw.choice(larger)
            found[chosen.name] = chosen.choices[chosen.choices.index(found[chosen.name]) + 1]
        return found

    def numbered(self, candidate: Candidate, draw: random.Random) -> dict[str, Any]:
        """Return a candidate with other numbers near its own."""
        return {v.name: _near(v, candidate[v.name], draw) if v.kind == "train" else candidate[v.name]
                for v in self.variables}  # fmt: skip

    def drawn(self, draw: random.Random) -> dict[str, Any]:
        """Return a candidate, each equally likely."""
        return {v.name: draw.choice(v.choices) if v.choices else _between(v, draw.random()) for v in self.variables}

    def excess(self, cost: Cost, teacher: Cost) -> str:
        """Say which limit a network exceeds; empty if it exceeds none."""
        for name, limit in self.limits.items():
            field_name = _COSTS[name]
            value, base = getattr(cost, field_name), getattr(teacher, field_name)
            most = float(limit[:-1]) * base if isinstance(limit, str) else limit
            if value > most:
                return f"{name} {value:,.4g} is above {most:,.4g}"
        return ""


def read_space(path: Path) -> Space:
    """Read a space from a YAML file.

    Raises:
        BadInputError: If something in it is not understood.
    """
    given = take(read_yaml(path, "space"), str(path), widen=(dict, {}), repeat=(dict, {}), train=(dict, {}),
                 constraints=(dict, {}))  # fmt: skip
    variables: list[Variable] = []
    for name, choices in given["widen"].items():
        where = f"{path}, widen, {name}"
        variables.append(Variable(str(name), "widen", str(name), _sorted(choices, _size, where)))
    for name, choices in given["repeat"].items():
        where = f"{path}, repeat, {name}"
        variables.append(Variable(f"{name} copies", "repeat", str(name), _sorted(choices, _copies, where)))
    for name, choices in given["train"].items():
        variables.append(_number(str(name), choices, f"{path}, train, {name}"))
    if not variables:
        raise BadInputError(f"{path} lets nothing vary; it may have widen, repeat and train")
    limits = {}
    for name, limit in given["constraints"].items():
        if name not in _COSTS:
            raise BadInputError(f"{path}, constraints has no {name!r}; it may have {', '.join(_COSTS)}")
        limits[name] = _limit(limit, f"{path}, constraints, {name}")
    return Space(tuple(variables), limits)


def _sorted(choices: Any, read: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(choices, list) or not choices:
        raise BadInputError(f"{where} has to be a list of choices, not {one_line(choices, 60)}")
    found = [read(choice, where) for choice in choices]
    if len({type(choice) for choice in found}) > 1:
        raise BadInputError(f"{where} has to hold only numbers of units or only multiples")
    return tuple(sorted(dict.fromkeys(found), key=lambda choice: _factor(choice) or choice))


def _size(choice: Any, where: str) -> int | str:
    """Return a number of units, or a multiple like 1.5x."""
    if isinstance(choice, int) and not isinstance(choice, bool) and choice > 0:
        return choice
    factor = _factor(choice)
    if factor is None or not 1 <= factor < math.inf:
        raise BadInputError(f"{where}: {one_line(choice, 40)} is neither a number of units nor a multiple like 1.5x")
    return f"{factor:g}x"


def _copies(choice: Any, where: str) -> int:
    text = str(choice).removeprefix("+")
    if isinstance(choice, bool) or not text.isdigit():
        raise BadInputError(f"{where}: {one_line(choice, 40)} is no number of copies like +2")
    return int(text)


def _factor(choice: Any) -> float | None:
    """Return what a multiple like 1.5x multiplies by; None for what is none."""
    if not isinstance(choice, str) or not choice.endswith("x"):
        return None
    try:
        return float(choice[:-1])
    except ValueError:
        return None


def _number(name: str, given: Any, where: str) -> Variable:
    if name in PLACES:
        raise BadInputError(f"{where}: {{{name}}} stands for {PLACES[name]}; choose another name")
    if isinstance(given, list) and given and all(is_number(value) or isinstance(value, str) for value in given):
        return Variable(name, "train", name, tuple(dict.fromkeys(given)))
    if not isinstance(given, Mapping):
        raise BadInputError(f"{where} has to be a list, or low and high")
    number = (int, float)
    found = take(given, where, low=(number, ...), high=(number, ...), log=(bool, False))
    if not found["low"] < found["high"] or (found["log"] and found["low"] <= 0):
        raise BadInputError(f"{where}: low has to be below high, and above 0 if log")
    return Variable(name, "train", name, (), float(found["low"]), float(found["high"]), found["log"])


def _limit(limit: Any, where: str) -> float | str:
    if _factor(limit) is not None or (is_number(limit) and limit > 0):
        found: float | str = limit
        return found
    try:
        return float(limit)  # YAML takes 2e8 for text
    except (TypeError, ValueError):
        raise BadInputError(f"{where} is a number or a multiple of the teacher's like 3x, not {limit!r}") from None


def _growth(new: Any, old: Any) -> int | str:
    """Return the size to ask for where a dim is of one choice and has to become another."""
    after, before = _factor(new), _factor(old) if old is not None else 1.0
    return new if after is None or before is None else f"{after / before!r}x".replace(".0x", "x")


def _near(variable: Variable, value: Any, draw: random.Random) -> Any:
    """Return a value near another one: a fifth lower or a quarter higher, or the next choice."""
    if variable.choices:
        at = variable.choices.index(value) + draw.choice((-1, 1))
        return variable.choices[min(max(at, 0), len(variable.choices) - 1)]
    return min(max(value * draw.choice((0.8, 1.25)), variable.low), variable.high)


def _between(variable: Variable, share: float) -> float:
    if variable.log:
        return math.exp(math.log(variable.low) + share * math.log(variable.high / variable.low))
    return variable.low + share * (variable.high - variable.low)
