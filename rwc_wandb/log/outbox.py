"""What waits to become rows of a run: means of measurements, and histograms."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.log import budget
from rwc_wandb.log.budget import VALUES_PER_HISTOGRAM, Flow

if TYPE_CHECKING:
    from wandb import Run

Row = dict[str, Any]
MOST_PENDING = 1000
"""Rows kept for a user who commits none, if they are not too many values for a minute; beyond it neighbours are
merged."""
MOST_HISTOGRAMS = 200
"""Steps whose histograms are kept for them; beyond it every second one is left out."""


@dataclass
class LayerSums:
    """Measurements up to `step`: of each layer the sum and the number of those that are not NaN."""

    step: int
    total: NDArray[np.float64]
    count: NDArray[np.int64]

    def over(self, number: int, indices: list[int]) -> LayerSums:
        """The same among `number` layers, of which ours have these `indices`."""
        total, count = np.zeros(number), np.zeros(number, np.int64)
        total[indices], count[indices] = self.total, self.count
        return LayerSums(self.step, total, count)

    def means(self) -> NDArray[np.float64]:
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)


def sums_of(steps: NDArray[np.int64], rwc: NDArray[np.float32]) -> LayerSums:
    known = ~np.isnan(rwc)
    return LayerSums(int(steps[-1]), np.where(known, rwc, 0).sum(0, dtype=np.float64), known.sum(0))


def joined(several: list[LayerSums]) -> LayerSums:
    total = np.sum([sums.total for sums in several], 0)
    return LayerSums(several[-1].step, total, np.sum([sums.count for sums in several], 0))


class Outbox:
    """Puts a monitor's rows into those that the user commits, or commits rows of its own.

    A row has one `PREFIX/step`: means join a row that holds a histogram, and a histogram one that holds means, only if
    both are of the same step. Otherwise the younger waits for the next row.

    Args:
        run: the W&B run, or a `LateRun`.
        flow: what W&B's process can take now.
        row_of: makes a row, its `PREFIX/step` included.
        values_per_row: how many values that is.
        histograms_per_row: how many histograms there are of one step.
    """

    def __init__(
        self,
        run: Run,
        flow: Flow,
        row_of: Callable[[LayerSums], Row],
        values_per_row: int,
        histograms_per_row: int,
    ) -> None:
        self.run = run
        self._flow = flow
        self._row_of = row_of
        self._values_per_row = values_per_row
        self._histograms_per_row = histograms_per_row
        self._unsent: list[LayerSums] = []
        self._histograms: list[tuple[int, Row]] = []
        """Step, and its histograms that are in no row yet."""
        self._pending: list[LayerSums] = []
        """What stands in the row that the user commits next, whose number is `_place`."""
        self._pending_histograms: tuple[int, Row] | None = None
        self._place: int | None = None
        self.committed_at = time.monotonic()
        """When the last row of ours was committed, as far as it is known."""

    def set_layers(self, indices: list[int], values_per_row: int, histograms_per_row: int) -> None:
        """Rows have more layers from here on; those so far have these `indices` among them."""
        self._values_per_row, self._histograms_per_row = values_per_row, histograms_per_row
        number = histograms_per_row // 2
        self._unsent = [sums.over(number, indices) for sums in self._unsent]
        self._pending = [sums.over(number, indices) for sums in self._pending]

    @property
    def has_means(self) -> bool:
        """Whether means wait that the run has not been given."""
        return bool(self._unsent)

    @property
    def has_rest(self) -> bool:
        """Whether `rest` has rows. It has none if the row that W&B is going to commit says it all."""
        self._follow_user()
        return bool(self._unsent or self._histograms) or len(self._pending) > 1

    def add(self, sums: LayerSums) -> None:
        self._unsent.append(sums)
        self._unsent = self._halved(self._unsent)

    def add_histograms(self, step: int, row: Row) -> None:
        self._histograms.append((step, row))
        if len(self._histograms) > MOST_HISTOGRAMS:
            del self._histograms[1::2]

    def commit(self) -> None:
        """Commit rows of our own, as far as W&B's process takes them."""
        if self._unsent and self._flow.allows(self._values_per_row):
            self.run.log(self._row_of(joined(self._unsent)))
            self._unsent, self.committed_at = [], time.monotonic()
        self.commit_histograms()

    def commit_histograms(self) -> None:
        while self._histograms and self._flow.allows(self._histograms_per_row * VALUES_PER_HISTOGRAM):
            self.run.log(self._histograms.pop(0)[1])

    def attach(self) -> None:
        """Put what waits into the user's next row, as far as W&B's process takes it."""
        self.attach_histograms()
        self._attach_means()
        self.attach_histograms()

    def attach_histograms(self) -> None:
        """Put the oldest histograms into the user's next row, unless means that are older wait for it."""
        self._follow_user()
        if not self._histograms or self._pending_histograms is not None:
            return
        step, row = self._histograms[0]
        is_free = not self._pending or [sums.step for sums in self._pending] == [step]
        is_oldest = not self._unsent or step <= self._unsent[0].step
        if is_free and is_oldest and self._flow.allows(self._histograms_per_row * VALUES_PER_HISTOGRAM):
            self._pending_histograms = self._histograms.pop(0)
            self.run.log(row, commit=False)

    def rest(self, values: int) -> list[Row]:
        """At the end of the run: what has not been committed, as rows of at most so many values in all."""
        if not self.has_rest:
            return []
        means, histograms = self._pending + self._unsent, self._histograms
        if self._pending_histograms is not None:
            histograms = [self._pending_histograms, *histograms]
        while len(means) > 2 and (len(means) > MOST_PENDING or len(means) * self._values_per_row > values):
            means = _in_pairs(means)
        left = values - len(means) * self._values_per_row
        while histograms and len(histograms) * self._histograms_per_row > left:
            histograms = histograms[1::2]
        rows: dict[int, Row] = {sums.step: self._row_of(sums) for sums in means}
        for step, row in histograms:
            rows[step] = rows.get(step, {}) | row
        return [rows[step] for step in sorted(rows)]

    def _attach_means(self) -> None:
        means, beside = self._pending + self._unsent, self._pending_histograms
        if not self._unsent or (beside is not None and [sums.step for sums in means] != [beside[0]]):
            return
        if self._flow.allows(self._values_per_row):
            self._pending, self._unsent = self._halved(means), []
            self.run.log(self._row_of(joined(self._pending)), commit=False)

    def _follow_user(self) -> None:
        """Forget what the user has committed since."""
        # What the client counts; `run.step` would ask its process, which may be busy for seconds.
        place = getattr(self.run, "_local_step", None)
        place = self.run.step if place is None else place
        if place != self._place:
            if self._pending:
                self.committed_at = time.monotonic()
            self._place, self._pending, self._pending_histograms = place, [], None

    def _halved(self, means: list[LayerSums]) -> list[LayerSums]:
        """Half as many, where there are more than W&B takes in a minute."""
        most = min(MOST_PENDING, max(2, budget.VALUES_PER_MINUTE // self._values_per_row))
        return _in_pairs(means) if len(means) > most else means


def _in_pairs(means: list[LayerSums]) -> list[LayerSums]:
    return [joined(means[i : i + 2]) for i in range(0, len(means), 2)]
