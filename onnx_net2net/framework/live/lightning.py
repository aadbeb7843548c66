"""Growth inside the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from onnx_net2net.framework.live.example import Inputs
from onnx_net2net.framework.live.report import Report
from onnx_net2net.framework.live.schedule import GrowOptions, checked, grow_in_place, refuse_processes
from onnx_net2net.framework.optimizer import bare_optimizer


class LightningGrowth(Callback):  # type: ignore[misc]  # lightning is not followed
    """A callback that grows a submodule of a `LightningModule` at given steps.

        growth = LightningGrowth("net", x, at={2000: {"factor": 2}})  # for `self.net`
        Trainer(callbacks=[growth], ...).fit(lightning_module, data)

    Learning rate schedulers go on. When `fit` resumes from a checkpoint that was saved after a growth, the fresh module
    is grown first, so that the weights fit.

    Attributes:
        reports: A report of each growth that this process did, by step.
    """

    def __init__(
        self, name: str, example_inputs: Inputs, at: Mapping[int, GrowOptions], *, moments: bool = True
    ) -> None:
        """Make a callback.

        Args:
            name: The attribute of the LightningModule that holds the module to grow.
            example_inputs: Inputs for this module, as in `onnx_net2net.grow`.
            at: Options of `onnx_net2net.grow`, by the step after which the module grows.
            moments: Whether the states of the optimizers grow, too. If not, those of grown parameters are dropped.
        """
        self.reports: dict[int, Report] = {}
        self._name, self._inputs, self._at, self._moments = name, example_inputs, checked(at), moments
        self._grown: list[int] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have a fresh module grown to the sizes of a checkpoint before Lightning loads the weights."""
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: Mapping[str, Any]) -> None:
            for step in checkpoint.get("callbacks", {}).get(self.state_key, {}).get("grown", ()):
                if step not in self._grown:
                    self._grow(step, pl_module)
            own(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Grow the module if a growth is due at this step.

        Raises:
            RefusedError: The module cannot be grown exactly, or several processes hold it.
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
        """Return the steps of the growths that were done."""
        return {"grown": list(self._grown)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the result of `state_dict`; the module itself was grown before (see `setup`)."""
        self._grown = list(state_dict["grown"])
