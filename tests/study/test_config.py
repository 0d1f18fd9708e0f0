"""The command line of `train`: spellings, defaults, and one sentence for what cannot be."""

import argparse

import pytest

from rwc_wandb.study.train.config import TrainConfig, add_arguments, from_arguments


def parsed(*words: str) -> TrainConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return from_arguments(parser.parse_args(words))


def test_the_issue_s_line() -> None:
    line = "--model resnet18 --dataset fashion_mnist --epochs 150 --batch-size 128 --lr 0.1 --momentum 0.9"
    config = parsed(*line.split(), "--weight-decay", "1e-4", "--seed", "0")
    assert config.to_dict() | {"epochs": 150, "batch_size": 128, "lr": 0.1, "weight_decay": 1e-4} == config.to_dict()
    assert config.run_name == "resnet18-fashion_mnist-seed0"


def test_both_spellings_and_what_a_sweep_sends() -> None:
    assert parsed("--weight-decay", "0.5").weight_decay == parsed("--weight_decay=0.5").weight_decay == 0.5
    assert parsed("--compile=True").compile
    assert parsed("--compile").compile
    assert not parsed("--compile=False").compile
    assert parsed("--limit_train=None").limit_train is None
    assert parsed("--rwc-every", "10").rwc_every == 10
    assert parsed("--histogram-every", "never").histogram_every is None


def test_every_field_reaches_the_command_line_and_the_config() -> None:
    keys = parsed().to_dict()
    assert "lr" in keys
    assert "learning_rate" not in keys
    assert len(keys) == len(TrainConfig.__dataclass_fields__)


def test_a_run_name_stays_in_its_folder() -> None:
    for name in ("../../etc", "a/b", "..", "\\x", "<script>", "timm:resnet10t"):
        folder = TrainConfig(name=name, output="out").run_folder
        assert folder.parent.name == "out"
        assert folder.name not in ("", ".", "..")


def test_runs_of_a_sweep_at_wandb_are_named_after_what_they_differ_in(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--seed=3", "--momentum=0.9", "--batch_size=64"]
    assert parsed(*words, "--lr=0.1").run_name == "resnet18-digits-seed3"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    names = [parsed(*words, f"--lr={rate}", "--output=x").run_name for rate in (0.1, 0.02)]
    assert names == ["resnet18-digits-seed3-batch_size64-lr0.1", "resnet18-digits-seed3-batch_size64"]
    assert parsed(*words, "--lr=0.1", "--name=mine").run_name == "mine"
    assert parsed("--layers=" + "a" * 200).run_name == ("resnet18-digits-seed0-layers" + "a" * 200)[:128]
