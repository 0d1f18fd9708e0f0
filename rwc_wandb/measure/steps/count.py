"""The count of optimizer steps, of which a fused optimizer skips some under GradScaler: only the device knows which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class StepCount:
    """Counts complete steps.

    Attributes:
        step: how many there were; too many by those of which it is not known yet that they were skipped.
        calls: how many there were since the last measurement.
        flags: for each of these that may have been skipped, a tensor that is not 0 if it was: by all optimizers that
            stepped.
    """

    step: int = 0
    calls: int = 0
    flags: list[Tensor] = field(default_factory=list)

    def note(self, found_inf: Sequence[Tensor | None]) -> None:
        """A step is complete; `found_inf` of each optimizer that stepped, None for one that has really stepped."""
        self.step += 1
        self.calls += 1
        # GradScaler sets it for the time of the step, and only where the optimizer is to decide.
        possible = [flag for flag in found_inf if flag is not None]
        if len(possible) == len(found_inf):
            self.flags.append(possible[0] if len(possible) == 1 else torch.stack(possible).amin())

    def start_over(self) -> None:
        """A measurement was taken."""
        self.calls, self.flags = 0, []

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "step": self.step,
            "calls": self.calls,
            "skips": torch.tensor([float(flag) for flag in self.flags], device="cpu"),
        }

    def resume(self, counters: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self.calls, self.flags = counters["step"], counters["calls"], list(counters["skips"])
