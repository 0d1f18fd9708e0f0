"""How callbacks begin: what cannot be measured, or not be continued, they say, and training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from rwc_wandb.dropin import watch
from rwc_wandb.errors import UserError
from rwc_wandb.measure.delivery import MonitoringStopped, described
from rwc_wandb.measure.monitor import Monitor


def begin(model: Any, optimizer: Any, options: dict[str, Any]) -> Monitor | None:
    """`watch(model, optimizer, **options)`; or None with a warning, where the weights cannot be measured.

    Raises:
        ValueError, TypeError, wandb.Error: as `watch` does, for `options`.
    """
    try:
        return watch(model, optimizer, **options)
    except UserError as error:
        reason = str(error).rstrip(".")
        warnings.warn(
            f"rwc_wandb measures nothing in this training: {reason}. Training goes on.",
            MonitoringStopped,
            stacklevel=3,
        )
        return None


def resume(monitor: Monitor, read: Callable[[], dict[str, Any]]) -> None:
    """Continue the series that `read` returns, or warn and begin a new one."""
    try:
        monitor.load_state_dict(read())
    except Exception as error:
        reason = described(error)
        warnings.warn(
            f"rwc_wandb begins a new series at optimizer step {monitor.step}, the checkpoint's cannot be continued: "
            f"{reason}. Training goes on.",
            MonitoringStopped,
            stacklevel=3,
        )
