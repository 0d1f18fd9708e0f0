"""Scripts as others write them, with one line inserted and with none, through `rwc-wandb run`: right numbers."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from series import Weights
from standin import StandIn
from standin.store import Run as ServerRun

from rwc_wandb import History

pytest.importorskip("timm")
SCRIPTS = Path(__file__).parent / "scripts"


@dataclass
class Script:
    name: str
    words: list[str]
    """Its arguments; FOLDER is where it saves its weights."""
    after: str
    """The line is inserted after the one that starts with this."""
    steps: int
    line: str = "import rwc_wandb; rwc_wandb.watch(model, optimizer)"

    @property
    def path(self) -> Path:
        return SCRIPTS / f"{self.name}.py"

    def arguments(self, folder: Path) -> list[str]:
        return [word.replace("FOLDER", str(folder)) for word in self.words]

    def with_the_line(self, folder: Path) -> Path:
        lines = self.path.read_text().splitlines()
        (place,) = [number for number, line in enumerate(lines) if line.strip().startswith(self.after)]
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        path = folder / self.path.name
        path.write_text("\n".join([*lines[: place + 1], indent + self.line, *lines[place + 1 :]]))
        return path


ALL = [
    Script(
        "mnist",
        ["--save-dir", "FOLDER", "--log-every", "7", "--epochs", "1"],
        "scheduler = ",
        8,
        "import rwc_wandb, wandb; wandb.init(project='p'); rwc_wandb.watch(model, optimizer)",
    ),
    Script("gpt", ["--out_dir=FOLDER"], "wandb.init(", 7, "import rwc_wandb; rwc_wandb.watch(model, optimizer)"),
    Script("cv_example", ["--cpu", "--output_dir", "FOLDER"], "steps = 0", 6),
    Script("timm_train", ["--log-wandb", "--output", "FOLDER"], "os.makedirs", 10),
]


def measured(run: ServerRun) -> History:
    path = Path("measured.safetensors")
    path.write_bytes(run.files["rwc.safetensors"])
    return History.load(path)


def the_run(standin: StandIn) -> ServerRun:
    (run,) = standin.runs.values()
    return run


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "RWC_WANDB_CHARTS": "me"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_with_one_line(script: Script, standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    saved = tmp_path / "saved"
    saved.mkdir()
    monkeypatch.setattr(sys, "argv", [str(script.path), *script.arguments(saved)])
    runpy.run_path(str(script.with_the_line(tmp_path)), run_name="__main__")
    if wandb.run is not None:
        wandb.run.finish()
    history = measured(the_run(standin))
    assert history.steps.tolist() == list(range(1, script.steps + 1))
    Weights.of(saved).check(history)


# The other two: under launchers and in a sweep, below.
@pytest.mark.parametrize("script", [ALL[1], ALL[3]], ids=lambda script: script.name)
def test_without_a_line(script: Script, standin: StandIn, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    options = ["--log-every", "2", "--histogram-every", "none"]
    result = python("-m", "rwc_wandb", "run", *options, str(script.path), *script.arguments(saved))
    assert result.returncode == 0, result.stderr
    run = the_run(standin)
    history = measured(run)
    assert history.steps.tolist() == list(range(1, script.steps + 1))
    Weights.of(saved).check(history)
    assert [row["rwc/step"] for row in run.rows if "rwc/step" in row][-1] == script.steps


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_under_a_launcher(standin: StandIn, tmp_path: Path, launcher: str) -> None:
    """Two processes by torchrun, as `accelerate launch` starts but one on a machine without a GPU."""
    script = next(one for one in ALL if one.name == "cv_example")
    saved = tmp_path / "saved"
    saved.mkdir()
    launch = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--mixed_precision", "no"],
    }[launcher]
    words = ["run", "--histogram-every", "none", str(script.path), *script.arguments(saved)]
    result = python("-m", *launch, "-m", "rwc_wandb", *words)
    assert result.returncode == 0, result.stderr
    steps = 6 if launcher == "accelerate" else 4
    assert f"processes: {1 if launcher == 'accelerate' else 2}, optimizer steps: {steps}" in result.stdout
    history = measured(the_run(standin))
    assert history.steps.tolist() == list(range(1, steps + 1))
    Weights.of(saved).check(history)


def test_a_sweep_measures_a_project_that_nobody_touched(standin: StandIn, tmp_path: Path) -> None:
    import wandb

    saved = tmp_path / "saved"
    saved.mkdir()
    command = ["${env}", sys.executable, "-m", "rwc_wandb", "run", str(SCRIPTS / "mnist.py"), "${args}"]
    fixed = {"save-dir": {"value": str(saved)}, "epochs": {"value": 1}, "lr": {"values": [0.5]}}
    sweep = wandb.sweep({"method": "grid", "command": command, "parameters": fixed}, project="p")
    result = python("-m", "wandb", "agent", f"{standin.entity}/p/{sweep}", "--count", "1")
    assert result.returncode == 0, result.stderr
    run = the_run(standin)
    assert run.sweep == sweep
    assert run.config["lr"] == 0.5
    Weights.of(saved).check(measured(run))
