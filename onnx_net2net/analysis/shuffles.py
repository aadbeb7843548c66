"""Channel shuffles: Reshape, Transpose, Reshape that permute the units of one axis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from onnx_net2net.graph.graph import Node

ShapeOf = Callable[[str], "tuple[int, ...] | None"]
"""The shape of a tensor by name, None where it is not known."""


@dataclass(frozen=True)
class Shuffle:
    """Reshape, Transpose, Reshape that together permute one axis, like the channel shuffle of ShuffleNet."""

    first: int
    last: int
    axis: int
    order: np.ndarray


_RUN = ("Reshape", "Transpose", "Reshape")


def find_shuffles(nodes: list[Node], kept: Collection[str], shape_of: ShapeOf) -> Iterator[Shuffle]:
    """Find consecutive Reshape, Transpose, Reshape that permute the units of one axis and nothing else."""
    numbers = {id(node): number for number, node in enumerate(nodes)}
    for number, node in enumerate(nodes):
        run = [node]
        while len(run) < len(_RUN) and run[-1].op == _RUN[len(run) - 1]:
            (between,) = run[-1].outputs
            readers = between.outputs
            if between.name in kept or len(readers) != 1 or readers[0].inputs[0] is not between:
                break
            run.append(readers[0])
        if len(run) < len(_RUN) or run[-1].op != _RUN[-1]:
            continue
        found = _permutation(shape_of, run)
        if found is not None:
            yield Shuffle(number, numbers[id(run[-1])], *found)


def _permutation(shape_of: ShapeOf, run: list[Node]) -> tuple[int, np.ndarray] | None:
    """Return (axis, order) when the run permutes one axis: out[k] = in[order[k]]."""
    shape, split, merged = (
        shape_of(tensor.name) for tensor in (run[0].inputs[0], run[0].outputs[0], run[2].outputs[0])
    )
    perm = run[1].attrs.get("perm")
    if shape is None or split is None or shape != merged or perm is None or len(split) <= len(shape):
        return None
    extra = len(split) - len(shape)
    for axis in range(len(shape)):
        inner = range(axis, axis + extra + 1)
        outside = [p for p in range(len(split)) if p not in inner]
        if all(perm[p] == p for p in outside) and split == (
            *shape[:axis],
            *split[axis : inner.stop],
            *shape[axis + 1 :],
        ):
            order = np.arange(shape[axis]).reshape(split[axis : inner.stop])
            return axis, order.transpose([perm[p] - axis for p in inner]).reshape(-1)
    return None
