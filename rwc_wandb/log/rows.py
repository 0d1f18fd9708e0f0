"""Rows of a W&B run: what a monitor measured, under keys that the charts read."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import wandb
from numpy.typing import NDArray

from rwc_wandb.log.charts import log_charts
from rwc_wandb.log.summary import summary_of
from rwc_wandb.measure.history import History
from rwc_wandb.measure.monitor import Window
from rwc_wandb.measure.window import Histograms

if TYPE_CHECKING:
    from wandb import Run

RowMode = Literal["attached", "own"]
VALUES_PER_MINUTE = 100_000
"""W&B's advice per run. Faster measurements are merged: the mean of a row then covers more of them."""


class RunRows:
    """A monitor's consumer that logs to `run`.

    | key | meaning |
    |---|---|
    | `rwc/<layer>` | mean RWC of the layer over the measurements since the last row; `/` stands for `.` in the name |
    | `rwc_stage/<stage>` | the mean over the stage's layers |
    | `rwc/step` | the optimizer step: the x axis of all of these |
    | `hist/weight/<layer>`, `hist/update/<layer>` | histograms of w_t and of w_t - w_{t-1} |

    With another prefix than `rwc` the keys start with PREFIX/, PREFIX_stage/ and PREFIX_hist/.

    `rows="attached"` puts the values into the row that the user commits next (`commit=False`): their step counter never
    moves. While they have not committed, a new row replaces ours and its mean covers both. `rows="own"` commits.
    """

    def __init__(
        self, run: Run, layers: list[str], stages: list[str], prefix: str = "rwc", rows: RowMode = "attached"
    ) -> None:
        self.run = run
        self.prefix = prefix
        self.rows = rows
        self._stages = stages
        self._keys = [f"{prefix}/{slashed(name)}" for name in layers]
        self._stage_keys = [f"{prefix}_stage/{stage}" for stage in dict.fromkeys(stages)]
        histograms = "hist" if prefix == "rwc" else f"{prefix}_hist"
        self._histogram_keys = [
            [f"{histograms}/{kind}/{slashed(name)}" for name in layers] for kind in ("weight", "update")
        ]
        self._total = np.zeros(len(layers))
        self._count = np.zeros(len(layers), np.int64)
        self._attached_to: int | None = None
        self._held: list[tuple[int, NDArray[np.float64]]] = []
        self._allowance = float(VALUES_PER_MINUTE)
        self._refilled = time.monotonic()
        run.define_metric(f"{prefix}/step", hidden=True)
        for group in (prefix, f"{prefix}_stage", histograms):
            run.define_metric(f"{group}/*", step_metric=f"{prefix}/step")

    def row(self, window: Window) -> None:
        if self.rows == "attached" and (place := self.run.step) != self._attached_to:
            self._start_anew()
            self._attached_to = place
        known = ~np.isnan(window.rwc)
        self._total += np.where(known, window.rwc, 0).sum(0, dtype=np.float64)
        self._count += known.sum(0)
        self._held.append((int(window.steps[-1]), _mean(window.rwc)))
        if self._within_budget():
            self._send()

    def histograms(self, histograms: Histograms) -> None:
        row: dict[str, Any] = {f"{self.prefix}/step": histograms.step}
        for keys, counts, ranges in zip(self._histogram_keys, histograms.counts, histograms.ranges, strict=True):
            edges = np.linspace(ranges[:, 0].numpy(), ranges[:, 1].numpy(), counts.shape[1] + 1, axis=1)
            for key, count, edge in zip(keys, counts.tolist(), edges.tolist(), strict=True):
                row[key] = wandb.Histogram(np_histogram=(count, edge))
        self.run.log(row, commit=self.rows == "own")

    def nonfinite(self, layer: str, step: int, count: int) -> None:
        text = f"{count} weights of layer {layer} are NaN or infinite after optimizer step {step}."
        warnings.warn(f"rwc_wandb: {text}", stacklevel=2)
        self.run.alert(title="Non-finite weights", text=text, level="ERROR")

    def close(self, history: History) -> None:
        if self._held:
            self._send()
        self.run.summary.update(summary_of(history, self.prefix))
        path = Path(self.run.dir) / f"{self.prefix}.safetensors"
        history.save(path)
        self.run.save(path, base_path=self.run.dir, policy="now")
        log_charts(self.run, history, self.prefix)

    def finish(self) -> None:
        """The run ends: nobody's step counter can be disturbed any more.

        If the user has not committed a row since ours, all the windows that the pending one stands for become rows.
        """
        if len(self._held) > 1 and self.run.step == self._attached_to:
            for step, means in self._held:
                self.run.log(self._values(step, means))

    def _send(self) -> None:
        values = self._values(self._held[-1][0], _quotient(self._total, self._count))
        self.run.log(values, commit=self.rows == "own")
        if self.rows == "own":
            self._start_anew()

    def _values(self, step: int, means: NDArray[np.float64]) -> dict[str, float]:
        stages = np.array(self._stages)
        values = dict(zip(self._keys, means.tolist(), strict=True))
        for key, stage in zip(self._stage_keys, dict.fromkeys(self._stages), strict=True):
            values[key] = float(_mean(means[stages == stage]))
        values[f"{self.prefix}/step"] = step
        return values

    def _start_anew(self) -> None:
        self._total[:] = 0
        self._count[:] = 0
        self._held = []

    def _within_budget(self) -> bool:
        now = time.monotonic()
        earned = (now - self._refilled) / 60 * VALUES_PER_MINUTE
        self._allowance = min(float(VALUES_PER_MINUTE), self._allowance + earned)
        self._refilled = now
        cost = len(self._keys) + len(self._stage_keys) + 1
        if self._allowance < min(cost, VALUES_PER_MINUTE):
            return False
        self._allowance -= cost
        return True


def slashed(layer: str) -> str:
    """W&B loses settings of keys with dots in them: layer names are written with `/`."""
    return layer.replace(".", "/")


def _mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean over the first axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _quotient(np.where(known, values, 0).sum(0, dtype=np.float64), known.sum(0))


def _quotient(total: NDArray[np.float64], count: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
