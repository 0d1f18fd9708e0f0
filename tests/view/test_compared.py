"""Two groups of runs compared: the numbers against numpy, the words against what was planted."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from histories import made_up, transformer
from test_render import pixels

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import History
from rwc_wandb.view import command
from rwc_wandb.view.compared import compare
from rwc_wandb.view.differences import differences
from rwc_wandb.view.render import write_comparison


def seeds(factor: float = 1.0, count: int = 3, first: int = 0, noise: float = 0.1) -> list[History]:
    """Runs of one transformer with 40 measurements, one an epoch, that differ by `noise` only."""
    runs = []
    for seed in range(first, first + count):
        run = transformer(blocks=4, measurements=40)
        run.rwc[:] *= factor * np.exp(noise * np.random.default_rng(seed).standard_normal(run.rwc.shape))
        run.steps_per_epoch = 10
        runs.append(run)
    return runs


def test_the_ratio_is_that_of_the_geometric_means_with_the_seeds_standard_error() -> None:
    ours, theirs = seeds(3.0), seeds(first=10, count=4)
    result = compare(ours, theirs)
    logs = [np.log2([run.rwc.astype(np.float64) for run in group]) for group in (ours, theirs)]
    np.testing.assert_allclose(result.drawn.values, logs[0].mean(0) - logs[1].mean(0))
    error = np.sqrt(logs[0].var(0, ddof=1) / 3 + logs[1].var(0, ddof=1) / 4)
    np.testing.assert_allclose(result.errors, error)
    early = np.array(ours[0].stages) == "early"
    of_runs = [each[..., early].mean(-1) for each in logs]
    np.testing.assert_allclose(result.drawn.stage_high[:, 0], of_runs[0].max(0) - of_runs[1].min(0))
    np.testing.assert_allclose(result.drawn.stage_low[:, 0], of_runs[0].min(0) - of_runs[1].max(0))


def test_of_one_run_each_the_band_is_of_the_layers_and_there_is_no_error() -> None:
    (ours,), (theirs,) = seeds(3.0, count=1), seeds(count=1, first=10)
    theirs.rwc[4, 2], ours.rwc[5, 2] = 0, np.inf
    result = compare([ours], [theirs])
    assert np.isnan(result.errors).all()
    assert np.isnan(result.drawn.values[[4, 5], 2]).all()
    later = np.array(ours.stages) == "later"
    ratio = np.log2(ours.rwc[:, later].astype(float) / theirs.rwc[:, later])
    np.testing.assert_allclose(result.drawn.stage_high[:, -1], ratio.max(1), rtol=1e-5)
    assert "how much seeds alone would differ is not known" in differences(result)[-1]


def test_runs_of_different_length_meet_by_epoch_and_this_is_said() -> None:
    ours, theirs = made_up(measurements=20, every=10), made_up(measurements=12, every=30)
    ours.steps_per_epoch, theirs.steps_per_epoch = 10, 30
    result = compare([ours], [theirs])
    assert result.drawn.times.tolist() == list(range(1, 13))
    np.testing.assert_allclose(
        result.drawn.values, np.log2(ours.rwc[:12].astype(float) / theirs.rwc.astype(float)), atol=1e-6
    )
    assert result.aligned == (
        "Compared at the 12 measurements that both have, by epoch (1 to 12); left out: 8 of the first."
    )


def test_without_epochs_optimizer_steps_are_what_is_compared() -> None:
    result = compare([made_up(measurements=5, every=10)], [made_up(measurements=9, every=10)])
    assert result.aligned.startswith("Compared at the 5 measurements that both have, by optimizer step (10 to 50)")


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (made_up(6), made_up(7), "7 against 6.*compared"),
        (made_up(every=10), made_up(every=50), "every 10 optimizer steps, the other every 50"),
    ],
)
def test_what_cannot_be_compared_is_said(ours: History, theirs: History, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compare([ours], [theirs])


def test_without_a_time_in_common_nothing_is_compared() -> None:
    ours, theirs = made_up(measurements=3), made_up(measurements=3)
    theirs.steps[:] += 5
    with pytest.raises(UserError, match=r"no optimizer step in common \(10 to 30 against 15 to 35\)"):
        compare([ours], [theirs])


def test_what_was_planted_is_said_with_its_factor_and_its_time_the_largest_first() -> None:
    ours, theirs = seeds(3.0, noise=0.02), seeds(first=10, noise=0.02)
    roles = np.array(ours[0].roles)
    for run in ours:
        run.rwc[:, roles == "mlp"] *= 20
        run.rwc[:8, -1] *= 6
    said = differences(compare(ours, theirs))
    assert said[0] == "All layers together move 3 times as much throughout (the median)."
    assert said[1] == "Role mlp (4 layers): moves 60 times as much throughout (all layers: 3 times as much)."
    assert said[2] == "Layer head: moves 18 times as much until epoch 8 (all layers: 3 times as much)."
    assert said[3:] == [
        "Compared at the 40 measurements that both have, by epoch (1 to 40).",
        "3 runs against 3: nothing is said that is within two standard errors of the seeds.",
    ]


def test_equal_groups_have_no_difference() -> None:
    for noise in (0.05, 0.3, 0.6):
        said = differences(compare(seeds(noise=noise), seeds(first=10, noise=noise)))
        assert len(said) == 3
        assert said[0] == "On the whole both change about as much (the median over all layers)."


def test_the_heat_map_is_white_where_equal_red_where_more_and_blue_where_less(tmp_path: Path) -> None:
    (ours,), (theirs,) = seeds(count=1, noise=0), seeds(count=1, noise=0)
    ours.rwc[:, 0] *= 4
    ours.rwc[:, 1] /= 4
    write_comparison(compare([ours], [theirs]), tmp_path, "one against other")
    picture = pixels((tmp_path / "rwc_ratio.png").read_bytes())
    rows = {tuple(colour) for colour in picture[:, picture.shape[1] * 3 // 4].tolist()}
    assert {(178, 24, 43), (33, 102, 172), (255, 255, 255)} <= rows


def test_the_command_names_what_the_groups_differ_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for rate, factor in (("0.1", 8.0), ("0.01", 1.0)):
        for seed, run in enumerate(seeds(factor, count=2, first=round(factor))):
            folders.append(tmp_path / f"gpt-digits-lr{rate}-seed{seed}")
            folders[-1].mkdir()
            run.save(folders[-1] / "rwc.safetensors")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [*folders[:2], "--against", *folders[2:], "--output", tmp_path, "--pictures", "svg"]
    command.run(parser.parse_args([str(word) for word in words]))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "lr0.1 against lr0.01:"
    assert said[1].startswith("All layers together move 8")
    names = ["rwc_ratio.html", "rwc_ratio.png", "rwc_ratio.svg", "rwc_ratio_stages.svg"]
    assert said[-4:] == [str(tmp_path / name) for name in names]
    page = (tmp_path / "rwc_ratio.html").read_text("utf-8")
    assert f"<li>{said[1]}</li>" in page
