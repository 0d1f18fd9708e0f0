"""What a series says in one number: its means, the trend over depth, and when learning levelled off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_of_known(values: NDArray[np.floating], axis: int = 0) -> NDArray[np.float64]:
    """The mean along `axis` of what is not NaN; NaN where all values are NaN."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis, dtype=np.float64)
    return np.where(known.any(axis), total / np.maximum(known.sum(axis), 1), np.nan)


def mean_of_moving(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean over layers of `values` [..., L], of those that moved: neither NaN nor 0. Where some are 0 and none
    moved it is 0; where all are NaN it is NaN."""
    means = mean_of_known(np.where(values == 0, np.nan, values), axis=-1)
    return np.where(np.isnan(means) & (values == 0).any(-1), 0.0, means)


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The ranks of `values` [n], 0 first; equal values share their mean rank."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return np.asarray((last - (count - 1) / 2)[group], np.float64)


def depth_trend(rwc: NDArray[np.floating]) -> float:
    """Spearman's rank correlation between depth and RWC, from `rwc` [L], in forward order.

    +1: every layer learns more than the one before it; -1: less; NaN where it is not defined (fewer than two layers
    with a finite value, or all equal). Layers that are 0, which did not move, are left out.
    """
    known = np.isfinite(rwc) & (rwc != 0)
    if known.sum() < 2 or np.ptp(rwc[known]) == 0:
        return float("nan")
    return float(np.corrcoef(np.arange(known.sum()), ranks(rwc[known]))[0, 1])


def levelled_off(steps: NDArray[np.integer], values: NDArray[np.floating], factor: float = 2.0) -> int | None:
    """The first step from which on `values` [T] stay within `factor` of their final level.

    The final level is the median of the last tenth. None where there are fewer than 10 finite values, or where the
    series is within the band only in that last tenth: then it has not levelled off.
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if len(values) < 10:
        return None
    tail = len(values) // 10
    level = float(np.median(values[-tail:]))
    outside = np.flatnonzero((values > level * factor) | (values < level / factor))
    start = int(outside[-1]) + 1 if len(outside) else 0
    return int(steps[start]) if start < len(values) - tail else None
