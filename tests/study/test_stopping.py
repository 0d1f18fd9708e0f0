"""A training ends soon, with a checkpoint and status 143, when its launcher is stopped, killed or interrupted."""

from __future__ import annotations

import csv
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from standin import StandIn

from rwc_wandb.cli import main
from rwc_wandb.study.train import loop
from rwc_wandb.study.train.checkpoint import Checkpoints
from rwc_wandb.study.train.signals import LAUNCHERS, StopSignals

MODEL = ["--model", "torchvision:squeezenet1_1", "--image-size", "24", "--histogram-every", "never"]
TRAIN = ["train", "--resume", *MODEL, "--limit-train", "96", "--limit-test", "40", "--batch-size", "16"]
SECONDS = 5 * float(os.environ.get("RWC_PATIENCE", "12"))
"""What the end of a training may take: 5 s on a quiet machine (RWC_PATIENCE=1); the suite shares its machine."""
REPEATS = range(int(os.environ.get("RWC_KILLS", "1")))
CHILD_SUBREAPER = 36


@pytest.fixture
def adopting() -> Iterator[None]:
    """Orphans become children of this process, which so learns their status."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    libc = ctypes.CDLL(None)
    libc.prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(CHILD_SUBREAPER, 0, 0, 0, 0)


def until(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until the condition came true."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def trainings(launcher: int) -> list[psutil.Process]:
    """The processes below `launcher` that train."""
    family = psutil.Process(launcher).children(recursive=True)
    return [one for one in family if "rwc_wandb" in one.cmdline() and "launch" not in one.cmdline()]


ACCELERATE = ["accelerate", "launch", "--num_processes", "1", "-m", "rwc_wandb"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "rwc_wandb"]
CASES = [
    pytest.param(ACCELERATE, signal.SIGTERM, id="accelerate-SIGTERM"),
    pytest.param(ACCELERATE, signal.SIGKILL, id="accelerate-SIGKILL"),
    pytest.param(ACCELERATE, signal.SIGINT, id="accelerate-SIGINT"),
    pytest.param(TORCHRUN, signal.SIGKILL, id="torchrun-SIGKILL"),
    pytest.param(TORCHRUN, signal.SIGTERM, id="torchrun-SIGTERM"),
]


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize(("launcher", "number"), CASES if len(REPEATS) > 1 else CASES[1:4:2])
def test_the_end_of_a_launcher_ends_the_training(
    launcher: list[str], number: int, repeat: int, adopting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    words = [*launcher, *TRAIN, "--epochs", "1000", "--output", str(tmp_path / "runs")]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(words, env=environment(), stdout=said, stderr=said)
    until(lambda: list(tmp_path.glob("runs/*/metrics.csv")), 120)
    trained = trainings(process.pid)
    assert len(trained) == (2 if launcher is TORCHRUN else 1)
    process.send_signal(number)
    start = time.monotonic()
    if launcher is ACCELERATE or number == signal.SIGKILL:
        process.wait(SECONDS)
        for one in trained:
            left: list[int] = []

            def ended(pid: int = one.pid, left: list[int] = left) -> bool:
                found, status = os.waitpid(pid, os.WNOHANG)
                left.extend([os.waitstatus_to_exitcode(status)] if found else [])
                return bool(found)

            until(ended, SECONDS)
            assert left == [143], (tmp_path / "said.txt").read_text()
    else:  # torchrun passes the signal on, and waits itself.
        process.wait(SECONDS)
        assert not [one for one in trained if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    print(f"ended after {time.monotonic() - start:.1f} s")
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "config.yaml").is_file())
    state = Checkpoints(folder).latest()
    assert state is not None
    text = (tmp_path / "said.txt").read_text()
    assert f"Stopped after {state['steps']} steps; the same command with --resume goes on." in text


@pytest.mark.skipif(len(REPEATS) < 2, reason="takes minutes; RWC_KILLS=2 or more runs it")
def test_a_run_that_w_and_b_stops_makes_room_for_the_next(standin: StandIn, tmp_path: Path) -> None:
    """What hyperband's `early_terminate` and the button of W&B's page lead to, through the real agent."""
    sweep = yaml.safe_load((Path(__file__).parents[2] / "sweeps" / "early-terminate.yaml").read_text())
    assert sweep["early_terminate"]["type"] == "hyperband"
    few = {
        "limit_train": 64,
        "limit_test": 16,
        "batch_size": 16,
        "epochs": 1000,
        "model": "torchvision:squeezenet1_1",
        "seed": 0,
    }
    sweep["parameters"] |= {name: {"value": value} for name, value in {**few, "image_size": 24}.items()}
    sweep["parameters"]["lr"] = {"values": [0.02, 0.01]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 0
    (known,) = standin.sweeps.values()
    with (tmp_path / "said.txt").open("w") as said:
        words = ["wandb", "agent", f"tester/rwc-quick/{known.id}"]
        agent = subprocess.Popen(words, env=environment(), stdout=said, stderr=said, cwd=tmp_path)
    try:
        for number in (1, 2):
            standin.wait_until(lambda number=number: len(known.started) == number, 60)
            run_id = list(known.started)[-1]
            standin.wait_until(lambda run_id=run_id: run_id in standin.runs and standin.run(run_id).rows, 120)
            (training,) = trainings(agent.pid)
            known.stopped.add(run_id)
            # The agent asks every 5 s.
            print(f"ended after {until(lambda one=training: not alive(one), SECONDS + 6):.1f} s")
            assert standin.run(run_id).finished
        assert agent.wait(60) == 0, (tmp_path / "said.txt").read_text()
    finally:
        agent.kill()
    assert len(list((tmp_path / "runs").glob("*/checkpoints/step-*.pt"))) >= 2


PLAIN = [sys.executable, "-m", "rwc_wandb"]
STOPS = [
    pytest.param(PLAIN, signal.SIGTERM, "down", id="alone-down"),
    pytest.param(TORCHRUN, signal.SIGTERM, "hang", id="torchrun-hang"),
    pytest.param(PLAIN, signal.SIGINT, "hang", id="alone-SIGINT-hang"),
    pytest.param(PLAIN, signal.SIGTERM, "", id="alone-reachable"),
    pytest.param(TORCHRUN, signal.SIGTERM, "down", id="torchrun-down"),
    pytest.param(TORCHRUN, signal.SIGTERM, "", id="torchrun-reachable"),
]


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize(("launcher", "number", "fault"), STOPS if len(REPEATS) > 1 else STOPS[:2])
def test_a_stop_waits_for_no_server_and_loses_nothing(
    launcher: list[str], number: int, fault: str, repeat: int, standin: StandIn, tmp_path: Path
) -> None:
    words = [*launcher, *TRAIN, "--epochs", "1000", "--output", str(tmp_path / "runs")]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(words, env=environment(), stdout=said, stderr=said)
    try:
        standin.wait_until(lambda: any(len(run.rows) > 1 for run in standin.runs.values()), 120)
        if fault == "down":
            standin.stop()
        elif fault:
            standin.faults.hang = True
        # Rows that do not arrive, and the client's attempts to send them, which wait longer and longer.
        time.sleep(3)
        start = time.monotonic()
        process.send_signal(number)
        status = process.wait(SECONDS)
        print(f"ended after {time.monotonic() - start:.1f} s; load {os.getloadavg()[0]:.1f}")
    finally:
        process.kill()
    text = (tmp_path / "said.txt").read_text()
    if launcher is PLAIN:
        assert status == 128 + number
    else:
        assert status != 0  # torchrun's own
    assert "Traceback" not in text.split("Stopped after")[0]
    standin.faults.clear()
    if not standin.is_listening:
        standin.start()
    if fault:
        (line,) = re.findall(r"W&B has not taken all of the run before the stop; later: (wandb sync .*)", text)
        command = [sys.executable, "-m", *line.split()]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    else:
        assert "wandb sync" not in text
    (run,) = standin.runs.values()
    (metrics,) = tmp_path.glob("runs/*/metrics.csv")
    with metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert {row["epoch"]: row["train/loss"] for row in run.rows if "train/loss" in row} == dict(enumerate(losses, 1))
    assert (run.state, run.exit_code) == ("failed", 128 + number)
    assert run.files["rwc.safetensors"]
    assert not run.tables


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_stopped_run_is_not_finished_at_w_and_b(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claims of a project count finished runs only; resumed to its end, it is one."""
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "--epochs", "2", "--output", "runs"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_metrics", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main(words) == 143
    (run,) = standin.runs.values()
    assert (run.state, run.exit_code) == ("failed", 143)
    assert main(words) == 0
    assert (run.state, run.exit_code) == ("finished", 0)


def test_without_a_launcher_the_parent_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training in the background outlives its terminal."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    alone = StopSignals()
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    launched = StopSignals()
    assert launched.heard() is None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (alone.heard(), launched.heard()) == (None, signal.SIGTERM)


def test_a_signal_during_the_test_images_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may take minutes: the rest of them is left out, and `--resume` tests again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    evaluate, asked = loop.evaluate, []

    def interrupted(*words: object) -> object:
        asked.append(len(asked))
        if len(asked) == 2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "evaluate", interrupted)
    words = [*TRAIN, "--epochs", "3", "--output", "runs"]
    assert main(words) == 143
    (metrics,) = tmp_path.glob("runs/*/metrics.csv")
    assert len(metrics.read_text().splitlines()) == 1 + 1
    assert main(words) == 0
    assert main([*TRAIN, "--epochs", "3", "--output", "undisturbed"]) == 0
    (other,) = tmp_path.glob("undisturbed/*/metrics.csv")
    rows = [[line.rsplit(",", 1)[-1] for line in path.read_text().splitlines()] for path in (metrics, other)]
    assert len(asked) == 2 + 2 + 3
    assert rows[0] == rows[1]
