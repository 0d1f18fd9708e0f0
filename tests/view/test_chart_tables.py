"""Tables hold the history's values, thinned where W&B would cut them; templates are filled completely."""

import json
import re

import numpy as np
import pytest
from histories import filled_with, made_up

from rwc_wandb.view.charts import CHARTS, MOST_ROWS, charts, filled, spec, thinned
from rwc_wandb.view.render import concrete
from rwc_wandb.view.series import series


def test_the_tables_hold_the_history() -> None:
    history = made_up(layers=6, measurements=20)
    made = charts(series([history]))
    for name in ("rwc_heatmap", "rwc_curves", "rwc_profile"):
        columns = dict(zip(made[name].columns, zip(*made[name].rows, strict=True), strict=True))
        np.testing.assert_array_equal(np.array(columns["rwc"], np.float32).reshape(20, 6), history.rwc)
        assert columns["layer"][:6] == tuple(history.layers)
        assert columns["depth"][:6] == tuple(range(6))
        assert columns["time"][::6] == tuple(history.steps.tolist())
        assert columns["stage"][:6] == tuple(history.stages)
    stage_rows = [row for row in made["rwc_stages"].rows if row[0] == "layer2"]
    np.testing.assert_allclose([row[3] for row in stage_rows], history.rwc[:, 2:4].astype(float).mean(1))


def test_what_is_not_finite_is_none_and_zero_stays_zero() -> None:
    history = made_up()
    history.rwc[1, 0], history.rwc[2, 0], history.rwc[3, 0] = np.nan, np.inf, 0
    values = [row[5] for row in charts(series([history]))["rwc_curves"].rows if row[0] == history.layers[0]]
    assert values[1:4] == [None, None, 0]


@pytest.mark.parametrize(("length", "most"), [(150, 62), (10_000, 185), (7, 7), (7, 100), (9, 1), (9, 0), (9, 2)])
def test_thinning_is_even(length: int, most: int) -> None:
    shown = thinned(length, most)
    assert len(shown) == min(length, max(most, 1))
    assert shown[-1] == length - 1
    if len(shown) > 1:
        assert shown[0] == 0
        assert np.ptp(np.diff(shown)) <= 1


def test_above_the_limit_the_title_says_how_much_is_shown() -> None:
    made = charts(series([made_up(layers=161, measurements=150)]), "a run")
    for chart in made.values():
        assert len(chart.rows) <= MOST_ROWS
    assert made["rwc_heatmap"].strings["title"].endswith("(means of 62 intervals of 150 measurements)")
    assert made["rwc_heatmap"].strings["title"].startswith("a run: ")
    assert "measurements" not in made["rwc_stages"].strings["title"]
    assert "measurements" not in charts(series([made_up()]))["rwc_heatmap"].strings["title"]


def test_a_long_run_shows_the_means_of_intervals() -> None:
    """Single measurements of noise would show 51 of 20,001 by chance; what is not finite marks its interval."""
    history = made_up(layers=4, measurements=20_001, every=1)
    noise = np.random.default_rng(0)
    history.rwc[:] = np.exp(noise.normal(-5, 1, history.rwc.shape))
    history.rwc[1_000:1_010, 1] = 0
    history.rwc[7_000, 2], history.rwc[15_000, 3] = np.nan, np.inf
    made = charts(series([history]), most_measurements=51)
    rows = [row for row in made["rwc_heatmap"].rows if row[4] > 1]
    assert [(row[3], row[4]) for row in rows[::4]][:2] == [(1, 401), (401, 801)]
    expected = history.rwc[1:].astype(float).reshape(50, 400, 4).mean(1)
    shown = np.array([row[5] for row in rows], float).reshape(50, 4)
    np.testing.assert_allclose(shown, np.where(np.isfinite(expected), expected, np.nan), rtol=1e-12)
    assert [tuple(place) for place in np.argwhere(np.isnan(shown))] == [(17, 2), (37, 3)]
    # A chance measurement is off by a factor of e; the mean of 400 by a tenth.
    known = shown[~np.isnan(shown)]
    assert np.abs(known / np.exp(-4.5) - 1).max() < 0.4
    stages = [row for row in made["rwc_stages"].rows if row[0] == history.stages[0] and row[2] == 401]
    own = history.rwc[1:401, np.array(history.stages) == history.stages[0]].astype(float)
    np.testing.assert_allclose(stages[0][3:], [own.mean(), own.min(1).mean(), own.max(1).mean()], rtol=1e-12)


