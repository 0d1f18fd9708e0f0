"""Layers whose sample says too little of them."""

from __future__ import annotations

import numpy as np

from rwc_wandb.view.errors import percent
from rwc_wandb.view.findings.words import groups
from rwc_wandb.view.series import MOST_UNCERTAIN, Series

PART = 0.1
"""It is said of layers that are uncertain at this part of the measurements."""


def uncertain(series: Series) -> list[str]:
    """Sentences, one for each group of layers that are often left out of all other findings."""
    if series.errors is None:
        return []
    often = series.uncertain.mean(0) >= PART
    said = []
    for name, indices in groups(series, np.flatnonzero(often)):
        own = series.uncertain[:, indices]
        typical = float(np.median(series.errors[:, indices][own] / series.values[:, indices][own]))
        said.append(
            f"{name}: the standard error of its sample is above {percent(MOST_UNCERTAIN)} of RWC at "
            f"{percent(float(own.mean()))} of the measurements ({percent(typical)} in their median), which count in no "
            f'other finding. Draw more of it: watch(sample={{"{series.layers[indices[0]]}": None, "": 65_536}}) all.'
        )
    return said
