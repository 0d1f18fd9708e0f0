"""What is drawn: the series of one run, or the mean of several with a band."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import History

Values = NDArray[np.float64]

MOST_UNCERTAIN = 0.25
"""A value whose standard error is a larger part of it counts in no finding. Two others differ by a factor 2 where it is
twice the error of their difference; the least factor of which findings speak is 4."""


@dataclass(frozen=True)
class Series:
    """T measurements of L layers in S stages, averaged over `runs` runs. NaN stands for "no finite value".

    Attributes:
        layers: [L] names in forward order.
        stages: [L] the stage of each layer.
        roles: [L] the role of each layer: see `History`.
        blocks: [L] the block of each layer; of one that does not repeat, `in` before all blocks, `out` after them, `5+`
            after block 5.
        steps: int64 [T], increasing.
        values: [T, L] RWC, the mean over the runs that have a finite value there.
        stage_names: [S] in forward order.
        stage_means: [T, S].
        stage_low, stage_high: [T, S] the band: lowest and highest run; of a single run, lowest and highest layer that
            changes.
        runs: the number of runs.
        errors: [T, L] the standard errors of `values` where they are estimates from samples, 0 where one is exact, NaN
            where the error is not known; None where all are exact.
        steps_per_epoch: what turns steps into epochs on the time axis; None: the axis shows steps.
        elementwise: whether the values are the element-wise variant.
    """

    layers: list[str]
    stages: list[str]
    roles: list[str]
    blocks: list[str]
    steps: NDArray[np.int64]
    values: Values
    stage_names: list[str]
    stage_means: Values
    stage_low: Values
    stage_high: Values
    runs: int
    elementwise: bool
    steps_per_epoch: int | None = None
    errors: Values | None = None

    @property
    def uncertain(self) -> NDArray[np.bool_]:
        """[T, L] where a sample tells too little."""
        if self.errors is None:
            return np.zeros(self.values.shape, bool)
        return np.asarray(self.errors > MOST_UNCERTAIN * self.values)

    @property
    def logs(self) -> Values:
        """[T, L] the logarithm of the values; NaN where a layer does not change, is not finite or is `uncertain`."""
        return np.log(np.where((self.values > 0) & ~self.uncertain, self.values, np.nan))

    @property
    def repeats(self) -> bool:
        """Whether a role stands in several blocks: then there is a map of roles and blocks."""
        places = set(zip(self.roles, self.blocks, strict=True))
        return len(places) > len(set(self.roles))

    @property
    def times(self) -> NDArray[np.number]:
        """[T] what the time axis shows: epochs where it is known how many steps they have, otherwise steps."""
        return self.steps / self.steps_per_epoch if self.steps_per_epoch else self.steps

    @property
    def clock(self) -> str:
        """What `times` are."""
        return "epoch" if self.steps_per_epoch else "optimizer step"

    @property
    def interval(self) -> float:
        """The time between two measurements, the median: an int of steps, or a float of epochs."""
        median = np.median(np.diff(self.times)) if len(self.steps) > 1 else self.times[0]
        return float(f"{median:.4g}") if self.steps_per_epoch else int(median)


def series(histories: Sequence[History], elementwise: bool = False) -> Series:
    """The series of one history, or the mean over several at the steps that all of them have.

    Raises:
        UserError: no history, one without a measurement, different layers, or no step in common.
    """
    check_alike(histories)
    first = histories[0]
    steps: NDArray[np.int64] = reduce(np.intersect1d, [np.unique(history.steps) for history in histories])
    if not len(steps):
        raise UserError("The histories have no optimizer step in common: a mean needs steps that every run measured.")
    values = np.stack([values_at(history, steps, elementwise) for history in histories])  # [R, T, L]
    stage_names, means = first.stage_means(values)
    if len(histories) > 1:
        low, high = over_runs(np.nanmin, means), over_runs(np.nanmax, means)
    else:
        # What stands still has no place on a logarithmic axis: the band is of the layers that change.
        changing = np.where(values[0] > 0, values[0], np.nan)
        of_stage = [changing[:, np.array(first.stages) == name].T for name in stage_names]
        low, high = (np.stack([over_runs(end, layers) for layers in of_stage], 1) for end in (np.nanmin, np.nanmax))
    return Series(
        layers=first.layers,
        stages=first.stages,
        roles=first.roles,
        blocks=_named_blocks(first.blocks),
        steps=steps,
        values=over_runs(np.nanmean, values),
        stage_names=stage_names,
        stage_means=over_runs(np.nanmean, means),
        stage_low=low,
        stage_high=high,
        runs=len(histories),
        elementwise=elementwise,
        steps_per_epoch=first.steps_per_epoch if len({history.steps_per_epoch for history in histories}) == 1 else None,
        errors=_errors(histories, steps, elementwise)
        if any(history.rwc_error.any() for history in histories)
        else None,
    )


def _named_blocks(blocks: Sequence[int | None]) -> list[str]:
    repeated = [depth for depth, block in enumerate(blocks) if block is not None]
    last = repeated[-1] if repeated else -1
    named, before = [], "in"
    for depth, block in enumerate(blocks):
        before = before if block is None else f"{block}+"
        named.append(str(block) if block is not None else "out" if depth > last >= 0 else before)
    return named


def check_alike(histories: Sequence[History]) -> None:
    """Raises: UserError, when these are not runs of one architecture that have measured something."""
    if not histories:
        raise UserError("There is no history to draw: give at least one.")
    first = histories[0]
    for number, history in enumerate(histories, 1):
        if not len(history) or not history.layers:
            raise UserError(f"History {number} of {len(histories)} holds no measurement: there is nothing to draw yet.")
        if history.layers != first.layers:
            raise UserError(
                f"History {number} has other layers than history 1 ({_difference(history.layers, first.layers)}): "
                "only runs of one architecture can be averaged or compared; view the others on their own."
            )
        if history.stages != first.stages:
            raise UserError(
                f"History {number} has other stages than history 1 ({_difference(history.stages, first.stages)}): "
                "only runs whose layers are grouped alike can be averaged or compared."
            )


def _difference(these: Sequence[str], others: Sequence[str]) -> str:
    if len(these) != len(others):
        return f"{len(these)} against {len(others)}"
    depth = next(depth for depth, pair in enumerate(zip(these, others, strict=True)) if pair[0] != pair[1])
    return f"at depth {depth}: {these[depth]!r} against {others[depth]!r}"


def values_at(history: History, steps: NDArray[np.int64], elementwise: bool) -> Values:
    """[T, L] at `steps`; of a step that was measured twice (a run resumed from an older checkpoint), the later one."""
    values = (history.rwc_elementwise if elementwise else history.rwc)[_rows(history, steps)].astype(np.float64)
    # An infinite rate (the layer was all zero before) has no place on a logarithmic axis either.
    values[~np.isfinite(values)] = np.nan
    return values


def _errors(histories: Sequence[History], steps: NDArray[np.int64], elementwise: bool) -> Values:
    """[T, L] the standard error of the mean over the runs, whose samples are drawn independently."""
    errors = np.stack([history.rwc_error[_rows(history, steps)].astype(np.float64) for history in histories])
    if elementwise:  # Only that of eq. 1 is known.
        return np.asarray(np.where((errors > 0).any(0), np.nan, 0.0))
    known = np.maximum(np.isfinite(errors).sum(0), 1)
    return np.asarray(np.sqrt(np.nansum(errors**2, axis=0)) / known)


def _rows(history: History, steps: NDArray[np.int64]) -> list[int]:
    index = {int(step): row for row, step in enumerate(history.steps)}
    return [index[int(step)] for step in steps]


def over_runs(reduction: Callable[..., Any], values: Values) -> Values:
    """`values` [R, T, ...] reduced over the runs (or the layers of one); NaN only where none has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(reduction(values, axis=0))
