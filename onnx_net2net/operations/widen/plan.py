"""Chooses the dims that grow, their new sizes, and their maps; `WidenPlan` matches the patterns of options to dims."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, Product, leaf_set, leaves, resolve
from onnx_net2net.algebra.maps import (
    ORIGINS,
    Map,
    compose,
    from_index,
    in_turn,
    new_size,
    pad,
    padded,
    replicate,
    uneven,
    uniform,
)
from onnx_net2net.algebra.ratios import Ratio
from onnx_net2net.analysis.groups import Group, Inspection
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.names import matching
from onnx_net2net.analysis.roles import Role
from onnx_net2net.analysis.routers import chosen_dims
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.operations.widen.experts import copied
from onnx_net2net.operations.widen.new_units import UNFITTING, appended_as, interface_axes, interface_names, unfit_dims
from onnx_net2net.operations.widen.options import WidenOptions, target_size

FAR = 0.1
"""Norms are filled up where multiples would miss the wanted size by a larger part of it."""

MOST_UNITS = 2**27
"""No network has wider axes, and the maps of wider ones would not fit into memory."""


@dataclass(frozen=True)
class Change:
    """What became of one group: its size before and after, the size that was asked for, and why it stayed if it did."""

    name: str
    old: int
    new: int
    wanted: float
    map: str
    tensors: int
    why: str = ""


class WidenPlan:
    """Sizes and maps chosen so far."""

    def __init__(self, analysis: Analysis, inspection: Inspection, options: WidenOptions) -> None:
        self.growth: dict[Dim, Map] = {}
        self.inspection = inspection
        self.chosen: list[Group] = []
        self.routed: set[Dim] = set()
        self._chosen = chosen_dims(analysis)
        self._options = options
        self._analysis, self._groups = analysis, list(inspection.groups)
        self._multiple, self._kind = options.multiple_of, options.map
        self._rng = np.random.default_rng(options.seed)
        self._wanted: dict[int, float] = {}
        self._rivals = _rivals(analysis)
        self._unfit = unfit_dims(analysis, options.map)
        self._by_ratio: dict[Ratio, list[Group]] = {}
        for group in self._groups:
            for ratio in {dim.ratio.root() for dim in group.dims if dim.ratio is not None}:
                self._by_ratio.setdefault(ratio, []).append(group)

    def set_sizes(self, sizes: Mapping[str, int | str]) -> None:
        """Grow the dims that patterns name to given sizes."""
        for pattern, text in sizes.items():
            groups = self._match(pattern)
            self.chosen += groups
            growable = [group for group in groups if group.reason is None]
            on_request = [group for group in groups if group.on_request]
            if not growable and not on_request:
                raise RefusedError(f"{groups[0].name!r} cannot grow: {groups[0].reason}")
            for group in growable or on_request:
                grow = self.grow_exactly if growable else self.multiply if self._is_routed(group) else self.append
                grow(group, target_size(pattern, text, group.size))

    def widen_all(self, factor: float, only: Sequence[str]) -> None:
        """Grow all dims (or those named) by a factor, one of the factors of each product."""
        chosen = [group for pattern in only for group in self._match(pattern)] if only else self._groups
        self.chosen += chosen
        asked = set(self._wanted)  # sizes that were set stay, the teacher's own included
        candidates = [group for group in dict.fromkeys(chosen) if group.reason is None and id(group) not in asked]
        taken = set(self.growth)

        def merit(group: Group) -> tuple[bool, float, bool]:
            """Put first what lets most elements grow, less the part of the growth that the nearest size misses."""
            wanted = group.size * factor
            size = self._nearest(group, wanted)
            missed = abs(size - wanted) / (wanted - group.size) if size != group.size else 1.0
            return size == group.size, group.elements * (round(missed, 2) - 1), len(group.dims) > 1

        for group in sorted((group for group in candidates if only or not group.follows), key=merit):
            wanted = group.size * factor
            self._wanted.setdefault(id(group), wanted)
            if any(rival in taken for dim in group.dims for rival in self._rivals.get(dim, ())):
                continue
            if any(dim in taken for dim in group.dims):
                continue
            self._grow(group, self._nearest(group, wanted))
            taken.update(self.growth)
        for group in candidates:
            if not only and group.follows:
                self._wanted.setdefault(id(group), group.size * factor)
                self._follow(group, group.follows)

    def _follow(self, group: Group, leaders: Sequence[Group]) -> None:
        """Grow a group by the factor of the groups that it follows."""
        new = math.prod(sum(new_size(dim, self.growth) for dim in leader.dims) for leader in leaders)
        old = math.prod(leader.size for leader in leaders)
        taken = any(rival in self.growth for dim in group.dims for rival in (dim, *self._rivals.get(dim, ())))
        wanted = group.size * new / old
        if group not in leaders:
            self._wanted[id(group)] = wanted
        if new == old or taken:
            return
        if group.is_whole and not group.fillable and round(wanted) % group.size:
            why = f"it has to grow as {leaders[0].name!r} does, and by whole factors ({self._statistic(group)})"
            raise RefusedError(f"{group.name!r} cannot have {round(wanted)} units exactly: {why}")
        self._grow(group, round(wanted))

    def check_map(self) -> None:
        """Refuse a map that no dim admits; where some do, the others are replicated and the report says so.

        Raises:
            RefusedError: If every dim that grows had to be replicated instead.
        """
        unfit = [dim for dim in self.growth if dim in self._unfit]
        if self._kind in UNFITTING and unfit and len(unfit) == len(self.growth):
            raise RefusedError(f"no dim admits the map {self._kind}: {self._unfit[unfit[0]]}; replicate does")

    def share_by_units(self, summing: Collection[int]) -> None:
        """Give each copy one share for all that read it, so that the state of an optimizer can follow.

        Units that a tied weight reads keep equal shares: it cannot weigh copies, and the normalisation in front of it
        divides all of them by one number.
        """
        said = self._analysis.said
        tied = leaf_set(*(c.axis for number in summing for c in said[number].contractions))
        rng = np.random.default_rng([self._options.seed, len(self.growth)])
        for dim, map in self.growth.items():
            if dim not in tied and not dim.pinned:
                self.growth[dim] = uneven(map, self._options.spread, rng)

    def odd(self) -> tuple[list[str], list[str]]:
        """Return the groups in front of norms whose sizes are no multiples, and those that stay for want of one."""
        whole = [group for group in self._groups if group.is_whole and group.fillable]
        grown = [group.name for group in whole if any(self._is_odd(dim) for dim in group.dims)]
        held = [group for group in whole if not any(dim in self.growth for dim in group.dims)]
        return grown, [group.name for group in held if self._wanted.get(id(group), group.size) != group.size]

    def _is_odd(self, dim: Dim) -> bool:
        return dim in self.growth and self.growth[dim].new % dim.size != 0

    def changes(self) -> Iterable[Change]:
        """Yield what became of every dim that was to grow."""
        for group in self._groups:
            is_grown = any(dim in self.growth for dim in group.dims)
            if id(group) not in self._wanted and not is_grown:
                continue
            maps = [self.growth[dim] for dim in group.dims if dim in self.growth]
            new = sum(self.growth[dim].new if dim in self.growth else dim.size for dim in group.dims)
            kind = next((_map_name(map, group) for map in maps), "")
            kind = self._options.how if not self.routed.isdisjoint(group.dims) else kind
            wanted = self._wanted.get(id(group), float(new))
            why = "" if is_grown or wanted == group.size else self._why_kept(group)
            yield Change(group.name, group.size, new, wanted, kind, group.tensors, why)

    def _why_kept(self, group: Group) -> str:
        """Say why a group that could grow did not, and what would work."""
        rivals = {rival for dim in group.dims for rival in self._rivals.get(dim, ()) if rival in self.growth}
        if instead := next((other.name for other in self._groups if rivals.intersection(other.dims)), ""):
            return f"{instead!r}, which is a factor of the same axis, grew instead"
        if group.follows:
            return "a class makes it of other widths, so that it grows only by --set"
        return f"the nearest size is its own; possible are {self.next_sizes(group)}"

    def _match(self, pattern: str) -> list[Group]:
        interface = interface_names(self._analysis, self._groups) if pattern.startswith(("inputs.", "outputs.")) else {}

        def names(group: Group) -> tuple[str, ...]:
            return (*interface.get(id(group), ()), group.name, group.role, *group.aliases)

        return matching(pattern, self._groups, names, "dim")

    def _step(self, group: Group) -> int:
        """Return what the sizes of a group are multiples of."""
        return math.lcm(group.size if group.is_whole else 1, group.step, self._multiple)

    def next_sizes(self, group: Group) -> str:
        """Return the text of the next sizes that a group can have, with the reason where they are few."""
        step = self._step(group)
        first = (group.size // step + 1) * step
        text = f"{first} and {first + step}"
        if not group.is_whole:
            return text
        more = ", any with fill_norms" if group.fillable else ""
        return f"{text} (whole factors, as {self._statistic(group)}{more})"

    def _nearest(self, group: Group, wanted: float) -> int:
        """Return the nearest size that a group can have, its own included; norms are filled up where it is far off."""

        def nearest(step: int) -> int:
            sizes = {group.size, *(step * k for k in (math.floor(wanted / step), math.ceil(wanted / step)))}
            return min((size for size in sizes if size >= group.size), key=lambda size: (abs(size - wanted), size))

        size = nearest(self._step(group))
        is_far = abs(size - wanted) > FAR * wanted
        fill = group.is_whole and group.fillable and self._options.fill_norms is not False
        return nearest(self._multiple) if fill and is_far else size

    def grow_exactly(self, group: Group, size: int) -> None:
        """Grow a dim to a given size.

        Raises:
            RefusedError: If it cannot have that.
        """
        self._check_size(group, size)
        step = self._step(group)
        if self._options.fill_norms and group.fillable:
            step = self._multiple
        if size != group.size and size % step:
            near = sorted({max(group.size, size // step * step), -(-size // step) * step})
            why = (
                f"it grows by whole factors ({self._statistic(group)})"
                if group.is_whole
                else f"it is no multiple of {step}"
            )
            raise RefusedError(
                f"{group.name!r} cannot have {size} units exactly: {why}; possible are {' and '.join(map(str, near))}"
                + (" (any with fill_norms)" if group.is_whole and group.fillable else "")
            )
        unfit = next((self._unfit[dim] for dim in group.dims if dim in self._unfit), None)
        if unfit and self._kind in UNFITTING:
            raise RefusedError(f"{group.name!r} does not admit the map {self._kind}: {unfit}; replicate does")
        self._wanted[id(group)] = float(size)
        self._grow(group, size)

    def _check_size(self, group: Group, size: int) -> None:
        """Refuse sizes that no network of this one can have.

        Raises:
            BadInputError: If a size is too small or too large.
        """
        if size < group.size:
            raise BadInputError(f"{group.name!r} has {group.size} units already; {size} would be narrower")
        if size > MOST_UNITS and size != group.size:
            raise BadInputError(f"{group.name!r} would have {size} units; at most {MOST_UNITS} are possible")

    def append(self, group: Group, size: int) -> None:
        """Give a dim of the interface more units behind the old ones, which they do not touch."""
        self._check_size(group, size)
        self._wanted[id(group)] = float(size)
        if size == group.size:
            return
        origin, reason = appended_as(self._analysis, group, self._options.prior)
        if reason:
            raise RefusedError(f"{group.name!r} cannot have {size} units: {reason}")
        (dim,) = group.dims
        self.growth[dim] = padded(dim.size, size, origin)
        shown = {dim: map for dim, map in self.growth.items() if dim.pinned}  # outputs lose what else they get
        for name, _, axis in interface_axes(self._analysis, {dim}):
            if not compose(axis, shown).first[: axis.size].all():
                raise RefusedError(f"{group.name!r} cannot have {size} units: the units of {name!r} would be shifted")

    def _is_routed(self, group: Group) -> bool:
        return group.role is Role.EXPERTS or not self._chosen.isdisjoint(group.dims)

    def multiply(self, group: Group, size: int) -> None:
        """Give experts copies. If a router chooses some of them, only one copy of each is in use at a time.

        Raises:
            RefusedError: If they cannot have copies.
        """
        self._check_size(group, size)
        self._wanted[id(group)] = float(size)
        if size == group.size:
            return
        if len(group.dims) > 1:
            raise RefusedError(f"{group.name!r} cannot have {size} units: its units are rearranged one by one")
        (dim,) = group.dims
        listed = leaf_set(*(axis for said in self._analysis.said.values() for axis in said.tables))
        if dim in self._chosen:
            self.growth[dim] = copied(group.name, dim.size, size, self._options)
            self.routed.add(dim)
        elif dim in listed:
            raise RefusedError(f"{group.name!r} cannot have {size} units: no router that chooses among them was found")
        else:
            self._grow(group, size)

    def interface(self) -> dict[str, list[tuple[str, int, int, int]]]:
        """Return where inputs and outputs grow, from which size to which, for the record."""
        grown = {dim for dim in self.growth if dim.pinned}
        shown = {dim: self.growth[dim] for dim in grown}
        found = [(n, p, a.size, new_size(a, shown)) for n, p, a in interface_axes(self._analysis, grown)]
        return {"interface": found} if found else {}

    def _statistic(self, group: Group) -> str:
        return next((dim.statistic for dim in group.dims if dim.statistic), "a statistic runs over it")

    def _grow(self, group: Group, size: int) -> None:
        self._check_size(group, size)
        if size == group.size:
            return
        if len(group.dims) > 1:
            self._grow_units(group, size)
        elif group.is_uniform:
            self._grow_statistic(group, size)
        else:
            (dim,) = group.dims
            self.growth[dim] = self._map(dim, size)

    def _map(self, dim: Dim, size: int) -> Map:
        if self._kind == "replicate" or dim in self._unfit:
            return replicate(dim.size, size, self._rng)
        return padded(dim.size, size, self._kind)

    def _grow_statistic(self, group: Group, size: int) -> None:
        """Copy all units equally often where that gives the size; else pad, or fill up what norms read."""
        if size % group.size == 0 and not (self._options.fill_norms and group.fillable):
            self._grow_ratio(group, size // group.size)
            return
        (dim,) = group.dims
        assert group.padding or group.fillable  # other sizes were refused, or are not offered
        self.growth[dim] = pad(dim.size, size, group.padding) if group.padding else in_turn(dim.size, size)

    def _grow_ratio(self, group: Group, times: int) -> None:
        """Grow all dims that share a ratio with the group."""
        ratios = {dim.ratio.root() for dim in group.dims if dim.ratio is not None}
        for other in {id(g): g for ratio in ratios for g in self._by_ratio[ratio]}.values():
            for dim in other.dims:
                if dim.ratio is not None and dim.ratio.root() in ratios:
                    self.growth[dim] = uniform(dim.size, dim.size * times)

    def _grow_units(self, group: Group, size: int) -> None:
        """Grow units that are dims of their own: each as often as an even spread over them says."""
        free = [dim for dim in group.dims if dim.frozen is None and dim not in self.growth]
        fixed = group.size - sum(dim.size for dim in free)
        total = max(size - fixed, len(free))
        bounds = np.floor((np.arange(len(free) + 1) * total + self._rng.integers(len(free) or 1)) / max(len(free), 1))
        for dim, copies in zip(free, np.diff(bounds).astype(int), strict=True):
            if copies > 1:
                self.growth[dim] = from_index(1, np.zeros(copies, np.int64))


def _map_name(map: Map, group: Group) -> str:
    origin = ORIGINS[int(map.kind.max())]
    if group.is_uniform and not (group.is_whole and map.new % map.old):
        return {"replicate": "uniform", "mean": "mean_pad", "zero_in": "zero_pad"}[origin]
    return origin


def _rivals(analysis: Analysis) -> dict[Dim, set[Dim]]:
    """Return for each dim those that are factors of one axis with it: a width grows by one of them."""
    rivals: dict[Dim, set[Dim]] = {}

    def note(axis: Axis) -> None:
        axis = resolve(axis)
        if isinstance(axis, Dim):
            return
        if isinstance(axis, Product):
            parts = [{dim for dim in leaves(part) if not dim.frozen} for part in axis.parts]
            for i, mine in enumerate(parts):
                others = set().union(*parts[:i], *parts[i + 1 :])
                for dim in mine if others else ():
                    rivals.setdefault(dim, set()).update(others)
        for part in axis.parts:
            note(part)

    for axes in (*(use.axes for use in analysis.uses.values()), *analysis.axes.values()):
        for axis in axes:
            note(axis)
    return rivals
