"""Whole runs, as a user starts them: in one process and in two."""

import csv
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rwc_wandb import History, elementwise_relative_weight_change, relative_weight_change
from rwc_wandb.cli import main

QUICK = ["train", "--limit-train", "96", "--limit-test", "40", "--batch-size", "32", "--model", "timm:resnet10t"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def check_against_saved_weights(history: History, weights: list[dict[str, torch.Tensor]]) -> None:
    for metric, series in (
        (relative_weight_change, history.rwc),
        (elementwise_relative_weight_change, history.rwc_elementwise),
    ):
        expected = [
            [metric(new[f"{name}.weight"], old[f"{name}.weight"]).item() for name in history.layers]
            for old, new in pairwise(weights)
        ]
        np.testing.assert_allclose(series, expected, rtol=1e-6)


def saved_weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path) for path in sorted(folder.glob("*.pt"))]


def test_a_compiled_model_has_the_paper_s_stages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    words = ["--model", "alexnet", "--image-size", "32", "--limit-train", "36", "--limit-test", "8"]
    assert main(["train", *words, "--batch-size", "8", "--epochs", "1", "--compile"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    stages = History.load(folder / "rwc.safetensors").stages
    assert stages == ["early", "middle", "middle", "later", "later", "head", "head", "head"]


def test_without_the_extra_view_a_run_is_complete_and_says_what_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vl_convert", None)
        assert main([*QUICK, "--epochs", "1"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert "result.yaml" in os.listdir(folder)
    assert "rwc.html" not in os.listdir(folder)
    said = capsys.readouterr().out
    assert f"pip install 'rwc_wandb[view]'; then: rwc-wandb view {folder.relative_to(tmp_path)}" in said
    assert "cannot be written" not in said
    assert main(["view", str(folder)]) == 0
    assert "rwc.html" in os.listdir(folder)


def test_a_run_leaves_what_it_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--epochs", "2", "--seed", "7"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "timm-resnet10t-digits-seed7"
    assert {"config.yaml", "metrics.csv", "rwc.safetensors", "rwc.png", "rwc.html"} <= {
        p.name for p in folder.iterdir()
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["seed"], config["lr"], config["limit_train"]) == (7, 0.02, 96)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["test/accuracy"]) <= 1 and float(row["train/loss"]) > 0 for row in rows)
    history = History.load(folder / "rwc.safetensors")
    assert history.steps.tolist() == [3, 6]
    assert (history.rwc > 0).all()
    printed = capsys.readouterr().out
    assert "wandb sync runs/timm-resnet10t-digits-seed7/wandb/offline-run-" in printed
    assert f"{history.rwc[0, 0]:.4g}" in printed
    assert main([*QUICK, "--epochs", "1", "--seed", "7"]) == 0
    assert (tmp_path / "runs" / "timm-resnet10t-digits-seed7-2" / "rwc.html").is_file()


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([*QUICK, "--epochs", "2", "--name", name, "--rwc-every", "1", "--seed", "3"]) == 0
    assert main([*QUICK, "--epochs", "2", "--name", "c", "--rwc-every", "1", "--seed", "4"]) == 0
    first, again, other = (History.load(tmp_path / "runs" / name / "rwc.safetensors") for name in "abc")
    assert first.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(first.rwc, again.rwc)
    assert (first.rwc != other.rwc).any()


def test_target_accuracy_ends_the_run(tmp_path: Path) -> None:
    assert main([*QUICK, "--epochs", "5", "--target-accuracy", "0.001"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


def test_a_training_that_diverges_is_recorded_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="weights of layer .* are NaN or infinite after optimizer step") as warned:
        assert main([*QUICK, "--epochs", "3", "--lr", "1e6"]) == 0
    assert len([one for one in warned if one.category is not ResourceWarning]) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    history = History.load(folder / "rwc.safetensors")
    assert np.isnan(history.rwc[-1]).all()
    assert {"rwc.png", "rwc.html", "result.yaml"} <= {path.name for path in folder.iterdir()}
    table = [line for line in capsys.readouterr().out.splitlines() if "layer4" in line]
    assert all(line.count("nan") >= 2 for line in table)
    assert table


def launched(words: list[str], processes: int, folder: Path) -> str:
    folder.mkdir()
    recording = str(Path(__file__).with_name("recording.py"))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [*launcher, recording, str(folder), *words],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("processes", "precision"), [(1, "fp32"), (2, "fp32"), (1, "bf16")])
def test_series_equals_that_of_the_saved_weights(processes: int, precision: str, tmp_path: Path) -> None:
    """With bf16 too the weights, and what is measured of them, are fp32; convolutions are channels_last."""
    printed = launched([*QUICK, "--epochs", "3", "--precision", precision], processes, tmp_path / "weights")
    assert printed.count("epoch 3/3") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    history = History.load(folder / "rwc.safetensors")
    weights = saved_weights(tmp_path / "weights")
    assert len(weights) == 4
    assert {weight.dtype for name, weight in weights[-1].items() if name.endswith("weight")} == {torch.float32}
    assert weights[-1]["layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    assert history.steps.tolist() == [3, 6, 9]
    check_against_saved_weights(history, weights)
