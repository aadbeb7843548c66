"""Any model as a trainable module of PyTorch, which computes what onnxruntime computes of it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.framework.module import ModuleRunner
from onnx_net2net.framework.parameters import trained_of
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.proof.models import compare_models

if TYPE_CHECKING:
    import torch


def to_torch(
    model: ModelLike,
    *,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Make a trainable module of a model, and compare the two on some inputs.

    Its inputs and outputs are those of the model, by position. Its parameters are the weights of the layers, under
    the names that they have in the file, as far as a module can have these (`module.meta["onnx"]` has both). What is
    read twice is one parameter. Types stay as they are. The module is in eval mode; in training mode a
    BatchNormalization uses the statistics of the batch, and moves its own. Dropout of the file stays off.

    Args:
        model: A file, or a model in memory, such as a student that was grown a moment ago.
        data: Inputs to compare on, instead of generated ones: arrays by name, or an npz file of them.
        seed: Of the generated inputs.

    Returns:
        A `torch.fx.GraphModule`. `refit` puts its trained state dict back into the file.

    Raises:
        BadInputError: PyTorch or onnx2fx is not installed, or there is an operator that cannot be converted.
        NotEquivalentError: The module does not compute what onnxruntime does, within the model's own float noise.
    """
    try:
        from onnx_net2net.framework.conversion import RESERVED, convert
    except ImportError as error:
        raise BadInputError(
            f"to_torch needs {error.name}: pip install 'onnx-net2net[torch]' (and Python 3.11 or newer)"
        ) from error
    loaded = load(model)
    module = convert(trained_of(loaded, RESERVED))
    check_module(module, loaded, data=data, seed=seed)
    return module


def check_module(
    module: torch.nn.Module,
    model: Model,
    *,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
) -> None:
    """Compare what a module computes in eval mode with what onnxruntime computes of a model; see `to_torch`.

    Raises:
        BadInputError: onnxruntime does not run the model.
        NotEquivalentError: The module computes something else, or fails.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints the code of a module that fails
        found = compare_models(model, ModuleRunner(module, model), data=data, seed=seed)
    if any(report.different_fraction for report in found.outputs):
        raise NotEquivalentError(f"the module does not compute what onnxruntime does: {found}")
