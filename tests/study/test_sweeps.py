"""The sweep files: Table 1 cell by cell, by W&B's own engine where it is, by the real commands, and walked here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_up_runs import leave_run
from standin import StandIn

from rwc_wandb import History
from rwc_wandb.cli import main
from rwc_wandb.study.sweep.grid import read_grid
from rwc_wandb.study.sweep.local import command_of
from rwc_wandb.study.train.checkpoint import Checkpoints
from rwc_wandb.study.train.output import read_result

SWEEPS = Path(__file__).parents[2] / "sweeps"
PAPER = ["resnet18.yaml", "vgg19_bn.yaml", "alexnet-cifar10.yaml", "alexnet-cifar100.yaml", "alexnet-mnist.yaml"]
FILES = [*PAPER, "quick.yaml", "early-terminate.yaml", "alexnet-fashion_mnist-cpu.yaml"]
# Typed off the paper: architecture, data set, learning rate, momentum, weight decay.
TABLE_1 = """
resnet18 cifar10       0.1   0.9 0.0001
resnet18 cifar100      0.1   0.9 0.0001
resnet18 mnist         0.1   0.9 0.0001
resnet18 fashion_mnist 0.1   0.9 0.0001
vgg19_bn cifar10       0.05  0.9 0.0005
vgg19_bn cifar100      0.05  0.9 0.0005
vgg19_bn mnist         0.05  0.9 0.0005
vgg19_bn fashion_mnist 0.05  0.9 0.0005
alexnet  cifar10       0.001 0.9 0.0001
alexnet  cifar100      0.01  0.9 0.0001
alexnet  mnist         0.1   0.9 0.0001
alexnet  fashion_mnist 0.1   0.9 0.0001
"""
SEEDS = (0, 42, 123, 1000, 1234)
SLOW = "RWC_SLOW" in os.environ
"""Whether the real agent runs all files with two seeds each, which takes minutes."""


def shrunk(name: str, folder: Path, seeds: int) -> Path:
    """The same file on few digits, so that every point of its grid runs in seconds."""
    sweep = yaml.safe_load((SWEEPS / name).read_text())
    parameters = sweep["parameters"]
    parameters["seed"]["values"] = parameters["seed"]["values"][:seeds]
    if "values" in parameters["dataset"]:
        parameters["dataset"] = {"value": "digits"}
    if "values" in parameters["model"]:
        parameters["model"] = {"values": ["resnet18", "torchvision:squeezenet1_1"]}
    parameters |= {"epochs": {"value": 1}, "limit_train": {"value": 64}, "limit_test": {"value": 32}}
    path = folder / name
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


def test_the_files_are_table_1_cell_by_cell() -> None:
    expected = []
    for line in TABLE_1.split("\n")[1:-1]:
        model, dataset, *numbers = line.split()
        rate, momentum, decay = map(float, numbers)
        expected += [(model, dataset, seed, rate, momentum, decay, 128, 150) for seed in SEEDS]
    keys = ("model", "dataset", "seed", "lr", "momentum", "weight_decay", "batch_size", "epochs")
    found = []
    for name in PAPER:
        for point in read_grid(SWEEPS / name, {}).points:
            assert set(point) == set(keys)
            found.append(tuple(point[key] for key in keys))
    assert len(found) == len(set(found)) == 60
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", FILES)
def test_every_run_has_a_name_of_its_own_and_valid_settings(name: str) -> None:
    configs = read_grid(SWEEPS / name, {}).configs("runs")
    assert len({config.run_name for config in configs}) == len(configs)


def test_all_files_at_once_put_only_the_paper_s_runs_into_the_paper_s_project(standin: StandIn) -> None:
    assert main(["sweep", *map(str, sorted(SWEEPS.glob("*.yaml")))]) == 0
    registered = {sweep.config["name"]: sweep for sweep in standin.sweeps.values()}
    assert {f"{name}.yaml" for name in registered} == set(FILES)
    assert {f"{name}.yaml" for name, sweep in registered.items() if sweep.project == "rwc"} == set(PAPER)
    assert registered["early-terminate"].config["early_terminate"] == {"type": "hyperband", "min_iter": 3, "eta": 2}


def test_a_local_sweep_says_that_it_stops_no_run_early(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("method: grid\nearly_terminate: {type: hyperband, min_iter: 1}\nparameters: {epochs: {value: 1}}")
    settings = ["--limit-train=64", "--limit-test=32", "--output", str(tmp_path / "runs")]
    leave_run(tmp_path / "runs", "resnet18", "digits", 0, {}, epochs=1, limit_train=64, limit_test=32)
    assert main(["sweep", "--local", str(path), *settings]) == 0
    said = capsys.readouterr().out
    assert f"{path}: early_terminate is for W&B's agents; here every run goes on to its last epoch." in said


def test_a_local_sweep_takes_its_own_runs_where_another_has_the_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text("method: grid\nparameters: {epochs: {value: 20}}")
    ours = leave_run(tmp_path / "runs", "resnet18", "digits", 0, {}, accuracy=0.75)
    ours.rename(ours.with_name(f"{ours.name}-2"))
    leave_run(tmp_path / "runs", "resnet18", "digits", 0, {}, accuracy=0.25, learning_rate=0.5)
    assert main(["sweep", "--local", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "75.00%" in said
    assert "25.00%" not in said


@pytest.mark.parametrize("columns", [None, "80"])
def test_the_closing_table_has_whole_names(
    columns: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a file, and in a terminal of 80 columns."""
    if columns:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", columns)
    model, rates = "torchvision:efficientnet_v2_s", (0.125, 0.25)
    path, output = tmp_path / "sweep.yaml", tmp_path / "runs"
    fixed = f"model: {{value: {model}}}, epochs: {{value: 20}}, momentum: {{values: [0.5, 0.75]}}"
    path.write_text(f"method: grid\nparameters: {{{fixed}, lr: {{values: {list(rates)}}}}}")
    names = [f"torchvision-efficientnet_v2_s-digits-seed0-momentum{m}-lr{rate}" for m in (0.5, 0.75) for rate in rates]
    for name in names:
        momentum, rate = name.split("-momentum")[1].split("-lr")
        settings = {"name": name, "momentum": float(momentum), "learning_rate": float(rate)}
        leave_run(output, model, "digits", 0, {}, **settings)
    assert main(["sweep", "--local", str(path), "--output", str(output)]) == 0
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows) == "".join(names)
    assert columns or rows == names


