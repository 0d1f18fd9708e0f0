"""W&B's server misbehaves: training goes on and ends, and `wandb sync` brings every row afterwards.

With RWC_SLOW=1 every fault is tried at every moment.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from standin import StandIn
from standin.store import Run as ServerRun
from training import Training, rwc_rows

from rwc_wandb import History
from rwc_wandb.cli import main
from rwc_wandb.log import charts
from rwc_wandb.log.runs.ending import SECONDS_TO_FINISH, finish_run
from rwc_wandb.log.runs.opening import open_run
from rwc_wandb.study.train import loop

FAULTS = ["down", "hang", "close", "500", "429"]
SLOW = bool(os.environ.get("RWC_SLOW"))
WORDS = ["train", "--model", "timm:resnet10t", "--limit-train", "64", "--limit-test", "40", "--batch-size", "16"]


BARE = """
import sys, torch
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(40):
    model(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    if step == 20:
        sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, standin: StandIn) -> None:
    # Seconds: for the check of the API key, for wandb.init and run.finish.
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    monkeypatch.setattr(charts, "SECONDS_TO_ANSWER", 1)
    # With registered charts the run gets no page of them, which takes seconds to make.
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")


def spoil(standin: StandIn, fault: str) -> None:
    if fault == "down":
        standin.stop()
    elif fault.isdigit():
        standin.faults.status = int(fault)
    else:
        setattr(standin.faults, fault, True)


def synced(standin: StandIn, folder: Path) -> ServerRun:
    """The run as the server has it once it is well again and `wandb sync` was called."""
    standin.faults.clear()
    if not standin.is_listening:
        standin.start()
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (run,) = standin.runs.values()
    return run


