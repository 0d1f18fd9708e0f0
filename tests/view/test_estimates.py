"""Values that are estimates: charts show their error, findings leave out what a sample cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM
from histories import made_up, transformer
from test_page import act
from test_render import pixels

from rwc_wandb.cli import main
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import LAYER_COLUMNS, charts
from rwc_wandb.view.compared import compare
from rwc_wandb.view.differences import differences
from rwc_wandb.view.findings import findings
from rwc_wandb.view.render import concrete, png, write_pictures
from rwc_wandb.view.series import series


def estimated(history: History, relative: float, layers: slice = slice(None)) -> History:
    """`history` as if `layers` had been sampled, with errors of that part of their RWC."""
    made = History(history.layers, history.stages, history.sizes, roles=history.roles, blocks=history.blocks)
    errors = np.zeros_like(history.rwc)
    errors[:, layers] = relative * history.rwc[:, layers]
    made.append(history.steps.tolist(), history.rwc, history.rwc_elementwise, errors)
    return made


def test_an_exact_history_is_drawn_as_before() -> None:
    drawn = series([made_up()])
    assert drawn.errors is None
    made = charts(drawn)
    assert all(chart.columns == LAYER_COLUMNS for name, chart in made.items() if name != "rwc_stages")
    assert "estimate" not in json.dumps([chart.strings for chart in made.values()])
    assert len(concrete("rwc_curves", made["rwc_curves"], drawn)["layer"][0]["layer"]) == 2


def test_the_table_and_the_title_have_the_error() -> None:
    history = estimated(made_up(layers=6, measurements=20), 0.0123, slice(2, None))
    chart = charts(series([history]))["rwc_curves"]
    assert chart.columns == [*LAYER_COLUMNS, "error"]
    errors = np.array([row[-1] for row in chart.rows]).reshape(20, 6)
    np.testing.assert_allclose(errors, history.rwc_error, rtol=0.05)
    assert (errors[:, :2] == 0).all()
    assert chart.strings["title"] == "RWC over time, one line per layer (estimates, standard error 1.2 %)"


def test_the_error_of_a_mean_over_runs() -> None:
    runs = [estimated(made_up(seed=seed), 0.2) for seed in range(4)]
    expected = np.sqrt(sum(run.rwc_error.astype(float) ** 2 for run in runs)) / 4
    found = series(runs).errors
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_error_of_elementwise_values_is_not_known() -> None:
    drawn = series([estimated(made_up(), 0.1)], elementwise=True)
    chart = charts(drawn)["rwc_curves"]
    assert {row[-1] for row in chart.rows} == {None}
    assert chart.strings["title"].endswith("(estimates)")
    png(concrete("rwc_curves", chart, drawn))


def test_the_band_is_two_standard_errors_high() -> None:
    """With one layer of constant RWC: the coloured column's height on the logarithmic axis."""
    heights = []
    for relative in (0.05, 0.1, 0.2):
        history = made_up(layers=2, measurements=30)
        history.rwc[:, 0], history.rwc[:, 1] = 1e-2, 1e-4
        drawn = series([estimated(history, relative)])
        picture = pixels(png(concrete("rwc_curves", charts(drawn)["rwc_curves"], drawn), scale=1)).astype(int)
        column = picture[:, picture.shape[1] // 2]
        # Grid and words are grey.
        heights.append(int((np.ptp(column, axis=1) > 20).sum()))
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.25)
    assert heights[2] == pytest.approx(2 * heights[1], rel=0.25)


def test_the_page_says_that_values_are_estimates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    estimated(made_up(), 0.0042).save(tmp_path / "rwc.safetensors")
    assert main(["view", str(tmp_path)]) == 0
    sentence = "its standard error is 0.42 % of it in the median"
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "rwc.html").read_text("utf-8")


def test_the_page_of_a_deep_network_stays_small(tmp_path: Path) -> None:
    write_pictures(estimated(made_up(layers=161, measurements=150), 0.00777), tmp_path)
    assert (tmp_path / "rwc.html").stat().st_size < 3e6


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_draws_bands_also_of_groups(tmp_path: Path) -> None:
    history = estimated(transformer(), 0.1)
    script = """
      const errors = () => Object.fromEntries(rows("rwc_curves").filter(row => row.time === 10).map(
        row => [row.layer, [row.rwc, row.error]]));
      said.push(errors());
      await choose({group: "role", colour: "role"});
      said.push(errors());
    """
    alone, grouped = act(history, tmp_path, script)
    assert list(alone) == history.layers
    for rwc, error in alone.values():
        assert error == pytest.approx(0.1 * rwc, rel=0.05)
    members = [depth for depth, role in enumerate(history.roles) if role == "mlp"]
    rwc, error = grouped["mlp"]
    assert rwc == pytest.approx(history.rwc[0, members].mean(), rel=1e-3)
    assert error == pytest.approx(0.1 * np.sqrt((history.rwc[0, members].astype(float) ** 2).sum()) / 4, rel=0.05)


def test_findings_leave_out_what_the_error_explains() -> None:
    """A layer that is estimated badly oscillates by its error alone."""
    history = made_up(layers=8, measurements=40)
    history.rwc[::2, 3] *= 6
    assert any("oscillates" in sentence for sentence in findings(series([history])))
    assert any("oscillates" in sentence for sentence in findings(series([estimated(history, 0.05, slice(3, 4))])))
    (said,) = findings(series([estimated(history, 0.6, slice(3, 4))]))
    assert said.startswith(f"{history.layers[3]}: the standard error of its sample is above 25 % of RWC at 100 %")
    assert "60 % in their median" in said


def test_a_comparison_of_single_runs_knows_the_errors_of_their_samples() -> None:
    first, second = (made_up(layers=6, measurements=20, seed=0) for _ in range(2))
    second.rwc[:, 2] *= 3
    assert any("1/3 as much" in sentence for sentence in differences(compare([first], [second])))
    precise = [estimated(history, 0.01) for history in (first, second)]
    said = differences(compare(precise[:1], precise[1:]))
    assert any("1/3 as much" in sentence for sentence in said)
    assert said[-1].endswith("Nothing is said that is within two standard errors of the samples.")
    # Two standard errors of log2 of the ratio: 2 sqrt(2) 0.4 / ln 2 = 1.63, and log2 3 = 1.58.
    rough = [estimated(history, 0.4) for history in (first, second)]
    assert not any("1/3 as much" in sentence for sentence in differences(compare(rough[:1], rough[1:])))
