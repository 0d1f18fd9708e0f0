"""How callbacks resume: where a series cannot be continued they say so, and training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from rwc_wandb.measure.delivery import MonitoringStopped
from rwc_wandb.measure.monitor import Monitor


def resume(monitor: Monitor, read: Callable[[], dict[str, Any]]) -> None:
    """Continue the series that `read` returns, or warn and begin a new one."""
    try:
        monitor.load_state_dict(read())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        warnings.warn(
            f"rwc_wandb begins a new series at optimizer step {monitor.step}, the checkpoint's cannot be continued: "
            f"{reason}. Training goes on.",
            MonitoringStopped,
            stacklevel=3,
        )
