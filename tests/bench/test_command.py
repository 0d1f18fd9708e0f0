"""`rwc-wandb bench` end to end on a small network, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rwc_wandb.bench import step
from rwc_wandb.bench.methods import FLOOR, METHODS, OURS, WATCH_ALL
from rwc_wandb.cli import main

MODEL = "timm:test_efficientnet"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "resnet19"], "--model resnet19"),
        (["--model", "timm:nope"], "--model timm:nope"),
        (["--model", "timm:nope", "--model", MODEL], "--model timm:nope"),
        (["--rounds", "0"], "--rounds 0"),
        (["--rounds", "few"], "--rounds"),
        (["--batch-size", "-1"], "--batch-size -1"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_gets_one_sentence(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words, "--output", str(tmp_path)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert named in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "rwc-wandb: --device cuda: torch finds no GPU here; use --device cpu.\n"


def test_a_folder_that_cannot_be_written_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", "--output", str(tmp_path / "file" / "results")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"--output {tmp_path / 'file' / 'results'}: nothing can be written there" in sentence


def test_the_results_are_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step, "SECONDS_PER_MODEL", 0.0)
    monkeypatch.setattr(step, "FEWEST_ROUNDS", 1)
    assert main(["bench", "--device", "cpu", "--model", MODEL, "--rounds", "1", "--batch-size", "4"]) == 0
    (path,) = Path("benchmarks").glob("measure-*.csv")
    with path.open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == [FLOOR, *METHODS]
    model, side = step.model_and_side(MODEL)
    tracked = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    ours = rows[OURS]
    assert (int(ours["weights"]), ours["image_side"]) == (tracked, str(side))
    # One copy of the weights, and tables of some kilobytes.
    assert 4 * tracked <= int(ours["extra_memory_bytes"]) < 4 * tracked + 200_000
    assert ours["host_reads"] == "0"
    parameters = len(list(model.parameters()))
    # Composer: four norms and the step of each, and the norm of all gradients. wandb.watch: four values and a copy of
    # each parameter's and gradient's histogram, and the parameters themselves.
    assert int(rows["Composer's norms"]["host_reads"]) == 5 * parameters + 1
    assert int(rows[WATCH_ALL]["host_reads"]) == 11 * parameters
    for name, row in rows.items():
        assert 0 < float(row["milliseconds_q1"]) <= float(row["milliseconds_median"]) <= float(row["milliseconds_q3"])
        assert bool(row["step_slower_percent_median"]) == (name in (OURS, WATCH_ALL))
    text = path.with_suffix(".md").read_text()
    assert f"* date: {ours['date']}" in text
    assert all(f"| {name} |" in text for name in rows)
    assert FLOOR in capsys.readouterr().out
