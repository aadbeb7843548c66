"""Pad, Resize and Upsample for onnx2fx, which computes some of their modes only."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from onnx2fx.ops.image import resize
from onnx2fx.utils.attributes import get_attribute, get_attributes
from torch import Tensor, nn
from torch.nn import functional

from onnx_net2net.algebra.floats import Array
from onnx_net2net.run.session import session

_INTERPOLATIONS = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""PyTorch's names of linear interpolation, by the number of axes."""


# --- Pad -----------------------------------------------------------------------------------------------------


def pad_axes(x: Tensor, pads: Any, value: Any, axes: Any, mode: str) -> Tensor:
    """Pad some axes; negative numbers cut entries off."""
    amounts, own = _numbers(pads), range(x.dim()) if axes is None else _numbers(axes)
    by_axis = {int(axis) % x.dim(): pair for axis, *pair in zip(own, *np.reshape(amounts, (2, -1)), strict=True)}
    if mode == "constant":
        pairs = [int(one) for axis in reversed(range(x.dim())) for one in by_axis.get(axis, (0, 0))]
        return functional.pad(x, pairs, value=0 if value is None else float(value))
    for axis, (before, after) in by_axis.items():
        kept = np.arange(x.shape[axis])[max(0, -before) : x.shape[axis] + min(0, after)]
        places = np.pad(kept, (max(0, before), max(0, after)), mode)  # type: ignore[call-overload]
        x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _numbers(value: Any) -> list[Any]:
    return value.tolist() if isinstance(value, Tensor) else list(value)


# --- Resize --------------------------------------------------------------------------------------------------


class Resize(nn.Module):  # type: ignore[misc]
    """Resizes as onnxruntime does, which says once for each axis what the entries of the result are made of."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        super().__init__()
        self.kind, self.opset = node.op_type, opset
        self.attributes = {
            name: value for name, value in get_attributes(node).items() if name not in ("axes", "scales")
        }
        self.axes = get_attribute(node, "axes")
        coordinates = self.attributes.get(
            "coordinate_transformation_mode", "half_pixel" if opset > 10 else "asymmetric"
        )
        self.corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(coordinates)
        is_plain = self.attributes.get("mode") == "linear" and not self.attributes.get("antialias")
        self.is_plain = is_plain and self.corners is not None and self.kind == "Resize"

    def forward(self, x: Tensor, given: Any, by_size: bool) -> Tensor:
        """Resize axes by scales, or to sizes."""
        numbers = dict(zip(range(x.dim()) if self.axes is None else self.axes, _numbers(given), strict=True))
        shape = list(x.shape)
        for axis, number in numbers.items():
            shape[axis] = int(number) if by_size else math.floor(np.float32(x.shape[axis]) * np.float32(number))
        if self.is_plain and self._is_interpolation(x, shape, {} if by_size else numbers):
            return functional.interpolate(x, shape[2:], mode=_INTERPOLATIONS[x.dim()], align_corners=self.corners)
        for axis, number in numbers.items():
            if shape[axis] != x.shape[axis] if by_size else number != 1:
                x = self._resized(x, axis % x.dim(), shape[axis], None if by_size else float(number))
        return x

    def _is_interpolation(self, x: Tensor, shape: list[int], scales: dict[int, Any]) -> bool:
        """Tell whether PyTorch's own interpolation, which is faster, does the same."""
        whole = all(x.shape[axis] * scale == shape[axis] for axis, scale in scales.items())
        return x.dim() in _INTERPOLATIONS and whole and list(x.shape[:2]) == shape[:2] and min(shape[2:]) > 1

    def _resized(self, x: Tensor, axis: int, size: int, scale: float | None) -> Tensor:
        node = helper.make_node(self.kind, [], [], **self.attributes).SerializeToString()
        is_nearest = self.attributes.get("mode", "nearest") == "nearest"
        found = torch.from_numpy(_resized_axis(node, self.opset, x.shape[axis], size, scale, is_nearest)).to(x.device)
        if is_nearest:
            return x.index_select(axis, found[0].round().long())
        return (x.movedim(axis, -1) @ found.to(x.dtype)).movedim(-1, axis)


@functools.lru_cache(256)
def _resized_axis(content: bytes, opset: int, before: int, after: int, scale: float | None, is_nearest: bool) -> Array:
    """Return what onnxruntime makes of an axis.

    The nearest entries follow from one row, the numbers of the places. Else a row for each entry, in which it alone is
    1, tells its part in each entry of the result.
    """
    node, scales = onnx.NodeProto.FromString(content), np.array([1, 1, 1, scale or 1], np.float32)
    fed: dict[str, Array] = {"scales": scales} if scale else {"sizes": np.array([1, 1, before, after])}
    if node.op_type == "Upsample" and opset < 9:
        node.attribute.append(helper.make_attribute("scales", scales.tolist()))
        fed = {}
    others = ["", "scales", "sizes"] if opset > 10 else ["scales"]
    node.input.extend(["x", *(name if name in fed else "" for name in others)] if fed else ["x"])
    node.output.append("y")
    of_type = functools.partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    rows = np.arange(before)[None] if is_nearest else np.eye(before)
    inputs, outputs = [of_type("x", shape=[1, 1, *rows.shape])], [of_type("y", shape=[1, 1, len(rows), None])]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in fed.items()]
    graph = helper.make_graph([node], "resize", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (found,) = session(model).run(None, {"x": rows.astype(np.float32)[None, None]})
    resized: Array = found[0, 0]
    return resized


def pad_from(builder: Any, node: onnx.NodeProto) -> Any:
    """Make the node of a Pad of any opset."""
    pads, value = get_attribute(node, "pads"), get_attribute(node, "value")
    given = [builder.get_value(name) if name else None for name in [*node.input, "", "", ""][:4]]
    pads, value = (given[1], given[2]) if pads is None else (pads, value)
    return builder.call_function(pad_axes, (given[0], pads, value, given[3], get_attribute(node, "mode", "constant")))


def resize_from(builder: Any, node: onnx.NodeProto) -> Any:
    """Make the node of a Resize or Upsample of any opset."""
    coordinates, policy = (get_attribute(node, f"{name}_{kind}") for name, kind in (
        ("coordinate_transformation", "mode"), ("keep_aspect_ratio", "policy")))  # fmt: skip
    if coordinates == "tf_crop_and_resize" or policy not in (None, "stretch"):
        return resize(builder, node)
    named = [*node.input, "", "", ""]
    sizes = named[3] if builder.opset_version > 10 else ""
    scales = named[2] if builder.opset_version > 10 else named[1]
    given = builder.get_value(sizes or scales) if sizes or scales else get_attribute(node, "scales")
    name = builder.register_submodule(node.output[0], Resize(node, builder.opset_version))
    return builder.call_module(name, [builder.get_value(node.input[0]), given, bool(sizes)])