def test_what_was_not_measured_stays_blank_in_the_heat_map() -> None:
    history = made_up(layers=1, measurements=3, every=10)
    history.append([110, 120], np.full((2, 1), 0.1), np.full((2, 1), 0.1))
    cells = [(row[3], row[4]) for row in charts(series([history]))["rwc_heatmap"].rows]
    assert cells == [(0, 10), (10, 20), (20, 30), (100, 110), (110, 120)]


def test_the_axis_says_what_the_values_are_per() -> None:
    assert charts(series([made_up(every=1)]))["rwc_curves"].strings["value"] == "RWC per step (no unit, log scale)"
    drawn = series([made_up(every=1000)], elementwise=True)
    assert charts(drawn)["rwc_curves"].strings["value"] == "element-wise RWC per 1,000 steps (no unit, log scale)"


def test_time_is_in_epochs_where_their_length_is_known() -> None:
    history = made_up(layers=2, measurements=3, every=6)
    history.steps_per_epoch = 12
    chart = charts(series([history]))["rwc_heatmap"]
    assert [(row[3], row[4]) for row in chart.rows[::2]] == [(0, 0.5), (0.5, 1), (1, 1.5)]
    assert chart.strings["time"] == "epoch"
    assert chart.strings["value"] == "RWC per 0.5 epochs (no unit, log scale)"
    other = made_up(layers=2, measurements=3, every=6)
    assert charts(series([history, other]))["rwc_heatmap"].strings["time"] == "optimizer step"


@pytest.mark.parametrize("name", CHARTS)
def test_templates_are_filled_completely(name: str) -> None:
    template = spec(name)
    assert template["data"] == {"name": "wandb"}
    assert "${field:" in json.dumps(template)
    drawn = series([made_up()])
    described = concrete(name, charts(drawn, 'quotes " and \\ and <b>')[name], drawn)
    assert "${" not in json.dumps(described)
    assert described["title"]["text"].startswith('quotes " and \\ and <b>: ')


@pytest.mark.parametrize("name", ["rwc_stages", "rwc_profile"])
def test_every_stage_has_a_colour_of_its_own(name: str) -> None:
    """Up to 8 blocks, stem and head."""
    text = json.dumps(spec(name))
    ranges = [re.findall(r"#\w{6}", found) for found in re.findall(r'"range": \[("#[^\]]*)\]', text)]
    assert ranges
    assert {len(set(colours)) for colours in ranges} == {10}


def test_a_title_that_looks_like_a_template_stays_a_title() -> None:
    assert filled("${string:title}", {}, {"title": "${field:x}"}) == "${field:x}"


@pytest.mark.parametrize("name", CHARTS)
def test_words_and_colours_are_readable_on_light_and_on_dark(name: str) -> None:
    """W&B draws the same chart on white and on nearly black: contrast of 3 is what graphics need."""
    template = spec(name)
    assert template["background"] == "transparent"
    config = template["config"]
    for colour in (config["axis"]["labelColor"], config["legend"]["labelColor"], config["title"]["color"]):
        assert min(_contrast(colour, "#ffffff"), _contrast(colour, "#1a1c1f")) > 3.5


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_zero_and_all_nan_have_rows() -> None:
    assert {row[5] for row in charts(series([filled_with(0)]))["rwc_curves"].rows} == {0}
    assert {row[5] for row in charts(series([filled_with(np.nan)]))["rwc_curves"].rows} == {None}
