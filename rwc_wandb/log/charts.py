"""The charts of a run, in W&B: while it trains, and at its end."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import TYPE_CHECKING, Any

import wandb

from rwc_wandb.log.runs.ending import is_being_torn_down
from rwc_wandb.log.runs.late_run import LateRun
from rwc_wandb.measure.series.history import History
from rwc_wandb.threads import Worker
from rwc_wandb.view.charts import Chart, charts, registered_name
from rwc_wandb.view.series import series

if TYPE_CHECKING:
    from wandb import Run
    from wandb.plot.custom_chart import CustomChart

ENTITY_VARIABLE = "RWC_WANDB_CHARTS"
"""Environment variable: the W&B user or team who registered the charts (`rwc-wandb charts push ENTITY`)."""

_PRESETS: dict[str, dict[str, str]] = {
    "rwc_curves": {"step": "time", "lineKey": "layer", "lineVal": "rwc"},
    "rwc_stages": {"step": "time", "lineKey": "stage", "lineVal": "mean"},
}
"""Charts that W&B's built-in line series can stand in for: its field -> our column."""

SECONDS_TO_ANSWER = 5
"""What the server has, before the charts are logged without it."""

FIRST_SECONDS = 60.0
"""Before the first charts of a run; the next come when it is half as long again: 21 times in three days."""

LIVE_CHARTS = ("rwc_curves", "rwc_stages", "rwc_heatmap")
"""What is renewed. The rows of the curves are the heat map of workspaces and reports, too."""

MOST_LIVE_ROWS = 4000
"""Of a table that is renewed: 0.4 MB, so some 25 MB for all in three days."""


def log_charts(run: Run, history: History, prefix: str = "rwc", entity: str | None = None) -> None:
    """Log the charts of a whole run, as a part of the row that is committed next.

    | key | meaning |
    |---|---|
    | `rwc_charts/rwc_map`, where a role repeats | custom charts, where they are registered |
    | `rwc_charts/rwc_heatmap`, `rwc_curves`, `rwc_stages`, `rwc_profile` | custom charts, where they are registered |
    | `rwc_charts/rwc_curves`, `rwc_charts/rwc_stages` | otherwise: W&B's built-in line series of the same tables |
    | `rwc_charts/page` | otherwise, where vl-convert is installed: all of them in one HTML page |

    Where the server does not answer within 5 s, or within `wandb.teardown()`, tables are files of the run only, and no
    artifacts.

    Args:
        run: the W&B run, online or offline.
        history: every measurement of the run; thinned to what a W&B table holds.
        prefix: what keys start with.
        entity: who registered the charts (`rwc-wandb charts push ENTITY`); None: `$RWC_WANDB_CHARTS`; where that is not
            set either, the charts count as not registered. W&B offers no way to ask.
    """
    if not len(history) or getattr(run, "failure", False):  # A `RecordedRun` that has said why W&B takes nothing.
        return
    if isinstance(run, LateRun):
        run = run.settle()
    entity = entity or _entity()
    drawn = series([history])
    made = charts(drawn)  # No run in the title: W&B keeps it where it draws several runs.
    row: dict[str, Any] = {}
    unreached = not run.offline and (is_being_torn_down(run) or not _server_answers(run))
    for name in made if entity else _PRESETS:
        plotted = _plotted(name, made[name], _table(made[name]), entity)
        if unreached:
            _bind(plotted, run, f"{prefix}_charts/{name}")
        row[f"{prefix}_charts/{name}"] = plotted
    if not entity and importlib.util.find_spec("vl_convert"):
        from rwc_wandb.view.render import html_page

        # Not injected: W&B's style sheet would be a request to its site.
        row[f"{prefix}_charts/page"] = wandb.Html(html_page(drawn, made, run.name or ""), inject=False)
    run.log(row, commit=False)


class LiveCharts:
    """Renews some of the charts while the run trains, in a thread, so that its heat map is there on the first day.

    The tables go into the run's summary, which is what W&B's charts read (`summaryTable`): no row, no step, and no
    artifact; each is one more file of the run, which is why they come at growing intervals.
    """

    def __init__(self, run: Run, prefix: str) -> None:
        self._run = run
        self._prefix = prefix
        self._begun = time.monotonic()
        self._due = self._begun + FIRST_SECONDS
        self._thread: Worker | None = None
        self._is_over = False

    def is_due(self) -> bool:
        is_busy = self._thread is not None and self._thread.is_alive()
        return time.monotonic() >= self._due and not is_busy and not self._is_over

    def renew(self, history: History) -> None:
        """Begin to renew them; it returns at once."""
        now = time.monotonic()
        self._due = now + (now - self._begun) / 2
        self._thread = Worker(self._renew, history.frozen())
        self._thread.start()

    def end(self, seconds: float) -> None:
        """The final charts are next, and none of ours may come after them: wait so long for one that is under way."""
        self._is_over = True
        if self._thread is not None:
            self._thread.join(seconds)

    def _renew(self, history: History) -> None:
        try:
            run, entity = self._run, _entity()
            if isinstance(run, LateRun):
                run = run.settle()
            made = charts(series([history]), most_rows=MOST_LIVE_ROWS)
            tables = {}
            for name in LIVE_CHARTS if entity else _PRESETS:
                plotted = _plotted(name, made[name], _untyped_table(made[name]), entity)
                table_key = _bind(plotted, run, f"{self._prefix}_charts/{name}")
                # What `run.log` does with a chart, without its row.
                run._config_callback(key=plotted.spec.config_key, val=plotted.spec.config_value)
                tables[table_key] = plotted.table
            if not self._is_over:
                run.summary.update(tables)
        except Exception:
            # The charts at the end say what is wrong, where it still is.
            self._is_over = True


def _entity() -> str | None:
    return os.environ.get(ENTITY_VARIABLE) or None


def _table(chart: Chart) -> wandb.Table:
    return wandb.Table(columns=list(chart.columns), data=chart.rows)


def _untyped_table(chart: Chart) -> wandb.Table:
    """The same to be a file of the run, which holds no types: the client would take 0.3 s to find those of 4,000 rows,
    in a thread that shares the interpreter with training."""
    table = wandb.Table(columns=list(chart.columns), data=chart.rows[:1], allow_mixed_types=True)
    table.data.extend(chart.rows[1:])
    return table


def _plotted(name: str, chart: Chart, table: wandb.Table, entity: str | None) -> CustomChart:
    if entity:
        return wandb.plot_table(f"{entity}/{registered_name(name)}", table, chart.fields, chart.strings)
    strings = {"title": chart.strings["title"], "xname": chart.strings["time"]}
    return wandb.plot_table("wandb/lineseries/v0", table, _PRESETS[name], strings)


def _bind(plotted: CustomChart, run: Run, key: str) -> str:
    """Make its table a file of the run, and return the table's key. Bound already it gets no artifact, for which the
    client would ask the server, wait 19 s and raise."""
    plotted.set_key(key)
    table_key: str = plotted.spec.table_key
    plotted.table.bind_to_run(getattr(run, "itself", run), table_key, "summary")
    return table_key


def _server_answers(run: Run) -> bool:
    try:
        wandb.Api(timeout=SECONDS_TO_ANSWER, api_key=run.settings.api_key)
    except Exception:
        return False
    return True
