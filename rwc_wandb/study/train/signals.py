"""Ctrl-C, the end of a preempted job, the death of a launcher: noted, so that training can stop between two steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

ECHO_SECONDS = 5
"""A terminal or a scheduler signals every process, and a launcher passes its own on: the same signal comes twice."""

LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "WANDB_SWEEP_ID", "RWC_WANDB_SWEEP")
"""What `accelerate launch`, torchrun, `wandb agent` and `rwc-wandb sweep --local` leave in a training's environment."""


class StopSignals:
    """Within it the first SIGINT or SIGTERM is noted in `received`; one that comes later acts as it did before.

    `accelerate launch` with one process hands no signal on: it just ends, and training would live on beside the next
    run of a sweep. So the death of a launcher counts as SIGTERM. Without a launcher the parent is a shell, which a
    training in the background may outlive. Make it before anything slow: a launcher that has died before is not missed.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHERS) else None

    def heard(self) -> int | None:
        """The signal to stop for; None: go on."""
        if self.received is None and self._launcher is not None and os.getppid() != self._launcher:
            self.received, self._at = signal.SIGTERM, time.monotonic()
        return self.received

    def __enter__(self) -> StopSignals:
        try:
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # Only the main thread can.
            pass
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
