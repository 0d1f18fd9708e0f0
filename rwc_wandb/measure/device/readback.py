"""How measurements come to the host, in order, and are added up over ranks; no step waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rwc_wandb.measure.device.batches import Batch, Measurement, Part
from rwc_wandb.measure.device.group import MOST_BUFFERED, DeviceGroup
from rwc_wandb.measure.device.histograms import Histograms, HistogramsUnderway
from rwc_wandb.measure.device.host_copy import HostMemory
from rwc_wandb.measure.distributed.ranks import Ranks

MOST_UNDERWAY = 16
"""Rows whose sums may be outstanding before we conclude that another rank has stopped measuring."""
STEPS_BETWEEN = 8
"""Optimizer steps from histograms until ranks add them up: until then rows do not wait for the bins for all."""


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
        self._parts: list[Part] = []
        self._underway: deque[Batch] = deque()
        # What ranks do together must begin in the same order on all of them: that in which it is taken and sent.
        self._unbegun: deque[Callable[[bool], bool]] = deque()
        self._unadded: deque[tuple[int, HistogramsUnderway]] = deque()
        self._calls = self._measured = 0

    @property
    def slot(self) -> int:
        """The index in the groups' buffers for the next measurement."""
        return len(self._taken)

    @property
    def is_idle(self) -> bool:
        return not (self._underway or self._with_histograms or self._unbegun)

    def take(self, measurement: Measurement, groups: Sequence[DeviceGroup]) -> None:
        """Note a measurement that these groups have made in `slot`."""
        self._taken.append(measurement)
        self._measured += 1
        self._calls += measurement.calls or STEPS_BETWEEN
        self._add_histograms(self._calls - STEPS_BETWEEN)
        if measurement.histograms is not None:
            self._with_histograms.append(measurement)
            if self._ranks is not None:
                self._unbegun.append(partial(measurement.histograms.compare, self._ranks))
                self._unadded.append((self._calls, measurement.histograms))
        if self.slot == MOST_BUFFERED:
            self.leave(groups)

    def leave(self, groups: Sequence[DeviceGroup]) -> None:
        """Start copying what is in these groups' buffers; the next measurement may go to their first slot."""
        if self._taken:
            self._parts.append(Part(self._taken, groups, self._shape, self._memory))
            self._taken = []

    def send(self, groups: Sequence[DeviceGroup], ends_row: bool) -> None:
        """Send all measurements so far to the host."""
        self.leave(groups)
        if self._parts or ends_row:
            self._underway.append(Batch(self._parts, ends_row))
            self._unbegun.append(partial(self._underway[-1].add, self._ranks))
            self._parts = []
        if len(self._underway) > MOST_UNDERWAY:
            raise RuntimeError("other ranks have stopped measuring")

    def advance(self, wait: bool = False) -> None:
        """Deliver what has arrived; all that was sent with `wait`."""
        while self._unbegun and self._unbegun[0](wait):
            self._unbegun.popleft()
        self._deliver_arrived(wait)

    def _add_histograms(self, calls: int) -> None:
        """Let ranks add up those of the first `calls` of the optimizer."""
        while self._ranks is not None and self._unadded and self._unadded[0][0] <= calls:
            self._unbegun.append(partial(self._unadded.popleft()[1].add, self._ranks))

    def _deliver_arrived(self, wait: bool) -> None:
        self._advance_rows(wait)
        if self._with_histograms:
            self._advance_histograms(wait)

    def _advance_rows(self, wait: bool) -> None:
        while self._underway and self._underway[0].arrived(self._ranks, wait):
            self._deliver(self._unpacked(self._underway.popleft()))

    def _advance_histograms(self, wait: bool) -> None:
        underway = [measurement for part in self._parts_underway() for measurement in part.measurements]
        # The step of a measurement is certain once the host knows which calls up to it were skipped.
        uncertain = next((one.step for one in [*underway, *self._taken] if one.skips), math.inf)
        for measurement in list(self._with_histograms):
            histograms = measurement.histograms
            if histograms is not None:
                if measurement.step >= uncertain or not histograms.arrived(wait):
                    return
                self._deliver_histograms(histograms.joined(measurement.step))
            self._with_histograms.remove(measurement)

    def _parts_underway(self) -> list[Part]:
        return [part for batch in self._underway for part in batch.parts] + self._parts

    def finish(self, groups: Sequence[DeviceGroup], name: str, ends_row: bool) -> None:
        """Deliver everything taken so far; on several ranks all must come here, or UserError is raised in time."""
        self.leave(groups)
        count = sum(len(part.measurements) for part in self._parts)
        if (count or self._unadded) and self._ranks is not None:
            self._ranks.meet(name, f"with {count} of {self._measured} measurements", self._ranks.patience())
        self.send(groups, ends_row)
        self._add_histograms(self._calls)
        self.advance(wait=True)

    def abandon(self, groups: Sequence[DeviceGroup]) -> None:
        """After a failure: deliver what is there without other ranks."""
        if self._ranks is None:
            self.finish(groups, "close", ends_row=True)
        else:
            self._deliver_arrived(wait=False)

    def _unpacked(self, batch: Batch) -> Arrived:
        if batch.packed is None:
            return Arrived([], torch.empty(0, *self._shape, dtype=torch.float64, device="cpu"), 0, batch.ends_row)
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
