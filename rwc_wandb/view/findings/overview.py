"""What can be said of every run: the trend over depth, and when stages levelled off."""

from __future__ import annotations

import numpy as np

from rwc_wandb.measure.series.trends import depth_trend, levelled_off, mean_of_known
from rwc_wandb.view.findings.words import when
from rwc_wandb.view.series import Series

CLEAR_TREND = 0.3
"""Spearman's rho beyond which a trend over depth is said to be one."""


def overview(series: Series) -> list[str]:
    """Sentences that fit every run: the trend over depth, and which stages have levelled off."""
    return [*_depth(series), *_stages(series)]


def _depth(series: Series) -> list[str]:
    rho = depth_trend(mean_of_known(series.values))
    if np.isnan(rho):
        return []
    later = "change more than" if rho > 0 else "change less than"
    said = f"Later layers {later} earlier ones" if abs(rho) >= CLEAR_TREND else "No clear trend over depth"
    return [f"{said} (Spearman's rho of depth against mean RWC: {rho:+.2f})."]


def _stages(series: Series) -> list[str]:
    settled, moving = [], []
    for name, means in zip(series.stage_names, series.stage_means.T, strict=True):
        step = levelled_off(series.steps, means)
        if step is None:
            moving.append(name)
        else:
            settled.append(f"{name} from {when(series, int(np.flatnonzero(series.steps == step)[0]))}")
    if not settled:
        return []
    others = f"; not: {', '.join(moving)}" if moving else ""
    return [f"Levelled off (within a factor 2 of its final level): {', '.join(settled)}{others}."]
