"""Whatever is killed, and when: with `--resume` W&B has every row once, in order, as of a run that was left alone.

With RWC_KILLS=2 or more also in two processes, and with either cadence.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
import wandb
from standin import StandIn
from standin.store import Run as ServerRun

from rwc_wandb import History, watch
from rwc_wandb.log.budget import Flow
from rwc_wandb.log.runs import ending
from rwc_wandb.log.runs.opening import open_run
from rwc_wandb.study.train.output import read_result
from rwc_wandb.study.train.tracking import backlog
from rwc_wandb.study.train.tracking.ending import end_run
from rwc_wandb.study.train.tracking.recorded import RecordedRun
from rwc_wandb.study.train.tracking.rows_file import RowsFile

WORDS = ["train", "--resume", "--model", "torchvision:squeezenet1_1", "--image-size", "24", "--limit-train", "96"]
WORDS += ["--limit-test", "40", "--batch-size", "16", "--epochs", "8", "--output", "runs"]
CADENCES = {
    "epochs": ["--rwc-every", "epoch", "--histogram-every", "epoch"],
    "steps": ["--rwc-every", "1", "--histogram-every", "5", "--checkpoint-every", "4"],
}
EPOCHS, STEPS = 8, 48
PATIENCE = 300
KILLS = int(os.environ.get("RWC_KILLS", "1"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rwc_wandb"]


@pytest.fixture(autouse=True)
def quick(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    # With registered charts the run gets no page of them, which takes seconds to make.
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def start(cadence: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    words = [*(launcher or [sys.executable, "-m", "rwc_wandb"]), *WORDS, *CADENCES[cadence]]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "Traceback" not in said, said
    return said


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def epochs_done(count: int) -> bool:
    return any(len(path.read_text().splitlines()) > count for path in Path("runs").glob("*/metrics.csv"))


def kill_training(process: subprocess.Popen[str]) -> None:
    """Every process of the training but W&B's, as an out-of-memory killer or a scheduler does."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        if "wandb" not in one.name():
            one.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0


def kill_wandb(process: int) -> None:
    for one in psutil.Process(process).children(recursive=True):
        if "wandb-core" in one.name():
            one.kill()


def folder() -> Path:
    (found,) = (path.parent for path in Path("runs").glob("*/config.yaml"))
    return found


def rows(server: ServerRun) -> list[dict[str, Any]]:
    """Without charts, and without what differs between two runs."""
    ours = [{key: value for key, value in row.items() if key[0] != "_" and "chart" not in key} for row in server.rows]
    for row in ours:
        row.pop("images_per_second", None)
    return [row for row in ours if row]


def assert_whole(server: ServerRun, cadence: str) -> None:
    """Every row that the files tell of, once and in order."""
    found, history = rows(server), History.load(folder() / "rwc.safetensors")
    with (folder() / "metrics.csv").open() as file:
        epochs = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(epochs) == EPOCHS
    sent = [row for row in found if "epoch" in row]
    for key in ("epoch", "train/loss", "train/accuracy", "test/loss", "test/accuracy"):
        assert [row[key] for row in sent] == [epoch[key] for epoch in epochs]
    assert history.steps.tolist() == list(range(1, STEPS + 1)) if cadence == "steps" else list(range(6, 49, 6))
    layer = f"rwc/{history.layers[3].replace('.', '/')}"
    sent = [row for row in found if layer in row]
    ends = [row["rwc/step"] for row in sent]
    assert ends == list(range(6, STEPS + 1, 6))
    windows = np.split(history.rwc[:, 3].astype(float), np.searchsorted(history.steps, ends[:-1], side="right"))
    assert [row[layer] for row in sent] == pytest.approx([window.mean() for window in windows], rel=1e-6)
    histograms = [row["rwc/step"] for row in found if f"hist/update/{layer[4:]}" in row]
    assert histograms == list(range(5, STEPS + 1, 5) if cadence == "steps" else range(6, 49, 6))
    assert server.summary["test/last_accuracy"] == epochs[-1]["test/accuracy"]
    assert "rwc_summary/findings" in server.summary
    assert (server.state, server.exit_code) == ("finished", 0)
    Path("uploaded.safetensors").write_bytes(server.files["rwc.safetensors"])
    np.testing.assert_array_equal(History.load(Path("uploaded.safetensors")).rwc, history.rwc)
    assert "rwc_charts/rwc_curves_table" in server.tables
    assert read_result(folder()) is not None
    assert not (folder() / "rows.jsonl").exists()


def test_what_waits_for_a_row_at_the_end_is_one(standin: StandIn, tmp_path: Path) -> None:
    """The means of the last epoch, where W&B's process was too slow to take them before the epoch's own row."""
    opened, _ = open_run(project="p")
    run = RecordedRun(opened, RowsFile(tmp_path), print)
    run.log({"epoch": 1})
    run.log({"rwc/step": 6, "rwc/layer": 0.5}, commit=False)
    assert end_run(run) == ""
    (server,) = standin.runs.values()
    expected = [{"epoch": 1}, {"rwc/step": 6, "rwc/layer": 0.5}]
    assert rows(server) == list(RowsFile(tmp_path).rows()) == expected


