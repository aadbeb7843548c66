"""Grow trained ONNX models without changing what they compute (Net2Net, Chen, Goodfellow, Shlens 2016).

from onnx_net2net import inspect, verify, widen

print(inspect("teacher.onnx"))
result = widen("teacher.onnx", factor=1.5)
verify("teacher.onnx", result.student).raise_if_different()
result.student.save("student.onnx")
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer onnxruntimes write files into ~/.cache when imported

if TYPE_CHECKING:
    from onnx_net2net.analysis.groups import Inspection, inspect
    from onnx_net2net.errors import BadInputError, Net2NetError, NotEquivalentError, RefusedError
    from onnx_net2net.framework.checkpoint import Checkpoint, checkpoint
    from onnx_net2net.framework.live.fill import Filled, fill
    from onnx_net2net.framework.live.grow import Grown, grow
    from onnx_net2net.framework.live.hugging_face import TrainerGrowth
    from onnx_net2net.framework.live.lightning import LightningGrowth
    from onnx_net2net.framework.live.schedule import GrowthSchedule, grow_in_place
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
    from onnx_net2net.operations.unmask import Unmasking, unmask
    from onnx_net2net.operations.upcycle import Upcycling, upcycle
    from onnx_net2net.operations.verify import Verification, verify
    from onnx_net2net.operations.widen.widen import Widening, widen
    from onnx_net2net.run.session import session

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
    "Unmasking",
    "Upcycling",
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
    "unmask",
    "upcycle",
    "verify",
    "widen",
]

_HOMES = {
    "BadInputError": "errors",
    "Checkpoint": "framework.checkpoint",
    "Deepening": "operations.deepen.deepen",
    "Filled": "framework.live.fill",
    "Grown": "framework.live.grow",
    "GrowthSchedule": "framework.live.schedule",
    "Inspection": "analysis.groups",
    "LightningGrowth": "framework.live.lightning",
    "Model": "model.model",
    "ModuleRunner": "framework.module",
    "Narrowing": "operations.narrow.narrow",
    "Net2NetError": "errors",
    "NotEquivalentError": "errors",
    "RefusedError": "errors",
    "Similarity": "operations.transfer.similarity",
    "TrainerGrowth": "framework.live.hugging_face",
    "Transfer": "operations.transfer.transfer",
    "Unmasking": "operations.unmask",
    "Upcycling": "operations.upcycle",
    "Verification": "operations.verify",
    "Widening": "operations.widen.widen",
    "checkpoint": "framework.checkpoint",
    "deepen": "operations.deepen.deepen",
    "fill": "framework.live.fill",
    "grow": "framework.live.grow",
    "grow_in_place": "framework.live.schedule",
    "inspect": "analysis.groups",
    "load": "model.model",
    "narrow": "operations.narrow.narrow",
    "refit": "framework.refit",
    "replay": "operations.replay",
    "session": "run.session",
    "similarity": "operations.transfer.similarity:similarities",
    "steps_of": "operations.replay",
    "to_torch": "framework.trainable",
    "transfer": "operations.transfer.transfer",
    "unmask": "operations.unmask",
    "upcycle": "operations.upcycle",
    "verify": "operations.verify",
    "widen": "operations.widen.widen",
}
"""Where each public name is, and what it is called there; it is imported when somebody asks for it."""


_EXTRAS = {"TrainerGrowth": "trainer", "LightningGrowth": "lightning"}


def __getattr__(name: str) -> Any:
    """Import what has this name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    try:
        found = getattr(import_module(f"{__name__}.{home}"), own or name)
    except ModuleNotFoundError as error:
        raise import_module(f"{__name__}.errors").BadInputError(
            f"{name} needs {error.name}: pip install 'onnx-net2net[{_EXTRAS.get(name, 'torch')}]'"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, too."""
    return sorted({*globals(), *_HOMES})
