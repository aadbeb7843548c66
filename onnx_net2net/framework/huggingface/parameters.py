"""The parameters of a teacher and of its student, by pieces: no weight is in memory as a whole.

A parameter of the class may be several tensors of a checkpoint, and the other way round. Both are read by elements.
A student's parameter grows some rows at a time (`algebra.growing`); stacks of matrices, whose rows are large, grow as
so many matrices.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.rows import BLOCK_BYTES, row_blocks
from onnx_net2net.algebra.shares import Shared
from onnx_net2net.algebra.weights import AxisGrowth, GrownSource, WeightGrowth
from onnx_net2net.errors import BadInputError, some
from onnx_net2net.framework.formats.stored import StateDict, Stored, StoredSource
from onnx_net2net.framework.huggingface.skeleton import Cut, Skeleton, is_whole, strides_of

# --- The teacher ------------------------------------------------------------------------------------------------


Naming = Callable[[str], str]
"""Returns the name in the checkpoint for a name that the class would save."""


def parameters_of(skeleton: Skeleton, tensors: StateDict) -> tuple[dict[str, Stored], Naming]:
    """Return the parameters of a model as its checkpoint holds them.

    Returns:
        The parameters by their names in the class, and what the checkpoint calls its tensors.

    Raises:
        BadInputError: If the checkpoint does not fit the class.
    """
    called = _called(skeleton, tensors)
    parts: dict[str, list[tuple[Cut, Stored]]] = {}
    for name, cut in skeleton.cuts.items():
        if called(name) in tensors:
            parts.setdefault(cut.parameter, []).append((cut, tensors[called(name)]))
    shapes = skeleton.shapes
    found = {name: _joined(name, shapes[name], own) for name, own in parts.items()}
    found |= {name: found[first] for name, first in skeleton.tied.items() if name not in found and first in found}
    found |= {first: found[name] for name, first in skeleton.tied.items() if first not in found and name in found}
    missing = [name for name in shapes if name not in found]
    if missing:
        raise BadInputError(f"the checkpoint does not fit its config: it lacks {some(missing)}")
    return found, called


def _called(skeleton: Skeleton, tensors: StateDict) -> Naming:
    """Return what a checkpoint calls the tensors that the class would save: with its prefix, or without it."""
    prefix = getattr(skeleton.model, "base_model_prefix", "")
    ways: list[Naming] = [lambda name: name]
    if prefix:
        ways += [lambda name: name.removeprefix(f"{prefix}."), lambda name: f"{prefix}.{name}"]
    return max(ways, key=lambda way: sum(way(name) in tensors for name in skeleton.cuts))


def _joined(name: str, shape: tuple[int, ...], parts: Sequence[tuple[Cut, Stored]]) -> Stored:
    """Return a parameter made of tensors of a checkpoint."""
    for cut, stored in parts:
        if cut.shape != stored.shape:
            raise BadInputError(
                f"the checkpoint does not fit its config: {name} is {list(stored.shape)} there, "
                f"{list(cut.shape)} in the class"
            )
    cut, stored = parts[0]
    if is_whole(cut, shape):
        return stored
    if sum(math.prod(cut.shape) for cut, _ in parts) != math.prod(shape):
        raise BadInputError(f"the checkpoint does not fit its config: it lacks parts of {name}")
    return Stored.in_parts(shape, stored.dtype, partial(_elements_of, list(parts)))


def _elements_of(parts: Sequence[tuple[Cut, Stored]], start: int, stop: int) -> Array:
    """Return some elements of a parameter that is made of tensors; one that lies in it row-major is read in part."""
    found = np.empty(stop - start, parts[0][1].dtype)
    for cut, stored in parts:
        low, high = cut.extent
        if high < start or low >= stop:
            continue
        if stored.elements and cut.strides == strides_of(cut.shape):
            begin, end = max(low, start), min(high + 1, stop)
            found[begin - start : end - start] = stored.elements(begin - low, end - low)
        else:
            places = np.full(cut.shape, low - start)
            for axis, step in enumerate(cut.strides):
                places += np.arange(cut.shape[axis]).reshape(-1, *(1,) * (len(cut.shape) - 1 - axis)) * step
            here = (places >= 0) & (places < stop - start)
            found[places[here]] = stored.read()[here]
    return found


def _view(array: Array, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
    size = array.dtype.itemsize
    return as_strided(array.reshape(-1)[offset:], shape, [step * size for step in strides])


# --- The student ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudentParameter:
    """A parameter of the student.

    Attributes:
        name: Its name in the class.
        stored: The teacher's parameter that it grows from.
        growth: How it grows; None if it stays.
    """

    name: str
    stored: Stored
    growth: WeightGrowth | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.growth.shape if self.growth else self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Callable[[int, int], Array]:
        """Return what computes some of its rows, which are the same whichever others are computed."""
        if self.growth is None or not self.shape:
            return self.stored.part
        if self.is_stack:
            return self._rows_of_rows
        rows = _grown(self.stored, self.growth, self.name).rows()
        return lambda start, stop: rows(np.arange(start, stop)).astype(self.dtype, copy=False)

    def tensor(self) -> Stored:
        """Return it as a tensor of a state dict, which is computed when it is read."""
        return Stored(
            self.shape, self.dtype, lambda: self.read()(0, self.shape[0]) if self.shape else self.stored.read()
        )

    @property
    def rounding(self) -> float:
        """By how many halves of a unit in the last place its numbers, or sums over copies, are no longer the teacher's.

        0 for copies, and for weights that copies share in parts that are fixed. Random parts may leave a unit a number
        that needs one more bit: the root mean square is 0.02 for 2 units that share, 0.15 to 0.24 for 3 (measured, in
        bf16, fp16 and fp32). 1 for others.
        """
        growth = self.growth
        if growth is None or self.dtype.kind in "iub":
            return 0.0
        axes = [axis for axis in growth.axes if not axis.map.is_identity]
        if math.frexp(growth.factor)[0] != 0.5 or any(map(_rounds, axes)):
            return 1.0
        shares = [axis for axis in axes if axis.reads]
        if shares and not is_float(self.dtype):  # of eight bits
            return 1.0
        at_random = [axis for axis in shares if axis.spread and axis.map.is_even and growth.style.spread]
        most = max((int(np.bincount(axis.map.index).max()) for axis in at_random), default=1)
        return 0.0 if most < 2 else 1 / 32 if most == 2 else 0.25

    @property
    def is_stack(self) -> bool:
        """Whether its rows are large and have nothing to do with one another, so that each grows by itself."""
        growth = self.growth
        if len(self.shape) < 3 or math.prod(self.shape[1:]) * self.dtype.itemsize <= BLOCK_BYTES or growth is None:
            return False
        first = growth.axes[0]
        is_plain = not first.reads and not first.parted and not growth.style.noise and not first.map.kind.any()
        return is_plain and growth.filler in ("own", "copy", "zero")

    def _rows_of_rows(self, start: int, stop: int) -> Array:
        """Return some rows; what a row has is computed a part at a time."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for place in range(start, stop):
            inner = self.row(place)
            read = inner.read()
            for places in row_blocks(inner.shape, inner.dtype.itemsize):
                block[place - start, places[0] : places[-1] + 1] = read(int(places[0]), int(places[-1]) + 1)
        return block

    def row(self, place: int) -> StudentParameter:
        """Return a row of a stack as a parameter."""
        assert self.growth is not None
        stored = self.stored.row(int(self.growth.axes[0].map.index[place]))
        return StudentParameter(f"{self.name}:{place}", stored, replace(self.growth, axes=self.growth.axes[1:]))


