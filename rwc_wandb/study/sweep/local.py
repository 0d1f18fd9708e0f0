"""All runs of sweeps on this machine, one after the other; what is finished is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rwc_wandb.files import new_folders
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.output import RESULT_FILE, folder_to_resume, folders_of, read_result, unwritable

LOGS = "logs"


def run_all(configs: Sequence[TrainConfig]) -> int:
    """Train every configuration in a process of its own, `rwc-wandb train --resume ...`.

    A run that has finished is left alone, one that was killed goes on, and one that fails does not stop the others.
    What a run prints is in OUTPUT/logs/NAME.txt.

    Returns:
        The exit code: 1 if a run failed.

    Raises:
        UserError: a folder holds a run of other settings, or cannot be written.
    """
    for config in configs:
        folder_to_resume(config)
        _make_logs(config)
    console = Console()
    # rich takes 80 columns for a file, which would break the names.
    console = console if console.is_terminal else Console(width=120)
    failed: dict[str, str] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        bar = progress.add_task("", total=len(configs))
        for config in configs:
            progress.update(bar, description=config.run_name)
            if _result(config) is None and (reason := _train(config)):
                failed[config.run_name] = reason
                console.print(f"{config.run_name} failed: {reason}", highlight=False, markup=False, soft_wrap=True)
            progress.update(bar, advance=1)
    console.print(_table(configs, failed))
    if failed:
        console.print(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}", soft_wrap=True)
    return 1 if failed else 0


def _result(config: TrainConfig) -> dict[str, Any] | None:
    """Of the newest folder of this run that has finished."""
    results = [result for folder in folders_of(config) if (result := read_result(folder))]
    return results[-1] if results else None


def _make_logs(config: TrainConfig) -> None:
    folder = Path(config.output) / LOGS
    try:
        with new_folders(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(config.output, folder, error) from error


def command_of(config: TrainConfig) -> list[str]:
    """The command line of a run: on all GPUs, where there are several."""
    launcher = ["accelerate.commands.launch", "-m"] if torch.cuda.device_count() > 1 else []
    default = TrainConfig().to_dict()
    options = [f"--{name}={value}" for name, value in config.to_dict().items() if value != default[name]]
    return [sys.executable, "-m", *launcher, "rwc_wandb", "train", "--resume", *options]


def _train(config: TrainConfig) -> str:
    """Why it failed; "" if it did not."""
    log = Path(config.output) / LOGS / f"{config.run_name}.txt"
    with log.open("ab") as file:
        # The variable lets a training end when this process dies.
        environment = os.environ | {"RWC_WANDB_SWEEP": "local"}
        command = command_of(config)
        # As long as the training takes.
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if status == 0:
        return ""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("rwc-wandb: ")] or lines or ["it printed nothing"]
    return f"status {status}, {said[-1].strip()} ({log})"


def _table(configs: Sequence[TrainConfig], failed: dict[str, str]) -> Table:
    table = Table(title=f"{len(configs)} runs")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for heading in ("epochs", "last test accuracy", "best"):
        table.add_column(heading, justify="right")
    for config in configs:
        result = _result(config)
        if result is None:
            table.add_row(config.run_name, "failed" if config.run_name in failed else f"no {RESULT_FILE}", "", "", "")
        else:
            last, best = (f"{result[key]:.2%}" for key in ("last_test_accuracy", "best_test_accuracy"))
            table.add_row(config.run_name, "finished", str(result["epochs"]), last, best)
    return table
