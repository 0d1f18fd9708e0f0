"""Statistics of one run for the paper's claims, and the confidence interval over several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rwc_wandb import History
from rwc_wandb.measure.series.trends import depth_trend, levelled_off, mean_of_known

CONFIDENCE = 0.95
FEWEST_TO_LEVEL_OFF = 10
"""Measurements that a series needs before it counts as levelled off."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The mean of n values and its two-sided 95 % t interval; of fewer than 2 values, everything is possible."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float]) -> Interval:
    """mean -+ t(0.975, n - 1) * s / sqrt(n), with s the standard deviation of the n values."""
    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def layer_values(history: History, elementwise: bool) -> Values:
    """[T, L]; NaN where a measurement is not finite."""
    values = (history.rwc_elementwise if elementwise else history.rwc).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def stage_series(history: History, stage: str | None, elementwise: bool) -> Values:
    """[T] the mean RWC over a stage's layers, or over all layers where `stage` is None; NaN without such layers."""
    values = layer_values(history, elementwise)
    if stage is None:
        return mean_of_known(values, axis=1)
    names, means = history.stage_means(values)
    return means[:, names.index(stage)] if stage in names else np.full(len(history), np.nan)


def log_ratio(above: Values, below: Values) -> float:
    """The mean over time of log(above / below), both [T]; where one is longer, its end is left out.

    NaN where no measurement has two positive values.
    """
    length = min(len(above), len(below))
    above, below = above[:length], below[:length]
    known = (above > 0) & (below > 0)
    return float(np.mean(np.log(above[known] / below[known]))) if known.any() else math.nan


def mean_depth_trend(history: History, elementwise: bool) -> float:
    """Spearman's rho between depth and RWC, the mean over all measurements."""
    trends = [depth_trend(row) for row in layer_values(history, elementwise)]
    known = [trend for trend in trends if not math.isnan(trend)]
    return float(np.mean(known)) if known else math.nan


def share_until_level(history: History, stage: str, elementwise: bool) -> float:
    """The share of the training after which a stage stays within a factor 2 of its final level; 1 where it never does.

    NaN with fewer than 10 finite measurements.
    """
    values = stage_series(history, stage, elementwise)
    if np.isfinite(values).sum() < FEWEST_TO_LEVEL_OFF:
        return math.nan
    step = levelled_off(history.steps, values)
    return 1.0 if step is None else step / int(history.steps[-1])


def final_tenth(values: Values) -> Values:
    """The last tenth of a series [T], at least one measurement."""
    return values[-max(len(values) // 10, 1) :]
