"""Open the bodies of If, Loop and Scan, and functions: one flat graph to analyse and grow, folded up again after.

In the opened model the nodes of a body stand in the main graph, between two nodes of our own that say how its
tensors belong to those outside: `LoopStart` and `Loop`, `ScanStart` and `Scan`; one `If` stands behind both branches
(rules in `onnx_net2net.rules.control`). So dims, padding and rewriting need to know nothing of bodies.
`Opened.close` puts every node back into its body, under the names that it had.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper

from onnx_net2net.errors import BadInputError
from onnx_net2net.graph import sizes
from onnx_net2net.graph.decisions import DOMAIN, Decisions, key, reconsider
from onnx_net2net.graph.sequences import without_sequences
from onnx_net2net.model.checks import DEFAULT_DOMAIN, check_structure
from onnx_net2net.model.functions import inlined
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import (
    bodies,
    initializer_names,
    integer,
    refill,
    scopes,
    sorted_indices,
    unused,
    value_names,
)
from onnx_net2net.rules import traits

_FRAME = "frame"
_MAIN = -1


@dataclass
class _Body:
    """A body that was opened: its frame (the node that holds it), the scope around it, and what is left of it."""

    frame: int
    parent: int
    proto: onnx.GraphProto


@dataclass
class _Frame:
    """A node whose bodies were opened; scope numbers count bodies.

    Attributes:
        node: The node, without them.
        scope: Where it stands.
        order: The names of its attributes.
        bodies: The scope of each, by attribute.
        places: For each scope, at which input of the node's end its outputs begin.
        counts: What the end needs to know of its inputs.
    """

    node: onnx.NodeProto
    scope: int
    order: list[str]
    bodies: dict[str, int] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Opened:
    """A model without bodies and functions, and how to get them back.

    Attributes:
        model: The flat model.
        inlined: The functions that were replaced by their nodes, as domain::name.
        folded: The Ifs that were replaced by the branch that they always take.
    """

    def __init__(self, model: Model, flat: _Flat | None = None, inlined: tuple[str, ...] = ()) -> None:
        self._flat = flat
        self.model, self.inlined = model, inlined
        self.folded = tuple(flat.folded) if flat else ()

    def notes(self) -> dict[str, list[str]]:
        """Return what a student's history has to say of this."""
        notes = {"inlined functions": list(self.inlined), "folded Ifs": list(self.folded)}
        return {key: names for key, names in notes.items() if names}

    def close(self, student: Model) -> Model:
        """Return an edited copy of the flat model with the bodies where they were."""
        if self._flat is None:
            return student
        proto = copy.deepcopy(student.proto)
        _Closing(self._flat, proto).close()
        refill(proto.opset_import, [entry for entry in proto.opset_import if entry.domain != DOMAIN])
        check_structure(proto)
        return dataclasses.replace(student, proto=proto)


def open_bodies(model: Model) -> Opened:
    """Open every body, function and sequence of a model that can be opened; the others stay, and freeze dims."""
    proto, inlined = _inlined(model.proto)
    proto = without_sequences(proto)
    if not any(True for node in proto.graph.node for _ in bodies(node)):
        return Opened(model if proto is model.proto else _like(model, proto), inlined=inlined)
    proto = copy.deepcopy(proto)
    names = _unique_names(proto)
    decisions = Decisions()
    while True:
        flat = _Flat(proto, decisions, names)
        if not reconsider(flat.proto, decisions):
            return Opened(_like(model, flat.proto), flat, inlined)


def _like(model: Model, proto: onnx.ModelProto) -> Model:
    return dataclasses.replace(model, proto=proto, path=None)


