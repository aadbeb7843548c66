"""Which entries of a state dict the constants of an exported graph are, and in what layout: found by their values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.views import Blocks, Once, Reshape, Slice, Transpose, View, apply
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.framework.formats.stored import StateDict, Stored
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import constants_in, scopes
from onnx_net2net.model.tensors import numpy_type, type_bits
from onnx_net2net.rules import traits

Relation = Literal[
    "same", "transposed", "reshaped", "gate order", "concatenated", "repeated", "folded", "gathered", "recovered"
]

_MOST_AXES = 5


@dataclass(frozen=True)
class ConstantRead:
    """A node that reads a constant: its operator, at which input, the module it belongs to ("" if not told)."""

    operator: str
    input: int
    scope: str
    node: int


@dataclass
class StoredConstant:
    """A float constant of a graph, an initializer or the output of a Constant node."""

    name: str  # its name
    shape: tuple[int, ...]  # its shape
    dtype: np.dtype[Any]  # its type
    read: Callable[[], Array]  # returns its values
    reads: list[ConstantRead] = field(default_factory=list)  # the nodes that read it

    @property
    def is_turned(self) -> bool:
        """Whether it is the weight of a layer as MatMul reads it, with the axes of PyTorch's Linear the other way."""
        return len(self.shape) == 2 and any(read.operator == "MatMul" and read.input == 1 for read in self.reads)


