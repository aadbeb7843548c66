"""Functions of a model: check them, and put their nodes in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import inliner

from onnx_net2net.errors import BadInputError
from onnx_net2net.model.protos import bodies

LIMIT = 1_000_000
"""Nodes that a model may have when its functions are opened."""

_Key = tuple[str, str, str]


def check_functions(proto: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, that are there twice, or whose calls multiply beyond all bounds.

    Raises:
        BadInputError: With the reason.
    """
    if not proto.functions:
        return
    functions = {_key(function): function for function in proto.functions}
    if len(functions) < len(proto.functions):
        raise BadInputError("two of its functions have the same name")
    sizes: dict[_Key, int] = {}
    total = sum(_size(node, functions, sizes) for node in _nodes(proto.graph))
    if total > LIMIT:
        raise BadInputError(f"it has {total:,} nodes when its functions are opened; at most {LIMIT:,} are supported")


def _size(node: onnx.NodeProto, functions: dict[_Key, Any], sizes: dict[_Key, int]) -> int:
    """Return how many nodes a node stands for when functions are opened; `sizes` keeps those of the functions."""
    start = _called(node)
    pending = [start] if start in functions else []
    inside: set[_Key] = set()
    while pending:
        key = pending[-1]
        called = [inner for n in _nodes(functions[key]) if (inner := _called(n)) in functions]
        unknown = [inner for inner in dict.fromkeys(called) if inner not in sizes]
        inside.add(key)
        if any(inner in inside for inner in unknown):
            raise BadInputError(f"its function {key[1]} calls itself")
        if unknown:
            pending += unknown
            continue
        sizes[key] = sum(sizes.get(_called(n), 1) for n in _nodes(functions[key]))
        inside.discard(key)
        pending = [other for other in pending if other != key]
    return sizes.get(start, 1)


def _nodes(scope: Any) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph or function, and those in bodies."""
    pending = [scope]
    while pending:
        for node in pending.pop().node:
            yield node
            pending.extend(bodies(node))


def _key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, getattr(function, "overload", "")


def _called(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, getattr(node, "overload", "")


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its functions replaced by their nodes; the model itself where the inliner cannot do that."""
    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception:  # whatever the inliner does not take stays, and freezes what it touches
        return proto
