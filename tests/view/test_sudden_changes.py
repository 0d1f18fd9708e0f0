"""Sudden changes of long runs are found without a loop, in little memory, and are those that a plain loop finds."""

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from histories import made_up
from numpy.typing import NDArray

from rwc_wandb.view.findings import findings
from rwc_wandb.view.findings.changes import APART, SPIKE, WINDOW, _largest, _spike, _steps, _together
from rwc_wandb.view.findings.medians import medians
from rwc_wandb.view.series import series

Values = NDArray[np.float64]


def plain_steps(logs: Values, window: int) -> Values:
    window = min(window, max(len(logs) // 5, 3))
    result = np.zeros_like(logs)
    for place in range(max(2 * window, len(logs) // 10), len(logs) - window + 1):
        before, after = logs[place - window : place], logs[place : place + window]
        change = np.nanmedian(after, axis=0) - np.nanmedian(before, axis=0)
        level = np.sign(change) * (np.nanmin(np.sign(change) * after, axis=0))
        reached = np.sign(change) * (level - np.nanmedian(before, axis=0)) > 0.5 * np.abs(change)
        sudden = np.sign(change) * (logs[place] - logs[place - 1]) > 0.6 * np.abs(change)
        result[place] = np.where(reached & sudden, np.nan_to_num(change), 0)
    return result


def plain_spike(common: Values) -> tuple[int, float] | None:
    best: tuple[int, float] | None = None
    window = min(WINDOW, max(len(common) // 5, 3))
    for place in range(2 * window, len(common) - window):
        before, after = common[place - window : place], common[place + 2 : place + 2 + window]
        height = common[place] - max(np.nanmedian(before), np.nanmedian(after))
        if not np.isnan(after).any() and height > np.log(SPIKE) and (best is None or np.exp(height) > best[1]):
            best = (place, float(np.exp(height)))
    return best


def plain_together(steps: Values) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for index, own in enumerate(steps.T):
        for place, change in _largest(own, np.log(APART), np.log(APART)):
            near = next((key for key in found if abs(key[0] - place) <= 2 and key[1] * change > 0), None)
            found.setdefault(near or (place, int(np.sign(change))), []).append(index)
    return found


def planted(random: np.random.Generator) -> Values:
    """Logs of few layers at few measurements that fall, leap and step; some are unknown, some equal."""
    measurements, layers = random.integers(15, 90), random.integers(1, 9)
    logs = random.normal(size=(measurements, layers)) * random.choice([0.05, 0.5])
    logs -= np.linspace(0, 3 * random.random(), measurements)[:, None]
    for place in random.integers(measurements, size=4):
        late = np.minimum(place + random.integers(0, 3, layers), measurements)
        for layer in np.flatnonzero(random.random(layers) < 0.6):
            logs[late[layer] :, layer] += random.choice([-5, 2, 4, 5])
    for place in (*random.integers(measurements, size=2), measurements - WINDOW - 1):
        logs[place : place + random.integers(1, 3)] += random.choice([0, 4])
    logs[random.random(logs.shape) < random.choice([0, 0.05, 0.4])] = np.nan
    if random.random() < 0.3:
        logs[random.integers(measurements) :, 0] = np.nan
    return np.round(logs) if random.random() < 0.2 else logs


@pytest.mark.parametrize("block", [60, 1_000_000])
def test_they_are_those_of_a_plain_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwc_wandb.view.findings.medians.BLOCK", block)
    random = np.random.default_rng(0)
    seen = np.zeros(4)
    for _ in range(120):
        logs = planted(random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            common, steps, leap = np.nanmedian(logs, 1), plain_steps(logs, WINDOW), plain_spike(np.nanmedian(logs, 1))
            np.testing.assert_array_equal(_steps(logs, WINDOW), steps, strict=True)
        np.testing.assert_array_equal(medians(logs), common, strict=True)
        assert _spike(common) == leap
        together = plain_together(steps)
        assert list(_together(steps).items()) == list(together.items())
        last = leap is not None and leap[0] == len(logs) - min(WINDOW, max(len(logs) // 5, 3)) - 1
        seen += [(steps != 0).any(), leap is not None, last, any(len(set(own)) > 1 for own in together.values())]
    assert (seen > [60, 30, 3, 5]).all(), seen


def test_medians_of_even_and_odd_counts_and_of_nothing() -> None:
    nan = np.nan
    rows = np.array([[3, nan, 1], [nan, 2, nan], [nan, nan, nan], [5, 4, 9]])
    np.testing.assert_array_equal(medians(rows), [2, 2, nan, 5])


def test_numpys_median_is_not_taken_for_each_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a run of 20,000 measurements waited a minute at its end."""
    history = made_up(layers=21, measurements=2000)
    history.rwc[1000] *= 50
    calls: list[int] = []
    nanmedian = np.nanmedian

    def counted(*words: Any, **options: Any) -> Any:
        calls.append(1)
        return nanmedian(*words, **options)

    monkeypatch.setattr(np, "nanmedian", counted)
    (leap,) = (sentence for sentence in findings(series([history])) if "leapt" in sentence)
    assert leap.startswith("RWC of all layers leapt to 58 times its level at step 10,010, and came back")
    assert len(calls) < 200


def test_windows_take_little_memory() -> None:
    logs = np.random.default_rng(0).normal(size=(40_000, 60))
    tracemalloc.start()
    try:
        result = _steps(logs, WINDOW)
        peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()
    assert peak < 80e6
