"""Hugging Face's Trainer: `Trainer(..., callbacks=[RWCCallback()])`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rwc_wandb.dropin import watch
from rwc_wandb.measure.monitor import Monitor


class RWCCallback(TrainerCallback):
    """Calls `rwc_wandb.watch(model, optimizer, **options)` when training begins, and closes the monitor when it ends.

    Rows join those of the Trainer's own W&B run (`report_to="wandb"`). Every checkpoint holds the series so far
    (`rwc.pt`), and a training that resumes from it continues it.

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
        saved = _file(args, state)
        if state.global_step and saved.exists():
            self.monitor.load_state_dict(torch.load(saved, weights_only=True))

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self.monitor is not None:
            # On every process: where weights are sharded, each has a part of it.
            series = self.monitor.state_dict()
            if state.is_world_process_zero:
                torch.save(series, _file(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self.monitor is not None:
            self.monitor.close()


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", "rwc.pt")
