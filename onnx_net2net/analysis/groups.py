"""The dims of a model as people see them: names, roles, sizes, and whether they can grow."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnx_net2net.algebra.dims import Dim, leaf_set, leaves, resolve
from onnx_net2net.algebra.maps import Map
from onnx_net2net.analysis.inference import Analysis, infer
from onnx_net2net.analysis.layers import unit_of
from onnx_net2net.analysis.names import name_dims
from onnx_net2net.analysis.padding import State, fillable, paddable
from onnx_net2net.analysis.roles import Role, role_dims
from onnx_net2net.analysis.weights import weight_uses
from onnx_net2net.graph.flatten import Opened, open_bodies
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.texts import table_html

_SHOWN = 60
"""Dims that the text of an inspection lists."""


@dataclass(eq=False)
class Group:
    """Dims that a user sees as one dim: usually a single one, or one whose units are rearranged one by one.

    Attributes:
        name: The module whose parameters make the units.
        dims: The dims, in order.
        tensors: Number of constants that have it on an axis.
        elements: Number of elements of these constants.
        reason: Why it cannot grow; None if it can.
        role: What people call it, like "ffn"; a str, too.
        padding: What padding units hold ("mean" or "zero"), if they let it have any width although a norm reads it.
        fillable: Whether the input of its norms can be filled up to a multiple, so that it can have any width.
        on_request: Whether it grows if it is named, in spite of `reason`: it belongs to the interface of the model
            (classes, vocabulary, input channels).
        follows: Groups that it grows with, and not by the factor, as a class computes its size from theirs (see
            `onnx_net2net.analysis.loadable`).
        step: Its sizes are multiples of this, so that the sizes of groups that follow it are whole numbers.
        aliases: Names of other dims that turned out to be the same.
    """

    name: str
    dims: tuple[Dim, ...]
    tensors: int = 0
    elements: int = 0
    reason: str | None = None
    role: Role = Role.NONE
    padding: State | None = None
    fillable: bool = False
    on_request: bool = False
    follows: tuple[Group, ...] = ()
    step: int = 1
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of units in the teacher."""
        return sum(dim.size for dim in self.dims)

    @property
    def is_uniform(self) -> bool:
        """Whether a statistic runs over it, so that all units get equally many copies."""
        return any(dim.ratio for dim in self.dims)

    @property
    def is_whole(self) -> bool:
        """Whether it grows by whole factors only."""
        return self.is_uniform and self.padding is None

    @property
    def state(self) -> str:
        """Whether it can grow: "growable", "whole factors", or "fixed" with the reason."""
        return f"fixed: {self.reason}" if self.reason else "whole factors" if self.is_whole else "growable"

    def __repr__(self) -> str:
        return f"{self.name} ({self.size}, {self.tensors} tensors, {self.state})"


@dataclass(frozen=True)
class Inspection:
    """The dims of a model: a sequence of groups; `inspection[name]` is one of them.

    Attributes:
        groups: Every dim of a weight or another constant, whether it can grow or not.
        elements: Number of elements of all floating-point constants.
    """

    groups: tuple[Group, ...]
    elements: int

    def __repr__(self) -> str:
        lines = [repr(group) for group in self.groups[:_SHOWN]]
        more = len(self.groups) - _SHOWN
        return "\n".join([*lines, *([f"... and {more} more dims"] if more > 0 else [])])

    def _repr_html_(self) -> str:
        columns = ("dim", "role", "size", "tensors", "weights", "can it grow?")
        rows = ((g.name, g.role, g.size, g.tensors, g.elements, g.state) for g in self.groups)
        return table_html(columns, rows, f"{self.elements:,} parameters")

    def __iter__(self) -> Iterator[Group]:
        """Iterate over the dims."""
        return iter(self.groups)

    def __len__(self) -> int:
        """Return how many dims there are."""
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        """Return the dim of a name, or the only dim that a pattern like ``layer1.*`` matches.

        Raises:
            KeyError: No dim matches, or several do.
        """
        found = [group for group in self.groups if name in (group.name, *group.aliases)]
        found = found or [group for group in self.groups if fnmatchcase(group.name, name)]
        if len(found) != 1:
            several = ", ".join(group.name for group in found[:5])
            raise KeyError(f"{name!r} fits {several}" if found else f"there is no dim {name!r}")
        return found[0]


