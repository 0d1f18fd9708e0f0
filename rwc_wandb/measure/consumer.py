"""What a monitor hands over, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.measure.device.group import Histograms
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


class Consumer(Protocol):
    """What takes a monitor's numbers: the W&B rows, for one."""

    def row(self, window: Window) -> None: ...
    def histograms(self, histograms: Histograms) -> None: ...
    def nonfinite(self, layer: str, step: int, count: int) -> None: ...
    def close(self, history: History) -> None: ...
