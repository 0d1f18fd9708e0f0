"""How much W&B's process can be sent without a wait: it reads what `run.log` writes, unless it is busy or stopped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb import Run

MOST_UNANSWERED = 2000
"""Values. The socket between the two processes was seen to hold about 4,000; then `run.log` waits."""
VALUES_PER_HISTOGRAM = 40
"""A histogram of 64 bins is as long as so many numbers."""
PATIENCE = 0.02
"""Seconds that a step waits for an answer, once until it has come."""


class Flow:
    """Asks W&B's process, in a thread, for a sign that it has read everything before."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._unanswered = 0
        self._asked_at = 0
        """How much was unanswered when the question was asked."""
        self._answer: threading.Event | None = None

    def allows(self, values: int) -> bool:
        """Whether this many can be sent now; then they are counted."""
        self._note_answer()
        if self._unanswered + values > MOST_UNANSWERED:
            if self._answer is not None:
                return False
            if not self._ask().wait(PATIENCE):
                return False
            self._note_answer()
        self._unanswered += values
        if self._unanswered > MOST_UNANSWERED / 2 and self._answer is None:
            self._ask()
        return True

    def wait(self, seconds: float) -> bool:
        """Whether W&B's process answers in that time."""
        self._note_answer()
        answered = (self._answer or self._ask()).wait(seconds)
        self._note_answer()
        return answered

    def _note_answer(self) -> None:
        if self._answer is not None and self._answer.is_set():
            self._answer = None
            self._unanswered -= self._asked_at

    def _ask(self) -> threading.Event:
        self._asked_at, self._answer = self._unanswered, threading.Event()
        threading.Thread(target=_ask, args=[self._run, self._answer], daemon=True).start()
        return self._answer


def _ask(run: Run, answer: threading.Event) -> None:
    """`run.step` is a round trip to W&B's process, which answers in the order of what it is sent."""
    while True:
        try:
            run.step  # noqa: B018
        except TimeoutError:
            continue
        except Exception:
            pass  # The next `run.log` raises it too.
        answer.set()
        return
