"""What people call the dims: residual stream, ffn, heads, head_dim, experts, vocabulary, channels.

A role is told from the structure alone: which dims a layer sums over and which it makes, and which tensors are added,
normalised or multiplied with one another. Names and sizes say nothing. Of several roles a dim has the most specific
one; where the structure says nothing it has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum

from onnx import TensorProto

from onnx_net2net.algebra.dims import Axis, Dim, leaves, resolve
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.layers import Layer, LayerGraph, dims_of, parts_of, unit_of
from onnx_net2net.analysis.modules import selected
from onnx_net2net.graph.graph import Node, Tensor
from onnx_net2net.graph.walk import source
from onnx_net2net.rules import traits
from onnx_net2net.rules.reasons import ReasonKind, kind_of


class Role(str, Enum):
    """What people call a dim; NONE where the structure says nothing."""

    NONE = ""
    HEADS = "heads"
    KV_HEADS = "kv heads"
    HEADS_PER_KV_HEAD = "heads per kv head"
    HEAD_DIM = "head_dim"
    KEY_HEAD_DIM = "query/key head_dim"
    VALUE_HEAD_DIM = "value head_dim"
    ROTARY_PAIRS = "rotary pairs"
    POSITIONS = "positions"
    EXPERTS = "experts"
    COPIES = "copies of experts"
    STATE = "state"
    VOCABULARY = "vocabulary"
    GROUPS = "groups"
    CHANNELS_PER_GROUP = "channels per group"
    RESIDUAL_STREAM = "residual stream"
    FFN = "ffn"
    CLASSES = "classes"
    OUTPUTS = "outputs"
    INPUT_CHANNELS = "input channels"
    INPUT_FEATURES = "input features"
    KERNEL = "kernel"
    CHANNELS = "channels"

    __str__ = str.__str__


HEAD_COUNTS = frozenset({Role.HEADS, Role.KV_HEADS, Role.HEADS_PER_KV_HEAD})
"""Roles of dims that count heads."""

HEAD_WIDTHS = frozenset({Role.HEAD_DIM, Role.KEY_HEAD_DIM, Role.VALUE_HEAD_DIM})
"""Roles of dims that are the width of a head; the pairs of a rotation are a part of one."""

Found = Iterator[tuple[Iterable[Dim], Role]]

_STEPS = traits.CUTS | traits.PICKS | traits.JOINS | traits.SCATTERS | {"CumSum", "ReduceSum"}

_DEEPEST = 50
"""More nodes than scales, masks and precautions make between scores and what they weigh."""

_GATES = 3
"""A recurrent cell that is told apart has at least so many blocks of rows for its state."""


def role_dims(analysis: Analysis) -> dict[Dim, Role]:
    """Tell what people call the dims; those that have no known role are left out."""
    network = LayerGraph(analysis)
    roles: dict[Dim, Role] = {}
    for rule in _MOST_SPECIFIC_FIRST:
        for dims, role in rule(network):
            for dim in dims:
                roles.setdefault(unit_of(dim), role)
    return roles


# --- Attention -----------------------------------------------------------------------------------------------


def _attention(net: LayerGraph) -> Found:
    """Queries times keys are exponentiated and weigh values; an operator may do it all."""
    for number in net.products:
        node = net.analysis.nodes[number]
        for index in (0, 1) if node.op not in traits.ATTENTIONS else ():
            scores = _scores(net, node.inputs[index])
            if scores is not None:
                weighed = net.result(number) & net.dims(number, 1 - index) - net.dims(number, index)
                yield from _unfused(net, scores, weighed & net.made)
                yield net.dims(number, index) & net.made, Role.HEADS  # where a layer mixed them
    for number, said in net.analysis.said.items():
        axes = net.axes(number) if net.analysis.nodes[number].op in traits.ATTENTIONS else ()
        if axes and said.contractions:
            counted = dims_of(*(axis for size in said.size_attributes if "heads" in size.name for axis in size.axes))
            heads = counted or dims_of(axes[1])
            yield from _heads(net, said.contractions[-1].axis, heads, dims_of(axes[-1]) - heads)


def _scores(net: LayerGraph, tensor: Tensor) -> int | None:
    """Return the product of activations that was exponentiated to get the weights of a mean, or None."""
    exponentiated = False
    for _ in range(_DEEPEST):
        if not tensor.inputs:
            return None
        node, number = tensor.inputs[0], net.age(tensor)
        if number in net.products:
            return number if exponentiated else None
        if number in net.layers and len(net.shape(node.outputs[0])) < 4:  # others may mix the heads of the scores
            return None
        exponentiated |= node.op in traits.SHARES | {"Exp"}
        dtype = net.analysis.sizes.dtype
        read = net.activations(node)
        if node.op in traits.CUTS | traits.JOINS:  # scores beside which a sink stands
            whole = sorted(read, key=net.elements)[-1:]
        else:
            whole = [t for t in net.whole(node, read) if dtype(t.name) != TensorProto.BOOL]
        if not whole:
            return None
        tensor = max(whole, key=net.age)
    return None


def _unfused(net: LayerGraph, scores: int, value: set[Dim]) -> Found:
    rows = dims_of(*net.axes(scores)[-2:])
    yield rows & net.made, Role.HEAD_DIM  # channels that attend to one another
    yield from _heads(net, net.products[scores], net.result(scores) & net.made - rows, value)
    yield rows, Role.POSITIONS


def _heads(net: LayerGraph, summed: Axis, heads: set[Dim], value: set[Dim]) -> Found:
    """Name the dims of an attention whose scores sum over an axis."""
    key = dims_of(summed) & net.made
    terms = [set(term) for layer in net.layers.values() for term in layer.terms]
    projections = [term for term in terms if key & term and heads & term]
    shared = {dim for dim in heads if all(dim in term for term in projections)}
    if shared and shared != heads:  # several heads of queries read one of keys and values
        yield shared, Role.KV_HEADS
        yield heads - shared, Role.HEADS_PER_KV_HEAD
    yield heads, Role.HEADS
    count = Counter(map(unit_of, leaves(summed)))
    is_paired = any(dim.size == 2 and dim.frozen for dim in count)
    yield (dim for dim in key if is_paired or count[dim] == 2), Role.ROTARY_PAIRS
    yield key & value, Role.HEAD_DIM
    yield key, Role.KEY_HEAD_DIM
    yield value, Role.VALUE_HEAD_DIM


# --- Mixtures of experts, recurrences, tables ----------------------------------------------------------------


def _experts(net: LayerGraph) -> Found:
    """A router makes the dim that matrices are stacked along, or chooses among its units the matrices to use."""
    yield from _routed(net)
    for layer in net.layers.values():
        if not layer.convolves:
            yield layer.shared & net.made, Role.EXPERTS
        for pick in _picks(net, net.analysis.nodes[layer.number].inputs[layer.weights]):
            stack = net.analysis.input_axes(net.number(pick), 0) or ()
            yield dims_of(stack[int(pick.attrs.get("axis", 0))]), Role.EXPERTS
            for node in net.behind(pick.inputs[1], stop=net.layers.keys()):
                if node.op in traits.WINNERS:
                    yield net.dims(net.number(node), 0) & net.made, Role.EXPERTS


def _routed(net: LayerGraph) -> Found:
    """A node chooses among experts that have a matrix each, or each a module of its own; others among groups of these.

    Masks of copies choose among those of each expert, as many as there are beside them.
    """
    analysis = net.analysis
    stacked = {dim for use in analysis.uses.values() if net.is_stack(use.constant) for dim in dims_of(*use.axes)}
    selections = ((node, selected(analysis, number)) for number, node in enumerate(analysis.nodes))
    apart = dims_of(*(analysis.places[node.inputs[1 - found[0]].name] for node, found in selections if found))
    chosen = [(dims_of((analysis.input_axes(number, index) or ())[position]), net.dims(number, index))
              for number, said in analysis.said.items() for index, position in said.choices]  # fmt: skip
    for whole, _ in chosen:
        inner = [(part, beside) for part, beside in chosen if part < whole]
        groups = set().union(*(part for part, beside in inner if not (whole - part) & beside))
        copies = set().union(*(part for part, beside in inner if (whole - part) & beside and whole - part - groups))
        if whole & net.made & (stacked | apart):
            yield groups, Role.GROUPS
            yield copies, Role.COPIES
            if not any(whole < more for more, _ in chosen):
                yield whole, Role.EXPERTS


def _picks(net: LayerGraph, weights: Tensor) -> Iterator[Node]:
    """Yield the nodes that pick matrices from a stack by places that depend on what the model is given."""
    while weights.inputs and weights.inputs[0].inputs:
        node = weights.inputs[0]
        if node.op in traits.PICKS and node.inputs[1].name in net.told:
            yield node
        weights = node.inputs[0]


def _recurrences(net: LayerGraph) -> Found:
    """A cell makes its state for each of its gates, and all gates read the state again."""
    for said in net.analysis.said.values():
        yield (
            dims_of(*(axis for size in said.size_attributes if size.name == "hidden_size" for axis in size.axes)),
            Role.STATE,
        )
    for layer in net.layers.values():
        made = Counter(dim for term in layer.terms for dim in term)
        yield (dim for dim in layer.reads if made[dim] >= _GATES), Role.STATE


def _tables(net: LayerGraph) -> Found:
    """Rows that are looked up by what the model is given are words; by counting, positions."""
    for number, node in enumerate(net.analysis.nodes):
        use = net.analysis.uses.get((number, 0)) if (node.op, 0) in traits.TABLES else None
        if use is None or net.is_stack(node.inputs[0]) or net.elements(node.inputs[1]) < 2:
            continue
        rows = dims_of(use.axes[int(node.attrs.get("axis", 0)) % len(use.axes)])
        if _is_given(net, node.inputs[1]):
            yield rows, Role.VOCABULARY
        elif _is_counted(net, node.inputs[1]):
            yield rows, Role.POSITIONS


def _is_given(net: LayerGraph, tensor: Tensor) -> bool:
    """Tell whether a tensor holds values that the model is given."""
    tensor = source(tensor, traits.INDEX_PATHS)
    return not tensor.inputs and tensor.name in net.told


def _is_counted(net: LayerGraph, tensor: Tensor) -> bool:
    """Tell whether a tensor holds different numbers whatever the model is given."""
    value = net.analysis.sizes.values.get(tensor.name)
    varies = value is not None and value.size > 0 and value.min() < value.max()
    return tensor.name not in net.told and (varies or any(node.op == "Range" for node in net.behind(tensor)))


# --- Streams -------------------------------------------------------------------------------------------------


def _groups(net: LayerGraph) -> Found:
    """Groups hold several channels each; those of a depthwise convolution are its channels."""
    groups: set[Dim] = set()
    for number, said in net.analysis.said.items():
        if not _is_depthwise(net, number):
            counted = [size.axes for size in said.size_attributes if size.name in ("group", "num_groups", "groups")]
            groups |= dims_of(*(axis for axes in counted for axis in axes))
        if net.analysis.nodes[number].op == "InstanceNormalization":  # of groups, where channels are factored for it
            groups |= dims_of(*(net.analysis.input_axes(number, 0) or ())[1:2])
    for layer in net.layers.values():
        for axis in net.analysis.input_axes(layer.number, layer.weights) or ():
            for part in map(dims_of, parts_of(axis)):
                if len(part) > 1 and part & groups and part <= net.made | groups:
                    yield part & groups, Role.GROUPS
                    yield part - groups, Role.CHANNELS_PER_GROUP


def _is_depthwise(net: LayerGraph, number: int) -> bool:
    layer, attrs = net.layers.get(number), net.analysis.nodes[number].attrs
    if layer is None or not layer.convolves:
        return False
    channels = (net.analysis.input_axes(number, 0) or ())[1]
    return channels.size == int(attrs.get("group", 1))


def _residuals(net: LayerGraph) -> Found:
    """Layers read a residual stream and are added to it; a dim that one of them makes for another is its ffn."""
    branches: list[tuple[set[Dim], list[Layer]]] = []
    for number, node in enumerate(net.analysis.nodes):
        terms = sorted(net.activations(node), key=net.age) if node.op in traits.ADDITIONS else []
        if len(terms) == 2 and net.elements(terms[0]) == net.elements(terms[1]):
            stream, branch = net.result(number) & net.made, net.between(*terms)
            if any(layer.makes & stream for layer in branch):
                branches.append((stream, branch))
                yield (dim for dim in stream if not _is_routine(dim)), Role.RESIDUAL_STREAM
    mixed = {dim for number in net.products for index in (0, 1) for dim in net.dims(number, index)}
    mixed |= _along_steps(net) | _convolved(net)
    for stream, branch in branches:
        made = {dim for layer in branch if layer.reads & stream for dim in layer.makes}
        read = {dim for layer in branch if layer.makes & stream for dim in layer.reads}
        yield (made & read) - stream - mixed, Role.FFN


def _along_steps(net: LayerGraph) -> set[Dim]:
    """Return the dims of what is taken apart, joined or summed along other axes, like the steps of a recurrence."""
    found: set[Dim] = set()
    for number, node in enumerate(net.analysis.nodes):
        if node.op in _STEPS and node.inputs and not net.is_weight(node.inputs[0]):
            before = {id(resolve(axis)) for axis in net.analysis.input_axes(number, 0) or ()}
            found |= dims_of(*(axis for axis in net.axes(number) if id(resolve(axis)) in before))
    return found


def _convolved(net: LayerGraph) -> set[Dim]:
    """Return the dims that one convolution makes and another one mixes positions of."""
    convolutions = [layer for layer in net.layers.values() if layer.convolves]
    made = {dim for layer in convolutions for dim in layer.makes}
    return made & {dim for layer in convolutions if layer.kernel for dim in layer.reads | layer.makes}


def _ends(net: LayerGraph) -> Found:
    """A layer reads what the model is given, or makes what it returns."""
    graph = net.analysis.graph
    returned = [axis for tensor in graph.outputs for axis in net.analysis.axes.get(tensor.name, ())]
    outputs = {dim for axis in returned if isinstance(dim := resolve(axis), Dim) and not _is_routine(dim)} & net.made
    for number, node in enumerate(net.analysis.nodes):
        axes = (net.analysis.input_axes(number, 0) or ()) if node.op in traits.CHOICES else ()
        if axes:
            yield dims_of(axes[int(node.attrs.get("axis", -1)) % len(axes)]) & outputs, Role.CLASSES
    yield outputs, Role.OUTPUTS
    given = dims_of(*(axis for tensor in graph.inputs for axis in net.analysis.axes.get(tensor.name, ())))
    for layer in net.layers.values():
        if len(layer.reads) == 1:
            yield layer.reads & given, Role.INPUT_CHANNELS if layer.convolves else Role.INPUT_FEATURES


def _channels(net: LayerGraph) -> Found:
    """A convolution makes channels, and works along positions."""
    for layer in net.layers.values():
        yield layer.kernel, Role.KERNEL
        for term in layer.terms if layer.convolves else ():
            yield term if len(term) == 1 else (), Role.CHANNELS
    for number, node in enumerate(net.analysis.nodes):
        if node.op in traits.CONVOLUTIONS | traits.POOLS:
            yield dims_of(*(net.analysis.input_axes(number, 0) or ())[2:], *net.axes(number)[2:]), Role.POSITIONS


def _is_routine(dim: Dim) -> bool:
    """Tell whether a dim is fixed as positions, kernels and directions are."""
    return kind_of(dim.frozen) is ReasonKind.ROUTINE


_MOST_SPECIFIC_FIRST = (_attention, _experts, _recurrences, _tables, _groups, _residuals, _ends, _channels)
