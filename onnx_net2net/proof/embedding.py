"""Where the teacher's units are in a student, found from the two graphs alone.

Every map keeps the old units of a dim first and in order. So where an axis has the same structure in both
graphs, its dims in the student begin with those of the teacher, and the places of the teacher's units follow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_net2net.algebra.dims import Axis, Dim, Product, resolve
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
    old, new = resolve(old), resolve(new)
    if isinstance(old, Dim) and isinstance(new, Dim):
        return np.arange(old.size) if old.size <= new.size else None
    if isinstance(old, Dim) or isinstance(new, Dim) or type(old) is not type(new) or len(old.parts) != len(new.parts):
        return None
    parts = [_places(a, b) for a, b in zip(old.parts, new.parts, strict=True)]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if isinstance(old, Product):
        result = known[0]
        for part, axis in zip(known[1:], new.parts[1:], strict=True):
            result = (result[:, None] * axis.size + part).reshape(-1)
        return result
    offsets = np.cumsum([0] + [part.size for part in new.parts])
    return np.concatenate([part + offset for part, offset in zip(known, offsets[:-1], strict=True)])
