"""What is measured survives: a kill, a failing log, a W&B process that stands still, two monitors of one name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import wandb
from standin import StandIn
from torch import nn
from training import Training, network, rwc_rows

from rwc_wandb import History, MonitoringStopped, watch
from rwc_wandb.log import budget
from rwc_wandb.measure import measuring
from rwc_wandb.measure.series import file

NEVER_LOGS = """
import sys, time, torch, wandb, rwc_wandb
from rwc_wandb.log import rows
from rwc_wandb.measure.series import file
rows.LIVE_SECONDS = file.LEAST_SECONDS = 0.3
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if sys.argv[1] != "bare":
    run = wandb.init(project="p", id="theirs")
    rwc_wandb.watch(model, optimizer, log_every=10, histogram_every=10 if sys.argv[1] == "histograms" else None)
while True:
    model(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    print("step", flush=True)
    time.sleep(0.01)
"""


def started(standin: StandIn, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    (folder / "train.py").write_text(NEVER_LOGS)
    output = (folder / "output").open("wb")
    # The client's own interval: at one of 1 s a summary was seen whose mean was newer than its step.
    usual = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "15"}
    environment = os.environ | standin.environment(folder) | usual
    return subprocess.Popen([sys.executable, *words], env=environment, stdout=output, stderr=output)


def killed(process: subprocess.Popen[bytes], output: Path) -> int:
    """Kill it as the kernel does when memory is out; how many steps it has made."""
    process.kill()
    process.wait(10)
    return output.read_bytes().count(b"step\n")


def test_a_user_who_never_logs_and_is_killed_has_the_series_and_a_live_summary(
    standin: StandIn, tmp_path: Path
) -> None:
    process = started(standin, tmp_path, "train.py", "watch")
    try:
        standin.wait_until(lambda: standin.runs and "rwc" in str(standin.run("theirs").summary), 60)
        time.sleep(2)
        live = standin.run("theirs").summary
    finally:
        steps = killed(process, tmp_path / "output")
    [path] = tmp_path.glob("wandb/run-*/files/rwc.safetensors")
    history = History.load(path)
    # Rows of 10, a save each 0.3 s or at 1% of the time; a loaded machine may be late by some.
    assert len(history) >= steps - 200
    assert len(history) >= 50
    assert history.steps.tolist() == list(range(1, len(history) + 1))
    latest = live["rwc/step"]
    first = max(latest - 50, 0)
    assert live["rwc/weight"] == pytest.approx(history.rwc[first:latest, 0].astype(float).mean(), rel=1e-6)
    assert not standin.run("theirs").rows


def test_a_script_that_knows_nothing_of_wandb_has_its_rows_live(standin: StandIn, tmp_path: Path) -> None:
    process = started(standin, tmp_path, "-m", "rwc_wandb", "run", "--log-every", "10", "train.py", "bare")
    try:
        standin.wait_until(lambda: any(len(run.rows) > 5 for run in standin.runs.values()), 60)
    finally:
        killed(process, tmp_path / "output")
    [run] = standin.runs.values()
    assert [row["rwc/step"] for row in run.rows[:5]] == [10, 20, 30, 40, 50]
    [path] = tmp_path.glob("wandb/run-*/files/rwc.safetensors")
    history = History.load(path)
    means = history.rwc[:10, 0].astype(float).mean()
    assert run.rows[0]["rwc/weight"] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_kill_loses_no_histogram(is_stopped: bool, standin: StandIn, tmp_path: Path) -> None:
    """Of a user who never logs, and of a run of ours while W&B's process stands still, which then wait for it."""
    words = ["-m", "rwc_wandb", "run", "--histogram-every", "10"] if is_stopped else []
    process = started(standin, tmp_path, *words, "train.py", "bare" if is_stopped else "histograms")
    steps = 0
    try:
        standin.wait_until(lambda: (tmp_path / "output").read_bytes().count(b"step\n") > 60, 60)
        if is_stopped:
            family = psutil.Process(process.pid).children(recursive=True)
            next(one for one in family if "wandb-core" in one.name()).suspend()
        time.sleep(2)
        steps = (tmp_path / "output").read_bytes().count(b"step\n")
        time.sleep(0.5)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        killed(process, tmp_path / "output")
        for one in family:
            one.kill()
    assert steps > 100
    [path] = tmp_path.glob("wandb/run-*/files/rwc_histograms.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    numbers = [one["step"] for one in found]
    assert numbers == list(range(10, numbers[-1] + 1, 10))
    assert numbers[-1] >= steps - 10
    assert found[0]["layers"] == ["weight"]
    assert np.sum(found[-1]["counts"], -1).tolist() == [[12], [12]]
    (low, high), _ = (ranges[0] for ranges in found[-1]["ranges"])
    assert low < high


def test_measurements_of_slow_steps_are_saved_before_their_row_is_due(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SECONDS_ON_DEVICE", 0.0)
    monkeypatch.setattr(file, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(file, "MOST_SECONDS", 0.0)
    training = Training(standin, log_every=1000, histogram_every=None)
    for _ in training.steps(3):
        time.sleep(0.3)
    path = Path(training.run.dir) / "rwc.safetensors"
    standin.wait_until(path.is_file, 10)
    # The third may still be on its way.
    assert len(History.load(path)) >= 2
    assert [row["rwc/step"] for row in rwc_rows(training.finish())] == [3]


def test_a_failing_log_ends_logging_only(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(standin, log_every=5, histogram_every=10)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    def train() -> None:
        for step in training.steps(40):
            if step == 11:
                monkeypatch.setattr(training.run, "log", fail)
        training.monitor.close()

    with pytest.warns(
        MonitoringStopped, match=r"stopped logging at optimizer step 15: RuntimeError: planted\. .*go on"
    ) as said:
        train()
    assert len(said) == 1
    assert training.monitor.history.steps.tolist() == list(range(1, 41))
    saved = History.load(Path(training.run.dir) / "rwc.safetensors")
    np.testing.assert_array_equal(saved.rwc, training.monitor.history.rwc)


def test_a_first_row_that_fails_leaves_the_series_file(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(standin, log_every=5, histogram_every=None, rows="own")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(training.run, "log", fail)
    with pytest.warns(MonitoringStopped, match="stopped logging at optimizer step 5: RuntimeError: planted"):
        for _ in training.steps(20):
            pass
    training.monitor.close()
    saved = History.load(Path(training.run.dir) / "rwc.safetensors")
    assert saved.steps.tolist() == list(range(1, 21))
    np.testing.assert_array_equal(saved.rwc, training.monitor.history.rwc)


def test_a_killed_process_of_wandb_is_named_and_the_series_is_whole(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=10)
    [service] = [one for one in psutil.Process().children(recursive=True) if "wandb-core" in one.name()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in training.steps(40):
            if step == 11:
                service.kill()
                service.wait(10)
        training.monitor.close()
    [line] = [str(one.message) for one in said if one.category is MonitoringStopped]
    assert "stopped logging" in line
    assert "W&B's process has ended, killed perhaps because memory was out; " in line
    assert "disk" not in line.replace(training.run.dir, "")
    saved = History.load(Path(training.run.dir) / "rwc.safetensors")
    assert saved.steps.tolist() == list(range(1, 41))
    with pytest.raises(ConnectionError):
        training.run.finish()
    with pytest.raises(ConnectionError):
        wandb.teardown()  # The client of later tests begins anew.


def test_a_failing_alert_ends_logging_only(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(standin, log_every=5, histogram_every=None, alert_above=1e-9)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(training.run, "alert", fail)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in training.steps(12):
            pass
        training.monitor.close()
    assert len([one for one in said if one.category is MonitoringStopped]) == 1
    assert len(training.monitor.history) == 12


def test_a_wandb_process_that_stands_still_costs_no_step_anything(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 s, in which rows are due that the socket to it could not hold."""
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 10**9)
    run = wandb.init(project="p")

    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(100)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, optimizer, log_every=1, histogram_every=200)
    [service] = [one for one in psutil.Process().children(recursive=True) if "wandb-core" in one.name()]

    def step() -> float:
        """Seconds of this thread and of its waits, in `optimizer.step`, beyond those of the same without monitor."""
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        begun = time.monotonic()
        optimizer.step()
        return time.monotonic() - begun

    usual = sorted(step() for _ in range(100))
    run.log({"loss": 1})
    service.suspend()
    try:
        stopped = []
        end = time.monotonic() + 20
        while time.monotonic() < end:
            stopped.append(step())
            time.sleep(0.02)
    finally:
        service.send_signal(signal.SIGCONT)
    lost = sum(max(0.0, took - usual[-5]) for took in stopped)
    print(f"{len(stopped)} steps while stopped: slowest {max(stopped) * 1e3:.1f} ms, lost {lost * 1e3:.1f} ms in all")
    # A step that waits waits to the end; what a busy machine takes is no more than a part of the 20 s.
    assert max(stopped) < 5
    assert lost < 10
    steps = monitor.step
    run.finish()
    server = standin.run(run.id)
    found = [row for row in server.rows if "rwc/0" in row]
    assert found[-1]["rwc/step"] == steps
    assert len(monitor.history) == steps
    assert len([row for row in server.rows if "hist/weight/0" in row]) == steps // 200


def test_a_full_socket_holds_up_no_step(standin: StandIn) -> None:
    """What the user logs and prints fills the socket to W&B's process as ours does, and is not ours to count."""
    training = Training(standin, log_every=1, histogram_every=5)
    [service] = [one for one in psutil.Process().children(recursive=True) if "wandb-core" in one.name()]
    logged = 0
    for _ in training.steps(5):  # The first takes longer.
        pass

    def log() -> None:
        nonlocal logged
        while logged < 5000:
            training.run.log({"loss": logged})
            logged += 1

    service.suspend()
    user = threading.Thread(target=log)
    user.start()
    try:
        before = -1
        while logged != before and logged < 5000:
            before = logged
            time.sleep(1)
        assert logged < 5000
        threading.Timer(10, service.send_signal, [signal.SIGCONT]).start()
        slowest, begun = 0.0, time.monotonic()
        for _ in training.steps(30):
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.05)
            begun = time.monotonic()
    finally:
        service.send_signal(signal.SIGCONT)
    user.join(60)
    assert slowest < 5  # It was as long as the process stood still; 30 ms on a quiet machine.
    rows = training.finish().rows
    assert [row["loss"] for row in rows if "loss" in row] == list(range(5000))
    assert [row["rwc/step"] for row in rows if "rwc/layer1" in row][-1] == 35
    assert [row["rwc/step"] for row in rows if "hist/weight/layer1" in row] == [5, 10, 15, 20, 25, 30, 35]


def test_no_step_imports_pandas(tmp_path: Path) -> None:
    """W&B's client does, at its first histogram; that takes as long as many steps."""
    script = """
import sys, torch, wandb, rwc_wandb
run = wandb.init(mode="offline", settings=wandb.Settings(silent=True))
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rwc_wandb.watch(model, optimizer, log_every=5, histogram_every=5)
before = set(sys.modules)
for step in range(20):
    model(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    run.log({"loss": step})
print([name for name in set(sys.modules) - before if name.startswith("pandas")])
run.finish()
"""
    words = [sys.executable, "-c", script]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300, cwd=tmp_path).stdout
    assert said == "[]\n"


@pytest.mark.parametrize("commit_every", [None, 1, 100])
def test_every_histogram_arrives_with_its_own_step(commit_every: int | None, standin: StandIn) -> None:
    training = Training(standin, log_every=10, histogram_every=25)
    for step in training.steps(500):
        if commit_every and step % commit_every == 0:
            training.run.log({"loss": step})
    before = training.run.step
    server = training.finish()
    assert [row["loss"] for row in server.rows if "loss" in row] == list(
        range(commit_every or 501, 501, commit_every or 1)
    )
    assert before == (500 // commit_every if commit_every else 0)
    found = {row["rwc/step"]: row for row in server.rows if "hist/weight/layer1" in row}
    assert sorted(found) == list(range(25, 501, 25))
    first, last = (found[step]["hist/weight/layer1"]["bins"] for step in (25, 500))
    assert first != last
    weight = training.model["layer1"].weight.detach()
    assert last[0] == pytest.approx(weight.min().item())
    # Every measurement is in the mean of one row.
    steps = [row["rwc/step"] for row in rwc_rows(server)]
    assert steps == sorted(set(steps))
    expected = np.split(training.monitor.history.rwc[:, 0].astype(float), steps[:-1])
    np.testing.assert_allclose(
        [row["rwc/layer1"] for row in rwc_rows(server)], [part.mean() for part in expected], rtol=1e-5
    )


def test_two_monitors_of_one_name_both_arrive(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    with pytest.warns(UserWarning, match=r"another monitor of this run logs under 'rwc': this one logs under 'rwc_2'"):
        second = watch(network(), log_every=5, histogram_every=None)
    for step in training.steps(10):
        second.measure()
        training.run.log({"loss": step})
    server = training.finish()
    assert [row["rwc/step"] for row in rwc_rows(server)] == [5, 10]
    assert [row["rwc_2/step"] for row in server.rows if "rwc_2/layer1" in row] == [5, 10]
    assert {"rwc.safetensors", "rwc_2.safetensors"} <= server.files.keys()


def test_what_is_thinned_is_said_once(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 600)
    training = Training(standin, log_every=1, histogram_every=10)

    def train() -> None:
        for step in training.steps(300):
            training.run.log({"loss": step})

    with pytest.warns(UserWarning, match=r"more than the 600 a minute .* averaged .* left out") as said:
        train()
    server = training.finish()
    assert len(said) == 1
    # A tenth at once, what the time pays for, and one row at the end.
    assert 6 * len(rwc_rows(server)) <= 600
