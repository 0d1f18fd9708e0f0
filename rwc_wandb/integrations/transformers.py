"""Hugging Face's Trainer: `Trainer(..., callbacks=[RWCCallback()])`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rwc_wandb.files import whole_file
from rwc_wandb.integrations.beginning import begin, resume
from rwc_wandb.measure.delivery import MonitoringStopped, described
from rwc_wandb.measure.monitor import Monitor
from rwc_wandb.measure.steps.optimizers import is_deepspeed

_FILE = "rwc.pt"


class RWCCallback(TrainerCallback):
    """Calls `rwc_wandb.watch(model, optimizer, **options)` when training begins, and closes the monitor when it ends.

    Rows join those of the Trainer's own W&B run (`report_to="wandb"`). Every checkpoint below `output_dir` holds the
    series so far and the snapshots of the weights (`rwc.pt`; in a hyperparameter search that of its trial), and a
    training that resumes from there continues it. One that resumes from a checkpoint elsewhere, of which the Trainer
    tells callbacks nothing, begins a new series and says so: copy the checkpoint into `output_dir`.

    Each `train()` is a series of its own, also after one that Ctrl-C or an exception has ended, or that the Trainer
    begins anew with a smaller batch (`auto_find_batch_size`): in one W&B run the second has the keys `rwc_2/...`.

    DeepSpeed's ZeRO-1 and ZeRO-2 leave whole weights on every rank. The callback measures these after each step of the
    Trainer: all that `layers` finds in the model, as the model holds them (in bf16, say), and 0 where DeepSpeed skips
    a step. Weights that `watch` refuses, those of ZeRO-3 for one, get a warning and are not measured.

    Args:
        options: `watch`'s keyword arguments.

    Attributes:
        monitor: the monitor of the last training; None before, and where a warning has said that the weights cannot be
            measured.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.monitor: Monitor | None = None
        self._measures = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        # A training that an exception has ended had no `on_train_end`.
        self._close()
        # Torch tells nothing of its steps, but after each the model has the weights.
        self._measures = is_deepspeed(parts["optimizer"])
        self.monitor = begin(parts["model"], None if self._measures else parts["optimizer"], self.options)
        if self.monitor is None:
            return
        self.monitor.step = state.global_step
        if state.global_step:
            resume(self.monitor, lambda: torch.load(_folder(args, state) / _FILE, weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self._measures and self.monitor is not None and state.global_step % self.monitor.every == 0:
            self.monitor.measure(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self.monitor is None:
            return
        # On every process: where weights are sharded, each has a part of it.
        series = self.monitor.state_dict()
        if not state.is_world_process_zero:
            return
        try:
            with whole_file(_folder(args, state) / _FILE) as unfinished:
                torch.save(series, unfinished)
        except Exception as error:
            reason = described(error)
            warnings.warn(
                f"rwc_wandb could not save the series with the checkpoint of step {state.global_step}: {reason}. "
                "Training and measuring go on.",
                MonitoringStopped,
                stacklevel=2,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def _folder(args: Any, state: Any) -> Path:
    """The checkpoint of the last step; in a hyperparameter search it lies in the folder of the trial, the newest.

    Raises:
        FileNotFoundError: there is none below the Trainer's `output_dir`.
    """
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    output = Path(args.output_dir)
    found = [folder for folder in (output / name, *output.glob(f"*/{name}")) if folder.is_dir()]
    if not found:
        raise FileNotFoundError(f"there is no {name} in {output}")
    return max(found, key=lambda folder: folder.stat().st_mtime)
