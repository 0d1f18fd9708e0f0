"""A W&B run with all that its monitors share: what it may still be sent, and its end."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rwc_wandb.log.budget import Budget
from rwc_wandb.measure.delivery import Delivery
from rwc_wandb.measure.monitor import Monitor, MonitoringStopped

if TYPE_CHECKING:
    from wandb import Run

Row = dict[str, Any]

_WATCHED: WeakKeyDictionary[Any, WatchedRun] = WeakKeyDictionary()


def watched(run: Run) -> WatchedRun:
    """The one `WatchedRun` of `run`."""
    if run not in _WATCHED:
        _WATCHED[run] = WatchedRun(run)
    return _WATCHED[run]


class WatchedRun:
    """A run's monitors end together, since a row that one of them commits moves the step counter of all.

    Attributes:
        run: the W&B run, or a `LateRun`.
        budget: what all monitors of the run may still send.
        monitors: the open monitors, by what takes their measurements. A closed one is not kept: a long run would keep
            in memory every model that was once trained in it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.budget = Budget()
        self.monitors: dict[Delivery, Monitor] = {}
        self._uncommitted: list[Callable[[], list[Row]]] = []

    def close_at_end(self, monitor: Monitor, delivery: Delivery, uncommitted: Callable[[], list[Row]]) -> None:
        """Close the monitor when the run finishes, or else when the interpreter ends; then commit what `uncommitted`
        returns: rows that stand together in the one that the user has not committed."""
        self.monitors[delivery] = monitor
        self._uncommitted.append(uncommitted)
        if len(self._uncommitted) > 1:
            return
        # W&B has no public hook for the end of a run; its own integrations use this one.
        hooks = getattr(self.run, "_teardown_hooks", None)
        if hooks is not None:
            from wandb.sdk.wandb_run import TeardownHook, TeardownStage

            hooks.append(TeardownHook(self._end, TeardownStage.EARLY))
        atexit.register(self._end)

    def _end(self) -> None:
        atexit.unregister(self._end)
        _WATCHED.pop(self.run, None)
        for monitor in list(self.monitors.values()):
            monitor.close()
        try:
            self._commit_rest()
        except Exception as error:
            warnings.warn(
                f"rwc_wandb lost the last rows: {type(error).__name__}: {error}", MonitoringStopped, stacklevel=2
            )

    def _commit_rest(self) -> None:
        """The run ends: moving the user's step counter disturbs no row of theirs any more. Rows of several monitors
        stand side by side."""
        for side_by_side in zip_longest(*(uncommitted() for uncommitted in self._uncommitted), fillvalue={}):
            values: Row = {}
            for row in side_by_side:
                values |= row
            self.run.log(values)
