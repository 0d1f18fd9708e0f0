"""A W&B run that is decided later: when something is to be logged, at the latest."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import wandb

from rwc_wandb.log.runs.ending import call_at_end
from rwc_wandb.log.runs.opening import open_run

if TYPE_CHECKING:
    from wandb import Run


class LateRun:
    """Stands for a W&B run that is not there yet, as `watch(run=...)`.

    It is decided when something is to be logged, at the latest: the active run, else one of our own, which does not
    become `wandb.run`, so that a later `wandb.init` of the user's is not disturbed. Until then only axes are noted.

    Args:
        say: gets the line that tells where a run of our own is.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._axes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._at_end: list[Callable[[], None]] = []
        self.run: Run | None = None
        self.is_ours = False
        self.settings = SimpleNamespace(mode=None)

    def settle(self) -> Run:
        """Take the active run, or open one."""
        if self.run is None:
            if wandb.run is not None:
                self.run = wandb.run
            else:
                self.run, line = open_run(reinit="create_new")
                self.is_ours = True
                # Else a later `wandb.init` of the user's would return ours.
                forget = getattr(getattr(self.run, "_wl", None), "remove_active_run", None)
                if forget is not None:
                    forget(self.run)
                self._say(line)
            for words, options in self._axes:
                self.run.define_metric(*words, **options)
            for action in self._at_end:
                call_at_end(self.run, action)
        return self.run

    def call_at_end(self, action: Callable[[], None]) -> None:
        """As `ending.call_at_end`, also if it is never decided."""
        if self.run is not None:
            call_at_end(self.run, action)
        else:
            self._at_end.append(action)
            atexit.register(action)

    def define_metric(self, *words: Any, **options: Any) -> None:
        if self.run is None:
            self._axes.append((words, options))
        else:
            self.run.define_metric(*words, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.settle(), name)
