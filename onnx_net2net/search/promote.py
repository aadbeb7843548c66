"""The winner of a search as the next teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load
from onnx_net2net.model.staging import writing
from onnx_net2net.search.growing import Network


def promote(network: Network | None, folder: Path) -> None:
    """Write the best network: `teacher.onnx`, its weights `teacher.pt` (or .safetensors), and `teacher.optimizer.pt`.

    Args:
        network: The winner, if there is one.
        folder: Where to write.

    Raises:
        RefusedError: If no candidate was trained.
        BadInputError: If it cannot be written there.
    """
    if network is None:
        raise RefusedError("no candidate was trained, so that there is no winner")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        load(network.model).save(folder / "teacher.onnx")
        shutil.copyfile(network.state, folder / f"teacher{network.state.suffix}")
        if network.optimizer:
            shutil.copyfile(network.optimizer, folder / "teacher.optimizer.pt")
