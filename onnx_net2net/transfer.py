"""Fill a network that the user defined and exported, with random weights, from a trained one.

Transfer is growth whose sizes a target dictates: the two graphs are aligned, the sizes of the target's matched layers
say how far each dim of the teacher grows, the teacher's weights are grown by the maps of `widen`, and are written into
the target's constants in the target's layout. What the target has in excess is made to do nothing. No node is added to
the target and none is changed, so that its class can load the weights.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import onnx

from onnx_net2net.alignment import Alignment, align
from onnx_net2net.errors import BadInputError, NotEquivalentError, RefusedError
from onnx_net2net.filling import Filling, Source
from onnx_net2net.fitting import fit
from onnx_net2net.history import HISTORY, fingerprint, history
from onnx_net2net.inputs import input_specs, read_npz
from onnx_net2net.inspection import paused_gc
from onnx_net2net.maps import Style
from onnx_net2net.model import Model, Progress, load
from onnx_net2net.sides import Obstacle, Side, Sides, reshaped
from onnx_net2net.tensors import Array
from onnx_net2net.verify import Verification, verify


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
        return _transfer(old, new, Style(seed, spread), data)


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


def _transfer(teacher: Model, target: Model, style: Style, data) -> Transfer:
    import os as _os
    from onnx_net2net import selection
    from onnx_net2net.calibration import in_batches
    from onnx_net2net.inputs import check_feeds
    from onnx_net2net import reconstruction as R
    sides = Sides(Side(reshaped(teacher)), Side(target))
    found = _aligned(sides)
    choose = None
    changes = None
    mode = _os.environ.get("MODE", "select,fit,bn").split(",")
    if data is not None:
        specs = input_specs(target.proto)
        names = _names(teacher.proto.graph)[0], _names(target.proto.graph)[0]
        rename = dict(zip(names[1], names[0]))
        batches = [({rename[k]: v for k, v in b.items()}, b) for b in in_batches(check_feeds(data, specs), specs)]
        changes = {}
        pairs = R.pairs_of(sides, found.pairs)
        if "select" in mode:
            choose = lambda sizes: selection.choose(sides.teacher, [old for old, _ in found.pairs], [b[0] for b in batches], sizes)
    fitted = fit(sides, found, style, choose)
    asked, interface = fitted.sizes, fitted.interface
    filling = Filling(sides, asked, changes)
    for old, new in found.pairs:
        filling.fill(old, new)
    for item in found.added:
        filling.silence(item)
    sources = tuple(filling.write())
    if data is not None and sides.obstacles:
        if "fit" in mode: R.Reconstruction(sides, fitted, changes, batches).run(pairs)
    record = {"operation": "transfer", "spread": style.spread, "seed": style.seed, "version": version("onnx-net2net"),
              "teacher": fingerprint(teacher), "target": fingerprint(target), **interface}  # fmt: skip
    metadata = {HISTORY: json.dumps([*history(teacher), record])}
    student = sides.target.opened.close(sides.target.analysis.draft.finish(metadata))
    return Transfer(teacher, target, student, sources, tuple(sides.obstacles), style.seed)


def _aligned(sides: Sides) -> Alignment:
    """Return what corresponds to what.

    Raises:
        RefusedError: If no layer of the two does.
    """
    items = sides.teacher.items, sides.target.items
    found = align(*items)
    if not any("weight" in old.slots for old, _ in found.pairs):
        kinds = [sorted({unit.kind for item in side for unit in item.units}) for side in items]
        raise RefusedError(
            f"the two networks have no layer in common: {', '.join(kinds[0]) or 'nothing'} in the teacher, "
            f"{', '.join(kinds[1]) or 'nothing'} in the target"
        )
    for unit in found.lost:
        sides.hinder(unit.name, f"the target has nothing for this {unit.text}")
    return found


def _names(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of a graph."""
    constants = {tensor.name for tensor in graph.initializer}
    return [v.name for v in graph.input if v.name not in constants], [v.name for v in graph.output]
