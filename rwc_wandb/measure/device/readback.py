"""How measurements come to the host and are added up over ranks; no step waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.device.group import MOST_BUFFERED, DeviceGroup
from rwc_wandb.measure.device.histograms import Histograms, HistogramsUnderway
from rwc_wandb.measure.device.host_copy import HostCopy, HostMemory
from rwc_wandb.measure.distributed.ranks import Ranks, finished
from rwc_wandb.measure.kernels import Statistic

MOST_UNDERWAY = 16
"""Rows whose sums may be outstanding before we conclude that another rank has stopped measuring."""


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


@dataclass
class Arrived:
    """Measurements on the host.

    Attributes:
        steps: the optimizer steps.
        statistics: float64 [n, L, 5 or 8], columns as in `Statistic`; NaN where a layer jumped.
        skipped: how many of the optimizer's calls turned out to have been skipped.
        ends_row: whether a row is due.
    """

    steps: list[int]
    statistics: Tensor
    skipped: int
    ends_row: bool


class _Part:
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
class _Batch:
    """Parts that are handed on together, and whether they end a row."""

    parts: list[_Part]
    ends_row: bool
    packed: Tensor | None = None
    work: Any = None


class ReadBack:
    """Takes measurements from device to host, in order; all ranks' where there are several.

    Args:
        shape: the numbers of layers, L, and of columns of `Statistic`.
        deliver: called with the measurements that have arrived.
        deliver_histograms: called with the histograms of a step.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        ranks: Ranks | None,
        deliver: Callable[[Arrived], None],
        deliver_histograms: Callable[[Histograms], None],
    ) -> None:
        self._shape = shape
        self._ranks = ranks
        self._deliver = deliver
        self._deliver_histograms = deliver_histograms
        self._memory = HostMemory()
        self._taken: list[Measurement] = []
        self._with_histograms: list[Measurement] = []
        self._parts: list[_Part] = []
        self._underway: deque[_Batch] = deque()

    @property
    def slot(self) -> int:
        """The index in the groups' buffers for the next measurement."""
        return len(self._taken)

    @property
    def is_idle(self) -> bool:
        return not self._underway and not self._with_histograms

    def take(self, measurement: Measurement, groups: Sequence[DeviceGroup]) -> None:
        """Note a measurement that these groups have made in `slot`."""
        self._taken.append(measurement)
        if measurement.histograms is not None:
            self._with_histograms.append(measurement)
        if self.slot == MOST_BUFFERED:
            self.leave(groups)

    def leave(self, groups: Sequence[DeviceGroup]) -> None:
        """Start copying what is in these groups' buffers; the next measurement may go to their first slot."""
        if self._taken:
            self._parts.append(_Part(self._taken, groups, self._shape, self._memory))
            self._taken = []

    def send(self, groups: Sequence[DeviceGroup], ends_row: bool) -> None:
        """Send all measurements so far to the host."""
        self.leave(groups)
        if self._parts or ends_row:
            self._underway.append(_Batch(self._parts, ends_row))
            self._parts = []
        if len(self._underway) > MOST_UNDERWAY:
            raise RuntimeError("other ranks have stopped measuring")

    def advance(self, wait: bool = False) -> None:
        """Deliver what has arrived; all that was sent with `wait`."""
        self._advance_rows(wait)
        if self._with_histograms:
            self._advance_histograms(wait)

    def _advance_rows(self, wait: bool) -> None:
        for batch in list(self._underway):
            if batch.packed is None and batch.parts:
                if not wait and not all(part.arrived() for part in batch.parts):
                    break
                batch.packed = torch.from_numpy(np.concatenate([part.packed() for part in batch.parts]))
                if self._ranks is not None:
                    batch.work = self._ranks.sum(batch.packed)
        while self._underway:
            batch = self._underway[0]
            if batch.parts and batch.packed is None:
                return
            timeout = self._ranks.patience() if self._ranks and wait else None
            if batch.work is not None and not finished(batch.work, timeout):
                return
            self._underway.popleft()
            self._deliver(self._unpacked(batch))

    def _advance_histograms(self, wait: bool) -> None:
        underway = [measurement for part in self._parts_underway() for measurement in part.measurements]
        # The step of a measurement is certain once the host knows which calls up to it were skipped.
        uncertain = next((one.step for one in [*underway, *self._taken] if one.skips), math.inf)
        for measurement in list(self._with_histograms):
            histograms = measurement.histograms
            if histograms is not None:
                if measurement.step >= uncertain or not (wait or histograms.arrived()):
                    return
                self._deliver_histograms(histograms.joined(measurement.step))
            self._with_histograms.remove(measurement)

    def _parts_underway(self) -> list[_Part]:
        return [part for batch in self._underway for part in batch.parts] + self._parts

    def finish(self, groups: Sequence[DeviceGroup], name: str, ends_row: bool) -> None:
        """Deliver everything taken so far; on several ranks all must come here, or UserError is raised in time."""
        self.leave(groups)
        count = sum(len(part.measurements) for part in self._parts)
        if count and self._ranks is not None:
            self._ranks.meet(name, f"with {count} measurements", self._ranks.patience())
        self.send(groups, ends_row)
        self.advance(wait=True)

    def abandon(self, groups: Sequence[DeviceGroup]) -> None:
        """After a failure: deliver what is there without other ranks."""
        if self._ranks is None:
            self.finish(groups, "close", ends_row=True)
        else:
            self.advance()

    def _unpacked(self, batch: _Batch) -> Arrived:
        if batch.packed is None:
            return Arrived([], torch.empty(0, *self._shape, dtype=torch.float64), 0, batch.ends_row)
        measurements = [measurement for part in batch.parts for measurement in part.measurements]
        statistics = batch.packed[:, :-1].unflatten(1, self._shape)
        # Every rank counts the same calls.
        counts = batch.packed[:, -1].numpy() / (self._ranks.size if self._ranks else 1)
        skips = counts.round().astype(int).tolist()
        skipped, kept, steps = 0, [], []
        for slot, (measurement, number) in enumerate(zip(measurements, skips, strict=True)):
            skipped += number
            if number == 0 or number < measurement.calls:
                kept.append(slot)
                measurement.step -= skipped
                steps.append(measurement.step)
            else:
                measurement.histograms = None
        if skipped:
            for part in self._parts_underway():
                _shift(part.measurements, skipped)
            _shift(self._taken, skipped)
        return Arrived(steps, statistics[kept] if skipped else statistics, skipped, batch.ends_row)


def _shift(measurements: list[Measurement], skipped: int) -> None:
    for measurement in measurements:
        measurement.step -= skipped
