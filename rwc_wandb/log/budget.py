"""How many values a W&B run takes: in a minute by W&B's advice, and now, by whether W&B's process is reading."""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING

from wandb.sdk.interface.interface import InterfaceBase

from rwc_wandb.measure.delivery import described
from rwc_wandb.threads import Worker

if TYPE_CHECKING:
    from wandb import Run

VALUES_PER_MINUTE = 100_000
"""W&B's advice per run; a tenth of it may be sent at once. A histogram is one value."""
MOST_UNANSWERED = 2000
"""Values. The socket between the two processes was seen to hold about 4,000; then `run.log` waits."""
VALUES_PER_HISTOGRAM = 40
"""A histogram of 64 bins is as long as so many numbers."""
FRESH = 0.5
"""Seconds for which an answer is trusted. What the user logs and prints meanwhile fills the same socket, uncounted: one
with small messages in it was full after some 250 of them."""
PATIENCE = 0.03
"""Seconds that a step waits for an answer, once until it has come; it takes 1 ms where W&B's process is well."""


class Budget:
    """What a run may still be sent."""

    def __init__(self) -> None:
        self._owed = 0.0
        """Values sent that the time since has not paid for."""
        self._counted_at = self._begun_at = time.monotonic()
        self._wanted = 0
        self._has_said = False

    def allows(self, values: int) -> bool:
        """Whether so many may be sent now; then they are counted. What is thinned is said once."""
        self._wanted += values
        if self.left() < 0.9 * VALUES_PER_MINUTE:
            self._say()
            return False
        self._owed += values
        return True

    def left(self) -> float:
        """How many more values W&B takes within a minute."""
        now = time.monotonic()
        self._owed = max(0.0, self._owed - (now - self._counted_at) / 60 * VALUES_PER_MINUTE)
        self._counted_at = now
        return VALUES_PER_MINUTE - self._owed

    def _say(self) -> None:
        minutes = (time.monotonic() - self._begun_at) / 60
        if self._has_said:
            return
        self._has_said = True
        warnings.warn(
            f"rwc_wandb: {self._wanted:,} values in {60 * minutes:.1f} s are more than the {VALUES_PER_MINUTE:,} a "
            "minute that W&B takes of a run. From here on rows that are too many are averaged into later ones, and "
            "histograms that are too many are left out; monitor.history and its file have every measurement. A larger "
            "log_every=, a larger histogram_every= or fewer layers= fit.",
            stacklevel=2,
        )


class Flow:
    """Asks W&B's process, in a thread, for a sign that it has read everything before."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._unanswered = 0
        self._asked_at = 0
        """How much was unanswered when the question was asked."""
        self._answer: _Answer | None = None
        self._answered = time.monotonic()
        """When it was known to read, by the clock."""

    def allows(self, values: int) -> bool:
        """Whether this many can be sent now; then they are counted."""
        self._note_answer()
        age = time.monotonic() - self._answered
        if self._unanswered + values > MOST_UNANSWERED or age > FRESH:
            if self._answer is not None or not self._ask().wait(PATIENCE):
                return False
            self._note_answer()
            age = 0.0
        self._unanswered += values
        if self._answer is None and (self._unanswered > MOST_UNANSWERED / 2 or age > FRESH / 2):
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
            self._unanswered -= self._asked_at
            self._answered, self._answer = self._answer.at, None

    def _ask(self) -> _Answer:
        self._asked_at, self._answer = self._unanswered, _Answer()
        Worker(_ask, self._run, self._answer).start()
        return self._answer


class _Answer(threading.Event):
    at = 0.0
    """When it came, by the clock."""


def _ask(run: Run, answer: _Answer) -> None:
    while True:
        try:
            _round_trip(run)
        except TimeoutError:
            if threading.current_thread() is threading.main_thread():
                return  # `Worker.start` is here, where the interpreter ends: that may take no longer.
            continue
        except Exception:
            pass  # The next `run.log` raises it too.
        answer.at = time.monotonic()
        answer.set()
        return


def _round_trip(run: Run) -> None:
    """Wait for an answer of W&B's process, which answers in the order of what it is sent.

    Raises:
        TimeoutError: none has come for half a minute or more.
    """
    if hasattr(InterfaceBase, "deliver_history_step"):
        run.step  # noqa: B018
        return
    # Older clients (0.21) count steps themselves, and ask for the summary; they say nothing when no answer comes.
    begun = time.monotonic()
    run.summary.get("_step")
    if time.monotonic() - begun >= run.settings.summary_timeout:
        raise TimeoutError


def has_ended(error: Exception) -> bool:
    """Whether this is how the client says that its process is gone."""
    return isinstance(error, ConnectionError) or type(error).__name__ == "MailboxClosedError"


def cause_of(error: Exception) -> str:
    """Why W&B takes nothing, in the words of a warning."""
    reason = described(error)
    return f"W&B's process has ended, killed perhaps because memory was out; {reason}" if has_ended(error) else reason
