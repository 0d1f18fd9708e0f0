"""`rwc-wandb bench --train`: each loop trains as it says, and the results are in the files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rwc_wandb import Monitor
from rwc_wandb.bench import loops, training, training_table
from rwc_wandb.bench.loops import CEILING, EVERY_EPOCH, EVERY_STEP, HISTOGRAMS, OURS, OneBatch, PerImage
from rwc_wandb.bench.methods import offline_run
from rwc_wandb.bench.timing import spread
from rwc_wandb.bench.training import TrainingResults
from rwc_wandb.cli import main
from rwc_wandb.study.data.sets import DataSet, Images
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.learner import Learner, build, load_images

MODEL = "timm:test_resnet"
CONFIG = TrainConfig(model=MODEL, batch_size=8, limit_train=24, limit_test=8)


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Learner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loops, "workers", lambda: 0)
    return build(CONFIG)


def test_every_loop_makes_as_many_steps_and_measures_as_often_as_it_says(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, measured, histograms = 0, 0, 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    learner.optimizer.register_step_post_hook(count)
    original = Monitor.measure

    def measure(monitor: Monitor, step: int | None = None) -> None:
        nonlocal measured, histograms
        measured += 1
        original(monitor, step)
        histograms += bool(monitor.histogram_every and monitor.step % monitor.histogram_every == 0)

    monkeypatch.setattr(Monitor, "measure", measure)
    with offline_run() as run:
        for name, call in loops.loops(learner, load_images(CONFIG)[0], run).items():
            steps = measured = histograms = 0
            before = [parameter.detach().clone() for parameter in learner.model.parameters()]
            call()
            assert steps == 3, name
            assert measured == {EVERY_EPOCH: 1, EVERY_STEP: 3, HISTOGRAMS: 3}.get(name, 0)
            assert histograms == (name == HISTOGRAMS)
            assert any(not torch.equal(*pair) for pair in zip(before, learner.model.parameters(), strict=True)), name


def test_one_batch_is_one_of_ours(learner: Learner) -> None:
    fixed = OneBatch(learner, 5)
    assert list(fixed) == [None] * 5
    images, labels = fixed(None)
    assert images.shape == (8, 1, 32, 32)
    assert torch.equal(labels, learner.train.labels[:8])
    assert fixed(None)[0] is images


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_s_images_are_ours_where_nothing_is_random(channels: int) -> None:
    pixels = torch.randint(0, 256, (5, channels, 6, 6), dtype=torch.uint8)
    data_set = DataSet(lambda folder, side: None, side=6, mean=(0.4,) * channels, std=(0.2,) * channels)  # type: ignore
    image, label = PerImage(Images(pixels, torch.arange(5)), data_set)[3]
    torch.testing.assert_close(image, (pixels[3] / 255 - 0.4) / 0.2)
    assert label == 3


def test_the_results_are_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loops, "workers", lambda: 0)
    monkeypatch.setattr(training, "SECONDS_PER_SAMPLE", 0.0)
    words = ["bench", "--train", "--device", "cpu", "--model", MODEL, "--rounds", "1", "--batch-size", "4"]
    assert main([*words, "--dataset", "digits"]) == 0
    (path,) = Path("benchmarks").glob("train-*.csv")
    with path.open(newline="") as file:
        rows = {row["loop"]: row for row in csv.DictReader(file)}
    assert (rows[OURS]["steps"], rows[OURS]["image_shape"], rows[OURS]["batch_size"]) == ("1", "1x32x32", "4")
    ceiling = float(rows[CEILING]["images_per_second_median"])
    assert rows[CEILING]["to_ceiling_median"] == rows[OURS]["to_ours_median"] == "1.0"
    for row in rows.values():
        speed = float(row["images_per_second_median"])
        assert float(row["to_ceiling_median"]) == pytest.approx(speed / ceiling)
    text = path.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in rows)
    assert OURS in capsys.readouterr().out


def test_table_1_is_the_sum_over_architectures() -> None:
    """At 1000 images/s: 60 runs x 150 epochs, half of 50,000 and half of 60,000 images, are 495 million images."""
    speeds = {EVERY_EPOCH: spread([1000.0])}
    results = [
        TrainingResults(TrainConfig(model=name), (3, 32, 32), 1, speeds, speeds, speeds)
        for name in ("resnet18", "vgg19_bn", "alexnet")
    ]
    assert "138 h" in training_table.table_1(results)
    assert training_table.table_1(results[1:]) == ""


@pytest.mark.parametrize(
    ("words", "named"), [(["--steps", "0"], "--steps 0"), (["--dataset", "svhn"], "--dataset svhn: it takes digits")]
)
def test_bad_input_gets_one_sentence(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--train", *words, "--output", str(tmp_path)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert named in sentence
