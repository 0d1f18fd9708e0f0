"""Steps that a fused optimizer skips under GradScaler: its hooks run, only the device knows it was in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Skips:
    """Since the last measurement: how often the optimizers stepped, and what will tell whether in vain.

    Attributes:
        calls: complete steps.
        flags: for each that may have been skipped, a tensor that is not 0 if it was: by all optimizers that stepped.
    """

    calls: int = 0
    flags: list[Tensor] = field(default_factory=list)

    def note(self, found: Sequence[Tensor | None]) -> None:
        """A step is complete; `found_inf` of each optimizer that stepped, None for one that has really stepped."""
        self.calls += 1
        # GradScaler sets it for the time of the step, and only where the optimizer is to decide.
        possible = [flag for flag in found if flag is not None]
        if len(possible) == len(found):
            self.flags.append(possible[0] if len(possible) == 1 else torch.stack(possible).amin())
