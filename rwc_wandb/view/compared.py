"""Two things compared: the log ratio of RWC, layer by layer, over the time that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.series import Series, Values, check_alike, over_runs, series, values_at

SAME_INTERVAL = 0.01
"""Intervals between measurements may differ by this part and still be the same."""


@dataclass(frozen=True)
class Comparison:
    """T measurements of L layers: how much more a layer changes in one group of runs than in the other.

    Attributes:
        drawn: what charts draw: its `values` are log2 of the ratio, the mean over the runs of log2 RWC in the first
            group less that in the second; NaN where one of them is 0 or has no finite value. Its stages' band is
            lowest to highest over all pairs of runs, or over the layers where each group is one run.
        errors: [T, L] the standard error of that difference, from the seeds; where a group has one run only, from the
            samples, and NaN where both are exact.
        runs: the number of runs in the first and in the second group.
        aligned: how the two were brought together, a sentence.
    """

    drawn: Series
    errors: Values
    runs: tuple[int, int]
    aligned: str


def compare(first: Sequence[History], second: Sequence[History], elementwise: bool = False) -> Comparison:
    """Compare two groups of runs of one architecture.

    Epochs are compared where every run knows how many steps they have and measured at the same interval of epochs;
    otherwise optimizer steps. RWC over 10 steps and RWC over 100 steps are different quantities: they are refused.

    Raises:
        UserError: other layers or stages, other intervals between measurements, or no time in common.
    """
    check_alike([*first, *second])
    ours, theirs = (series(group, elementwise) for group in (first, second))
    by_epoch = _by_epoch(ours, theirs)
    times = [_times(one, by_epoch) for one in (ours, theirs)]
    rounded = [np.round(each, 6) for each in times]
    common, *rows = np.intersect1d(rounded[0], rounded[1], return_indices=True)
    clock = "epoch" if by_epoch else "optimizer step"
    if not len(common):
        raise UserError(
            f"The two have no {clock} in common ({_span(times[0])} against {_span(times[1])}): "
            "a comparison needs times that both measured."
        )
    logs = [
        np.log2(_positive(np.stack([values_at(history, side.steps[index], elementwise) for history in group])))
        for group, side, index in ((first, ours, rows[0]), (second, theirs, rows[1]))
    ]
    ratio = over_runs(np.nanmean, logs[0]) - over_runs(np.nanmean, logs[1])
    stages = np.array(ours.stages)
    members = [stages == name for name in ours.stage_names]
    if len(first) == len(second) == 1:
        of_stages = [ratio[:, own].T for own in members]
    else:
        pairs = (logs[0][:, None] - logs[1][None]).reshape(-1, *ratio.shape)
        of_stages = [over_runs(np.nanmean, pairs[..., own].transpose(2, 0, 1)) for own in members]
    steps = ours.steps[rows[0]]
    drawn = Series(
        layers=ours.layers,
        stages=ours.stages,
        roles=ours.roles,
        blocks=ours.blocks,
        steps=steps,
        values=ratio,
        stage_names=ours.stage_names,
        stage_means=np.stack([over_runs(np.nanmean, ratio[:, own].T) for own in members], 1),
        stage_low=np.stack([over_runs(np.nanmin, each) for each in of_stages], 1),
        stage_high=np.stack([over_runs(np.nanmax, each) for each in of_stages], 1),
        runs=len(first),
        elementwise=elementwise,
        steps_per_epoch=ours.steps_per_epoch if by_epoch else None,
    )
    squares = sum(_variance_of_mean(each) for each in logs)
    of_samples = sum(_variance_of_sample(side, index) for side, index in zip((ours, theirs), rows, strict=True))
    # The seeds' spread has the samples' errors in it.
    errors = np.sqrt(np.where(np.isnan(squares) & (of_samples > 0), of_samples, squares))
    return Comparison(drawn, errors, (len(first), len(second)), _aligned(times, common, clock))


def _by_epoch(ours: Series, theirs: Series) -> bool:
    """Whether epochs are what is compared.

    Raises:
        UserError: neither epochs nor steps are measured at the same interval.
    """
    if ours.steps_per_epoch and theirs.steps_per_epoch and _alike(_interval(ours, True), _interval(theirs, True)):
        return True
    if not _alike(_interval(ours, False), _interval(theirs, False)):
        raise UserError(
            f"One measured every {_interval(ours, False):,g} optimizer steps, the other every "
            f"{_interval(theirs, False):,g}: RWC over different intervals cannot be compared; measure both alike."
        )
    return False


def _times(one: Series, by_epoch: bool) -> NDArray[np.float64]:
    return one.steps / (one.steps_per_epoch or 1 if by_epoch else 1)


def _interval(one: Series, by_epoch: bool) -> float:
    times = _times(one, by_epoch)
    return float(np.median(np.diff(times)) if len(times) > 1 else times[0])


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_INTERVAL * max(one, other)


def _positive(values: Values) -> Values:
    return np.where(values > 0, values, np.nan)


def _variance_of_mean(logs: Values) -> Values:
    """[T, L] of `logs` [R, T, L]; NaN for fewer than two known runs."""
    count = np.isfinite(logs).sum(0)
    spread = over_runs(lambda values, axis: np.nanvar(values, axis=axis, ddof=1), logs)
    return np.where(count > 1, spread / np.maximum(count, 1), np.nan)


def _variance_of_sample(side: Series, rows: NDArray[np.int64]) -> Values:
    """[T, L] of log2 of the values, from the errors of their samples; 0 where they are exact."""
    if side.errors is None:
        return np.zeros((len(rows), len(side.layers)))
    return np.asarray((np.nan_to_num(side.errors) / (_positive(side.values) * np.log(2)))[rows] ** 2)


def _aligned(times: Sequence[NDArray[np.float64]], common: NDArray[np.float64], clock: str) -> str:
    left_out = [len(each) - len(common) for each in times]
    said = f"Compared at the {len(common):,} measurements that both have, by {clock} ({_span(common)})"
    without = [
        f"{count:,} of {which}" for count, which in zip(left_out, ("the first", "the second"), strict=True) if count
    ]
    return f"{said}; left out: {' and '.join(without)}." if without else f"{said}."


def _span(times: NDArray[np.float64]) -> str:
    return f"{times[0]:,g} to {times[-1]:,g}" if len(times) > 1 else f"{times[0]:,g}"
