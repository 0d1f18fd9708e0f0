"""What a run leaves in its folder and in the terminal."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from rwc_wandb import History
from rwc_wandb.errors import UserError
from rwc_wandb.files import whole_file
from rwc_wandb.study.config import TrainConfig

RESULT_FILE = "result.yaml"
METRICS_FILE = "metrics.csv"


def make_folder(config: TrainConfig) -> Path:
    """OUTPUT/NAME/, with a number behind NAME where that exists already; holds `config.yaml` afterwards.

    Raises:
        UserError: it cannot be written.
    """
    wanted = config.run_folder
    for number in range(1, 10_000):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            with whole_file(folder / "config.yaml") as unfinished:
                unfinished.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
            return folder
        except FileExistsError:
            if not folder.is_dir():
                break
        except OSError as error:
            with suppress(OSError):
                folder.rmdir()
            reason = error.strerror or error
            raise UserError(
                f"--output {config.output}: {folder} cannot be written ({reason}); name another."
            ) from error
    raise UserError(f"--output {config.output}: {wanted} is no folder, or too many runs have its name.")


def folder_to_resume(config: TrainConfig) -> Path | None:
    """The folder of this very run, if it has been started.

    Raises:
        UserError: it holds a run of other settings.
    """
    folder = config.run_folder
    if not (folder / "config.yaml").is_file():
        return None
    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text()) or {}
    for name, value in config.to_dict().items():
        if name not in ("output", "data_dir") and found.get(name) != value:
            raise UserError(f"{folder} holds a run with {name} {found.get(name)}, not {value}: name another --output.")
    return folder


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run reached: `epochs`, `best_test_accuracy`, `last_test_accuracy`; None if it has not finished."""
    path = folder / RESULT_FILE
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """The last thing that a run writes: it has finished when this file is there."""
    with whole_file(folder / RESULT_FILE) as unfinished, unfinished.open("w") as file:
        yaml.safe_dump(result, file, sort_keys=False)
        file.flush()
        os.fsync(file.fileno())


def append_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add epochs to `metrics.csv`, in place of these epochs and later ones of a run that was stopped."""
    path = folder / METRICS_FILE
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [old for old in csv.DictReader(file) if (old["epoch"] or "").isdigit()]
    kept = [old for old in kept if int(old["epoch"]) < rows[0]["epoch"]]
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([*kept, *rows])


def print_layers(console: Console, history: History) -> None:
    """The closing table: layer, stage, weights, first, last and mean RWC."""
    table = Table(title="Relative Weight Change: ||w_t - w_{t-1}||_1 / ||w_{t-1}||_1")
    for heading in ("layer", "stage"):
        table.add_column(heading)
    for heading in ("weights", "first", "last", "mean"):
        table.add_column(heading, justify="right")
    if len(history):
        rows = zip(history.layers, history.stages, history.sizes, history.rwc.T, strict=True)
        for layer, stage, size, values in rows:
            numbers = (f"{value:.4g}" for value in (values[0], values[-1], values.mean(dtype=np.float64)))
            table.add_row(layer, stage, f"{size:,}", *numbers)
    console.print(table)
