"""Fill a network that the user defined and exported, with random weights, from a trained one.

Transfer is growth to sizes that a target dictates, in five steps:

1. `align` matches the layers of the two graphs.
2. `fit` grows the teacher, by the maps of `widen`, to the sizes of the target's matched layers.
3. `fill` writes the teacher's weights into the target's constants, in the target's layout.
4. Layers that only the target has are made to do nothing.
5. Where that is not exact, `examples` fit the target's layers to what the teacher's make of data.

No node of the target is added or changed, so that its class can load the weights.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis.groups import paused_gc
from onnx_net2net.errors import BadInputError, NotEquivalentError, RefusedError
from onnx_net2net.graph.graph import Graph
from onnx_net2net.model.history import fingerprint, record
from onnx_net2net.model.model import Model, Progress, load
from onnx_net2net.model.protos import constants_in
from onnx_net2net.operations.transfer.align import Alignment, align
from onnx_net2net.operations.transfer.convert import regrouped
from onnx_net2net.operations.transfer.copies import check_gates, take_copies, with_joined_gates
from onnx_net2net.operations.transfer.counterparts import Counterparts
from onnx_net2net.operations.transfer.divergence import Explanation, Likeness, explained, likenesses, matched_layers
from onnx_net2net.operations.transfer.examples.refit import Reconstruction
from onnx_net2net.operations.transfer.examples.select import choose
from onnx_net2net.operations.transfer.fill import Changes, Filling
from onnx_net2net.operations.transfer.fit import fit
from onnx_net2net.operations.transfer.modules import Module
from onnx_net2net.operations.transfer.networks import Network, Networks, Obstacle, reshaped
from onnx_net2net.operations.transfer.segments import put_together
from onnx_net2net.operations.transfer.sharing import shared_less
from onnx_net2net.operations.transfer.ties import tie
from onnx_net2net.operations.transfer.values import Provenance
from onnx_net2net.operations.widen.options import WidenOptions
from onnx_net2net.proof.models import compare_models
from onnx_net2net.proof.verdict import Verification
from onnx_net2net.run.inputs import Feeds, arrays_of, input_specs
from onnx_net2net.run.watch import in_batches


@dataclass(frozen=True)
class Transfer:
    """The result of `transfer`.

    Attributes:
        teacher: The model that the values came from.
        target: The model that was filled.
        student: The target with its new values, which are computed when it is saved or run.
        sources: For each float tensor of the target, where its values came from.
        obstacles: Why the transfer is not exact. Without obstacles the student computes the same as the teacher; this
            has been measured unless `prove` was False.
        seed: Seed of every random choice.
        doubts: Other differences between corresponding nodes. Most have no effect. They are named as reasons only if
            the outputs of student and teacher differ.
        reads: By the name of a layer's weight: the number of units that it sums over, relative to the teacher's.
        depth: The number of the target's layers, relative to the number of those that the teacher fills.
        likenesses: By a tensor inside of the teacher: what corresponds to it in the student.
        explain: Runs both models and finds the first place where they differ.
    """

    teacher: Model
    target: Model
    student: Model
    sources: tuple[Provenance, ...]
    obstacles: tuple[Obstacle, ...]
    seed: int
    doubts: tuple[Obstacle, ...] = field(default=(), kw_only=True)
    reads: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    depth: float = field(default=1.0, kw_only=True)
    likenesses: Mapping[str, Likeness] = field(default_factory=dict, kw_only=True, repr=False)
    explain: Callable[[], Explanation] = field(
        default=lambda: Explanation(Obstacle("the outputs", "they differ")), kw_only=True, repr=False
    )

    @property
    def filled(self) -> float:
        """The fraction of the target's float elements that did not keep their initial values."""
        sizes = [(math.prod(source.shape), source.origin != "kept") for source in self.sources]
        return sum(n for n, is_filled in sizes if is_filled) / max(sum(n for n, _ in sizes), 1)

    @property
    def comparable(self) -> Model:
        """The student with the teacher's names, as far as tensors correspond, so that `verify` can compare the two.

        The two were exported apart: other tensors of one name have nothing to do with each other.
        """
        names = [_names(model.proto.graph) for model in (self.teacher, self.student)]
        numbers = [" and ".join(str(len(some)) for some in own) for own in names]
        if numbers[0] != numbers[1]:
            raise NotEquivalentError(
                f"the teacher has {numbers[0]} inputs and outputs, the student has {numbers[1]}: they are not compared"
            )
        ends, graph = [[name for some in own for name in some] for own in names], self.teacher.proto.graph
        draft = Graph(self.student)
        held = frozenset[str]().union(*map(draft.captured, draft.nodes))
        wanted = {other.name: name for name, other in self.likenesses.items() if name not in held}
        wanted |= dict(zip(*reversed(ends), strict=True))
        taken = {*wanted.values(), *constants_in(graph)}.union(*(node.output for node in graph.node))
        for name, tensor in draft.graph.tensors().items():
            if name not in held and (name in wanted or name in taken):
                tensor.name = wanted.get(name) or draft.unique_name(f"{name}_inside")
        return draft.finish(stale="all")