@pytest.mark.parametrize(("variable", "seconds"), [(None, SECONDS_TO_FINISH), ("7", 7)])
def test_a_run_of_ours_does_not_wait_for_ever(
    variable: str | None, seconds: int, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT")
    if variable:
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", variable)
    run, _ = open_run(project="p")
    assert (run.settings.finish_timeout, run.settings.finish_timeout_raises) == (seconds, True)
    assert run.settings.init_timeout == 2
    assert finish_run(run) == ""


def test_a_run_of_ours_does_not_wait_for_ever_where_the_client_knows_no_limit(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = open_run(project="p")
    finish, is_up = run.finish, threading.Event()
    with monkeypatch.context() as client:  # As of wandb before 0.27, whose settings have no `finish_timeout`.
        client.setattr(type(run), "settings", property(lambda _: SimpleNamespace()))
        client.setattr(run, "finish", lambda exit_code: is_up.wait(100))
        begin = time.monotonic()
        line = finish_run(run)
        assert 2 <= time.monotonic() - begin < 60
    command = f"wandb sync --include-online {Path(run.dir).parent}"
    assert line == f"W&B has not taken all of the run in time; later: {command}"
    is_up.set()
    finish()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_at_the_start_is_not_called_unreached(status: int, standin: StandIn) -> None:
    standin.faults.status = status
    run, line = open_run(project="p")
    assert f"the server refuses this API key or project with status {status}" in line
    assert "no server reached" not in line
    run.finish()


def test_a_server_that_refuses_later_is_said_and_a_sync_brings_the_rest(standin: StandIn) -> None:
    run, _ = open_run(project="p")
    run.log({"loss": 0})
    server = standin.run(run.id)
    standin.wait_until(lambda: server.rows)
    standin.faults.status = 403
    for step in range(1, 21):
        run.log({"loss": step})
    line = finish_run(run)
    assert "refuses the run (status 403)" in line
    folder = Path(run.dir).parent
    assert line.endswith(f"wandb sync --include-online {folder}")
    assert len(server.rows) < 21
    # The client sends every row again, behind those that had arrived, with the `_step` that it had.
    assert {row["_step"]: row["loss"] for row in synced(standin, folder).rows} == {step: step for step in range(21)}


REFUSED = r"W&B's server refuses the run \(status 403\)"
INTERCEPTED = r"Something between here and W&B's server, a proxy perhaps, has answered in its place"
REASONS = [pytest.param("403", REFUSED, id="403"), pytest.param("page", INTERCEPTED, id="page")]


def lost(standin: StandIn, fault: str) -> bool:
    """Whether rows were sent that did not arrive, or never will be sent."""
    return ("/file_stream" if fault == "403" else "wandb-history.jsonl") in standin.faults.lost


@pytest.mark.parametrize("end", [wandb.finish, wandb.teardown])
@pytest.mark.parametrize(("fault", "reason"), REASONS)
def test_a_user_learns_of_a_server_that_took_a_part(
    fault: str, reason: str, end: Callable[[], None], standin: StandIn
) -> None:
    """A fault that is over by the end too: what the client had sent in the meantime is lost, and it says nothing."""
    training = Training(standin, log_every=5, histogram_every=None)
    server = standin.run(training.run.id)
    for step in training.steps(60):
        training.run.log({"loss": step})
        if step == 20:
            standin.wait_until(lambda: len(server.rows) == 20)
            spoil(standin, fault)
        elif step == 40:
            standin.wait_until(lambda: lost(standin, fault))
            standin.faults.clear()
    training.run._run_status_checker.stop()  # Of a run that was not finished it fails noisily after a teardown.
    with pytest.warns(UserWarning, match=f"rwc_wandb: {reason}: what W&B lacks.*wandb sync --include-online") as said:
        end()
    assert len(said) == 1
    assert {row["loss"] for row in server.rows if "loss" in row} != set(range(1, 61))
    rows = synced(standin, Path(str(said[0].message).split()[-1])).rows
    assert {row["loss"] for row in rows if "loss" in row} == set(range(1, 61))
    assert {row["rwc/step"] for row in rows if "rwc/layer1" in row} == set(range(5, 61, 5))


def test_what_a_proxy_took_of_a_script_is_said(standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BARE)
    words = [sys.executable, "-m", "rwc_wandb", "run", "--log-every", "1", "train.py"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        standin.wait_until(lambda: any(run.rows for run in standin.runs.values()), 60)
        spoil(standin, "page")
        _, said = process.communicate("go on", timeout=300)
    assert process.returncode == 0
    [line] = [line for line in said.splitlines() if "wandb sync" in line]
    assert re.match(f"rwc-wandb: {INTERCEPTED}: what W&B lacks.*wandb sync --include-online", line)
    rows = synced(standin, Path(line.split()[-1])).rows
    assert {row["rwc/step"] for row in rows if "rwc/step" in row} == set(range(1, 41))


@pytest.mark.parametrize(("fault", "reason"), REASONS if SLOW else REASONS[1:])
def test_what_the_server_took_in_part_is_whole_and_once_after_resume(
    fault: str, reason: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_epoch = loop.say_epoch

    def say_and_spoil(session: Any, progress: Any, config: Any, epoch: int, metrics: Any) -> None:
        say_epoch(session, progress, config, epoch, metrics)
        if epoch == 1:
            standin.wait_until(lambda: any(run.rows for run in standin.runs.values()))
            spoil(standin, fault)
        elif epoch == 2:
            standin.wait_until(lambda: lost(standin, fault))
            standin.faults.clear()

    monkeypatch.setattr(loop, "say_epoch", say_and_spoil)
    words = [*WORDS, "--epochs", "4", "--rwc-every", "2", "--histogram-every", "never", "--resume"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(f"{reason}: what W&B lacks.*wandb sync --include-online", said)
    assert "The same command with --resume sends only what W&B lacks" in said
    [run] = standin.runs.values()
    assert [row["epoch"] for row in run.rows if "epoch" in row] != [1, 2, 3, 4]
    for again in ("down", "403"):  # Sending the rest fails too, and can be tried again.
        spoil(standin, again)
        assert main(words) == 0
        assert "W&B still lacks rows of this run: the same command with --resume" in capsys.readouterr().out
        standin.faults.clear()
        standin.start() if again == "down" else None
    assert main(words) == 0
    assert "sync" not in capsys.readouterr().out
    assert sorted(row["epoch"] for row in run.rows if "epoch" in row) == [1, 2, 3, 4]
    assert sorted(row["rwc/step"] for row in run.rows if "rwc/step" in row) == [4, 8, 12, 16]
    assert run.state == "finished"
    assert main(words) == 0
    assert "nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("fault", FAULTS if SLOW else ["hang"])
def test_a_users_training_loses_nothing(fault: str, standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=50)
    slowest = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in training.steps(100):
            if step == 50:
                spoil(standin, fault)
            begun = time.monotonic()
            training.run.log({"loss": step})
            slowest = max(slowest, time.monotonic() - begun)
        begun = time.monotonic()
        training.run.finish()
        ended_after = time.monotonic() - begun
    assert standin.faults.hits or not standin.is_listening
    server = synced(standin, Path(training.run.dir).parent)
    assert [row["loss"] for row in server.rows if "loss" in row] == list(range(1, 101))
    found = rwc_rows(server)
    assert [row["rwc/step"] for row in found] == list(range(5, 101, 5))
    expected = training.monitor.history.rwc.reshape(20, 5, -1).mean(1, dtype=float)
    np.testing.assert_allclose([row["rwc/layer1"] for row in found], expected[:, 0], rtol=1e-6)
    assert [row["rwc/step"] for row in server.rows if "hist/weight/layer1" in row] == [50, 100]
    assert len(server.tables["rwc_charts/rwc_curves_table"].data) == 300
    assert server.files["rwc.safetensors"] == (Path(training.run.dir) / "rwc.safetensors").read_bytes()
    print(f"{fault}: slowest log {slowest * 1000:.1f} ms, the run ended after {ended_after:.1f} s")
    # Without time-outs it would wait for ever; how long it takes depends on the machine.
    assert ended_after < 200


@pytest.mark.parametrize("moment", ["start", "middle"])
@pytest.mark.parametrize("fault", FAULTS if SLOW else ["close"])
def test_the_study_loses_nothing(
    fault: str, moment: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_epoch = loop.say_epoch

    def say_and_spoil(*words: Any) -> None:
        say_epoch(*words)
        spoil(standin, fault)

    if moment == "start":
        spoil(standin, fault)
    else:
        monkeypatch.setattr(loop, "say_epoch", say_and_spoil)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        begun = time.monotonic()
        assert main([*WORDS, "--epochs", "3", "--rwc-every", "2", "--histogram-every", "never"]) == 0
        took = time.monotonic() - begun
    (folder,) = Path("runs").iterdir()
    said = capsys.readouterr().out
    print(f"{fault} at the {moment}: {took:.1f} s in all")
    expected = (
        r"W&B is offline \(CommError, no server" if moment == "start" else "W&B has not taken all of the run in time"
    )
    (line,) = re.findall(rf"{expected}.* wandb sync .*", said)
    assert said.count("wandb sync") == 1
    server = synced(standin, Path(line.split()[-1]))
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert [row["train/loss"] for row in server.rows if "train/loss" in row] == losses
    assert len(losses) == 3
    history = History.load(folder / "rwc.safetensors")
    assert history.steps.tolist() == [2, 4, 6, 8, 10, 12]
    found = [row for row in server.rows if "rwc/step" in row]
    assert [row["rwc/step"] for row in found] == [4, 8, 12]
    key = f"rwc/{history.layers[0].replace('.', '/')}"
    means = history.rwc[:, 0].reshape(3, 2).mean(1, dtype=float)
    np.testing.assert_allclose([row[key] for row in found], means, rtol=1e-6)
    assert server.files["rwc.safetensors"]
    assert "rwc_charts/rwc_curves_table" in server.tables
