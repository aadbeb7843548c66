"""Makes a trainable PyTorch module of any model, and checks that it computes the same as onnxruntime."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, NotEquivalentError, one_line
from onnx_net2net.framework.fx.parameters import trained_of
from onnx_net2net.framework.module import ModuleRunner
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.proof.models import compare_models
from onnx_net2net.run.inputs import Feeds

if TYPE_CHECKING:
    import torch


def to_torch(
    model: ModelLike,
    *,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Make a trainable PyTorch module of a model, and compare the two on some inputs.

    `forward` takes the model's inputs and returns its outputs, both by position. The parameters are the weights of the
    layers under their names in the file. Names that a module cannot have are changed; `module.meta["onnx"]` maps one to
    the other. A constant that the file reads twice is one parameter. Dtypes stay as they are. The module is in eval
    mode. In training mode a BatchNormalization uses the statistics of the batch and updates its own. Dropout stays off.

    Args:
        model: A path, a model in memory or a loaded model; see `load`.
        data: Inputs to compare on (arrays by name, or an npz file of them). By default inputs are generated.
        seed: Seed of the generated inputs.

    Returns:
        A `torch.fx.GraphModule`. `refit` puts its trained state dict back into the file.

    Raises:
        BadInputError: PyTorch or onnx2fx is not installed, or an operator cannot be converted.
        NotEquivalentError: The outputs of module and onnxruntime differ by more than the model's own float noise.
    """
    try:
        from onnx_net2net.framework.fx.conversion import RESERVED, convert
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
    """Compare a module in eval mode with a model in onnxruntime; see `to_torch`.

    Raises:
        BadInputError: onnxruntime does not run the model.
        NotEquivalentError: The outputs differ, or the module fails.
    """
    runner = ModuleRunner(module, model)

    def run(feeds: Feeds) -> dict[str, Array]:
        try:
            return runner(feeds)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise NotEquivalentError(
                f"the module does not run on {shapes}, which onnxruntime takes (data= gives others): {one_line(error)}"
            ) from None

    with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints the code of a module that fails
        found = compare_models(model, run, data=data, seed=seed)
    if any(report.different_fraction for report in found.outputs):
        raise NotEquivalentError(f"the module does not compute what onnxruntime does: {found}")
