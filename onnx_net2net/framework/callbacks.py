"""The training protocol of `chain` and `explore` for trainers that have callbacks: Hugging Face's and Lightning's.

A callback writes `metrics.jsonl` at each evaluation, ends the training on SIGTERM, and leaves weights and optimizer. It
continues the optimizer that it is given. See docs/exploring.md.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_net2net.errors import optional
from onnx_net2net.framework.formats.state_dicts import load_torch, save_torch
from onnx_net2net.framework.optimizer import bare_optimizer


class _Run:
    """A training as the protocol wants it."""

    def __init__(self, out: str | os.PathLike[str], optimizer: str | os.PathLike[str], start: int) -> None:
        self._out, self._optimizer, self._start = Path(out), str(optimizer), start
        self._last = -1
        self.is_asked = False

    def listen(self) -> None:
        """Hear SIGTERM, in the place of what a trainer does then."""

        def ask(*_: object) -> None:
            self.is_asked = True

        signal.signal(signal.SIGTERM, ask)

    def begin(self, optimizer: Any) -> None:
        """Continue the optimizer."""
        if self._optimizer and optimizer is not None:
            saved = load_torch(Path(self._optimizer))
            groups = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, asked in zip(optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in asked.items() if name != "params"})  # its rate is new

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line; of two at one step the first."""
        found = {name: float(value) for name, value in metrics.items() if _is_figure(value)}
        if found and step > self._last:
            self._last = step
            with open(self._out / "metrics.jsonl", "a") as log:
                log.write(json.dumps({"step": self._start + step, **found}) + "\n")

    def leave(self, model: Any, optimizer: Any) -> None:
        """Leave weights and optimizer; the latter says which parameter is which."""
        save_torch(model.state_dict(), self._out / "state.pt")
        if optimizer is None:
            return
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        state = optimizer.state_dict()
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
            group["param_names"] = [names[id(parameter)] for parameter in own["params"]]
        save_torch(state, self._out / "optimizer.pt")


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "numel") and value.numel() == 1)


def hugging_face(out: str | os.PathLike[str], optimizer: str | os.PathLike[str] = "", start: int = 0) -> Any:
    """Return a callback for the Trainer of transformers.

    Metrics have the names that the Trainer gives them (`eval_loss`). Give `TrainingArguments` two options:
    `eval_on_start=True`, so that there is a line before the first step, and `max_steps`, the number of steps left.

    Args:
        out: The folder of the training (`{out}`).
        optimizer: The state to continue (`{optimizer}`); empty for a new one.
        start: Steps that were done before (`{start}`).

    Raises:
        BadInputError: If transformers is not installed.
    """
    base = optional("transformers", "this callback needs transformers: pip install 'onnx-net2net[trainer]'")
    run = _Run(out, optimizer, start)

    class Follow(base.TrainerCallback):  # type: ignore[misc, name-defined]
        """Writes what `chain` and `explore` follow."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            run.listen()
            run.begin(bare_optimizer(given.get("optimizer")))

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
            run.note(state.global_step, metrics or {})

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop |= run.is_asked
            control.should_evaluate |= control.should_training_stop

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            run.leave(model, bare_optimizer(given.get("optimizer")))

    return Follow()


def lightning(out: str | os.PathLike[str], optimizer: str | os.PathLike[str] = "", start: int = 0) -> Any:
    """Return a callback for the Trainer of Lightning.

    Metrics are those that the module logs in validation. Give the Trainer two options: `num_sanity_val_steps=-1`, so
    that there is a line before the first step, and `max_steps`, the number of steps left. See `hugging_face` for the
    arguments.

    Raises:
        BadInputError: If Lightning is not installed.
    """
    base = optional("lightning.pytorch", "this callback needs lightning: pip install 'onnx-net2net[lightning]'")
    run = _Run(out, optimizer, start)

    class Follow(base.Callback):  # type: ignore[misc, name-defined]
        """Writes what `chain` and `explore` follow."""

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            run.begin(trainer.optimizers[0] if trainer.optimizers else None)

        def on_train_start(self, trainer: Any, module: Any) -> None:
            run.listen()  # Lightning has set its own handlers by now

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            run.note(trainer.global_step, trainer.callback_metrics)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop |= run.is_asked

        def on_train_end(self, trainer: Any, module: Any) -> None:
            run.leave(module, trainer.optimizers[0] if trainer.optimizers else None)

    return Follow()
