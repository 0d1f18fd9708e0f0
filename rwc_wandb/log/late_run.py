"""A W&B run that is decided later: when something is to be logged, at the latest."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import wandb

from rwc_wandb.log.opening import open_run

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
        self._teardown_hooks: list[Any] = []
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
            getattr(self.run, "_teardown_hooks", []).extend(self._teardown_hooks)
            for hook in self._teardown_hooks:
                # Exit handlers run last in, first out, and W&B has registered one since: ours must run before it.
                atexit.unregister(hook.call)
                atexit.register(hook.call)
        return self.run

    def define_metric(self, *words: Any, **options: Any) -> None:
        if self.run is None:
            self._axes.append((words, options))
        else:
            self.run.define_metric(*words, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.settle(), name)
