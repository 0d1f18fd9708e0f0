"""The file of a series that grows: whole at any moment, and never far behind."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from rwc_wandb.measure.series.history import History
from rwc_wandb.threads import Worker

LEAST_SECONDS = 5.0
MOST_SECONDS = 45.0

SECONDS_TO_WRITE = 120.0
"""A disk that does not answer (a network's, say) holds up the end of a training no longer."""


class SeriesFile:
    """Saves a growing history again and again, in a thread, so that a kill loses no more than the last minute.

    A save begins 5 to 45 s after the one before: as late as it must for writing to take 1% of the time. Only a file
    that takes longer than 11 s to write is saved less often.

    Args:
        path: where it is; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._latest: History | None = None
        """What is to be saved when that is due."""
        self._thread: threading.Thread | None = None
        """The one that saves; None when there is nothing to save."""
        # A handler of a signal may end the run where this thread holds the lock.
        self._lock = threading.RLock()
        self._is_ending = threading.Event()
        self._due = 0.0

    def keep(self, history: History) -> None:
        """Save what `history` holds now when that is due, though nothing more may come. It returns at once."""
        with self._lock:
            self._latest = history.frozen()
            # One that an error has ended, of memory say, is not None.
            if self._thread is not None and self._thread.is_alive():
                return
        # Not under the lock, for which the new thread would wait while a signal's handler waits for that thread.
        thread = threading.Thread(target=self._save_when_due, daemon=True)
        # Where the interpreter ends and starts none any more (see `Worker`), `finish` is next.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def finish(self, history: History) -> None:
        """Save all of it, now.

        Raises:
            OSError: it cannot be written, or not within two minutes.
        """
        failed: list[OSError] = []

        def save() -> None:
            try:
                history.save(self.path)
            except OSError as error:
                failed.append(error)

        self._is_ending.set()
        before, last = self._thread, Worker(save)
        deadline = time.monotonic() + SECONDS_TO_WRITE
        if before is not None:
            before.join(SECONDS_TO_WRITE)
        # Two threads would write into one unfinished file.
        if before is None or not before.is_alive():
            last.start()
            last.join(max(deadline - time.monotonic(), 0))
            if not last.is_alive() and not failed:
                return
        raise failed[0] if failed else TimeoutError(f"{self.path} is not written after {SECONDS_TO_WRITE:g} s")

    def _save_when_due(self) -> None:
        while True:
            with self._lock:
                if self._latest is None:
                    self._thread = None
                    return
            if self._is_ending.wait(self._due - time.monotonic()):
                return
            with self._lock:
                latest, self._latest = self._latest, None
            self._save(latest)

    def _save(self, history: History) -> None:
        begun = time.monotonic()
        try:
            history.save(self.path)
        except OSError:
            self._due = begun + MOST_SECONDS
            return  # `finish` tries again, and says so.
        took = time.monotonic() - begun
        self._due = begun + max(LEAST_SECONDS, min(100 * took, MOST_SECONDS), 4 * took)
