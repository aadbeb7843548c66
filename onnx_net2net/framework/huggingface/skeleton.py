"""A model without weights: its class made of a config on the meta device, and what its checkpoint calls its parameters.

Buffers that no checkpoint has (the frequencies of a rotary embedding) are made for real, as `from_pretrained` makes
them. A checkpoint may hold a parameter in parts (one tensor for each expert), which `save_pretrained` cuts. These
cuts are found by letting transformers cut tensors of the meta device, whose strides tell what was done.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from onnx_net2net.errors import BadInputError, one_line, optional, some
from onnx_net2net.framework.configs import Shapes, shapes_of
from onnx_net2net.framework.huggingface.inputs import LENGTH, draw_inputs

IMPLEMENTATIONS = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
"""How a class computes, where it can do it in several ways: in those that exporters write as plain operators."""


@dataclass(frozen=True)
class Cut:
    """What a tensor of a checkpoint shows of a parameter.

    Attributes:
        parameter: The name of the parameter in the class.
        shape: The shape of the tensor.
        offset: The place of its first element in the parameter, row-major.
        strides: How far its elements are apart there, for each axis.
    """

    parameter: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, int]:
        """The first and the last element that it shows."""
        return self.offset, self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)
        )


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        model: The module; its parameters are on the meta device.
        config: What it was made of.
        cuts: What a checkpoint calls its parameters and their parts.
        tied: For parameters that are others, the first name of the same.
        example: What it is called with, where its factory tells; None for a class of transformers.
        told: What config.json repeats of what the class computes.
    """

    model: nn.Module
    config: Any
    cuts: Mapping[str, Cut]
    tied: Mapping[str, str]
    example: Mapping[str, torch.Tensor] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, length: int = LENGTH) -> Mapping[str, torch.Tensor]:
        """Return what it is called with, by name: its example, or what `draw_inputs` draws for its config."""
        return draw_inputs(self.model, self.config, length=length) if self.example is None else self.example

    @property
    def shapes(self) -> Shapes:
        """The shapes of all tensors of its state dict by name."""
        return shapes_of(self.model)

    @property
    def elements(self) -> int:
        """How many numbers its parameters have; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def import_transformers() -> Any:
    """Import transformers.

    Raises:
        BadInputError: If it cannot be imported.
    """
    return optional("transformers", "checkpoints need transformers: pip install 'onnx-net2net[hf]'")


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the config of a checkpoint.

    Raises:
        BadInputError: If there is none of a class that transformers has, or it is the checkpoint's own code.
    """
    transformers = import_transformers()
    try:
        raw, _ = transformers.PretrainedConfig.get_config_dict(folder)
        if raw.get("auto_map") and not trust_remote_code:
            own = some(sorted(map(str, raw["auto_map"].values())))
            raise BadInputError(
                f"{folder} has a class of its own ({own}), whose code would be run; give --trust-remote-code if you "
                "trust it"
            )
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except BadInputError:
        raise
    except Exception as error:  # of transformers, of validation, of the checkpoint's own code
        raise BadInputError(f"the config of {folder} cannot be used: {one_line(error)}") from error


def class_of(config: Any, folder: Path, trust_remote_code: bool = False) -> type[nn.Module]:
    """Return the class that a config is of.

    Raises:
        BadInputError: If the config names none that there is.
    """
    transformers = import_transformers()
    names = list(getattr(config, "architectures", None) or ())
    if not names:
        raise BadInputError(f"the config of {folder} names no class (architectures)")
    if trust_remote_code and getattr(config, "auto_map", None):
        return _own_class(config, names[0], folder)
    modules = [transformers]
    with contextlib.suppress(ImportError):
        kind = type(config).__module__.replace("configuration_", "modeling_")
        modules.append(importlib.import_module(kind))
    for module in modules:
        with contextlib.suppress(Exception):  # of a class that cannot be imported here
            found: type[nn.Module] = getattr(module, names[0])
            return found
    raise BadInputError(
        f"the config of {folder} is of {names[0]}, which this transformers {transformers.__version__} lacks"
    )


def _own_class(config: Any, name: str, folder: Path) -> type[nn.Module]:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    path = next(
        (path for path in config.auto_map.values() if isinstance(path, str) and path.endswith(f".{name}")), None
    )
    try:
        found: type[nn.Module] = get_class_from_dynamic_module(path or f"modeling.{name}", str(folder))
        return found
    except Exception as error:
        raise BadInputError(f"the class {name} of {folder} cannot be imported: {one_line(error)}") from error


def build_skeleton(kind: type[nn.Module], config: Any) -> Skeleton:
    """Make a model without weights, in single precision.

    Raises:
        BadInputError: If its class does not take the config.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            model = kind._from_config(config, dtype=torch.float32, **IMPLEMENTATIONS).eval()
        _make_buffers(model)
        model.tie_weights()
        state = model.state_dict(keep_vars=True)
        return Skeleton(model, config, dict(_cuts(model, state)), first_names(state))
    except Exception as error:  # whatever a class raises
        raise BadInputError(f"{kind.__name__} cannot be made: {type(error).__name__}: {one_line(error)}") from error


def first_names(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return for each tensor of a state dict that is another one the first name of the same."""
    first: dict[int, str] = {}
    return {name: found for name, tensor in state.items() if (found := first.setdefault(id(tensor), name)) != name}


def _make_buffers(model: Any) -> None:
    """Give a model the values of buffers that are in no checkpoint, as its class makes them."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for name, buffer in list(model.named_non_persistent_buffers()):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        module.register_buffer(leaf, torch.zeros_like(buffer, device="cpu"), persistent=False)
        module._is_hf_initialized = False
    model.initialize_weights()


# --- What a checkpoint calls parameters ---------------------------------------------------------------------------


class _InPlace(TorchFunctionMode):  # type: ignore[misc]
    """Keeps tensors where they are, so that their strides tell what they are of."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))


def _cuts(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Cut]]:
    """Yield what a checkpoint calls the parameters of a model and their parts."""
    meta = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in state.items()}
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in meta.items()}
    from transformers.core_model_loading import revert_weight_conversion

    with _InPlace():
        saved = revert_weight_conversion(model, meta)
    for name, tensor in saved.items():
        owner = owners.get(tensor.untyped_storage()._cdata)
        if owner is None:
            raise BadInputError(f"{name} of the checkpoint is computed of parameters, which is not supported")
        yield name, Cut(owner, tuple(tensor.shape), tensor.storage_offset(), tuple(tensor.stride()))


def is_whole(cut: Cut, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is all of a parameter of a shape."""
    return cut.shape == tuple(shape) and cut.offset == 0 and cut.strides == strides_of(shape)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return how far the elements of a row-major array are apart, for each axis."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
