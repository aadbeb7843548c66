"""The parameters of a teacher and of its student, by rows: nothing larger than a budget is in memory at once.

A parameter of the class may be several tensors of a checkpoint, and the other way round. Both are read by rows, the
units of the first axis. Rows that are copies grow by themselves. A weight whose first axis is summed over, or padded by
means, grows as a whole, a part of another axis at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.maps import identity
from onnx_net2net.algebra.weights import AxisGrowth, WeightGrowth
from onnx_net2net.errors import BadInputError, some
from onnx_net2net.framework.huggingface.skeleton import Cut, Skeleton, is_whole
from onnx_net2net.framework.stored import StateDict, Stored

# --- The teacher ------------------------------------------------------------------------------------------------


Naming = Callable[[str], str]
"""Tells what a checkpoint calls what the class would save by a name."""


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
    rows = partial(_rows_of, shape, list(parts))
    return Stored(shape, stored.dtype, partial(rows, 0, shape[0]), rows=rows)


def _rows_of(shape: tuple[int, ...], parts: Sequence[tuple[Cut, Stored]], start: int, stop: int) -> Array:
    """Return some rows of a parameter that is made of tensors."""
    width = math.prod(shape[1:])
    rows = np.empty((stop - start, *shape[1:]), parts[0][1].dtype)
    for cut, stored in parts:
        low, high = cut.extent
        first, last = low // width, high // width
        if last < start or first >= stop:
            continue
        if cut.strides and cut.strides[0] == width:  # its rows are rows of the parameter
            begin, end = max(first, start), min(last + 1, stop)
            own, offset = stored.part(begin - first, end - first), low + (begin - first) * width
        else:
            own, offset = stored.read(), low
        _view(rows, offset - start * width, own.shape, cut.strides)[...] = own
    return rows


def _view(array: Array, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
    size = array.dtype.itemsize
    return as_strided(array.reshape(-1)[offset:], shape, [step * size for step in strides])


# --- The student ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
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

    def rows(self, start: int, stop: int) -> Array:
        """Return some of its rows; rows that are not copies need all of the weight."""
        growth = self.growth
        if growth is None:
            return self.stored.part(start, stop) if self.shape else self.stored.read()
        first = growth.axes[0]
        if not _is_by_row(first):
            return self.whole()[start:stop]
        values = _taken(self.stored, first.map.index[start:stop])
        own = replace(growth, axes=(AxisGrowth(identity(stop - start)), *growth.axes[1:]))
        return _grown(own, values, self._salt(start))

    @property
    def is_by_row(self) -> bool:
        """Whether `rows` computes no more than what it returns."""
        return self.growth is None or not self.growth.axes or _is_by_row(self.growth.axes[0])

    def whole(self) -> Array:
        """Return all of it, grown a part of an axis at a time."""
        growth, values = self.growth, self.stored.read()
        if growth is None:
            return values
        axis = next((k for k, own in reversed(list(enumerate(growth.axes))) if k and _is_plain(own)), None)
        if axis is None:
            return _grown(growth, values, self._salt(0))
        result = np.empty(self.shape, self.dtype)
        step = max(1, PIECE // max(1, self.nbytes // max(1, self.shape[axis])))
        for start in range(0, self.shape[axis], step):
            index = growth.axes[axis].map.index[start : start + step]
            axes = (*growth.axes[:axis], AxisGrowth(identity(len(index))), *growth.axes[axis + 1 :])
            piece = _grown(replace(growth, axes=axes), np.take(values, index, axis), self._salt(start))
            result[(slice(None),) * axis + (slice(start, start + step),)] = piece
        return result

    def tensor(self) -> Stored:
        """Return it as a tensor of a state dict, which is computed when it is read."""
        return Stored(self.shape, self.dtype, self.whole, rows=self.rows)

    def _salt(self, start: int) -> int:
        return zlib.crc32(f"{self.name}:{start}".encode())


PIECE = 16 << 20
"""Bytes of a student's weight that are computed at once; all that happens on the way takes some ten times as much."""


def _is_plain(axis: AxisGrowth) -> bool:
    """Tell whether the units of an axis are old ones and copies, which are not weighed here."""
    return not axis.reads and not axis.map.kind.any()


def _is_by_row(axis: AxisGrowth) -> bool:
    return axis.map.is_identity or _is_plain(axis)


def _taken(stored: Stored, index: Array) -> Array:
    """Return some rows of a tensor, run by run."""
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1) if len(index) else [index]
    parts = [stored.part(int(run[0]), int(run[-1]) + 1) if len(run) else stored.part(0, 0) for run in runs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _is_scattered(growth: WeightGrowth | None) -> bool:
    """Tell whether rows copy teacher's rows from here and there, so that it is better to have all at hand."""
    return growth is not None and int(np.count_nonzero(np.diff(growth.axes[0].map.index) != 1)) > _RUNS


_RUNS = 64
"""Runs of rows up to which each is read by itself."""


def _grown(growth: WeightGrowth, values: Array, salt: int) -> Array:
    """Grow values; floats of eight bits in single precision, as nothing computes with them."""
    if is_float(values.dtype) or values.dtype.kind in "iub":
        return growth.apply(values, salt)
    return growth.apply(values.astype(np.float32), salt).astype(values.dtype)


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
    parameter: Parameter

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.cut.shape) * self.parameter.dtype.itemsize

    def pieces(self) -> Iterator[Array]:
        """Yield its values in the order of the file, a piece at a time."""
        parameter, cut = self.parameter, self.cut
        shape, width = parameter.shape, math.prod(parameter.shape[1:])
        if parameter.is_by_row and shape and _is_scattered(parameter.growth):
            values = parameter.stored.read()
            parameter = replace(parameter, stored=replace(parameter.stored, rows=lambda a, b: values[a:b]))
        if not math.prod(shape) or not shape:
            yield parameter.whole()
        elif not parameter.is_by_row:
            yield np.ascontiguousarray(_view(parameter.whole(), cut.offset, cut.shape, cut.strides))
        elif cut.strides and cut.strides[0] == width:
            first = cut.offset // width
            step = max(1, PIECE // (width * parameter.dtype.itemsize))
            for start in range(0, cut.shape[0], step):
                stop = min(start + step, cut.shape[0])
                rows = parameter.rows(first + start, first + stop)
                yield np.ascontiguousarray(
                    _view(rows, cut.offset - first * width, (stop - start, *cut.shape[1:]), cut.strides)
                )
        else:
            low, high = cut.extent
            first, last = low // width, high // width
            rows = parameter.rows(first, last + 1)
            yield np.ascontiguousarray(_view(rows, low - first * width, cut.shape, cut.strides))


def parameters_in(parameters: Mapping[str, Parameter] | StateDict) -> int:
    """Return how many numbers parameters have; tied ones count once."""
    return sum({id(getattr(one, "stored", one)): math.prod(one.shape) for one in parameters.values()}.values())
