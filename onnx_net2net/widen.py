"""Net2WiderNet on any graph: choose sizes and maps for its dims, and rewrite."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import gc
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import onnx

from onnx_net2net.bodies import open_bodies
from onnx_net2net.dims import Axis, Dim, Product, Ratio, leaves, resolve
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.inference import Analysis, infer
from onnx_net2net.maps import KINDS, ORIGINS, Kind, Map, Style, from_index, pad, padded, replicate, uniform
from onnx_net2net.model import Model, load
from onnx_net2net.naming import name_dims
from onnx_net2net.padding import State, follow, paddable
from onnx_net2net.protos import all_tensors
from onnx_net2net.rewrite import rewrite
from onnx_net2net.roles import role_dims

HISTORY = "onnx_net2net.history"
"""Metadata entry that lists what was done to a model, as JSON."""


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
    """

    name: str
    dims: tuple[Dim, ...]
    tensors: int = 0
    elements: int = 0
    reason: str | None = None
    role: str = ""
    padding: State | None = None

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
    """

    teacher: Model
    student: Model
    changes: tuple[Change, ...]
    exact: bool
    seed: int
    covered: float
    fixed: tuple[Group, ...] = field(default=(), repr=False)


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
) -> Widening:
    """Widen the hidden dims of a model without changing its function (Net2WiderNet, paper section 2.3).

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        factor: Width multiplier (>= 1) for every dim, or for those that `only` names; each dim goes to the nearest
            size that it can have exactly. Of the factors of one axis (groups x channels) one grows.
        sizes: Sizes by dim name, pattern or role: a number of units (`96`) or a multiplier (`"2x"`).
        only: Names, patterns or roles (`"ffn"`) of the dims that `factor` is for.
        multiple_of: New sizes are multiples of this.
        map: How new units come about (see `onnx_net2net.maps`); dims that do not admit it are replicated.
        spread: How unevenly copies share their outgoing weights, as a part of the weights' deviation. Exact.
        noise: The paper's noise on the incoming weights of copies, likewise. Not exact.
        seed: Seed of every random choice.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.verify`.

    Raises:
        BadInputError: If the model cannot be used, or an option makes no sense.
        RefusedError: If a size cannot be had exactly.
    """
    _check_options(factor, sizes, multiple_of, map, spread, noise, seed)
    model = load(teacher)
    with paused_gc():
        return _widen(model, factor, sizes or {}, only, multiple_of, map, Style(seed, spread, noise))


def _widen(
    model: Model,
    factor: float | None,
    sizes: Mapping[str, int | str],
    only: Sequence[str],
    multiple_of: int,
    map: Kind,
    style: Style,
) -> Widening:
    opened = open_bodies(model)
    analysis = infer(opened.model)
    inspection = _inspect(opened.model, analysis)
    plan = _Plan(analysis, inspection, multiple_of, map, np.random.default_rng(style.seed))
    plan.set_sizes(sizes)
    if factor is not None:
        plan.widen_all(factor, only)
    record = {
        "operation": "widen", "factor": factor, "sizes": dict(sizes), "only": list(only),
        "multiple_of": multiple_of, "map": map, "spread": style.spread, "noise": style.noise, "seed": style.seed,
        "version": version("onnx-net2net"), "teacher": fingerprint(model), **opened.notes(),
    }  # fmt: skip
    if not plan.growth and (factor is None or factor > 1):
        raise RefusedError(f"nothing grows: {_main_reason(plan)}")
    plan.check_map()
    covered = _covered(analysis, plan.growth)
    metadata = {HISTORY: json.dumps([*history(model), record])}
    student = opened.close(rewrite(opened.model, analysis, plan.growth, style, metadata))
    exact = map != "random_pad" and not style.noise
    fixed = tuple(group for group in inspection.groups if group.reason)
    return Widening(model, student, tuple(plan.changes()), exact, style.seed, covered, fixed)


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


def history(model: Model) -> list[dict[str, object]]:
    """Return what was done to a model before, oldest first, as its metadata says."""
    for entry in model.proto.metadata_props:
        if entry.key == HISTORY:
            try:
                steps = json.loads(entry.value)
            except ValueError:
                return []
            return steps if isinstance(steps, list) else []
    return []


def fingerprint(model: Model) -> str:
    """Return the SHA-256 of the model's file (not of external data beside it), or of a model in memory."""
    digest = hashlib.sha256()
    if model.path is not None:
        with open(model.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in all_tensors(proto):
        weight = model.tensor(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # a stub, whose key is another one each time
            del tensor.external_data[:]
            digest.update(weight.tobytes())
    digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _check_options(
    factor: float | None,
    sizes: Mapping[str, int | str] | None,
    multiple_of: int,
    map: str,
    spread: float,
    noise: float,
    seed: int,
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
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        elements = math.prod(axis.size for axis in use.axes)
        for group in {id(g): g for axis in use.axes for d in leaves(axis) if (g := of_dim.get(d))}.values():
            group.tensors += 1
            group.elements += elements
    _freeze_incomplete_ratios(groups.values())
    summed = {dim for said in analysis.said.values() for c in said.contractions for dim in leaves(c.axis)}
    pads = paddable(analysis)
    for group in groups.values():
        group.padding = next((pads[dim] for dim in group.dims if dim in pads), None)
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
    total = grown = 0
    for use in {id(use.constant): use for use in analysis.uses.values() if use.constant.dtype is not None}.values():
        if analysis.sizes.dtype(use.constant.name) in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            continue
        elements = math.prod(axis.size for axis in use.axes)
        total += elements
        if any(dim in growth for axis in use.axes for dim in leaves(axis)):
            grown += elements
    return grown / total if total else 0.0


# --- What to do ----------------------------------------------------------------------------------------------


class _Plan:
    """Sizes and maps chosen so far."""

    def __init__(
        self, analysis: Analysis, inspection: Inspection, multiple_of: int, kind: Kind, rng: np.random.Generator
    ) -> None:
        self.growth: dict[Dim, Map] = {}
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
            if not growable:
                raise RefusedError(f"{groups[0].name!r} cannot grow: {groups[0].reason}")
            for group in growable:
                self._grow_exactly(group, _target(pattern, text, group.size))

    def widen_all(self, factor: float, only: Sequence[str]) -> None:
        """Grow all dims (or those named) by a factor, one of the factors of each product."""
        chosen = [group for pattern in only for group in self._match(pattern)] if only else self._groups
        self.chosen += chosen
        candidates = [group for group in dict.fromkeys(chosen) if group.reason is None]
        taken = set(self.growth)

        def merit(group: Group) -> tuple[bool, float, bool, int]:
            size = self._nearest(group, group.size * factor)
            missed = abs(size / group.size - factor)
            return size == group.size, round(missed, 2), len(group.dims) > 1, -group.elements

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
        """Return the nearest size that a group can have, its own included."""
        step = self._step(group)
        sizes = {group.size, *(step * k for k in (math.floor(wanted / step), math.ceil(wanted / step)))}
        return min((size for size in sizes if size >= group.size), key=lambda size: (abs(size - wanted), size))

    def _grow_exactly(self, group: Group, size: int) -> None:
        step = self._step(group)
        if size < group.size:
            raise BadInputError(f"{group.name!r} has {group.size} units already; {size} would be narrower")
        if size != group.size and size % step:
            near = sorted({max(group.size, size // step * step), -(-size // step) * step})
            why = (
                f"it grows by whole factors ({self._statistic(group)})"
                if group.is_whole
                else f"it is no multiple of {step}"
            )
            raise RefusedError(
                f"{group.name!r} cannot have {size} units exactly: {why}; possible are {' and '.join(map(str, near))}"
            )
        unfit = next((self._unfit[dim] for dim in group.dims if dim in self._unfit), None)
        if unfit and self._kind in _UNFITTING:
            raise RefusedError(f"{group.name!r} does not admit the map {self._kind}: {unfit}; replicate does")
        self._wanted[id(group)] = float(size)
        self._grow(group, size)

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
        """Copy all units equally often where that gives the size; else pad."""
        if size % group.size:
            (dim,) = group.dims
            assert group.padding is not None  # other sizes were refused, or are not offered
            self.growth[dim] = pad(dim.size, size, group.padding)
        else:
            self._grow_ratio(group, size // group.size)

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
    if group.is_uniform:
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
        reason = _UNFITTING[kind].get(said.pointwise or "")
        if reason:
            node = analysis.nodes[number]
            for tensor in node.outputs:
                for dim in (d for axis in analysis.axes.get(tensor.name, ()) for d in leaves(axis)):
                    unfit.setdefault(dim, f"{node.op} {node.name or tensor.name!r} {reason}")
    if kind == "zero_in":
        _note_lost_zeros(analysis, unfit)
    return unfit


def _note_lost_zeros(analysis: Analysis, unfit: dict[Dim, str]) -> None:
    """Add the dims whose new units do not reach their readers as zeros."""
    zeros: dict[Dim, State] = {dim: "zero" for dim in analysis.dims() if not dim.frozen and dim not in unfit}
    states, _ = follow(analysis, zeros)
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
