"""Sudden changes: RWC of all layers, or of some beside the others, that rises or falls between two measurements."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rwc_wandb.view.findings.medians import blocks, medians
from rwc_wandb.view.findings.peers import LEAST_LAYERS, relative
from rwc_wandb.view.findings.words import groups, times, when
from rwc_wandb.view.series import Series

RISE = 5.0
"""RWC of all layers rises by this factor, and stays there. Between two clean measurements it changes by a factor 7 at
most, and by a factor 2 in the median over a window."""

FALL = 16.0
"""It falls by this factor: the step of a schedule, a tenth, is no finding."""

APART = 25.0
"""RWC of some layers changes by this factor beside the others."""

SPIKE = 10.0
"""RWC of all layers is this many times as high at one or two measurements as before and after."""

WINDOW = 5
"""Measurements before and after; of a run with fewer than 25, a fifth of them."""

LEAST_MEASUREMENTS = 15

Values = NDArray[np.float64]


def changes(series: Series) -> list[str]:
    """Sentences: what all layers do, then what some do."""
    if len(series.steps) < LEAST_MEASUREMENTS:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return [*_of_all(series, medians(series.logs)), *_of_some(series)]


def _of_all(series: Series, common: Values) -> list[str]:
    said = []
    spike = _spike(common)
    if spike is not None:
        place, factor = spike
        said.append(
            f"RWC of all layers leapt to {times(factor)} its level at {when(series, place)}, and came back: a loss "
            "spike, or weights that were loaded or replaced?"
        )
        common = common.copy()
        common[place : place + 2] = np.nan
    steps = _steps(common[:, None], WINDOW)[:, 0]
    for place, change in _largest(steps, np.log(RISE), np.log(FALL)):
        verb = "rose to" if change > 0 else "fell to"
        said.append(
            f"RWC of all layers {verb} {times(np.exp(change))}{' of' if change < 0 else ''} its level from "
            f"{when(series, place)} on: did the learning rate change?"
        )
    return said


def _of_some(series: Series) -> list[str]:
    if len(series.layers) < LEAST_LAYERS:
        return []
    steps = _steps(relative(series), WINDOW)
    said = []
    for (place, sign), indices in sorted(_together(steps).items()):
        for name, members in groups(series, indices):
            change = float(np.nanmedian(steps[place, members]))
            if abs(change) < np.log(APART) / 2:
                change = float(np.nanmedian([steps[max(place - 2, 0) : place + 3, index] for index in members]))
            verb = "rose to" if sign > 0 else "fell to"
            of = " of" if sign < 0 else ""
            said.append(
                f"{name}: {verb} {times(np.exp(change))}{of} its level beside the others from {when(series, place)} on."
            )
    return said


def _together(steps: Values) -> dict[tuple[int, int], list[int]]:
    """The layers that change at about the same measurement in the same direction, under both of the first of them."""
    found: dict[tuple[int, int], list[int]] = {}
    for index, own in enumerate(steps.T):
        for place, change in _largest(own, np.log(APART), np.log(APART)):
            sign = int(np.sign(change))
            near = [(at, sign) for at in range(place - 2, place + 3) if (at, sign) in found]
            key = min(near, key=lambda each: (found[each][0], each), default=(place, sign))
            found.setdefault(key, []).append(index)
    return found


def _steps(logs: Values, window: int) -> Values:
    """[T, n] the median of the window from each measurement on, less that of the window before it, where the change
    is sudden: most of it between the two. 0 at the ends, where the windows are not whole."""
    window = min(window, max(len(logs) // 5, 3))
    result = np.zeros_like(logs)
    # The first measurements of Adam, and of a warm-up, are unlike those that follow.
    first = max(2 * window, len(logs) // 10)
    for part in blocks(len(logs) - window + 1 - first, logs[0].size * window):
        start, stop = first + part.start, first + part.stop
        windows = sliding_window_view(logs[start - window : stop + window - 1], window, axis=0)
        levels = medians(windows)
        before, after = levels[:-window], levels[window:]
        change = after - before
        sign = np.sign(change)
        level = sign * np.fmin.reduce(sign[..., None] * windows[window:], axis=-1)
        reached = sign * (level - before) > 0.5 * np.abs(change)
        sudden = sign * (logs[start:stop] - logs[start - 1 : stop - 1]) > 0.6 * np.abs(change)
        result[start:stop] = np.where(reached & sudden, np.nan_to_num(change), 0)
    return result


def _largest(steps: Values, rise: float, fall: float) -> list[tuple[int, float]]:
    """The largest change of each run of neighbours beyond the limits."""
    found: list[tuple[int, float]] = []
    for place in np.flatnonzero((steps > rise) | (steps < -fall)):
        if found and place - found[-1][0] <= WINDOW and steps[place] * found[-1][1] > 0:
            if abs(steps[place]) > abs(found[-1][1]):
                found[-1] = (int(place), float(steps[place]))
        else:
            found.append((int(place), float(steps[place])))
    return found


def _spike(common: Values) -> tuple[int, float] | None:
    """The highest leap of one or two measurements over both neighbours: where, and how high."""
    window = min(WINDOW, max(len(common) // 5, 3))
    places = np.arange(2 * window, len(common) - window)
    # Of the window after the last place one measurement is still to come.
    levels = medians(sliding_window_view(np.append(common, np.nan), window))
    lacking = np.asarray(sliding_window_view(np.append(np.isnan(common), False), window).any(-1))
    heights = common[places] - np.maximum(levels[places - window], levels[places + 2])
    # What is followed by no finite value has not come back.
    leaps = np.flatnonzero(~lacking[places + 2] & (heights > np.log(SPIKE)))
    if not len(leaps):
        return None
    factors = np.exp(heights[leaps])
    highest = int(np.argmax(factors))
    return int(places[leaps[highest]]), float(factors[highest])
