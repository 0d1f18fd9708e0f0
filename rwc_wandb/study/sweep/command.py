"""`rwc-wandb sweep`: register sweeps at W&B, or walk their grids on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rwc_wandb.errors import UserError
from rwc_wandb.study.sweep.grid import Grid, read_grid

OVERRIDES = ("epochs", "limit_train", "limit_test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="sweep files, such as sweeps/quick.yaml")
    parser.add_argument(
        "--local", action="store_true", help="do all runs here, one after the other, without a server or an account"
    )
    parser.add_argument("--output", default="runs", metavar="DIR", help="--local: the folder for results [runs]")
    parser.add_argument("--entity", help="W&B user or team; default: yours")
    parser.add_argument("--project", help="W&B project; default: the file's")
    for name in OVERRIDES:
        spelling = "--" + name.replace("_", "-")
        parser.add_argument(spelling, dest=name, type=int, metavar="N", help=f"{spelling} of every run, to try out")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0; 1 where a run of `--local` failed.

    Raises:
        UserError: a file that cannot be used, or W&B refuses the sweep.
    """
    overrides = {name: getattr(arguments, name) for name in OVERRIDES if getattr(arguments, name) is not None}
    grids = [read_grid(path, overrides) for path in arguments.files]
    # Before anything is registered or run, every run's settings are looked at.
    configs = [config for grid in grids for config in grid.configs(arguments.output)]
    if arguments.local:
        from rwc_wandb.study.sweep.local import run_all

        for grid in grids:
            if "early_terminate" in grid.sweep:
                print(f"{grid.path}: early_terminate is for W&B's agents; here every run goes on to its last epoch.")

        return run_all(configs)
    for grid in grids:
        _register(grid, arguments.entity, arguments.project)
    return 0


def _register(grid: Grid, entity: str | None, project: str | None) -> None:
    import wandb

    sweep: dict[str, Any] = grid.sweep
    project = project or sweep.get("project") or "rwc"
    try:
        entity = entity or sweep.get("entity") or wandb.Api().default_entity
        sweep_id = wandb.sweep(sweep, entity=entity, project=project)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"W&B refused the sweep {grid.path}: {str(error).strip()}") from error
    agent = f"wandb agent {entity}/{project}/{sweep_id}"
    print(
        f"{grid.path}: {len(grid.points)} runs. On every machine that shall take part:\n"
        f"  {agent}    # one run at a time, on all GPUs\n"
        f"  for gpu in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$gpu {agent} & done; wait    # one run per GPU"
    )
