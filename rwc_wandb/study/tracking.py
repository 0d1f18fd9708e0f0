"""The W&B run of a training: online where it can be, else offline; never a prompt, never a crash."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import wandb

from rwc_wandb.errors import UserError
from rwc_wandb.study.config import TrainConfig

if TYPE_CHECKING:
    from wandb import Run

SECONDS_TO_WAIT = 30


def open_run(config: TrainConfig, folder: Path) -> tuple[Run, str]:
    """Start the run, and a line that tells where it is.

    Settings of the environment (`WANDB_MODE`, `WANDB_PROJECT`, a sweep's) win over ours.

    Raises:
        UserError: W&B refuses the settings even offline.
    """
    try:
        with _without_terminal():
            run = _init(config, folder, mode=None)
        if run.settings.mode == "disabled" or run.disabled:
            return run, "W&B is disabled (WANDB_MODE=disabled): results are in the run's folder only."
        if not run.offline:
            return run, f"W&B run: {run.url}"
        reason = "WANDB_MODE is offline"
    except wandb.Error as error:
        unreached = f"{type(error).__name__}, no server reached"
        reason = "no API key" if isinstance(error, wandb.errors.UsageError) else unreached
        try:
            run = _init(config, folder, mode="offline")
        except wandb.Error as refused:
            raise UserError(f"W&B refused the run: {refused}") from refused
    return run, f"W&B is offline ({reason}); later: wandb login, then wandb sync {Path(run.dir).parent}"


def _init(config: TrainConfig, folder: Path, mode: str | None) -> Run:
    # What W&B says about being offline is in the one line of `open_run`.
    is_offline = "offline" in (mode, os.environ.get("WANDB_MODE"))
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", config.project),
        name=config.run_name,
        group=config.group or f"{config.model}-{config.dataset}",
        job_type="train",
        config=config.to_dict(),
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(quiet=True, silent=is_offline, init_timeout=SECONDS_TO_WAIT),
    )
    run.define_metric("epoch")
    for group in ("train/*", "test/*"):
        run.define_metric(group, step_metric="epoch")
    return run


@contextmanager
def _without_terminal() -> Iterator[None]:
    """W&B asks for a key only where somebody sits at a terminal: let nobody sit there."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
