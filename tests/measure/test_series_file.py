"""The file of a series: what the end of a training waits for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from histories import made_up

from rwc_wandb.measure.series import file
from rwc_wandb.measure.series.file import SeriesFile
from rwc_wandb.measure.series.history import History


@pytest.mark.parametrize("hangs", ["the save before", "the last save"])
def test_a_disk_that_does_not_answer_holds_up_the_end_no_longer_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(file, "SECONDS_TO_WRITE", 0.2)
    monkeypatch.setattr(History, "save", lambda *_: answers.wait(20))
    series_file = SeriesFile(tmp_path / "rwc.safetensors")
    if hangs == "the save before":
        series_file.keep(made_up())
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"rwc\.safetensors is not written after 0\.2 s"):
        series_file.finish(made_up())
    assert time.monotonic() - begun < 5
    answers.set()


def test_the_last_save_follows_the_one_before_and_its_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rwc.safetensors"
    series_file = SeriesFile(path)
    history = made_up()
    series_file.keep(history)
    history.append([history.steps[-1] + 1], history.rwc[-1:], history.rwc[-1:])
    series_file.finish(history)
    assert len(History.load(path)) == len(history)
    with pytest.raises(OSError, match="cannot be written"):
        SeriesFile(tmp_path / "missing" / "rwc.safetensors").finish(history)


def test_what_came_before_a_pause_is_saved_in_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long evaluation, or a notebook left alone: no measurement comes, and a kill loses none that did."""
    monkeypatch.setattr(file, "LEAST_SECONDS", 0.5)
    path = tmp_path / "rwc.safetensors"
    series_file = SeriesFile(path)
    history = made_up()
    for _ in range(3):
        history.append([history.steps[-1] + 1], history.rwc[-1:], history.rwc[-1:])
        series_file.keep(history)
    end = time.monotonic() + 60
    while series_file._thread is not None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert len(History.load(path)) == len(history)


def test_a_signal_whose_handler_ends_the_run_while_a_save_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = made_up()
    file = SeriesFile(tmp_path / "rwc.safetensors")
    start = threading.Thread.start

    def start_and_end(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        file.keep(history)
        file.finish(history)
        start(thread)

    def keep() -> None:
        monkeypatch.setattr(threading.Thread, "start", start_and_end)
        file.keep(history)

    trainer = threading.Thread(target=keep, daemon=True)
    trainer.start()
    trainer.join(30)
    assert not trainer.is_alive()
    assert History.load(file.path).steps.tolist() == history.steps.tolist()
