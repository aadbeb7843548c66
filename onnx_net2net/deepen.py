"""Net2DeeperNet on any graph: insert layers whose function is the identity and which can learn.

Behind a layer with an idempotent activation a layer of the same kind with the same activation is inserted (paper,
section 2.4); see `onnx_net2net.places` for what is done elsewhere. Residual blocks are repeated as a whole, see
`onnx_net2net.blocks`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_net2net.blocks import Block, find_blocks, insert_copy, take_over
from onnx_net2net.bodies import open_bodies
from onnx_net2net.calibration import measure
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.history import HISTORY, fingerprint, history
from onnx_net2net.inference import Analysis, infer
from onnx_net2net.inputs import input_specs, read_npz
from onnx_net2net.inspection import inspect, paused_gc
from onnx_net2net.model import Model, Progress, load
from onnx_net2net.naming import matching
from onnx_net2net.places import BEST, WAYS, Place, Way, find_places
from onnx_net2net.tensors import Array
from onnx_net2net.widen import widen

T = TypeVar("T")

_ADVICE = "; a residual branch may (residual), or a layer with an activation of its own (prelu, maxout)"

NORMED = ("identity", "prelu")
"""What gets a BatchNormalization where the layer in front has one."""

WIDEST_KERNEL = 7
"""Kernels of inserted convolutions are those of the layer in front, but no larger than this."""


@dataclass(frozen=True)
class Insertion:
    """What was inserted behind one layer or block."""

    name: str
    way: Way | Literal["block", "cancel"]
    count: int


@dataclass(frozen=True)
class Deepening:
    """A deepened model.

    Attributes:
        teacher: The model that was deepened.
        student: The result; its weights are computed when it is saved or run.
        insertions: What was inserted, in the order of the layers.
        seed: Seed of every random choice.
        notes: What else there is to say, for people.
    """

    teacher: Model
    student: Model
    insertions: tuple[Insertion, ...]
    seed: int
    notes: tuple[str, ...] = ()


def places(model: str | os.PathLike[str] | onnx.ModelProto | Model) -> list[Place]:
    """List the layers of a model and what can be inserted behind each.

    Raises:
        BadInputError: If the model cannot be used.
    """
    return _found(model, find_places)


def blocks(model: str | os.PathLike[str] | onnx.ModelProto | Model) -> list[Block]:
    """List the residual blocks of a model, and why some cannot be repeated.

    Raises:
        BadInputError: If the model cannot be used.
    """
    return _found(model, find_blocks)


def _found(
    model: str | os.PathLike[str] | onnx.ModelProto | Model, find: Callable[[Analysis, onnx.ModelProto], list[T]]
) -> list[T]:
    with paused_gc():
        flat = open_bodies(load(model)).model
        return find(infer(flat), flat.proto)


def deepen(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    after: Sequence[str] = (),
    all: bool = False,
    count: int = 1,
    pairs: int = 0,
    way: Way | Literal["cancel"] | None = None,
    width: int | str | None = None,
    repeat: Mapping[str, int | str] | Sequence[str] = (),
    depth: str | float | None = None,
    append: bool = False,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Deepening:
    """Insert layers that compute the identity (Net2DeeperNet, paper section 2.4).

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        after: Names or patterns of the layers behind which something is inserted.
        all: Behind every layer that has an identity of its own; with `way` behind every layer that admits it.
        count: How many layers to insert behind each.
        pairs: Instead so many pairs of a horizontal and a vertical convolution (paper, section 3.4).
        way: What to insert, instead of the best for each place: "identity", "pair", "residual", "prelu" (a layer with
            an activation of its own whose slopes start at 1) or "maxout" (the larger of two equal identities, which
            part only by noise or dropout); for blocks "cancel": two copies with opposite signs instead of one that
            ends in zero, possible also where nothing could be zero.
        width: Units of the new layers (`96`), or a multiplier (`"2x"`): they are widened after they are inserted, so
            that the width can be anything not below that of the layer in front.
        repeat: Instead of layers, copies of residual blocks: how many, by names or patterns of blocks or of groups of
            them ({"layer3": 4} or ["layer3=+4"]); they are spread evenly over the blocks that match.
        depth: Copies for every group of blocks, so that it gets so many times as deep (2 or "2x").
        append: Put the copies behind the last block of the group, not behind the blocks that they are copies of.
        calibrate: Inputs (arrays by name, or an npz file of them) on which the statistics of inserted
            BatchNormalizations are measured, so that they change little in training, too; generated ones if None.
        seed: Seed of every random choice.
        progress: Told how many runs of the calibration are done, and of how many.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.verify`.

    Raises:
        BadInputError: If the model cannot be used, or an option makes no sense.
        RefusedError: If nothing can be inserted behind a layer that was named, or a block cannot be repeated.
    """
    if repeat or depth is not None:
        for_layers = after or all or count != 1 or pairs or width is not None or calibrate is not None
        if for_layers or way not in (None, "cancel") or (repeat and depth is not None):
            raise BadInputError("repeat and depth are for blocks: one of them, and nothing for layers")
        factor = None if depth is None else _factor(depth)
        return _repeated(load(teacher), _counts(repeat), factor, append, way == "cancel", seed)
    if append or way == "cancel":
        raise BadInputError("append and cancel are for blocks")
    if bool(after) == all:
        raise BadInputError("say behind which layers (after), or all; or which blocks to repeat")
    if count < 1 or pairs < 0:
        raise BadInputError(f"count must be at least 1 and pairs at least 0, not {count} and {pairs}")
    if pairs and way not in (None, "identity"):
        raise BadInputError("pairs of convolutions are identities")
    if way is not None and way not in WAYS:
        raise BadInputError(f"there is no way {way!r}; there are {', '.join(WAYS)}")
    deepening = _inserted(load(teacher), after, way, count, pairs, calibrate, seed, progress)
    return deepening if width is None else _widened(deepening, width)


def _inserted(
    model: Model,
    after: Sequence[str],
    way: Way | None,
    count: int,
    pairs: int,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None,
    seed: int,
    progress: Progress | None,
) -> Deepening:
    """Insert layers behind those named, or behind all."""
    with paused_gc():
        opened = open_bodies(model)
        analysis = infer(opened.model)
        found = find_places(analysis, opened.model.proto)
        if pairs:
            found = [_for_pairs(place) for place in found]
            way = "identity"
        chosen = _named(found, after, way) if after else _all(found, way)
        record = {
            "operation": "deepen", "after": [place.name for place, _ in chosen], "count": count, "pairs": pairs,
            "way": way,
            "seed": seed, "version": version("onnx-net2net"), "teacher": fingerprint(model), **opened.notes(),
        }  # fmt: skip
        measured = _calibrated(model, chosen, calibrate, seed, progress)
        if measured:
            record["calibrated on"] = "generated inputs" if calibrate is None else "data"
        inserter = _Inserter(analysis, seed, measured)
        for place, one in chosen:
            for number in range(pairs or count):
                inserter.insert(place, one, number, _kernels(place, in_pairs=pairs > 0))
        metadata = {HISTORY: json.dumps([*history(model), record])}
        student = opened.close(analysis.draft.finish(metadata))
    layers = 2 * pairs or count
    insertions = tuple(Insertion(place.name, one, layers) for place, one in chosen)
    notes = ("inserted normalisations are calibrated on generated inputs (--calibrate takes real ones)",)
    return Deepening(model, student, insertions, seed, notes if measured and calibrate is None else ())


def _widened(deepening: Deepening, width: int | str) -> Deepening:
    """Widen the layers that were inserted."""
    new = tuple(f"{insertion.name}_new" for insertion in deepening.insertions)
    groups = inspect(deepening.student).groups
    sizes = {group.name: width for group in groups if group.name.startswith(new) and group.reason is None}
    if not sizes:
        raise RefusedError("new layers can have no width of their own here: their units are those of others")
    widening = widen(deepening.student, sizes=sizes, seed=deepening.seed)
    return replace(deepening, student=widening.student, notes=(*deepening.notes, *widening.notes))


def _counts(repeat: Mapping[str, int | str] | Sequence[str]) -> dict[str, int]:
    """Return how many copies are asked for by each pattern."""
    items = (
        repeat.items()
        if isinstance(repeat, Mapping)
        else [(i.rpartition("=")[0], i.rpartition("=")[2]) for i in repeat]
    )
    counts = {}
    for pattern, number in items:
        try:
            counts[pattern] = int(number)
        except ValueError:
            counts[pattern] = 0
        if not pattern or counts[pattern] < 1:
            raise BadInputError(f"repeat {pattern}={number}: write PATTERN=+N, like 'layer3=+4'")
    return counts


def _factor(depth: str | float) -> float:
    try:
        factor = float(str(depth).removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 1 < factor < math.inf:
        raise BadInputError(f"depth must be a multiplier above 1, like 2x, not {depth}")
    return factor


def _repeated(
    model: Model, counts: Mapping[str, int], factor: float | None, append: bool, cancels: bool, seed: int
) -> Deepening:
    """Insert copies of blocks."""
    with paused_gc():
        opened = open_bodies(model)
        analysis = infer(opened.model)
        found = find_blocks(analysis, opened.model.proto)
        if not found:
            raise RefusedError("there are no residual blocks to repeat")
        if cancels:
            found = [replace(block, reason=block.obstacle) for block in found]
        copies = _by_pattern(found, counts) if factor is None else _by_factor(found, factor)
        tensors = analysis.draft.graph.tensors()
        for block, number in copies.items():
            behind = _last_like(analysis, found, block) if append else block
            taken = {other.name for other in found}
            names = (name for n in itertools.count() if (name := f"{block.name}_new{n}") not in taken)
            for name in itertools.islice(names, number):
                insert_copy(analysis, block, tensors[behind.exit], name, cancels)
        options = {"repeat": dict(counts)} if factor is None else {"depth": factor}
        record = {
            "operation": "deepen", **options, "append": append, "way": "cancel" if cancels else None, "seed": seed,
            "version": version("onnx-net2net"), "teacher": fingerprint(model), **opened.notes(),
        }  # fmt: skip
        student = opened.close(analysis.draft.finish({HISTORY: json.dumps([*history(model), record])}))
    way: Literal["block", "cancel"] = "cancel" if cancels else "block"
    return Deepening(model, student, tuple(Insertion(b.name, way, n) for b, n in copies.items()), seed)


def _by_pattern(found: Sequence[Block], counts: Mapping[str, int]) -> dict[Block, int]:
    copies: dict[Block, int] = {}
    for pattern, number in counts.items():
        matches = matching(pattern, found, lambda block: (block.name, block.group), "block")
        spread = _spread(matches, number)
        if not spread:
            raise RefusedError(f"{matches[0].name!r} cannot be repeated: {matches[0].reason}{_advice(matches)}")
        for block, more in spread.items():
            copies[block] = copies.get(block, 0) + more
    return copies


def _by_factor(found: Sequence[Block], factor: float) -> dict[Block, int]:
    """Spread over each group as many copies as it lacks."""
    groups: dict[str, list[Block]] = {}
    for block in found:
        groups.setdefault(block.group, []).append(block)
    copies: dict[Block, int] = {}
    for members in groups.values():
        copies.update(_spread(members, round(len(members) * (factor - 1))))
    if not copies:
        few = f"{factor:g} times as deep is less than one more in every group"
        no = f"no block can be repeated: {found[0].reason}{_advice(found)}"
        raise RefusedError(few if any(not b.reason for b in found) else no)
    return copies


def _advice(blocks: Sequence[Block]) -> str:
    return "; two copies that cancel could be inserted (cancel)" if any(not b.obstacle for b in blocks) else ""


def _spread(members: Sequence[Block], number: int) -> dict[Block, int]:
    """Share copies evenly among the blocks that can be repeated."""
    fit = [block for block in members if not block.reason]
    shares = [((i + 1) * number) // len(fit) - (i * number) // len(fit) for i in range(len(fit))]
    return {block: share for block, share in zip(fit, shares, strict=True) if share}


def _last_like(analysis: Analysis, found: Sequence[Block], block: Block) -> Block:
    """Return the last block of the group whose result has the shape of this block's."""
    shape = analysis.sizes.shape(block.exit)
    group = [other for other in found if other.group == block.group and other.exit]
    return [other for other in group if analysis.sizes.shape(other.exit) == shape][-1]


def _calibrated(
    model: Model,
    chosen: Sequence[tuple[Place, Way]],
    data: str | os.PathLike[str] | Mapping[str, Array] | None,
    seed: int,
    progress: Progress | None,
) -> dict[str, tuple[Array, Array]]:
    """Return mean and variance of what inserted normalisations get; those inside of bodies are not measured."""
    normed = dict.fromkeys(place.tensor for place, way in chosen if way in NORMED and place.norm is not None)
    shown = {name for node in model.proto.graph.node for name in node.output}
    tensors = [name for name in normed if name in shown]
    if not tensors:
        return {}
    feeds = read_npz(data, input_specs(model.proto)) if isinstance(data, str | os.PathLike) else data
    return measure(model, tensors, feeds, seed=seed, progress=progress)


def _for_pairs(place: Place) -> Place:
    """Allow nothing but a place behind a convolution of images."""
    if len(place.kernel) == 2 and max(place.kernel) > 1:
        return place
    return replace(place, ways=(), reason=place.reason or "only kernels with two axes can be pairs")


def _kernels(place: Place, in_pairs: bool) -> list[tuple[int, ...]]:
    """Return the kernels of what is inserted at once: like that of the layer, with a middle, and not too large."""
    sizes = tuple(min(size - 1 + size % 2, WIDEST_KERNEL) for size in place.kernel)
    return [(1, max(sizes)), (max(sizes), 1)] if in_pairs else [sizes]


def _all(found: Sequence[Place], way: Way | None) -> list[tuple[Place, Way]]:
    """Choose every place where an identity, or the way that is asked for, can be inserted."""
    wanted = (way,) if way else BEST
    chosen = [(place, one) for place in found if (one := next((w for w in place.ways if w in wanted), None))]
    if not chosen:
        reason = next((place.reason for place in found if place.reason), "there are no layers")
        raise RefusedError(f"nothing can be inserted: {reason}" + ("" if way else _ADVICE))
    return chosen


def _named(found: Sequence[Place], after: Sequence[str], way: Way | None) -> list[tuple[Place, Way]]:
    chosen: dict[int, tuple[Place, Way]] = {}
    for pattern in after:
        matches = matching(pattern, found, lambda place: (place.name,), "layer")
        fit = [(place, way or place.ways[0]) for place in matches if place.ways and way in (None, *place.ways)]
        if not fit:
            raise RefusedError(f"nothing of the kind can be inserted behind {matches[0].name!r}: {matches[0].reason}")
        chosen.update((place.layer, (place, one)) for place, one in fit)
    return [chosen[layer] for layer in sorted(chosen)]


class _Inserter:
    """Writes new layers into a draft."""

    def __init__(self, analysis: Analysis, seed: int, measured: Mapping[str, tuple[Array, Array]]) -> None:
        self._analysis, self._draft, self._seed, self._measured = analysis, analysis.draft, seed, measured
        self._tensors = dict(analysis.draft.graph.tensors())

    def insert(self, place: Place, way: Way, number: int, kernels: Sequence[tuple[int, ...]]) -> None:
        """Insert one more layer (one for each kernel), or what stands for it, behind all that is there already."""
        name = f"{place.name}_new{number}"
        source = self._tensors[place.tensor]
        inner = take_over(self._analysis, source)
        channels, group = place.channels, place.group
        if way in NORMED:
            made = inner
            for position, kernel in enumerate(kernels):
                own = f"{name}.{position}" if len(kernels) > 1 else name
                made = self._layer(kernel, place, made, own, channels, channels, _dirac(channels, group), group,
                                   has_bias=place.norm is None)  # fmt: skip
                made = self._normalise(place, made, own) if place.norm is not None else made
                activate = self._activate if way == "identity" else self._prelu
                made = activate(place, made, source if position == len(kernels) - 1 else None)
        elif way == "maxout":
            (kernel,) = kernels
            pieces = [self._layer(kernel, place, inner, f"{name}.{piece}", channels, channels, _dirac(channels, group),
                                  group) for piece in (0, 1)]  # fmt: skip
            self._node("Max", f"{name}.Max", pieces, source)
        elif way == "pair":
            assert place.factor is not None
            mirrored = _stacked(channels, 1.0, -1.0)
            (kernel,) = kernels
            made = self._layer(kernel, place, inner, f"{name}.0", channels, 2 * channels, mirrored)
            made = self._activate(place, made)
            weights = _stacked(channels, 1 / place.factor, -1 / place.factor, across=True)
            self._layer(kernel, place, made, f"{name}.1", 2 * channels, channels, weights, output=source)
        else:
            rng = np.random.default_rng([self._seed, place.layer, number])
            (kernel,) = kernels
            made = self._layer(
                kernel, place, inner, f"{name}.0", channels, channels, _random(int(rng.integers(1 << 30)))
            )
            made = self._activate(place, made)
            zero = self._layer(kernel, place, made, f"{name}.1", channels, channels, _zeros)
            self._node("Add", f"{name}.Add", [inner, zero], source)

    def _layer(
        self, kernel: tuple[int, ...], place: Place, source: gs.Tensor, name: str, reads: int, makes: int,
        values: Callable[..., Array], group: int = 1, output: gs.Variable | None = None, has_bias: bool = True,
    ) -> gs.Variable:  # fmt: skip
        """Add a layer of the kind of a place, with a bias of zeros; in front of a normalisation a bias is nothing."""
        dtype = self._analysis.sizes.dtype(place.tensor)
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        shape = (makes, reads // group, *kernel)
        bias = self._draft.constant(f"{name}.bias", np.zeros(makes, kind))
        if place.operator == "MatMul":  # the weight of a MatMul is the transpose of a Linear's
            weight = self._draft.lazy_constant(f"{name}.weight", dtype, shape[::-1], lambda: values(shape, kind).T)
            product = self._node("MatMul", f"{name}.MatMul", [source, weight])
            return self._node("Add", f"{name}.Add", [product, bias], output)
        weight = self._draft.lazy_constant(f"{name}.weight", dtype, shape, lambda: values(shape, kind))
        if place.operator == "Gemm":
            return self._node("Gemm", f"{name}.Gemm", [source, weight, bias], output, transB=1)
        pads = [size // 2 for size in kernel]
        return self._node(
            "Conv", f"{name}.Conv", [source, weight, *([bias] if has_bias else [])], output,
            kernel_shape=list(kernel), pads=pads * 2, group=group,
        )  # fmt: skip

    def _normalise(self, place: Place, tensor: gs.Tensor, name: str) -> gs.Variable:
        """Add a BatchNormalization like that of the layer, whose scale and shift undo what it does."""
        node = self._analysis.nodes[place.norm or 0]
        kind = helper.tensor_dtype_to_np_dtype(self._analysis.sizes.dtype(node.inputs[1].name))
        zeros, ones = np.zeros(place.channels), np.ones(place.channels)
        mean, variance = (values.astype(kind) for values in self._measured.get(place.tensor, (zeros, ones)))
        epsilon = float(node.attrs.get("epsilon", 1e-5))
        scale = np.sqrt(variance.astype(np.float64) + epsilon).astype(kind)
        values = {"weight": scale, "bias": mean, "running_mean": mean, "running_var": variance}
        inputs = [self._draft.constant(f"{name}.bn.{what}", array) for what, array in values.items()]
        return self._node("BatchNormalization", f"{name}.BatchNormalization", [tensor, *inputs], **node.attrs)

    def _activate(self, place: Place, tensor: gs.Tensor, output: gs.Variable | None = None) -> gs.Variable:
        """Repeat the activation of a place; where it has none, max(x, 0)."""
        if not place.activation:
            return self._node("Relu", f"{tensor.name}.Relu", [tensor], output)
        nodes = [self._analysis.nodes[number] for number in place.activation]
        made = {name: tensor for node in nodes for name in self._outside(node, nodes)}
        result = tensor
        for node in nodes:
            inputs = [made.get(value.name, value) for value in node.inputs]
            last = output if node is nodes[-1] else None
            result = self._node(node.op, f"{tensor.name}.{node.op}", inputs, last, node.domain, **node.attrs)
            made[self._name_of(node)] = result
        return result

    def _prelu(self, place: Place, tensor: gs.Tensor, output: gs.Variable | None = None) -> gs.Variable:
        """Add a PRelu that starts as the identity: each unit has the slope 1."""
        kind = helper.tensor_dtype_to_np_dtype(self._analysis.sizes.dtype(place.tensor))
        name = tensor.inputs[0].name.rpartition(".")[0]
        slopes = np.ones((place.channels, *(1 for _ in place.kernel)), kind)
        slope = self._draft.constant(f"{name}.prelu.weight", slopes)
        return self._node("PRelu", f"{name}.PRelu", [tensor, slope], output)

    def _outside(self, node: gs.Node, nodes: Sequence[gs.Node]) -> list[str]:
        """Return the names of the tensors that an activation is applied to."""
        inside = {self._name_of(other) for other in nodes}
        return [v.name for v in node.inputs if v.name not in inside and isinstance(v, gs.Variable) and v.name
                and v.name not in self._analysis.sizes.constant]  # fmt: skip

    def _name_of(self, node: gs.Node) -> str:
        return str(node.outputs[0].name)

    def _node(
        self, kind: str, name: str, inputs: list[gs.Tensor], output: gs.Variable | None = None,
        domain: str | None = None, **attrs: object,
    ) -> gs.Variable:  # fmt: skip
        name = self._draft.unique_name(name)
        result = gs.Variable(self._draft.unique_name(f"{name}_out")) if output is None else output
        node = gs.Node(kind, name, dict(attrs), inputs, [result], domain=domain)
        self._draft.graph.nodes.append(node)
        return result


def _dirac(channels: int, group: int) -> Callable[..., Array]:
    """Return what computes the weights of an identity: 1 for the unit itself, at the middle of the kernel."""

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        weights = np.zeros(shape, dtype)
        units = np.arange(channels)
        _middle(weights)[units, units % (channels // group)] = 1
        return weights

    return compute


def _stacked(channels: int, first: float, second: float, across: bool = False) -> Callable[..., Array]:
    """Return what computes two multiples of the identity, one below the other, or beside it (`across`)."""

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        weights = np.zeros(shape, dtype)
        units = np.arange(channels)
        for offset, value in ((0, first), (channels, second)):
            place = (units, units + offset) if across else (units + offset, units)
            _middle(weights)[place] = value
        return weights

    return compute


def _middle(weights: Array) -> Array:
    """Return a view of what weights have at the middle of the kernel."""
    for _ in weights.shape[2:]:
        weights = weights[:, :, weights.shape[2] // 2]
    return weights


def _random(seed: int) -> Callable[..., Array]:
    """Return what draws weights of unit gain."""

    def compute(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        values: Array = np.random.default_rng(seed).standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        return values.astype(dtype)

    return compute


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    return np.zeros(shape, dtype)
