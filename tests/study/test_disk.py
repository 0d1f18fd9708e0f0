"""The disk is full or cannot be written: the run says so, and its weights are the same."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from torch import nn

from rwc_wandb import History, MonitoringStopped, watch
from rwc_wandb.cli import main
from rwc_wandb.study.train import loop
from rwc_wandb.study.train.output import read_result

MODEL = ["--model", "torchvision:squeezenet1_1", "--image-size", "24", "--limit-train", "64", "--limit-test", "40"]
WORDS = ["train", "--resume", *MODEL, "--batch-size", "16", "--epochs", "3", "--histogram-every", "never"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # With registered charts the run gets no page of them, which takes seconds to make.
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", *words, str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        # Lazily: W&B's process may have a file open there.
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=40m", "tmpfs") as folder:
        yield folder


def fill(disk: Path) -> None:
    # A file that is being saved would take the place of an older one, whose room would be free then.
    while list(disk.rglob("*.safetensors.tmp")):
        time.sleep(0.01)
    # Appended: what fills the disk already stays there.
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 14))


def of_ours(warned: pytest.WarningsRecorder) -> list[str]:
    """Without what Python says of files and sockets that other tests have left open."""
    return [str(one.message) for one in warned if one.category is not ResourceWarning]


@pytest.fixture
def final_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights that each run of the study ends with."""
    kept: list[dict[str, torch.Tensor]] = []
    finish = loop.finish

    def keep_and_finish(session: loop.Session, *words: Any) -> None:
        kept.append({name: tensor.clone() for name, tensor in session.learner.model.state_dict().items()})
        finish(session, *words)

    monkeypatch.setattr(loop, "finish", keep_and_finish)
    return kept


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: row[key] for key in row if key != "images_per_second"} for row in csv.DictReader(file)]


def test_a_disk_that_gets_full_ends_no_training_and_resume_adds_what_is_missing(
    disk: Path,
    tmp_path: Path,
    final_weights: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*WORDS, "--output", str(tmp_path / "undisturbed")]) == 0
    say_epoch = loop.say_epoch

    def say_and_fill(*words: Any) -> None:
        say_epoch(*words)
        fill(disk)

    assert "cannot be written" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(loop, "say_epoch", say_and_fill)
        with pytest.warns(UserWarning, match="No space left on device") as warned:
            assert main([*WORDS, "--output", str(disk / "runs")]) == 1
    said = capsys.readouterr().out
    (folder,) = (disk / "runs").iterdir()
    assert said.count("metrics.csv cannot be written (No space left on device): training goes on without.") == 1
    assert f"{folder} lacks" in said.splitlines()[-1]
    assert "rwc.html and rwc.png" in said.splitlines()[-1]
    assert "Best test accuracy" in said
    assert "Look at" not in said
    assert sum(warning.category is MonitoringStopped for warning in warned) == 1
    assert sum("No checkpoint at step 4 " in message for message in of_ours(warned)) == 1
    assert len(of_ours(warned)) == 2
    undisturbed, disturbed = final_weights
    assert all(torch.equal(disturbed[name], undisturbed[name]) for name in undisturbed)
    assert len(metrics(folder)) == 1
    assert read_result(folder) is None
    assert not list(folder.rglob("*.tmp"))

    (disk / "ballast").unlink()
    assert main([*WORDS, "--output", str(disk / "runs")]) == 0
    assert f"Look at {folder / 'rwc.html'}" in capsys.readouterr().out
    (whole,) = (tmp_path / "undisturbed").iterdir()
    assert metrics(folder) == metrics(whole)
    assert read_result(folder) == read_result(whole)
    series, expected = (History.load(one / "rwc.safetensors").rwc for one in (folder, whole))
    np.testing.assert_array_equal(series, expected)
    assert {"rwc.html", "rwc.png", "config.yaml"} <= {path.name for path in folder.iterdir()}


def trained(directory: Path, fill_at: int, disk: Path) -> tuple[dict[str, torch.Tensor], History]:
    """A user's own script, which is watched."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = wandb.init(project="p", dir=directory)
    monitor = watch(model, optimizer, log_every=5, histogram_every=20)
    for step in range(60):
        if step == fill_at:
            fill(disk)
        nn.functional.mse_loss(model(torch.randn(4, 8)), torch.zeros(4, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": step})
    monitor.close()
    # The client cannot write its own log.
    with contextlib.suppress(OSError):
        run.finish()
    return model.state_dict(), monitor.history


def test_a_users_training_does_not_feel_a_full_disk(disk: Path, tmp_path: Path) -> None:
    undisturbed, expected = trained(tmp_path, -1, disk)
    with pytest.warns(MonitoringStopped, match=r"No space left.*60 measurements up to here") as warned:
        disturbed, history = trained(disk, 30, disk)
    assert len(of_ours(warned)) == 1
    assert all(torch.equal(disturbed[name], undisturbed[name]) for name in undisturbed)
    np.testing.assert_array_equal(history.rwc, expected.rwc)
    with pytest.raises(OSError, match="No space left"):
        history.save(disk / "rwc.safetensors")
    assert not list(disk.glob("rwc*"))


def test_a_disk_that_is_full_or_read_only_from_the_start_is_refused(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk)
    assert main([*WORDS, "--output", str(disk / "runs")]) == 2
    assert "cannot be written (No space left on device); name another." in refusal(capsys, f"--output {disk}/runs")
    assert not list(disk.glob("runs/*"))
    made = History(["a"], ["early"], [1])
    made.append([1], np.ones((1, 1)), np.ones((1, 1)))
    made.save(tmp_path / "rwc.safetensors")
    with mounted(tmp_path / "fixed", "--bind", str(tmp_path / "disk")) as fixed:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(fixed)], check=True)
        assert main([*WORDS, "--output", str(fixed / "runs")]) == 2
        assert "(Read-only file system)" in refusal(capsys, f"--output {fixed}/runs")
        assert main(["view", str(tmp_path), "--output", str(fixed)]) == 2
        assert "(Read-only file system)" in refusal(capsys, f"--output {fixed}")


def refusal(capsys: pytest.CaptureFixture[str], beginning: str) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rwc-wandb: {beginning}")
    return line
