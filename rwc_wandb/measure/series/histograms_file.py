"""The file of histograms: a JSON object a line, one for each step of which there are some."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.threads import Worker

SECONDS_TO_WRITE = 10.0
"""What a disk may take at the end."""


class HistogramsFile:
    """Appends histograms in a thread, at once: a kill loses none that was measured, whatever a log has taken of them.

    A line has `step` (the optimizer step), `layers` (L names), `counts` [2, L, bins] of the weights and of their
    updates, and `ranges` [2, L, 2], the low and the high end of the evenly spaced bins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: deque[tuple[list[str], Histograms]] = deque()
        self._thread: Worker | None = None
        """The one that writes; None when there is nothing to write."""
        # A `Worker` may do its work where it is started.
        self._lock = threading.RLock()

    def append(self, layers: Sequence[str], histograms: Histograms) -> None:
        """It returns at once. What cannot be written, on a full disk say, is left out."""
        with self._lock:
            self._unwritten.append((list(layers), histograms))
            if self._thread is None:
                self._thread = Worker(self._write)
                self._thread.start()

    def finish(self) -> None:
        """Wait for what is being written."""
        if (thread := self._thread) is not None:
            thread.join(SECONDS_TO_WRITE)

    def _write(self) -> None:
        while True:
            with self._lock:
                if not self._unwritten:
                    self._thread = None
                    return
                layers, one = self._unwritten.popleft()
            # An error costs this line, not those that follow.
            with suppress(OSError, MemoryError):
                counts, ranges = one.counts.tolist(), one.ranges.tolist()
                line = json.dumps({"step": one.step, "layers": layers, "counts": counts, "ranges": ranges}) + "\n"
                with self.path.open("a") as file:
                    file.write(line)
