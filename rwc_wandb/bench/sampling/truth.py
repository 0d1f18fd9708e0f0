"""Is the standard error of a sampled RWC the error that it has? Tried at every step of real trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import rwc_wandb
from rwc_wandb.bench.sampling.trainings import TRAININGS

COUNTS = (65_536, 32_768, 16_384, 4_096)
"""Weights drawn of each layer, at most: the default that is advised, and fewer."""


@dataclass(frozen=True)
class Trial:
    """What was found with some layers of one training, in samples of `count` weights.

    Attributes:
        scores: (RWC of the sample - RWC) / standard error, one for every layer at every step, of an own draw.
        relative: the standard error over RWC, likewise.
    """

    training: str
    layers: str
    count: int
    scores: NDArray[np.float64]
    relative: NDArray[np.float64]

    @property
    def deviation(self) -> float:
        """The standard deviation of the scores: 1 where errors are as large as they are said to be."""
        return float(self.scores.std())

    @property
    def within_2(self) -> float:
        """The part of the scores within 2 standard errors: 0.95 of normal ones."""
        return float((np.abs(self.scores) < 2).mean())

    @property
    def bias(self) -> float:
        """The mean of the scores."""
        return float(self.scores.mean())


def trials(training: str, steps: int, counts: Sequence[int] = COUNTS) -> list[Trial]:
    """Train `training` (of `TRAININGS`) for so many steps, measured at each from all weights and from samples.

    Returns:
        For each of `counts`: the embedding, the head and the hidden layers. Layers that are not larger than the sample
        are exact, and left out.
    """
    made = TRAININGS[training]()
    exact = rwc_wandb.watch(made.model, run=False, histogram_every=None)
    # A row has one measurement, so that each has a draw of its own.
    sampled = {
        count: rwc_wandb.watch(made.model, run=False, histogram_every=None, log_every=1, sample=count)
        for count in counts
    }
    for _ in range(steps):
        made.optimizer.zero_grad()
        made.loss().backward()
        made.optimizer.step()
        for monitor in (exact, *sampled.values()):
            monitor.measure()
    for monitor in (exact, *sampled.values()):
        monitor.close()
    history = exact.history
    groups = np.array([_group(kind, depth == len(history.layers) - 1) for depth, kind in enumerate(history.kinds)])
    found = []
    for count, monitor in sampled.items():
        estimate, error = (values.astype(np.float64) for values in (monitor.history.rwc, monitor.history.rwc_error))
        for group in dict.fromkeys(groups):
            chosen = (error > 0) & (groups == group)
            if chosen.any():
                scores = (estimate - history.rwc)[chosen] / error[chosen]
                found.append(Trial(training, str(group), count, scores, error[chosen] / estimate[chosen]))
    return found


def together(found: Sequence[Trial], count: int) -> Trial:
    """All trials of `count` weights as one."""
    own = [trial for trial in found if trial.count == count]
    scores, relative = (np.concatenate([getattr(trial, name) for trial in own]) for name in ("scores", "relative"))
    return Trial("all", "all", count, scores, relative)


def _group(kind: str, is_last: bool) -> str:
    return "embedding" if kind == "embedding" else "head" if is_last else "hidden"
