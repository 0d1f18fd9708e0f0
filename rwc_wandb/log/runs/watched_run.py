"""A W&B run with all that its monitors share: what it may still be sent, and its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rwc_wandb.log.budget import Budget, Flow
from rwc_wandb.log.outbox import Row
from rwc_wandb.log.runs.ending import call_at_end, forget_end
from rwc_wandb.log.runs.late_run import LateRun
from rwc_wandb.measure.delivery import Delivery, MonitoringStopped, described
from rwc_wandb.measure.monitor import Monitor

if TYPE_CHECKING:
    from wandb import Run

Rest = Callable[[int], list[Row]]
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
        flow: what W&B's process can take now.
        row_flow: the same for rows, which a run may keep until it can.
        monitors: the open monitors, by what takes their measurements. A closed one is not kept: a long run would keep
            in memory every model that was once trained in it.
        prefixes: those of all monitors that the run has had.
        is_stopped: the process is being stopped: no charts are made, and waits are short.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.budget = Budget()
        self.flow = self.row_flow = Flow(run)
        self.monitors: dict[Delivery, Monitor] = {}
        self.prefixes: set[str] = set()
        self.is_stopped = False
        self._rests: dict[Delivery, Rest] = {}
        self._is_attended = self._has_ended = False

    @property
    def seconds_to_answer(self) -> float:
        """What W&B's process has at the end, before what it has not taken is given up."""
        return 1.0 if self.is_stopped else 60.0

    def free_prefix(self, prefix: str) -> str:
        """`prefix`, or where a monitor of this run has it, the next with a number; then it is said."""
        if prefix not in self.prefixes:
            return prefix
        free = next(f"{prefix}_{number}" for number in count(2) if f"{prefix}_{number}" not in self.prefixes)
        warnings.warn(
            f"rwc_wandb: another monitor of this run logs under {prefix!r}: this one logs under {free!r}. Name it with "
            "prefix=, or watch several models by one call: watch([one, other], optimizer).",
            stacklevel=4,
        )
        return free

    def close_at_end(self, monitor: Monitor, delivery: Delivery, prefix: str, rest: Rest) -> None:
        """Close the monitor when the run finishes, or else when the interpreter ends; then commit what `rest` returns:
        rows of at most so many values in all."""
        self.monitors[delivery] = monitor
        self.prefixes.add(prefix)
        self._rests[delivery] = rest
        if self._is_attended:
            return
        self._is_attended = True
        if isinstance(self.run, LateRun):
            self.run.call_at_end(self.end)
        else:
            call_at_end(self.run, self.end)

    def forget_rest(self, delivery: Delivery) -> None:
        """A closed monitor has none: a long run would keep the series of every model that was once trained in it."""
        self._rests.pop(delivery, None)

    def end(self) -> None:
        """Close the monitors and commit what waits, once: W&B's client calls it where a run ends in order."""
        forget_end(self.end)
        if self._has_ended or not self._is_attended:
            return
        self._has_ended = True
        _WATCHED.pop(self.run, None)
        for monitor in list(self.monitors.values()):
            monitor.close()
        try:
            self._commit_rest()
        except Exception as error:
            warnings.warn(f"rwc_wandb lost the last rows: {described(error)}.", MonitoringStopped, stacklevel=2)

    def _commit_rest(self) -> None:
        """The run ends: moving the user's step counter disturbs no row of theirs any more. Rows of several monitors
        stand side by side."""
        share = int(self.budget.left() / max(len(self._rests), 1))
        for side_by_side in zip_longest(*(rest(share) for rest in self._rests.values()), fillvalue={}):
            values: Row = {}
            for row in side_by_side:
                values |= row
            self.run.log(values)
