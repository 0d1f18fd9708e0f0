"""Lightning: `Trainer(callbacks=[RWCCallback()])`, with `lightning` or with `pytorch_lightning`.

A Trainer of either takes the callbacks of the other.
"""

from __future__ import annotations

from typing import Any

from rwc_wandb.integrations.beginning import begin, resume
from rwc_wandb.measure.monitor import Monitor

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]


class RWCCallback(Callback):
    """Calls `rwc_wandb.watch(module, optimizers, **options)` when training begins, and closes the monitor when it ends.

    Rows join those of the Trainer's `WandbLogger`, or of the active run where there is none. Checkpoints hold the
    series so far, and a training that resumes from one continues it.

    Args:
        options: `watch`'s keyword arguments.

    Attributes:
        monitor: the monitor of the last training; None before, and where a warning has said that the weights cannot be
            measured (DeepSpeed's strategies).
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.monitor: Monitor | None = None
        self._saved: dict[str, Any] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # To the end of the list: what other callbacks save at the end of the training, or at an exception, they then
        # save before the monitor closes. A new list, since Lightning goes through the old one just now.
        trainer.callbacks = [*(one for one in trainer.callbacks if one is not self), self]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Where another callback failed at an exception, Lightning did not come to ours.
        self.on_train_end(trainer, pl_module)
        options = dict(self.options)
        for logger in trainer.loggers:
            if type(logger).__name__ == "WandbLogger" and trainer.is_global_zero:
                options.setdefault("run", logger.experiment)
        if trainer.fast_dev_run:
            # Lightning leaves the loggers out, and with them the run.
            options.setdefault("run", False)
        self.monitor = begin(pl_module, trainer.optimizers, options)
        saved, self._saved = self._saved, {}
        if self.monitor is not None and saved:
            resume(self.monitor, lambda: saved)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # There is no monitor before the training begins.
        self._saved = state_dict
