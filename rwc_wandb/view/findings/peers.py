"""Layers and roles that move far less, or far more, than their peers."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.view.findings.medians import medians
from rwc_wandb.view.findings.words import groups, times
from rwc_wandb.view.series import Series

FACTOR = 25.0
"""From this factor on a layer of a block stands out, if it is beyond the spread of all, too: in the clean trainings of
tests/view/trainings.py some layers are further from the median one than this, where all layers differ much."""

FACTOR_ALONE = 50.0
"""The same for what does not repeat: stems, embeddings and heads differ more from the median layer."""

SPREADS = 2.5
"""Nor does a layer stand out that is within this many spreads (1.48 times the median absolute deviation of the logs, a
standard deviation where they are normal)."""

FACTOR_NEIGHBOURS = 12.0
"""A layer stands out among those of its role in the block before and the block after by this factor from both, even if
not among all layers."""

SPREADS_NEIGHBOURS = 10.0
"""The root of that factor is enough where it is so many spreads of the role's layers: they are otherwise alike."""

LEAST_LAYERS = 5
LEAST_MEASUREMENTS = 4

Values = NDArray[np.float64]


def outliers(series: Series) -> list[str]:
    """Sentences, the largest factor first: typical over the run (the median of the log ratio to the median layer), or
    over its last third."""
    if len(series.layers) < LEAST_LAYERS or len(series.steps) < LEAST_MEASUREMENTS:
        return []
    apart = relative(series)
    late = apart[-(-2 * len(apart) // 3) :]
    run, last = _typical(apart), _typical(late)
    found: list[tuple[float, str]] = []
    for sign in (-1, 1):
        low = _standing_out(series, sign * run)
        chosen = low | _standing_out(series, sign * last)
        found += _among_neighbours(series, sign, run, last, chosen)
        chosen = _with_their_role(series, chosen, sign * np.where(low.any(), run, last))
        others = ~chosen if not chosen.all() else chosen
        for name, indices in groups(series, np.flatnonzero(chosen)):
            # One that no longer changes has none of the last third.
            medians = [_quietly(np.nanmedian, of[which], 0) for of in (run, last) for which in (indices, others)]
            whole, end = float(medians[0] - medians[1]), float(medians[2] - medians[3])
            if low[indices].any():
                differs = abs(whole - end) > np.log(2)
                said = f"{times(np.exp(whole))}{' of' if sign < 0 else ''} the median layer"
                said += f" (in the last third: {times(np.exp(end))})" if differs else ""
            else:
                said = f"in the last third {times(np.exp(end))}{' of' if sign < 0 else ''} the median layer"
            weight = float(np.nanmax(np.abs([whole, end])))
            found.append((weight, f"{name}: {said}."))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def relative(series: Series) -> Values:
    """[T, L] log of RWC over that of the median layer at the same time; NaN where a layer does not change."""
    return np.asarray(series.logs - medians(series.logs)[:, None])


def _standing_out(series: Series, apart: Values) -> NDArray[np.bool_]:
    """[L] whether a layer is far above the others: above all, or above those of its role."""
    alone = np.array([not block.isdigit() for block in series.blocks])
    least = np.where(alone, np.log(FACTOR_ALONE), np.log(FACTOR))
    found = apart > np.maximum(least, SPREADS * _spread(apart))
    roles = np.array(series.roles)
    for role in set(series.roles):
        members = np.flatnonzero(roles == role)
        rest = apart[roles != role]
        if len(members) >= 3 and len(rest) >= LEAST_LAYERS:
            # Were the role among them, half of the layers could move the median and widen the spread.
            own = apart[members] - _quietly(np.nanmedian, rest, 0)
            far = own > np.maximum(np.log(FACTOR), SPREADS * _spread(rest))
            found[members] |= far & (apart[members] > np.log(FACTOR) / 2)
        if len(members) >= LEAST_LAYERS:
            own = apart[members] - _quietly(np.nanmedian, apart[members], 0)
            found[members] |= own > np.maximum(np.log(FACTOR), 2 * SPREADS * _spread(own))
    return np.asarray(found)


def _among_neighbours(
    series: Series, sign: int, run: Values, last: Values, said: NDArray[np.bool_]
) -> list[tuple[float, str]]:
    """The weight and the sentence of each layer that stands out between its neighbours only."""
    roles = np.array(series.roles)
    found = []
    for role in dict.fromkeys(series.roles):
        members = np.flatnonzero(roles == role)
        for before, index, after in zip(members, members[1:], members[2:], strict=False):
            beside = [before, after]
            apart = min(sign * (values[index] - values[other]) for values in (run, last) for other in beside)
            alike = SPREADS_NEIGHBOURS * _spread(run[members])
            if not said[index] and (
                apart > np.log(FACTOR_NEIGHBOURS) or apart > max(np.log(FACTOR_NEIGHBOURS) / 2, alike)
            ):
                factor = float(np.exp(run[index] - np.mean(run[beside])))
                of = " of" if sign < 0 else ""
                found.append((apart, f"{series.layers[index]}: {times(factor)}{of} {role} in the blocks beside."))
    return found


def _with_their_role(series: Series, chosen: NDArray[np.bool_], apart: Values) -> NDArray[np.bool_]:
    """Also those of a role that stand out half as far (in logs), where more than half of them do: one pattern."""
    roles = np.array(series.roles)
    result = chosen.copy()
    for role in {series.roles[index] for index in np.flatnonzero(chosen)}:
        members = roles == role
        near = members & (apart > np.nanmedian(apart[chosen & members]) / 2)
        if chosen[near].sum() > 0.5 * near.sum():
            result |= near
    return result


def _typical(apart: Values) -> Values:
    """[L] the median over time."""
    return _quietly(np.nanmedian, apart, 0)


def _spread(values: Values) -> float:
    return 1.4826 * float(_quietly(np.nanmedian, np.abs(values - _quietly(np.nanmedian, values, 0)), 0))


def _quietly(reduction: object, values: Values, axis: int) -> Values:
    """A reduction that gives NaN where nothing is known, and says nothing about it."""
    assert callable(reduction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(reduction(values, axis=axis))
