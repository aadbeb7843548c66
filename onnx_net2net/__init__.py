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
    from onnx_net2net.analysis.groups import Inspection as Inspection, inspect as inspect
    from onnx_net2net.errors import (
        BadInputError as BadInputError,
        Net2NetError as Net2NetError,
        NotEquivalentError as NotEquivalentError,
        RefusedError as RefusedError,
    )
    from onnx_net2net.framework.checkpoint import Checkpoint as Checkpoint, checkpoint as checkpoint
    from onnx_net2net.framework.fx.trainable import to_torch as to_torch
    from onnx_net2net.framework.live.fill import Filled as Filled, fill as fill
    from onnx_net2net.framework.live.grow import Grown as Grown, grow as grow
    from onnx_net2net.framework.live.hugging_face import TrainerGrowth as TrainerGrowth
    from onnx_net2net.framework.live.lightning import LightningGrowth as LightningGrowth
    from onnx_net2net.framework.live.schedule import GrowthSchedule as GrowthSchedule, grow_in_place as grow_in_place
    from onnx_net2net.framework.module import ModuleRunner as ModuleRunner
    from onnx_net2net.framework.refit import refit as refit
    from onnx_net2net.model.model import Model as Model, load as load
    from onnx_net2net.operations.deepen.deepen import Deepening as Deepening, deepen as deepen
    from onnx_net2net.operations.narrow.narrow import Narrowing as Narrowing, narrow as narrow
    from onnx_net2net.operations.replay import replay as replay, steps_of as steps_of
    from onnx_net2net.operations.transfer.similarity import Similarity as Similarity, similarity as similarity
    from onnx_net2net.operations.transfer.transfer import Transfer as Transfer, transfer as transfer
    from onnx_net2net.operations.unmask import Unmasking as Unmasking, unmask as unmask
    from onnx_net2net.operations.upcycle import Upcycling as Upcycling, upcycle as upcycle
    from onnx_net2net.operations.verify import Verification as Verification, verify as verify
    from onnx_net2net.operations.widen.widen import Widening as Widening, widen as widen
    from onnx_net2net.run.session import session as session

_NAMES = {
    "analysis.groups": "Inspection inspect",
    "errors": "BadInputError Net2NetError NotEquivalentError RefusedError",
    "framework.checkpoint": "Checkpoint checkpoint",
    "framework.live.fill": "Filled fill",
    "framework.live.grow": "Grown grow",
    "framework.live.hugging_face": "TrainerGrowth",
    "framework.live.lightning": "LightningGrowth",
    "framework.live.schedule": "GrowthSchedule grow_in_place",
    "framework.module": "ModuleRunner",
    "framework.refit": "refit",
    "framework.fx.trainable": "to_torch",
    "model.model": "Model load",
    "operations.deepen.deepen": "Deepening deepen",
    "operations.narrow.narrow": "Narrowing narrow",
    "operations.replay": "replay steps_of",
    "operations.transfer.similarity": "Similarity similarity",
    "operations.transfer.transfer": "Transfer transfer",
    "operations.unmask": "Unmasking unmask",
    "operations.upcycle": "Upcycling upcycle",
    "operations.verify": "Verification verify",
    "operations.widen.widen": "Widening widen",
    "run.session": "session",
}
"""The public names by their modules; one is imported when somebody asks for it."""

_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)

_EXTRAS = {"TrainerGrowth": "trainer", "LightningGrowth": "lightning"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise import_module(f"{__name__}.errors").BadInputError(
            f"{name} needs {error.name}: pip install 'onnx-net2net[{_EXTRAS.get(name, 'torch')}]'"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, too."""
    return sorted({*globals(), *_HOMES})