def test_runs_that_differ_in_more_than_the_seed_are_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("method: grid\nparameters: {lr: {values: [0.1, 0.2]}, seed: {values: [0, 1]}}")
    names = [config.run_name for config in read_grid(path, {"epochs": 3}).configs("runs")]
    assert names == [f"resnet18-digits-seed{seed}-lr{rate}" for rate in (0.1, 0.2) for seed in (0, 1)]
    assert {config.epochs for config in read_grid(path, {"epochs": 3}).configs("runs")} == {3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [", "it is no YAML"),
        ("just words", "it has no `parameters`"),
        ("method: grid", "it has no `parameters`"),
        ("method: bayes\nparameters: {seed: {value: 0}}", "method 'bayes'; it takes grid"),
        ("method: grid\nparameters: {sead: {value: 0}}", "parameter sead; it takes the options"),
        ("method: grid\nparameters: {seed: {min: 0, max: 3}}", "it takes `value: V` or `values: [V, W]`"),
        ("method: grid\nparameters: {seed: {values: []}}", "it takes `value: V` or `values: [V, W]`"),
        ("method: grid\nparameters: {weight_decay: {value: 1e-4}}", "YAML reads 1e-4 as text: write 0.0001"),
        ("method: grid\nparameters: {seed: {values: [0, one]}}", "parameter seed: 'one'; it takes int"),
        ("method: grid\nparameters: {seed: {value: true}}", "parameter seed: True; it takes int"),
        ("method: grid\nparameters: {lr: {value: -1}}", "--lr -1: it takes a finite number above 0"),
    ],
)
def test_a_bad_file_gets_one_sentence(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(content)
    assert main(["sweep", "--local", str(path), "--output", str(tmp_path / "runs")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"rwc-wandb: {path}: ")
    assert sentence in said
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "absent.yaml"]) == 2
    assert "absent.yaml: it cannot be read" in capsys.readouterr().err


