"""What happens when a W&B run ends: its monitors are closed, and what only stands in a joined row becomes rows."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rwc_wandb.log.rows import RunRows
from rwc_wandb.measure.monitor import Monitor, MonitoringStopped

if TYPE_CHECKING:
    from wandb import Run

_WATCHED: WeakKeyDictionary[Any, list[tuple[list[Monitor], RunRows]]] = WeakKeyDictionary()
"""Run: its monitors, until they are closed, and their rows. They end together, since a row that one of them commits
moves the step counter of all."""


def end_with(run: Run, monitor: Monitor, rows: RunRows) -> None:
    """Close the monitor when the run finishes, or else when the interpreter ends."""
    still_open = [monitor]
    # A long run does not keep every model in memory that was once trained in it.
    rows.when_closed = still_open.clear
    if run in _WATCHED:
        _WATCHED[run].append((still_open, rows))
        return
    watched = _WATCHED[run] = [(still_open, rows)]

    def finish() -> None:
        atexit.unregister(finish)
        _WATCHED.pop(run, None)
        for monitors, _ in watched:
            for each in list(monitors):
                each.close()
        try:
            commit_pending([rows for _, rows in watched])
        except Exception as error:
            warnings.warn(
                f"rwc_wandb lost the last rows: {type(error).__name__}: {error}", MonitoringStopped, stacklevel=2
            )

    # W&B has no public hook for the end of a run; its own integrations use this one.
    hooks = getattr(run, "_teardown_hooks", None)
    if hooks is not None:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        hooks.append(TeardownHook(finish, TeardownStage.EARLY))
    atexit.register(finish)


def commit_pending(several: Sequence[RunRows]) -> None:
    """The run ends: nobody's step counter can be disturbed any more.

    Where the user has not committed a row since ours, all the windows that the pending one stands for become rows, and
    those of several monitors stand side by side.
    """
    waiting = [rows for rows in several if rows.is_pending()]
    for windows in zip_longest(*(rows.pending for rows in waiting)):
        values: dict[str, float] = {}
        for rows, window in zip(waiting, windows, strict=True):
            values |= rows.values(window) if window else {}
        waiting[0].run.log(values)
