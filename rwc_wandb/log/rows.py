"""Rows of a W&B run: what a monitor measured, under keys that the charts read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import wandb
from numpy.typing import NDArray

from rwc_wandb.log import budget
from rwc_wandb.log.alerts import Alerts
from rwc_wandb.log.charts import log_charts
from rwc_wandb.log.summary import summary_of
from rwc_wandb.log.watched_run import watched
from rwc_wandb.measure.delivery import Delivery, Window
from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.history import file_of, mean_of_moving

if TYPE_CHECKING:
    from wandb import Run

    from rwc_wandb.measure.monitor import Monitor

RowMode = Literal["attached", "own"]
MOST_PENDING = 1000
"""Rows kept for a user who commits no rows, if they are not too many values for a minute; beyond it neighbours are
merged."""


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


def _joined(several: list[LayerSums]) -> LayerSums:
    total = np.sum([sums.total for sums in several], 0)
    return LayerSums(several[-1].step, total, np.sum([sums.count for sums in several], 0))


class RunRows(Delivery):
    """Logs a monitor's measurements to `run`.

    | key | meaning |
    |---|---|
    | `rwc/<layer>` | mean RWC of the layer over the measurements since the last row; `/` stands for `.` in the name |
    | `rwc_stage/<stage>` | the mean over the stage's layers that moved: frozen ones do not count |
    | `rwc/step` | the optimizer step: the x axis of all of these |
    | `hist/weight/<layer>`, `hist/update/<layer>` | histograms of w_t and of w_t - w_{t-1} |

    With another prefix than `rwc` the keys start with PREFIX/, PREFIX_stage/ and PREFIX_hist/. What would go beyond the
    run's `Budget` waits, and is in the mean of a later row; histograms are left out.

    `rows="attached"` puts the values into the row that the user commits next (`commit=False`): their step counter never
    moves. While they have not committed, a new row replaces ours and its mean covers both. `rows="own"` commits.
    """

    def __init__(
        self,
        run: Run,
        layers: Sequence[Layer],
        prefix: str = "rwc",
        rows: RowMode = "attached",
        alert_above: float | None = None,
        alert_below: float | None = None,
    ) -> None:
        super().__init__(layers)
        self.run = run
        self.prefix = prefix
        # A run that several processes share has no step counter to disturb, and does not tell its step either.
        self.rows: RowMode = "own" if run.settings.mode == "shared" else rows
        self._alerts = Alerts(run, self.history.layers, alert_above, alert_below)
        self._histogram_prefix = "hist" if prefix == "rwc" else f"{prefix}_hist"
        self._name_keys()
        self._unsent: list[LayerSums] = []
        """What waits for the budget."""
        self._pending: list[LayerSums] = []
        """What stands in the row that the user commits next, at step `_pending_step`."""
        self._pending_step = 0
        self._watched = watched(run)
        run.define_metric(f"{prefix}/step", hidden=True)
        # W&B makes a panel for every key that is not hidden: 54 layers would be 54 panels. The charts show them.
        run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step", hidden=True)
        for group in (f"{prefix}_stage", self._histogram_prefix):
            run.define_metric(f"{group}/*", step_metric=f"{prefix}/step")

    def _name_keys(self) -> None:
        prefix, names, stages = self.prefix, self.history.layers, self.history.stages
        self._keys = [f"{prefix}/{slashed(name)}" for name in names]
        distinct = list(dict.fromkeys(stages))
        self._stage_keys = [f"{prefix}_stage/{stage}" for stage in distinct]
        self._stage_indices = [[i for i, stage in enumerate(stages) if stage == one] for one in distinct]
        self._histogram_keys = [
            [f"{self._histogram_prefix}/{kind}/{slashed(name)}" for name in names] for kind in ("weight", "update")
        ]
        self._values_per_row = len(self._keys) + len(self._stage_keys) + 1

    def set_layers(self, layers: Sequence[Layer]) -> None:
        known = self.history.layers
        super().set_layers(layers)
        indices = [self.history.layers.index(name) for name in known]
        self._unsent = [sums.over(len(layers), indices) for sums in self._unsent]
        self._pending = [sums.over(len(layers), indices) for sums in self._pending]
        self._alerts.set_layers(self.history.layers, indices)
        self._name_keys()

    def close_with_run(self, monitor: Monitor) -> None:
        """Close the monitor when the run finishes, or else when the interpreter ends."""
        self._watched.close_at_end(monitor, self, self._uncommitted)

    def log_row(self, window: Window) -> None:
        known = ~np.isnan(window.rwc)
        total = np.where(known, window.rwc, 0).sum(0, dtype=np.float64)
        self._alerts.look_at(window)
        self._unsent.append(LayerSums(int(window.steps[-1]), total, known.sum(0)))
        if self._watched.budget.allows(self._values_per_row):
            self._send()

    def log_histograms(self, histograms: Histograms) -> None:
        if not self._watched.budget.allows(2 * len(self._keys)):
            return
        row: dict[str, Any] = {f"{self.prefix}/step": histograms.step}
        for keys, counts, ranges in zip(self._histogram_keys, histograms.counts, histograms.ranges, strict=True):
            edges = np.linspace(ranges[:, 0].numpy(), ranges[:, 1].numpy(), counts.shape[1] + 1, axis=1)
            for key, count, edge in zip(keys, counts.tolist(), edges.tolist(), strict=True):
                row[key] = wandb.Histogram(np_histogram=(count, edge))
        self.run.log(row, commit=self.rows == "own")

    def log_nonfinite(self, layer: str, step: int, count: int) -> None:
        self._alerts.nonfinite(layer, step, count)

    def log_end(self) -> None:
        self._watched.monitors.pop(self, None)
        if self.run.disabled:
            return
        if self._unsent:
            self._send()
        self.run.summary.update(summary_of(self.history, self.prefix))
        path = Path(self.run.dir) / file_of(self.prefix)
        self.history.save(path)
        self.run.save(path, base_path=self.run.dir, policy="now")
        log_charts(self.run, self.history, self.prefix)

    def _uncommitted(self) -> list[dict[str, float]]:
        """Several rows of ours that stand together in one that the user has not committed, each as it was."""
        is_joined = len(self._pending) > 1 and self.run.step == self._pending_step
        return [self._values(sums) for sums in self._pending] if is_joined else []

    def _send(self) -> None:
        if self.rows == "own":
            self.run.log(self._values(_joined(self._unsent)))
        else:
            place = self.run.step
            if place != self._pending_step:
                self._pending, self._pending_step = [], place
            self._pending += self._unsent
            if len(self._pending) > min(MOST_PENDING, max(2, budget.VALUES_PER_MINUTE // self._values_per_row)):
                self._pending = [_joined(self._pending[i : i + 2]) for i in range(0, len(self._pending), 2)]
            self.run.log(self._values(_joined(self._pending)), commit=False)
        self._unsent = []

    def _values(self, sums: LayerSums) -> dict[str, float]:
        means = sums.means()
        values = dict(zip(self._keys, means.tolist(), strict=True))
        for key, indices in zip(self._stage_keys, self._stage_indices, strict=True):
            values[key] = float(mean_of_moving(means[indices]))
        values[f"{self.prefix}/step"] = sums.step
        return values


def slashed(layer: str) -> str:
    """W&B loses settings of keys with dots in them: layer names are written with `/`."""
    return layer.replace(".", "/")
