"""Growth inside of the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from onnx_net2net.framework.live.example import Inputs
from onnx_net2net.framework.live.report import Report
from onnx_net2net.framework.live.schedule import Options, checked, grow_in_place, refuse_processes
from onnx_net2net.framework.optimizer import bare_optimizer


class LightningGrowth(Callback):  # type: ignore[misc]  # lightning is not followed
    """Grows a module of a `LightningModule` at given steps; schedulers of the rate go on.

        growth = LightningGrowth("net", x, at={2000: {"factor": 2}})  # for `self.net`
        Trainer(callbacks=[growth], ...).fit(lightning_module, data)

    A fit that is resumed from a checkpoint behind a growth grows the fresh module first, so that its weights fit.

    Attributes:
        reports: What the growths of this process did, by step.
    """

    def __init__(self, name: str, example_inputs: Inputs, at: Mapping[int, Options], *, moments: bool = True) -> None:
        """Make one.

        Args:
            name: The attribute of the LightningModule that grows.
            example_inputs: What that is called with, as in `onnx_net2net.grow`.
            at: Options of `grow` by the number of steps after which it grows.
            moments: Whether the optimizers' states grow too.
        """
        self.reports: dict[int, Report] = {}
        self._name, self._inputs, self._at, self._moments = name, example_inputs, checked(at), moments
        self._grown: list[int] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let a fresh module grow to the sizes of a checkpoint, before Lightning loads its weights."""
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: Mapping[str, Any]) -> None:
            for step in checkpoint.get("callbacks", {}).get(self.state_key, {}).get("grown", ()):
                if step not in self._grown:
                    self._grow(step, pl_module)
            own(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Grow if it is time.

        Raises:
            RefusedError: The module cannot be grown exactly, or it is spread over processes.
        """
        step = trainer.global_step
        if step not in self._at or step in self._grown:
            return
        refuse_processes(trainer.world_size)
        self._grow(step, pl_module, *(bare_optimizer(one) for one in trainer.optimizers))

    def _grow(self, step: int, pl_module: Any, *optimizers: torch.optim.Optimizer) -> None:
        module: nn.Module = pl_module.get_submodule(self._name)
        self.reports[step] = grow_in_place(module, self._inputs, optimizers, moments=self._moments, **self._at[step])
        self._grown.append(step)

    def state_dict(self) -> dict[str, Any]:
        """Return which growths were done."""
        return {"grown": list(self._grown)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` returned; the module was grown by it before."""
        self._grown = list(state_dict["grown"])
