"""Net2WiderNet on any graph: choose sizes and maps for its dims, and rewrite."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import gc
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import numpy as np
import onnx

from onnx_net2net.bodies import Opened, open_bodies
from onnx_net2net.dims import Axes, Axis, Dim, Product, Ratio, leaves, resolve
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.history import HISTORY, fingerprint, history
from onnx_net2net.inference import DIVISIBLE, Analysis, infer
from onnx_net2net.maps import (
    KINDS,
    ORIGINS,
    Kind,
    Map,
    Style,
    compose,
    from_index,
    in_turn,
    new_size,
    pad,
    padded,
    replicate,
    uniform,
)
from onnx_net2net.model import Model, load
from onnx_net2net.naming import name_dims
from onnx_net2net.normalisers import fillable
from onnx_net2net.padding import State, follow, paddable
from onnx_net2net.rewrite import rewrite
from onnx_net2net.roles import role_dims

FAR = 0.1
"""Part of the wanted size by which multiples may miss it before norms are filled up."""

MOST_UNITS = 2**27
"""No network has wider axes, and the maps of wider ones would not fit into memory."""


@dataclass(eq=False)
class Group:
    """Dims that a user sees as one: usually a single dim, or the units of one that are rearranged one by one.

    Attributes:
        name: Module whose parameters make it.
        dims: The dims, in order.
        tensors: Number of constants that have it on an axis.
        elements: Number of their elements.
        reason: Why it cannot grow, or None.
        role: What people call it (see `onnx_net2net.roles`), or "".
        padding: What units hold ("mean" or "zero") that let it have any width although a statistic runs over it.
        fillable: Whether its normalisers can be given whole multiples where it is none, so that it has any width.
        on_request: Whether `reason` holds only until it is named: it belongs to the interface (classes, vocabulary,
            input channels).
    """

    name: str
    dims: tuple[Dim, ...]
    tensors: int = 0
    elements: int = 0
    reason: str | None = None
    role: str = ""
    padding: State | None = None
    fillable: bool = False
    on_request: bool = False

    @property
    def size(self) -> int:
        """Number of units in the teacher."""
        return sum(dim.size for dim in self.dims)

    @property
    def is_uniform(self) -> bool:
        """Whether a statistic runs over it, which copies of all units keep."""
        return any(dim.ratio for dim in self.dims)

    @property
    def is_whole(self) -> bool:
        """Whether it grows by whole factors only."""
        return self.is_uniform and self.padding is None

    def __repr__(self) -> str:
        state = f"fixed: {self.reason}" if self.reason else "whole factors" if self.is_whole else "growable"
        return f"{self.name} ({self.size}, {self.tensors} tensors, {state})"


@dataclass(frozen=True)
class Inspection:
    """The dims of a model.

    Attributes:
        groups: Every dim that a constant has, growable or not.
        elements: Number of elements of all floating-point constants.
    """

    groups: tuple[Group, ...]
    elements: int

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.groups))


@dataclass(frozen=True)
class Change:
    """What became of one group: its size before and after, and the size that was asked for."""

    name: str
    old: int
    new: int
    wanted: float
    map: str
    tensors: int


@dataclass(frozen=True)
class Widening:
    """A widened model.

    Attributes:
        teacher: The model that was widened.
        student: The result; its weights are computed when it is saved or run.
        changes: What became of each dim that was to grow.
        exact: Whether the student computes the teacher's function (False after `noise` or `random_pad`).
        seed: Seed of every random choice.
        covered: Share of the weight elements that lie on an axis that grew.
        fixed: The dims that could not grow, with the reason.
        notes: What else was done to the graph, for people.
    """

    teacher: Model
    student: Model
    changes: tuple[Change, ...]
    exact: bool
    seed: int
    covered: float
    fixed: tuple[Group, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


def inspect(model: str | os.PathLike[str] | onnx.ModelProto | Model) -> Inspection:
    """Find the dims of a model; no weight is read.

    Args:
        model: A path, a model in memory or a loaded model.

    Raises:
        BadInputError: If it cannot be used.
    """
    loaded = load(model)
    with paused_gc():
        flat = open_bodies(loaded).model
        return _inspect(flat, infer(flat))


def widen(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    factor: float | None = None,
    sizes: Mapping[str, int | str] | None = None,
    only: Sequence[str] = (),
    multiple_of: int = 1,
    map: Kind = "replicate",
    spread: float = 0.3,
    noise: float = 0.0,
    seed: int = 0,
    prior: float | None = None,
    fill_norms: bool | None = None,
) -> Widening:
    """Widen the hidden dims of a model without changing its function (Net2WiderNet, paper section 2.3).

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        factor: Width multiplier (>= 1) for every dim, or for those that `only` names; each dim goes to the nearest
            size that it can have exactly. Of the factors of one axis (groups x channels) one grows: that which lets
            most weights grow, and comes near the factor.
        sizes: Sizes by dim name, pattern or role: a number of units (`96`) or a multiplier (`"2x"`). What
            matches nothing else may name a dim of the interface (classes, vocabulary, input channels): the old
            inputs and outputs stay as they are and come first.
        only: Names, patterns or roles (`"ffn"`) of the dims that `factor` is for.
        multiple_of: New sizes are multiples of this.
        map: How new units come about (see `onnx_net2net.maps`); dims that do not admit it are replicated.
        spread: How unevenly copies share their outgoing weights, as a part of the weights' deviation. Exact.
        noise: The paper's noise on the incoming weights of copies, likewise. Not exact.
        seed: Seed of every random choice.
        prior: Probability (0 <= prior < 1) at which new classes start, as a sigmoid sees it: 0.01 if not given. Under
            a softmax it can only be 0, or the old outputs would change.
        fill_norms: Whether dims in front of LayerNormalization and its kin may have any width, where these admit
            multiples only: what the node reads is filled up to the next multiple by units that lack a copy, and its
            result is cut (Slice, Concat, Slice). By default where multiples would miss `factor` by more than a
            tenth, and not for `sizes`.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.verify`.

    Raises:
        BadInputError: If the model cannot be used, or an option makes no sense.
        RefusedError: If a size cannot be had exactly.
    """
    _check_options(factor, sizes, multiple_of, map, spread, noise, seed, prior)
    model = load(teacher)
    with paused_gc():
        return _widen(model, factor, sizes or {}, only, multiple_of, map, Style(seed, spread, noise), prior, fill_norms)


def _widen(
    model: Model,
    factor: float | None,
    sizes: Mapping[str, int | str],
    only: Sequence[str],
    multiple_of: int,
    map: Kind,
    style: Style,
    prior: float | None,
    fill_norms: bool | None,
) -> Widening:
    opened = open_bodies(model)
    analysis = infer(opened.model)
    inspection = _inspect(opened.model, analysis)
    plan = _Plan(analysis, inspection, multiple_of, map, np.random.default_rng(style.seed), prior, fill_norms)
    style = style if prior is None else replace(style, prior=prior)
    plan.set_sizes(sizes)
    if factor is not None:
        plan.widen_all(factor, only)
    record = {
        "operation": "widen", "factor": factor, "sizes": dict(sizes), "only": list(only),
        "multiple_of": multiple_of, "map": map, "spread": style.spread, "noise": style.noise, "seed": style.seed,
        "prior": prior, "fill_norms": fill_norms,
        "version": version("onnx-net2net"), "teacher": fingerprint(model), **opened.notes(), **plan.interface(),
    }  # fmt: skip
    if not plan.growth and (factor is None or factor > 1):
        raise RefusedError(f"nothing grows: {_main_reason(plan)}")
    plan.check_map()
    covered = _covered(analysis, plan.growth)
    metadata = {HISTORY: json.dumps([*history(model), record])}
    notes = list(_notes(opened, analysis, plan))
    student = opened.close(rewrite(opened.model, analysis, plan.growth, style, metadata))
    exact = map != "random_pad" and not style.noise
    fixed = tuple(g for g in inspection.groups if g.reason and not any(dim in plan.growth for dim in g.dims))
    if analysis.untied:
        notes.append(f"untied, as their uses grow differently: {', '.join(analysis.untied)}")
    return Widening(model, student, tuple(plan.changes()), exact, style.seed, covered, fixed, tuple(notes))


def _notes(opened: Opened, analysis: Analysis, plan: _Plan) -> Iterator[str]:
    """Say what was done to the graph besides growing it, and what could be done."""
    for what, names in opened.notes().items():
        yield f"{what}: {', '.join(names)}"
    hidden = {dim for dim in plan.growth if not dim.pinned}
    cut = sorted(name for name in analysis.cut if any(hidden & set(leaves(axis)) for axis in analysis.axes[name]))
    if cut:
        yield f"outputs cut to the teacher's units (a Gather): {', '.join(cut)}"
    filled, held = plan.odd()
    if filled:
        yield f"filled up to multiples for norms (--no-fill-norms leaves these as they are): {_some(filled)}"
    if held:
        yield f"multiples only, far from what was wanted (--fill-norms lets them have any size): {_some(held)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the cyclic garbage collector, which would walk the many objects of a large graph again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _main_reason(plan: _Plan) -> str:
    """Return why the largest of the dims that were to grow stays as it is."""
    chosen = plan.chosen or list(plan.inspection.groups)
    if not chosen:
        return "the model has no weights with a dim of more than one unit"
    growable = [group for group in chosen if group.reason is None]
    if growable:
        largest = max(growable, key=lambda group: group.elements)
        return f"{largest.name!r} has {largest.size} units, and that is the nearest size to what was asked for"
    largest = max(chosen, key=lambda group: group.elements)
    return f"{largest.name!r}: {largest.reason}"


def _check_options(
    factor: float | None,
    sizes: Mapping[str, int | str] | None,
    multiple_of: int,
    map: str,
    spread: float,
    noise: float,
    seed: int,
    prior: float | None,
) -> None:
    if factor is None and not sizes:
        raise BadInputError("give a factor or sizes, or there is nothing to widen")
    if factor is not None and not (math.isfinite(factor) and factor >= 1):
        raise BadInputError(f"the factor must be a number of at least 1, not {factor}")
    if seed < 0:
        raise BadInputError(f"the seed must be at least 0, not {seed}")
    if multiple_of < 1:
        raise BadInputError(f"multiple_of must be at least 1, not {multiple_of}")
    if map not in KINDS:
        raise BadInputError(f"there is no map {map!r}; there are {', '.join(KINDS)}")
    if prior is not None and not 0 <= prior < 1:
        raise BadInputError(f"the prior must be a probability below 1, not {prior}")
    for name, value in (("spread", spread), ("noise", noise)):
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"{name} must be a number of at least 0, not {value}")


# --- What there is -------------------------------------------------------------------------------------------


def _inspect(model: Model, analysis: Analysis) -> Inspection:
    names = name_dims(analysis, model.proto)
    alive = {dim for use in analysis.uses.values() for axis in use.axes for dim in leaves(axis)}
    roles = role_dims(analysis)
    groups: dict[int, Group] = {}
    of_dim: dict[Dim, Group] = {}
    for dim, name in names.items():
        if dim.size == 0 or dim not in alive:
            continue
        key = id(dim.origin or dim)
        group = groups.setdefault(key, Group(name, ()))
        group.dims = (*group.dims, dim)
        group.role = group.role or roles.get(dim.origin or dim, "")
        of_dim[dim] = group
    for group in groups.values():
        reasons = [dim.frozen for dim in group.dims]
        group.reason = next((reason for reason in reasons if reason), None) if all(reasons) else None
        group.on_request = bool(group.reason) and not any(dim.fixed for dim in group.dims)
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        elements = math.prod(axis.size for axis in use.axes)
        for group in {id(g): g for axis in use.axes for d in leaves(axis) if (g := of_dim.get(d))}.values():
            group.tensors += 1
            group.elements += elements
    _freeze_incomplete_ratios(groups.values())
    summed = {dim for said in analysis.said.values() for c in said.contractions for dim in leaves(c.axis)}
    pads, free = paddable(analysis), fillable(analysis)
    for group in groups.values():
        group.padding = next((pads[dim] for dim in group.dims if dim in pads), None)
        group.fillable = group.padding is None and len(group.dims) == 1 and group.dims[0] in free
        if group.reason is None and not any(dim in summed and not dim.frozen for dim in group.dims):
            group.reason = "no weight sums over it, so that nothing would read new units"
    shown = [group for group in groups.values() if group.size > 1]
    return Inspection(tuple(shown), model.parameters)


def _freeze_incomplete_ratios(groups: Iterable[Group]) -> None:
    """A dim whose growth drags along one that cannot grow cannot grow either."""
    for group in groups:
        for dim in group.dims:
            if dim.ratio is not None and group.reason is None:
                group.reason = dim.ratio.root().frozen


def _covered(analysis: Analysis, growth: Mapping[Dim, Map]) -> float:
    """Return the share of the weight elements on a grown axis.

    A constant is a weight if an operator sums over one of its axes, looks entries up in it or says nothing of it, or
    if it shares a dim with such a one, as biases do: masks and lists of positions are none.
    """
    constants = list({id(use.constant): use for use in analysis.uses.values()}.values())
    tables = {dim for said in analysis.said.values() for axis in said.tables for dim in leaves(axis)}
    matrices: list[Axes] = [use.axes for use in constants if _dims(use.axes) & tables]
    for number, said in analysis.said.items():
        if said.closed:
            sides = range(len(analysis.nodes[number].inputs))
            matrices += [analysis.input_axes(number, i) or () for i in sides if analysis.is_derived(number, i)]
    for number, index, contraction in analysis.weighings():
        matrices.append((contraction.axis,))
        if not all(analysis.is_derived(number, side) for side, _ in contraction.sides):
            matrices.append(analysis.input_axes(number, index) or ())
    weighty = {dim for axes in matrices for dim in _dims(axes)}
    total = grown = 0
    for use in constants:
        dims = _dims(use.axes)
        if analysis.sizes.dtype(use.constant.name) in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            continue
        if dims.isdisjoint(weighty):
            continue
        elements = math.prod(axis.size for axis in use.axes)
        total += elements
        grown += elements if any(dim in growth for dim in dims) else 0
    return grown / total if total else 0.0


def _dims(axes: Axes) -> set[Dim]:
    return {dim for axis in axes for dim in leaves(axis)}


# --- What to do ----------------------------------------------------------------------------------------------


class _Plan:
    """Sizes and maps chosen so far."""

    def __init__(
        self,
        analysis: Analysis,
        inspection: Inspection,
        multiple_of: int,
        kind: Kind,
        rng: np.random.Generator,
        prior: float | None,
        fill_norms: bool | None,
    ) -> None:
        self.growth: dict[Dim, Map] = {}
        self._prior, self._fill_norms = prior, fill_norms
        self.inspection = inspection
        self.chosen: list[Group] = []
        self._analysis, self._groups = analysis, list(inspection.groups)
        self._multiple, self._kind, self._rng = multiple_of, kind, rng
        self._wanted: dict[int, float] = {}
        self._rivals = _rivals(analysis)
        self._unfit = _unfit(analysis, kind)
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
                grow = self._grow_exactly if growable else self._append
                grow(group, _target(pattern, text, group.size))

    def widen_all(self, factor: float, only: Sequence[str]) -> None:
        """Grow all dims (or those named) by a factor, one of the factors of each product."""
        chosen = [group for pattern in only for group in self._match(pattern)] if only else self._groups
        self.chosen += chosen
        candidates = [group for group in dict.fromkeys(chosen) if group.reason is None]
        taken = set(self.growth)

        def merit(group: Group) -> tuple[bool, float, bool]:
            """Put first what lets most elements grow, less the part of the growth that the nearest size misses."""
            wanted = group.size * factor
            size = self._nearest(group, wanted)
            missed = abs(size - wanted) / (wanted - group.size) if size != group.size else 1.0
            return size == group.size, group.elements * (round(missed, 2) - 1), len(group.dims) > 1

        for group in sorted(candidates, key=merit):
            wanted = group.size * factor
            self._wanted.setdefault(id(group), wanted)
            if any(rival in taken for dim in group.dims for rival in self._rivals.get(dim, ())):
                continue
            if any(dim in taken for dim in group.dims):
                continue
            self._grow(group, self._nearest(group, wanted))
            taken.update(self.growth)

    def check_map(self) -> None:
        """Refuse a map that no dim admits; where some do, the others are replicated and the report says so.

        Raises:
            RefusedError: If every dim that grows had to be replicated instead.
        """
        unfit = [dim for dim in self.growth if dim in self._unfit]
        if self._kind in _UNFITTING and unfit and len(unfit) == len(self.growth):
            raise RefusedError(f"no dim admits the map {self._kind}: {self._unfit[unfit[0]]}; replicate does")

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
            if id(group) not in self._wanted and not any(dim in self.growth for dim in group.dims):
                continue
            maps = [self.growth[dim] for dim in group.dims if dim in self.growth]
            new = sum(self.growth[dim].new if dim in self.growth else dim.size for dim in group.dims)
            kind = next((_map_name(map, group) for map in maps), "")
            wanted = self._wanted.get(id(group), float(new))
            yield Change(group.name, group.size, new, wanted, kind, group.tensors)

    def _match(self, pattern: str) -> list[Group]:
        exact = [group for group in self._groups if group.name == pattern]  # a name may look like a pattern
        found = exact or [group for group in self._groups if fnmatch.fnmatchcase(group.name, pattern)]
        found = found or [group for group in self._groups if fnmatch.fnmatchcase(group.role, pattern)]
        if not found:
            names = [group.name for group in self._groups if group.reason is None]
            near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
            raise BadInputError(f"no dim is named {pattern!r}; near it are {', '.join(near) or 'none'}")
        return found

    def _step(self, group: Group) -> int:
        """Return what the sizes of a group are multiples of."""
        return math.lcm(group.size, self._multiple) if group.is_whole else self._multiple

    def _nearest(self, group: Group, wanted: float) -> int:
        """Return the nearest size that a group can have, its own included; norms are filled up where it is far off."""

        def nearest(step: int) -> int:
            sizes = {group.size, *(step * k for k in (math.floor(wanted / step), math.ceil(wanted / step)))}
            return min((size for size in sizes if size >= group.size), key=lambda size: (abs(size - wanted), size))

        size = nearest(self._step(group))
        is_far = abs(size - wanted) > FAR * wanted
        fill = group.is_whole and group.fillable and self._fill_norms is not False
        return nearest(self._multiple) if fill and is_far else size

    def _grow_exactly(self, group: Group, size: int) -> None:
        step = self._step(group)
        if size < group.size:
            raise BadInputError(f"{group.name!r} has {group.size} units already; {size} would be narrower")
        if self._fill_norms and group.fillable:
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
        if unfit and self._kind in _UNFITTING:
            raise RefusedError(f"{group.name!r} does not admit the map {self._kind}: {unfit}; replicate does")
        self._wanted[id(group)] = float(size)
        self._grow(group, size)

    def _append(self, group: Group, size: int) -> None:
        """Give a dim of the interface more units behind the old ones, which they do not touch."""
        if size < group.size:
            raise BadInputError(f"{group.name!r} has {group.size} units already; {size} would be narrower")
        self._wanted[id(group)] = float(size)
        if size == group.size:
            return
        if size > MOST_UNITS:
            raise BadInputError(f"{group.name!r} would have {size} units; at most {MOST_UNITS} are possible")
        origin, reason = _appended(self._analysis, group, self._prior)
        if reason:
            raise RefusedError(f"{group.name!r} cannot have {size} units: {reason}")
        (dim,) = group.dims
        self.growth[dim] = padded(dim.size, size, origin)
        shown = {dim: map for dim, map in self.growth.items() if dim.pinned}  # outputs lose what else they get
        for name, _, axis in _interface(self._analysis, {dim}):
            if not compose(axis, shown).first[: axis.size].all():
                raise RefusedError(f"{group.name!r} cannot have {size} units: those of {name!r} would be shifted")

    def interface(self) -> dict[str, list[tuple[str, int, int, int]]]:
        """Return where inputs and outputs grow, from which size to which, for the record."""
        grown = {dim for dim in self.growth if dim.pinned}
        shown = {dim: self.growth[dim] for dim in grown}
        found = [(n, p, a.size, new_size(a, shown)) for n, p, a in _interface(self._analysis, grown)]
        return {"interface": found} if found else {}

    def _statistic(self, group: Group) -> str:
        return next((dim.statistic for dim in group.dims if dim.statistic), "a statistic runs over it")

    def _grow(self, group: Group, size: int) -> None:
        if size == group.size:
            return
        if size > MOST_UNITS:
            raise BadInputError(f"{group.name!r} would have {size} units; at most {MOST_UNITS} are possible")
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
        if size % group.size == 0 and not (self._fill_norms and group.fillable):
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


def _target(pattern: str, text: int | str, size: int) -> int:
    """Read a size: units (96) or a multiplier (2x)."""
    try:
        if isinstance(text, str) and text.strip().endswith("x"):
            wanted = float(text.strip()[:-1]) * size
            if not math.isfinite(wanted):
                raise ValueError
            return round(wanted)
        return int(text)
    except (ValueError, OverflowError):
        raise BadInputError(f"{pattern}={text}: not a size (96) or a multiplier (1.5x)") from None


def _appended(analysis: Analysis, group: Group, prior: float | None) -> tuple[str, str | None]:
    """Return how new units of a dim of the interface come about, and why they cannot.

    Units that a weight reads, and entries of tables, are of their own and weighed by 0; the others are classes.
    """
    dims = set(group.dims)
    read = {dim for said in analysis.said.values() for c in said.contractions for dim in leaves(c.axis)}
    listed = {dim for said in analysis.said.values() for axis in said.tables for dim in leaves(axis)}
    normalised = [number for number, said in analysis.said.items() if dims & _dims((*said.normalised,))]
    breaking = ((dim, why) for number, dim, why in _breaking(analysis, "zero_out") if number < max(normalised))
    unfit = dict(breaking) if normalised else _unfit(analysis, "zero_out")
    reason = next((unfit.get(dim) or dim.statistic or dim.copies for dim in group.dims), None)
    if len(dims) > 1:
        reason = "its units are rearranged one by one"
    if dims & (read | listed):
        return "zero_out", "a softmax over it would notice them" if normalised else reason
    integers = {use.constant.name for use in analysis.uses.values() if any(dims & set(leaves(a)) for a in use.axes)}
    if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in integers):
        reason = "its weights are integers, which cannot express a prior"
    if normalised and prior:
        reason = "under a softmax new classes change the old ones, unless they start at a prior of 0"
    logits = {analysis.nodes[number].inputs[0].name for number in normalised}
    if any(analysis.sizes.dtype(name) not in DIVISIBLE for name in logits):
        reason = "it is normalised in integers, which cannot express a probability of 0"
    return "never" if normalised else "prior", reason


def _interface(analysis: Analysis, dims: set[Dim]) -> Iterator[tuple[str, int, Axis]]:
    """Yield where inputs and outputs have one of the dims: their name, the position and the axis."""
    graph = analysis.draft.graph
    for tensor in (*graph.inputs, *graph.outputs):
        for position, axis in enumerate(analysis.axes.get(tensor.name, ())):
            if dims & set(leaves(axis)):
                yield tensor.name, position, axis


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


def _unfit(analysis: Analysis, kind: Kind) -> dict[Dim, str]:
    """Return the dims that do not admit a kind of new units, with the reason.

    Units that start at zero (`zero_in`) need phi(0) = 0 all the way, and learn nothing behind a ReLU; units of random
    values that are weighed by 0 (`zero_out`) must stay finite. Neither may change a statistic or an extreme.
    """
    if kind not in _UNFITTING:
        return {}
    unfit = {dim: dim.statistic or dim.copies or "" for dim in analysis.dims() if dim.statistic or dim.copies}
    for number, said in analysis.said.items():
        for dim in (dim for axis in said.normalised for dim in leaves(axis)):
            node = analysis.nodes[number]
            unfit.setdefault(dim, f"{node.op} {node.name or node.outputs[0].name!r} normalises over this axis")
    for _, dim, reason in _breaking(analysis, kind):
        unfit.setdefault(dim, reason)
    if kind == "zero_in":
        _note_lost_zeros(analysis, unfit)
    return unfit


def _breaking(analysis: Analysis, kind: Kind) -> Iterator[tuple[int, Dim, str]]:
    """Yield each node whose function rules out a kind of new units, with a dim of its results and the reason."""
    for number, said in analysis.said.items():
        reason = _UNFITTING[kind].get(said.pointwise or "")
        node = analysis.nodes[number]
        made = [axis for tensor in node.outputs for axis in analysis.axes.get(tensor.name, ())]
        broken = analysis.input_axes(number, 1) or () if node.op == "Div" else made  # by zero, not of zero
        for dim in _dims((*broken,)) if reason else ():
            yield number, dim, f"{node.op} {node.name or node.outputs[0].name!r} {reason}"


def _note_lost_zeros(analysis: Analysis, unfit: dict[Dim, str]) -> None:
    """Add the dims whose new units do not reach their readers as zeros."""
    zeros: dict[Dim, State] = {dim: "zero" for dim in analysis.dims() if not dim.frozen and dim not in unfit}
    states = follow(analysis, zeros).states
    for number, said in analysis.said.items():
        node = analysis.nodes[number]
        for contraction in said.contractions:
            for index, _ in contraction.sides:
                held = states.get(node.inputs[index].name, {})
                for dim in leaves(contraction.axis):
                    if held.get(dim, "zero") != "zero":
                        reason = "reads its units after an operation that does not keep zeros"
                        unfit.setdefault(dim, f"{node.op} {node.name or node.outputs[0].name!r} {reason}")


_UNFITTING: dict[str, dict[str, str]] = {
    "zero_in": {"relu": "lets no gradient through at zero, so that the new units would never learn"},
    "zero_out": {"partial": "may make an infinity of random values"},
}
"""For each map, what of a node between the units and their readers rules it out."""
