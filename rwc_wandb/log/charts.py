"""The final charts of a run, in W&B."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import wandb

from rwc_wandb.log.late_run import LateRun
from rwc_wandb.log.opening import is_being_torn_down
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import charts
from rwc_wandb.view.series import series

if TYPE_CHECKING:
    from wandb import Run

ENTITY_VARIABLE = "RWC_WANDB_CHARTS"
"""Environment variable: the W&B user or team who registered the charts (`rwc-wandb charts push ENTITY`)."""

_PRESETS: dict[str, dict[str, str]] = {
    "rwc_curves": {"step": "time", "lineKey": "layer", "lineVal": "rwc"},
    "rwc_stages": {"step": "time", "lineKey": "stage", "lineVal": "mean"},
}
"""Charts that W&B's built-in line series can stand in for: its field -> our column."""

SECONDS_TO_ANSWER = 5
"""What the server has, before the charts are logged without it."""


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
    if not len(history):
        return
    if isinstance(run, LateRun):
        run = run.settle()
    entity = entity or os.environ.get(ENTITY_VARIABLE) or None
    drawn = series([history])
    made = charts(drawn)  # No run in the title: W&B keeps it where it draws several runs.
    row: dict[str, Any] = {}
    unreached = not run.offline and (is_being_torn_down(run) or not _server_answers(run))
    for name in made if entity else _PRESETS:
        chart = made[name]
        spec, fields, strings = f"{entity}/{name}", chart.fields, chart.strings
        if not entity:
            spec, fields = "wandb/lineseries/v0", _PRESETS[name]
            strings = {"title": strings["title"], "xname": strings["time"]}
        table = wandb.Table(columns=list(chart.columns), data=chart.rows)
        if unreached:
            # Bound already, it gets no artifact, for which the client would ask the server, wait 19 s and raise.
            table.bind_to_run(getattr(run, "itself", run), f"{prefix}_charts/{name}_table", "summary")
        row[f"{prefix}_charts/{name}"] = wandb.plot_table(spec, table, fields, strings)
    if not entity and importlib.util.find_spec("vl_convert"):
        from rwc_wandb.view.render import html_page

        # Not injected: W&B's style sheet would be a request to its site.
        row[f"{prefix}_charts/page"] = wandb.Html(html_page(drawn, made, run.name or ""), inject=False)
    run.log(row, commit=False)


def _server_answers(run: Run) -> bool:
    try:
        wandb.Api(timeout=SECONDS_TO_ANSWER, api_key=run.settings.api_key)
    except Exception:
        return False
    return True
