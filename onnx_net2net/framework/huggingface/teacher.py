"""The teacher: a checkpoint's folder and its class without weights, whoever makes the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from onnx_net2net.errors import BadInputError
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface import factories
from onnx_net2net.framework.huggingface.exported import export_skeleton
from onnx_net2net.framework.huggingface.folder import Folder, read_folder
from onnx_net2net.framework.huggingface.parameters import Naming, parameters_of
from onnx_net2net.framework.huggingface.skeleton import Skeleton, build_skeleton, class_of, read_config
from onnx_net2net.model.model import Model


@dataclass(frozen=True)
class Teacher:
    """A checkpoint and its class without weights.

    Attributes:
        folder: Its files.
        skeleton: Its class.
        parameters: Its parameters by their names in the class.
        called: What the files call their tensors.
        rebuild: Makes the class of another config.
        is_one_file: Whether its library loads weights from one file only.
    """

    folder: Folder
    skeleton: Skeleton
    parameters: Mapping[str, Stored]
    called: Naming
    rebuild: Callable[[dict[str, Any]], Skeleton]
    is_one_file: bool = False

    @cached_property
    def graph(self) -> Model:
        """The class as a graph whose weights are read from the files.

        Raises:
            BadInputError: If it cannot be exported.
        """
        return export_skeleton(self.skeleton, self.skeleton.draw(), self.parameters)

    @property
    def unknown(self) -> list[str]:
        """The tensors of the files that are none of the class."""
        known = set(map(self.called, self.skeleton.cuts))
        return [name for name in self.folder.tensors if name not in known]


def open_teacher(
    path: Path,
    trust_remote_code: bool = False,
    module: str | None = None,
    example: Mapping[str, torch.Tensor] | None = None,
) -> Teacher:
    """Open a checkpoint of transformers or of timm, or of a module that a factory makes; its weights stay on the disk.

    Args:
        path: The folder, or a file of weights or an index of such where a factory is given.
        trust_remote_code: Whether code in the folder may be run.
        module: The factory, as `package.module:factory`. Arguments that it is called with stand in config.json.
        example: What the module is called with, by the names of `forward`'s arguments.

    Raises:
        BadInputError: If it cannot be used; see `read_folder`, `read_config`, `build_skeleton` and `factories`.
    """
    folder = read_folder(path)
    if module is not None:
        make = factories.of_user(module, folder.config, example)
        return _made(folder, make)
    if "architecture" in folder.config:
        return _made(folder, factories.of_timm(folder.config), is_one_file=True)
    config = read_config(path, trust_remote_code)
    kind = class_of(config, path, trust_remote_code)

    def rebuild(raw: dict[str, Any]) -> Skeleton:
        try:
            made = type(config).from_dict(raw)
        except Exception as error:  # of a config's own checks
            raise BadInputError(f"there is no such config: {error}") from error
        return build_skeleton(kind, made)

    skeleton = build_skeleton(kind, config)
    return Teacher(folder, skeleton, *parameters_of(skeleton, folder.tensors), rebuild)


def _made(folder: Folder, make: Callable[[dict[str, Any]], Skeleton], is_one_file: bool = False) -> Teacher:
    skeleton = make(folder.config)
    return Teacher(folder, skeleton, *parameters_of(skeleton, folder.tensors), make, is_one_file)
