"""A dense teacher for a target with mixtures of experts: every expert becomes a copy of the teacher's block.

Experts that are equal make what one of them makes, as far as the gates of those chosen sum to 1. So a stack of weights
[experts, ...] is a layer like any other that repeats along its first axis, and the router keeps the values that it has.
Where the target stacks gate and value in one weight, the teacher's two layers are joined first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set
from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.analysis import layers
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.feedforward import bias_of, find_feedforwards
from onnx_net2net.analysis.routers import chosen_dims
from onnx_net2net.graph.edit import Writer, drop_unread
from onnx_net2net.graph.graph import Constant, Node, Tensor, Variable
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.graph.walk import constant_of, source
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Network, Networks
from onnx_net2net.rules import traits

_LONGEST = 60
"""Nodes between a choice and what its gates weigh, and some more."""

_UNSUMMED = (
    "the gates of the experts that it chooses do not sum to 1, so that copies of one block would not make what the "
    "block makes: let the class divide them by their sum (norm_topk_prob)"
)
_SPLIT_SIZES_ARE_INPUTS = 13
"""The operator set in which Split began to read its sizes."""


def experts_of(network: Network) -> set[Dim]:
    """Return the dims of experts with a matrix each, if a router chooses among them."""
    chosen = chosen_dims(network.analysis)
    uses = network.analysis.uses.values() if chosen else ()
    return {dim for use in uses if len(use.axes) > 2 for dim in leaf_set(*use.axes) & chosen if dim.size > 1}


def take_copies(networks: Networks) -> None:
    """Let the experts of a target take copies of the layers of a teacher that has no experts.

    Args:
        networks: The two networks; the modules of the target change.
    """
    experts = experts_of(networks.target)
    if experts and not experts_of(networks.teacher):
        networks.target.modules = _Stacks(networks.target, experts).modules()


def check_gates(networks: Networks) -> None:
    """Note routers of a target that takes copies whose gates do not sum to 1."""
    target = networks.target
    experts = experts_of(target) if any(module.copies for module in target.modules) else set[Dim]()
    for number, said in target.analysis.said.items() if experts else ():
        for index, position in said.choices:
            chosen = leaf_set((target.analysis.input_axes(number, index) or ())[position])
            node = target.nodes[number]
            if node.op in traits.WINNERS and experts & chosen and not _sums_to_one(target, number):
                networks.hinder(node.name or node.outputs[0].name, _UNSUMMED)


def _sums_to_one(network: Network, number: int) -> bool:
    """Tell whether what a node chooses is normalised behind it, or serves another choice."""
    pending, seen = list(network.nodes[number].outputs), set[int]()
    while pending and len(seen) < _LONGEST:
        tensor = pending.pop()
        for reader in tensor.outputs:
            place = network.numbers[id(reader)]
            if place in seen:
                continue
            seen.add(place)
            if reader.op in traits.SHARES | traits.WINNERS:
                return True
            if reader.op in traits.QUOTIENTS and any(node.op == "ReduceSum" for node in _makers(reader.inputs[1])):
                return True
            if reader.op in traits.GATE_PATHS:
                pending += reader.outputs
    return False


def _makers(tensor: Tensor) -> Iterator[Node]:
    """Yield the nodes that a sum of gates is made by, behind what keeps it from being 0."""
    while tensor.inputs:
        yield tensor.inputs[0]
        if tensor.inputs[0].op not in traits.GATE_PATHS:
            return
        tensor = tensor.inputs[0].inputs[0]


class _Stacks:
    """The stacks of weights of a target in the form of layers that repeat along their first axis."""

    def __init__(self, network: Network, experts: Collection[Dim]) -> None:
        self._network, self._experts = network, set(experts)
        self._layers = layers.LayerGraph(network.analysis)

    def modules(self) -> list[Module]:
        """Return the modules of the network, stacks as layers with their biases, and routers marked."""
        owner = {use[0]: layer for layer in self._layers.layers if (use := self._layers.stack_of(layer)) is not None}
        weights: dict[int, Module] = {}
        biases: dict[int, Parameter] = {}
        found: list[Module] = []
        for module in self._network.modules:
            parameter = next(iter(module.parameters.values()))
            axes = self._network.analysis.uses[parameter.use].axes
            along = [place for place, axis in enumerate(axes) if self._experts & leaf_set(axis)]
            rest = [place for place, axis in enumerate(axes) if place not in along and axis.size > 1]
            layer = owner.get(parameter.use[0])
            if not module.is_layer and not along and self._places(module.node):
                found.append(replace(module, routes=True))
            elif len(along) != 1 or (len(rest) == 2 and layer is None):
                found.append(module)
            elif len(rest) == 2 and layer is not None:
                weights[layer] = self._weight(module, layer, along[0], rest)
                found.append(weights[layer])
            elif len(rest) == 1 and not module.is_layer and (made := self._biased(parameter.use[0])) is not None:
                biases[made] = Parameter(parameter.use, (along[0], rest[0], *_others(axes, (along[0], rest[0]))), 2,
                                         repeats=True)  # fmt: skip
            else:
                found.append(replace(module, routes=True))
        for number, bias in biases.items():
            if number in weights:
                whole = replace(weights[number], parameters={**weights[number].parameters, "bias": bias})
                found[found.index(weights[number])] = whole
        return _sorted(found)

    def _places(self, number: int) -> bool:
        """Tell whether a node makes something for each expert."""
        made = (self._network.analysis.axes.get(t.name, ()) for t in self._network.nodes[number].outputs)
        return any(self._experts & leaf_set(*axes) for axes in made)

    def _weight(self, module: Module, layer: int, along: int, rest: Sequence[int]) -> Module:
        """Return a stack as a layer."""
        (use,) = {parameter.use for parameter in module.parameters.values()}
        axes = self._network.analysis.uses[use].axes
        reads = self._layers.layers[layer].reads
        order = sorted(rest, key=lambda place: bool(layers.dims_of(axes[place]) & reads))
        parameter = Parameter(use, (along, *order, *_others(axes, (along, *order))), 3, repeats=True)
        shape = tuple(axes[place].size for place in order)
        return replace(module, node=layer, kind="linear", shape=shape, settings=((), (), False, False), resolution=(),
                       parameters={"weight": parameter}, copies=True, neutral=False)  # fmt: skip

    def _biased(self, number: int) -> int | None:
        """Return the layer whose result a constant is added to, from the node that reads the constant."""
        node = self._network.nodes[number]
        while node.op in traits.PICKS | traits.REARRANGES and len(node.outputs[0].outputs) == 1:
            made, node = node.outputs[0], node.outputs[0].outputs[0]
            if node.op == "Add":
                return self._layer_behind(next(tensor for tensor in node.inputs if tensor is not made))
        computed = [tensor for tensor in node.inputs if constant_of(tensor) is None]
        return self._layer_behind(computed[0]) if node.op == "Add" and len(computed) == 1 else None

    def _layer_behind(self, tensor: Tensor) -> int | None:
        """Return the layer that makes a tensor, but for moves."""
        number = self._layers.age(source(tensor, traits.REARRANGES))
        return number if number in self._layers.layers else None


def _sorted(modules: list[Module]) -> list[Module]:
    """Return modules with the stacks among them in the order in which layers read them, not in that of look-ups."""
    slots = [slot for slot, module in enumerate(modules) if module.copies]
    stacks = sorted((modules[slot] for slot in slots), key=lambda module: module.node)
    for slot, module in zip(slots, stacks, strict=True):
        modules[slot] = replace(module, place=modules[slot].place)
    return modules


def _others(axes: Sequence[object], places: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place in range(len(axes)) if place not in places)


# --- Gate and value in one -----------------------------------------------------------------------------------------


def with_joined_gates(networks: Networks, found: Alignment) -> Model | None:
    """Return the teacher with gate and value in one layer where the target's experts have them so, None elsewhere.

    Args:
        networks: The two networks.
        found: Which of their modules correspond.
    """
    partner = {old.node: new.node for old, new in found.pairs if new.copies}
    stacks = [module.node for module in networks.target.modules if module.copies]
    if not stacks:
        return None
    draft = Draft.of(networks.teacher.analysis)
    teacher, target = layers.LayerGraph(draft), layers.LayerGraph(networks.target.analysis)
    known = {number: halves for number in stacks if (halves := _halves(target, number)) is not None}
    dense = find_feedforwards(target.analysis, networks.target.opened.model.proto)
    default = next(iter(known.values()), None) if not any(len(block.layers) == 3 for block in dense) else None
    changed = False
    for block in find_feedforwards(draft, networks.teacher.opened.model.proto):
        firsts = block.layers[:-1]
        halves = next((known[partner[number]] for number in firsts if partner.get(number) in known), default)
        if block.reason or len(firsts) != 2 or halves is None:
            continue
        made = [bias_of(teacher, draft.nodes[number].outputs[0])[1] for number in firsts]
        gates = [_is_bent(tensor) for tensor in made]
        order = (0, 1) if gates[0] == halves[0] else (1, 0)
        version = opsets_of(networks.teacher.opened.model.proto)[""]
        changed |= _join(teacher, block.name, [firsts[place] for place in order], version)
    if not changed:
        return None
    drop_unread(draft.graph, draft.kept)
    return draft.graph.finish()


def _halves(network: layers.LayerGraph, number: int) -> tuple[bool, bool] | None:
    """Return for both halves that what a layer makes is cut into whether a function bends it; None if it is not cut."""
    result = network.analysis.nodes[number].outputs[0]
    while len({id(reader) for reader in _readers(result)}) == 1:
        (reader,) = {id(reader): reader for reader in _readers(result)}.values()
        if reader.op not in traits.REARRANGES | {"Add"}:
            break
        result = reader.outputs[0]
    parts: dict[int, Tensor] = {}
    for reader in _readers(result):
        values = network.analysis.sizes.values
        if reader.op in traits.SPLITS:
            parts.update(enumerate(reader.outputs))
        elif reader.op == "Slice" and (start := values.get(reader.inputs[1].name)) is not None and _steps_by_one(
            network, reader
        ):  # fmt: skip
            parts[int(start.reshape(-1)[0])] = reader.outputs[0]
    if len(parts) != 2:
        return None
    one, other = (_is_bent(parts[place]) for place in sorted(parts))
    return None if one == other else (one, other)


def _steps_by_one(network: layers.LayerGraph, node: Node) -> bool:
    steps = network.analysis.sizes.values.get(node.inputs[4].name) if len(node.inputs) > 4 else np.ones(1)
    return steps is not None and bool((np.asarray(steps) == 1).all())


def _readers(tensor: Tensor) -> list[Node]:
    """Return who reads a tensor, but for those who ask for its shape."""
    return [reader for reader in tensor.outputs if reader.op not in traits.SHAPES]


def _is_bent(tensor: Tensor) -> bool:
    """Tell whether a function that is not linear is applied to a tensor before it is multiplied by another one."""
    return any(reader.op in traits.ALONE - traits.LINEAR - traits.CASTS for reader in _readers(tensor))


def _join(network: layers.LayerGraph, name: str, numbers: Sequence[int], version: int) -> bool:
    """Put one layer in the place of two that read one tensor; return whether that can be done."""
    draft, nodes = network.analysis.graph, [network.analysis.nodes[number] for number in numbers]
    made = [bias_of(network, node.outputs[0])[1] for node in nodes]
    weights = [_weight(node) for node in nodes]
    biases = [_bias(node, tensor) for node, tensor in zip(nodes, made, strict=True)]
    kinds = {draft.type_of(constant) for constant, _ in weights}
    if any(node.attrs.get(key, 1.0) != 1.0 for node in nodes for key in ("alpha", "beta")) or len(kinds) > 1:
        return False
    if (biases[0] is None) != (biases[1] is None):
        return False
    sizes = [constant.shape[0 if turned else 1] for constant, turned in weights]
    reads = weights[0][0].shape[1 if weights[0][1] else 0]
    readers = [(draft.reader(constant), turned) for constant, turned in weights]
    kind = draft.type_of(weights[0][0])
    weight = draft.lazy_constant(f"{name}.joint.weight", kind, (reads, sum(sizes)), partial(_beside, readers))
    source = nodes[0].inputs[0]
    op = Writer(draft, f"{name}.")
    whole = op.MatMul(source, weight, name="joint")
    known = [bias for bias in biases if bias is not None]
    if known:
        rows = [(draft.reader(bias), False) for bias in known]
        bias = draft.lazy_constant(f"{name}.joint.bias", draft.type_of(known[0]), (sum(sizes),), partial(_beside, rows))
        whole = op.Add(whole, bias, name="joint_bias")
    outputs = []
    for tensor in made:
        producer = tensor.inputs[0]
        producer.outputs[producer.outputs.index(tensor)] = Variable(draft.unique_name(f"{tensor.name}_alone"))
        outputs.append(tensor)
    inputs, attrs = [whole], dict[str, object](axis=-1)
    if version < _SPLIT_SIZES_ARE_INPUTS:
        attrs["split"] = sizes
    else:
        inputs.append(draft.constant(f"{name}.joint_sizes", np.array(sizes, np.int64)))
    op.Split(*inputs, name="joint_split", result=outputs, **attrs)
    return True


def _weight(node: Node) -> tuple[Constant, bool]:
    """Return the matrix of a linear layer, and whether its rows are what it makes."""
    constant = constant_of(node.inputs[1])
    assert constant is not None
    return constant, bool(node.attrs.get("transB", 0))


def _bias(node: Node, made: Tensor) -> Constant | None:
    """Return the bias of a linear layer, whose result behind it is given."""
    if node.op in traits.BIASED:
        return constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    if made is node.outputs[0]:
        return None
    return next(known for tensor in made.inputs[0].inputs if (known := constant_of(tensor)) is not None)


def _beside(readers: Sequence[tuple[Compute, bool]]) -> Array:
    return np.concatenate([read().T if turned else read() for read, turned in readers], axis=-1)
