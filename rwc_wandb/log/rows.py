"""Rows of a W&B run: what a monitor measured, under keys that the charts read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import wandb

from rwc_wandb.log.alerts import Alerts
from rwc_wandb.log.budget import VALUES_PER_HISTOGRAM, cause_of
from rwc_wandb.log.charts import LiveCharts, log_charts
from rwc_wandb.log.keys import define_axes, histogram_prefix, slashed
from rwc_wandb.log.outbox import LayerSums, Outbox, Row, sums_of
from rwc_wandb.log.runs.watched_run import watched
from rwc_wandb.log.summary import findings_text, summary_of
from rwc_wandb.measure.delivery import Delivery, Window
from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.device.readback import Arrived
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.file import SeriesFile
from rwc_wandb.measure.series.histograms_file import HistogramsFile
from rwc_wandb.measure.series.history import History, file_of
from rwc_wandb.measure.series.trends import mean_of_moving

if TYPE_CHECKING:
    from wandb import Run

    from rwc_wandb.measure.monitor import Monitor

RowMode = Literal["attached", "own"]
LIVE_SECONDS = 30.0
"""Where no row of ours was committed for so long, the run's summary shows what was measured last."""


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
    moves. While they have not committed, a new row replaces ours and its mean covers both; every 30 s the summary has
    the means of the last 50 measurements; and when the run ends, each becomes a row. `rows="own"` commits, and in a run
    that is ours (`LateRun`) rows always do. PREFIX.safetensors in the run's folder has the series up to a minute ago,
    PREFIX_histograms.jsonl every histogram.
    `PREFIX_estimated` in the run's configuration says which values are estimates (`watch(sample=...)`).
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
        self._watched = watched(run)
        self.prefix = prefix = self._watched.free_prefix(prefix)
        # A run that several processes share has no step counter to disturb, and does not tell its step either.
        self._rows: RowMode = "own" if run.settings.mode == "shared" else rows
        # Not the layers: a run that goes on would keep their weights in memory.
        self._samples = [layer.sample for layer in layers]
        self._alerts = Alerts(run, self.history.layers, alert_above, alert_below)
        self._histogram_prefix = histogram_prefix(prefix)
        self._name_keys()
        self._outbox = Outbox(run, self._watched.row_flow, self._row_of, self._values_per_row, 2 * len(self._keys))
        self._histograms_file: HistogramsFile | None = None
        self._takes_rest = False  # Rows that wait follow at the end even where charts fail.
        self._sent_until = 0
        """How many measurements have been in a row that the run was given."""
        self._shown_at = time.monotonic()
        self._live = LiveCharts(run, prefix)
        define_axes(run, prefix)
        # W&B's client imports pandas, where that is installed, at its first histogram: 0.6 s and more, not in a step.
        with suppress(Exception):
            wandb.util.is_pandas_data_frame(None)

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
        self._samples = [layer.sample for layer in layers]
        if self.file is not None:
            self._note_estimates()
        self._alerts.set_layers(self.history.layers, indices)
        self._name_keys()
        self._outbox.set_layers(indices, self._values_per_row, 2 * len(self._keys))

    def close_with_run(self, monitor: Monitor) -> None:
        """Close the monitor when the run finishes, or else when the interpreter ends."""
        self._watched.close_at_end(monitor, self, self.prefix, self._rest)

    def take_in(self, arrived: Arrived) -> None:
        # Before a row: one that fails ends logging, and not the file.
        self._log(self._open_file)
        super().take_in(arrived)

    def log_row(self, window: Window) -> None:
        self._alerts.look_at(window)
        self._outbox.add(sums_of(window.steps, window.rwc))
        # After a stop there is no later row to wait for.
        if self._watched.is_stopped or self._watched.budget.allows(self._values_per_row):
            self._send()

    def log_histograms(self, histograms: Histograms) -> None:
        self._open_file()
        if self._histograms_file is not None:
            self._histograms_file.append(self.history.layers, histograms)
        if not self._watched.budget.allows(2 * len(self._keys)):
            return
        row: dict[str, Any] = {f"{self.prefix}/step": histograms.step}
        for keys, counts, ranges in zip(self._histogram_keys, histograms.counts, histograms.ranges, strict=True):
            edges = np.linspace(ranges[:, 0].numpy(), ranges[:, 1].numpy(), counts.shape[1] + 1, axis=1)
            for key, count, edge in zip(keys, counts.tolist(), edges.tolist(), strict=True):
                row[key] = wandb.Histogram(np_histogram=(count, edge))
        self._outbox.add_histograms(histograms.step, row)
        if self._has_own_rows():
            self._outbox.commit_histograms()
        else:
            self._outbox.attach_histograms()

    def log_nonfinite(self, layer: str, step: int, count: int) -> None:
        self._alerts.nonfinite(layer, step, count)

    def log_progress(self) -> None:
        now = time.monotonic()
        if now - max(self._shown_at, self._outbox.committed_at) > LIVE_SECONDS and len(self.history):
            # Even if W&B's process cannot take it: it was tried.
            self._shown_at = now
            if self._watched.flow.allows(self._values_per_row):
                last = sums_of(self.history.steps[-50:], self.history.rwc[-50:])
                self.run.summary.update(self._row_of(last))
        is_due = self._live.is_due() and len(self.history) and not self.run.disabled
        if is_due and self._watched.flow.allows(3 * VALUES_PER_HISTOGRAM):  # Tables go as files.
            self._live.renew(self.history)

    def end(self) -> None:
        self._watched.monitors.pop(self, None)
        self._log(self._open_file)
        if self._histograms_file is not None:
            self._histograms_file.finish()
        try:
            super().end()
        finally:
            if not (self._takes_rest and self._outbox.has_rest):
                self._watched.forget_rest(self)

    def counters(self) -> dict[str, Any]:
        # What waits is in a row of the training that goes on from the checkpoint.
        return super().counters() | {"rows_until": self._sent_until}

    def resume(self, history: History, counters: dict[str, Any]) -> None:
        super().resume(history, counters)
        self._sent_until = self.rows_until

    def log_end(self) -> None:
        if self.file is None:
            return
        seconds = self._watched.seconds_to_answer
        self._live.end(seconds)
        if not self._watched.row_flow.wait(seconds):
            raise TimeoutError(f"W&B's process has not answered for {seconds:g} s")
        self._send()
        self._takes_rest = True
        log_whole(self.run, self.history, self.file.path, self.prefix, with_charts=not self._watched.is_stopped)

    def reason_of(self, error: Exception) -> str:
        return cause_of(error)

    def _rest(self, values: int) -> list[Row]:
        return self._outbox.rest(values) if self._takes_rest else []

    def _open_file(self) -> None:
        if self.file is None and not self.run.disabled:
            self.file = SeriesFile(Path(self.run.dir) / file_of(self.prefix))
            self._histograms_file = HistogramsFile(Path(self.run.dir) / f"{self.prefix}_histograms.jsonl")
            self._note_estimates()

    def _note_estimates(self) -> None:
        """What the run's configuration says of values that are estimates, if any are."""
        samples = [sample for sample in self._samples if sample is not None]
        if samples:
            sizes = sorted(set(samples))
            note = {
                "layers": len(samples),
                "of_layers": len(self._samples),
                "weights_of_each": sizes[0] if len(sizes) == 1 else sizes,
                "standard_errors": f"rwc_error in {file_of(self.prefix)}",
            }
            self.run.config.update({f"{self.prefix}_estimated": note}, allow_val_change=True)

    def _has_own_rows(self) -> bool:
        # A `LateRun` is decided when it is asked something that only a run knows.
        return self._rows == "own" or (not self.run.disabled and getattr(self.run, "is_ours", False))

    def _send(self) -> None:
        if self._has_own_rows():
            self._outbox.commit()
        else:
            self._outbox.attach()
        if not self._outbox.has_means:
            self._sent_until = self.rows_until

    def _row_of(self, sums: LayerSums) -> Row:
        means = sums.means()
        row: Row = dict(zip(self._keys, means.tolist(), strict=True))
        for key, indices in zip(self._stage_keys, self._stage_indices, strict=True):
            row[key] = float(mean_of_moving(means[indices]))
        row[f"{self.prefix}/step"] = sums.step
        return row


def log_whole(run: Run, history: History, path: Path, prefix: str = "rwc", with_charts: bool = True) -> None:
    """Log what tells of a whole run: summary, the series' file, which is at `path` in the run's folder, and charts."""
    run.summary.update(summary_of(history, prefix) | findings_text(history, prefix))
    if path.is_file():
        run.save(path, base_path=run.dir, policy="now")
    if with_charts:
        log_charts(run, history, prefix)
