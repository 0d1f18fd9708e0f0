"""How many values a W&B run takes."""

from __future__ import annotations

import time
import warnings

VALUES_PER_MINUTE = 100_000
"""W&B's advice per run; a tenth of it may be sent at once. A histogram is one value."""


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
