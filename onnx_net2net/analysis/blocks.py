"""Repeated blocks of residual networks: where they are, and how a copy that computes the identity is put behind one.

A block is y = x + f(x), with or without an idempotent activation behind the sum; no node outside reads tensors inside
f. Successive blocks of one module, like the attention and the feed-forward part of a transformer's layer, are one
block. In a copy the last weights of each branch are zero, and all others are those of the original. The tensors in
front of the zeros are not zero, so that the zeros get a gradient at once (a zero in front of a ReLU would get none). On
request two copies that cancel are inserted instead: x + f(x) - f(x). That also works where no weight could be zero.
Each copy has its own weights; they get opposite gradients, and differ from the first step on.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
from onnx import TensorProto

from onnx_net2net.analysis.activations import Finder
from onnx_net2net.analysis.fills import fill_of
from onnx_net2net.analysis.inference import DIVISIBLE, Analysis
from onnx_net2net.analysis.layers import LONGEST_BLOCK, LayerGraph
from onnx_net2net.analysis.names import module_of, told_apart
from onnx_net2net.errors import RefusedError
from onnx_net2net.graph.graph import Node, Place, Tensor, Topology
from onnx_net2net.graph.walk import constant_of, made_by, result as result_of
from onnx_net2net.rules import traits

LISTS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
"""Element types of lists of sizes and of masks, which no weight has."""

_MOST = 64
"""Sums that are taken as one sum of many terms."""

_LONGEST_BRANCH = 100
"""Nodes that are followed back from the end of a branch to the weights that can be zero."""

_SUMMED = (None, "none", "add")  # reductions of ScatterND
_NUMBERED = re.compile(r"^(.*?)[._/]?\d+(_new\d+)*(#\d+)?$")


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: The module, or the best name that there is.
        entry: The tensor that it reads.
        exit: The tensor that it makes.
        nodes: Its nodes, in order, with those that make its weights of constants.
        last: The node that makes `exit`.
        zeroed: The weights that are zero in a copy.
        reason: Why no copy that ends in zero can be inserted, "" if one can.
        obstacle: Why no copy of any kind can be, "" if two that cancel can.
        parts: How many sums it has.
        normalised: Whether its sum is normalised (post-norm): a zero branch would leave two norms in a row.
    """

    name: str
    entry: str = ""
    exit: str = ""
    nodes: tuple[int, ...] = ()
    last: int = -1
    zeroed: frozenset[Place] = frozenset()
    reason: str = ""
    obstacle: str = ""
    parts: int = 1
    normalised: bool = False

    @property
    def group(self) -> str:
        """The name that it shares with its siblings: layer3 of layer3.1."""
        match = _NUMBERED.match(self.name)
        return match.group(1) if match and match.group(1) else self.name


def find_blocks(analysis: Analysis, proto: onnx.ModelProto, join: bool = True) -> list[Block]:
    """List the residual blocks of a model, in order.

    Args:
        analysis: The dims of the flat model.
        proto: That model.
        join: Whether blocks in a row that belong to one module are one block; else each sum ends one.
    """
    finder = _Blocks(LayerGraph(analysis), proto)
    blocks = finder.sums(innermost=not join)
    if join:
        found = _joined(blocks, lambda one, other: one.name == other.name and bool(_NUMBERED.match(one.name)))
        blocks = _joined_siblings(found, finder)
    names = told_apart(block.name for block in blocks)
    return [replace(block, name=name) for block, name in zip(blocks, names, strict=True)]


def residual_depths(network: LayerGraph, proto: onnx.ModelProto) -> Counter[int]:
    """Count for each node in how many residual blocks it is, whether these can be repeated or not."""
    finder = _Blocks(network, proto)
    return Counter(itertools.chain.from_iterable(finder.regions()))


def _joined(blocks: Sequence[Block], belong: Callable[[Block, Block], bool]) -> list[Block]:
    """Join blocks in a row that belong together."""
    result: list[Block] = []
    for block in blocks:
        before = result[-1] if result else None
        if before and before.exit and before.exit == block.entry and belong(before, block):
            result[-1] = replace(
                before, exit=block.exit, nodes=tuple(sorted({*before.nodes, *block.nodes})), last=block.last,
                zeroed=before.zeroed | block.zeroed, reason=before.reason or block.reason,
                obstacle=before.obstacle or block.obstacle, parts=before.parts + block.parts,
                normalised=block.normalised,
            )  # fmt: skip
        else:
            result.append(block)
    return result


