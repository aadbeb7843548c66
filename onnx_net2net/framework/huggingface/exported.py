"""The graph of a model without weights, whose weights are read from a checkpoint's files when somebody asks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.framework.formats.stored import Stored, StoredSource
from onnx_net2net.framework.huggingface.inputs import plainly_called
from onnx_net2net.framework.huggingface.skeleton import Skeleton
from onnx_net2net.framework.live.exported import quiet
from onnx_net2net.model.checks import check
from onnx_net2net.model.model import Model
from onnx_net2net.model.tensors import INLINE_BYTES, Weight, Weights, make_stub, set_inline


def export_skeleton(skeleton: Skeleton, inputs: Mapping[str, torch.Tensor], weights: Mapping[str, Stored]) -> Model:
    """Export a model without weights.

    Args:
        skeleton: The model.
        inputs: What it is called with; only shapes and types matter.
        weights: Its parameters by name, in the files of its checkpoint.

    Returns:
        A model in single precision. Its initializers have the parameters' names.

    Raises:
        BadInputError: If torch cannot export the class.
    """
    device = "meta" if skeleton.example is None else "cpu"
    empty = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in inputs.values())
    try:
        with (
            quiet(), torch.no_grad(), _RealConstants(), plainly_called(skeleton.model, list(inputs)),
            _unwritten(skeleton.model) if device == "cpu" else contextlib.nullcontext(),
        ):  # fmt: skip
            program = torch.onnx.export(skeleton.model, empty, dynamo=True, optimize=False, verbose=False)
            assert program is not None
            graph = program.model.graph
            for value in graph.initializers.values():
                if value.name in weights:
                    kept = value.const_value
                    value.const_value = ir.ExternalTensor(
                        "weights", 0, 0, kept.dtype, name=value.name, shape=kept.shape
                    )
            proto = ir.serde.serialize_model(program.model)
    except ImportError as error:
        raise BadInputError(
            f"checkpoints need onnxscript: pip install 'onnx-net2net[hf]' ({one_line(error)})"
        ) from error
    except Exception as error:  # of torch, of the exporter, of the class
        raise BadInputError(f"{type(skeleton.model).__name__} cannot be exported: {one_line(error)}") from error
    return _with_weights(proto, weights)


@contextlib.contextmanager
def _unwritten(model: nn.Module) -> Iterator[None]:
    """Let a module have parameters on the CPU that nobody writes to, so that they take no memory.

    Buffers of a class made by a factory are real, and tensors of two devices do not compute with one another.
    """
    kept = [(one._parameters, leaf, value) for one in model.modules() for leaf, value in one._parameters.items()
            if value is not None]  # fmt: skip
    same = {id(value): nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False)
            for *_, value in kept}  # fmt: skip
    for table, leaf, value in kept:
        table[leaf] = same[id(value)]
    try:
        yield
    finally:
        for table, leaf, value in kept:
            table[leaf] = value


class _RealConstants(TorchFunctionMode):  # type: ignore[misc]
    """Makes the numbers that a class writes into tensors for real, wherever its weights are."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor):
            options.pop("device", None)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):  # x[..., [-2]], whose list becomes a tensor
            args = (args[0], tuple(torch.tensor(one) if isinstance(one, list) else one for one in args[1]))
        return func(*args, **options)


def _with_weights(proto: onnx.ModelProto, weights: Mapping[str, Stored]) -> Model:
    """Return a model whose initializers are read from files."""
    table: Weights = {}
    for tensor in proto.graph.initializer:
        stored = weights.get(tensor.name)
        if stored is None:
            continue
        if 4 * math.prod(stored.shape) <= INLINE_BYTES:
            set_inline(tensor, _values(stored)().tobytes())
        else:
            make_stub(tensor, Weight(tensor.data_type, stored.shape, tensor.name, _values(stored)), table)
    check(proto)
    return Model(proto, table, external=True)


def _values(stored: Stored) -> StoredSource:
    """Return what the graph has of a tensor: numbers in single precision, indices as they are."""
    return StoredSource(stored, stored.dtype if stored.dtype.kind in "iub" else np.dtype(np.float32))
