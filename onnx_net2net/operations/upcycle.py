"""Upcycling: feed-forward blocks become mixtures of experts, exactly (Komatsuzaki et al. 2023, made exact).

Each expert starts as a copy of the block, and the gates of the experts that a position chooses sum to 1. So together
they compute the same as the block, whatever the router chooses. They become different at the first step, as each gets
other positions. With a shared expert the block stays as it is, and the results of the added experts start at zero.

Weights of all experts are stacked: [experts, inputs, outputs]. The graph computes every expert at each position, and
sums them with gates that are 0 for experts that are not chosen. So it can be trained, and grown like any mixture of
experts.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import TensorProto, helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.algebra.rows import Source
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.feedforward import FeedForward, cut_axis, find_feedforwards, module_names
from onnx_net2net.analysis.groups import analysing, paused_gc
from onnx_net2net.analysis.inference import infer
from onnx_net2net.analysis.layers import LayerGraph
from onnx_net2net.analysis.names import matching
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.graph.edit import Writer, drop_unread
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Node, Tensor, Variable
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.history import record
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.operations.deepen.repeat import take_over
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import input_specs, read_npz
from onnx_net2net.run.watch import in_batches, watched

_SPREAD = 0.02
"""Standard deviation of the router's rows, as classes of transformers draw them."""

_FIRST_OPSET = 11
"""The first operator set whose TopK and ScatterElements a router can be written with."""

_AXES_ARE_INPUTS = 13
"""The operator set in which ReduceSum began to read its axes."""


@dataclass(frozen=True)
class Upcycled:
    """A block that became a mixture of experts.

    Attributes:
        name: The block.
        units: The width of its input and output.
        hidden: The hidden width of each expert.
    """

    name: str
    units: int
    hidden: int


@dataclass(frozen=True)
class Upcycling:
    """The result of `upcycle`.

    Attributes:
        teacher: The dense model.
        student: The model with mixtures of experts; its weights are computed when it is saved or run.
        mixtures: The blocks that became mixtures, in order.
        experts: How many experts each mixture has.
        k: How many experts each position chooses.
        shared: Whether the block stays beside the experts, as a shared expert.
        seed: Seed of the routers.
    """

    teacher: Model
    student: Model
    mixtures: tuple[Upcycled, ...]
    experts: int
    k: int
    shared: bool
    seed: int


def feedforwards(model: ModelLike) -> list[FeedForward]:
    """List the feed-forward blocks of a model, and why some cannot become experts.

    Raises:
        BadInputError: If the model cannot be used.
    """
    with analysing(load(model)) as (opened, analysis):
        return find_feedforwards(analysis, opened.model.proto)


