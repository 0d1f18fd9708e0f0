"""Layers that oscillate: their RWC rises and falls from one measurement to the next."""

from __future__ import annotations

import warnings

import numpy as np

from rwc_wandb.view.findings.words import groups
from rwc_wandb.view.series import Series

FACTOR = 4.0
"""A layer oscillates that differs by this factor from the (geometric) mean of the measurements before and after, in the
median over the run or over its last third. In the clean trainings of tests/view/trainings.py it is below 2."""

LEAST_MEASUREMENTS = 12


def oscillating(series: Series) -> list[str]:
    """Sentences, one for each group of layers, the widest swing first."""
    if len(series.steps) < LEAST_MEASUREMENTS:
        return []
    with warnings.catch_warnings():
        # A layer that does not change has no logarithm: it is not known, and no swing.
        warnings.simplefilter("ignore", RuntimeWarning)
        logs = series.logs
        apart = np.abs(logs[1:-1] - (logs[:-2] + logs[2:]) / 2)
        swing = np.fmax(np.nanmedian(apart, 0), np.nanmedian(apart[-(len(apart) // 3) :], 0))
    found = []
    for name, indices in groups(series, np.flatnonzero(swing > np.log(FACTOR))):
        factor = float(np.exp(np.median(swing[indices])))
        found.append((factor, f"{name}: oscillates, by a factor {factor:.2g} from one measurement to the next."))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]
