"""Finds where the teacher's units are in a student, from the two graphs alone.

Every map keeps the old units of a dim first and in order. So where an axis has the same structure in both
graphs, its dims in the student begin with those of the teacher, and the places of the teacher's units follow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, leaves, resolve
from onnx_net2net.algebra.maps import axis_numbers
from onnx_net2net.analysis.inference import infer
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.model.model import Model

Places = list["np.ndarray | None"]


def embedding(teacher: Model, student: Model) -> Callable[[str], Places | None]:
    """Return a function that places the units of a tensor of the teacher in the student's tensor of that name.

    Returns:
        A function from a tensor's name to one int64 index array for each axis (None: the axis is the same), or to
        None where the two tensors cannot be compared.
    """
    old, new = infer(open_bodies(teacher).model).axes, infer(open_bodies(student).model).axes

    def places(name: str) -> Places | None:
        if name not in old or name not in new or len(old[name]) != len(new[name]):
            return None
        found: Places = []
        for a, b in zip(old[name], new[name], strict=True):
            index = None if a.size == b.size else _places(a, b)
            if a.size != b.size and index is None:
                return None
            found.append(index)
        return found

    return places


def _places(old: Axis, new: Axis) -> np.ndarray | None:
    """Return the place of each unit of `old` in `new`, or None where their structures differ."""
    if not _fits(old, new):
        return None
    grown = iter(leaves(new))
    return axis_numbers(old, lambda dim: (np.arange(dim.size), next(grown).size))[0]


def _fits(old: Axis, new: Axis) -> bool:
    """Tell whether two axes have the same structure, and no dim of the second is smaller."""
    old, new = resolve(old), resolve(new)
    if isinstance(old, Dim) or isinstance(new, Dim):
        return isinstance(old, Dim) and isinstance(new, Dim) and old.size <= new.size
    return type(old) is type(new) and len(old.parts) == len(new.parts) and all(map(_fits, old.parts, new.parts))
