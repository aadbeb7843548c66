"""Growth inside the Trainer of transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from onnx_net2net.errors import BadInputError, one_line
from onnx_net2net.framework.live.example import Inputs
from onnx_net2net.framework.live.report import Report
from onnx_net2net.framework.live.schedule import GrowOptions, checked, grow_in_place, refuse_processes
from onnx_net2net.framework.optimizer import bare_optimizer


class TrainerGrowth(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """A callback that grows the model of a `transformers.Trainer` at given steps.

        growth = TrainerGrowth({"input_ids": ids}, at={2000: {"factor": 2}})
        Trainer(model, TrainingArguments(..., lr_scheduler_type="warmup_stable_decay"), callbacks=[growth], ...).train()

    The Trainer's own learning rate schedule goes on, and the config of the model grows, too. To resume from a
    checkpoint that was saved after a growth, make the model with `from_pretrained(checkpoint)`, or give a fresh model
    to `restore`.

    Attributes:
        reports: A report of each growth that this process did, by step.
    """

    def __init__(
        self, example_inputs: Inputs, at: Mapping[int, GrowOptions], *, averages: Sequence[nn.Module] = (),
        moments: bool = True,
    ) -> None:  # fmt: skip
        """Make a callback; the arguments are those of `onnx_net2net.GrowthSchedule`."""
        self.reports: dict[int, Report] = {}
        self._inputs, self._at, self._averages, self._moments = example_inputs, checked(at), tuple(averages), moments

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Grow the model if a growth is due at this step.

        Raises:
            RefusedError: The model cannot be grown exactly, or several processes hold it.
        """
        options = self._at.get(state.global_step)
        if options is None:
            return
        refuse_processes(args.world_size)
        self.reports[state.global_step] = grow_in_place(
            model, self._inputs, bare_optimizer(optimizer), self._averages, moments=self._moments, **options
        )

    def restore(self, model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
        """Grow a fresh model in place to the sizes of a checkpoint of the Trainer, so that the weights there fit.

        Args:
            model: The model as its constructor makes it.
            checkpoint: The checkpoint's folder.

        Raises:
            BadInputError: It is no checkpoint of a Trainer.
        """
        path = Path(checkpoint) / "trainer_state.json"
        try:
            step = int(json.loads(path.read_text(encoding="utf-8"))["global_step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{path} is no state of a Trainer: {one_line(error)}") from error
        for at in sorted(at for at in self._at if at <= step):
            grow_in_place(model, self._inputs, **self._at[at])
