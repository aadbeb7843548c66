"""Operators for onnx2fx: those that it lacks, and those that it computes differently from onnxruntime.

They are put into its registry while a model is converted, and taken out again.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx2fx.op_registry import register_op, registry_context
from onnx2fx.ops.control_flow import loop_op, scan_op
from onnx2fx.utils.attributes import get_attribute
from torch import Tensor, nn
from torch.nn import functional

Handler = Callable[[Any, onnx.NodeProto], Any]
"""Makes the FX node of an ONNX node, with a builder of onnx2fx."""

_HANDLERS: dict[tuple[str, str, int], Handler] = {}


def _handles(kind: str, domain: str = "", since: int = 1) -> Callable[[Handler], Handler]:
    """Note a handler for an operator from an opset on."""

    def note(handler: Handler) -> Handler:
        _HANDLERS[domain, kind, since] = handler
        return handler

    return note


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Have the operators of this module in onnx2fx's registry."""
    with registry_context():
        for (domain, kind, since), handler in _HANDLERS.items():
            register_op(kind, handler, domain=domain, since_version=since)
        yield


class BatchNorm(nn.Module):  # type: ignore[misc]
    """A BatchNormalization whose weights and statistics are given to each call.

    Attributes:
        is_frozen: Whether training neither uses nor updates statistics of the batch.
    """

    def __init__(self, epsilon: float, momentum: float) -> None:
        super().__init__()
        self.epsilon, self.momentum, self.is_frozen = epsilon, momentum, True

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise each channel by the statistics, or by those of the batch, which then move the others in place."""
        by_batch = self.training and not self.is_frozen
        if not by_batch:
            mean, variance = mean.detach().to(scale.dtype), variance.detach().to(scale.dtype)
        return functional.batch_norm(x, mean, variance, scale, bias, by_batch, self.momentum, self.epsilon)


@_handles("BatchNormalization")
def _batch_normalization(builder: Any, node: onnx.NodeProto) -> Any:
    module = BatchNorm(get_attribute(node, "epsilon", 1e-5), 1 - get_attribute(node, "momentum", 0.9))
    name = builder.register_submodule(node.output[0], module)
    return builder.call_module(name, [builder.get_value(name) for name in node.input[:5]])


@_handles("Loop")
def _loop(builder: Any, node: onnx.NodeProto) -> Any:
    return _only(builder, node, loop_op(builder, node))


@_handles("Scan", since=9)
def _scan(builder: Any, node: onnx.NodeProto) -> Any:
    return _only(builder, node, scan_op(builder, node))


def _only(builder: Any, node: onnx.NodeProto, made: Any) -> Any:
    """Return the output of a node whose module returns a tuple also of a single one."""
    return made if len(node.output) > 1 else builder.call_function(operator.getitem, (made, 0))