def test_rows_for_which_wandb_is_too_slow_are_on_record_at_once_and_follow(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a checkpoint would count them as logged, and a kill after it would lose them."""
    opened, _ = open_run(project="p")
    run = RecordedRun(opened, RowsFile(tmp_path), print)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(model, optimizer, run=cast("Any", run), log_every=1, histogram_every=None, rows="own")

    def step(number: int) -> None:
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        assert [row.get("rwc/step") for row in RowsFile(tmp_path).rows()] == list(range(1, number + 1))

    with monkeypatch.context() as busy:
        busy.setattr(Flow, "allows", lambda *_: False)
        for number in range(1, 6):
            step(number)
        assert len(run.backlog) == 5
    step(6)
    assert len(run.backlog) == 4  # Two of the six: not all within one step.
    assert end_run(run) == ""
    (server,) = standin.runs.values()
    assert rows(server) == list(RowsFile(tmp_path).rows())
    assert run.is_complete


def test_a_wandb_process_that_never_answers_leaves_rows_for_the_resume(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _ = open_run(project="p")
    said: list[str] = []
    run = RecordedRun(opened, RowsFile(tmp_path), said.append)
    with monkeypatch.context() as silent:
        silent.setattr(Flow, "allows", lambda *_: False)
        silent.setattr(Flow, "wait", lambda *_: False)
        silent.setattr(opened, "finish", lambda **_: (_ for _ in ()).throw(TimeoutError("W&B took too long")))
        run.log({"epoch": 1})
        line = end_run(run)
    assert "W&B has not taken all of the run in time" in line
    assert "--resume sends what W&B lacks; that sync would not bring every row." in line
    assert not run.is_complete
    # It answers again a moment later: the run ends in order, without what was given up.
    with monkeypatch.context() as late:
        late.setattr(opened, "finish", lambda **_: None)
        late.setattr(ending, "_untaken", lambda _: "")
        late.setattr(ending, "_refusal", lambda _: "")
        assert end_run(run) == "W&B still lacks rows of this run: the same command with --resume sends them."
    monkeypatch.setattr(backlog, "MOST_VALUES", 3)
    with monkeypatch.context() as silent:
        silent.setattr(Flow, "allows", lambda *_: False)
        for epoch in range(2, 6):
            run.log({"epoch": epoch})
    assert run.failure == "TimeoutError: W&B's process has not read for minutes"
    assert len(said) == 1
    assert not run.backlog
    assert [row["epoch"] for row in RowsFile(tmp_path).rows()] == [1, 2, 3, 4, 5]
    opened.finish()


def test_what_waits_for_a_process_that_has_ended_is_on_record(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Means and histograms for which W&B's process was too slow, before it was killed."""
    opened, _ = open_run(project="p")
    run = RecordedRun(opened, RowsFile(tmp_path), lambda _: None)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, optimizer, run=cast("Any", run), log_every=1, histogram_every=1)
    with monkeypatch.context() as busy:
        busy.setattr(Flow, "allows", lambda *_: False)
        for _ in range(4):
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        kill_wandb(os.getpid())
        monitor.close()
        run.finish()
    assert run.failure.startswith("W&B's process has ended")
    assert [str(one.message) for one in recwarn if one.category is not ResourceWarning] == []
    found = list(RowsFile(tmp_path).rows())
    assert [row["rwc/step"] for row in found if "rwc/weight" in row] == [1, 2, 3, 4]
    assert [row["rwc/step"] for row in found if "hist/update/weight" in row] == [1, 2, 3, 4]
    assert [row["rwc/weight"] for row in found] == pytest.approx(monitor.history.rwc[:, 0].tolist(), rel=1e-6)
    with pytest.raises(ConnectionError):
        wandb.teardown()  # The client of later tests begins anew.


CASES = [("epochs", 1, []), ("steps", 2, [])]
if KILLS > 1:
    CASES += [("epochs", 2, []), ("steps", KILLS, []), ("epochs", 2, TORCHRUN), ("steps", 1, TORCHRUN)]


@pytest.mark.parametrize(("cadence", "kills", "launcher"), CASES)
def test_a_killed_training(cadence: str, kills: int, launcher: list[str], standin: StandIn) -> None:
    draw = random.Random(kills)
    for number in range(kills):
        process = start(cadence, launcher)
        wait_for(lambda number=number: epochs_done(2 + 4 * number // kills), process)
        time.sleep(draw.uniform(0, 0.3))
        kill_training(process)
    finished(start(cadence, launcher))
    (server,) = standin.runs.values()
    assert_whole(server, cadence)


@pytest.mark.parametrize("cadence", CADENCES if KILLS > 1 else ["epochs"])
def test_a_killed_process_of_wandb(cadence: str, standin: StandIn) -> None:
    process = start(cadence)
    wait_for(lambda: epochs_done(3), process)
    kill_wandb(process.pid)
    said = finished(process)
    assert said.count("W&B takes no rows (W&B's process has ended") == 1, said
    (server,) = standin.runs.values()
    assert_whole(server, cadence)


@pytest.mark.skipif(KILLS < 2, reason="takes a minute; RWC_KILLS=2 or more runs it")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_killed_while_it_catches_up(mode: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, one `wandb sync` of the one folder that is left brings the run."""
    monkeypatch.setenv("WANDB_MODE", mode)
    process = start("steps")
    wait_for(lambda: epochs_done(3), process)
    kill_training(process)
    sending = "rwc_wandb.study.train.tracking.recorded.RecordedRun._send"
    process = start("steps", [sys.executable, str(Path(__file__).with_name("killing.py")), "after", sending, "3"])
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    finished(start("steps"))
    if mode == "offline":
        assert not standin.runs
        (unsynced,) = folder().glob("wandb/offline-run-*")
        assert len(list(folder().glob("wandb/replaced-offline-run-*"))) == 2
        sync = [sys.executable, "-m", "wandb", "sync", str(unsynced)]
        subprocess.run(sync, check=True, capture_output=True, timeout=300)
    (server,) = standin.runs.values()
    assert_whole(server, "steps")
