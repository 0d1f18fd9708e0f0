"""One run or the mean of several, against numpy."""

import numpy as np
import pytest
from histories import made_up

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.series import series


def test_one_run_is_drawn_as_it_is() -> None:
    history = made_up()
    drawn = series([history])
    np.testing.assert_array_equal(drawn.values, history.rwc)
    np.testing.assert_array_equal(series([history], elementwise=True).values, history.rwc_elementwise)
    assert (drawn.runs, drawn.interval, drawn.stage_names) == (1, 10, ["layer1", "layer2", "layer3"])
    of_stage = history.rwc[:, 2:4].astype(np.float64)
    np.testing.assert_allclose(drawn.stage_means[:, 1], of_stage.mean(1))
    np.testing.assert_array_equal(drawn.stage_low[:, 1], of_stage.min(1))
    np.testing.assert_array_equal(drawn.stage_high[:, 1], of_stage.max(1))


def test_a_layer_without_a_value_does_not_hide_the_band_of_the_others() -> None:
    history = made_up()
    members = np.array(history.stages) == history.stages[-1]
    history.rwc[4, np.flatnonzero(members)[0]] = np.nan
    history.rwc[5, members] = np.inf
    drawn = series([history])
    others = history.rwc[4, members][1:]
    assert (drawn.stage_low[4, -1], drawn.stage_high[4, -1]) == (others.min(), others.max())
    assert np.isnan([drawn.stage_low[5, -1], drawn.stage_high[5, -1], drawn.stage_means[5, -1]]).all()


def test_several_runs_are_averaged_with_a_band_from_lowest_to_highest() -> None:
    histories = [made_up(seed=seed) for seed in range(5)]
    drawn = series(histories)
    values = np.stack([history.rwc for history in histories]).astype(np.float64)
    np.testing.assert_allclose(drawn.values, values.mean(0))
    means = values[..., :2].mean(-1)
    np.testing.assert_allclose(drawn.stage_means[:, 0], means.mean(0))
    np.testing.assert_allclose(drawn.stage_low[:, 0], means.min(0))
    np.testing.assert_allclose(drawn.stage_high[:, 0], means.max(0))


def test_runs_meet_at_the_steps_that_all_of_them_have() -> None:
    long, short = made_up(measurements=20), made_up(measurements=20, every=20, seed=1)
    drawn = series([long, short])
    assert drawn.steps.tolist() == list(range(20, 201, 20))
    np.testing.assert_allclose(drawn.values[0], (long.rwc[1].astype(float) + short.rwc[0]) / 2)


def test_a_run_without_a_finite_value_is_left_out_of_the_mean_there() -> None:
    broken, whole = made_up(), made_up(seed=1)
    broken.rwc[3, 2], broken.rwc[4, 2], whole.rwc[4, 2] = np.inf, np.nan, np.nan
    drawn = series([broken, whole])
    assert drawn.values[3, 2] == whole.rwc[3, 2]
    assert np.isnan(drawn.values[4, 2])
    assert np.isfinite(drawn.values[5]).all()


def test_of_a_step_measured_twice_the_later_one_counts() -> None:
    history = made_up(measurements=4)
    history.append([30, 50], np.full((2, 6), 0.5), np.full((2, 6), 0.5))
    drawn = series([history])
    assert drawn.steps.tolist() == [10, 20, 30, 40, 50]
    assert (drawn.values[2] == 0.5).all()


@pytest.mark.parametrize(
    ("histories", "sentence"),
    [
        ([], "no history"),
        ([History(["a"], ["early"], [1])], "no measurement"),
        ([made_up(6), made_up(7)], "7 against 6"),
        ([made_up(every=3, measurements=2), made_up(every=5, measurements=2)], "no optimizer step in common"),
    ],
)
def test_what_cannot_be_drawn_is_said(histories: list[History], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        series(histories)


def test_the_first_different_layer_is_named() -> None:
    other = made_up()
    other.layers[2] = "elsewhere"
    with pytest.raises(UserError, match=r"depth 2: 'elsewhere' against 'layer2\.2\.conv'"):
        series([made_up(), other])


def test_the_band_of_one_run_is_of_the_layers_that_change() -> None:
    history = made_up(layers=6, measurements=4)  # two layers a stage
    history.rwc[1, 0], history.rwc[2, 0], history.rwc[3, :2] = 0, np.nan, 0
    drawn = series([history])
    other = history.rwc[:, 1].astype(float)
    np.testing.assert_array_equal(drawn.stage_low[1:, 0], [other[1], other[2], np.nan])
    np.testing.assert_array_equal(drawn.stage_high[1:, 0], [other[1], other[2], np.nan])
    np.testing.assert_array_equal(drawn.stage_low[0, 0], history.rwc[0, :2].astype(float).min())
