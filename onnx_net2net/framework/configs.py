"""The config of a student: the teacher's with the new sizes, found by making the class of it.

Configs give one size many names, and classes compute others. So numbers that the graph gives a meaning (heads, layers)
are set by their names, and then those numbers that bring the shapes of a class's tensors nearer to the student's, as
few as there have to be. Lists with an entry for each layer grow with the layers. Both checkpoints (`huggingface/`) and
modules in memory (`live/`) are made of what is found here.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, Protocol, TypeVar

from onnx_net2net.errors import BadInputError, RefusedError, some

Path = tuple[str | int, ...]
"""Where something stands in a config."""

Shapes = Mapping[str, tuple[int, ...]]


class Made(Protocol):
    """What a config makes: a class without weights."""

    @property
    def shapes(self) -> Shapes:
        """The shapes of all tensors of its state dict by name."""


def shapes_of(module: Any) -> Shapes:
    """Return the shapes of the tensors of a module's state dict by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


M = TypeVar("M", bound=Made)

_NO_SIZES = ("_token_id", "_id", "_ids", "version", "seed", "id2label", "label2id", "quantization_config")
"""Ends of names that are no sizes of parameters."""


_RATIOS = re.compile(r"ratio|expan|mult")
"""In names of numbers by which a class multiplies a width to make another one."""

_MOST_LISTS = 64
"""How many ways a list is changed in."""

_MOST_TRIED = 40
"""How many classes are run to find the numbers that no shape shows."""

_MOST_PAIRS = 400
"""How many pairs of changes are tried where no single one helps."""

SMALL = 8
"""Numbers up to this are as likely numbers of layers, heads or places as widths."""

_WIDTHS = ("inner", "dim", "_size", "width", "heads")
"""Ends of names of widths that a class makes of others where the config leaves them open."""


@dataclass(frozen=True)
class StudentSizes:
    """What a student's config has to say.

    Attributes:
        shapes: The shapes of its parameters by name.
        pairs: Sizes of dims and axes in the teacher, each with what it becomes.
        named: Old and new values of fields that are known by their names, as transformers calls them.
        layers: For each number of layers in the teacher, which of them each of the student's copies.
    """

    shapes: Shapes
    pairs: frozenset[tuple[int, int]]
    named: Mapping[str, tuple[int, int]]
    layers: Mapping[int, Sequence[int]]


def grown_config(
    raw: Mapping[str, Any], full: Any, sizes: StudentSizes, build: Callable[[dict[str, Any]], M],
    is_exact: Callable[[dict[str, Any], M], bool] | None = None,
) -> tuple[dict[str, Any], M]:  # fmt: skip
    """Return the config of a student, and its class without weights.

    Args:
        raw: What the teacher's config.json has.
        full: The teacher's config, with what its class adds.
        sizes: What the student needs.
        build: Makes the class of a config.
        is_exact: Tells whether the class of a config computes what the teacher does, where numbers that no shape shows
            are to be found; None where `sizes.named` has them.

    Raises:
        NoConfigError: If no config makes the class at the student's sizes.
        RefusedError: If none that does computes what the teacher does.
    """
    search = _Search(sizes, build)
    whole = full.to_dict()
    config: dict[str, Any] = copy.deepcopy(dict(raw))
    for path, value in (*_lists(whole, sizes.layers), *_named(full, whole, sizes.named)):
        _set(config, path, value)
    candidates = list(_candidates(whole, sizes.pairs))
    best, config, made = search.guess(config, whole, candidates)
    while best:
        found = search.nearest(config, best, candidates)
        if found is None:
            raise NoConfigError(search.differing(config))
        best, config, made = found
    assert made is not None
    if is_exact is None or is_exact(config, made):
        return config, made
    for changed, other in itertools.islice(search.alike(config, candidates), _MOST_TRIED):
        if is_exact(changed, other):
            return changed, other
    raise RefusedError("no config that makes the student's sizes computes what the teacher does")


