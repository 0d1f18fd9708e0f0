"""What a run leaves in its folder and in the terminal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from rwc_wandb import History
from rwc_wandb.errors import UserError
from rwc_wandb.study.config import TrainConfig


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
            (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
            return folder
        except FileExistsError:
            if not folder.is_dir():
                break
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"--output {config.output}: {folder} cannot be written ({reason}); name another."
            ) from error
    raise UserError(f"--output {config.output}: {wanted} is no folder, or too many runs have its name.")


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Add one epoch to `metrics.csv`."""
    path = folder / "metrics.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


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
            numbers = (f"{value:.4g}" for value in (values[0], values[-1], np.mean(values)))
            table.add_row(layer, stage, f"{size:,}", *numbers)
    console.print(table)