def in_common(one: Iterable[str], other: Iterable[str]) -> int:
    """Return how many steps two paths have in common, from their start on."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True)
class Piece:
    """An entry, or a part of one, is what a view shows of a constant."""

    constant: str
    view: View


@dataclass(frozen=True)
class Match:
    """What an entry is in the graph."""

    relation: Relation  # how its values are laid out there
    pieces: tuple[Piece, ...]  # the constants that it is made of, laid end to end along `axis` if there are several
    axis: int = 0  # that axis
    # Where the entry is not made of the constant, but the constant of it and others: for each axis of the entry the
    # axis of the constant that grows like it, None if it does not grow.
    axes: tuple[int | None, ...] | None = None
    scales: bool = False  # likewise: whether the entry multiplies or divides units, so that growth by zeros copies it

    def read(self, constants: Mapping[str, StoredConstant]) -> Array:
        """Return what it shows of the constants."""
        parts = [apply(piece.view, constants[piece.constant].read()) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)


Matches = dict[str, list[Match]]
"""For each entry what it may be in the graph; several where values are equal."""


def constants_of(model: Model, *, floats: bool = True) -> dict[str, StoredConstant]:
    """Return the float constants of a model by their names, or the others."""
    found: dict[str, StoredConstant] = {}
    alias: dict[str, str] = {}
    for scope in scopes(model.proto):
        for name, tensor in constants_in(scope).items():
            kind = tensor.data_type
            dtype = numpy_type(kind) if kind != onnx.TensorProto.STRING and type_bits(kind) >= 8 else None
            if dtype is not None and is_float(dtype) == floats:
                found[name] = StoredConstant(name, tuple(tensor.dims), dtype, model.tensor(tensor).numpy)
    numbers = itertools.count()
    for scope in scopes(model.proto):
        for node in scope.node:
            number = next(numbers)
            for index, name in enumerate(node.input):
                source = alias.get(name, name)
                if source in found and node.op_type in traits.RENAMES:
                    alias[node.output[0]] = source
                elif source in found:
                    found[source].reads.append(ConstantRead(node.op_type, index, scope_of(node), number))
    return found


def biases_of(constants: Mapping[str, StoredConstant]) -> dict[int, StoredConstant]:
    """Return the biases of layers by the numbers of the nodes that read them."""
    return {r.node: c for c in constants.values() for r in c.reads if r.operator in traits.LAYERS and r.input == 2}


def as_parameter(constant: StoredConstant, turned: bool) -> tuple[Stored, Match]:
    """Return a constant as an entry of a state dict, transposed if it is turned, and what that is in the graph."""
    shape, view = (constant.shape[::-1], (Transpose((1, 0)),)) if turned else (constant.shape, ())
    match = Match("transposed" if turned else "same", (Piece(constant.name, view),))
    return Stored(shape, constant.dtype, partial(match.read, {constant.name: constant})), match


def match(entries: StateDict, constants: Mapping[str, StoredConstant]) -> Matches:
    """Find each float entry of a state dict among the constants of a graph.

    Values are compared in single precision, so that casts do not matter. Tensors are hashed first, whatever the
    order of their elements; only those of equal hashes are compared.

    Args:
        entries: The state dict.
        constants: What `constants_of` returned.

    Returns:
        All that each entry may be; entries that are nowhere have no match.
    """
    index: dict[tuple[int, int], list[Piece]] = {}
    for constant in constants.values():
        values = constant.read()
        for view in _views(constant, values):
            index.setdefault(_hash(apply(view, values)), []).append(Piece(constant.name, view))
    found: Matches = {}
    for name, entry in entries.items():
        if not is_float(entry.dtype):
            continue
        values = entry.read()
        for piece in index.get(_hash(values), ()):
            steps = _layout(apply(piece.view, constants[piece.constant].read()), values)
            if steps is not None:
                whole = replace(piece, view=(*piece.view, *steps))
                found.setdefault(name, []).append(Match(_relation(whole.view), (whole,)))
    return found


def match_parts(entries: StateDict, constants: Mapping[str, StoredConstant], matches: Matches) -> None:
    """Add to the matches the entries that lie end to end in one constant, and those that were cut into several.

    Args:
        entries: The state dict.
        constants: The constants of the graph.
        matches: What was found so far; entries and constants in it are left out here.
    """
    lost = {name: single(e.read()) for name, e in entries.items() if is_lost(name, e, matches)}
    left = {c.name: single(c.read()) for c in left_over(constants, matches) if c.shape}
    for name, values in left.items():
        for view, whole in _turned(values):
            for axis in range(whole.ndim):
                for part in _run(whole, axis, lost, has_gaps=True):
                    steps = (*view, Slice(axis, part.start, part.stop), *part.back)
                    matches[part.name] = [Match("concatenated", (Piece(name, steps),))]
                    del lost[part.name]
    for name, values in lost.items():
        for axis in range(values.ndim):
            run = _run(values, axis, left)
            if run:
                matches[name] = [Match("concatenated", tuple(Piece(part.name, part.view) for part in run), axis)]
                left = {constant: rest for constant, rest in left.items() if constant not in [r.name for r in run]}
                break


def shown_again(constant: StoredConstant, part: Array) -> View | None:
    """Return the view by which a constant shows a part of an entry once more, as where a state of zeros was folded."""
    values = constant.read()
    for view in _views(constant, values):
        shown = apply(view, values)
        steps = _layout(shown, part) if shown.size == part.size else None
        if steps is not None:
            return (*view, *steps)
    return None


def is_lost(name: str, entry: Stored, matches: Matches) -> bool:
    """Tell whether an entry of floats, and no single one, was not found in the graph."""
    return name not in matches and is_float(entry.dtype) and len(entry.shape) > 0


def left_over(constants: Mapping[str, StoredConstant], matches: Matches) -> list[StoredConstant]:
    """Return the constants that no entry is."""
    known = {piece.constant for found in matches.values() for match in found for piece in match.pieces}
    return [constant for constant in constants.values() if constant.name not in known]


def _turned(values: Array) -> Iterator[tuple[View, Array]]:
    """Yield an array, and a matrix transposed too, with the view that shows it so."""
    yield (), values
    if values.ndim == 2:
        yield (Transpose((1, 0)),), values.T


class _Part(NamedTuple):
    """A part of an array."""

    name: str  # its name
    view: View  # what shows it as it is in the array
    back: View  # what shows it as it is by itself, of its place in the array
    start: int  # where it begins
    stop: int  # and where it ends


def _run(whole: Array, axis: int, parts: Mapping[str, Array], has_gaps: bool = False) -> list[_Part]:
    """Find the parts that an array consists of along an axis; none if something is left over, or one is all of it.

    Args:
        whole: The array.
        axis: The axis.
        parts: What may be part of it, by name.
        has_gaps: Whether zeros may lie between them, as where a class joins biases and keys have none.
    """
    found: list[_Part] = []
    start, size = 0, whole.shape[axis]
    is_zero = ~np.any(whole, axis=tuple(k for k in range(whole.ndim) if k != axis)) & has_gaps
    while start < size:
        taken = {part.name for part in found}
        rest = {name: values for name, values in parts.items() if name not in taken}
        part = next(_beginning(whole, axis, start, rest), None)
        if part is not None:
            found.append(part)
            start = part.stop
        elif is_zero[start]:
            start += 1
        else:
            return []
    return found


def _beginning(whole: Array, axis: int, start: int, parts: Mapping[str, Array]) -> Iterator[_Part]:
    """Yield the parts that an array has from a place of an axis on; such as have one axis less are one unit of it."""
    size, rest = whole.shape[axis], whole.shape[:axis] + whole.shape[axis + 1 :]
    across = np.moveaxis(whole, axis, 0)
    for name, values in parts.items():
        for view, part in _placed(values, axis, whole.ndim):
            stop = start + part.shape[axis]
            if start < stop <= size and stop - start < size and part.shape[:axis] + part.shape[axis + 1 :] == rest:
                own = np.moveaxis(part, axis, 0)
                if np.array_equal(own[0], across[start]) and np.array_equal(own, across[start:stop]):
                    # A transposition is its own inverse.
                    yield _Part(name, view, view if part.ndim == values.ndim else (Reshape(values.shape),), start, stop)


def _views(constant: StoredConstant, values: Array) -> Iterator[View]:
    """Yield the parts of a constant that entries may be: all, one of many equal, directions and halves of recurrent.

    Transposed, and with axes of one unit or products of axes, they are found by `_layout`. Of a recurrent layer the
    gates come in the order of each framework. PyTorch has a vector for each half of biases, Keras' GRU both as rows.
    """
    yield ()
    if values.ndim > 1 and values.size > 1:
        once = tuple(Once(axis) for axis, size in enumerate(values.shape) if size > 1 and _is_repeated(values, axis))
        if once and len(once) < sum(size > 1 for size in values.shape):
            yield once
    read = next((read for read in constant.reads if read.operator in traits.GATES and read.input in (1, 2, 3)), None)
    if read is None:
        return
    width = constant.shape[1]
    for direction, order in itertools.product(range(constant.shape[0]), traits.GATES[read.operator]):
        is_moved = list(order) != sorted(order)
        one: View = (Slice(0, direction, direction + 1), Reshape(constant.shape[1:]))
        if read.input < 3:
            yield (*one, *((Blocks(0, order),) if is_moved else ()))
            continue
        for start in (0, width // 2):
            yield (*one, Slice(0, start, start + width // 2), *((Blocks(0, order),) if is_moved else ()))
        yield (*one, Reshape((2, width // 2)), *((Blocks(1, order),) if is_moved else ()))


def _placed(values: Array, axis: int, rank: int) -> Iterator[tuple[View, Array]]:
    """Yield an array as it may be a part of one of a rank, with the views that show it so."""
    if values.ndim == rank:
        yield from _turned(values)
    elif values.ndim == rank - 1 > 0:
        shape = (*values.shape[:axis], 1, *values.shape[axis:])
        yield (Reshape(shape),), values.reshape(shape)


def _is_repeated(values: Array, axis: int) -> bool:
    """Tell whether all that lies along an axis is the same."""
    first, last = values.take([0], axis), values.take([-1], axis)
    return np.array_equal(first, last) and bool((values == first).all())


def _hash(values: Array) -> tuple[int, int]:
    """Return the same for arrays of the same elements, whatever their order and shape."""
    bits = single(values).reshape(-1).view(np.uint32)
    return bits.size, int(bits.sum(dtype=np.uint64))


def single(values: Array) -> Array:
    """Return the values in single precision, in one run of memory."""
    return np.ascontiguousarray(values, np.float32)


def _layout(values: Array, wanted: Array) -> View | None:
    """Return the steps that turn an array into another one, None if there are none."""
    values, wanted = single(values), single(wanted)
    if np.array_equal(values, wanted):
        return ()
    real, targets = ([size for size in array.shape if size > 1] for array in (values, wanted))
    orders = list(itertools.permutations(range(len(real)))) if len(real) <= _MOST_AXES else []
    same = [order for order in orders if [real[k] for k in order] == targets]  # all axes are where they should be
    for order in (*same, *(order for order in orders if order not in same)):
        if not np.array_equal(np.transpose(values.reshape(real), order).reshape(-1), wanted.reshape(-1)):
            continue
        if order in same and tuple(real) == values.shape and tuple(targets) == wanted.shape:
            return (Transpose(order),)
        turn = (Reshape(tuple(real)), Transpose(order)) if list(order) != sorted(order) else ()
        return (*turn, Reshape(wanted.shape))
    return None


def _relation(view: View) -> Relation:
    if any(isinstance(step, Blocks | Slice) for step in view):
        return "gate order"
    if any(isinstance(step, Once) for step in view):
        return "repeated"
    if any(isinstance(step, Transpose) for step in view):
        return "transposed"
    return "reshaped" if view else "same"
