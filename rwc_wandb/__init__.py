"""How much does each layer of a network learn? Relative Weight Change, step by step, in Weights & Biases."""

from __future__ import annotations

from typing import Any

from rwc_wandb._version import __version__
from rwc_wandb.dropin import watch
from rwc_wandb.errors import UserError
from rwc_wandb.measure.delivery import MonitoringStopped
from rwc_wandb.measure.layers import Layer, find_layers
from rwc_wandb.measure.metric import elementwise_relative_weight_change, relative_weight_change
from rwc_wandb.measure.monitor import Monitor
from rwc_wandb.measure.series.history import History, HistoryError

__all__ = [
    "History",
    "HistoryError",
    "Layer",
    "Monitor",
    "MonitoringStopped",
    "UserError",
    "__version__",
    "elementwise_relative_weight_change",
    "find_layers",
    "relative_weight_change",
    "watch",
]


def _shown_in_a_notebook(shown: History | Monitor, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    from rwc_wandb.view.notebook import mime_bundle

    return mime_bundle(repr(shown), shown if isinstance(shown, History) else shown.history)


def _findings(monitor: Monitor) -> list[str]:
    """What stands out in `history`, in sentences, the most important first; [] where nothing does."""
    from rwc_wandb.view.findings import findings_of

    return findings_of(monitor.history)


# Measuring knows nothing of pictures; the room that draws them is imported when a notebook asks for the first one.
History._repr_mimebundle_ = Monitor._repr_mimebundle_ = _shown_in_a_notebook
Monitor.findings = _findings
