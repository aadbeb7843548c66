"""Fill a network that the user defined and exported, with random weights, from a trained one.

Transfer is growth whose sizes a target dictates: the two graphs are aligned, the sizes of the target's matched layers
say how far each dim of the teacher grows, the teacher's weights are grown by the maps of `widen`, and are written into
the target's constants in the target's layout. What the target has in excess is made to do nothing. No node is added to
the target and none is changed, so that its class can load the weights.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_net2net import sizes
from onnx_net2net.alignment import Alignment, Item, Slot, Unit, Use, align, items_of
from onnx_net2net.binding import TargetSizes
from onnx_net2net.bodies import open_bodies
from onnx_net2net.calibration import recalibrated
from onnx_net2net.clipping import clip, window
from onnx_net2net.dims import Dim, keep_uniform, leaves
from onnx_net2net.errors import BadInputError, NotEquivalentError, RefusedError
from onnx_net2net.history import HISTORY, fingerprint, history
from onnx_net2net.inference import constant_of, infer
from onnx_net2net.inputs import input_specs, read_npz
from onnx_net2net.insertion import dirac
from onnx_net2net.inspection import Group, Inspection, inspect_analysis, paused_gc
from onnx_net2net.maps import ORIGINS, Map, Style, in_turn, pad
from onnx_net2net.model import Model, Progress, load
from onnx_net2net.naming import scope_of
from onnx_net2net.padding import State
from onnx_net2net.plan import Plan
from onnx_net2net.rewrite import rewrite
from onnx_net2net.streams import Scaling, rescale
from onnx_net2net.tensors import Array
from onnx_net2net.verify import Verification, verify


@dataclass(frozen=True)
class Obstacle:
    """Why the student does not compute the teacher's function.

    Attributes:
        place: The layer or dim, as the target or the teacher calls it.
        reason: What is in the way there.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """Where the values of a tensor of the target came from.

    Attributes:
        name: The tensor.
        shape: Its shape.
        origin: "teacher", "identity" (a layer or normalisation that does nothing), "zero", "measured" or "kept".
        teacher: The teacher's tensor, "" if there is none.
        target: Its name in the target, where several nodes may have read one tensor that no longer have equal values.
        scopes: The modules of the nodes that read it, "" where the file does not tell.
    """

    name: str
    shape: tuple[int, ...]
    origin: str
    teacher: str = ""
    target: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """A filled model.

    Attributes:
        teacher: The model that the values came from.
        target: The model that was filled.
        student: The target with its new values, which are computed when it is saved or run.
        sources: Where the values of each of the target's float tensors came from.
        obstacles: What is in the way of an exact transfer; none where the target contains the teacher.
        seed: Seed of every random choice.
    """

    teacher: Model
    target: Model
    student: Model
    sources: tuple[Source, ...]
    obstacles: tuple[Obstacle, ...]
    seed: int

    @property
    def filled(self) -> float:
        """Share of the target's float elements that did not keep their initial values."""
        sizes = [(math.prod(source.shape), source.origin != "kept") for source in self.sources]
        return sum(n for n, is_filled in sizes if is_filled) / max(sum(n for n, _ in sizes), 1)

    @property
    def comparable(self) -> Model:
        """The student with the names of the teacher's inputs and outputs, so that `verify` can compare the two."""
        graphs = self.teacher.proto.graph, self.student.proto.graph
        if _names(graphs[0]) == _names(graphs[1]):
            return self.student
        draft = self.student.draft()
        tensors = [*draft.graph.inputs, *draft.graph.outputs]
        names = [name for side in _names(graphs[0]) for name in side]
        for name, tensor in draft.graph.tensors().items():
            if name in names and not any(tensor is other for other in tensors):
                tensor.name = draft.unique_name(f"{name}_inside")
        for tensor, name in zip(tensors, names, strict=True):
            tensor.name = name
        return draft.finish(stale="all")


