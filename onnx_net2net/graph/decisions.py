"""Which bodies stay closed and which Ifs are replaced by a branch: seen only from the sizes of the opened graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from onnx_net2net.graph import sizes
from onnx_net2net.model.checks import DEFAULT_DOMAIN
from onnx_net2net.model.protos import initializer_names, refill, value_names
from onnx_net2net.rules import traits

DOMAIN = "onnx_net2net.body"
"""Domain of the nodes that stand at the ends of opened bodies; they never reach a saved model."""

_DYNAMIC = -1


@dataclass
class Decisions:
    """What is to become of nodes with bodies, by the first output: kept as they are, or replaced by one branch."""

    closed: set[str] = field(default_factory=set)
    taken: dict[str, str] = field(default_factory=dict)


def key(node: onnx.NodeProto) -> str:
    """Return what identifies a node: the first of its outputs."""
    return next(filter(None, node.output), "")


def reconsider(flat: onnx.ModelProto, decisions: Decisions) -> bool:
    """Look at the sizes: close loops that change their shapes, fold Ifs that cannot change; tell if any did."""
    known = sizes.infer_sizes(flat)
    ends = [node for node in flat.graph.node if node.domain == DOMAIN]
    loops = [node for node in ends if node.op_type in traits.LOOPS]
    closed = {key(node) for node in loops if any(name in known.failures for name in node.output)}
    decisions.closed |= closed
    branches = [node for node in ends if node.op_type in traits.BRANCHES and node.input[0] in known.values]
    fixed = _fixed(flat, known) if branches else set()
    taken = {}
    for node in branches:
        if node.input[0] in fixed and known.values[node.input[0]].size == 1:
            taken[key(node)] = "then_branch" if known.values[node.input[0]].item() else "else_branch"
    decisions.taken.update(taken)
    return bool(closed or taken)


def _fixed(proto: onnx.ModelProto, known: sizes.Sizes) -> set[str]:
    """Return the values that are the same whatever is fed: they follow from constants and sizes that are static."""
    graph = proto.graph
    overridable = set(initializer_names(graph)).intersection(value_names(graph.input))
    if overridable and proto.ir_version >= 4:
        return set()
    static = _static_shapes(proto)
    fixed = set(initializer_names(graph)) & set(known.values)
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if key(node) not in known.values:
            continue
        if node.op_type == "Shape" and node.input[0] in static and not node.attribute:
            shapes[node.output[0]] = static[node.input[0]]
            follows = _DYNAMIC not in shapes[node.output[0]]
        elif node.op_type == "Gather" and node.input[0] in shapes and node.input[1] in fixed:
            places = known.values[node.input[1]].reshape(-1)
            follows = all(shapes[node.input[0]][place] != _DYNAMIC for place in places)
        else:
            follows = node.domain in DEFAULT_DOMAIN and all(name in fixed for name in node.input if name)
        if follows:
            fixed.update(name for name in node.output if name in known.values)
    return fixed


def _static_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Infer shapes without probing: sizes that the inputs leave open are `_DYNAMIC`."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    refill(bare.graph.value_info, [])  # may be stale
    for output in bare.graph.output:
        output.ClearField("type")
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # the inference refuses models in which anything is amiss
        return {}
    typed = (value for value in (*graph.input, *graph.value_info) if value.type.tensor_type.HasField("shape"))
    return {v.name: tuple(d.dim_value or _DYNAMIC for d in v.type.tensor_type.shape.dim) for v in typed}