Edit = tuple[Path, Any]
"""A place in a config, and what is put there."""


class NoConfigError(RefusedError):
    """No config makes the class at the student's sizes.

    Attributes:
        differing: The parameters of the student that the class nearest to it has in other shapes, and how.
    """

    def __init__(self, differing: Mapping[str, str]) -> None:
        super().__init__(f"no config of the class makes the student's sizes: {some(list(differing.values()))}")
        self.differing = differing


class _Search(Generic[M]):
    """Compares the shapes that a config makes with those that are wanted."""

    def __init__(self, sizes: StudentSizes, build: Callable[[dict[str, Any]], M]) -> None:
        self._wanted, self._build = sizes.shapes, build

    def distance(self, config: dict[str, Any]) -> tuple[int, M | None]:
        """Return how many parameters differ, and the class; all and None where it cannot be made."""
        try:
            made = self._build(config)
        except BadInputError:
            return 1 << 30, None
        shapes = made.shapes
        names = {*shapes, *self._wanted}
        return sum(shapes.get(name) != self._wanted.get(name) for name in names), made

    def guess(
        self, config: dict[str, Any], whole: Mapping[str, Any], candidates: Sequence[Edit]
    ) -> tuple[int, dict[str, Any], M | None]:
        """Change all widths at once that can become one other, if that is nearer; those that no shape shows stay."""
        best, made = self.distance(config)
        options: dict[Path, list[Any]] = {}
        for path, value in candidates:
            options.setdefault(path, []).append(value)
        wide = {path: values[0] for path, values in options.items() if len(values) == 1 and _is_wide(_get(whole, path))}
        distance, other = self.distance(_with(config, wide))
        if distance >= best:
            return best, config, made
        for path in list(wide):
            fewer = {place: value for place, value in wide.items() if place != path}
            found, without = self.distance(_with(config, fewer))
            if found <= distance:
                wide, distance, other = fewer, found, without
        return distance, _with(config, wide), other

    def nearest(
        self, config: dict[str, Any], best: int, candidates: Sequence[Edit]
    ) -> tuple[int, dict[str, Any], M] | None:
        """Return what comes nearer by one change, or else by two; None if nothing does."""
        for count in (1, 2):
            found: list[tuple[int, dict[str, Any], M]] = []
            for changed in itertools.islice(_changed(config, candidates, count), len(candidates) + _MOST_PAIRS):
                distance, made = self.distance(changed)
                if made is not None and distance < best:
                    found.append((distance, changed, made))
                if not distance:
                    break
            if found:
                return min(found, key=lambda one: one[0])
        return None

    def alike(self, config: dict[str, Any], candidates: Sequence[Edit]) -> Iterator[tuple[dict[str, Any], M]]:
        """Yield configs that make the same shapes, with their classes: by changes that no shape shows, one or two."""
        free: list[Edit] = []
        for change in candidates:
            for changed in _changed(config, [change], 1):
                distance, made = self.distance(changed)
                if made is not None and not distance:
                    free.append(change)
                    yield changed, made
        for changed in _changed(config, free, 2):
            distance, made = self.distance(changed)
            if made is not None and not distance:
                yield changed, made

    def differing(self, config: dict[str, Any]) -> dict[str, str]:
        """Return the parameters that differ, and how."""
        _, made = self.distance(config)
        shapes = made.shapes if made else {}
        names = [name for name in self._wanted if shapes.get(name) != self._wanted[name]]
        return {n: f"{n} {list(self._wanted[n])} (the class: {list(shapes.get(n, ()))})" for n in names}


def _changed(config: dict[str, Any], candidates: Sequence[Edit], count: int) -> Iterator[dict[str, Any]]:
    """Yield a config with some of its numbers changed, each time others."""
    for changes in itertools.combinations(candidates, count):
        if len({path for path, _ in changes}) == count and all(_get(config, p) != v for p, v in changes):
            yield _with(config, dict(changes))