def inspect(model: ModelLike) -> Inspection:
    """Find the dims of a model, and tell which can grow. No weights are read.

    Args:
        model: A path, a model in memory or a loaded model; see `load`.

    Raises:
        BadInputError: If it cannot be used.
    """
    with analysing(load(model)) as (opened, analysis):
        return inspect_analysis(opened.model, analysis)


@contextlib.contextmanager
def analysing(model: Model) -> Iterator[tuple[Opened, Analysis]]:
    """Open the bodies of a model and infer the dims of the flat graph, with the garbage collector paused."""
    with paused_gc():
        opened = open_bodies(model)
        yield opened, infer(opened.model)


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


def inspect_analysis(model: Model, analysis: Analysis, names: Mapping[Dim, str] | None = None) -> Inspection:
    """Return the dims of a model that was analysed, under the names given or its own; see `inspect`."""
    of_dim = _grouped(analysis, names or name_dims(analysis, model.proto))
    groups = list({id(group): group for group in of_dim.values()}.values())
    _count(analysis, of_dim)
    _freeze_incomplete_ratios(groups)
    _judge(analysis, groups)
    return Inspection(tuple(group for group in groups if group.size > 1 or group.reason is None), model.parameters)


def _grouped(analysis: Analysis, names: Mapping[Dim, str]) -> dict[Dim, Group]:
    """Return the group of each dim of a constant: the units of one dim are one group."""
    alive = {dim for use in analysis.uses.values() for axis in use.axes for dim in leaves(axis)}
    members: dict[Dim, list[Dim]] = {}
    for dim in names:
        if dim.size and dim in alive:
            members.setdefault(unit_of(dim), []).append(dim)
    roles = role_dims(analysis)
    of_dim: dict[Dim, Group] = {}
    for whole, dims in members.items():
        reasons = [dim.frozen for dim in dims]
        reason = reasons[0] if all(reasons) else None
        on_request = bool(reason) and not any(dim.fixed for dim in dims)
        role = roles.get(whole, Role.NONE)
        group = Group(names[dims[0]], tuple(dims), reason=reason, role=role, on_request=on_request)
        of_dim.update(dict.fromkeys(dims, group))
    for dim, name in names.items():
        merged = resolve(dim)
        if isinstance(merged, Dim) and merged is not dim and merged in of_dim:
            of_dim[merged].aliases += (name,)
    return of_dim


def _count(analysis: Analysis, of_dim: Mapping[Dim, Group]) -> None:
    """Count the constants that have each group on an axis, and their elements."""
    for use in {id(use.constant): use for use in analysis.uses.values()}.values():
        elements = math.prod(axis.size for axis in use.axes)
        for group in {id(g): g for axis in use.axes for d in leaves(axis) if (g := of_dim.get(d))}.values():
            group.tensors += 1
            group.elements += elements


def _judge(analysis: Analysis, groups: Iterable[Group]) -> None:
    """Tell which groups can have any width although a statistic runs over them, and which nothing would read."""
    summed = {dim for said in analysis.said.values() for c in said.contractions for dim in leaves(c.axis)}
    pads, free = paddable(analysis), fillable(analysis)
    for group in groups:
        group.padding = next((pads[dim] for dim in group.dims if dim in pads), None)
        group.fillable = len(group.dims) == 1 and group.dims[0] in free
        if group.reason is None and not any(dim in summed and not dim.frozen for dim in group.dims):
            group.reason = "no weight sums over it, so that nothing would read new units"


def _freeze_incomplete_ratios(groups: Iterable[Group]) -> None:
    """A dim whose growth drags along one that cannot grow cannot grow either."""
    for group in groups:
        for dim in group.dims:
            if dim.ratio is not None and group.reason is None:
                group.reason = dim.ratio.root().frozen


def covered(analysis: Analysis, growth: Mapping[Dim, Map]) -> float:
    """Return the share of the weight elements (see `analysis.weights`) on a grown axis."""
    total = grown = 0
    for use in weight_uses(analysis):
        elements = math.prod(axis.size for axis in use.axes)
        total += elements
        grown += elements if any(dim in growth for dim in leaf_set(*use.axes)) else 0
    return grown / total if total else 0.0