def transfer(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    target: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    spread: float = 0.3,
    seed: int = 0,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    prove: bool = True,
    progress: Progress | None = None,
) -> Transfer:
    """Fill the user's own network, the target, from a trained one.

    Args:
        teacher: The trained model: a path, a model in memory or a loaded model; see `load`.
        target: The network to fill, likewise, with any weights. Neither model is changed.
        spread: How unevenly copies share their outgoing weights, as in `widen`.
        seed: Seed of every random choice.
        data: Examples (an npz file, or arrays under the names of the teacher's inputs). They improve a transfer that
            is not exact: a narrower target keeps the best units (`examples.select`), and its layers are fitted to the
            results of the teacher's layers (`examples.refit`). An exact transfer does not use them.
        prove: Whether to run and compare the two if no obstacle is known. Pass False if you call `proof` yourself.
        progress: Called with the number of layers that have been fitted to the examples, and of all.

    Returns:
        The student with its obstacles. If there are none, it computes the same as the teacher.

    Raises:
        BadInputError: A model cannot be used, or an option makes no sense.
        RefusedError: Inputs or outputs of the two differ in number, dtype or rank, or no layers correspond.
    """
    style = WidenOptions(spread=spread, seed=seed).style
    old, new = load(teacher), load(target)
    check_correspondence(old.proto.graph, new.proto.graph)
    arrays = arrays_of(data) if isinstance(data, str | os.PathLike) else data
    with paused_gc():
        result = _transfer(old, new, style, arrays, progress)
    if not prove or result.obstacles:
        return result
    try:
        return replace(result, obstacles=proof(result)[1])
    except BadInputError as error:  # the teacher does not run here
        return replace(result, obstacles=(Obstacle("proof", f"the two could not be compared: {error}"),))


