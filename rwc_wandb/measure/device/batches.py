"""Measurements on their way from a device's buffers to the host, and the sums of several ranks' measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.device.group import DeviceGroup
from rwc_wandb.measure.device.histograms import HistogramsUnderway
from rwc_wandb.measure.device.host_copy import HostCopy, HostMemory
from rwc_wandb.measure.distributed.ranks import Ranks, finished
from rwc_wandb.measure.kernels import Statistic


@dataclass
class Measurement:
    """What the host knows of a measurement when it is taken.

    Attributes:
        step: the optimizer step, too large by the calls before it of which it is not known yet that they were skipped.
        calls: how many of them since the measurement before; 0 if no optimizer is watched.
        skips: for those that may have been skipped (a fused optimizer under GradScaler), a tensor that is not 0 if so.
        jumped: indices of the layers that have nothing to be compared with.
        histograms: those of this step, if any were made.
    """

    step: int
    calls: int = 0
    skips: list[Tensor] = field(default_factory=list)
    jumped: set[int] = field(default_factory=set)
    histograms: HistogramsUnderway | None = None


class Part:
    """Measurements on their way to the host from the buffers of one set of groups."""

    def __init__(
        self, measurements: list[Measurement], groups: Sequence[DeviceGroup], shape: tuple[int, int], memory: HostMemory
    ) -> None:
        self.measurements = measurements
        self._shape = shape
        self._statistics = [group.read(len(measurements)) for group in groups]
        skips = [skip.reshape(()) for measurement in measurements for skip in measurement.skips]
        self._skips = HostCopy([torch.stack([skip.to(skips[-1]) for skip in skips])], memory) if skips else None

    def arrived(self) -> bool:
        return all(part.arrived() for part in self._statistics) and (self._skips is None or self._skips.arrived())

    def packed(self) -> NDArray[np.float64]:
        """float64 [n, L columns + 1]: the statistics, and the number of skipped calls. Waits for what is not there."""
        # In numpy: torch would wake threads for this, which training needs.
        count = len(self.measurements)
        statistics = np.zeros((count, *self._shape))
        skipped = np.zeros((count, 1))
        for part in self._statistics:
            part.write(statistics)
        flags = iter(())
        if self._skips is not None:
            flags = iter(self._skips.wait()[0].numpy().tolist())
            self._skips.release()
        for slot, measurement in enumerate(self.measurements):
            skipped[slot] = sum(next(flags) != 0 for _ in measurement.skips)
            if measurement.jumped:
                statistics[slot, list(measurement.jumped), : Statistic.NONFINITE] = np.nan
        return np.concatenate([statistics.reshape(count, -1), skipped], 1)


@dataclass
class Batch:
    """Parts that are handed on together, and whether they end a row; added up over ranks where there are several."""

    parts: list[Part]
    ends_row: bool
    packed: Tensor | None = None
    work: Any = None

    def add(self, ranks: Ranks | None, wait: bool) -> bool:
        """Begin to add them up over ranks, once they are on the host; whether that has begun."""
        if not self.parts:
            return True
        if not (wait or all(part.arrived() for part in self.parts)):
            return False
        self.packed = torch.from_numpy(np.concatenate([part.packed() for part in self.parts]))
        if ranks is not None:
            self.work = ranks.sum(self.packed)
        return True

    def arrived(self, ranks: Ranks | None, wait: bool) -> bool:
        """Whether their sums are there.

        Raises:
            RuntimeError: with `wait`, the other ranks' parts do not come.
        """
        if ranks is None or self.work is None:
            return self.packed is not None or not self.parts
        return finished(self.work, ranks.patience() if wait else None)
