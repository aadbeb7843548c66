"""Growth inside of the Trainer of transformers."""

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
from onnx_net2net.framework.live.schedule import Options, checked, grow_in_place, refuse_processes
from onnx_net2net.framework.optimizer import bare_optimizer


class TrainerGrowth(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Grows the model of a `transformers.Trainer` at given steps; the Trainer's own schedule of the rate goes on.

        growth = TrainerGrowth({"input_ids": ids}, at={2000: {"factor": 2}})
        Trainer(model, TrainingArguments(..., lr_scheduler_type="warmup_stable_decay"), callbacks=[growth], ...).train()

    The config of the model grows too. To resume from a checkpoint behind a growth, make the model with
    `from_pretrained(checkpoint)`, or give a fresh one to `restore`.

    Attributes:
        reports: What the growths of this process did, by step.
    """

    def __init__(
        self, example_inputs: Inputs, at: Mapping[int, Options], *, averages: Sequence[nn.Module] = (),
        moments: bool = True,
    ) -> None:  # fmt: skip
        """Make one; the arguments are those of `onnx_net2net.GrowthSchedule`."""
        self.reports: dict[int, Report] = {}
        self._inputs, self._at, self._averages, self._moments = example_inputs, checked(at), tuple(averages), moments

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Grow if it is time.

        Raises:
            RefusedError: The model cannot be grown exactly, or it is spread over processes.
        """
        options = self._at.get(state.global_step)
        if options is None:
            return
        refuse_processes(args.world_size)
        self.reports[state.global_step] = grow_in_place(
            model, self._inputs, bare_optimizer(optimizer), self._averages, moments=self._moments, **options
        )

    def restore(self, model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
        """Grow a fresh model in place as often as that of a Trainer's checkpoint was, so that its weights fit.

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
