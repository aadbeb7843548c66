"""Tied weights: matrices that one reader sums over and another one makes channels with, like an embedding and its head.

Where a matrix sums over copied channels, it has to be divided among the copies; where it makes channels, it has to be
copied whole. One matrix cannot be both. Either the layers in front of the sum are divided instead, or the channels that
the matrix makes are divided, too, for all of their readers. Otherwise these channels cannot grow.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axis
from onnx_net2net.algebra.rows import Source, row_blocks
from onnx_net2net.analysis.inference import Analysis, Use
from onnx_net2net.analysis.linearity import Tables, weighings
from onnx_net2net.analysis.weighing import Ways, is_free, scalable, weighed_axes
from onnx_net2net.graph.graph import Place, dtype_of
from onnx_net2net.rules import traits


@dataclass
class Ties:
    """What else changes where weights must stay one tensor, or keep equal values."""

    # For nodes that sum over a tied weight: the constants that are divided by the number of copies in its place.
    rescaled: dict[int, list[Place]] = field(default_factory=dict)
    # For sums over channels of a tied weight: the read of that weight which is divided, so that they need no share.
    tables: Tables = field(default_factory=dict)
    # Names of constants that are copies of others and must stay so, with the names of these.
    copies: dict[str, str] = field(default_factory=dict)
    # Reads of constants that must keep equal values, with the first of them.
    tied: dict[Place, Place] = field(default_factory=dict)


def find_ties(analysis: Analysis, ways: Ways, unread: Collection[Place]) -> tuple[Ties, list[tuple[Axis, str]]]:
    """Find the tied weights.

    Args:
        analysis: The dims; those of copies of a matrix become the same.
        ways: What weighs each sum.
        unread: Reads of constants that need no share of what is copied.

    Returns:
        What changes for them, and the axes that must keep their size, each with the reason.
    """
    weighed = weighed_axes(analysis, ways)
    copies = list(_copies(analysis))
    ties = Ties(copies={copy.constant.name: first.constant.name for copy, first, turned in copies if not turned})
    originals = {id(copy.constant): (id(first.constant), turned) for copy, first, turned in copies}
    readings: dict[int, list[tuple[Place, dict[int, int]]]] = {}
    for key, use in analysis.uses.items():
        if use.input in analysis.said[use.node].ignored or key in unread:
            continue  # reads no values, or as they come
        found = weighed.get(key, {})
        readings.setdefault(id(use.constant), []).append((key, found))
        if id(use.constant) in originals:
            original, turned = originals[id(use.constant)]
            found = {1 - position: number for position, number in found.items()} if turned else found
            readings.setdefault(original, []).append((key, found))
    held = []
    for use in _matrices(analysis):  # exporters merge vectors of equal values
        known = readings.get(id(use.constant), [])
        for position, axis in enumerate(use.axes):
            sums = [found[position] for _, found in known if position in found]
            made = [key for key, found in known if position not in found]
            reason = f"is made and summed over by the tied weight {use.constant.name!r}"
            if not sums or not made:
                continue
            rescaled = rescale_instead(analysis, sums, axis, reason)
            tables = {} if rescaled else _divided_tables(analysis, sums, made, axis, ties.tables)
            ties.rescaled.update(rescaled or {})
            ties.tables.update(tables)
            if not rescaled and not tables:
                held.append((axis, reason))
    return ties, held


def _matrices(analysis: Analysis) -> Iterator[Use]:
    """Yield a use of each constant of more than one axis."""
    for *_, use in analysis.readings():
        if sum(axis.size > 1 for axis in use.axes) > 1:
            yield use


def rescale_instead(analysis: Analysis, sums: Sequence[int], axis: Axis, reason: str) -> dict[int, list[Place]] | None:
    """Let the layers in front of sums over a tied weight carry the division of its copies.

    With all units copied c times a sum over them is c times too large, and the tie keeps its weights. So what goes into
    it is made smaller by c: the scale and shift of the last normalisation (growth-math section 2, tied embeddings).

    Returns:
        The constants of these layers by the node that sums, whose dim is then copied evenly; None if they cannot.
    """
    found: dict[int, list[Place]] = {}
    for number in sums:
        (contraction, *more) = analysis.said[number].contractions
        data = [index for index, _ in contraction.sides if not analysis.is_derived(number, index)]
        scaled = scalable(analysis, number, data[0], axis) if len(data) == 1 and not more else None
        if scaled is None:
            return None
        found[number] = scaled
    dims.keep_uniform(axis, reason)
    return found


def _divided_tables(
    analysis: Analysis, sums: Sequence[int], made: Sequence[Place], axis: Axis, tables: Tables
) -> Tables:
    """Let a tied weight be divided where it makes units, instead of the weights that sum over these; empty if not.

    It is divided for the sum over it already. So what it makes, x / c for each copy, is read by weights that are not
    divided: c (w x / c) = w x.
    """
    found: Tables = {}
    for number, said in analysis.said.items():
        for contraction in said.contractions if number not in sums else ():
            if contraction.axis.size == axis.size:
                for way in weighings(analysis, number, contraction, is_free, tables):
                    reads = {(weighed.node, weighed.input) for weighed in way.axes if weighed.units is None}
                    found.update(((number, contraction.sides), key) for key in made if key in reads)
    return found if len(set(found.values())) == len(made) else {}


def _copies(analysis: Analysis) -> Iterator[tuple[Use, Use, bool]]:
    """Yield matrices that are copies of others, and whether transposed; their axes become the same.

    Folding makes a copy of a weight for each of its uses, and the transpose of a table for a tied head.
    """
    originals: dict[object, list[Use]] = {}
    for use in _matrices(analysis):
        if dtype_of(use.constant).kind == "i":
            continue
        source = analysis.graph.reader(use.constant)
        end = zlib.crc32(source.rows()(np.array([source.shape[0] - 1])).tobytes())  # a row may be a whole expert
        known = originals.setdefault((source.shape, source.dtype, end), [])
        first = next((other for other in known if _are_equal(source, analysis.graph.reader(other.constant))), None)
        if first is None:
            known.append(use)
            continue
        for axis, same in zip(use.axes, first.axes, strict=True):
            dims.unify(axis, same, f"{use.constant.name!r} is a copy of {first.constant.name!r}")
        yield use, first, False
    matrices: dict[tuple[int, ...], dict[int, Use]] = {}
    tables: dict[int, Use] = {}
    for (number, index), use in analysis.uses.items():
        if len(use.axes) == 2 and min(axis.size for axis in use.axes) > 1:
            is_table = (analysis.nodes[number].op, index) in traits.TABLES
            same_kind = tables if is_table else matrices.setdefault(tuple(use.constant.shape), {})
            same_kind[id(use.constant)] = use
    for table in tables.values():
        candidates = matrices.get(tuple(reversed(table.constant.shape)), {})
        for matrix in candidates.values():
            if _are_transposed(*(analysis.graph.reader(one.constant) for one in (table, matrix))):
                for axis, same in zip(table.axes, reversed(matrix.axes), strict=True):
                    dims.unify(axis, same, f"{matrix.constant.name!r} is {table.constant.name!r} transposed")
                yield matrix, table, True


def _are_equal(one: Source, other: Source) -> bool:
    """Tell whether matrices have the same values, and more than one; some rows are in memory at a time."""
    read, read_other = one.rows(), other.rows()
    low = high = None
    for places in row_blocks(one.shape, one.dtype.itemsize):
        values = read(places)
        if not np.array_equal(values, read_other(places)):
            return False
        low = values.min() if low is None else min(low, values.min())
        high = values.max() if high is None else max(high, values.max())
    return low is not None and bool(low < high)


_PART = 1 << 26
"""Bytes of a matrix that are compared with a transposed one at a time, which is read once for each."""


def _are_transposed(one: Source, other: Source) -> bool:
    """Tell whether a matrix is another one transposed, and has more than one value; parts are in memory at a time."""
    read, read_other = one.rows(), other.rows()
    step = max(1, _PART // (other.shape[1] * other.dtype.itemsize))
    low = high = None
    for start in range(0, other.shape[0], step):
        part = read_other(np.arange(start, min(start + step, other.shape[0])))
        for places in row_blocks(one.shape, one.dtype.itemsize):
            if not np.array_equal(read(places)[:, start : start + len(part)], part[:, places].T):
                return False
        low = part.min() if low is None else min(low, part.min())
        high = part.max() if high is None else max(high, part.max())
    return low is not None and bool(low < high)
