"""A run that is killed and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from made_up_runs import leave_run

from rwc_wandb import History
from rwc_wandb.cli import main
from rwc_wandb.errors import UserError
from rwc_wandb.study.train.checkpoint import Checkpoints
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.output import folder_to_resume, read_result

# A small network with dropout.
MODEL = ["--model", "torchvision:squeezenet1_1", "--image-size", "24"]
WORDS = ["train", "--resume", *MODEL, "--limit-train", "96", "--limit-test", "40", "--batch-size", "16"]
EPOCHS, STEPS = 4, 24
KILLS = int(os.environ.get("RWC_KILLS", "1"))
"""How many runs are killed at random moments; 20 or more are a thorough test."""
PATIENCE = 600


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # The address of a W&B process that is gone, as another program may leave it: the run must not ask there.
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/gone/socket")
    monkeypatch.chdir(tmp_path)


def words(output: Path) -> list[str]:
    # Measurements fall on other steps than checkpoints.
    every = ["--epochs", str(EPOCHS), "--rwc-every", "1", "--checkpoint-every", "2", "--histogram-every", "5"]
    return [*WORDS, *every, "--output", str(output)]


def start(output: Path, launcher: Sequence[str] = (), extra: Sequence[str] = ()) -> subprocess.Popen[str]:
    launcher = launcher or [sys.executable, "-m", "rwc_wandb"]
    return subprocess.Popen(
        [*launcher, *words(output), *extra], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def only(output: Path) -> Path:
    (folder,) = (path for path in output.iterdir() if path.is_dir() and not path.name.startswith("."))
    return folder


def results(folder: Path) -> tuple[list[dict[str, str]], History]:
    with (folder / "metrics.csv").open() as file:
        rows = [{key: row[key] for key in row if key != "images_per_second"} for row in csv.DictReader(file)]
    return rows, History.load(folder / "rwc.safetensors")


def assert_same(folder: Path, other: Path, every: int = 1) -> None:
    (rows, history), (other_rows, other_history) = results(folder), results(other)
    assert len(rows) == EPOCHS
    assert rows == other_rows
    assert history.steps.tolist() == other_history.steps.tolist() == list(range(every, STEPS + 1, every))
    np.testing.assert_array_equal(history.rwc, other_history.rwc)
    np.testing.assert_array_equal(history.rwc_elementwise, other_history.rwc_elementwise)
    assert read_result(folder) == read_result(other)
    assert not (folder / "checkpoints").exists()
    assert len({path.name.split("-")[-1] for path in (folder / "wandb").glob("offline-run-*")}) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    finished(start(output))
    return only(output)


def wait_for(process: subprocess.Popen[str], output: Path, pattern: str) -> None:
    while pattern and process.poll() is None and not list(output.glob(pattern)):
        time.sleep(0.02)


def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    """From the start of python to the last file: each run is killed up to three times, then left alone."""
    draw = random.Random(0)
    moments = [("*/checkpoints/step-*.pt", 1.5), ("*/metrics.csv", 3.0), ("*/config.yaml", 3.0), ("", 9.0)]
    moments.append(("*/rwc.safetensors", 1.5))
    killed = runs = 0
    while killed < KILLS and runs < 100:
        output = tmp_path / f"runs{runs}"
        output.mkdir()
        for _ in range(min(3, KILLS - killed)):
            process = start(output)
            pattern, most = moments[(killed + runs) % len(moments)]
            wait_for(process, output, pattern)
            time.sleep(draw.uniform(0, most))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        finished(start(output))
        assert_same(only(output), undisturbed)
        runs += 1
    print(f"killed {killed} times in {runs} runs")
    assert killed == KILLS


PLACES = [
    ("before", "rwc_wandb.study.train.output._renamed", 1),
    ("before", "rwc_wandb.study.train.loop.open_training_run", 1),
    ("before", "rwc_wandb.study.train.tracking.opening.open_run", 1),
    ("after", "rwc_wandb.study.train.tracking.opening.open_run", 1),
    ("before", "rwc_wandb.study.train.checkpoint.os.fsync", 3),
    ("before", "rwc_wandb.study.train.loop.append_metrics", 2),
    ("after", "rwc_wandb.study.train.loop.append_metrics", 3),
    ("after", "rwc_wandb.study.train.loop.evaluate", 4),
    ("before", "rwc_wandb.study.train.loop.finish", 1),
    ("before", "rwc_wandb.study.train.output.write_pictures", 1),
    ("before", "rwc_wandb.study.train.loop.write_result", 1),
    ("before", "rwc_wandb.study.train.checkpoint.Checkpoints.remove", 1),
]


@pytest.mark.parametrize(("when", "name", "count"), PLACES if KILLS > 1 else PLACES[9:10])
def test_killed_between_two_acts(when: str, name: str, count: int, undisturbed: Path, tmp_path: Path) -> None:
    killing = str(Path(__file__).with_name("killing.py"))
    process = start(tmp_path / "runs", [sys.executable, killing, when, name, str(count)])
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, said
    finished(start(tmp_path / "runs"))
    assert_same(only(tmp_path / "runs"), undisturbed)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.skipif(KILLS < 2, reason="takes minutes; RWC_KILLS=2 or more runs it")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_two_processes(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or asked to stop, all of them and their launcher, as a terminal or a scheduler does."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher, extra = [*TORCHRUN, "-m", "rwc_wandb"], ["--rwc-every", "3", "--checkpoint-every", "4"]
    finished(start(tmp_path / "undisturbed", launcher, extra))
    process = start(tmp_path / "runs", launcher, extra)
    wait_for(process, tmp_path / "runs", "*/checkpoints/step-*.pt")
    # torchrun starts its workers in sessions of their own.
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        if "wandb" not in one.name():
            one.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert read_result(only(tmp_path / "runs")) is None
    assert "Resumed in epoch" in finished(start(tmp_path / "runs", launcher, extra))
    assert_same(only(tmp_path / "runs"), only(tmp_path / "undisturbed"), every=3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if KILLS > 1 else [signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_its_status(number: int, undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "runs")
    wait_for(process, tmp_path / "runs", "*/metrics.csv")
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, said
    assert "--resume" in said.splitlines()[-1]
    folder = only(tmp_path / "runs")
    assert read_result(folder) is None
    state = Checkpoints(folder).latest()
    assert state is not None
    assert f"Stopped after {state['steps']} steps" in said
    assert f"after {state['steps']} steps" in finished(start(tmp_path / "runs"))
    assert_same(folder, undisturbed)


def test_a_finished_run_is_left_alone(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert main(words(undisturbed.parent)) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_other_settings_are_not_resumed(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(undisturbed.parent), "--lr", "0.5"]) == 2
    assert "holds a run with lr 0.02, not 0.5" in capsys.readouterr().err


def test_a_repeated_run_is_resumed_in_its_own_folder(undisturbed: Path, tmp_path: Path) -> None:
    first = shutil.copytree(undisturbed, tmp_path / "runs" / undisturbed.name)
    second = first.with_name(f"{first.name}-2")
    command = [sys.executable, "-m", "rwc_wandb", *words(tmp_path / "runs")]
    command.remove("--resume")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(process, second, "checkpoints/step-*.pt")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert "the same command with --resume goes on" in said
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert "Resumed in epoch" in finished(start(tmp_path / "runs"))
    assert_same(second, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {first.name, second.name}


def test_the_newest_unfinished_folder_is_resumed(tmp_path: Path) -> None:
    """Folders 1 to 5: ours, unfinished; ours, finished; another run's; ours, unfinished; ours, finished."""
    config = TrainConfig(output=str(tmp_path))
    folders = [config.run_folder, *(config.run_folder.with_name(f"{config.run_name}-{n}") for n in range(2, 6))]
    for folder, rate in reversed(list(zip(folders, [0.02, 0.02, 0.5, 0.02, 0.02], strict=True))):
        made = leave_run(tmp_path, "resnet18", "digits", 0, {}, epochs=50, learning_rate=rate)
        if folder in (folders[0], folders[3]):
            (made / "result.yaml").unlink()
        made.rename(folder)
    assert folder_to_resume(config) == folders[3]
    shutil.rmtree(folders[3])
    assert folder_to_resume(config) == folders[0]
    # The first holds another run: ours is still found, and the message comes only where none is ours.
    folders[0].rename(tmp_path / "away")
    folders[2].rename(folders[0])
    assert folder_to_resume(config) == folders[1]
    shutil.rmtree(folders[1])
    with pytest.raises(UserError, match=r"seed0 holds a run with lr 0\.5, not 0\.02: name another --output"):
        folder_to_resume(config)
    shutil.rmtree(folders[0])
    assert folder_to_resume(config) is None
