"""A training under way, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console

import rwc_wandb
from rwc_wandb.log.runs.watched_run import watched
from rwc_wandb.study.train.epoch import Place
from rwc_wandb.study.train.learner import Learner
from rwc_wandb.study.train.output import WriteFailures
from rwc_wandb.study.train.totals import new_totals, on_host
from rwc_wandb.study.train.tracking.recorded import RecordedRun

if TYPE_CHECKING:
    from wandb import Run


@dataclass
class Session:
    """A training under way: what is needed to go on with it elsewhere, and where it reports.

    `folder`, `run` and `checkpoints` are there on the main process only.
    """

    learner: Learner
    monitor: rwc_wandb.Monitor
    place: Place
    steps: int
    best: float
    console: Console
    failures: WriteFailures
    folder: Path | None
    run: RecordedRun | None
    unwritten: list[dict[str, float]] = field(default_factory=list)
    """Epochs that are not in `metrics.csv` yet."""

    def state(self) -> dict[str, Any]:
        """On every process: each has its own share of the totals."""
        accelerator = self.learner.accelerator
        totals = on_host(accelerator.gather(self.place.totals.unsqueeze(0)))
        if not accelerator.is_main_process:
            return {}
        return {
            "model": self.learner.module.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "epoch": self.place.epoch,
            "step": self.place.step,
            "totals": totals,
            "steps": self.steps,
            "best": self.best,
            "rows": self.run.recorded if self.run is not None else 0,
        }

    def load(self, state: dict[str, Any]) -> None:
        accelerator = self.learner.accelerator
        self.learner.module.load_state_dict(state["model"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        if accelerator.is_main_process:
            self.monitor.load_state_dict(state["monitor"])
        shares = state["totals"]
        if len(shares) != accelerator.num_processes:  # They are summed over all processes in the end.
            shares = torch.zeros(accelerator.num_processes, 3, dtype=torch.float64)
            shares[0] = state["totals"].sum(0)
        totals = new_totals(accelerator.device, shares[accelerator.process_index])
        self.place = Place(state["epoch"], state["step"], totals)
        self.steps, self.best = state["steps"], state["best"]

    def log_waiting(self) -> None:
        """Before a stop: what waits for its row becomes a row of its own, and the next begins behind the checkpoint."""
        if self.run is not None:
            watched(cast("Run", self.run)).is_stopped = True
        self.monitor.flush()
        if self.run is not None:
            self.run.commit()

    def go_on(self, state: dict[str, Any] | None) -> None:
        """Take up a training that was started before, from its last checkpoint if it has one."""
        if state is not None:
            self.load(state)
            self.console.print(f"Resumed in epoch {self.place.epoch}, after {self.steps} steps.", highlight=False)
        if self.run is not None:
            # Checkpoints of earlier versions have no "rows".
            self.run.go_on(0 if state is None else state.get("rows", -1), self.monitor.history.layers[0])


def start_of(epoch: int, learner: Learner) -> Place:
    return Place(epoch, 0, new_totals(learner.accelerator.device))
