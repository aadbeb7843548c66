"""Modules that factories make: those of timm, whose config has the arguments, and the user's own.

A module is made without weights by the factory itself. Each parameter goes to the meta device as soon as it is
registered, so that there is one at a time. Buffers are real, as the class computes them.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from onnx_net2net.errors import BadInputError, one_line, optional
from onnx_net2net.framework.huggingface.folder import CONFIG
from onnx_net2net.framework.huggingface.inputs import BATCH
from onnx_net2net.framework.huggingface.skeleton import Cut, Skeleton, first_names, strides_of
from onnx_net2net.framework.module import imported

Make = Callable[[dict[str, Any]], Skeleton]
"""Makes a module without weights of what config.json has."""


@dataclass(frozen=True)
class Arguments:
    """What a factory is called with, as a config.

    Attributes:
        values: What config.json has or may have: the arguments by name, those that are left to their defaults too.
    """

    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as a dict."""
        return copy.deepcopy(dict(self.values))

    def get_text_config(self) -> Arguments:
        """Return what a vocabulary is looked for in."""
        return self


# --- timm ---------------------------------------------------------------------------------------------------------


def of_timm(config: Mapping[str, Any]) -> Make:
    """Return what makes the modules of a config as timm writes it.

    Raises:
        BadInputError: If timm is not installed.
    """
    timm = optional("timm", "checkpoints of timm need timm: pip install timm")

    def create(raw: dict[str, Any]) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:  # timm reads its config from a folder
            (Path(folder) / CONFIG).write_text(json.dumps(raw), encoding="utf-8")
            made: nn.Module = timm.create_model(f"local-dir:{folder}")
        return made

    name = str(config["architecture"])
    kind: Any = type(_made(name, partial(create, dict(config))))

    def make(raw: dict[str, Any]) -> Skeleton:
        with _noted(kind) as noted:
            model: Any = _made(name, partial(create, raw))
        arguments = {key: value for key, value in noted.items() if _is_plain(value)}
        generator = torch.Generator().manual_seed(0)
        example = {"x": torch.randn((BATCH, *model.pretrained_cfg["input_size"]), generator=generator)}
        config = Arguments({"model_args": {**arguments, **raw.get("model_args", {})}})
        return replace(_skeleton(model, config, example), told={"num_features": model.num_features})

    return make


@contextlib.contextmanager
def _noted(kind: Any) -> Iterator[dict[str, Any]]:
    """Note the arguments that a class is made with: those of the factory's own, and defaults."""
    found: dict[str, Any] = {}
    own = kind.__init__

    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        if not found:
            bound = inspect.signature(own).bind(self, *args, **kwargs)
            bound.apply_defaults()
            found.update(dict(list(bound.arguments.items())[1:]))
        own(self, *args, **kwargs)

    kind.__init__ = note
    try:
        yield found
    finally:
        kind.__init__ = own


def _is_plain(value: Any) -> bool:
    """Tell whether JSON has a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# --- The user's own -----------------------------------------------------------------------------------------------


def of_user(where: str, config: Mapping[str, Any], example: Mapping[str, torch.Tensor] | None) -> Make:
    """Return what makes the modules of a factory of the user's own.

    Args:
        where: A class or a function that returns a module, as `package.module:factory`.
        config: The arguments that it is called with; others keep their defaults.
        example: What the module is called with; by default its `example_input_array`.

    Raises:
        BadInputError: If it cannot be imported, or does not take the arguments.
    """
    factory = imported(where)
    try:
        signature = inspect.signature(factory)
        bound = signature.bind(**config)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{where} does not take what {CONFIG} has: {one_line(error)}") from error
    bound.apply_defaults()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    defaults = {name: value for name, value in bound.arguments.items() if signature.parameters[name].kind in named
                and _is_plain(value)}  # fmt: skip

    def make(raw: dict[str, Any]) -> Skeleton:
        model = _made(where, partial(factory, **copy.deepcopy(raw)))
        return _skeleton(model, Arguments({**defaults, **raw}), _called_with(where, model, example))

    return make


def _called_with(where: str, model: nn.Module, example: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return what a module is called with, by the names of its arguments."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    if example is None:
        own: Any = getattr(model, "example_input_array", None)  # as Lightning calls it
        values: Sequence[Any] = (own,) if isinstance(own, torch.Tensor) else own if isinstance(own, tuple) else ()
        example = own if isinstance(own, dict) else dict(zip(names, values, strict=False))
    if not example:
        raise BadInputError(
            f"say what {where} is called with: --samples FILE.safetensors, with a tensor for each argument of forward"
        )
    unknown = [name for name in example if name not in names]
    if unknown:
        raise BadInputError(f"forward of {where} has the arguments {', '.join(names)}, and none is called {unknown[0]}")
    return dict(example)


# --- Without weights ------------------------------------------------------------------------------------------------


class _OnCpu(TorchFunctionMode):  # type: ignore[misc]
    """Says that parameters are on the CPU, so that a class makes its buffers there."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__:
            return torch.device("cpu")
        return func(*args, **(kwargs or {}))


def _made(name: str, create: Callable[[], Any]) -> nn.Module:
    """Return a module whose parameters are on the meta device."""

    def moved(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(moved)
    try:
        with _OnCpu(), torch.no_grad():
            model = create()
    except Exception as error:  # whatever a factory raises
        raise BadInputError(f"{name} cannot be made: {type(error).__name__}: {one_line(error)}") from error
    finally:
        hook.remove()
    if not isinstance(model, nn.Module):
        raise BadInputError(f"{name} makes no module of torch, but a {type(model).__name__}")
    return model.eval()


def _skeleton(model: nn.Module, config: Arguments, example: Mapping[str, torch.Tensor]) -> Skeleton:
    state = model.state_dict(keep_vars=True)
    cuts = {name: Cut(name, tuple(one.shape), 0, strides_of(one.shape)) for name, one in state.items()}
    return Skeleton(model, config, cuts, first_names(state), example)