def _joined_siblings(blocks: Sequence[Block], finder: _Blocks) -> list[Block]:
    """Join different blocks of a numbered module that comes again, like attention and the rest in a layer of T5."""
    runs = [(_numbered(group.split(".")), list(run)) for group, run in itertools.groupby(blocks, lambda b: b.group)]
    kinds = [tuple(map(finder.kind, run)) for _, run in runs]
    renamed: list[Block] = []
    for (parent, run), kind in zip(runs, kinds, strict=True):
        different = all(block.entry for block in run) and 1 < len(run) == len(set(kind))
        again = bool(parent) and kinds.count(kind) > 1
        renamed += [replace(block, name=parent) for block in run] if different and again else run
    return _joined(renamed, lambda one, other: one.name == other.name)


class _Blocks:
    """Finds the residual blocks of a network."""

    def __init__(self, network: LayerGraph, proto: onnx.ModelProto) -> None:
        self._network, self._analysis, self._proto = network, network.analysis, proto
        self._finder = Finder(network, proto)
        self._answers: dict[str, set[Place] | RefusedError] = {}  # of `_zeros`, for one block
        self._depth = 0

    def kind(self, block: Block) -> tuple[object, ...]:
        """Return what blocks that repeat one another have in common: operators and the shapes of weights."""
        nodes = [self._analysis.nodes[number] for number in block.nodes]
        return tuple((node.op, *(tuple(c.shape) for v in node.inputs if (c := constant_of(v)) is not None))
                     for node in nodes)  # fmt: skip

    def sums(self, innermost: bool = False) -> list[Block]:
        """Return a block for every sum that adds a branch to what the branch is computed from.

        Of nested ones the innermost that can be repeated, or, if only these are asked for, that can be left out.
        """
        found: dict[int, Block] = {}
        inner: set[int] = set()
        for number, node in enumerate(self._analysis.nodes):
            if node.op not in traits.SUMS or not self._network.shape(node.outputs[0]):
                continue
            terms, added = self._terms(number)
            block = self._block(number, terms, added)
            parts = set() if innermost else added
            whole = {n for n, other in found.items() if other.entry and n not in inner and n not in parts
                     and (not other.reason or (innermost and other.normalised))}  # fmt: skip
            if block is not None and whole.isdisjoint(block.nodes):
                found[number] = block
                inner |= {*added, *block.nodes} - {number} if block.entry else set()
        real = {block.name for block in found.values() if block.entry}
        return [b for number, b in found.items() if number not in inner and (b.entry or b.name not in real)]

    def regions(self) -> Iterator[set[int]]:
        """Yield the nodes between every sum and what it adds to."""
        entries: dict[int, Tensor] = {}
        for number, node in reversed(list(enumerate(self._analysis.nodes))):
            if node.op in traits.SUMS:
                terms, parts = self._terms(number)
                found = self._branches(node.outputs[0], terms)
                if found is not None and entries.get(number) is not found[0]:  # else a part of a sum of more terms
                    entries.update(dict.fromkeys(parts, found[0]))
                    yield self._region(*found)

    def _terms(self, number: int) -> tuple[list[Place], set[int]]:
        """Return what a sum adds up, and the sums inside it."""
        terms: list[Place] = []
        added: set[int] = set()
        pending = self._inputs(number)
        while pending:
            use = pending.pop()
            value = self._tensor(use)
            producer = self._network.age(value)
            alone = len(value.outputs) == 1 and value.name not in self._analysis.kept
            is_sum = producer >= 0 and self._analysis.nodes[producer].op in traits.SUMS
            if is_sum and alone and len(added) < _MOST:
                added.add(producer)
                pending += self._inputs(producer)
            else:
                terms.append(use)
        return terms, added

    def _inputs(self, number: int) -> list[Place]:
        """Return the inputs of a node, the last first."""
        return [(number, index) for index in reversed(range(len(self._analysis.nodes[number].inputs)))]

    def _tensor(self, use: Place) -> Tensor:
        return self._analysis.nodes[use[0]].inputs[use[1]]

    def _block(self, number: int, terms: Sequence[Place], added: set[int]) -> Block | None:
        """Return the block that ends in a sum; None if there is none."""
        network, result = self._network, self._analysis.nodes[number].outputs[0]
        found = self._branches(result, terms)
        if found is None:
            return None
        entry, rest = found
        live, whole = self._live(result, terms)
        region = self._region(entry, rest)
        if any(network.age(self._tensor(use)) not in region for use in rest if use in live):
            name = _numbered(_common([module for use in live for module in self._nearest(self._tensor(use))]))
            reason = "it does not add to the tensor that it reads: its input and output may differ"
            return Block(name, reason=reason, obstacle=reason) if name and len(whole) == len(live) else None
        if region.isdisjoint(network.layers):
            return None
        name = self._name(region, number)
        activation, exit = self._behind(result)
        nodes = region | added | {number, *activation}
        while (moved := self._unmoved(entry, nodes)) is not None:
            nodes.add(network.age(entry))
            entry = moved
        nodes |= self._weights(nodes)
        zeroed: set[Place] = set()
        self._answers.clear()
        obstacle = self._obstacle(nodes, entry, exit)
        again = "" if obstacle else self._normalised_again(nodes, result)
        reason = obstacle
        try:
            for use in rest if not reason else ():
                zeroed |= self._zeros(use, nodes)
        except RefusedError as error:
            reason = str(error)
        last = activation[-1] if activation else number
        return Block(name, entry.name, exit.name, tuple(sorted(nodes)), last, frozenset(zeroed), reason or again,
                     obstacle, normalised=bool(again) and not reason)  # fmt: skip

    def _live(self, result: Tensor, terms: Sequence[Place]) -> tuple[list[Place], list[Place]]:
        """Return the terms of a sum that depend on what the model is given, and those as large as the sum."""
        live = [use for use in terms if self._tensor(use).name in self._network.live]
        return live, [use for use in live if self._network.shape(self._tensor(use)) == self._network.shape(result)]

    def _branches(self, result: Tensor, terms: Sequence[Place]) -> tuple[Tensor, list[Place]] | None:
        """Return the oldest term of a sum and the others; None if it adds up less than two activations."""
        live, whole = self._live(result, terms)
        if len(live) < 2 or not whole:
            return None
        start = min(whole, key=lambda use: self._network.age(self._tensor(use)))
        return self._tensor(start), [use for use in terms if use != start]

    def _region(self, entry: Tensor, ends: Sequence[Place]) -> set[int]:
        """Return the nodes between a tensor and others; what only depends on its shape is the same in a copy."""
        return set(self._network.region(entry, map(self._tensor, ends)))

    def _unmoved(self, entry: Tensor, nodes: Collection[int]) -> Tensor | None:
        """Return what an entry is a renamed version of, where only the block reads the entry; else None."""
        node = made_by(entry, traits.CASTS | traits.COPIES)
        if node is None or entry.name in self._analysis.kept:
            return None
        same = self._analysis.sizes.dtype(node.inputs[0].name) == self._analysis.sizes.dtype(entry.name)
        alone = all(self._network.number(reader) in nodes for reader in entry.outputs)
        return node.inputs[0] if same and alone and constant_of(node.inputs[0]) is None else None

    def _weights(self, nodes: Collection[int]) -> set[int]:
        """Return the nodes that make weights of constants for others."""
        found: set[int] = set()
        pending = list(nodes)
        while pending:
            number = pending.pop()
            for index, value in enumerate(self._analysis.nodes[number].inputs):
                producer = self._network.age(value)
                derived = producer >= 0 and constant_of(value) is None and self._analysis.is_derived(number, index)
                if derived and producer not in found and self._analysis.sizes.dtype(value.name) not in LISTS:
                    found.add(producer)
                    pending.append(producer)
        return found

    def _behind(self, result: Tensor) -> tuple[list[int], Tensor]:
        """Return the idempotent activation behind a sum, and what it makes; or nothing, and the sum."""
        activation, made = self._finder.activation(result)
        return (activation, made) if self._finder.try_out(activation, result)[0] else ([], result)

    def _normalised_again(self, nodes: set[int], result: Tensor) -> str:
        """Return why no zero branch can follow where the sum is normalised, "" if one can."""
        own = any(self._analysis.nodes[number].op in traits.UNIT_NORMS | traits.AVERAGES for number in nodes)
        if own or not self._is_read_by_norm(result):
            return ""
        return "its sum is normalised (post-norm): normalising twice is not normalising once"

    def _obstacle(self, nodes: set[int], entry: Tensor, exit: Tensor) -> str:
        """Return why nothing of the kind can follow a block, "" if it can."""
        sizes = self._analysis.sizes
        if (sizes.dtype(entry.name), self._network.shape(entry)) != (sizes.dtype(exit.name), self._network.shape(exit)):
            return "its input and its output have different shapes"
        if sizes.dtype(exit.name) not in DIVISIBLE:
            return "its result is no ordinary float"
        for node in map(self._analysis.nodes.__getitem__, nodes):
            if self._analysis.graph.captured(node) or any(isinstance(v, Topology) for v in node.attrs.values()):
                return f"{node.op} inside it has a body"
            for value in node.outputs:
                readers = {self._network.number(reader) for reader in value.outputs if not self._is_measured(reader)}
                leaves = value.name in self._analysis.kept or not readers <= nodes
                if leaves and value is not exit and value.name in self._network.live:
                    return f"{value.name} inside it is read outside"
        return ""

    def _is_measured(self, node: Node) -> bool:
        """Tell whether nothing but sizes is made of what a node reads."""
        return self._network.number(node) in self._measured

    @cached_property
    def _measured(self) -> set[int]:
        found: set[int] = set()
        for number, node in reversed(list(enumerate(self._analysis.nodes))):
            values = [value for value in node.outputs if value.name]
            readers = [self._network.number(reader) for value in values for reader in value.outputs]
            shown = any(value.name in self._analysis.kept for value in values)
            hands_on = bool(readers) and not shown and found.issuperset(readers)
            if node.op in traits.SHAPES or hands_on:
                found.add(number)
        return found

    def _is_read_by_norm(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is read by nothing but a normalisation."""
        readers = {reader.op for reader in result_of(tensor, traits.REARRANGES).outputs}
        decomposed = not readers.isdisjoint(traits.AVERAGES) and readers <= traits.NORM_PARTS
        return bool(readers) and (readers <= traits.UNIT_NORMS or decomposed)

    # -- zeros -------------------------------------------------------------------------------------------------

    def _zeros(self, use: Place, nodes: Collection[int]) -> set[Place]:
        """Return the weights that must be zero for an input of a node to be zero, and to have a gradient."""
        tensor = self._tensor(use)
        if constant_of(tensor) is not None or fill_of(self._analysis, tensor) == 0:
            return {use} if constant_of(tensor) is not None else set()
        if tensor.name not in self._answers:
            if self._depth >= _LONGEST_BRANCH:
                raise RefusedError("its branch is too long to be followed")
            self._depth += 1
            try:
                self._answers[tensor.name] = self._zeros_of(tensor, nodes)
            except RefusedError as error:
                self._answers[tensor.name] = error
            finally:
                self._depth -= 1
        answer = self._answers[tensor.name]
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def _zeros_of(self, tensor: Tensor, nodes: Collection[int]) -> set[Place]:
        """Do the same for a tensor that is computed."""
        number = self._network.age(tensor)
        node = self._analysis.nodes[number] if number in nodes else None
        if node is None:
            raise RefusedError(f"its branch ends in {tensor.name}, which is computed outside")
        present = [(number, index) for index, value in enumerate(node.inputs) if value.name]
        if node.op in traits.NORMS:
            return self._all_zeros(present[1:3], nodes)
        if node.op in traits.LAST_LAYERS:
            return self._all_zeros([use for use in present if use[1] in traits.LAST_LAYERS[node.op]], nodes)
        if number in self._network.layers and node.op in traits.LAYERS | {"Einsum"}:
            return self._all_zeros([(number, self._network.layers[number].weights), *present[2:]], nodes)
        if node.op in traits.TERMS | traits.JOINS | {"ScatterND"} and node.attrs.get("reduction") in _SUMMED:
            data = traits.HANDED_ON.get(node.op, traits.EVERY)
            return self._all_zeros([use for use in present if use[1] in data], nodes)
        if node.op in traits.TIMES or number in self._network.products:
            return self._any_zeros(present, nodes)
        if node.op in traits.QUOTIENTS and not self._analysis.is_derived(number, 1):
            raise RefusedError("its branch ends in a normalisation without a scale")
        if node.op in traits.LINEAR | traits.QUOTIENTS or self._is_symmetric(node):
            return self._zeros((number, 0), nodes)
        raise RefusedError(f"its branch ends in {node.op}, where no weight could be zero and learn")

    def _all_zeros(self, uses: Sequence[Place], nodes: Collection[int]) -> set[Place]:
        return set().union(*(self._zeros(use, nodes) for use in uses))

    def _any_zeros(self, uses: Sequence[Place], nodes: Collection[int]) -> set[Place]:
        """Return what makes a product zero: a scale of each unit, or a factor as large as the result."""
        number = uses[0][0]
        known = [use for use in uses if self._analysis.is_derived(*use)]
        scales = [use for use in known if self._network.elements(self._tensor(use)) > 1]
        size = self._network.elements(self._analysis.nodes[number].outputs[0])
        larger = number in self._network.products  # a sum over experts of what they make, times their gates
        sizes = {use: self._network.elements(self._tensor(use)) for use in uses if use not in known}
        whole = [use for use, own in sizes.items() if own == size or (larger and own > size)]
        for use in uses:
            if use not in known and not scales and made_by(self._tensor(use), traits.DEVIATIONS) is not None:
                raise RefusedError("its branch ends in a normalisation without a scale")
        refusals = [f"its branch ends in {self._analysis.nodes[number].op}, where no weight could be zero and learn"]
        for use in (*scales, *reversed(whole)):
            try:
                return self._zeros(use, nodes)
            except RefusedError as error:
                refusals.append(str(error))
        raise RefusedError(refusals[-1])

    def _is_symmetric(self, node: Node) -> bool:
        """Tell whether zeros are dequantized to zeros."""
        if node.op != "DequantizeLinear":
            return False
        point = node.inputs[2] if len(node.inputs) > 2 else None
        constant = constant_of(point) if point is not None and point.name else None
        return point is None or (constant is not None and not self._analysis.graph.read(constant).any())

    # -- names -------------------------------------------------------------------------------------------------

    def _name(self, region: Collection[int], number: int) -> str:
        """Return the numbered module around all layers of a block, or what else their names have in common."""
        modules = [self._module(layer) for layer in sorted(region) if layer in self._network.layers]
        common = _common(modules)
        if len(set(modules)) == 1 and modules[0].rpartition(".")[2].isdigit():
            return modules[0]  # a layer of a list, alone
        return _numbered(common) or ".".join(common) or self._analysis.nodes[number].name or modules[0]

    def _module(self, layer: int) -> str:
        node = self._analysis.nodes[layer]
        weights = node.inputs[self._network.layers[layer].weights]
        while constant_of(weights) is None and weights.inputs and weights.inputs[0].inputs:
            weights = weights.inputs[0].inputs[0]
        return module_of(node, self._proto.graph.node[layer], weights.name)

    def _nearest(self, tensor: Tensor) -> Iterator[str]:
        """Yield the module of the layer that a tensor comes from."""
        for node in itertools.islice(self._network.behind(tensor, stop=self._network.layers), LONGEST_BLOCK):
            if self._network.number(node) in self._network.layers:
                yield self._module(self._network.number(node))
                return


def _common(modules: Sequence[str]) -> list[str]:
    """Return the path that modules have in common, which for one alone is that of what it is in."""
    paths = [re.split(r"[./]", module) for module in dict.fromkeys(modules)]
    if len(paths) == 1 and len(paths[0]) > 1:
        return paths[0][:-1]
    same = itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))
    return [steps[0] for steps in same]


def _numbered(path: Sequence[str]) -> str:
    """Return the longest part of a path that ends in a number, "" if there is none."""
    ends = [end for end in range(1, len(path) + 1) if _NUMBERED.match(path[end - 1])]
    return ".".join(path[: ends[-1]]) if ends else ""
