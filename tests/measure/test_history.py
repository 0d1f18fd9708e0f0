"""The series in memory and on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from rwc_wandb import History, HistoryError


def filled(measurements: int = 200) -> History:
    history = History(["a", "b.c", "<script>"], ["early", "early", "later"], [4, 6, 1])
    values = np.random.default_rng(0).random((measurements, 3))
    for step in range(0, measurements, 7):
        part = values[step : step + 7]
        history.append(range(step + 1, step + 1 + len(part)), part, part * 2)
    return history


def test_append_and_grow() -> None:
    history = filled()
    expected = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    assert len(history) == 200
    assert history.steps.dtype == np.int64
    assert history.steps.tolist() == list(range(1, 201))
    assert history.rwc.dtype == np.float32
    np.testing.assert_array_equal(history.rwc, expected)
    np.testing.assert_array_equal(history.rwc_elementwise, expected * 2)


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    history = filled()
    history.append([300], np.array([[np.nan, np.inf, 0.0]]), np.zeros((1, 3)))
    history.steps_per_epoch = 12
    history.save(tmp_path / "rwc.safetensors")
    again = History.load(tmp_path / "rwc.safetensors")
    assert (again.layers, again.stages, again.sizes) == (history.layers, history.stages, history.sizes)
    assert again.steps_per_epoch == 12
    np.testing.assert_array_equal(again.steps, history.steps)
    np.testing.assert_array_equal(again.rwc, history.rwc)
    np.testing.assert_array_equal(again.rwc_elementwise, history.rwc_elementwise)
    assert [path.name for path in tmp_path.iterdir()] == ["rwc.safetensors"]


def test_the_file_is_what_the_readme_says(tmp_path: Path) -> None:
    filled().save(tmp_path / "rwc.safetensors")
    with safe_open(tmp_path / "rwc.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == ["rwc", "rwc_elementwise", "steps"]
        assert json.loads(file.metadata()["layers"]) == ["a", "b.c", "<script>"]


def test_an_empty_history_round_trips(tmp_path: Path) -> None:
    History(["a"], ["early"], [1]).save(tmp_path / "h")
    assert History.load(tmp_path / "h").rwc.shape == (0, 1)


def test_stage_means() -> None:
    names, means = filled().stage_means(np.array([1.0, 3.0, 7.0]))
    assert names == ["early", "later"]
    assert means.tolist() == [2.0, 7.0]


def test_files_that_are_no_history(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"no history file .*absent"):
        History.load(tmp_path / "absent")
    filled().save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(HistoryError, match=r"cut"):
            History.load(tmp_path / "cut")
    from safetensors.numpy import save_file

    save_file({"steps": np.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(HistoryError, match="not a history of rwc_wandb"):
        History.load(tmp_path / "foreign")
