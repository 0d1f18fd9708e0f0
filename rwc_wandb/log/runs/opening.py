"""Opening a W&B run: never a prompt, never a crash, never a wait for ever."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from rwc_wandb.errors import UserError
from rwc_wandb.log.runs.ending import SECONDS_TO_FINISH

if TYPE_CHECKING:
    from wandb import Run

SECONDS_TO_OPEN = 30
"""What a server has to answer, before a run of ours goes offline (`WANDB_INIT_TIMEOUT` wins). The client's check of the
API key comes before it, and takes up to 10 s more."""

SECONDS_UNWRITTEN = 1.0
"""What W&B's process has not yet written to the run's file, which is what a kill leaves to `wandb sync`. The client's
default is 15 (`WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL` wins)."""


def open_run(**options: Any) -> tuple[Run, str]:
    """`wandb.init(**options)`, online where it can be, else offline; and a line that tells where the run is.

    Settings of the environment (`WANDB_MODE`, a sweep's) win over ours.

    Raises:
        UserError: W&B refuses the settings even offline.
    """
    try:
        with _without_terminal():
            run = _init_again(options, mode=None)
        if run.settings.mode == "disabled" or run.disabled:
            return run, "W&B is disabled (WANDB_MODE=disabled): nothing is logged there."
        if not run.offline:
            return run, f"W&B run: {run.url}"
        reason = "WANDB_MODE is offline"
    # Settings that cannot be, from the environment too, are wandb.Error or pydantic's ValueError.
    except (wandb.Error, ValueError) as error:
        reason = "no API key" if isinstance(error, wandb.errors.UsageError) else _why_unopened(error)
        try:
            run = _init_again(options, mode="offline")
        except Exception as refused:
            raise UserError(f"W&B refused the run: {refused}") from refused
    return run, f"W&B is offline ({reason}); later: wandb login, then wandb sync {Path(run.dir).parent}"


def _init_again(options: dict[str, Any], mode: Any) -> Run:
    """`_init`; where W&B's process holds the id for an earlier attempt of ours, it is ended first: one that found no
    server, or a run that could not be ended on a full disk."""
    try:
        return _init(options, mode)
    except Exception as error:
        if "is in use" not in str(error):
            raise
    wandb.teardown()
    return _init(options, mode)


def _init(options: dict[str, Any], mode: Any) -> Run:
    # What W&B says about being offline is in the one line of `open_run`.
    is_offline = "offline" in (mode, os.environ.get("WANDB_MODE"))
    ours: dict[str, Any] = {
        "init_timeout": SECONDS_TO_OPEN,
        "finish_timeout": SECONDS_TO_FINISH,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": SECONDS_UNWRITTEN,
    }
    # Older clients do not know all of them.
    known = {name: value for name, value in ours.items() if name in wandb.Settings.model_fields}
    settings = {name: value for name, value in known.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.init(mode=mode, settings=wandb.Settings(quiet=True, silent=is_offline, **settings), **options)


def _why_unopened(error: Exception) -> str:
    kind = type(error).__name__
    if refusal := re.search(r"\b(401|403)\b", str(error)):
        return f"{kind}, the server refuses this API key or project with status {refusal[0]}"
    return f"{kind}, no server reached"


@contextmanager
def _without_terminal() -> Iterator[None]:
    """W&B asks for an API key only where stdin is a terminal: within this block it is not."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
