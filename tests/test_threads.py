"""Work that is done in a thread is done also where the interpreter starts none any more."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from histories import made_up

from rwc_wandb import History
from rwc_wandb.log import budget
from rwc_wandb.log.api import within
from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.series.file import SeriesFile
from rwc_wandb.measure.series.histograms_file import HistogramsFile
from rwc_wandb.threads import Worker


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12.0 to 3.12.2 within `atexit`."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("no_threads")
def test_files_are_whole(tmp_path: Path) -> None:
    history = made_up()
    file = SeriesFile(tmp_path / "rwc.safetensors")
    file.keep(history)
    history.append([history.steps[-1] + 1], history.rwc[-1:], history.rwc[-1:])
    file.finish(history)
    assert len(History.load(file.path)) == len(history)
    with pytest.raises(OSError, match="cannot be written"):
        SeriesFile(tmp_path / "missing" / "rwc.safetensors").finish(history)

    histograms = HistogramsFile(tmp_path / "rwc.jsonl")
    for step in (1, 2):
        histograms.append(["fc"], Histograms(step, torch.ones(2, 1, 4, dtype=torch.int64), torch.zeros(2, 1, 2)))
    histograms.finish()
    assert [json.loads(line)["step"] for line in histograms.path.read_text().splitlines()] == [1, 2]


@pytest.mark.usefixtures("no_threads")
def test_calls_have_their_result() -> None:
    assert within(1, lambda: 7) == 7
    with pytest.raises(KeyError, match="missing"):
        within(1, lambda: {}["missing"])


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("answers", [True, False])
def test_a_process_that_does_not_answer_is_asked_once(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def round_trip(run: Any) -> None:
        asked.append(run)
        if not answers:
            raise TimeoutError

    monkeypatch.setattr(budget, "_round_trip", round_trip)
    begun = time.monotonic()
    assert budget.Flow("run").wait(0.1) == answers  # type: ignore[arg-type]
    assert asked == ["run"]
    assert time.monotonic() - begun < 5


def test_other_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = []
    worker = Worker(done.append, 1)
    worker.start()
    worker.join(5)
    assert done == [1]
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Worker(done.append, 2).start()
    assert done == [1]
