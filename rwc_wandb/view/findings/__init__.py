"""What a series says, in sentences: what stands out, the most important first; and what is so in every run."""

from __future__ import annotations

import numpy as np

from rwc_wandb.measure.series.history import History
from rwc_wandb.view.findings.broken import broken, still
from rwc_wandb.view.findings.changes import changes
from rwc_wandb.view.findings.order import turned_over
from rwc_wandb.view.findings.overview import overview
from rwc_wandb.view.findings.peers import outliers
from rwc_wandb.view.findings.swings import oscillating
from rwc_wandb.view.findings.uncertain import uncertain
from rwc_wandb.view.series import Series, series

__all__ = ["findings", "findings_of", "odd_or_not", "overview", "told"]

NOTHING_ODD = "Nothing odd: every layer still changes, and every value is finite."

NOTHING_ODD_SINCE = (
    "Nothing odd: every layer still changes, and from its first finite value on all its values are finite."
)
"""The same where a layer begins with values that are not finite, which is no finding: see `broken`."""


def findings(series: Series) -> list[str]:
    """What stands out, the most important first; [] where nothing does.

    In this order: values that are not finite; layers that move far less or far more than their peers; layers that never
    changed, or no longer do; RWC of all or of some layers that rises or falls from one measurement to the next; stages
    that change places; layers that oscillate; layers of which a sample tells too little, whose values the others leave
    out. What a few measurements or layers cannot show is not said: each kind has its least number.
    """
    kinds = (broken, outliers, still, changes, turned_over, oscillating, uncertain)
    return [sentence for kind in kinds for sentence in kind(series)]


def odd_or_not(series: Series) -> list[str]:
    """The findings, or one sentence that there are none."""
    return findings(series) or [NOTHING_ODD if np.isfinite(series.values).all() else NOTHING_ODD_SINCE]


def told(series: Series) -> list[str]:
    """The findings, or that there are none, and then the overview: what a page says."""
    return [*odd_or_not(series), *overview(series)]


def findings_of(history: History) -> list[str]:
    """`findings` of one run; [] where nothing has been measured."""
    return findings(series([history])) if len(history) else []
