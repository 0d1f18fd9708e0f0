"""Start the W&B run of a training, or go on with it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from rwc_wandb.files import write_whole
from rwc_wandb.log.runs.opening import open_run
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.output import unwritable

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb-run-id"


def open_training_run(config: TrainConfig, folder: Path) -> tuple[Run, str]:
    """Start the run, or go on with the one that `folder` belongs to, and a line that tells where it is.

    Settings of the environment (`WANDB_MODE`, `WANDB_PROJECT`, a sweep's) win over ours.

    Raises:
        UserError: W&B refuses the settings even offline, or the folder cannot be written.
    """
    path = folder / ID_FILE
    known = path.read_text().strip() if path.is_file() else None
    # A sweep's agent names the run itself.
    run_id = os.environ.get("WANDB_RUN_ID") or known or secrets.token_hex(4)
    try:
        if run_id != known:
            write_whole(path, run_id)
    except OSError as error:
        raise unwritable(config.output, path, error) from error
    # The address of a wandb process that another one has started: it may be gone, or hold the run of a killed training.
    os.environ.pop("WANDB_SERVICE", None)
    run, line = open_run(
        project=os.environ.get("WANDB_PROJECT", config.project),
        id=run_id,
        resume="allow",
        name=config.run_name,
        group=config.group or f"{config.model}-{config.dataset}",
        job_type="train",
        config=config.to_dict(),
        dir=folder,
    )
    run.define_metric("epoch")
    for group in ("train/*", "test/*"):
        run.define_metric(group, step_metric="epoch")
    return run, line
