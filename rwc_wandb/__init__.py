"""How much does each layer of a network learn? Relative Weight Change, step by step, in Weights & Biases."""

from rwc_wandb._version import __version__
from rwc_wandb.dropin import watch
from rwc_wandb.errors import UserError
from rwc_wandb.measure.layers import Layer, find_layers
from rwc_wandb.measure.metric import elementwise_relative_weight_change, relative_weight_change
from rwc_wandb.measure.monitor import Monitor, MonitoringStopped
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