def _with(config: dict[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    for path, value in changes.items():
        _set(changed, path, value)
    return changed


def _is_wide(value: Any) -> bool:
    return type(value) is int and value > SMALL


def _named(full: Any, whole: Mapping[str, Any], named: Mapping[str, tuple[int, int]]) -> Iterator[tuple[Path, int]]:
    """Yield fields that are known by the names that transformers gives them, by those that the config has."""
    aliases = getattr(full, "attribute_map", {})
    for name, (old, new) in named.items():
        field = aliases.get(name, name)
        if whole.get(field) == old != new:
            yield (field,), new


def _lists(config: Any, layers: Mapping[int, Sequence[int]], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the lists that have an entry for each layer, with those of the student."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _lists(value, layers, (*path, key))
        elif isinstance(value, list) and len(value) in layers:
            yield (*path, key), [value[layer] for layer in layers[len(value)]]


def _candidates(config: Mapping[str, Any], pairs: Iterable[tuple[int, int]], path: Path = ()) -> Iterator[Edit]:
    """Yield the numbers of a config that may be sizes which grew, with what they may become."""
    pairs = sorted(pairs)
    became: dict[int, list[int]] = {}
    for old, new in pairs:
        if new != old:
            became.setdefault(old, []).append(new)
    parted = sorted({old // new for old, new in pairs if 0 < new < old and not old % new})
    for key, value in config.items():
        where = (*path, key)
        if isinstance(value, dict):
            yield from _candidates(value, pairs, where)
        elif not isinstance(key, str) or key.endswith(_NO_SIZES):
            continue
        elif type(value) in (int, float) and _RATIOS.search(key):
            yield from ((where, _number(value * ratio)) for ratio in _ratios(pairs))
        elif type(value) is int and value > 0:
            made_up = [value * times for times in parted]  # so many more of what has become smaller
            yield from ((where, new) for new in dict.fromkeys((*became.get(value, ()), *made_up)))
        elif isinstance(value, list | tuple):
            yield from ((where, new) for new in _lists_of(value, became))
        elif value is None and key.endswith(_WIDTHS):  # the class makes it of others
            yield from ((where, new) for new in sorted({new for old, new in pairs if new != old}))


def _lists_of(values: Sequence[Any], became: Mapping[int, Sequence[int]]) -> Iterator[list[Any]]:
    """Yield what a list of sizes may become: first equal ones stay equal, then one entry changes alone."""
    kinds = list(dict.fromkeys(value for value in values if type(value) is int and value in became))
    ways = itertools.product(*((*became[kind], kind) for kind in kinds))
    for choice in itertools.islice(ways, _MOST_LISTS):
        new = dict(zip(kinds, choice, strict=True))
        changed = [new.get(value, value) if type(value) is int else value for value in values]
        if changed != list(values):
            yield changed
    for place, value in enumerate(values):
        for size in became.get(value, ()) if type(value) is int else ():
            yield [*values[:place], size, *values[place + 1 :]]


def _number(value: Fraction | float) -> int | float:
    """Return a whole number as such."""
    return int(value) if isinstance(value, Fraction) and value.denominator == 1 else float(value)


def _ratios(pairs: Iterable[tuple[int, int]]) -> list[Fraction]:
    """Return by how much the ratio of two sizes may have changed."""
    grown = {Fraction(new, old) for old, new in pairs if old}
    return sorted({one / other for one in grown for other in grown} - {Fraction(1)})


def _get(config: Any, path: Path) -> Any:
    for step in path:
        config = config.get(step, {}) if isinstance(config, dict) else {}
    return config


def _set(config: dict[str, Any], path: Path, value: Any) -> None:
    *steps, last = path
    for step in steps:
        config = config.setdefault(step, {})  # type: ignore[arg-type]
    config[last] = value  # type: ignore[index]
