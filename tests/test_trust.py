"""What is secret stays secret, and names by others do nothing: in files, in pages, at W&B."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from standin import StandIn
from torch import nn

import rwc_wandb
from rwc_wandb.cli import main

TRAIN = [
    "train",
    "--model=torchvision:squeezenet1_1",
    "--image-size=24",
    "--limit-train=16",
    "--limit-test=8",
]
SCRIPT = "<script>alert(1)</script>"
KINDS = ("cache", "config", "data", "artifact")
KEY = "f00dfeed" * 5


def test_a_run_tells_nobody_the_key_and_stays_in_its_folder(
    standin: StandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    words = [*TRAIN, "--epochs=2", f"--name=../../evil{SCRIPT}", "--rwc-every=1", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr("rwc_wandb.study.train.loop.append_metrics", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main(words) == 128 + signal.SIGTERM
    (folder,) = Path("runs").iterdir()
    assert folder.name == "evil-script-alert-1-script"
    checkpoints = list((folder / "checkpoints").iterdir())
    assert checkpoints
    assert not [path for path in checkpoints if KEY.encode() in path.read_bytes()]
    assert main(words) == 0
    assert [path.name for path in Path().iterdir()] == ["runs"]
    assert {path.name for path in tmp_path.iterdir()} <= {"inside", *(f"wandb-{kind}" for kind in KINDS)}
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == f"../../evil{SCRIPT}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "debug-internal.log" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    said = capfd.readouterr()
    (run,) = standin.runs.values()
    assert [row["epoch"] for row in run.rows if "epoch" in row] == [1, 2]
    assert KEY not in said.out + said.err + repr(run)
    assert SCRIPT not in (folder / "rwc.html").read_text("utf-8")


def test_names_of_layers_at_w_and_b(standin: StandIn, tmp_path: Path) -> None:
    names = [SCRIPT, "</script>" + SCRIPT, "/up", 'a "quote"', "it's", "new\nline", "ünï"]
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
    run = wandb.init(project="trust", name=f"../{SCRIPT}", dir=tmp_path)
    with rwc_wandb.watch(model, run=run, histogram_every=1, log_every=1, stages=lambda layer: layer) as monitor:
        torch.nn.init.ones_(model["it's"].weight)
        monitor.measure()
    run.log({"mine": 1})
    run.finish()
    arrived = standin.runs[run.id]
    keys = {key for row in arrived.rows for key in row}
    for name in names:
        assert {f"rwc/{name.replace('.', '/')}", f"hist/weight/{name.replace('.', '/')}"} <= keys
    pages = [content.decode() for name, content in arrived.files.items() if name.endswith(".html")]
    assert pages
    assert not [page for page in pages if SCRIPT in page]
    assert all(re.search(r"\\u003c/script>\\u003cscript>alert", page) for page in pages)
