"""What becomes of measurements: all go into the history, and rows of them to a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.device.readback import Arrived
from rwc_wandb.measure.kernels import Statistic, rates
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.history import History


@dataclass
class Window:
    """The measurements since the last row.

    Attributes:
        steps: int64 [n], the optimizer steps.
        rwc, rwc_elementwise: float32 [n, L].
    """

    steps: NDArray[np.int64]
    rwc: NDArray[np.float32]
    rwc_elementwise: NDArray[np.float32]


class Delivery:
    """Keeps every measurement in `history`. A subclass logs them: it fills in the `log_...` methods, which do nothing
    here.

    Attributes:
        history: every measurement so far.
        rows_until: how many of them have been in a row.
        alerted: whether `log_nonfinite` was called: it is once.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.history = _history_of(layers)
        self.rows_until = 0
        self.alerted = False

    def log_row(self, window: Window) -> None: ...
    def log_histograms(self, histograms: Histograms) -> None: ...
    def log_nonfinite(self, layer: str, step: int, count: int) -> None: ...
    def log_end(self) -> None:
        """Nothing comes after this."""

    def take_in(self, arrived: Arrived) -> None:
        rwc, rwc_elementwise = rates(arrived.statistics)
        self.history.append(arrived.steps, rwc.numpy(), rwc_elementwise.numpy())
        nonfinite = arrived.statistics[..., Statistic.NONFINITE].numpy()
        if not self.alerted and nonfinite.any():
            slot, index = np.argwhere(nonfinite)[0].tolist()
            self.alerted = True
            self.log_nonfinite(self.history.layers[index], arrived.steps[slot], int(nonfinite[slot, index]))
        if arrived.ends_row:
            self.end_row()

    def end_row(self) -> None:
        """Log what has not been in a row yet."""
        since, self.rows_until = self.rows_until, len(self.history)
        if since < self.rows_until:
            history = self.history
            self.log_row(Window(history.steps[since:], history.rwc[since:], history.rwc_elementwise[since:]))

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """Further layers are measured from here on; `layers` are all."""
        self.history.take_on(_history_of(layers))

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps, beside the history."""
        return {"rows_until": self.rows_until, "alerted": self.alerted}

    def resume(self, history: History, counters: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history = history
        self.rows_until, self.alerted = counters["rows_until"], counters["alerted"]


def _history_of(layers: Sequence[Layer]) -> History:
    return History(
        [layer.name for layer in layers],
        [layer.stage for layer in layers],
        [layer.size for layer in layers],
        roles=[layer.role for layer in layers],
        blocks=[layer.block for layer in layers],
        kinds=[layer.kind for layer in layers],
    )
