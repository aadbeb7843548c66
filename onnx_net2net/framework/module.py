"""A PyTorch class of the user's, built, loaded and run like a model: proves that a student came back to its class.

The class is imported as Python would import it from the current folder. The state dict is loaded strictly, and the
module runs in eval mode. torch is imported only when it is needed.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, NotEquivalentError, one_line, optional, some
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.model.model import Model, load
from onnx_net2net.run.inputs import Feeds, input_specs

if TYPE_CHECKING:
    import torch


class ModuleRunner:
    """Runs a module like an ONNX model: arrays in, arrays out, by name. `verify` takes it as a student."""

    def __init__(
        self, module: torch.nn.Module, teacher: str | os.PathLike[str] | Model, *, device: str = "cpu"
    ) -> None:
        """Make a runner.

        Args:
            module: The module; it is put into eval mode and onto the device.
            teacher: The model that has the names of inputs and outputs. Inputs are given by name if `forward` has
                parameters of all these names, else by position. `forward` returns the outputs in the teacher's order,
                or in a mapping by name.
            device: Where to run: "cpu" or "cuda".
        """
        graph = load(teacher).proto
        self._inputs = [spec.name for spec in input_specs(graph)]
        self._outputs = [value.name for value in graph.graph.output]
        self._module, self._device = module.eval().to(device), device
        parameters = inspect.signature(module.forward).parameters
        self._by_name = all(name in parameters for name in self._inputs)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run the module on arrays by the teacher's names; return its outputs by the teacher's names."""
        import torch

        given = {name: state_dicts.torch_tensor(feeds[name]).to(self._device) for name in self._inputs}
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            result = self._module(**given) if self._by_name else self._module(*given.values())
        if isinstance(result, Mapping) and all(name in result for name in self._outputs):
            result = [result[name] for name in self._outputs]
        tensors = list(_tensors(result))
        if len(tensors) != len(self._outputs):
            raise NotEquivalentError(f"the class returns {len(tensors)} tensors, the teacher {len(self._outputs)}")
        made = state_dicts.from_torch({n: one.cpu() for n, one in zip(self._outputs, tensors, strict=True)})
        return {name: stored.read() for name, stored in made.items()}


def imported(path: str) -> Callable[..., Any]:
    """Import a class or function of the user's, also from the current folder, as `python -m` does.

    Args:
        path: "package.module:factory".

    Raises:
        BadInputError: If there is none, or the user's code fails.
    """
    name, colon, attribute = path.partition(":")
    if not (name and colon and attribute):
        raise BadInputError(f"--module {path}: write package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # whatever the user's code raises
        raise BadInputError(f"--module {path} cannot be imported: {one_line(error)}") from error
    if not callable(factory):
        raise BadInputError(f"--module {path} is no class and no function")
    found: Callable[..., Any] = factory
    return found


def build(path: str, args: Mapping[str, Any] | Sequence[Any] = ()) -> torch.nn.Module:
    """Build a module by the user's own code.

    Args:
        path: "package.module:factory", a class or function that is imported, also from the current folder.
        args: What it is called with: positions, or names.

    Raises:
        BadInputError: If there is no torch, no such factory, or it fails or makes no module.
    """
    torch = optional("torch", "--module needs PyTorch: pip install torch")
    factory = imported(path)
    try:
        module = factory(**args) if isinstance(args, Mapping) else factory(*args)
    except Exception as error:
        raise BadInputError(f"--module {path} cannot be built: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise BadInputError(f"--module {path} makes a {type(module).__name__}, not a torch.nn.Module")
    return module


def load_strictly(module: torch.nn.Module, state_dict: str | os.PathLike[str]) -> None:
    """Load a state dict into a module; all names and shapes have to be the same.

    Raises:
        BadInputError: If the file cannot be read.
        NotEquivalentError: If it does not fit; the text has the first names and shapes.
    """
    state, wanted = state_dicts.read(state_dict), module.state_dict()
    shapes = [
        f"{name} is {list(stored.shape)}, in the class {list(wanted[name].shape)}"
        for name, stored in state.items()
        if name in wanted and stored.shape != tuple(wanted[name].shape)
    ]
    problems = {
        "without": [name for name in wanted if name not in state],
        "with the unknown": [name for name in state if name not in wanted],
        "where": shapes,
    }
    found = [f"{what} {some(names)}" for what, names in problems.items() if names]
    if found:
        raise NotEquivalentError(f"{Path(state_dict).name} does not fit the class: it is {'; '.join(found)}")
    try:
        module.load_state_dict({name: state_dicts.torch_tensor(stored.read()) for name, stored in state.items()})
    except RuntimeError as error:  # a class may have rules of its own
        raise NotEquivalentError(f"{Path(state_dict).name} does not fit the class: {one_line(error)}") from error


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of what a module returned, in order; caches and the like are left out."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _tensors(member)
