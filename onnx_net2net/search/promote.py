"""The winner of a search as the next teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load
from onnx_net2net.model.staging import writing
from onnx_net2net.search.growing import SavedNetwork


def promote(network: SavedNetwork | None, folder: Path) -> None:
    """Write the best network: `teacher.onnx`, its weights `teacher.pt` (or .safetensors), and `teacher.optimizer.pt`.

    All of them appear, or none.

    Args:
        network: The winner, if there is one.
        folder: Where to write.

    Raises:
        RefusedError: If no candidate was trained.
        WriteError: If it cannot be written there.
    """
    if network is None:
        raise RefusedError("no candidate was trained, so that there is no winner")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with load(network.model).stage(folder / "teacher.onnx") as staged, writing(folder):
        beside = {f"teacher{network.state.suffix}": network.state}
        if network.optimizer:
            beside["teacher.optimizer.pt"] = network.optimizer
        for name, source in beside.items():
            shutil.copyfile(source, staged.path.with_name(name))
        staged.commit(beside)
        for name in {"teacher.pt", "teacher.safetensors", "teacher.optimizer.pt"} - set(beside):  # of an earlier winner
            (folder / name).unlink(missing_ok=True)