def transfer(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    target: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    spread: float = 0.3,
    seed: int = 0,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Fill a target from a teacher.

    Args:
        teacher: A path, a model in memory or a loaded model: trained.
        target: Likewise: of any weights. Neither is changed.
        spread: How unevenly copies share their outgoing weights, as in `widen`.
        seed: Seed of every random choice.
        calibrate: Inputs (an npz file, or arrays by name) on which the statistics of BatchNormalizations are measured
            anew where the transfer is not exact; those of an exact one stay.
        progress: Told how many normalisations are done, and of how many.

    Returns:
        The student. It computes what the teacher does if there are no obstacles; see `onnx_net2net.verify`.

    Raises:
        BadInputError: If a model cannot be used, or an option makes no sense.
        RefusedError: If the two have different interfaces, or nothing in common.
    """
    if seed < 0:
        raise BadInputError(f"the seed must be at least 0, not {seed}")
    if not (math.isfinite(spread) and spread >= 0):
        raise BadInputError(f"spread must be a number of at least 0, not {spread}")
    old, new = load(teacher), load(target)
    check_interfaces(old.proto.graph, new.proto.graph)
    data = read_npz(calibrate, input_specs(new.proto)) if isinstance(calibrate, str | os.PathLike) else calibrate
    with paused_gc():
        result = _Filling(old, new, Style(seed, spread)).transfer()
    if data is None or not result.obstacles:
        return result
    student, measured = recalibrated(result.student, data, progress=progress)
    sources = (replace(s, origin="measured", teacher="") if s.name in measured else s for s in result.sources)
    return replace(result, student=student, sources=tuple(sources))


def check_interfaces(teacher: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Refuse models that take or return other kinds of things.

    Raises:
        RefusedError: If there are other numbers of inputs or outputs, or other types or ranks of one.
    """
    constants = {tensor.name for graph in (teacher, target) for tensor in graph.initializer}
    for what in ("input", "output"):
        sides = [[v for v in getattr(graph, what) if v.name not in constants] for graph in (teacher, target)]
        if len(sides[0]) != len(sides[1]):
            raise RefusedError(f"the teacher has {len(sides[0])} {what}s, the target {len(sides[1])}")
        for one, other in zip(*sides, strict=True):
            kinds = [value.type.tensor_type.elem_type for value in (one, other)]
            ranks = [len(v.type.tensor_type.shape.dim) if v.type.tensor_type.HasField("shape") else None
                     for v in (one, other)]  # fmt: skip
            if kinds[0] != kinds[1]:
                names = [onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds]
                raise RefusedError(f"{what} {one.name!r} is {names[0]} in the teacher, {other.name!r} {names[1]}")
            if None in ranks:
                name = (one, other)[ranks.index(None)].name
                raise RefusedError(f"{what} {name!r} has no fixed rank; export it with its shape")
            if ranks[0] != ranks[1]:
                raise RefusedError(f"{what} {one.name!r} has {ranks[0]} axes in the teacher, {ranks[1]} in the target")


def proof(result: Transfer, **checking: Any) -> tuple[Verification | None, tuple[Obstacle, ...]]:
    """Compare a student with its teacher.

    Args:
        result: The transfer.
        checking: Options of `verify`.

    Returns:
        The comparison, None where the two cannot be compared, and what is in the way of an exact transfer: none if
        the student computes what the teacher computes.
    """
    try:
        verification = verify(result.teacher, result.comparable, **checking)
    except NotEquivalentError as error:
        return None, (*result.obstacles, Obstacle("interface", str(error)))
    if verification.equivalent or result.obstacles:
        return verification, result.obstacles
    where = verification.diverges_at or "the outputs"
    return verification, (Obstacle(where, "the student differs from here on, for a reason that is not known"),)


# --- Filling -------------------------------------------------------------------------------------------------


def reshaped(model: Model) -> Model:
    """Return a model in which a Gather that only gives a tensor another shape is a Reshape, which lets dims grow.

    PyTorch's exporter writes `as_strided` so: it looks up 0, 1, 2, ... in a flat tensor.
    """
    tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    found = {}
    for number, node in enumerate(model.proto.graph.node):
        if node.op_type == "Gather" and not node.domain and node.input[1] in tensors and node.input[0] not in tensors:
            places = np.asarray(model.tensor(tensors[node.input[1]]).numpy())
            if places.size > 1 and np.array_equal(places.reshape(-1), np.arange(places.size)):
                found[number] = places
    if not found:
        return model
    shapes = sizes.infer(model.proto).shape
    proto = copy.deepcopy(model.proto)
    for number, places in found.items():
        node = proto.graph.node[number]
        if shapes(node.input[0]) == (places.size,):
            name = f"{node.output[0]}_shape"
            proto.graph.initializer.append(numpy_helper.from_array(np.array(places.shape, np.int64), name))
            node.CopyFrom(helper.make_node("Reshape", [node.input[0], name], list(node.output), node.name))
    return replace(model, proto=proto, path=None)


Write = tuple[object, Callable[[], Array], str, str]
"""A key that equal values share, what computes them, where they come from, and the teacher's tensor."""


class _Filling:
    """One transfer."""

    def __init__(self, teacher: Model, target: Model, style: Style) -> None:
        self._teacher, self._target, self._style = teacher, target, style
        self._opened = open_bodies(reshaped(teacher)), open_bodies(target)
        self._old, self._new = (infer(opened.model, by_units=False) for opened in self._opened)
        self._nodes = list(self._old.nodes), list(self._new.nodes)
        self._initial = {key: self._new.draft.reader(use.constant) for key, use in self._new.uses.items()}
        self._writes: dict[Use, Write] = {}
        self._sizes = TargetSizes()
        self._interface: dict[str, list[tuple[str, int, int, int]]] = {}
        self.obstacles: list[Obstacle] = []

    def transfer(self) -> Transfer:
        """Do it."""
        found = self._align()
        self._grow(found)
        for old, new in found.pairs:
            self._fill(old, new)
        for item in found.added:
            self._silence(item)
        sources = list(self._write())
        record = {"operation": "transfer", "spread": self._style.spread, "seed": self._style.seed,
                  "version": version("onnx-net2net"), "teacher": fingerprint(self._teacher),
                  "target": fingerprint(self._target), **self._interface}  # fmt: skip
        metadata = {HISTORY: json.dumps([*history(self._teacher), record])}
        student = self._opened[1].close(self._new.draft.finish(metadata))
        return Transfer(self._teacher, self._target, student, tuple(sources), tuple(self.obstacles), self._style.seed)

    def _hinder(self, place: str, reason: str) -> None:
        obstacle = Obstacle(place, reason)
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)

    def _align(self) -> Alignment:
        analyses = self._old, self._new
        items = [items_of(a, opened.model.proto) for a, opened in zip(analyses, self._opened, strict=True)]
        found = align(*items)
        if not any("weight" in old.slots for old, _ in found.pairs):
            kinds = [sorted({unit.kind for item in side for unit in item.units}) for side in items]
            raise RefusedError(
                f"the two networks have no layer in common: {', '.join(kinds[0]) or 'nothing'} in the teacher, "
                f"{', '.join(kinds[1]) or 'nothing'} in the target"
            )
        for unit in found.lost:
            self._hinder(unit.name, f"the target has nothing for this {unit.text}")
        return found

    # -- growing the teacher -----------------------------------------------------------------------------------

    def _grow(self, found: Alignment) -> None:
        """Grow the teacher to the sizes of the target, as far as it can."""
        for old, new in found.pairs:
            for what, slot in old.slots.items():
                if what in new.slots:
                    self._bind(slot, new.slots[what])
        averaged = self._keep_means()
        inspection = inspect_analysis(self._opened[0].model, self._old)
        wanted = self._sizes.solve()
        self._note_conflicts(inspection)
        rng = np.random.default_rng(self._style.seed)
        plan = Plan(self._old, inspection, 1, "replicate", rng, None, False)
        for group in inspection.groups:
            self._grow_group(plan, group, wanted, averaged)
        self._interface = plan.interface()
        rewrite(self._opened[0].model, self._old, plan.growth, self._style, {}, self._scaling(plan, inspection))
        for what in self._old.inserted:
            name = re.search(r"'([^']+)'", what)
            self._hinder(name[1] if name else what, f"growing it needs {what}, which the target does not have")

    def _keep_means(self) -> set[Dim]:
        """Copy all units equally often where a mean runs over them that no weight takes part in, and return them."""
        found: set[Dim] = set()
        for number, said in self._old.said.items():
            for contraction in said.contractions:
                if contraction.law == "mean" and len(contraction.sides) == 1 and not self._old.is_derived(number, 0):
                    node = self._old.nodes[number]
                    keep_uniform(contraction.axis, f"{node.op} {node.name!r} takes a mean over it")
                    found.update(leaves(contraction.axis))
        return found

    def _scaling(self, plan: Plan, inspection: Inspection) -> Scaling:
        """Return by what the weights around padded dims are multiplied, as the target keeps its epsilons."""
        starts: dict[int, State] = {ORIGINS.index("mean"): "mean", ORIGINS.index("zero_in"): "zero"}
        scaling = Scaling()
        for group in inspection.groups:
            pads = {dim: starts[kind] for dim in group.dims
                    if dim in plan.growth and (kind := int(plan.growth[dim].kind.max())) in starts}  # fmt: skip
            try:
                found = rescale(self._old, plan.growth, pads)
            except RefusedError as error:
                self._hinder(group.name, str(error))
                continue
            scaling.unweighed |= found.unweighed
            for use, factor in found.factors.items():
                scaling.factors[use] = scaling.factors.get(use, 1.0) * factor
        return scaling

    def _bind(self, old: Slot, new: Slot) -> None:
        """State that the axes of two parameters are alike, but for kernels."""
        sides = [slot.axes(analysis)[: slot.channels] for slot, analysis in ((old, self._old), (new, self._new))]
        if len(sides[0]) != len(sides[1]):
            sides = [[axis for axis in side if axis.size > 1] for side in sides]
        if len(sides[0]) == len(sides[1]):
            weight = math.prod(axis.size for axis in sides[1])
            for one, other in zip(*sides, strict=True):
                self._sizes.bind(one, other, weight)

    def _note_conflicts(self, inspection: Inspection) -> None:
        for group in inspection.groups:
            for dim in group.dims:
                asked = sorted(self._sizes.wanted.get(dim, ()))
                if len(asked) > 1:
                    texts = " and ".join(map(str, asked))
                    self._hinder(group.name, f"one dim of {dim.size} units has {texts} in the target")

    def _grow_group(self, plan: Plan, group: Group, wanted: dict[Dim, int], averaged: set[Dim]) -> None:
        """Give a group the target's size, by an exact map if there is one."""
        asked = {dim: wanted.get(dim, dim.size) for dim in group.dims}
        size = sum(asked.values())
        if size == group.size or any(dim in plan.growth for dim in group.dims):
            return
        if size < group.size:
            self._hinder(group.name, f"{group.size} units do not fit into {size}")
            for dim, new in asked.items():
                if new < dim.size and not dim.fixed:
                    plan.growth[dim] = _middle(dim.size, new)
            return
        (dim, *rest) = group.dims
        if dim in averaged and not rest and group.reason is None and size % dim.size and group.padding is None:
            for held in ("zero", "mean"):
                with contextlib.suppress(RefusedError):
                    rescale(self._old, {dim: (map := pad(dim.size, size, held))}, {dim: held})
                    plan.growth[dim] = map
                    return
        try:
            if group.reason is None:
                plan.grow_exactly(group, size)
            elif group.on_request:
                plan.append(group, size)
            else:
                self._hinder(group.name, f"it cannot have {size} units: {group.reason}")
        except RefusedError as error:
            why = next((dim.statistic for dim in group.dims if dim.statistic), str(error))
            self._hinder(group.name, f"{group.size} units cannot grow to {size}, which is no multiple: {why}")
            for dim, new in asked.items():
                if new > dim.size and not dim.frozen:
                    plan.growth[dim] = in_turn(dim.size, new)

    # -- filling the target ------------------------------------------------------------------------------------

    def _read(self, slot: Slot) -> Callable[[], Array] | None:
        """Return what reads the grown constant in a slot of the teacher, in the common order."""
        constant = constant_of(self._nodes[0][slot.use[0]].inputs[slot.use[1]])
        if constant is None:
            return None
        read = self._old.draft.reader(constant)
        return lambda: slot.common(read())

    def _fill(self, old: Unit, new: Unit) -> None:
        """Give the parameters of a unit of the target their values."""
        self._compare(old, new)
        reads = {what: read for what, slot in old.slots.items() if (read := self._read(slot)) is not None}
        for what in old.slots.keys() - reads.keys():
            self._hinder(old.name, f"its {what} needs nodes of its own when it grows")
        values = self._converted(old, new, dict(reads))
        for what, slot in new.slots.items():
            if what in values:
                source = old.slots.get(what) or (old.slots.get("shift") if what == "bias" else None)
                self._put(new, what, slot, values[what], "teacher" if source else "identity", source)

    def _converted(
        self, old: Unit, new: Unit, values: dict[str, Callable[[], Array]]
    ) -> dict[str, Callable[[], Array]]:
        """Return the parameters of a unit in the form that the target has: with or without bias and normalisation."""
        units = self._size(new, "bias") or self._size(new, "shift")
        zeros = partial(np.zeros, units, np.float32)
        is_layer = "weight" in old.slots
        if old.norm is not None and is_layer and new.norm is None:
            return self._folded(old, new, values)
        if new.norm is not None and is_layer and old.norm is None:
            epsilon = self._epsilon(1, new.norm)
            bias = values.pop("bias", zeros)
            values["shift"], values["mean"] = bias, zeros
            values["variance"] = partial(np.ones, units, np.float32)
            values["scale"] = partial(np.full, units, math.sqrt(1 + epsilon))
        if old.norm is not None and new.norm is not None:
            self._match_norms(old, new, values)
        if "bias" in values and "bias" not in new.slots:
            bias = values.pop("bias")
            if new.norm is not None and "mean" in values:
                mean = values["mean"]
                values["mean"] = lambda: mean() - bias()
            elif np.any(bias()):
                self._hinder(new.name, "it has no bias, but the teacher's layer has one")
        elif "bias" in new.slots and "bias" not in values:
            values["bias"] = zeros
        for what in ("scale", "shift"):
            if what in values and what not in new.slots and np.any(values[what]() != (what == "scale")):
                self._hinder(new.name, f"it has no {what}, but the teacher's has one")
            elif what in new.slots and what not in values:
                values[what] = partial(np.full, self._size(new, what), float(what == "scale"))
        return values

    def _size(self, unit: Unit, what: str) -> int:
        """Return the number of elements of a parameter, 0 where there is none."""
        return math.prod(self._new.uses[unit.slots[what].use].constant.shape) if what in unit.slots else 0

    def _match_norms(self, old: Unit, new: Unit, values: dict[str, Callable[[], Array]]) -> None:
        """Scale the results of a BatchNormalization so that another epsilon makes no difference."""
        assert old.norm is not None
        assert new.norm is not None
        before, after = self._epsilon(0, old.norm), self._epsilon(1, new.norm)
        if before != after and {"scale", "variance"} <= values.keys():
            scale, variance = values["scale"], values["variance"]
            values["scale"] = lambda: scale() * np.sqrt((variance() + after) / (variance() + before))

    def _folded(self, old: Unit, new: Unit, values: dict[str, Callable[[], Array]]) -> dict[str, Callable[[], Array]]:
        """Return weights and a bias that have the normalisation of the teacher's layer in them."""
        assert old.norm is not None
        grouped = old.kind == "ConvTranspose" and self._nodes[0][old.node].attrs.get("group", 1) != 1
        if "bias" not in new.slots or grouped or not {"scale", "shift", "mean", "variance"} <= values.keys():
            self._hinder(new.name, "it cannot hold the teacher's normalisation")
            return values
        epsilon = self._epsilon(0, old.norm)
        weight, bias = values["weight"], values.get("bias", lambda: np.zeros(()))

        def factor() -> Array:
            return values["scale"]().astype(np.float64) / np.sqrt(values["variance"]().astype(np.float64) + epsilon)

        def folded() -> Array:
            values = weight()
            out = 1 if old.kind == "ConvTranspose" else 0
            scaled: Array = values * factor().reshape([-1 if axis == out else 1 for axis in range(values.ndim)])
            return scaled

        return {"weight": folded, "bias": lambda: (bias() - values["mean"]()) * factor() + values["shift"]()}

    def _epsilon(self, side: int, norm: int) -> float:
        return float(self._nodes[side][norm].attrs.get("epsilon", 1e-5))

    def _compare(self, old: Unit, new: Unit) -> None:
        """Note the attributes of a layer's node in which the two differ."""
        one, other = self._nodes[0][old.node], self._nodes[1][new.node]
        if one.op != other.op:
            return
        kernels = tuple(old.shape[2:]), tuple(new.shape[2:])
        if kernels[0] != kernels[1] and "weight" in new.slots and not self._surrounds(old, new):
            texts = [" x ".join(map(str, kernel or (1,))) for kernel in kernels]
            self._hinder(new.name, f"no zeros around a kernel of {texts[0]} make it one of {texts[1]} with these pads")
        for key in sorted({*one.attrs, *other.attrs} - _LAYOUT):
            default = -1 if key == "axis" and one.op in _NORMS else _DEFAULTS.get(key)
            values = [_plain(node.attrs.get(key, default)) for node in (one, other)]
            if key in ("kernel_shape", "pads") and kernels[0] != kernels[1]:
                continue
            if values[0] != values[1] and not (old.norm is not None and key == "epsilon"):
                self._hinder(new.name, f"{key} is {values[0]} in the teacher and {values[1]} in the target")

    def _put(
        self, unit: Unit, what: str, slot: Slot, compute: Callable[[], Array], origin: str, source: Slot | None
    ) -> None:
        """Write values in the common order to a slot of the target."""
        constant = self._new.uses[slot.use].constant
        shape = tuple(constant.shape)
        name = ""
        key: tuple[object, ...] = (origin, slot.use)
        if source is not None:
            read = constant_of(self._nodes[0][source.use[0]].inputs[source.use[1]])
            name = read.name if read is not None else ""
            key = (origin, id(read), slot.order, what if what in ("scale", "weight", "mean") else "")
        kernel = self._ring(slot, source) if what == "weight" and source is not None else None

        wanted = tuple(shape[position] for position in slot.order)[: slot.flat]
        parts = self._parts(slot, source) if source is not None else []

        def values() -> Array:
            made = compute()
            if kernel is not None:
                made = made.reshape(*made.shape, *(1 for _ in range(2 + len(kernel) - made.ndim)))
                made = np.pad(made, [(0, 0), (0, 0), *((n, n) for n in kernel)])
            if parts:
                made = self._spread(made, slot, parts, zero=what == "weight")
            if made.size == math.prod(shape) and _real(made.shape) == _real(wanted):
                made = made.reshape(wanted)
            else:
                made = self._clipped(made, slot, constant)
            return slot.own(made, shape).astype(self._new_type(constant), copy=False)

        grown = self._grown_shape(source) if source is not None else None
        for axis, places in parts:
            if grown is not None and grown[axis] == int(places.sum()):
                grown = (*grown[:axis], len(places), *grown[axis + 1 :])
        if grown is not None and kernel is None and _real(grown) != _real(wanted):
            self._misfit(unit, what, grown, wanted)
        self._writes[slot.use] = key, values, origin, name

    def _misfit(self, unit: Unit, what: str, grown: Sequence[int], wanted: Sequence[int]) -> None:
        """Note once that a unit is filled in part."""
        if not any(obstacle.place == unit.name for obstacle in self.obstacles):
            texts = [" x ".join(map(str, _real(shape))) for shape in (wanted, grown)]
            self._hinder(unit.name, f"its {what} of {texts[0]} is filled in part, from one of {texts[1]}")

    def _parts(self, slot: Slot, source: Slot) -> list[tuple[int, np.ndarray]]:
        """Return the axes of which the target has parts that the teacher has not, with the places that it has."""
        sides = source.axes(self._old), slot.axes(self._new)
        found = []
        for axis, (old, new) in enumerate(zip(*sides, strict=True) if len(sides[0]) == len(sides[1]) else ()):
            segments = self._sizes.segments(old, new)
            if segments is not None:
                found.append((axis, np.concatenate([np.full(size, own) for size, own in segments])))
        return found

    def _spread(self, values: Array, slot: Slot, parts: list[tuple[int, np.ndarray]], zero: bool) -> Array:
        """Put values where the teacher has them; the other places are not read, or keep what they had."""
        initial = np.array(slot.common(self._initial[slot.use]()))
        for axis, places in parts:
            if values.shape[axis] != int(places.sum()):
                return values
            shape = [size if other != axis else len(places) for other, size in enumerate(values.shape)]
            rest = initial.shape == tuple(shape) and not zero
            whole = initial if rest else np.zeros(shape, values.dtype)
            whole[(slice(None),) * axis + (places,)] = values
            values = whole
        return values

    def _surrounds(self, old: Unit, new: Unit) -> bool:
        """Tell whether the larger kernel of the target reaches as much further as it is padded more."""
        ring = self._ring(new.slots["weight"], old.slots["weight"])
        if ring is None:
            return False
        pads, attrs = [], [self._nodes[0][old.node].attrs, self._nodes[1][new.node].attrs]
        for own in attrs:
            if own.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
                return False
            pads.append(own.get("pads") or [0] * (2 * len(ring)))
        steps = attrs[1].get("dilations") or [1] * len(ring)
        further = [size * step for size, step in zip(ring, steps, strict=True)] * 2
        return [a + b for a, b in zip(pads[0], further, strict=True)] == list(pads[1])

    def _ring(self, slot: Slot, source: Slot) -> list[int] | None:
        """Return how many zeros are to be put around a kernel on each side, None if it has the target's size."""
        kernels = [[axis.size for axis in s.axes(a)[s.channels :]] for s, a in ((source, self._old), (slot, self._new))]
        if kernels[0] == kernels[1]:
            return None
        rank = max(map(len, kernels))
        old, new = (k or [1] * rank for k in kernels)
        return [(b - a) // 2 for a, b in zip(old, new, strict=True)] if all(
            b >= a and (b - a) % 2 == 0 for a, b in zip(old, new, strict=True)
        ) else None  # fmt: skip

    def _grown_shape(self, slot: Slot) -> tuple[int, ...]:
        constant = constant_of(self._nodes[0][slot.use[0]].inputs[slot.use[1]])
        shape = constant.shape if constant is not None else ()
        return tuple(shape[position] for position in slot.order)[: slot.flat] if shape else ()

    def _new_type(self, constant: gs.Constant) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(self._new.draft.type_of(constant)))
        return dtype

    def _clipped(self, values: Array, slot: Slot, constant: gs.Constant) -> Array:
        """Return the target's values with the middle of others in their middle, as DPIAT does."""
        made = np.array(slot.common(self._initial[slot.use]()))
        if made.ndim != values.ndim:
            return made
        return clip(values, made)

    # -- what the target has in excess -------------------------------------------------------------------------

    def _silence(self, item: Item) -> None:
        """Let what nothing corresponds to compute the identity."""
        if item.block is not None:
            if item.block.reason:
                self._hinder(item.name, f"nothing in the teacher corresponds to this block, and {item.block.reason}")
                return
            for use in item.block.zeroed:
                self._zero(use)
            return
        (unit,) = item.units
        if unit.neutral:
            self._make_identity(unit)
        elif self._nodes[1][unit.node].op in ("Mul", "Add", "BatchNormalization"):
            self._undo(unit)
        else:
            self._hinder(unit.name, self._why_not(unit))

    def _why_not(self, unit: Unit) -> str:
        if "weight" in unit.slots:
            return f"nothing in the teacher corresponds to it, and this {unit.text} cannot compute the identity here"
        return f"nothing in the teacher corresponds to this {unit.text}; it keeps its values"

    def _zero(self, use: Use) -> None:
        found = self._new.uses[use]
        shape, kind = tuple(found.constant.shape), self._new_type(found.constant)
        self._writes[use] = ("zero", shape), lambda: np.zeros(shape, kind), "zero", ""

    def _constant(self, what: str, slot: Slot, value: float) -> None:
        shape = tuple(self._new.uses[slot.use].constant.shape)
        kind = self._new_type(self._new.uses[slot.use].constant)
        self._writes[slot.use] = ("identity", value, shape), lambda: np.full(shape, value, kind), "identity", ""

    def _make_identity(self, unit: Unit) -> None:
        """Make a layer an identity, and let its normalisation undo itself."""
        slot = unit.slots["weight"]
        group = int(self._nodes[1][unit.node].attrs.get("group", 1))
        shape = tuple(axis.size for axis in slot.axes(self._new))

        weights = partial(dirac(shape[0], group), shape, np.dtype(np.float32))
        self._put(unit, "weight", slot, weights, "identity", None)
        self._undo(unit)

    def _undo(self, unit: Unit) -> None:
        """Let a normalisation, or a scale and a shift that are constants, do nothing."""
        epsilon = self._epsilon(1, unit.norm) if unit.norm is not None else 0.0
        values = {"scale": math.sqrt(1 + epsilon), "variance": 1.0}
        for what, slot in unit.slots.items():
            if what != "weight":
                self._constant(what, slot, values.get(what, 0.0))

    # -- writing -----------------------------------------------------------------------------------------------

    def _write(self) -> Iterator[Source]:
        """Put all values into the target's draft; constants that several nodes read in different ways are parted."""
        draft = self._new.draft
        for uses in self._new.readings():
            constant, keys = uses[0].constant, [(use.node, use.input) for use in uses]
            shape, kind = tuple(constant.shape), draft.type_of(constant)
            parted: dict[object, list[Use]] = {}
            values = [key for key in keys if self._nodes[1][key[0]].op not in ("Shape", "Size")]  # the shape stays
            for key in values or keys:
                parted.setdefault(self._writes[key][0] if key in self._writes else None, []).append(key)
            is_float = np.issubdtype(self._new_type(constant), np.floating) and math.prod(shape) > 1
            for position, (what, readers) in enumerate(sorted(parted.items(), key=lambda item: item[0] is not None)):
                name = constant.name
                if what is not None:
                    _, compute, origin, source = self._writes[readers[0]]
                    if position:
                        own = draft.lazy_constant(f"{name}_own", kind, shape, compute, like=constant)
                        for node, index in readers:
                            self._nodes[1][node].inputs[index] = own
                        name = own.name
                    else:
                        draft.replace(constant, shape, compute)
                    yield Source(name, shape, origin, source, constant.name, self._scopes(readers))
                elif is_float:
                    yield Source(name, shape, "kept", "", name, self._scopes(readers))

    def _scopes(self, readers: Sequence[Use]) -> tuple[str, ...]:
        nodes = self._opened[1].model.proto.graph.node
        return tuple(scope_of(nodes[number]) for number, _ in readers)


_LAYOUT = {"transA", "transB", "momentum", "training_mode", "spatial", "is_test"}
_DEFAULTS = {"group": 1, "alpha": 1.0, "beta": 1.0, "auto_pad": "NOTSET", "epsilon": 1e-5, "stash_type": 1,
             "axis": 0}  # fmt: skip


_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | list | tuple):
        values = list(value)
        return None if all(v == 1 for v in values) or not any(values) else values
    return round(value, 12) if isinstance(value, float) else value


def _names(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of a graph."""
    constants = {tensor.name for tensor in graph.initializer}
    return [v.name for v in graph.input if v.name not in constants], [v.name for v in graph.output]


def _real(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _middle(old: int, new: int) -> Map:
    """Return the map that keeps the units in the middle, as `window` does."""
    index = np.arange(old)[window(old, new)[0]]
    return Map(old, index, np.ones(new), np.zeros(new, np.int8), np.ones(new, bool))
