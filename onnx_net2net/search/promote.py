"""The winner of a search as the next teacher."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from onnx_net2net.errors import RefusedError
from onnx_net2net.model.model import load
from onnx_net2net.model.staging import writing
from onnx_net2net.search.explore import Trial


def promote(trials: Sequence[Trial], folder: Path) -> None:
    """Write the best network: `teacher.onnx`, its weights `teacher.pt` (or .safetensors), and `teacher.optimizer.pt`.

    Args:
        trials: The trials, the best first.
        folder: Where to write.

    Raises:
        RefusedError: If no candidate was trained.
        BadInputError: If it cannot be written there.
    """
    best = next((trial for trial in trials if trial.outcomes and trial.network), None)
    if best is None or best.network is None:
        raise RefusedError("no candidate was trained, so that there is no winner")
    network = best.network
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        load(network.model).save(folder / "teacher.onnx")
        shutil.copyfile(network.state, folder / f"teacher{network.state.suffix}")
        if network.optimizer:
            shutil.copyfile(network.optimizer, folder / "teacher.optimizer.pt")