def upcycle(
    teacher: ModelLike,
    *,
    experts: int,
    k: int = 2,
    only: Sequence[str] = (),
    shared: bool = False,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Upcycling:
    """Turn feed-forward blocks into mixtures of experts; the student computes the same as the teacher.

    Without `shared` the experts are copies of the block. A router chooses those of the k largest logits, and the
    softmax of these logits weighs them. With `shared` the block stays, and experts whose last layers are zero are added
    to it; the softmax of all logits weighs them. Every expert that a position chooses, and its row of the router, has a
    gradient within two steps.

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        experts: How many experts each mixture has, at least 2.
        k: How many experts each position chooses, at most `experts`; without `shared` at least 2.
        only: Names or patterns of blocks. By default all blocks whose output is as wide as their input, and whose
            hidden width is not smaller.
        shared: Whether the block stays beside the experts.
        calibrate: Inputs (arrays by name, or an npz file of them) by which the routers are balanced: the rows of each
            router become orthogonal to the mean of its input, so that all experts get about as many positions.
        seed: Seed of the routers' rows.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.operations.verify`.

    Raises:
        BadInputError: The model cannot be used, or an option makes no sense.
        RefusedError: There is no such block, a named block cannot become an expert, or k is 1 without `shared`: a gate
            that is always 1 has no gradient.
    """
    _check(experts, k, shared)
    model = load(teacher)
    with paused_gc():
        opened = open_bodies(model)
        version = opsets_of(opened.model.proto)[""]
        if version < _FIRST_OPSET:
            raise RefusedError(f"no router can be written in opset {version}: convert the model to {_FIRST_OPSET}")
        draft = Draft.of(infer(opened.model))
        chosen = _chosen(find_feedforwards(draft, opened.model.proto), only)
        network = LayerGraph(draft)
        means = {} if calibrate is None else _means(model, chosen, calibrate)
        for block in chosen:
            modules = module_names(network, opened.model.proto, block.layers)
            _Writer(network, draft, block, modules, version, experts, k, shared, seed, means.get(block.entry)).write()
        drop_unread(draft.graph, draft.kept)
        options = {"experts": experts, "k": k, "only": list(only), "shared": shared, "seed": seed}
        notes = {**opened.notes(), **({} if calibrate is None else {"calibrated on": "data"})}
        student = opened.close(draft.graph.finish(record(model, "upcycle", options, notes)))
    mixtures = tuple(Upcycled(block.name, block.makes, block.hidden) for block in chosen)
    return Upcycling(model, student, mixtures, experts, k, shared, seed)


def _means(
    model: Model, blocks: Sequence[FeedForward], data: str | os.PathLike[str] | Mapping[str, Array]
) -> dict[str, Array]:
    """Return the mean over all positions of what blocks read, as far as it is no tensor inside of a body.

    Raises:
        BadInputError: If the model does not run, or the data does not fit it.
    """
    shown = {name for node in model.proto.graph.node for name in node.output}
    entries = list(dict.fromkeys(block.entry for block in blocks if block.entry in shown))
    specs = input_specs(model.proto)
    feeds = read_npz(data, specs) if isinstance(data, str | os.PathLike) else data
    sums: dict[str, Array] = {}
    rows = dict.fromkeys(entries, 0)
    with watched(model, entries, "teacher") as watch:
        for batch in in_batches(feeds, specs):
            for name, values in watch(batch, entries).items():
                own = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
                sums[name] = sums.get(name, 0) + own.sum(0)
                rows[name] += len(own)
    return {name: total / max(rows[name], 1) for name, total in sums.items()}


def _check(experts: int, k: int, shared: bool) -> None:
    if experts < 2 or not 1 <= k <= experts:
        raise BadInputError(f"experts must be at least 2, and k from 1 to that, not {experts} and {k}")
    if k == 1 and not shared:
        raise RefusedError("with k of 1 the gate is always 1 and never has a gradient: give k of 2 or more, or shared")


def _chosen(found: Sequence[FeedForward], only: Sequence[str]) -> list[FeedForward]:
    """Return the blocks that are asked for; those that share a layer with one before are left out."""
    wanted = _named(found, only) if only else [block for block in found if block.widens]
    taken: set[int] = set()
    chosen = []
    for block in wanted:
        if not block.reason and taken.isdisjoint(block.layers):
            chosen.append(block)
            taken.update(block.layers)
    if not chosen:
        raise RefusedError(f"nothing can become experts: {_why(found)}")
    return chosen


def _named(found: Sequence[FeedForward], only: Sequence[str]) -> list[FeedForward]:
    """Return the blocks that patterns name, if all of them can become experts."""
    named: set[str] = set()
    for pattern in only:
        matches = matching(pattern, found, lambda block: (block.name,), "block")
        fit = [block.name for block in matches if not block.reason]
        if not fit:
            raise RefusedError(f"{matches[0].name!r} cannot become experts: {matches[0].reason}")
        named.update(fit)
    return [block for block in found if block.name in named]


def _why(found: Sequence[FeedForward]) -> str:
    """Return why no block was chosen."""
    reasons = [f"{block.name}: {block.reason}" for block in found if block.reason and block.widens]
    others = f"; others have names (only): {', '.join(block.name for block in found[:3])}" if found else ""
    return reasons[0] if reasons else f"there is no feed-forward block that makes as many units as it reads{others}"


class _Writer:
    """Writes one mixture of experts in the place of a block."""

    def __init__(
        self, network: LayerGraph, draft: Draft, block: FeedForward, modules: dict[int, str], version: int,
        experts: int, k: int, shared: bool, seed: int, mean: Array | None = None,
    ) -> None:  # fmt: skip
        self._network, self._draft, self._graph = network, draft, draft.graph
        self._block, self._modules, self._version = block, modules, version
        self._experts, self._k, self._shared, self._seed, self._mean = experts, k, shared, seed, mean
        self._op = Writer(self._graph, f"{block.name}.")
        self._entry = self._tensor(block.entry)
        self._type = self._draft.sizes.dtype(block.entry)

    def write(self) -> None:
        """Do it."""
        op, block, exit = self._op, self._block, self._tensor(self._block.exit)
        inner = take_over(self._draft, exit)
        rows = op.Reshape(self._entry, self._numbers("rows", [-1, block.reads]), name="tokens")
        gates = self._gates(rows)
        made = self._made(op.Reshape(rows, self._numbers("one_row", [1, -1, block.reads]), name="each"))
        weighed = op.Mul(made, gates, name="weighed")
        last = None if self._shared else exit
        if len(self._network.shape(exit)) == 2:
            result = self._sum(weighed, last)
        else:
            result = op.Reshape(self._sum(weighed), self._shape(), name="result", result=last)
        if self._shared:
            op.Add(inner, result, name="sum", result=exit)

    # -- the router ----------------------------------------------------------------------------------------------

    def _gates(self, rows: Tensor) -> Variable:
        """Return how much each expert counts at each position, [experts, positions, 1]."""
        op = Writer(self._graph, f"{self._block.name}.router.")
        kind = TensorProto.DOUBLE if self._type == TensorProto.DOUBLE else TensorProto.FLOAT
        read = rows if self._type == kind else op.Cast(rows, name="read", to=kind)
        shape = (self._block.reads, self._experts)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        draw = partial(_drawn, shape, dtype, [self._seed, zlib.crc32(self._block.name.encode())], self._mean)
        weight = self._graph.lazy_constant(f"{self._block.name}.router.weight", kind, shape, draw)
        logits = self._op.MatMul(read, weight, name="router")
        scores = op.Softmax(logits, name="scores", axis=-1) if self._shared else logits
        top, places = (Variable(self._graph.unique_name(f"{self._block.name}.router.{n}")) for n in ("top", "chosen"))
        op.TopK(scores, self._numbers("k", [self._k]), result=[top, places], axis=-1)
        gates = top if self._shared else op.Softmax(top, name="gates", axis=-1)
        zero = helper.make_tensor("zero", kind, [1], [0.0])
        none = op.ConstantOfShape(op.Shape(logits, name="shape"), name="none", value=zero)
        spread = op.ScatterElements(none, places, gates, name="spread", axis=1)
        turned = op.Transpose(spread, name="turned", perm=[1, 0])
        wide = op.Reshape(turned, self._numbers("by_row", [self._experts, -1, 1]), name="wide")
        return wide if self._type == kind else op.Cast(wide, name="cast", to=self._type)

    # -- the experts ---------------------------------------------------------------------------------------------

    def _made(self, rows: Tensor) -> Tensor:
        """Write the block for all experts at once; return what they make, [experts, positions, units]."""
        made: dict[str, Tensor] = {}
        for number in self._block.nodes:
            node = self._draft.nodes[number]
            if number in self._block.layers:
                made[node.outputs[0].name] = self._layer(number, made.get(node.inputs[0].name, rows))
            elif node.op in traits.REFOLDS | traits.COPIES:
                made[node.outputs[0].name] = made[node.inputs[0].name]
            else:
                self._repeat(number, made)
        return made[self._draft.nodes[self._block.nodes[-1]].outputs[0].name]

    def _layer(self, number: int, rows: Tensor) -> Variable:
        """Write a layer of all experts."""
        node, name = self._draft.nodes[number], self._label(number)
        zero = self._shared and number == self._block.layers[-1]
        weight = self._stack(f"{name}.weight", node.inputs[1], turn=bool(node.attrs.get("transB", 0)), zero=zero,
                             factor=float(node.attrs.get("alpha", 1.0)))  # fmt: skip
        op = Writer(self._graph, f"{self._block.name}.{name}.")
        result = op.MatMul(rows, weight)
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return result
        bias = self._stack(f"{name}.bias", node.inputs[2], zero=zero, factor=float(node.attrs.get("beta", 1.0)))
        return op.Add(result, bias)

    def _repeat(self, number: int, made: dict[str, Tensor]) -> None:
        """Write a node between layers, or the one that adds the last bias, for all experts."""
        node = self._draft.nodes[number]
        is_last = number > self._block.layers[-1]
        inputs, attrs = [], dict(node.attrs)
        for index, value in enumerate(node.inputs):
            if value.name in made:
                inputs.append(made[value.name])
            elif node.op in traits.CUTS or self._network.elements(value) <= 1:
                inputs.append(value)
            else:
                label = self._label(self._layer_of(number))
                what = "bias" if node.op == "Add" else f"{node.op.lower()}{index}"
                inputs.append(self._stack(f"{label}.{what}", value, zero=self._shared and is_last))
        if node.op in traits.SPLITS:
            attrs["axis"] = -1
        elif node.op in traits.CUTS:
            assert cut_axis(self._network, number) is not None
            inputs[3] = self._numbers("cut_axis", [-1])
        outputs = [Variable(self._graph.unique_name(f"{self._block.name}.experts.{o.name}")) for o in node.outputs]
        made.update((old.name, new) for old, new in zip(node.outputs, outputs, strict=True))
        name = self._graph.unique_name(f"{self._block.name}.experts.{node.name or node.op}")
        self._graph.nodes.append(Node(node.op, name, attrs, inputs, outputs, domain=node.domain))

    def _layer_of(self, number: int) -> int:
        """Return the layer in front of a node."""
        return max(layer for layer in self._block.layers if layer < number)

    def _stack(self, name: str, value: Tensor, turn: bool = False, zero: bool = False, factor: float = 1.0) -> Tensor:
        """Return one copy of a constant for each expert, along a first axis; of a vector [experts, 1, units]."""
        constant = constant_of(value)
        assert constant is not None
        shape = tuple(constant.shape[::-1] if turn else constant.shape)
        shape = shape if len(shape) == 2 and name.endswith(".weight") else (1, shape[-1])
        compute = partial(
            _stacked, self._graph.reader(constant), (self._experts, *shape), turn, 0.0 if zero else factor
        )
        return self._graph.lazy_constant(
            f"{self._block.name}.experts.{name}", self._graph.type_of(constant), (self._experts, *shape), compute
        )

    def _label(self, number: int) -> str:
        """Return what a layer is called inside of its block."""
        own = self._modules[number]
        inside = own.removeprefix(self._block.name.split("#")[0]).strip("./")
        return inside or f"layer{self._block.layers.index(number)}"

    # -- the frame -----------------------------------------------------------------------------------------------

    def _sum(self, weighed: Tensor, result: Variable | None = None) -> Variable:
        if self._version < _AXES_ARE_INPUTS:
            return self._op.ReduceSum(weighed, name="total", result=result, axes=[0], keepdims=0)
        axis = self._numbers("experts_axis", [0])
        return self._op.ReduceSum(weighed, axis, name="total", result=result, keepdims=0)

    def _shape(self) -> Tensor:
        """Return the shape of the result: that of what was read, but for the number of units."""
        shape = self._op.Shape(self._entry, name="shape")
        if self._block.makes == self._block.reads:
            return shape
        rank = len(self._network.shape(self._entry))
        places = self._numbers("lead_places", list(range(rank - 1)))
        lead = self._op.Gather(shape, places, name="lead", axis=0)
        return self._op.Concat(lead, self._numbers("units", [self._block.makes]), name="new_shape", axis=0)

    def _tensor(self, name: str) -> Variable:
        found: Variable = self._graph.tensors()[name]
        return found

    def _numbers(self, name: str, values: list[int]) -> Tensor:
        return self._graph.constant(f"{self._block.name}.{name}", np.array(values, np.int64))


def _drawn(shape: tuple[int, int], dtype: np.dtype, seed: Sequence[int], mean: Array | None) -> Array:
    """Draw a router's rows, orthogonal to the mean of what it reads: that would favour some experts everywhere."""
    rows = np.random.default_rng(seed).normal(size=shape)
    if mean is not None and mean.any():
        rows -= np.outer(mean, mean @ rows) / (mean @ mean)
    return np.asarray(rows * _SPREAD, dtype)


def _stacked(read: Source, shape: tuple[int, ...], turn: bool, factor: float) -> Array:
    values = read()
    values = values.T if turn else values
    values = values if factor == 1 else (values * np.asarray(factor)).astype(values.dtype)
    return np.ascontiguousarray(np.broadcast_to(values.reshape(1, *shape[1:]), shape))
