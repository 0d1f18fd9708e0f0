"""What becomes of measurements: all go into the history, and rows of them to a log."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.device.readback import Arrived
from rwc_wandb.measure.kernels import EXACT, Statistic, errors, rates
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.file import SeriesFile
from rwc_wandb.measure.series.history import History


@dataclass
class Window:
    """The measurements since the last row.

    Attributes:
        steps: int64 [n], the optimizer steps.
        rwc, rwc_elementwise: float32 [n, L].
        rwc_error: float32 [n, L], as in `History`. One sample is behind all of a window, so its errors are alike: that
            of the mean of `rwc` is at most their mean.
    """

    steps: NDArray[np.int64]
    rwc: NDArray[np.float32]
    rwc_elementwise: NDArray[np.float32]
    rwc_error: NDArray[np.float32]


class MonitoringStopped(UserWarning):
    """Something failed while measuring or logging: training goes on without it."""


def described(error: Exception) -> str:
    """The error in the middle of a sentence."""
    return f"{type(error).__name__}: {error}".rstrip(": .")


class Delivery:
    """Keeps every measurement in `history` and in `file`, if there is one. A subclass logs them: it fills in the
    `log_...` methods, which do nothing here. When one of them fails, logging ends and measuring goes on.

    Attributes:
        history: every measurement so far.
        rows_until: how many of them have been in a row.
        alerted: whether `log_nonfinite` was called: it is once.
        file: where the history is saved as it grows; None: nowhere.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.history = _history_of(layers)
        self.rows_until = 0
        self.alerted = False
        self.file: SeriesFile | None = None
        self._is_logging = True

    def log_row(self, window: Window) -> None:
        """One row is due."""

    def log_progress(self) -> None:
        """Measurements have arrived, whether or not a row is due."""

    def log_histograms(self, histograms: Histograms) -> None: ...
    def log_nonfinite(self, layer: str, step: int, count: int) -> None: ...

    def reason_of(self, error: Exception) -> str:
        """Why logging ends, in the words of a warning."""
        return described(error)

    def log_end(self) -> None:
        """Nothing comes after this."""

    def take_in(self, arrived: Arrived) -> None:
        rwc, rwc_elementwise = rates(arrived.statistics)
        rwc_error = errors(arrived.statistics).numpy() if arrived.statistics.shape[-1] > EXACT else None
        self.history.append(arrived.steps, rwc.numpy(), rwc_elementwise.numpy(), rwc_error)
        nonfinite = arrived.statistics[..., Statistic.NONFINITE].numpy()
        if not self.alerted and nonfinite.any():
            slot, index = np.argwhere(nonfinite)[0].tolist()
            self.alerted = True
            layer, count = self.history.layers[index], int(nonfinite[slot, index])
            self._log(partial(self.log_nonfinite, layer, arrived.steps[slot], count))
        if arrived.ends_row:
            self.end_row()
        self._log(self.log_progress)
        if self.file is not None:
            self.file.keep(self.history)

    def take_histograms(self, histograms: Histograms) -> None:
        self._log(partial(self.log_histograms, histograms))

    def end_row(self) -> None:
        """Log what has not been in a row yet."""
        since, self.rows_until = self.rows_until, len(self.history)
        if since < self.rows_until:
            history = self.history
            rates_since = (history.rwc[since:], history.rwc_elementwise[since:], history.rwc_error[since:])
            window = Window(history.steps[since:], *rates_since)
            self._log(partial(self.log_row, window))

    def end(self) -> None:
        """Save the file and log what remains.

        Raises:
            OSError: the file cannot be written.
        """
        unwritten: OSError | None = None
        try:
            if self.file is not None:
                self.file.finish(self.history)
        except OSError as error:
            unwritten = error
        # A full disk is said once.
        self._log(self.log_end, silently=unwritten is not None)
        if unwritten is not None:
            raise unwritten

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

    def _log(self, action: Callable[[], None], silently: bool = False) -> None:
        if not self._is_logging:
            return
        try:
            action()
        except Exception as error:
            self._is_logging = False
            if silently:
                return
            step = self.history.steps[-1] if len(self.history) else 0
            reason = self.reason_of(error)
            kept = f"monitor.history and {self.file.path} have" if self.file is not None else "monitor.history has"
            warnings.warn(
                f"rwc_wandb stopped logging at optimizer step {step}: {reason}. Training and measuring go on; {kept} "
                "every measurement.",
                MonitoringStopped,
                stacklevel=2,
            )


def _history_of(layers: Sequence[Layer]) -> History:
    return History(
        [layer.name for layer in layers],
        [layer.stage for layer in layers],
        [layer.size for layer in layers],
        roles=[layer.role for layer in layers],
        blocks=[layer.block for layer in layers],
        kinds=[layer.kind for layer in layers],
    )