def _grown(stored: Stored, growth: WeightGrowth, name: str) -> GrownSource:
    """Return a weight that grows; floats of eight bits do so in single precision, as nothing computes with them."""
    is_computed = is_float(stored.dtype) or stored.dtype.kind in "iub"
    source = StoredSource(stored, stored.dtype if is_computed else np.dtype(np.float32))
    return GrownSource(source, growth, zlib.crc32(name.encode()))


def _rounds(axis: AxisGrowth) -> bool:
    """Tell whether values along an axis are rounded: it has new units that are no copies, or scaled shares."""
    if not axis.reads:
        return bool(axis.map.kind.any()) or axis.parted
    scaled = Shared.of(axis.map, spread=axis.spread).scaled
    return bool((np.frexp(axis.map.weight[scaled])[0] != 0.5).any())


# --- What the checkpoint holds of them --------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A tensor of the student's checkpoint: a cut of a parameter.

    Attributes:
        name: What the checkpoint calls it.
        cut: What it shows of the parameter.
        parameter: The parameter.
    """

    name: str
    cut: Cut
    parameter: StudentParameter

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.cut.shape) * self.parameter.dtype.itemsize

    def pieces(self) -> Iterator[tuple[int, Callable[[], Array]]]:
        """Yield its values in pieces, each with its place in bytes, to be made in any order by any thread."""
        parameter, cut = self.parameter, self.cut
        if not cut.shape or not math.prod(cut.shape):
            yield 0, parameter.tensor().read
        elif cut.strides == strides_of(cut.shape):
            yield from _run(parameter, cut.offset, math.prod(cut.shape))
        else:
            row = math.prod(parameter.shape[1:])
            first, last = (place // row for place in cut.extent)
            read, inner = parameter.read(), cut.offset - first * row
            yield 0, lambda: np.ascontiguousarray(_view(read(first, last + 1), inner, cut.shape, cut.strides))


def _run(parameter: StudentParameter, start: int, count: int, at: int = 0) -> Iterator[tuple[int, Callable[[], Array]]]:
    """Yield elements of a parameter that lie together, from one on, in pieces with their places in bytes."""
    size, elements = parameter.dtype.itemsize, parameter.stored.elements
    row = math.prod(parameter.shape[1:])
    if parameter.is_stack:
        while count:
            place, inner = divmod(start, row)
            part = min(row - inner, count)
            yield from _run(parameter.row(place), inner, part, at)
            start, count, at = start + part, count - part, at + part * size
        return
    if parameter.growth is None and elements:
        row, read = 1, elements
    else:
        read = parameter.read()
    step = max(1, BLOCK_BYTES // (row * size)) * row
    for place in range(start - start % row, start + count, step):
        low, high = max(place, start), min(place + step, start + count)
        yield at + (low - start) * size, partial(_piece, read, row, low, high)


def _piece(read: Callable[[int, int], Array], row: int, low: int, high: int) -> Array:
    """Return elements, from one up to another, of what is read by rows."""
    first, last = low // row, -(-high // row)
    return np.ascontiguousarray(read(first, last)).reshape(-1)[low - first * row : high - first * row]
