"""Normalisers: a statistic over an axis admits only growth that keeps it (growth-math: class U_r)."""

from collections.abc import Sequence

from onnx_net2net.rules import rule, signature
from onnx_net2net.rules.op import Op
from onnx_net2net.rules.typing import Typed, type_function


@rule("BatchNormalization")
def batch_normalization(op: Op) -> None:
    """Normalise each channel alone; in training mode by its statistics over all else (which standardises weights)."""
    if op.attrs.get("spatial", 1) == 0:
        op.freeze_all("normalises each position alone (spatial=0)")
        return
    training = op.attrs.get("training_mode", 0) or (op.version < 14 and op.output(1) is not None)
    op.apply("n c *s, c, c, c, c -> n c *s, c, c, c, c", uniform="n s" if training else "")
    op.scales(1, 4)


signature("InstanceNormalization", "n c *x, c, c -> n c *x", uniform="x", scales=(1,))
signature("GroupNormalization", "n (g c) *x, g, g -> n (g c) *x", since=18, sizes={"g": "num_groups"}, uniform="c x")
signature(
    "GroupNormalization", "n (g c) *x, (g c), (g c) -> n (g c) *x", since=21, sizes={"g": "num_groups"}, uniform="c x"
)


@type_function("GroupNormalization", "MeanVarianceNormalization", domain="")
def typed_as_input(types: Sequence[Typed | None], *_: object) -> list[Typed]:
    """Type the result like the input, which onnx's inference of single nodes does not for these operators."""
    return [types[0]] if types[0] is not None else []


@rule("LayerNormalization")
def layer_normalization(op: Op) -> None:
    """Normalise over the axes from `axis` on; Mean and InvStdDev keep them as size 1."""
    axes = op.known(0)
    at = op.axis(len(axes), -1)
    op.unify_all(axes, op.output() or axes)
    op.broadcast([op.input(1), op.input(2)], axes)
    op.uniform(axes[at:], "layer", scale=1, shift=2)
    for extra in op.outputs[1:]:
        op.unify_all(axes[:at], (extra or axes)[:at])
    op.scales(1)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op) -> None:
    """Normalise over `axes` (0, 2, 3 by default)."""
    axes = op.input(0) or ()
    op.apply("*x -> *x")
    op.uniform(axes[a] for a in (op.ints("axes") or [0, 2, 3]))


@rule("LRN")
def local_response_normalization(op: Op) -> None:
    """Normalise over neighbouring channels, so that their order is part of the function."""
    op.apply("n c *x -> n c *x", fixed="c")


@rule("LpNormalization")
def lp_normalization(op: Op) -> None:
    """Divide by a norm along an axis; copies would change the norm."""
    axes = op.input(0)
    op.apply("*x -> *x")
    if axes:
        op.freeze(axes[op.axis(len(axes), -1)], "divides by a norm along this axis")


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op) -> None:
    """Normalise over an axis (before opset 13: over all axes from it on); copies of a unit share what it had."""
    axes = op.input(0)
    op.apply("*x -> *x")
    if axes:
        at = op.axis(len(axes), -1 if op.version >= 13 else 1)
        if op.kind == "Softmax" and (op.version >= 13 or at == len(axes) - 1):
            op.shares(at)
        else:
            op.normalise(axes[at : at + 1 if op.version >= 13 else None])
    op.pointwise("any")
