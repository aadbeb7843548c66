"""The middle of arrays: DPIAT's way to bring a weight to another size (Czyzewski et al. 2022)."""

from __future__ import annotations

from itertools import starmap

from onnx_net2net.algebra.floats import Array


def window(old: int, new: int) -> tuple[slice, slice]:
    """Return which of `old` entries are copied, and to which of `new`: the middle of the longer, rounded down."""
    size = min(old, new)
    return slice((old - size) // 2, (old - size) // 2 + size), slice((new - size) // 2, (new - size) // 2 + size)


def clip(source: Array, target: Array) -> Array:
    """Return the target with the source's values in its middle: a crop along axes where the source is larger."""
    read, written = zip(*starmap(window, zip(source.shape, target.shape, strict=True)), strict=True)
    result: Array = target.copy()
    result[written] = source[read].astype(target.dtype)
    return result
