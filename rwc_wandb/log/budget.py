"""How many values a W&B run takes."""

from __future__ import annotations

import time

VALUES_PER_MINUTE = 100_000
"""W&B's advice per run; a tenth of it may be sent at once. A histogram is one value."""


class Budget:
    """What a run may still be sent."""

    def __init__(self) -> None:
        self._owed = 0.0
        """Values sent that the time since has not paid for."""
        self._counted_at = time.monotonic()

    def allows(self, values: int) -> bool:
        """Whether so many may be sent now; then they are counted."""
        now = time.monotonic()
        self._owed = max(0.0, self._owed - (now - self._counted_at) / 60 * VALUES_PER_MINUTE)
        self._counted_at = now
        if self._owed > VALUES_PER_MINUTE / 10:
            return False
        self._owed += values
        return True
