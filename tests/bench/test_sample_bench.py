"""`rwc-wandb bench --sample`: what it counts is right, and what it says of real trainings holds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rwc_wandb.bench.sampling import report, trainings, truth
from rwc_wandb.bench.sampling.cost import cost
from rwc_wandb.bench.sampling.trainings import TRAININGS, Training, source_words
from rwc_wandb.bench.sampling.truth import Trial, together, trials
from rwc_wandb.cli import main


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "resnet18"], "--model resnet18: with --sample it takes llama:DEPTHxWIDTH"),
        (["--steps", "0"], "--steps 0"),
    ],
)
def test_bad_input_gets_one_sentence(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--sample", *words, "--output", str(tmp_path)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert named in sentence


def test_the_scores_of_a_trial() -> None:
    one = Trial("t", "hidden", 10, np.array([-1.0, 1.0, 3.0]), np.array([0.1, 0.2, 0.3]))
    assert (one.deviation, one.within_2, one.bias) == pytest.approx((np.sqrt(8 / 3), 2 / 3, 1))
    other = Trial("t", "head", 10, np.array([0.0]), np.array([0.4]))
    both = together([one, other, Trial("t", "head", 20, np.array([9.0]), np.array([9.0]))], 10)
    assert (len(both.scores), both.within_2, both.bias) == (4, 3 / 4, 3 / 4)


def test_memory_is_that_of_the_snapshots() -> None:
    model = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(4)))
    found = cost("four", model, 5000, rounds=3)
    assert (found.weights, found.drawn) == (4_000_000, 20_000)
    exact, sampled = found.memory
    assert exact == pytest.approx(16e6, rel=0.05)
    # The buffer of 50 measurements is a part of both.
    assert 80_000 <= sampled < 250_000
    assert found.times_smaller > 60


def test_words_are_as_rare_as_in_a_text() -> None:
    counts = torch.bincount(source_words(), minlength=trainings.VOCABULARY).sort(descending=True).values
    assert counts[:20].sum() > 0.3 * counts.sum()
    assert counts[trainings.VOCABULARY // 2] < 1e-4 * counts.sum()


def test_errors_are_true_in_a_real_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding of rare words, and hidden matrices, of a narrower GPT."""
    monkeypatch.setitem(TRAININGS, "small", _small_gpt)
    found = trials("small", steps=30, counts=(4096,))
    assert [(trial.layers, len(trial.scores)) for trial in found] == [("hidden", 270), ("embedding", 30), ("head", 30)]
    both = together(found, 4096)
    assert both.deviation == pytest.approx(1, abs=0.1)
    assert both.within_2 == pytest.approx(0.95, abs=0.03)
    assert abs(both.bias) < 0.15
    (hidden,) = [trial for trial in found if trial.layers == "hidden"]
    # 4 times that of 16 times as many.
    assert np.median(hidden.relative) < 4 * 0.01


def _small_gpt() -> Training:
    torch.manual_seed(0)
    model, words = trainings.SmallGPT(vocabulary=8192, width=128), source_words()

    def loss() -> torch.Tensor:
        starts = torch.randint(len(words) - 17, (4, 1))
        pieces = words[starts + torch.arange(17)]
        padded = nn.functional.pad(pieces[:, :-1], (0, trainings.CONTEXT - 16))
        return nn.functional.cross_entropy(model(padded)[:, :16].flatten(0, 1), pieces[:, 1:].flatten())

    return Training(model, torch.optim.AdamW(model.parameters(), lr=3e-4), loss)


def test_the_results_are_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "TRAININGS", {"small": _small_gpt})
    monkeypatch.setitem(truth.TRAININGS, "small", _small_gpt)
    words = ["--model", "llama:1x256", "--rounds", "2", "--steps", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert main(["bench", "--sample", *words]) == 0
    (path,) = tmp_path.glob("sample-*.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (of_model,) = [row for row in rows if row["model"]]
    assert float(of_model["times_faster_median"]) > 0
    assert int(of_model["extra_bytes_sample"]) < int(of_model["extra_bytes_all"])
    assert {(row["training"], row["layers"]) for row in rows if row["training"]} >= {
        ("small", "hidden"),
        ("all", "all"),
    }
    page = path.with_suffix(".md").read_text("utf-8")
    assert "| small: embedding | 4,096 | 2 |" in page
    assert "## llama:1x256" in page
