"""What a series says, in a few sentences: which layers learn, which have stopped, what is odd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rwc_wandb.measure.series.history import mean_of_known
from rwc_wandb.measure.series.trends import depth_trend, levelled_off
from rwc_wandb.view.series import Series

CLEAR_TREND = 0.3
"""Spearman's rho beyond which a trend over depth is said to be one."""
MOST_NAMES = 4


def findings(series: Series) -> list[str]:
    """Sentences from all measurements, also those that charts leave out: trend over depth, stages, odd layers."""
    return [*_depth(series), *_stages(series), *_odd(series)]


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
            settled.append(f"{name} from {_when(series, int(np.flatnonzero(series.steps == step)[0]))}")
    if not settled:
        return []
    others = f"; not: {', '.join(moving)}" if moving else ""
    return [f"Levelled off (within a factor 2 of its final level): {', '.join(settled)}{others}."]


def _odd(series: Series) -> list[str]:
    values = series.values
    frozen, stopped, broken = [], [], []
    for name, column in zip(series.layers, values.T, strict=True):
        lacking = np.flatnonzero(np.isnan(column))
        if len(lacking):
            count = f"{len(lacking):,} of {len(column):,} measurements, first at {_when(series, int(lacking[0]))}"
            broken.append(f"{name} ({count})")
        changed = np.flatnonzero(column > 0)
        if not len(changed):
            frozen += [name] if len(lacking) < len(column) else []
        elif (column[changed[-1] + 1 :] == 0).any():
            stopped.append(f"{name} after {_when(series, int(changed[-1]))}")
    said = [
        f"{what}: {_listed(found)}."
        for what, found in (
            ("Never changed (frozen, or no gradient)", frozen),
            ("Changed no more", stopped),
            ("No finite value", broken),
        )
        if found
    ]
    return said or ["Nothing odd: every layer still changes, and every value is finite."]


def _when(series: Series, place: int) -> str:
    return f"{series.clock} {series.times[place]:,g}" if series.steps_per_epoch else f"step {series.steps[place]:,}"


def _listed(found: Sequence[str]) -> str:
    rest = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return ", ".join(found[:MOST_NAMES]) + rest
