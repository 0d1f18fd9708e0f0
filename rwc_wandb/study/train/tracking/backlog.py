"""Rows that are on record and that W&B's process could not take yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import wandb

from rwc_wandb.log.budget import VALUES_PER_HISTOGRAM, Flow
from rwc_wandb.log.outbox import Row

if TYPE_CHECKING:
    from wandb import Run

MOST_VALUES = 1_000_000
"""Ten minutes of the most that a run sends; about 100 MB."""


class Backlog(Flow):
    """Sends rows in order, each as soon as W&B's process takes it. Recording them waits for nothing: as the
    `row_flow` of a `RecordedRun` it allows every row.

    Args:
        run: the W&B run.
        send: gives it a row, and does not raise.
    """

    def __init__(self, run: Run, send: Callable[[Row], None]) -> None:
        super().__init__(run)
        self._send = send
        self._rows: deque[Row] = deque()
        self._values = 0
        self._has_given_up = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_too_long(self) -> bool:
        return self._values > MOST_VALUES

    def add(self, row: Row) -> None:
        """Send the row, after what came before it, or keep it for a later call."""
        self._rows.append(row)
        self._values += _values(row)
        for _ in range(2):  # What has gathered must not go out within one step.
            if self._rows and super().allows(_values(self._rows[0])):
                self._send_first()

    def clear(self) -> None:
        self._rows.clear()
        self._values = 0

    def allows(self, values: int) -> bool:
        return True

    def wait(self, seconds: float) -> bool:
        """Send all; whether W&B's process has taken it. Once it has not answered for so long it is not waited for
        again."""
        while not self._has_given_up:
            self._has_given_up = not super().wait(seconds)
            if self._has_given_up or not self._rows:
                break
            self._send_first()
        return not self._has_given_up

    def _send_first(self) -> None:
        row = self._rows.popleft()
        self._values -= _values(row)
        self._send(row)


def _values(row: Row) -> int:
    return sum(VALUES_PER_HISTOGRAM if isinstance(value, wandb.Histogram) else 1 for value in row.values())