def _inlined(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Replace calls of functions by their nodes, where the inliner can."""
    if not proto.functions:
        return proto, ()
    result = inlined(proto)
    try:
        check_structure(result)
    except BadInputError:
        return proto, ()
    left = {(function.domain, function.name) for function in result.functions}
    gone = [f"{f.domain}::{f.name}" for f in proto.functions if (f.domain, f.name) not in left]
    return (result, tuple(gone)) if gone else (proto, ())


# --- Names ---------------------------------------------------------------------------------------------------


def _unique_names(proto: onnx.ModelProto) -> dict[str, str]:
    """Rename the tensors of bodies so that no two of them share a name; return the old names of those renamed."""
    known = dict.fromkeys((name for scope in scopes(proto) for name in _mentioned(scope)), 0)
    used = set(_defined(proto.graph))
    old: dict[str, str] = {}

    def rename(graph: onnx.GraphProto, outer: Mapping[str, str]) -> None:
        for body in itertools.chain.from_iterable(map(bodies, graph.node)):
            new = dict(outer)
            for name in _defined(body):
                new[name] = name
                if name in used:
                    new[name] = unused(name, known)
                    old[new[name]] = name
                used.add(new[name])
            _rename(body, new)
            rename(body, new)

    rename(proto.graph, {})
    return old


def _defined(graph: onnx.GraphProto) -> list[str]:
    outputs = (name for node in graph.node for name in node.output if name)
    return list(dict.fromkeys((*value_names(graph.input), *initializer_names(graph), *outputs)))


def _mentioned(scope: Any) -> Iterator[str]:
    yield from value_names((*scope.input, *scope.output, *scope.value_info))
    yield from initializer_names(scope)
    for node in scope.node:
        yield from (*node.input, *node.output)


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors of one graph; bodies inside it are left alone."""
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = new.get(item.name, item.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new.get(sparse.values.name, sparse.values.name)
    for note in graph.quantization_annotation:
        note.tensor_name = new.get(note.tensor_name, note.tensor_name)
    for node in graph.node:
        refill(node.input, [new.get(name, name) for name in node.input])
        refill(node.output, [new.get(name, name) for name in node.output])


# --- Open ----------------------------------------------------------------------------------------------------


class _Flat:
    """The flat model, and where everything in it comes from.

    Attributes:
        proto: The flat model.
        decisions: What became of each node with bodies.
        names: Old names of tensors that were renamed.
        folded: The Ifs that were replaced by a branch.
        frames: The opened nodes.
        bodies: The opened bodies; an outer one comes before those inside it.
        home: The scope of every tensor: the number of its body, or `_MAIN`.
    """

    def __init__(self, source: onnx.ModelProto, decisions: Decisions, names: Mapping[str, str]) -> None:
        self.decisions, self.names = decisions, dict(names)
        self.frames: list[_Frame] = []
        self.bodies: list[_Body] = []
        self.home: dict[str, int] = {}
        self._versions = sizes.opsets_of(source)
        self._known = dict.fromkeys((name for scope in scopes(source) for name in _mentioned(scope)), 0)
        self._moved_out: set[str] = set()
        self.folded: list[str] = []
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(source)
        refill(self.proto.graph.node, [])
        self.home.update(dict.fromkeys((*value_names(source.graph.input), *initializer_names(source.graph)), _MAIN))
        self._open_nodes(source.graph, _MAIN)
        self.proto.opset_import.add(domain=DOMAIN, version=1)
        self.names = {new: old for new, old in self.names.items() if not {new, old} & self._moved_out}

    def _open_nodes(self, graph: onnx.GraphProto, scope: int) -> None:
        for node in graph.node:
            if key(node) in self.decisions.taken:
                self._fold(node, scope)
            elif self._can_open(node):
                self._open(node, scope)
            else:
                self._add(node, scope)

    def _can_open(self, node: onnx.NodeProto) -> bool:
        loops = traits.LOOPS if self._versions[""] >= 9 else traits.COUNTED_LOOPS  # an older Scan has a batch
        return (
            node.op_type in traits.BRANCHES | loops
            and node.domain in DEFAULT_DOMAIN
            and key(node) not in {"", *self.decisions.closed}
            and all(_is_plain(node, body) for body in bodies(node))
        )

    def _add(self, node: onnx.NodeProto, scope: int) -> None:
        self.proto.graph.node.append(node)
        self.home.update(dict.fromkeys(filter(None, node.output), scope))

    def _open(self, node: onnx.NodeProto, scope: int) -> None:
        plain = [attribute for attribute in node.attribute if not attribute.HasField("g")]
        frame = _Frame(copy.deepcopy(node), scope, [attribute.name for attribute in node.attribute])
        refill(frame.node.attribute, plain)
        number = len(self.frames)
        self.frames.append(frame)
        (first, *_), steps = _graphs(node).values(), unused(f"{key(node)}_steps", self._known)
        given = [value.name for value in first.input]
        if node.op_type in traits.LOOPS:
            self._add_end(f"{node.op_type}Start", frame, number, list(node.input), [*given, steps])
        for name, graph in _graphs(node).items():
            frame.bodies[name] = self._open_body(graph, number, scope)
        read = [name for graph in _graphs(node).values() for name in value_names(graph.output)]
        if node.op_type in traits.BRANCHES:
            frame.places = {scope: 1 + k * len(node.output) for k, scope in enumerate(frame.bodies.values())}
            read = [*node.input, *read]
        else:
            self.home.update(dict.fromkeys((*given, steps), frame.bodies["body"]))
            counted = node.op_type in traits.COUNTED_LOOPS
            states = given[2:] if counted else given[: len(given) - integer(node, "num_scan_inputs")]
            frame.places = {frame.bodies["body"]: len(states) + 1}
            frame.counts = {"states": len(states), "conditions": int(counted)}
            read = [*states, steps, *read]
        self._add_end(node.op_type, frame, number, read, list(node.output))
        self.home.update(dict.fromkeys(filter(None, node.output), scope))

    def _add_end(self, kind: str, frame: _Frame, number: int, inputs: list[str], outputs: list[str]) -> None:
        end = helper.make_node(kind, inputs, outputs, name=frame.node.name, domain=DOMAIN, **{_FRAME: number})
        end.attribute.extend(map(helper.make_attribute, frame.counts.keys(), frame.counts.values()))
        end.attribute.extend(frame.node.attribute)
        self.proto.graph.node.append(end)

    def _open_body(self, graph: onnx.GraphProto, frame: int, parent: int) -> int:
        number = len(self.bodies)
        rest = onnx.GraphProto()
        rest.CopyFrom(graph)
        for part in (rest.node, rest.initializer, rest.value_info):
            refill(part, [])
        self.bodies.append(_Body(frame, parent, rest))
        self._move_in(graph, number, (*graph.input, *graph.output))
        self._open_nodes(graph, number)
        return number

    def _move_in(self, graph: onnx.GraphProto, scope: int, typed: Collection[onnx.ValueInfoProto]) -> None:
        """Add the constants of a body and the recorded types of its tensors."""
        self.proto.graph.initializer.extend(graph.initializer)
        self.home.update(dict.fromkeys(initializer_names(graph), scope))
        known = set(value_names((*self.proto.graph.value_info, *self.proto.graph.input, *self.proto.graph.output)))
        known.update(initializer_names(graph))
        for value in (*graph.value_info, *typed):
            if value.name not in known:
                self.proto.graph.value_info.append(value)
                known.add(value.name)

    def _fold(self, node: onnx.NodeProto, scope: int) -> None:
        """Put the branch that an If always takes into its place."""
        graph = _graphs(node)[self.decisions.taken[key(node)]]
        self.folded.append(node.name or key(node))
        self._moved_out.update(_defined(graph))  # what stands in an outer scope now may have no namesake
        self._move_in(graph, scope, ())
        self._open_nodes(graph, scope)
        for result, output in zip(value_names(graph.output), node.output, strict=False):
            if output:
                self._add(helper.make_node("Identity", [result], [output]), scope)


def _graphs(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    """Return the bodies of a node by attribute; the `then_branch` comes first."""
    graphs = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
    return dict(sorted(graphs.items(), reverse=True))


def _is_plain(node: onnx.NodeProto, body: onnx.GraphProto) -> bool:
    """Tell whether a body takes and gives what the node does, and holds nothing that a flat graph would lose."""
    inputs = len(node.input) if node.op_type in traits.LOOPS else 0
    outputs = len(node.output) + (node.op_type in traits.COUNTED_LOOPS)
    matches = len(body.input) == inputs and len(body.output) == outputs
    return matches and not body.sparse_initializer and not body.quantization_annotation


def _frame(node: onnx.NodeProto) -> int:
    """Return the frame that a start or an end belongs to."""
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == _FRAME)


# --- Close ---------------------------------------------------------------------------------------------------


class _Closing:
    """Puts the nodes of a grown flat model back into their bodies, in place."""

    def __init__(self, flat: _Flat, proto: onnx.ModelProto) -> None:
        self._flat, self._graph, self._proto = copy.deepcopy(flat), proto.graph, proto
        self._home = {"": _MAIN, **flat.home}
        self._taken = dict.fromkeys((*flat.home, *flat.names.values(), *_mentioned(proto.graph)), 0)
        self._starts = {_frame(n): n for n in proto.graph.node if n.domain == DOMAIN and n.op_type.endswith("Start")}
        self._nodes: dict[int, list[onnx.NodeProto]] = {}

    def close(self) -> None:
        """Do it."""
        self._place_new_nodes()
        for node in self._graph.node:
            if node.domain != DOMAIN:
                self._nodes.setdefault(self._home[key(node)], []).append(node)
            elif not node.op_type.endswith("Start"):
                self._nodes.setdefault(self._flat.frames[_frame(node)].scope, []).append(self._end(node))
        types = {value.name: value.type for value in self._graph.value_info}
        for number in reversed(range(len(self._flat.bodies))):
            self._fill(number, types)
        graph = self._graph
        hidden = {name for body in self._flat.bodies for name in value_names((*body.proto.input, *body.proto.output))}
        infos = [v for v in graph.value_info if self._home.get(v.name, _MAIN) == _MAIN and v.name not in hidden]
        refill(graph.value_info, infos)
        refill(graph.initializer, [t for t in graph.initializer if self._home.get(t.name, _MAIN) == _MAIN])
        nodes = self._nodes.get(_MAIN, [])
        refill(graph.node, [nodes[index] for index in sorted_indices(nodes)])
        for scope in scopes(self._proto):
            if isinstance(scope, onnx.GraphProto):  # and no function, which has names of its own
                _rename(scope, self._flat.names)

    def _place_new_nodes(self) -> None:
        """Find the scope of nodes that were inserted: the innermost one around all that read them."""
        readers: dict[str, list[int]] = {}
        for node in reversed(self._graph.node):
            if key(node) not in self._home:
                around = [scope for name in node.output for scope in readers.get(name, [])]
                scope = functools.reduce(self._around, around) if around else _MAIN
                self._home.update(dict.fromkeys(node.output, scope))
            for index, name in enumerate(node.input):
                readers.setdefault(name, []).append(self._reading_scope(node, index))

    def _around(self, one: int, other: int) -> int:
        """Return the innermost scope that holds two."""
        path = {_MAIN}
        while one != _MAIN:
            path.add(one)
            one = self._flat.bodies[one].parent
        while other not in path:
            other = self._flat.bodies[other].parent
        return other

    def _reading_scope(self, node: onnx.NodeProto, index: int) -> int:
        """Return where an input of a node is read; the ends read the outputs of bodies inside them."""
        if node.domain != DOMAIN:
            return self._home[key(node)]
        frame = self._flat.frames[_frame(node)]
        if node.op_type.endswith("Start"):
            return frame.scope
        begun = [scope for scope, place in frame.places.items() if place <= index]
        return begun[-1] if begun else frame.scope

    def _end(self, end: onnx.NodeProto) -> onnx.NodeProto:
        """Return the node with bodies that an end stands for, as yet without them; bodies get their outputs."""
        frame = self._flat.frames[_frame(end)]
        start = self._starts.get(_frame(end))
        refill(frame.node.output, end.output)
        refill(frame.node.input, start.input if start is not None else end.input[:1])
        for scope, place in frame.places.items():
            for number, value in enumerate(self._flat.bodies[scope].proto.output):
                self._hand_out(value, end.input[place + number], scope)
        return frame.node

    def _hand_out(self, value: onnx.ValueInfoProto, name: str, scope: int) -> None:
        """Make a tensor an output of a body; one from outside needs a node for it."""
        if name == value.name or self._home.get(name) == scope:
            value.name = name
            return
        value.name = unused(value.name, self._taken)
        self._nodes.setdefault(scope, []).append(helper.make_node("Identity", [name], [value.name]))

    def _fill(self, number: int, types: Mapping[str, onnx.TypeProto]) -> None:
        """Fill a body and hang it into its node; those inside it are done already."""
        body = self._flat.bodies[number]
        nodes, graph = self._nodes.get(number, []), body.proto
        for value in (*graph.input, *graph.output):
            if value.name in types:
                value.type.CopyFrom(types[value.name])
        known = {*value_names(graph.input), *value_names(graph.output)}
        refill(graph.node, [nodes[index] for index in sorted_indices(nodes)])
        refill(graph.initializer, [t for t in self._graph.initializer if self._home.get(t.name) == number])
        infos = [v for v in self._graph.value_info if self._home.get(v.name) == number and v.name not in known]
        refill(graph.value_info, infos)
        frame = self._flat.frames[body.frame]
        name = next(name for name, scope in frame.bodies.items() if scope == number)
        attributes = [*frame.node.attribute, helper.make_attribute(name, graph)]
        refill(frame.node.attribute, sorted(attributes, key=lambda attribute: frame.order.index(attribute.name)))
