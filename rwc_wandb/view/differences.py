"""What a comparison says, in a few sentences: which layers move more, how much, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.view.compared import Comparison
from rwc_wandb.view.series import Values, over_runs

CLEAR = 1.0
"""Of log2: a factor of 2 is worth a sentence."""

STANDARD_ERRORS = 2.0
"""A difference within so many standard errors of the seeds is not said."""

MOST_OF_A_GROUP = 0.8
"""The part of a group's layers that must differ for the group to be named instead of its layers."""

MOST_SENTENCES = 6


@dataclass(frozen=True)
class _Stretch:
    """`members` differ from time `start` up to `end` inclusive; `weight` sums |log2| over its measurements."""

    name: str
    members: NDArray[np.bool_]
    start: int
    end: int
    weight: float


def differences(comparison: Comparison) -> list[str]:
    """Sentences: the ratio over all layers, then what departs from it by a factor of 2 and more, the largest first.

    Nothing is said that lasts for less than a twentieth of the measurements, or that is within two standard errors of
    the seeds, or of the samples where those are not known.
    """
    drawn = comparison.drawn
    overall = over_runs(np.nanmedian, drawn.values.T)
    error = np.nan_to_num(comparison.errors)
    said = _overall(comparison, overall, over_runs(np.nanmedian, error.T))
    beyond = drawn.values - overall[:, None]
    signs = _signs(beyond, error)
    while len(said) < MOST_SENTENCES:
        found = max(_stretches(comparison, signs, beyond), key=lambda stretch: stretch.weight, default=None)
        if found is None:
            break
        signs[found.start : found.end + 1, found.members] = 0
        said.append(_sentence(comparison, found, overall))
    return [*said, comparison.aligned, _trust(comparison)]


def _overall(comparison: Comparison, overall: Values, error: Values) -> list[str]:
    stretches = list(_runs(_signs(overall[:, None], error[:, None])[:, 0]))
    if not stretches:
        return [
            f"On the whole both change {_times_as_much(float(np.nanmedian(overall)))} (the median over all layers)."
        ]
    return [
        f"All layers together move {_times_as_much(float(np.nanmedian(overall[start : end + 1])))} "
        f"{_when(comparison, start, end)} (the median)."
        for start, end, _ in stretches
    ]


def _signs(values: Values, error: Values) -> NDArray[np.int64]:
    """[T, L]: 1 and -1 where `values` [T, L] are clearly above and below 0; what is short is left out."""
    clear = np.abs(np.nan_to_num(values)) >= np.maximum(CLEAR, STANDARD_ERRORS * error)
    signs = np.where(clear, np.sign(np.nan_to_num(values)), 0).astype(np.int64)
    # The sign that most of the neighbours have: a single measurement neither makes nor interrupts a difference.
    half = len(signs) // 20
    padded = np.pad(signs, ((half, half), (0, 0)), mode="edge")
    sums = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=0).sum(-1)
    return np.where(np.abs(sums) > half, np.sign(sums), 0)


def _stretches(comparison: Comparison, signs: NDArray[np.int64], beyond: Values) -> Iterator[_Stretch]:
    """Every stretch of time in which most layers of a stage, of a role, or one layer differ in one direction."""
    drawn = comparison.drawn
    groups = {f"layer {name}": np.arange(len(drawn.layers)) == index for index, name in enumerate(drawn.layers)}
    for kind, labels in (("role", drawn.roles), ("stage", drawn.stages)):
        for label in dict.fromkeys(labels):
            members = np.array(labels) == label
            if members.sum() > 1:
                groups[f"{kind} {label} ({members.sum()} layers)"] = members
    for name, members in groups.items():
        shares = [(signs[:, members] == sign).mean(1) >= MOST_OF_A_GROUP for sign in (1, -1)]
        for start, end, sign in _runs(shares[0].astype(np.int64) - shares[1]):
            own = np.nan_to_num(beyond[start : end + 1, members])
            still = signs[start : end + 1, members] == sign
            yield _Stretch(name, members, start, end, float(np.abs(own)[still].sum()))


def _runs(signs: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(first, last, sign) of every run of equal signs, of `signs` [T], that is long enough and not of zeros."""
    borders = np.flatnonzero(np.diff(signs)) + 1
    for first, after in zip([0, *borders.tolist()], [*borders.tolist(), len(signs)], strict=True):
        if signs[first] and after - first > len(signs) // 20:
            yield first, after - 1, int(signs[first])


def _sentence(comparison: Comparison, found: _Stretch, overall: Values) -> str:
    stretch = slice(found.start, found.end + 1)
    ratio = float(np.nanmedian(comparison.drawn.values[stretch][:, found.members]))
    others = float(np.nanmedian(overall[stretch]))
    return (
        f"{found.name[0].upper()}{found.name[1:]}: moves {_times_as_much(ratio)} "
        f"{_when(comparison, found.start, found.end)} (all layers: {_times_as_much(others)})."
    )


def _times_as_much(log2: float) -> str:
    if not np.isfinite(log2) or abs(log2) < np.log2(1.1):
        return "about as much"
    factor = 2.0 ** abs(log2)
    number = f"{factor:,.0f}" if factor >= 9.95 else f"{factor:.2g}"
    return f"{number} times as much" if log2 > 0 else f"1/{number} as much"


def _when(comparison: Comparison, start: int, end: int) -> str:
    drawn = comparison.drawn
    clock = drawn.clock.removeprefix("optimizer ")
    first, last = (f"{clock} {drawn.times[index]:,g}" for index in (start, end))
    is_last = end == len(drawn.steps) - 1
    if start == 0:
        return "throughout" if is_last else f"until {last}"
    return f"from {first} on" if is_last else f"from {first} to {last}"


def _trust(comparison: Comparison) -> str:
    first, second = comparison.runs
    if min(first, second) > 1:
        return f"{first} runs against {second}: nothing is said that is within two standard errors of the seeds."
    said = (
        f"{first} run against {second}: how much seeds alone would differ is not known."
        if first == second
        else f"{first} against {second} runs: with one run only, how much seeds alone would differ is not known."
    )
    sampled = np.isfinite(comparison.errors).any()
    return f"{said} Nothing is said that is within two standard errors of the samples." if sampled else said
