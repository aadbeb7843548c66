"""Convolutions and pooling: channels pass or are summed over, kernels and positions stay."""

import numpy as np

from onnx_net2net.rules import rule, signature
from onnx_net2net.rules.op import Op

# Group j of the output reads group j of the input; depthwise is i = o = 1, and the group count grows.
signature("Conv", "n (g i) *x, (g o) i *k, (g o) -> n (g o) *y", sizes={"g": "group"}, fixed="x y k")
signature("ConvTranspose", "n (g i) *x, (g i) o *k, (g o) -> n (g o) *y", sizes={"g": "group"}, fixed="x y k")

signature("LpPool", "GlobalLpPool", "n c *x -> n c *y", fixed="x y", pointwise="zero")


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(op: Op) -> None:
    """Reduce all positions of each channel; some exporters put channels there and mean a ReduceMean."""
    op.apply("n c *x -> n c *y")
    for position, axis in list(enumerate(op.input(0) or ()))[2:]:
        if op.kind == "GlobalAveragePool":
            op.contract(axis, [(0, position)], "mean")
        else:
            op.only_copies(axis, "takes an extreme over this axis")
    op.pointwise("linear" if op.kind == "GlobalAveragePool" else "zero")


@rule("AveragePool", "MaxPool")
def pool(op: Op) -> None:
    """Pool each channel along the axes whose window is more than one place: JAX puts channels among those that are not.

    `Indices` count through all channels, so a graph that reads them fixes those.
    """
    op.apply("n c *x -> n c *y, n c *y")
    for position, (a, b) in enumerate(zip((op.input(0) or ())[2:], (op.output() or ())[2:], strict=True)):
        if not (_stays(op, position) and a.size == b.size and op.unify(a, b)):
            op.freeze((a, b), "works along this axis")
    op.pointwise("linear" if op.kind == "AveragePool" else "zero")
    if op.output(1) is not None:
        op.freeze(op.output(1), "returns indices that count through this axis")


def _stays(op: Op, position: int) -> bool:
    """Tell whether a window takes each place along an axis for itself."""
    kernel = op.attrs.get("kernel_shape") or ()
    strides, pads = op.attrs.get("strides") or [1] * len(kernel), op.attrs.get("pads") or [0] * 2 * len(kernel)
    is_single = position < len(kernel) and kernel[position] == strides[position] == 1
    return is_single and not any(pads[position :: len(kernel)])


@rule("Resize", "Upsample", pointwise="linear")
def resize(op: Op) -> None:
    """Interpolate positions; an axis of unchanged size passes through."""
    source, target = op.input(0), op.output()
    if source is None or target is None or op.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        op.freeze_all("crops and resizes")
        return
    scales = next((value for value in (*map(op.value, (1, 2, 3)), op.attrs.get("scales")) if _is_scales(value)), None)
    listed = [a % len(source) for a in op.attrs.get("axes", range(len(source)))]
    for position, (a, b) in enumerate(zip(source, target, strict=True)):
        stretched = position in listed and (
            op.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
            or (scales is not None and scales[listed.index(position)] != 1)
        )
        if stretched or a.size != b.size or not op.unify(a, b):
            op.freeze((a, b), "interpolates along this axis")
        elif position in listed and op.has(3):
            op.size(3, listed.index(position), b)


def _is_scales(value: object) -> bool:
    """Tell whether this operand of Resize is its scales: floats, not the region of interest (which is empty)."""
    if isinstance(value, list):
        return True
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0


@rule("DepthToSpace", pointwise="linear")
def depth_to_space(op: Op) -> None:
    """Move blocks of channels into space; mode CRD has the block innermost, DCR (default) outermost."""
    r = int(op.attrs["blocksize"])
    channels = "(c r s)" if op.attrs.get("mode") == "CRD" else "(r s c)"
    op.apply(f"n {channels} h w -> n c (h r) (w s)", sizes={"r": r, "s": r}, fixed="r s h w")


@rule("SpaceToDepth", pointwise="linear")
def space_to_depth(op: Op) -> None:
    """Move blocks of space into channels, the block outermost; mode CRD has it innermost."""
    r = int(op.attrs["blocksize"])
    channels = "(c r s)" if op.attrs.get("mode") == "CRD" else "(r s c)"
    op.apply(f"n c (h r) (w s) -> n {channels} h w", sizes={"r": r, "s": r}, fixed="r s h w")
