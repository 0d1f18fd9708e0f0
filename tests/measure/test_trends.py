"""Numbers that sum up a series, against closed forms."""

import math

import numpy as np
import pytest

from rwc_wandb.measure.series.trends import depth_trend, levelled_off, ranks


def test_ranks_share_their_mean() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_depth_trend_is_spearman_s_rho() -> None:
    assert depth_trend(np.array([1e-3, 2e-3, 1.0])) == pytest.approx(1)
    assert depth_trend(np.array([1.0, 0.1, 0.01])) == pytest.approx(-1)
    # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1))
    assert depth_trend(np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert depth_trend(np.array([1.0, np.nan, 3.0, 2.0, np.inf, 4.0])) == pytest.approx(0.8)
    assert math.isnan(depth_trend(np.array([1.0, 1.0])))
    assert math.isnan(depth_trend(np.array([1.0])))


def test_levelled_off() -> None:
    steps = np.arange(10, 1010, 10)
    falling = 0.5 ** np.minimum(np.arange(100), 20.0)
    assert levelled_off(steps, falling) == steps[19]
    assert levelled_off(steps, np.ones(100)) == 10
    assert levelled_off(steps, 0.5 ** np.arange(100.0)) is None
    assert levelled_off(steps[:9], np.ones(9)) is None
    assert levelled_off(steps, np.where(np.arange(100) == 50, np.nan, 1.0)) == 10
