"""The end of a training's W&B run, and what W&B lacks of a run whose training has ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import wandb

from rwc_wandb import History
from rwc_wandb.log.keys import define_axes
from rwc_wandb.log.rows import log_whole
from rwc_wandb.log.runs.ending import finish_run
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.tracking.opening import open_training_run
from rwc_wandb.study.train.tracking.recorded import RecordedRun
from rwc_wandb.study.train.tracking.rows_file import RowsFile

if TYPE_CHECKING:
    from wandb import Run

SERIES_FILE = "rwc.safetensors"
UNSENT = "The same command with --resume sends what W&B lacks; that sync would not bring every row."
STILL_LACKS = "W&B still lacks rows of this run: the same command with --resume sends them."


def end_run(run: RecordedRun, exit_code: int | None = None) -> str:
    """End the run; two lines for the case that the server did not take all of it, else "".

    Raises:
        OSError: W&B cannot write its own files.
    """
    line = finish_run(cast("Run", run), exit_code, is_stopped=exit_code is not None)
    if run.failure:  # It was said; W&B's own folder lacks rows too.
        return ""
    run.is_complete = run.is_complete and not line
    if run.backlog:
        return f"{line}\n{UNSENT}" if line else STILL_LACKS
    if line and exit_code is None:
        line += "\nThe same command with --resume sends only what W&B lacks; that sync sends all rows."
    return line


def send_rest(config: TrainConfig, folder: Path, summary: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Send the rows on record that W&B lacks, with the summary, the series and the charts of the run.

    Args:
        folder: of a run that was trained to its end.
        summary: what its end adds to W&B's summary.

    Returns:
        Whether W&B has every row, or will have by the `wandb sync` that was said.

    Raises:
        UserError: W&B refuses the settings.
        OSError: W&B or we cannot write files.
    """
    history, file = History.load(folder / SERIES_FILE), RowsFile(folder)
    opened, where = open_training_run(config, folder)
    say(where)
    run = RecordedRun(opened, file, say)
    define_axes(opened)
    run.go_on(file.size, history.layers[0])
    run.summary.update(summary)
    path = Path(shutil.copy(folder / SERIES_FILE, opened.dir))
    log_whole(cast("Run", run), history, path)
    if line := end_run(run):
        say(line)
    return run.is_complete


def send_rest_anew(config: TrainConfig, folder: Path, summary: dict[str, Any], say: Callable[[str], None]) -> bool:
    """`send_rest` through a new process of W&B, after the old one has died; it never raises."""
    with suppress(Exception):
        wandb.teardown()
    is_complete = False
    with suppress(Exception):
        is_complete = send_rest(config, folder, summary, say)
    if not is_complete:
        say(STILL_LACKS)
    return is_complete


def send_rest_of_finished(config: TrainConfig, folder: Path, result: dict[str, Any]) -> None:
    """`--resume` of a run that has finished: W&B gets what it lacks."""
    if not RowsFile(folder).path.exists():
        print(f"{folder} has finished: nothing to resume.")
    elif int(os.environ.get("RANK", "0")) == 0:
        print(f"{folder} has finished: W&B gets the rows that it lacks.")
        if send_rest(config, folder, accuracies(result["best_test_accuracy"], result["last_test_accuracy"]), print):
            RowsFile(folder).remove()
        else:
            print(STILL_LACKS)


def accuracies(best: float, last: float) -> dict[str, float]:
    """What the end of a training adds to W&B's summary."""
    return {"test/best_accuracy": best, "test/last_accuracy": last}
