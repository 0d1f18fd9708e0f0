"""Layers without a finite value, and layers that do not change."""

from __future__ import annotations

import warnings

import numpy as np

from rwc_wandb.view.findings.words import groups, listed, times, when
from rwc_wandb.view.series import Series

RISE = 10.0
"""A layer that moves this many times as much as before, just before values that are not finite, rose."""


def broken(series: Series) -> list[str]:
    """Layers that have no finite value at some measurement after their first finite one, or never.

    What comes before that is no finding: a layer that starts at zero has an infinite rate once.
    """
    by_first: dict[tuple[int, int, bool], list[int]] = {}
    for index, column in enumerate(series.values.T):
        lacking = np.isnan(column)
        start = int(np.argmin(lacking))
        if not lacking[start:].any():
            continue
        # All missing: `argmin` says 0.
        gaps = np.flatnonzero(lacking)
        gaps = gaps[gaps >= start]
        by_first.setdefault((int(gaps[0]), len(gaps), bool(lacking[-1])), []).append(index)
    total = len(series.steps)
    passing = [key for key in by_first if not key[2] and len(by_first[key]) * 2 >= len(series.layers)]
    said = []
    for first, count, _ in passing:
        where = listed([name for name, _ in groups(series, by_first[first, count, False])])
        said.append(
            f"No finite value at {count:,} of {total:,} measurements, first at {when(series, first)}, in {where}: were "
            "weights loaded or replaced?"
        )
    names = [
        f"{name} ({count:,} of {total:,} measurements, first at {when(series, first)})"
        for first, count, passes in sorted(by_first)
        if (first, count, passes) not in passing
        for name, _ in groups(series, by_first[first, count, passes])
    ]
    if not names:
        return said
    start = min(key[0] for key in by_first if key not in passing)
    return [f"No finite value: {listed(names)}{_risen_before(series, start)}.", *said]


def _risen_before(series: Series, start: int) -> str:
    """Which layer rose first before `start`, if any did: more likely the cause than those that are broken by it."""
    window = min(20, start // 2)
    if window < 3:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        logs = series.logs[:start]
        rise = logs[-window:] - np.nanmedian(logs[:-window], axis=0)
    above = rise > np.log(RISE)
    if not above.any():
        return ""
    place = int(np.argmax(above.any(1)))
    index = int(np.argmax(np.where(above[place], rise[place], -np.inf)))
    at = when(series, start - window + place)
    return f"; {series.layers[index]} rose first, to {times(np.exp(rise[place, index]))} its level at {at}"


def still(series: Series) -> list[str]:
    """Layers that never changed, and layers that do so no more."""
    frozen: list[int] = []
    stopped: dict[int, list[int]] = {}
    for index, column in enumerate(series.values.T):
        changed = np.flatnonzero(column > 0)
        if not len(changed):
            frozen += [index] if not np.isnan(column).all() else []
        elif (column[changed[-1] + 1 :] == 0).any():
            stopped.setdefault(int(changed[-1]), []).append(index)
    ended = [f"{name} after {when(series, last)}" for last in sorted(stopped) for name in _names(series, stopped[last])]
    return [
        f"{what}: {listed(names)}."
        for what, names in (
            ("Never changed (frozen, or no gradient)", _names(series, frozen)),
            ("Changed no more", ended),
        )
        if names
    ]


def _names(series: Series, indices: list[int]) -> list[str]:
    names = [name for name, _ in groups(series, indices)]
    # Groups of two or three layers each say less than the layers.
    few = len(names) == 1 or 3 * len(names) <= len(indices)
    few = few and not any(" more, " in name for name in names)
    return names if few else [series.layers[index] for index in indices]
