"""Models that a config makes, as transformers' are: the config of the grown one, so that it can be saved and loaded."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onnx_net2net.errors import BadInputError, RefusedError, one_line
from onnx_net2net.framework.configs import Shapes, StudentSizes, grown_config, shapes_of
from onnx_net2net.framework.live.attributes import slots_of


def configured(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a config makes and that save themselves with it; those inside of one are part of it."""
    found: list[str] = []
    for path, one in module.named_modules():
        is_inside = any(path.startswith(f"{outer}.") or not outer for outer in found)
        if not is_inside and hasattr(one, "save_pretrained") and hasattr(getattr(one, "config", None), "to_dict"):
            found.append(path)
            yield path, one


@dataclass(frozen=True)
class _Made:
    """A class as a config makes it, without weights."""

    module: nn.Module
    config: Any

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.module)


def fit_config(
    student: nn.Module, named: Mapping[str, tuple[Any, Any]], pairs: frozenset[tuple[int, int]],
    is_exact: Callable[[nn.Module], bool],
) -> bool:  # fmt: skip
    """Find the config that makes a student, and give its modules the numbers that the class made by it keeps.

    Args:
        student: The module that has a config. Its tensors have their new shapes.
        named: Fields that the graph tells (`WidthReport.config`), with their old and new values.
        pairs: Sizes of the teacher, each with what it became.
        is_exact: Tells whether what computes in the student's place does what its teacher does.

    Returns:
        Whether there is one; if not, the config and the numbers are as they were.
    """
    config: Any = student.config
    before = copy.deepcopy(config.to_dict())
    kept = [(slot, slot.value) for path, module in student.named_modules()
            for slot in slots_of(module, path, floats=True)]  # fmt: skip

    def build(changed: dict[str, Any]) -> _Made:
        own = copy.deepcopy(config)
        try:
            _assign(own, before, changed)
            with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
                return _Made(type(student)(own), own)
        except Exception as error:  # of the class: sizes that do not fit one another
            raise BadInputError(one_line(error)) from error

    def is_right(changed: dict[str, Any], made: _Made) -> bool:
        _assign(config, before, changed)
        _take_numbers(student, made.module)
        if is_exact(student) and is_exact(_loaded(student, made.config)):
            return True
        _assign(config, changed, before)
        for slot, value in kept:
            slot.set(value)
        return False

    for told in (named, {}) if named else ({},):  # the second time, since equal numbers may be others
        with contextlib.suppress(RefusedError):
            grown_config(before, config, StudentSizes(shapes_of(student), pairs, told, {}), build, is_right)
            return True
    return False


def _assign(config: Any, before: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Set what changed in a config, or in a dict or a config in it."""
    for name, value in changed.items():
        if value == before.get(name):
            continue
        own = config[name] if isinstance(config, dict) else getattr(config, name)
        if isinstance(value, dict):
            _assign(own, before[name], value)
        elif isinstance(config, dict):
            config[name] = value
        else:
            setattr(config, name, type(own)(value) if isinstance(own, list | tuple) else value)


def _loaded(student: nn.Module, config: Any) -> nn.Module:
    """Return the class as a config makes it, with the student's weights: as if it was saved and loaded."""
    made: nn.Module = type(student)(copy.deepcopy(config))
    made.to(next(student.parameters()).dtype).load_state_dict(student.state_dict())
    return made.eval()


def _take_numbers(student: nn.Module, made: nn.Module) -> None:
    """Give a student's modules the numbers that the class keeps; what only the student has is left."""
    own = dict(student.named_modules())
    for path, module in made.named_modules():
        values = {slot.keys: slot.value for slot in slots_of(module, path, floats=True)}
        for slot in slots_of(own[path], path, floats=True) if path in own else ():
            if slot.keys in values and slot.keys[0] != "config" and slot.value != values[slot.keys]:
                slot.set(values[slot.keys])
