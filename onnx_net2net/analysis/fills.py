"""Tensors that are one number everywhere, however they are made."""

from __future__ import annotations

import numpy as np

from onnx_net2net.algebra.rows import fill_in, is_fill
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.graph import Tensor
from onnx_net2net.graph.walk import constant_of, made_by, source
from onnx_net2net.rules import traits


def fill_of(analysis: Analysis, tensor: Tensor) -> float | None:
    """Return the number that a tensor is everywhere; None where it is not, or that is not known."""
    tensor = source(tensor, traits.MOVES)
    value, constant = analysis.sizes.values.get(tensor.name), constant_of(tensor)
    if value is None and constant is not None:
        found = fill_in(analysis.graph.reader(constant))
        return None if found is None else float(found)
    if value is None and (made := made_by(tensor, {"ConstantOfShape"})) is not None:
        held = made.attrs.get("value")
        value = np.zeros(1) if held is None else np.asarray(held.values)
    return float(value.flat[0]) if value is not None and is_fill(value) else None
