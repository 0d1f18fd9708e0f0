"""Hugging Face's Trainer: `Trainer(..., callbacks=[RWCCallback()])`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from rwc_wandb.dropin import watch
from rwc_wandb.measure.monitor import Monitor


class RWCCallback(TrainerCallback):
    """Calls `rwc_wandb.watch(model, optimizer, **options)` when training begins, and closes the monitor when it ends.

    Rows join those of the Trainer's own W&B run (`report_to="wandb"`). After `resume_from_checkpoint` the steps go on
    from the checkpoint's.

    Args:
        options: `watch`'s keyword arguments.

    Attributes:
        monitor: the monitor of the last training, None before.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.monitor = watch(parts["model"], parts["optimizer"], **self.options)
        self.monitor.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self.monitor is not None:
            self.monitor.close()
