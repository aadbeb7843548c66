"""Grow trained ONNX models without changing what they compute (Net2Net, Chen, Goodfellow, Shlens 2016).

from onnx_net2net import inspect, verify, widen

print(inspect("teacher.onnx"))
result = widen("teacher.onnx", factor=1.5)
verify("teacher.onnx", result.student).raise_if_different()
result.student.save("student.onnx")
"""

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer onnxruntimes write files into ~/.cache when imported

from onnx_net2net.analysis.groups import Inspection, inspect
from onnx_net2net.errors import BadInputError, Net2NetError, NotEquivalentError, RefusedError
from onnx_net2net.framework.checkpoint import Checkpoint, checkpoint
from onnx_net2net.framework.module import ModuleRunner
from onnx_net2net.framework.refit import refit
from onnx_net2net.framework.trainable import to_torch
from onnx_net2net.model.model import Model, load
from onnx_net2net.operations.deepen.deepen import Deepening, deepen
from onnx_net2net.operations.narrow.narrow import Narrowing, narrow
from onnx_net2net.operations.replay import replay, steps_of
from onnx_net2net.operations.transfer.similarity import Similarity
from onnx_net2net.operations.transfer.similarity import similarities as similarity
from onnx_net2net.operations.transfer.transfer import Transfer, transfer
from onnx_net2net.operations.verify import Verification, verify
from onnx_net2net.operations.widen.widen import Widening, widen
from onnx_net2net.run.session import session

if TYPE_CHECKING:
    from onnx_net2net.framework.live.fill import Filled, fill
    from onnx_net2net.framework.live.grow import Grown, grow
    from onnx_net2net.framework.live.hugging_face import TrainerGrowth
    from onnx_net2net.framework.live.lightning import LightningGrowth
    from onnx_net2net.framework.live.schedule import GrowthSchedule, grow_in_place

__all__ = [
    "BadInputError",
    "Checkpoint",
    "Deepening",
    "Filled",
    "Grown",
    "GrowthSchedule",
    "Inspection",
    "LightningGrowth",
    "Model",
    "ModuleRunner",
    "Narrowing",
    "Net2NetError",
    "NotEquivalentError",
    "RefusedError",
    "Similarity",
    "TrainerGrowth",
    "Transfer",
    "Verification",
    "Widening",
    "checkpoint",
    "deepen",
    "fill",
    "grow",
    "grow_in_place",
    "inspect",
    "load",
    "narrow",
    "refit",
    "replay",
    "session",
    "similarity",
    "steps_of",
    "to_torch",
    "transfer",
    "verify",
    "widen",
]

_LIVE = {
    "Filled": "fill",
    "Grown": "grow",
    "GrowthSchedule": "schedule",
    "LightningGrowth": "lightning",
    "TrainerGrowth": "hugging_face",
    "fill": "fill",
    "grow": "grow",
    "grow_in_place": "schedule",
}
"""What needs torch, by the module of `framework.live` that has it."""


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name not in _LIVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"onnx_net2net.framework.live.{_LIVE[name]}"), name)
    except ModuleNotFoundError as error:
        raise BadInputError(f"{name} needs {error.name}: pip install {error.name}, or 'onnx-net2net[torch]'") from error
