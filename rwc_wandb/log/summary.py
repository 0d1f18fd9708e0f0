"""What stays in a run's summary: a few numbers that a table of runs can be sorted by."""

from __future__ import annotations

import numpy as np

from rwc_wandb.measure.series.history import History
from rwc_wandb.measure.series.trends import depth_trend, levelled_off, mean_of_known
from rwc_wandb.view.findings import findings_of

NOTHING = "Nothing stands out."


def summary_of(history: History, prefix: str = "rwc") -> dict[str, float | int | None]:
    """A run in a few numbers, under `<prefix>_summary/`.

    `<stage>/mean` and `<stage>/last` RWC, `<stage>/levelled_off` (the optimizer step, or None), and `depth_trend`:
    Spearman's rho between depth and the layers' mean RWC. Non-finite measurements are left out.
    """
    if not len(history):
        return {}
    finite = np.where(np.isfinite(history.rwc), history.rwc, np.nan)
    stages, series = history.stage_means(finite)
    summary: dict[str, float | int | None] = {}
    for stage, values in zip(stages, series.T, strict=True):
        known = values[~np.isnan(values)]
        summary[f"{prefix}_summary/{stage}/mean"] = float(known.mean()) if len(known) else float("nan")
        summary[f"{prefix}_summary/{stage}/last"] = float(known[-1]) if len(known) else float("nan")
        summary[f"{prefix}_summary/{stage}/levelled_off"] = levelled_off(history.steps, values)
    summary[f"{prefix}_summary/depth_trend"] = depth_trend(mean_of_known(finite))
    return summary


def findings_text(history: History, prefix: str = "rwc") -> dict[str, str]:
    """What stands out in a run, under `<prefix>_summary/findings`: a sentence a line, the most important first."""
    return {f"{prefix}_summary/findings": "\n".join(findings_of(history)) or NOTHING}
