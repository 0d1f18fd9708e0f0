"""Stages that change places: the one that moved more moves less."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from rwc_wandb.view.findings.words import times, when
from rwc_wandb.view.series import Series

FACTOR = 4.0
"""One stage is ahead by this factor in the typical measurement of the first third, and behind by it in the last."""

LEAST_MEASUREMENTS = 9


def turned_over(series: Series) -> list[str]:
    """Sentences, one for each pair of stages that has turned over."""
    said = []
    count = len(series.steps)
    for one, other in combinations(range(len(series.stage_names)), 2):
        means = series.stage_means[:, [one, other]]
        known = np.flatnonzero((means > 0).all(1))
        if count < LEAST_MEASUREMENTS or len(known) < count / 2:
            continue
        apart = np.log(means[known, 1] / means[known, 0])
        third = len(known) // 3
        early, late = float(np.median(apart[:third])), float(np.median(apart[-third:]))
        if early * late > 0 or min(abs(early), abs(late)) < np.log(FACTOR):
            continue
        last, first = (other, one) if late > 0 else (one, other)
        since = int(np.flatnonzero(apart * late <= 0)[-1]) + 1
        place = int(known[min(since, len(known) - 1)])
        said.append(
            f"{series.stage_names[last]} overtakes {series.stage_names[first]} at {when(series, place)}: from "
            f"{times(np.exp(-abs(early)))} to {times(np.exp(abs(late)))} of its RWC."
        )
    return said
