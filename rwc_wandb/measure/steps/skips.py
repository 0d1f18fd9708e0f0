"""Steps that a fused optimizer skips under GradScaler: its hooks run, only the device knows it was in vain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Skips:
    """Since the last measurement: how often the optimizers stepped, and what will tell whether in vain.

    Attributes:
        calls: complete steps. With several optimizers one is complete when the last of them has stepped.
        flags: for each that may have been skipped, a tensor that is not 0 if it was: by all of the optimizers.
    """

    def __init__(self, calls: int = 0, flags: list[Tensor] | None = None) -> None:
        self.calls = calls
        self.flags = flags or []
        self._others: list[Tensor | None] = []

    def note_other(self, optimizer: Any) -> None:
        """An optimizer other than the last has stepped."""
        self._others.append(getattr(optimizer, "found_inf", None))

    def note(self, optimizer: Any) -> None:
        """The last optimizer has stepped."""
        self.calls += 1
        # GradScaler sets it for the time of the step, and only where the optimizer is to decide.
        flags = [*self._others, getattr(optimizer, "found_inf", None)]
        self._others = []
        possible = [flag for flag in flags if flag is not None]
        if len(possible) == len(flags):
            self.flags.append(possible[0] if len(possible) == 1 else torch.stack(possible).amin())