def check_correspondence(teacher: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Refuse models whose inputs or outputs do not correspond.

    Raises:
        RefusedError: Their number, or a dtype or rank, differs.
    """
    constants = {tensor.name for graph in (teacher, target) for tensor in graph.initializer}
    for what in ("input", "output"):
        values = [[v for v in getattr(graph, what) if v.name not in constants] for graph in (teacher, target)]
        if len(values[0]) != len(values[1]):
            raise RefusedError(f"the teacher has {len(values[0])} {what}s, the target {len(values[1])}")
        for one, other in zip(*values, strict=True):
            kinds = [value.type.tensor_type.elem_type for value in (one, other)]
            ranks = [len(v.type.tensor_type.shape.dim) if v.type.tensor_type.HasField("shape") else None
                     for v in (one, other)]  # fmt: skip
            if kinds[0] != kinds[1]:
                names = [onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds]
                raise RefusedError(f"{what} {one.name!r} is {names[0]} in the teacher, {other.name!r} {names[1]}")
            if None in ranks and what == "input":
                name = (one, other)[ranks.index(None)].name
                raise RefusedError(f"{what} {name!r} has no fixed rank; export it with its shape")
            if None not in ranks and ranks[0] != ranks[1]:
                raise RefusedError(f"{what} {one.name!r} has {ranks[0]} axes in the teacher, {ranks[1]} in the target")


def proof(result: Transfer, **checking: Any) -> tuple[Verification | None, tuple[Obstacle, ...]]:
    """Run a student and its teacher, and compare them.

    Args:
        result: The transfer.
        checking: Options of `verify`.

    Returns:
        The comparison (None if the two cannot be compared), and the obstacles. If both compute the same, there are no
        obstacles, even if some were expected.
    """
    try:
        student, inside = result.comparable, result.likenesses
        embed = {name: other.places for name, other in inside.items()}.get
        verification = compare_models(_at_sizes_of(result.teacher, student), student, embed=embed, **checking)
    except NotEquivalentError as error:
        return None, (*result.obstacles, Obstacle("interface", str(error)))
    if verification.equivalent:
        return verification, ()
    if result.obstacles:
        return verification, result.obstacles
    why = result.explain()
    near = tuple(doubt for doubt in result.doubts if doubt.place in why.around)
    return verification, (why.obstacle, *near) if why.is_told else (*near, why.obstacle)


def _at_sizes_of(teacher: Model, student: Model) -> Model:
    """Return the teacher for inputs of the sizes that the student takes, where the student takes no others."""
    proto = copy.deepcopy(teacher.proto)
    sizes = {value.name: value.type.tensor_type.shape.dim for value in student.proto.graph.input}
    is_bound = False
    for value in proto.graph.input:
        for own, other in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            if not own.HasField("dim_value") and other.HasField("dim_value"):
                own.dim_value, is_bound = other.dim_value, True
    return replace(teacher, proto=proto, path=None) if is_bound else teacher


def _transfer(
    teacher: Model, target: Model, style: Style, data: Mapping[str, Array] | None, progress: Progress | None
) -> Transfer:
    networks = Networks(Network(reshaped(teacher)), Network(target))
    own = networks.teacher.model  # of an adapted one the tensors are laid out otherwise
    take_copies(networks)
    found = _aligned(networks)
    for adapt in (regrouped, shared_less, with_joined_gates):
        if (adapted := adapt(networks, found)) is not None:
            networks = Networks(Network(adapted), networks.target)
            found = _aligned(networks)
    networks, tied, ties = tie(networks, found)
    examples = [] if data is None else _examples(teacher, target, data)
    changes: Changes | None = {} if examples else None
    choice = partial(choose, networks.teacher, [old for old, _ in found.pairs], [one for one, _ in examples])
    reconstruction = Reconstruction(networks, found.pairs) if examples else None
    matched = matched_layers(networks, found)
    fitted = fit(networks, found, style, tied, ties, choice if examples else None)
    filling = Filling(networks, fitted, changes)
    for old, new in found.pairs:
        filling.fill(old, new)
    counterparts = Counterparts(networks, found)
    for table in (*counterparts.numbers(fitted.weighed), *counterparts.tables()):
        filling.copy(table)
    for segment in found.added:
        filling.silence(segment)
    sources = [*filling.values.write(), *filling.fill_outputs()]
    doubts = tuple(counterparts.differences())
    notes = {"filled": fingerprint(target), **fitted.interface}
    if reconstruction is not None and changes is not None and networks.obstacles:
        reconstruction.run(fitted, changes, filling.kept, examples, progress)
        origins = _origins(networks.target, [*found.pairs, *((None, module) for module in filling.kept)], changes)
        sources = [replace(source, origin=origins.get(source.name, source.origin)) for source in sources]
        notes["calibrated on"] = "data"
    metadata = record(teacher, "transfer", {"spread": style.spread, "seed": style.seed}, notes)
    layers = [(old, new) for old, new in found.pairs if new.is_layer]
    depth = sum(module.is_layer for module in networks.target.modules) / max(len(layers), 1)
    reads = dict(_reads(networks.target, layers))
    student = networks.target.opened.close(networks.target.analysis.graph.finish(metadata))
    return Transfer(teacher, target, student, tuple(sources), tuple(networks.obstacles), style.seed,
                    doubts=doubts, reads=reads, depth=depth,
                    likenesses=likenesses(matched, fitted) if networks.teacher.model is own else {},
                    explain=lambda: explained(teacher, student, matched, fitted))  # fmt: skip


def _reads(target: Network, layers: Iterable[tuple[Module, Module]]) -> Iterator[tuple[str, float]]:
    """Yield how many times as many units each weight of matched layers sums over, with its name."""
    for old, new in layers:
        constant = target.constant(new.parameters["weight"])
        if constant is not None and len(old.shape) > 1 and old.shape[1]:
            yield constant.name, new.shape[1] / old.shape[1]


def _aligned(networks: Networks) -> Alignment:
    """Match the layers of the two, and note the layers that are lost.

    Raises:
        RefusedError: If no layer of the two does.
    """
    found = align(networks.teacher.segments, networks.target.segments)
    check_gates(networks)
    added = [segment for segment in found.added if not all(module.routes for module in segment.modules)]
    found = replace(found, added=put_together(added, networks.target.spares))
    has_layers = any(module.is_layer for network in networks for module in network.modules)
    if not found.pairs or (has_layers and not any(old.is_layer for old, _ in found.pairs)):
        kinds = [sorted({module.kind for module in network.modules}) for network in networks]
        raise RefusedError(
            f"the two networks have no layer in common: {', '.join(kinds[0]) or 'nothing'} in the teacher, "
            f"{', '.join(kinds[1]) or 'nothing'} in the target"
        )
    for module in found.lost:
        networks.hinder(module.name, f"the target has nothing for this {module.text}")
    return found


def _examples(teacher: Model, target: Model, data: Mapping[str, Array]) -> list[tuple[Feeds, Feeds]]:
    """Return the inputs of both networks, some examples at a time.

    Raises:
        BadInputError: If the data does not fit both.
    """
    names = [_names(model.proto.graph)[0] for model in (teacher, target)]
    rename = dict(zip(*names, strict=True))
    given = in_batches(data, input_specs(teacher.proto))
    own = {rename.get(name, name): array for name, array in data.items()}
    filled = in_batches(own, input_specs(target.proto), "data, for the target,")
    if len(given) != len(filled):
        raise BadInputError("data: teacher and target have different fixed batch sizes")
    return list(zip(given, filled, strict=True))


def _origins(target: Network, pairs: Iterable[tuple[Module | None, Module]], changes: Changes) -> dict[str, str]:
    """Return the origins of the target's tensors that examples changed."""
    found = {}
    for old, new in pairs:
        changed = {what for node, what in changes if node == new.node}
        folded = changed if old is not None and old.norm is not None and new.norm is None else set()
        for what, parameter in new.parameters.items():
            constant = target.constant(parameter)
            if constant is not None and (folded or what in changed or (what == "shift" and "bias" in changed)):
                found[constant.name] = "measured" if what in ("mean", "variance") else "reconstructed"
    return found


def _names(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of a graph."""
    constants = {tensor.name for tensor in graph.initializer}
    return [v.name for v in graph.input if v.name not in constants], [v.name for v in graph.output]