@pytest.mark.skipif("RWC_SWEEPS_PYTHON" not in os.environ, reason="needs an interpreter with the package `sweeps`")
@pytest.mark.parametrize("name", FILES)
def test_the_backend_s_own_engine_walks_the_same_grid(name: str) -> None:
    code = """
import json, sys, yaml, sweeps
config = yaml.safe_load(open(sys.argv[1]))
assert not sweeps.schema_violations_from_proposed_config(config), sweeps.schema_violations_from_proposed_config(config)
runs = []
while (run := sweeps.next_run(config, runs, validate=False)) is not None:
    runs.append(run)
print(json.dumps([{key: entry["value"] for key, entry in run.config.items()} for run in runs]))
"""
    python = os.environ["RWC_SWEEPS_PYTHON"]
    said = subprocess.run([python, "-c", code, SWEEPS / name], capture_output=True, text=True, check=True).stdout
    found: list[dict[str, Any]] = yaml.safe_load(said)
    assert sorted(map(repr, map(sorted, map(dict.items, found)))) == sorted(
        repr(sorted(point.items())) for point in read_grid(SWEEPS / name, {}).points
    )


@pytest.mark.parametrize("name", FILES if SLOW else ["quick.yaml"])
def test_the_real_agent_runs_every_point(name: str, standin: StandIn, tmp_path: Path) -> None:
    path = shrunk(name, tmp_path, seeds=2 if SLOW else 1)
    # `accelerate` and `wandb` are those of this environment.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    registered = subprocess.run(
        [sys.executable, "-m", "rwc_wandb", "sweep", path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert registered.returncode == 0, registered.stderr
    (sweep,) = standin.sweeps.values()
    points = read_grid(path, {}).points
    agent = f"wandb agent tester/{read_grid(path, {}).sweep['project']}/{sweep.id}"
    assert f"{len(points)} runs" in registered.stdout
    assert agent in registered.stdout
    ran = subprocess.run(agent.split(), env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr
    assert len(standin.runs) == len(points) == len(sweep.started)
    for run_id, point in sweep.started.items():
        run = standin.run(run_id)
        assert run.state == "finished", ran.stderr
        assert {key: run.config[key] for key in point} == point
        (row,) = [row for row in run.rows if "test/accuracy" in row]
        assert 0 <= row["test/accuracy"] <= 1
        assert row["rwc/step"] == 1
        assert sum(key.startswith("rwc/") and row[key] > 0 for key in row) > 8


def test_a_killed_local_sweep_goes_on_and_a_failing_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = "epochs: {value: 8}, limit_train: {value: 64}, limit_test: {value: 32}, batch_size: {value: 16}"
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    model = "model: {value: torchvision:squeezenet1_1}, image_size: {value: 24}"
    good.write_text(f"method: grid\nparameters: {{{model}, seed: {{values: [0, 1]}}, {settings}}}")
    bad.write_text(f"method: grid\nparameters: {{model: {{value: vgg19_bn}}, image_size: {{value: 8}}, {settings}}}")
    command = [sys.executable, "-m", "rwc_wandb", "sweep", "--local", "--output", str(tmp_path / "runs")]
    first, second = (tmp_path / "runs" / f"torchvision-squeezenet1_1-digits-seed{seed}" for seed in (0, 1))

    killed = subprocess.Popen([*command, good], stdout=subprocess.DEVNULL, start_new_session=True)
    while killed.poll() is None and Checkpoints(second).latest() is None:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert read_result(first)
    assert not read_result(second)

    before = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}
    again = subprocess.run([*command, bad, good], capture_output=True, text=True, timeout=300)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "1 of 3 runs failed: vgg19_bn-digits-seed0" in again.stdout
    assert "--image-size 8: vgg19_bn takes images from 32 pixels on" in again.stdout
    assert "Traceback" not in again.stdout + again.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "Resumed in epoch" in (tmp_path / "runs" / "logs" / f"{second.name}.txt").read_text()

    (config,) = [config for config in read_grid(good, {}).configs(str(tmp_path / "unkilled")) if config.seed == 1]
    assert main(command_of(config)[command_of(config).index("train") :]) == 0
    assert read_result(second) == read_result(config.run_folder)
    resumed, unkilled = (History.load(folder / "rwc.safetensors") for folder in (second, config.run_folder))
    np.testing.assert_array_equal(resumed.rwc, unkilled.rwc)

    refused = subprocess.run([*command, good, "--epochs", "2"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "holds a run with epochs 8, not 2: name another --output" in refused.stderr
